"""Adapters (the extra `lora`): what peft reads of an export computes what our model does, merged or beside its base."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.packages import need_package
from tests.unit.test_huggingface import VARIANTS, assets, layout
from ttt_dist.config.model import LoraConfig, ModelConfig
from ttt_dist.config.objective import Objective
from ttt_dist.model.attention.plan import attention_plan
from ttt_dist.model.hf.adapter import ADAPTER, Adaptation
from ttt_dist.model.hf.folder import FolderWeights, export_folder, load_folder
from ttt_dist.model.layers import LocalLayerFactory, RandomWeights
from ttt_dist.model.structure import is_adapter, parameter_shapes
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.tokens import TokenLayout

__all__ = ["assets", "layout"]  # fixtures
ALL = LoraConfig().target_modules
TARGETS = {"all": ALL, "attention": ["q_proj", "v_proj"], "mlp": ["o_proj", "up_proj"]}
RANK, ALPHA = 3, 5


def logits(model: Transformer, ids: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(len(ids))
    plan = attention_plan(
        torch.ones(1, len(ids), dtype=torch.long), torch.zeros(1, len(ids), dtype=torch.long), model.dtype
    )
    return model.logits(model.hidden(ids, positions, plan))


def adapted_model(base: Path, config: ModelConfig, layout: TokenLayout, first_rows: dict[str, int]) -> Transformer:
    """A model that begins on the folder `base`, and has learnt: adapters, and rows of the vocabulary."""
    source = FolderWeights(base, config, layout, adapters=RandomWeights(3))
    model = Transformer.for_layout(config, layout, LocalLayerFactory(source))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            rows = weight[first_rows[name] :] if name in first_rows else weight if is_adapter(name) else weight[:0]
            rows.add_(torch.randn(rows.shape, generator=generator) * 0.3)
    return model


@pytest.fixture(scope="module", params=["gqa", "tied", "norms"])
def base(
    request: Any, assets: Path, layout: TokenLayout, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ModelConfig]:
    """A model folder to start from, and its model."""
    folder, config = tmp_path_factory.mktemp("base"), VARIANTS[request.param]
    model = Transformer.for_layout(replace(config, init_std=0.2), layout, LocalLayerFactory(RandomWeights(1)))
    export_folder(folder / "base", model.named_parameters(), config, layout, Objective(), assets)
    return folder / "base", config


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS.keys())
@pytest.mark.parametrize("rows", ["none", "new", "all"])
def test_peft_reads_what_we_write(
    base: tuple[Path, ModelConfig], targets: Any, rows: str, assets: Path, layout: TokenLayout, tmp_path: Path
) -> None:
    peft = need_package("peft", "lora")
    folder, plain = base
    config = replace(plain, lora=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets))
    vocabulary = [name for name in ("embed.weight", "head.weight") if name in parameter_shapes(config, 128)]
    first = {"none": {}, "new": dict.fromkeys(vocabulary, layout.num_text_tokens), "all": dict.fromkeys(vocabulary, 0)}[
        rows
    ]
    ours = adapted_model(folder, config, layout, first)
    export_folder(
        tmp_path / "export", ours.named_parameters(), config, layout, Objective(), assets,
        adaptation=Adaptation(str(folder), first),
    )  # fmt: skip
    ids = torch.arange(7, layout.vocab_size, 13)
    with torch.no_grad():
        expected = logits(ours, ids)[:, : layout.vocab_size]
        unadapted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert not torch.allclose(unadapted(ids[None]).logits[0, :, : layout.vocab_size], expected, atol=0.1)
        theirs = peft.PeftModel.from_pretrained(unadapted, tmp_path / "export" / ADAPTER)
        found = theirs(ids[None]).logits[0, :, : layout.vocab_size]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32)
        found = merged(ids[None]).logits[0, :, : layout.vocab_size]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        found = logits(load_folder(tmp_path / "export").model, ids)[:, : layout.vocab_size]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    names = {name for name, _ in theirs.named_parameters() if "lora_" in name}
    assert len(names) == 2 * len(targets) * config.num_layers
