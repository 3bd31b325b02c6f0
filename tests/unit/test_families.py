"""Families of published models: what transformers computes, our Transformer computes, through import and export."""

import dataclasses
import json
import math
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tests.distributed.cases import ROOT
from ttt_dist.config.loader import load_config
from ttt_dist.config.model import ModelConfig, RopeScaling
from ttt_dist.model.attention.plan import attention_plan
from ttt_dist.model.hf.families import family_of, model_config, read_model_config, require_same_model
from ttt_dist.model.hf.folder import FolderWeights, expected_tensors
from ttt_dist.model.hf.published import export_hf, import_hf
from ttt_dist.model.layers import LocalLayerFactory
from ttt_dist.model.rotary import rotary_tables
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.text_tokenizer import TextTokenizer, train_sentencepiece
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.errors import UserError

LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 1e4,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "llama": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        "rms_norm_eps": 1e-5,
    },
    "llama3": {"model_type": "llama", "rope_parameters": LLAMA3, "max_position_embeddings": 64},
    "mistral": {"model_type": "mistral", "sliding_window": None, "head_dim": 8},
}
KINDS = list(product(FAMILIES, ("gqa", "mha"), ("tied", "untied")))
NUM_ROWS = 310  # of the published models: a few more than the tokenizer has entries
SEQ_LEN = 60


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer") / "words"
    return train_sentencepiece(["zero one two three four five six seven eight nine"] * 5, folder, vocab_size=300)


