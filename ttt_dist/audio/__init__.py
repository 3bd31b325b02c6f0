"""Speech as waveforms and as codes: reading, resampling, and speech tokenizers (codecs) behind one interface.

A name is imported from its module when it is first asked for: what a codec is can be read without torch and soundfile.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttt_dist.audio.codec import Codec, CodecInfo
    from ttt_dist.audio.io import UtteranceReader, load_utterance, read_audio, write_wav
    from ttt_dist.audio.registry import describe_codec, load_codec
    from ttt_dist.audio.resampling import resample

HOMES = {
    "codec": ("Codec", "CodecInfo"),
    "io": ("UtteranceReader", "load_utterance", "read_audio", "write_wav"),
    "registry": ("describe_codec", "load_codec"),
    "resampling": ("resample",),
}
__all__ = [
    "Codec",
    "CodecInfo",
    "UtteranceReader",
    "describe_codec",
    "load_codec",
    "load_utterance",
    "read_audio",
    "resample",
    "write_wav",
]


def __getattr__(name: str) -> Any:
    for module, names in HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
