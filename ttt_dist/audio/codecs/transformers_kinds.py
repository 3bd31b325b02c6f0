"""Which codecs of `transformers` are known, and in what they differ. A new one is a row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Kind:
    """How `transformers` names a codec, its settings (attributes of its config), and how it is asked for codes."""

    help: str
    """What it is, for people."""
    model_type: str
    model_class: str
    sample_rate: str
    hop: str | None = "hop_length"  # None: by the frame rate
    num_codebooks: str | None = None  # None: one, of all combinations of `quantization_levels`
    options: Callable[[Any, int], dict[str, Any]] = lambda config, k: {}
    """(config, k) -> what `encode` is told beside the waveforms, so as to give at least k codebooks."""
    chunked: bool = False  # codes have a dimension of chunks in front, of which we have one
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Settings that must have this value, because with another one the codes alone would not say all."""
    feature_extractor: str | None = None  # class that prepares what a semantic model beside the encoder hears
    appended: int = 0  # samples that it adds before it fills up the last frame
    causal: bool = False  # may be padded at the end, from `causal_from` samples on
    silenced: bool = False  # may be padded at the end where its convolutions are `silenced` there
    in_steps: bool = False  # takes a waveform piece by piece
    output_rate: str | None = None  # of the decoder, where it is another


KINDS = {
    "dac": Kind(
        "Descript Audio Codec",
        "dac",
        "DacModel",
        "sampling_rate",
        num_codebooks="n_codebooks",
        options=lambda config, k: {"n_quantizers": k},
        silenced=True,
    ),
    "encodec": Kind(
        "EnCodec of Meta",
        "encodec",
        "EncodecModel",
        "sampling_rate",
        num_codebooks="num_quantizers",
        options=lambda config, k: {"bandwidth": config.target_bandwidths[-1]},  # None would be the lowest
        chunked=True,
        fixed={"audio_channels": 1, "normalize": False, "chunk_length_s": None},
        causal=True,
    ),
    "higgs": Kind(
        "tokenizer of Higgs Audio v2",
        "higgs_audio_v2_tokenizer",
        "HiggsAudioV2TokenizerModel",
        "sample_rate",
        num_codebooks="num_quantizers",
    ),
    "mimi": Kind(
        "Mimi of Kyutai",
        "mimi",
        "MimiModel",
        "sampling_rate",
        hop=None,
        num_codebooks="num_quantizers",
        options=lambda config, k: {"num_quantizers": k},
        fixed={"audio_channels": 1},
        causal=True,
        in_steps=True,
    ),
    "neucodec": Kind(
        "NeuCodec of Neuphonic",
        "neucodec",
        "NeuCodecModel",
        "input_sampling_rate",
        hop="encoder_hop_length",
        feature_extractor="NeuCodecFeatureExtractor",  # adds a frame that its own features then lack
        output_rate="output_sampling_rate",
    ),
    "xcodec": Kind("X-Codec", "xcodec", "XcodecModel", "sample_rate", num_codebooks="num_quantizers"),
    "xcodec2": Kind(
        "X-Codec 2", "xcodec2", "Xcodec2Model", "sampling_rate", feature_extractor="Xcodec2FeatureExtractor", appended=1
    ),
}
