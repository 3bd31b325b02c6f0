"""Which codecs of `transformers` are known, and in what they differ. A new one is a row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
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
        help="Descript Audio Codec",
        model_type="dac",
        model_class="DacModel",
        sample_rate="sampling_rate",
        num_codebooks="n_codebooks",
        options=lambda config, k: {"n_quantizers": k},
        silenced=True,
    ),
    "encodec": Kind(
        help="EnCodec of Meta",
        model_type="encodec",
        model_class="EncodecModel",
        sample_rate="sampling_rate",
        num_codebooks="num_quantizers",
        options=lambda config, k: {"bandwidth": config.target_bandwidths[-1]},  # None would be the lowest
        chunked=True,
        fixed={"audio_channels": 1, "normalize": False, "chunk_length_s": None},
        causal=True,
    ),
    "higgs": Kind(
        help="tokenizer of Higgs Audio v2",
        model_type="higgs_audio_v2_tokenizer",
        model_class="HiggsAudioV2TokenizerModel",
        sample_rate="sample_rate",
        num_codebooks="num_quantizers",
    ),
    "mimi": Kind(
        help="Mimi of Kyutai",
        model_type="mimi",
        model_class="MimiModel",
        sample_rate="sampling_rate",
        hop=None,
        num_codebooks="num_quantizers",
        options=lambda config, k: {"num_quantizers": k},
        fixed={"audio_channels": 1},
        causal=True,
        in_steps=True,
    ),
    "neucodec": Kind(
        help="NeuCodec of Neuphonic",
        model_type="neucodec",
        model_class="NeuCodecModel",
        sample_rate="input_sampling_rate",
        hop="encoder_hop_length",
        feature_extractor="NeuCodecFeatureExtractor",  # adds a frame that its own features then lack
        output_rate="output_sampling_rate",
    ),
    "xcodec": Kind(
        help="X-Codec",
        model_type="xcodec",
        model_class="XcodecModel",
        sample_rate="sample_rate",
        num_codebooks="num_quantizers",
    ),
    "xcodec2": Kind(
        help="X-Codec 2",
        model_type="xcodec2",
        model_class="Xcodec2Model",
        sample_rate="sampling_rate",
        feature_extractor="Xcodec2FeatureExtractor",
        appended=1,
    ),
}
