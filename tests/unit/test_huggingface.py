"""Export to a model folder and back, through our loader and through transformers."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ttt_dist.config import ModelConfig
from ttt_dist.errors import UserError
from ttt_dist.model.attention import attention_plan
from ttt_dist.model.huggingface import export_folder, from_huggingface, huggingface_names, load_folder, to_huggingface
from ttt_dist.model.layers import PlainFactory, RandomWeights
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.objective import Objective
from ttt_dist.sequence.templates import TemplateSettings
from ttt_dist.sequence.text_tokenizer import train_sentencepiece
from ttt_dist.sequence.tokens import TokenLayout, extend

SMALL = ModelConfig(hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, ffn_hidden_size=24)
VARIANTS = {
    "gqa": SMALL,
    "tied": dataclasses.replace(SMALL, tie_embeddings=True, num_kv_heads=1, head_dim=8),
    "no bias": dataclasses.replace(SMALL, qkv_bias=False, rope_theta=500.0, num_kv_heads=4),
}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what lies beside shards."""
    folder = tmp_path_factory.mktemp("assets")
    train_sentencepiece(["zero one two three four five six seven eight nine"] * 5, folder / "tokenizer", vocab_size=300)
    (folder / "codec").mkdir()
    (folder / "codec" / "codec.json").write_text("{}")
    (folder / "template.json").write_text(json.dumps(TemplateSettings(text_ratio=7).to_dict()))
    return folder


@pytest.fixture(scope="module")
def layout(assets: Path) -> TokenLayout:
    from ttt_dist.sequence.text_tokenizer import load_tokenizer

    return extend(load_tokenizer(assets / "tokenizer"), codebook_size=30)


def random_model(config: ModelConfig, layout: TokenLayout) -> Transformer:
    model = Transformer.for_layout(dataclasses.replace(config, init_std=0.2), layout, PlainFactory(RandomWeights(1)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
    return model


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_names_and_tensors_there_and_back(config: ModelConfig, layout: TokenLayout) -> None:
    for name, tensor in random_model(config, layout).named_parameters():
        theirs = to_huggingface(name, tensor.detach(), config)
        assert list(theirs) == huggingface_names(name, config)
        assert torch.equal(from_huggingface(name, list(theirs.values()), config), tensor)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_an_export_loads_here_and_in_transformers(
    config: ModelConfig, layout: TokenLayout, assets: Path, tmp_path: Path
) -> None:
    model = random_model(config, layout)
    objective = Objective(prompt_audio="causal")
    export_folder(tmp_path / "model", model.named_parameters(), model.config, layout, objective, assets)
    loaded = load_folder(tmp_path / "model")
    assert loaded.layout == layout
    assert loaded.model.config == dataclasses.replace(model.config, head_dim=loaded.model.config.head_dim)
    assert (loaded.objective.prompt_audio, loaded.template.text_ratio) == ("causal", 7)
    assert loaded.tokenizer.hash == layout.tokenizer_hash
    for (name, mine), (_, theirs) in zip(loaded.model.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(mine, theirs), name

    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert reference.config.mask_token == layout.mask
    assert reference.config.audio_token_id_start == layout.first_code
    ids = torch.randint(0, layout.vocab_size, (2, 20), generator=torch.Generator().manual_seed(2))
    positions = torch.arange(20).expand(2, 20)
    plan = attention_plan(torch.ones_like(ids), torch.zeros_like(ids))
    with torch.no_grad():
        hidden = loaded.model.hidden(ids.flatten(), positions.flatten(), plan)
        mine = loaded.model.logits(hidden).view(2, 20, -1)[..., : layout.vocab_size]
        torch.testing.assert_close(mine, reference(ids).logits[..., : layout.vocab_size], rtol=0, atol=1e-4)


def test_what_transformers_saves_loads_here(layout: TokenLayout, assets: Path, tmp_path: Path) -> None:
    """transformers writes other keys for the same config (rope_parameters)."""
    model = random_model(dataclasses.replace(SMALL, rope_theta=500.0), layout)
    export_folder(tmp_path / "model", model.named_parameters(), model.config, layout, Objective(), assets)
    AutoModelForCausalLM.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "model")
    loaded = load_folder(tmp_path / "model")
    assert loaded.model.config.rope_theta == 500.0
    assert torch.equal(loaded.model.blocks[1].mlp.gate_up.weight, model.blocks[1].mlp.gate_up.weight)


def test_a_new_export_replaces_the_old_one(layout: TokenLayout, assets: Path, tmp_path: Path) -> None:
    model = random_model(SMALL, layout)
    for value in (1.0, 2.0):
        with torch.no_grad():
            model.norm.weight.fill_(value)
        export_folder(tmp_path / "model", dict(model.named_parameters()), SMALL, layout, Objective(), assets)
    assert (load_folder(tmp_path / "model").model.norm.weight == 2).all()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_that_fails_leaves_the_old_one(layout: TokenLayout, assets: Path, tmp_path: Path) -> None:
    model = random_model(SMALL, layout)
    export_folder(tmp_path / "model", model.named_parameters(), SMALL, layout, Objective(), assets)
    with pytest.raises(UserError, match="missing"):
        export_folder(tmp_path / "model", model.named_parameters(), SMALL, layout, Objective(), tmp_path)
    with pytest.raises(KeyError):
        export_folder(
            tmp_path / "model", {"blocks.0.unknown.weight": torch.zeros(1)}, SMALL, layout, Objective(), assets
        )
    load_folder(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_broken_folders_are_named(layout: TokenLayout, assets: Path, tmp_path: Path) -> None:
    model, folder = random_model(SMALL, layout), tmp_path / "model"

    def fresh() -> None:
        export_folder(folder, model.named_parameters(), SMALL, layout, Objective(), assets)

    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words):
            load_folder(folder)
        fresh()

    refused("no such model folder")
    (folder / "token_layout.json").unlink()
    refused("token_layout.json")
    (folder / "config.json").write_text("{")
    refused("config.json")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-10])
    refused("model.safetensors")
    (folder / "template.json").write_text('{"unknown": 1}')
    refused("template.json")
    dataclasses.replace(layout, tokenizer_hash="0" * 64).save(folder / "token_layout.json")
    refused("tokenizer")
    dataclasses.replace(layout, padded_vocab_size=layout.padded_vocab_size + 128).save(folder / "token_layout.json")
    refused("vocab_size")
