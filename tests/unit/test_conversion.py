"""inspect, reshard and export-hf of a checkpoint: what is told, written and refused. Layouts: tests/distributed/test_reshard.py."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from tests.unit.test_convert import command, same_bytes
from ttt_dist.checkpoint.conversion import export_checkpoint, reshard
from ttt_dist.checkpoint.deepspeed_reader import DeepSpeedCheckpoint
from ttt_dist.checkpoint.inspection import inspect_folder
from ttt_dist.checkpoint.manager import METADATA
from ttt_dist.checkpoint.manifest import MANIFEST, require_checksums, require_whole, write_manifest_of_folder
from ttt_dist.checkpoint.saved_state import KINDS
from ttt_dist.checkpoint.torch_io import read_state, write_state
from ttt_dist.checkpoint.universal import UniversalCheckpoint, write_universal
from ttt_dist.config.data import DataConfig
from ttt_dist.config.decode import DecodeSettings, folder_settings
from ttt_dist.config.loader import to_dict
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.pipeline import EvaluationConfig, Recipe
from ttt_dist.model.hf.families import read_model_config
from ttt_dist.model.hf.folder import FolderWeights
from ttt_dist.model.structure import parameter_shapes
from ttt_dist.sequence.text_tokenizer import TextTokenizer, train_sentencepiece
from ttt_dist.sequence.tokens import TokenLayout, extend
from ttt_dist.util.errors import UserError

MODEL = ModelConfig(hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, ffn_hidden_size=24)
STEP, ADAM_STEP = 7, 5
DECODING = DecodeSettings(block=13, ends="any")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with one checkpoint as DeepSpeed writes it without ZeRO, and shards' tokenizer beside it."""
    folder = tmp_path_factory.mktemp("conversion")
    words = ["zero one two three four five six seven eight nine"] * 5
    tokenizer = train_sentencepiece(words, folder / "shards" / "tokenizer", vocab_size=300)
    save(folder / "run" / "checkpoints" / f"step-{STEP:08d}", tokenizer, folder / "shards")
    return folder / "run"


