"""What an export holds for others than ours, and the export of a checkpoint while its run goes on."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.evaluated import evaluate_here, line, read_lines, write_lines
from tests.tiny_model import CODES, RATE, make_parts, noise
from tests.unit.test_conversion import MODEL, STEP, save
from tests.unit.test_convert import publish
from tests.unit.test_huggingface import VARIANTS
from ttt_dist import generate
from ttt_dist.audio import write_wav
from ttt_dist.checkpoint.conversion import export_checkpoint
from ttt_dist.checkpoint.export import EXPORT, model_folder
from ttt_dist.checkpoint.manifest import write_manifest_of_folder
from ttt_dist.config.decode import DecodeSettings, folder_settings
from ttt_dist.config.loader import load_config, read_config
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.objective import Objective
from ttt_dist.model.hf.families import eos_of, model_section, read_model_config, require_same_model
from ttt_dist.model.hf.folder import export_folder, load_folder
from ttt_dist.model.hf.published import export_hf, import_hf
from ttt_dist.model.layers import LocalLayerFactory, RandomWeights
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.text_tokenizer import load_tokenizer
from ttt_dist.sequence.tokens import TokenLayout, extend
from ttt_dist.util.errors import UserError

FEW = ["--max-text", "6", "--span-limit", "6", "--steps", "2"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what lies beside shards."""
    folder = tmp_path_factory.mktemp("exports") / "shards"
    make_parts(folder, noise(seconds=0.5, count=2), "zero one two three four five", vocab_size=290)
    return folder


@pytest.fixture
def checkpoint(shards: Path, tmp_path: Path) -> Path:
    """A checkpoint in a run folder that has figures."""
    folder = tmp_path / "run" / "checkpoints" / f"step-{STEP:08d}"
    save(folder, load_tokenizer(shards / "tokenizer"), shards, CODES)
    records = [
        {"step": 5, "eval_loss": 2.5, "eval_ar_loss": 1.25},
        {"step": 5, "eval_far_loss": 3.5},
        {"step": 6, "loss": 1.0},
        {"step": 9, "eval_loss": 0.1},
    ]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def export(shards: Path, folder: Path, config: ModelConfig, decoding: DecodeSettings, **how: object) -> Path:
    layout = extend(load_tokenizer(shards / "tokenizer"), CODES)
    model = Transformer.for_layout(config, layout, LocalLayerFactory(RandomWeights(1)))
    export_folder(
        folder,
        model.named_parameters(),
        config,
        layout,
        Objective(),
        shards,
        decoding=decoding,
        **how,  # type: ignore[arg-type]
    )
    return folder


# ---- what others read


@pytest.mark.parametrize("variant", VARIANTS)
def test_keys_and_shapes_are_those_of_the_published_family(variant: str, shards: Path, tmp_path: Path) -> None:
    """Exactly the weights of transformers' own model, which vLLM and SGLang map by their names."""
    folder = export(shards, tmp_path / "model", VARIANTS[variant], DecodeSettings(), max_shard_bytes=20_000)
    values = json.loads((folder / "config.json").read_text())
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(config)
    assert [type(theirs).__name__] == values["architectures"] == config.architectures
    tied = {"lm_head.weight"} if values["tie_word_embeddings"] else set()
    wanted = {name: list(tensor.shape) for name, tensor in theirs.state_dict().items() if name not in tied}
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    found = {}
    for file in sorted(set(index.values())):
        with safe_open(folder / file, framework="pt") as tensors:
            assert tensors.metadata() == {"format": "pt"}
            found |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118  # no mapping
    assert found == wanted and found.keys() == index.keys()
    assert values["dtype"] == values["torch_dtype"] == "float32"