def published(family: str, heads: str, head: str, folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of transformers with random weights, biases and norms included, saved in shards."""
    shape = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "num_key_value_heads": 2 if heads == "gqa" else 4, "tie_word_embeddings": head == "tied", "vocab_size": NUM_ROWS,
    }  # fmt: skip
    values = FAMILIES[family]
    config = AutoConfig.for_model(
        values["model_type"], **(shape | {k: v for k, v in values.items() if k != "model_type"})
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.to(dtype).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return model


def load_ours(folder: Path) -> tuple[Transformer, TokenLayout]:
    layout = TokenLayout.load(folder / "token_layout.json")
    config = read_model_config(folder)
    return Transformer.for_layout(
        config, layout, LocalLayerFactory(FolderWeights(folder, config, layout))
    ).eval(), layout


def some_text(tokenizer: TextTokenizer) -> Tensor:
    return torch.randint(0, tokenizer.size, (2, SEQ_LEN), generator=torch.Generator().manual_seed(1))


def our_logits(model: Transformer, ids: Tensor) -> Tensor:
    plan = attention_plan(torch.ones_like(ids), torch.zeros_like(ids))
    positions = torch.arange(ids.shape[1]).expand(ids.shape)
    return model.logits(model.hidden(ids.flatten(), positions.flatten(), plan)).view(*ids.shape, -1)


def stored(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize(("family", "heads", "head"), KINDS, ids=map("-".join, KINDS))
@torch.no_grad()
def test_an_imported_model_computes_what_transformers_does(
    family: str, heads: str, head: str, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    theirs = published(family, heads, head, tmp_path / "hf")
    ids = some_text(tokenizer)
    wanted = theirs(ids).logits[..., : tokenizer.size]
    import_hf(tmp_path / "hf", tmp_path / "ours", tokenizer.files[0].parent, codebook=20, max_shard_bytes=30_000)
    ours, layout = load_ours(tmp_path / "ours")
    assert layout.vocab_size > NUM_ROWS
    mine = our_logits(ours, ids)
    assert mine.shape[-1] == layout.padded_vocab_size
    assert wanted.std() > 0.3
    torch.testing.assert_close(mine[..., : tokenizer.size], wanted, rtol=0, atol=1e-4)

    export_hf(tmp_path / "ours", tmp_path / "out", max_shard_bytes=30_000)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert type(exported) is type(theirs)
    assert (exported.config.mask_token, exported.config.audio_token_id_start) == (layout.mask, layout.first_code)
    assert exported.config.vocab_size == layout.vocab_size
    torch.testing.assert_close(exported(ids).logits[..., : tokenizer.size], wanted, rtol=0, atol=1e-6)
    speech = torch.arange(layout.vocab_size - 40, layout.vocab_size)[None]
    full = exported(speech).logits
    torch.testing.assert_close(our_logits(ours, speech)[..., : layout.vocab_size], full, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("family", "heads", "head"), KINDS, ids=map("-".join, KINDS))
def test_import_and_export_keep_every_byte(
    family: str, heads: str, head: str, dtype: torch.dtype, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    published(family, heads, head, tmp_path / "hf", dtype)
    import_hf(tmp_path / "hf", tmp_path / "ours", tokenizer.files[0].parent, codebook=20)
    export_hf(tmp_path / "ours", tmp_path / "out", max_shard_bytes=30_000)
    before, after = stored(tmp_path / "hf"), stored(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == dtype
        known = slice(0, tokenizer.size) if name in ("model.embed_tokens.weight", "lm_head.weight") else slice(None)
        assert torch.equal(after[name][known].view(torch.uint8), tensor[known].view(torch.uint8)), name
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == FAMILIES[family]["model_type"]
    require_same_model(tmp_path / "out", read_model_config(tmp_path / "hf"))


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        RopeScaling(
            type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
        ),
    ],
    ids=["plain", "llama3"],
)
def test_rotary_angles_are_those_of_transformers(scaling: RopeScaling | None) -> None:
    """To the last bit: late positions magnify any difference."""
    rope = LLAMA3 if scaling else {"rope_type": "default", "rope_theta": 1e4}
    config = AutoConfig.for_model("llama", hidden_size=256, num_attention_heads=4, rope_parameters=rope)
    positions = torch.arange(0, 100_000, 37)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    mine = rotary_tables(positions, 64, 1e4, torch.float32, scaling)
    for ours, theirs in zip(mine, (cos, sin), strict=True):
        assert torch.equal(ours, theirs[0, :, :32])
    if scaling:
        plain = rotary_tables(positions, 64, 1e4, torch.float32, RopeScaling())
        assert not torch.equal(plain[0], mine[0])


PUBLISHED = {
    "qwen2.5-7b": (
        7_615_616_512,
        {"architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 3584, "intermediate_size": 18944,
         "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28,
         "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072,
         "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 152064},
    ),
    "qwen3-0.6b": (
        596_049_920,
        {"architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "head_dim": 128, "hidden_act": "silu",
         "hidden_size": 1024, "intermediate_size": 3072, "model_type": "qwen3", "num_attention_heads": 16,
         "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None,
         "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True, "vocab_size": 151936},
    ),
    "llama-3.1-8b": (
        8_030_261_248,
        {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "hidden_act": "silu", "hidden_size": 4096,
         "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
         "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
         "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
         "tie_word_embeddings": False, "vocab_size": 128256},
    ),
    "mistral-7b-v0.3": (
        7_248_023_552,
        {"architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
         "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
         "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False,
         "vocab_size": 32768},
    ),
}  # fmt: skip


def num_parameters(config: ModelConfig, num_rows: int) -> int:
    return sum(torch.Size(shape).numel() for shape in expected_tensors(config, num_rows).values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_understood(name: str, tmp_path: Path) -> None:
    """Parameters as counted by the publishers."""
    wanted, values = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = read_model_config(tmp_path)
    assert num_parameters(config, values["vocab_size"]) == wanted
    assert family_of(config) == values["model_type"]
    assert config.rope_scaling.type == ("llama3" if name.startswith("llama") else "none")


@pytest.mark.parametrize(
    ("recipe", "num_rows", "wanted"),
    [
        ("qwen2.5-0.5b", 151936, 494_032_768),
        ("qwen2.5-1.5b", 151936, 1_543_714_304),
        ("qwen2.5-3b", 151936, 3_085_938_688),
        ("qwen2.5-7b", 152064, 7_615_616_512),
    ],
)
def test_recipes_have_the_published_shapes(recipe: str, num_rows: int, wanted: int) -> None:
    config = load_config(ROOT / f"recipes/{recipe}.yaml")
    assert num_parameters(config.model, num_rows) == wanted
    assert (config.model.rope_theta, config.model.rms_norm_eps, family_of(config.model)) == (1e6, 1e-6, "qwen2")
    train = config.train
    assert (train.lr, train.betas, train.weight_decay, train.precision) == (2e-5, (0.9, 0.95), 0.01, "bf16")
    assert train.warmup == train.steps // 100
    assert train.init_from


BASE = PUBLISHED["llama-3.1-8b"][1]
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another family": (
        "llama-3.1-8b",
        {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]},
        "model_type 'gemma2'",
    ),
    "another head": (
        "llama-3.1-8b",
        {"architectures": ["LlamaForSequenceClassification"]},
        "architectures names Llama",
    ),
    "no family": ("llama-3.1-8b", {"model_type": None, "architectures": None}, "lacks 'model_type'"),
    "activation": ("llama-3.1-8b", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "bias of the output": ("llama-3.1-8b", {"attention_bias": True}, "attention_bias is True"),
    "bias of the output, qwen3": ("qwen3-0.6b", {"attention_bias": True}, "attention_bias is True"),
    "bias of the mlp": ("llama-3.1-8b", {"mlp_bias": True}, "mlp_bias is True"),
    "yarn": ("qwen2.5-7b", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'"),
    "linear": ("llama-3.1-8b", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "rope_type is 'linear'"),
    "rope per layer": ("qwen2.5-7b", {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "'full_attention'"),
    "two bases": ("qwen2.5-7b", {"rope_parameters": {"rope_theta": 5.0}}, "rope_theta is both 5.0 and 1000000.0"),
    "part of a head": ("qwen2.5-7b", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "no factor": ("llama-3.1-8b", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks 'low_freq_factor'"),
    "ramp": ("llama-3.1-8b", {"rope_scaling": BASE["rope_scaling"] | {"high_freq_factor": 1.0}}, "high_freq_factor"),
    "window": ("mistral-7b-v0.3", {"sliding_window": 4096}, "sliding_window is 4096, which .* set it to null"),
    "qwen window": ("qwen2.5-7b", {"use_sliding_window": True}, "use_sliding_window is True"),
    "window of layers": ("qwen3-0.6b", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    "quantized": ("qwen2.5-7b", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    "no width": ("qwen2.5-7b", {"hidden_size": None}, "lacks 'hidden_size'"),
    "text for a number": (
        "qwen2.5-7b",
        {"num_hidden_layers": "28"},
        "num_hidden_layers must be a whole number, not '28'",
    ),
    "groups": ("qwen2.5-7b", {"num_key_value_heads": 5}, "num_heads=28 is no multiple"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_implemented_is_refused(name: str, tmp_path: Path) -> None:
    model, change, words = REFUSED[name]
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[model][1] | change))
    with pytest.raises(UserError, match=words) as caught:
        read_model_config(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_keys_mean_what_transformers_takes_them_for(tmp_path: Path) -> None:
    def without(model: str, *keys: str) -> ModelConfig:
        values = {key: value for key, value in PUBLISHED[model][1].items() if key not in keys}
        (tmp_path / "config.json").write_text(json.dumps(values))
        return read_model_config(tmp_path)

    config = without("llama-3.1-8b", "num_key_value_heads", "rope_theta", "rms_norm_eps", "tie_word_embeddings")
    assert (config.num_kv_heads, config.rope_theta, config.rms_norm_eps) == (32, 1e4, 1e-6)
    assert not config.tie_embeddings
    assert without("qwen3-0.6b", "head_dim").head_dim == 128
    assert without("qwen3-0.6b", "model_type").qk_norm
    assert without("qwen3-0.6b", "architectures").qk_norm
    with pytest.raises(UserError, match="sliding_window is 4096"):
        without("mistral-7b-v0.3", "sliding_window")


def test_family_and_traits_must_agree() -> None:
    with pytest.raises(UserError, match=r"model\.family=llama needs"):
        ModelConfig(family="llama").require_valid("model")
    with pytest.raises(UserError, match=r"set model\.qkv_bias=false"):
        ModelConfig(qk_norm=True).require_valid("model")
    with pytest.raises(UserError, match=r"rope_scaling\.factor must be positive"):
        ModelConfig(rope_scaling=RopeScaling(type="llama3", factor=0.0)).require_valid("model")
    for traits, name in {(True, False): "qwen2", (False, True): "qwen3", (False, False): "llama"}.items():
        config = ModelConfig(qkv_bias=traits[0], qk_norm=traits[1])
        config.require_valid("model")
        assert family_of(config) == name
    assert family_of(dataclasses.replace(ModelConfig(qkv_bias=False), family="mistral")) == "mistral"


def test_settings_of_a_run_reach_the_scaling(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("model: {qkv_bias: false, family: mistral, rope_scaling: {type: llama3}}\n")
    model = load_config(tmp_path / "run.yaml", ["model.rope_scaling.factor=32"]).model
    assert model.rope_scaling == RopeScaling(type="llama3", factor=32.0)
    assert model.family == "mistral"
    with pytest.raises(UserError, match=r"rope_scaling\.type must be one of none, llama3"):
        load_config(tmp_path / "run.yaml", ["model.rope_scaling.type=yarn"])


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
def test_a_missing_key_is_what_transformers_takes_it_for(family: str) -> None:
    values = {
        "model_type": family, "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 32, "intermediate_size": 64,
        "sliding_window": None, "vocab_size": 64, "rope_theta": 10000.0,
    }  # fmt: skip
    ours, theirs = model_config(values, Path("config.json")), AutoConfig.for_model(**values)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert (ours.head_dim or 256 // 32) == (getattr(theirs, "head_dim", None) or 256 // 32)
    assert (ours.rms_norm_eps, ours.init_std) == (theirs.rms_norm_eps, theirs.initializer_range)
    assert ours.tie_embeddings == theirs.tie_word_embeddings


ODD = ([], {}, [{}], [["a"]], {"a": []}, {"0": 1}, "a", "", -1, 0.5, 10**400, math.nan, math.inf, True, [None])


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_config_of_wrong_kinds_is_read_or_refused_in_a_line(model: str) -> None:
    plain = PUBLISHED[model][1]
    for key in {*plain, "quantization_config", "layer_types", "rope_scaling", "rope_parameters", "source_vocab_size"}:
        for value in ODD:
            with suppress(UserError):
                model_config(plain | {key: value}, Path("config.json"))