def save(folder: Path, tokenizer: TextTokenizer, shards: Path, num_codes: int = 20) -> None:
    """A checkpoint of random weights and moments, whose run read `shards`."""
    layout = extend(tokenizer, num_codes)
    shapes = parameter_shapes(MODEL, layout.padded_vocab_size)
    generator = torch.Generator().manual_seed(0)
    drawn = {kind: {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for kind in KINDS}
    groups = [[name for name, shape in shapes.items() if (len(shape) > 1) == wide] for wide in (True, False)]
    order = [name for group in groups for name in group]
    moments = {
        index: {"step": torch.tensor(float(ADAM_STEP)), **{kind: drawn[kind][name] for kind in KINDS[1:]}}
        for index, name in enumerate(order)
    }
    indices = [[order.index(name) for name in group] for group in groups]
    optimizer = {"state": moments, "param_groups": [{"params": group} for group in indices]}
    folder.mkdir(parents=True)
    write_state({"module": drawn["weights"], "optimizer": optimizer}, folder / "mp_rank_00_model_states.pt")
    evaluation = EvaluationConfig(decode=DECODING)
    config = Recipe(model=MODEL, data=DataConfig(train=str(shards / "train")), evaluation=evaluation)
    metadata = {
        "step": STEP, "form": "native", "layout": layout.to_dict(), "world_size": 1, "zero_stage": 0,
        "config": to_dict(config), "counters": {"skipped": 2, "norms": [1.0]},
    }  # fmt: skip
    (folder / METADATA).write_text(json.dumps(metadata))
    write_manifest_of_folder(folder)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The checkpoint alone, to be damaged."""
    return shutil.copytree(next((run / "checkpoints").iterdir()), tmp_path / "copy")


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


# ---- inspect


def test_inspect_says_what_a_checkpoint_holds(run: Path, tmp_path: Path) -> None:
    lines, failure = inspect_folder(run)
    told = dict(line.split(maxsplit=1) if not line.startswith("saved by") else line.split("  ", 1) for line in lines)
    checkpoint = next((run / "checkpoints").iterdir())
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    num_parameters = sum(torch.Size(shape).numel() for shape in DeepSpeedCheckpoint(checkpoint).shapes.values())
    assert failure is None
    assert told["form"] == "native (DeepSpeed's files)"
    assert (told["folder"], told["step"]) == (str(checkpoint), "7")
    assert told["model"].startswith(f"qwen2, {num_parameters:,} parameters: hidden_size 16, num_layers 2")
    assert "20 audio codes" in told["tokens"]
    assert told["saved by"].strip() == "1 process(es) (alone), ZeRO 0"
    assert told["precision"].startswith("fp32;")
    assert told["counters"] == "skipped 2"
    assert told["files"] == f"3, {size:,} bytes"
    assert told["whole"].startswith("yes")

    reshard(run, tmp_path / "out")
    lines, failure = inspect_folder(tmp_path / "out")
    assert failure is None
    assert lines[0].endswith("universal (safetensors)")
    assert lines[2] == "step       7; Adam has made 5 updates"


def test_inspect_says_what_a_model_folder_holds(run: Path, tmp_path: Path) -> None:
    export_checkpoint(run, tmp_path / "hf", torch.bfloat16)
    assert folder_settings(tmp_path / "hf") == DECODING
    lines, failure = inspect_folder(tmp_path / "hf")
    assert failure is None
    assert lines[0] == "form       model folder"
    assert "precision  bfloat16" in lines
    assert any(line.startswith("tokens") and "20 audio codes" in line for line in lines)
    with pytest.raises(UserError, match="nothing: no checkpoint, run folder or model folder"):
        inspect_folder(tmp_path / "nothing")


def test_inspect_says_what_is_missing(copy: Path) -> None:
    os.truncate(copy / "mp_rank_00_model_states.pt", 1000)
    lines, failure = inspect_folder(copy)
    assert "has 1,000 bytes instead of" in lines[-1]
    assert str(failure) in lines[-1]
    done = command("inspect", "--source", copy)
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr.count("\n")) == (1, len(lines), 1)


# ---- reshard


def test_reshard_keeps_every_number_and_fact(run: Path, tmp_path: Path) -> None:
    native = DeepSpeedCheckpoint(next((run / "checkpoints").iterdir()))
    reshard(run, tmp_path / "out", max_shard_bytes=20_000)
    portable = UniversalCheckpoint(tmp_path / "out")
    assert len(list((tmp_path / "out" / "exp_avg").glob("*.safetensors"))) >= 3
    require_checksums(tmp_path / "out", files := require_whole(tmp_path / "out"), files)
    assert portable.adam_step == native.adam_step == ADAM_STEP
    assert portable.metadata == native.metadata | {"form": "portable", "adam_step": ADAM_STEP}
    assert portable.shapes == native.shapes
    for name in native.shapes:
        for kind in KINDS:
            assert same_bytes(portable.read(name, kind), native.read(name, kind)), f"{kind} of {name}"
    write_universal(portable, tmp_path / "again", max_shard_bytes=20_000)
    for path in (tmp_path / "out").rglob("*.safetensors"):
        assert (tmp_path / "again" / path.relative_to(tmp_path / "out")).read_bytes() == path.read_bytes()


def test_nothing_broken_is_converted(copy: Path, tmp_path: Path) -> None:
    path = copy / "mp_rank_00_model_states.pt"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    for convert in (reshard, export_checkpoint):
        with pytest.raises(UserError, match=r"mp_rank_00_model_states\.pt: checksum differs"):
            convert(copy, tmp_path / "out")
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="bytes instead of"):
        reshard(copy, tmp_path / "out")
    path.unlink()
    with pytest.raises(UserError, match=r"mp_rank_00_model_states\.pt: missing"):
        reshard(copy, tmp_path / "out")
    with pytest.raises(UserError, match="no checkpoint here"):
        reshard(tmp_path, tmp_path / "out")
    assert sorted(place.name for place in tmp_path.iterdir()) == ["copy"]


def test_what_is_not_laid_out_as_expected_is_refused(copy: Path) -> None:
    path = copy / "mp_rank_00_model_states.pt"
    state = read_state(path)

    def refused(message: str) -> None:
        write_state(state, path)
        native = DeepSpeedCheckpoint(copy)
        with pytest.raises(UserError, match=message) as caught:
            [native.read(name, kind) for name in native.shapes for kind in KINDS]
        assert "\n" not in str(caught.value)

    norm = state["module"].pop("norm.weight")
    refused("not laid out as DeepSpeed")
    state["module"]["norm.weight"] = norm[:-1].clone()
    refused("weights of norm.weight are 15 numbers instead of 16")
    del state["optimizer"]["param_groups"]
    refused("not laid out as DeepSpeed")


# ---- export-hf


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_export_of_either_form(dtype: torch.dtype, run: Path, tmp_path: Path) -> None:
    reshard(run, tmp_path / "portable")
    export_checkpoint(run, tmp_path / "one", dtype)
    export_checkpoint(tmp_path / "portable", tmp_path / "other", dtype, max_shard_bytes=10_000)
    one, other = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "other")
    assert one.keys() == other.keys()
    assert all(same_bytes(one[name], other[name]) for name in one)
    native = DeepSpeedCheckpoint(next((run / "checkpoints").iterdir()))
    config, layout = read_model_config(tmp_path / "one"), native.layout
    read = FolderWeights(tmp_path / "one", config, layout)
    for name, shape in native.shapes.items():
        expected = native.read(name, "weights").to(dtype)
        rows = layout.vocab_size if name in ("embed.weight", "head.weight") else len(expected)
        assert same_bytes(read(name, shape)[:rows], expected[:rows])
    assert len(one["lm_head.weight"]) == layout.vocab_size
    assert (tmp_path / "one" / "tokenizer" / "tokenizer.model").is_file()
    assert AutoTokenizer.from_pretrained(tmp_path / "one")("<|audio_3|>")["input_ids"] == [layout.first_code + 3]


@pytest.mark.slow
def test_export_wants_the_tokenizer(copy: Path, run: Path, tmp_path: Path) -> None:
    metadata = json.loads((copy / METADATA).read_text())
    metadata["config"]["data"]["train"] = str(tmp_path / "gone" / "train")
    (copy / METADATA).write_text(json.dumps(metadata))
    (copy / MANIFEST).unlink()
    write_manifest_of_folder(copy)
    done = command("export-hf", "--source", copy, "--out", tmp_path / "hf")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "gone since the run" in done.stderr and "--tokenizer" in done.stderr
    other = train_sentencepiece(["other words of another tokenizer"] * 9, tmp_path / "other", vocab_size=280)
    assert other.hash != TokenLayout.from_dict(metadata["layout"], "").tokenizer_hash
    with pytest.raises(UserError, match="name the tokenizer that the model was trained with"):
        export_checkpoint(copy, tmp_path / "hf", tokenizer_folder=tmp_path / "other")
    words = run.parent / "shards" / "tokenizer"
    done = command("export-hf", "--source", copy, "--out", tmp_path / "hf", "--tokenizer", words, "--dtype", "bf16")
    assert done.returncode == 0, done.stderr
    assert "Qwen2ForCausalLM" in done.stdout
    done = command("reshard", "--source", copy, "--out", tmp_path / "hf")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "exists already" in done.stderr
