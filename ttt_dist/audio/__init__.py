"""Speech as waveforms and as codes: reading, resampling, and speech tokenizers (codecs) behind one interface.

A name is imported from its module when it is first asked for: what a codec is can be read without torch and soundfile.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttt_dist.audio.codec import Codec, CodecInfo, describe_codec, load_codec
    from ttt_dist.audio.files import UtteranceReader, load_utterance, read_audio, resample, write_wav

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
IN_CODEC = ("Codec", "CodecInfo", "describe_codec", "load_codec")  # the others are in files


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'codec' if name in IN_CODEC else 'files'}"), name)