def test_generation_says_how_text_is_written_and_where_it_ends(shards: Path, tmp_path: Path) -> None:
    sampled = DecodeSettings(temperature=0.7, top_k=20, top_p=0.8)
    folder = export(shards, tmp_path / "sampled", MODEL, sampled, base_eos=[5, 3])
    found, layout = GenerationConfig.from_pretrained(folder), load_folder(folder).layout
    assert found.eos_token_id == [layout.im_end, 5, 3] and eos_of(folder) == found.eos_token_id
    assert (found.do_sample, found.temperature, found.top_k, found.top_p) == (True, 0.7, 20, 0.8)
    assert folder_settings(folder) == sampled
    greedy = GenerationConfig.from_pretrained(export(shards, tmp_path / "greedy", MODEL, DecodeSettings()))
    assert (greedy.do_sample, greedy.eos_token_id) == (False, layout.im_end)


def test_the_model_card(checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(checkpoint, tmp_path / "hf", torch.bfloat16)
    card = ModelCard.load(tmp_path / "hf" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag, card.data.license) == ("transformers", "any-to-any", None)
    rows = dict(re.findall(r"^\| ([a-z -]+) \| (.+) \|$", card.text, re.MULTILINE))
    assert rows["architecture"] == "Qwen2ForCausalLM" and rows["weights"] == "bfloat16"
    assert rows["training"].startswith(f"{STEP} steps, {8 * STEP} packs")
    assert rows["held-out loss"] == "loss 2.5000, ar_loss 1.2500, far_loss 3.5000 nats (step 5)"
    assert rows["codec"].startswith("melvq, 8,000 Hz") and rows["started from"] == "random weights"
    num_parameters = sum(
        weight.numel() for weight in AutoModelForCausalLM.from_pretrained(tmp_path / "hf").parameters()
    )
    assert rows["parameters"] == f"{num_parameters:,}"
    export_hf(tmp_path / "hf", tmp_path / "again")  # which knows nothing of the run
    assert (tmp_path / "again" / "README.md").read_bytes() == (tmp_path / "hf" / "README.md").read_bytes()


# ---- of a checkpoint


def test_the_export_of_a_checkpoint_decodes(checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(checkpoint, tmp_path / "one")
    export_hf(tmp_path / "one", tmp_path / "other")
    one, other = load_folder(tmp_path / "one"), load_folder(tmp_path / "other")
    assert one.layout == other.layout and one.objective == other.objective == Objective().resolved()
    assert one.template == other.template and one.template.name_speaker
    assert folder_settings(tmp_path / "one") == folder_settings(tmp_path / "other")
    for name in ("codec/codec.json", "custom_generate/generate.py", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert AutoTokenizer.from_pretrained(tmp_path / "one").chat_template


def test_an_export_of_before_there_were_presets_keeps_its_meaning(checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(checkpoint, tmp_path / "old")
    values = json.loads((tmp_path / "old" / "config.json").read_text())
    (tmp_path / "old" / "config.json").write_text(json.dumps(values | {"objective": {"kind": "ttt"}}))
    export_hf(tmp_path / "old", tmp_path / "new")
    assert load_folder(tmp_path / "new").objective == Objective(preset="paper").resolved()
    assert load_folder(tmp_path / "old").objective.preset == "paper"


def test_without_codec_it_is_a_text_model(checkpoint: Path, shards: Path, tmp_path: Path) -> None:
    """Whose shards have gone; its run's export, where there is one, has the same beside it."""
    metadata = json.loads((checkpoint / "run.json").read_text())
    metadata["config"]["data"]["train"] = str(tmp_path / "gone" / "train")
    (checkpoint / "run.json").write_text(json.dumps(metadata))
    (checkpoint / "manifest.json").unlink()
    write_manifest_of_folder(checkpoint)
    told = export_checkpoint(checkpoint, tmp_path / "text", tokenizer_folder=shards / "tokenizer")
    assert "a text model" in told and not (tmp_path / "text" / "custom_generate").exists()
    AutoModelForCausalLM.from_pretrained(tmp_path / "text")
    with pytest.raises(UserError, match="lacks tokenizer, codec, template.json, gone since the run"):
        model_folder(checkpoint)
    assert not (checkpoint / EXPORT).exists()
    for name in ("tokenizer", "codec"):
        shutil.copytree(shards / name, tmp_path / "run" / "export" / name)
    shutil.copyfile(shards / "template.json", tmp_path / "run" / "export" / "template.json")
    load_folder(model_folder(checkpoint))


def test_commands_take_a_checkpoint(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, wave in enumerate(noise(seconds=0.5, count=2)):
        write_wav(tmp_path / f"{number}.wav", wave, RATE)
    data = write_lines(tmp_path / "test.jsonl", [line(0), line(1)])
    export_checkpoint(checkpoint, tmp_path / "hf")
    results = []
    for name, model in (("a", tmp_path / "hf"), ("b", checkpoint), ("c", checkpoint)):
        evaluate_here(
            ["--model", str(model), "--task", "asr", "--data", str(data), "--out", str(tmp_path / name), *FEW]
        )
        results.append(read_lines(tmp_path / name / "asr.jsonl"))
    assert results[0] == results[1] == results[2]
    assert capsys.readouterr().err.count("a checkpoint; its weights become a model folder") == 1
    argv = ["generate.py", "--model", str(checkpoint), "--audio", str(tmp_path / "0.wav"), *FEW]
    monkeypatch.setattr(sys, "argv", argv)
    generate.main()
    assert capsys.readouterr().out.strip() == results[0][0]["hypothesis"].strip()


def test_a_run_is_not_a_model(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="run: is a run; name its export/ folder, or one of its checkpoints/"):
        model_folder(checkpoint.parent.parent)


# ---- into training


@pytest.fixture
def imported(shards: Path, tmp_path: Path) -> Path:
    """A published model with two ends of text, imported."""
    config = dataclasses.replace(VARIANTS["norms"], num_layers=1, family="qwen3", rope_theta=5e5)
    publish(tmp_path / "base", 300, config)
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2]}))
    told = import_hf(tmp_path / "base", tmp_path / "imported", shards / "tokenizer", codebook=CODES)
    assert "recipe.yaml there has its shape" in told
    return tmp_path / "imported"


def test_an_import_is_a_recipe(imported: Path, tmp_path: Path) -> None:
    config = load_config(imported / "recipe.yaml", ["data.train=shards/train"])
    assert config.train.init_from == str(imported)
    require_same_model(imported, config.model)
    assert config.model == read_model_config(imported)
    assert {"hidden_size", "num_layers", "qk_norm"} <= yaml.safe_load((imported / "recipe.yaml").read_text())[
        "model"
    ].keys()
    told = export_hf(imported, tmp_path / "back")
    assert "a text model" in told
    assert eos_of(tmp_path / "back") == [load_layout(imported).im_end, 7, 2]


def load_layout(folder: Path) -> TokenLayout:
    return TokenLayout.load(folder / "token_layout.json")


def test_a_config_without_model_takes_the_shape_of_what_it_starts_from(imported: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("data: {train: shards/train}\n")
    assert read_config(path, [], model_section).model == ModelConfig()
    start = f"train.init_from={imported}"
    found = read_config(path, [start], model_section).model
    assert found == read_model_config(imported)
    other = read_config(path, ["model.num_layers=2", start], model_section).model
    with pytest.raises(UserError, match=r"model\.num_layers is 1 there and 2 in this run; set model\.num_layers=1"):
        require_same_model(imported, other)
    path.write_text("data: {train: shards/train}\nmodel: {hidden_size: 64}\n")  # what is written is meant
    with pytest.raises(UserError, match=r"model\.hidden_size is 16 there and 64 in this run"):
        require_same_model(imported, read_config(path, [start], model_section).model)
    assert read_config(path, ["train.init_from=gone"], model_section).model.hidden_size == 64


def test_the_flag_is_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    from ttt_dist import train

    monkeypatch.setattr(sys, "argv", ["train.py", "--config", "a.yaml", "train.steps=3", "--init-from", "models/a b"])
    assert train.parse_arguments().overrides == ["train.steps=3", "train.init_from=models/a b"]
