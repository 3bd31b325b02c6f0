"""Export to a model folder and back, through our loader and through transformers."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from ttt_dist.config.decode import DecodeSettings, folder_settings
from ttt_dist.config.model import ModelConfig, RopeScaling
from ttt_dist.config.objective import Objective
from ttt_dist.model.attention.plan import attention_plan
from ttt_dist.model.hf.families import require_same_model
from ttt_dist.model.hf.folder import (
    FolderWeights,
    export_folder,
    load_folder,
    new_folder,
)
from ttt_dist.model.hf.weight_names import from_huggingface, huggingface_names, to_huggingface
from ttt_dist.model.layers import LocalLayerFactory, RandomWeights
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.templates import TemplateSettings
from ttt_dist.sequence.text_tokenizer import train_sentencepiece
from ttt_dist.sequence.tokens import TokenLayout, extend
from ttt_dist.util.errors import UserError

SMALL = ModelConfig(hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, ffn_hidden_size=24)
VARIANTS = {
    "gqa": SMALL,
    "tied": dataclasses.replace(SMALL, tie_embeddings=True, num_kv_heads=1, head_dim=8),
    "no bias": dataclasses.replace(SMALL, qkv_bias=False, rope_theta=500.0, num_kv_heads=4),
    "norms": dataclasses.replace(SMALL, qkv_bias=False, qk_norm=True, head_dim=8),
    "mistral": dataclasses.replace(SMALL, qkv_bias=False, family="mistral"),
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
    model = Transformer.for_layout(
        dataclasses.replace(config, init_std=0.2), layout, LocalLayerFactory(RandomWeights(1))
    )
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
    objective = Objective(prompt_audio="causal", audio_ar=0.25)
    decoding = DecodeSettings(block=13, remasking="margin")
    export_folder(
        tmp_path / "model", model.named_parameters(), model.config, layout, objective, assets, decoding=decoding
    )
    loaded = load_folder(tmp_path / "model")
    assert folder_settings(tmp_path / "model") == decoding
    assert loaded.layout == layout
    require_same_model(tmp_path / "model", model.config)
    assert (loaded.objective, loaded.template.text_ratio) == (objective.resolved(), 7)
    assert loaded.tokenizer.hash == layout.tokenizer_hash
    text = "zero one\n  two öß"
    spoken = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert spoken(text)["input_ids"] == loaded.tokenizer.encode(text)
    assert spoken("<|audio_17|>")["input_ids"] == [layout.first_code + 17]
    for (name, mine), (_, theirs) in zip(loaded.model.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(mine, theirs), name

    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert (reference.generation_config.eos_token_id, reference.generation_config.pad_token_id) == (
        layout.im_end,
        layout.pad,
    )
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


def test_an_export_of_before_there_were_presets_is_one_of_the_paper(
    layout: TokenLayout, assets: Path, tmp_path: Path
) -> None:
    model = random_model(SMALL, layout)
    export_folder(tmp_path / "model", model.named_parameters(), model.config, layout, Objective(), assets)
    path = tmp_path / "model" / "config.json"
    values = json.loads(path.read_text())
    for former in ({"kind": "ar", "prompt_audio": "causal"}, {}):
        path.write_text(json.dumps(values | {"objective": former}))
        assert load_folder(tmp_path / "model").objective.resolved() == Objective(preset="paper", **former).resolved()


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


def test_what_a_killed_export_left_goes_and_the_old_one_stays_until_there_is_a_new_one(tmp_path: Path) -> None:
    folder, half = tmp_path / "model", tmp_path / ".model.elsewhere.4711.tmp"
    for names in ([".model.old.tmp"], [".model.old.tmp", "model"]):  # struck between the two renames; after them
        for name in names:
            (tmp_path / name).mkdir()
            (tmp_path / name / "is").write_text(name)
        half.mkdir()
        with pytest.raises(RuntimeError), new_folder(folder):
            raise RuntimeError
        assert (folder / "is").read_text() == names[-1]
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        shutil.rmtree(folder)


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
    wider = dataclasses.replace(layout, vocab_size=layout.padded_vocab_size + 1, padded_vocab_size=1024)
    wider.save(folder / "token_layout.json")
    refused("embed_tokens")
    shutil.rmtree(folder / "codec")
    refused("codec")


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_shards_hold_the_same_weights(config: ModelConfig, layout: TokenLayout, assets: Path, tmp_path: Path) -> None:
    """A stream of weights, none of which may be kept: every file is small, and one index leads to all."""
    model, folder = random_model(config, layout), tmp_path / "model"

    def stream() -> Iterator[tuple[str, Tensor]]:
        buffer = torch.empty(10**5)
        for name, parameter in model.named_parameters():
            view = buffer[: parameter.numel()].view(parameter.shape)
            yield name, view.copy_(parameter.detach())

    largest = model.embed.weight.numel() * 4
    export_folder(folder, stream(), model.config, layout, Objective(), assets, max_shard_bytes=4096)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) >= 4
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all(path.stat().st_size <= 65536 + max(4096, largest) for path in folder.glob("*.safetensors"))
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    loaded, reference = load_folder(folder).model, AutoModelForCausalLM.from_pretrained(folder)
    for (name, mine), (_, wanted) in zip(loaded.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(mine, wanted), name
        pieces = [reference.get_parameter(key) for key in huggingface_names(name, config)]
        assert torch.equal(from_huggingface(name, pieces, config), wanted), name


def test_many_small_tensors_need_more_headers(assets: Path, layout: TokenLayout, tmp_path: Path) -> None:
    deep = ModelConfig(hidden_size=2, num_layers=80, num_heads=1, num_kv_heads=1, ffn_hidden_size=2)
    model = random_model(deep, layout)
    export_folder(tmp_path / "model", model.named_parameters(), deep, layout, Objective(), assets)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    for (name, mine), wanted in zip(
        load_folder(tmp_path / "model").model.named_parameters(), model.parameters(), strict=True
    ):
        assert torch.equal(mine, wanted), name


def test_an_incomplete_export_is_a_mistake(layout: TokenLayout, assets: Path, tmp_path: Path) -> None:
    weights = dict(random_model(SMALL, layout).named_parameters())
    del weights["blocks.1.mlp.down.weight"]
    with pytest.raises(AssertionError, match="down_proj"):
        export_folder(tmp_path / "model", weights, SMALL, layout, Objective(), assets)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_the_vocabulary_are_padded_and_cut(
    tied: bool, layout: TokenLayout, assets: Path, tmp_path: Path
) -> None:
    """A folder may have fewer rows than the model asks for, or more; never fewer than there are tokens."""
    config = dataclasses.replace(SMALL, tie_embeddings=tied)
    narrow = dataclasses.replace(layout, padded_vocab_size=layout.vocab_size)
    model = random_model(config, narrow)
    export_folder(tmp_path / "model", model.named_parameters(), config, narrow, Objective(), assets)
    source = FolderWeights(tmp_path / "model", config, layout)
    for name, wanted in (("embed.weight", model.embed.weight), ("head.weight", model.head.weight)):
        rows = source(name, (layout.padded_vocab_size, 16))
        assert torch.equal(rows[: layout.vocab_size], wanted)
        assert not rows[layout.vocab_size :].any()
    specials = layout.special_ids | {"end_of_audio_span_last": 0}
    fewer = dataclasses.replace(layout, special_ids=specials, vocab_size=layout.vocab_size - 1)
    source = FolderWeights(tmp_path / "model", config, fewer)
    assert torch.equal(source("embed.weight", (fewer.vocab_size, 16)), model.embed.weight[:-1])
    many = dataclasses.replace(layout, vocab_size=layout.vocab_size + 1)
    with pytest.raises(UserError, match=r"model\.safetensors: model\.embed_tokens\.weight is .* tokens"):
        FolderWeights(tmp_path / "model", config, many)("embed.weight", (layout.padded_vocab_size, 16))
    with pytest.raises(UserError, match="settings say"):
        FolderWeights(tmp_path / "model", config)("embed.weight", (layout.padded_vocab_size, 16))


def test_weights_that_do_not_fit_are_named(layout: TokenLayout, assets: Path, tmp_path: Path) -> None:
    model, folder = random_model(SMALL, layout), tmp_path / "model"
    export_folder(folder, model.named_parameters(), SMALL, layout, Objective(), assets, max_shard_bytes=4096)
    deeper = dataclasses.replace(SMALL, num_layers=3)
    with pytest.raises(UserError, match=r"model\.layers\.2\.mlp\.down_proj\.weight"):
        FolderWeights(folder, deeper)("blocks.2.mlp.down.weight", (16, 24))
    with pytest.raises(UserError, match=r"safetensors: model\.norm\.weight is \[16\]"):
        FolderWeights(folder, SMALL)("norm.weight", (8,))
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    for file, words in (("../model.safetensors", "outside"), ("model-00001.safetensors", "missing")):
        index.write_text(json.dumps({"weight_map": places["weight_map"] | {"model.norm.weight": file}}))
        with pytest.raises(UserError, match=words):
            FolderWeights(folder, SMALL)
    other = next(name for name in places["weight_map"].values() if name != places["weight_map"]["model.norm.weight"])
    index.write_text(json.dumps({"weight_map": places["weight_map"] | {"model.norm.weight": other}}))
    with pytest.raises(UserError, match=f"{other}: lacks the tensor model.norm.weight"):
        FolderWeights(folder, SMALL)
    for text in ("{", "[]", "{}", '{"weight_map": 3}'):
        index.write_text(text)
        with pytest.raises(UserError, match=r"index\.json"):
            FolderWeights(folder, SMALL)
    index.write_text(json.dumps(places))
    broken = folder / other
    broken.write_bytes(broken.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{other}: not a whole safetensors file"):
        FolderWeights(folder, SMALL)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_layers": 3}, "model.num_layers is 2 there and 3 in this run; set model.num_layers=2"),
        ({"head_dim": 8}, "model.head_dim is 4 there and 8"),
        ({"tie_embeddings": True}, "model.tie_embeddings is False there and True"),
        ({"qkv_bias": False}, "model.qkv_bias is True there and False"),
        ({"rope_scaling": RopeScaling(type="llama3")}, "model.rope_scaling.type is none there and llama3"),
        ({"rms_norm_eps": 1e-5}, "model.rms_norm_eps is 1e-06 there and 1e-05"),
    ],
)
def test_another_model_is_refused_by_its_first_difference(
    change: dict, words: str, layout: TokenLayout, assets: Path, tmp_path: Path
) -> None:
    export_folder(tmp_path / "m", random_model(SMALL, layout).named_parameters(), SMALL, layout, Objective(), assets)
    require_same_model(tmp_path / "m", dataclasses.replace(SMALL, head_dim=4, init_std=1.0))
    with pytest.raises(UserError) as caught:
        require_same_model(tmp_path / "m", dataclasses.replace(SMALL, **change))
    assert words in str(caught.value)


def test_a_mapped_weight_can_be_trained(layout: TokenLayout, assets: Path, tmp_path: Path) -> None:
    """Writing into what was read changes memory, not the file."""
    model = random_model(SMALL, layout)
    export_folder(tmp_path / "m", model.named_parameters(), SMALL, layout, Objective(), assets)
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    weight = FolderWeights(tmp_path / "m", SMALL)("blocks.0.mlp.down.weight", (16, 24))
    weight.zero_()
    assert not weight.any()
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
