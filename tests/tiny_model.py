"""Model folders of random weights with a codec that learnt noise: what tests decode, evaluate and serve."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from ttt_dist.audio.codecs.melvq import MelVQ, MelVQSettings
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.objective import Objective
from ttt_dist.model.hf.folder import export_folder
from ttt_dist.model.layers import LocalLayerFactory, RandomWeights
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.templates import TemplateSettings
from ttt_dist.sequence.text_tokenizer import load_tokenizer, train_sentencepiece
from ttt_dist.sequence.tokens import TokenLayout, extend

RATE = 8000
CODES = 16


def make_parts(folder: Path, waves: list[torch.Tensor], text: str, vocab_size: int) -> None:
    """What goes beside a model's weights: `folder` with codec, tokenizer and template."""
    MelVQ.learn(waves, MelVQSettings(sample_rate=RATE, codebook_size=CODES)).save(folder / "codec")
    train_sentencepiece([text] * 5, folder / "tokenizer", vocab_size=vocab_size)
    (folder / "template.json").write_text(json.dumps(TemplateSettings(name_speaker=True).to_dict()))


def noise(seconds: float, count: int) -> list[torch.Tensor]:
    """Recordings of it, the same in each call."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(int(seconds * RATE), generator=generator) * 0.1 for _ in range(count)]


def export_tiny(
    folder: Path,
    name: str,
    incline: Callable[[Transformer, TokenLayout], None],
    num_layers: int,
    init_std: float,
    objective: Objective | None = None,
    seed: int = 2,
) -> Path:
    """Export random weights, changed by `incline`, with the parts in `folder`; the model's folder."""
    layout = extend(load_tokenizer(folder / "tokenizer"), CODES)
    sizes = {"hidden_size": 16, "num_heads": 2, "num_kv_heads": 1, "ffn_hidden_size": 16}
    config = ModelConfig(num_layers=num_layers, init_std=init_std, **sizes)
    model = Transformer.for_layout(config, layout, LocalLayerFactory(RandomWeights(seed)))
    with torch.no_grad():
        incline(model, layout)
    export_folder(folder / name, model.named_parameters(), config, layout, objective or Objective(), folder)
    return folder / name
