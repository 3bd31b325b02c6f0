"""Tiny models of the codecs of transformers, with random weights, and sounds for them."""

from typing import Any

import torch
import transformers
from torch import Tensor

TRANSFORMER = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
HUBERT: dict[str, Any] = {
    "model_type": "hubert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 8,
}
WAV2VEC2_BERT: dict[str, Any] = {
    "model_type": "wav2vec2-bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "feature_projection_input_dim": 160,
    "conv_depthwise_kernel_size": 5,
    "output_hidden_size": 16,
}
FINITE_SCALAR: dict[str, Any] = {
    **TRANSFORMER,
    "hidden_size": 32,
    "head_dim": 16,
    "encoder_hidden_size": 4,
    "quantization_dim": 48,
    "quantization_levels": [4, 4, 4],
    "semantic_model_config": WAV2VEC2_BERT,
}


def acoustic(*ratios: int) -> dict[str, Any]:
    sizes = {"encoder_hidden_size": 4, "hidden_size": 8, "decoder_hidden_size": 32}
    return {"model_type": "dac", **sizes, "downsampling_ratios": list(ratios), "upsampling_ratios": list(ratios)}


TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "dac": (
        "Dac",
        {
            "encoder_hidden_size": 4,
            "decoder_hidden_size": 32,
            "n_codebooks": 3,
            "codebook_size": 16,
            "codebook_dim": 4,
            "downsampling_ratios": [2, 4, 5],
        },
    ),
    "encodec": (
        "Encodec",
        {
            "hidden_size": 16,
            "num_filters": 4,
            "codebook_size": 16,
            "target_bandwidths": [0.5, 1.5],
            "num_lstm_layers": 1,
            "sampling_rate": 8000,
            "upsampling_ratios": [8, 5, 2],
        },
    ),
    "higgs": (
        "HiggsAudioV2Tokenizer",
        {
            "acoustic_model_config": acoustic(8, 5, 4, 2, 3),
            "semantic_model_config": HUBERT,
            "codebook_size": 16,
            "codebook_dim": 4,
            "target_bandwidths": [0.2, 0.4],
        },
    ),
    "mimi": (
        "Mimi",
        {
            **TRANSFORMER,
            "hidden_size": 32,
            "head_dim": 16,
            "num_filters": 4,
            "codebook_size": 16,
            "codebook_dim": 8,
            "vector_quantization_hidden_dimension": 8,
            "num_quantizers": 4,
            "upsample_groups": 32,
            "upsampling_ratios": [4, 4, 2, 2],
            "sampling_rate": 8000,
        },
    ),
    "neucodec": ("NeuCodec", FINITE_SCALAR),
    "xcodec": (
        "Xcodec",
        {
            "acoustic_model_config": acoustic(8, 5, 4, 2),
            "semantic_model_config": HUBERT,
            "codebook_size": 16,
            "target_bandwidths": [0.2, 0.8],
        },
    ),
    "xcodec2": ("Xcodec2", FINITE_SCALAR),
}
RATES = {  # sample rate, samples per frame, codebooks, entries of each
    "dac": (16000, 40, 3, 16),
    "encodec": (8000, 80, 3, 16),
    "higgs": (24000, 960, 4, 16),
    "mimi": (8000, 128, 4, 16),
    "neucodec": (16000, 320, 1, 64),
    "xcodec": (16000, 320, 4, 16),
    "xcodec2": (16000, 320, 1, 64),
}


def model_class(name: str) -> Any:
    stem = TINY[name][0]
    return getattr(transformers, f"{stem}Model")


def tiny_model(name: str, **changes: Any) -> Any:
    """Random weights large enough for sounds to differ; the codebooks too, which transformers leaves at zero."""
    stem, values = TINY[name]
    torch.manual_seed(0)
    model = model_class(name)(getattr(transformers, f"{stem}Config")(**values | changes)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("weight.original0"):
                value.fill_(1.0)  # the norm of a filter, whose direction is original1
            elif value.is_floating_point() and value.dim() > 1 and "alpha" not in key:
                spread = 0.05 if key.endswith(("embed", "embed_sum")) else value[0].numel() ** -0.5
                value.copy_(torch.randn(value.shape, generator=generator) * spread)
    return model


def sound(samples: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    loudness = torch.rand(samples // 500 + 1, generator=generator).repeat_interleave(500)[:samples]
    return 0.5 * loudness * torch.randn(samples, generator=generator)
