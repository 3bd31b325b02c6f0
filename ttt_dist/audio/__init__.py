"""Speech as waveforms and as codes: reading, resampling, and speech tokenizers (codecs) behind one interface."""

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
