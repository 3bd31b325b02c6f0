"""Adapters (the extra `lora`) in all layouts: one loss, what is frozen stays, a run goes on in the same layout and in others."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tests.distributed.cases import Layout, deviation, losses, resume, trained_weights
from tests.distributed.launch import run_distributed
from tests.distributed.random_packs import LAYOUT
from tests.distributed.reshard_cases import go_on, train_and_save
from tests.distributed.small_run import TRAIN, execute, make_run
from tests.distributed.small_run import records as records_of
from tests.distributed.test_one_loss import BF16_FROM_FP32, BF16_TOLERANCE, FP32_TOLERANCE, run_all
from tests.distributed.test_reshard import run_by_size
from tests.packages import need_package
from ttt_dist.checkpoint.conversion import export_checkpoint
from ttt_dist.checkpoint.deepspeed_reader import DeepSpeedCheckpoint
from ttt_dist.checkpoint.saved_state import EMA, MOMENTS, WEIGHTS
from ttt_dist.checkpoint.universal import UniversalCheckpoint, write_universal
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.objective import Objective
from ttt_dist.data.shards import ShardReader
from ttt_dist.model.hf.folder import export_folder, load_folder
from ttt_dist.model.structure import is_adapter
from ttt_dist.model.transformer import Transformer

STEPS, SAVED = 5, 3


def adapted(*arguments: Any, **named: Any) -> Layout:
    return Layout(*arguments, adapted=True, **named)


FP32 = [
    *(adapted(zero, 2, dp=2) for zero in (0, 1, 2, 3)),
    adapted(3, 2, checkpointing="selective"),
    adapted(1, 2, tensor=2),
    adapted(3, 2, tensor=2, sequence_parallel=True),
    adapted(0, 2, pipeline=2, tied=True),
    adapted(1, 2, pipeline=2),
    adapted(3, 2, ulysses=2, tied=True),
    adapted(1, 2, tensor=2, checkpointing="selective"),
]
REFERENCE_BF16 = adapted(1, precision="bf16")
BF16 = [
    *(adapted(zero, 2, dp=2, precision="bf16") for zero in (0, 1, 2, 3)),
    adapted(1, 2, tensor=2, precision="bf16"),
    adapted(1, 2, pipeline=2, precision="bf16"),
]
RESUMED = [FP32[0], FP32[3], FP32[6], FP32[8], BF16[1], BF16[4]]
MOVES = [
    (FP32[3], FP32[5]),  # ZeRO 3 to tensor parallelism
    (FP32[6], FP32[8]),  # with sequence parallelism, to a pipeline
    (FP32[8], FP32[1]),
    (BF16[3], BF16[4]),
    (BF16[5], BF16[3]),
]

pytestmark = pytest.mark.timeout(1500)  # the first test waits for all runs


@pytest.fixture(scope="module")
def records() -> dict[Any, Any]:
    layouts = [*FP32, *BF16, REFERENCE_BF16]
    cases: dict[Any, Any] = {layout: (losses, (layout, STEPS)) for layout in layouts}
    cases |= {layout.reference: (losses, (layout.reference, STEPS)) for layout in layouts}
    cases |= {("resume", layout): (resume, (layout, SAVED, 3)) for layout in RESUMED}
    cases |= {(steps, FP32[3]): (trained_weights, (FP32[3], steps)) for steps in (0, 2)}
    return run_all(cases)


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Any, Any], dict[Any, Any]]:
    """Checkpoints of all sources, what their runs saw that went on, and what those in other layouts saw."""
    folder = tmp_path_factory.mktemp("moved")
    saved = {
        source: (train_and_save, (source, folder / str(source), SAVED, 3))
        for source in {source for source, _ in MOVES} | {FP32[0].reference}
    }
    went_on = run_by_size(saved)
    for source in saved:
        checkpoint = folder / str(source)
        write_universal(DeepSpeedCheckpoint(checkpoint / f"step-{SAVED:08d}"), checkpoint / "portable")
    loads = {
        (form, *move): (go_on, (move[1], folder / str(move[0]) / form, SAVED, 3))
        for move in MOVES
        for form in ("portable", f"step-{SAVED:08d}")
    }
    return folder, went_on, run_by_size(loads)


@pytest.mark.parametrize("layout", FP32, ids=str)
def test_fp32(layout: Layout, records: dict[Any, Any]) -> None:
    assert deviation(records[layout], records[layout.reference]) < FP32_TOLERANCE


@pytest.mark.parametrize("layout", BF16, ids=str)
def test_bf16(layout: Layout, records: dict[Any, Any]) -> None:
    assert deviation(records[layout], records[REFERENCE_BF16]) < BF16_TOLERANCE
    assert deviation(records[layout], records[layout.reference]) < BF16_FROM_FP32


@pytest.mark.parametrize("layout", RESUMED, ids=str)
def test_resume_is_bit_exact(layout: Layout, records: dict[Any, Any]) -> None:
    going_on, resumed, difference = records["resume", layout]
    assert resumed == going_on
    assert difference == 0.0


def test_adapters_and_rows_of_speech_learn_and_nothing_else(records: dict[Any, Any]) -> None:
    before, after = records[0, FP32[3]], records[2, FP32[3]]
    moved = {name: np.abs(after[name] - before[name]) for name in before}
    assert {name for name, by in moved.items() if by.max()} == {
        name for name in moved if is_adapter(name) or name in ("embed.weight", "head.weight")
    }
    for name in ("embed.weight", "head.weight"):
        assert moved[name][: LAYOUT.num_text_tokens].max() == 0 < moved[name][LAYOUT.num_text_tokens :].max()


@pytest.mark.parametrize("move", MOVES, ids=lambda move: " to ".join(map(str, move)))
def test_a_run_goes_on_in_another_layout(move: tuple[Layout, Layout], moved: Any) -> None:
    _, went_on, resumed = moved
    tolerance = FP32_TOLERANCE if move[0].precision == "fp32" else BF16_TOLERANCE
    assert deviation(resumed["portable", *move], went_on[move[0]]) < tolerance
    assert resumed[f"step-{SAVED:08d}", *move] == resumed["portable", *move]


def test_the_universal_form_has_moments_of_what_learns_alone(moved: Any) -> None:
    folder, _, _ = moved
    one = UniversalCheckpoint(folder / str(FP32[0].reference) / "portable")
    assert one.learns == {name for name in one.shapes if is_adapter(name) or name in ("embed.weight", "head.weight")}
    for source in {source for source, _ in MOVES if source.precision == "fp32"}:
        found = UniversalCheckpoint(folder / str(source) / "portable")
        for name in found.shapes:
            difference = (found.read(name, WEIGHTS) - one.read(name, WEIGHTS)).abs().max()
            assert difference < 3e-4 if name in one.learns else difference == 0, name
        for kind in MOMENTS:
            assert set(found.names_of_kind(kind)) == one.learns
            size = sum(path.stat().st_size for path in (found.folder / kind).glob("*.safetensors"))
            assert size < 70_000 + 4 * sum(np.prod(found.shapes[name]) for name in one.learns)


def test_a_stage_of_frozen_weights_alone() -> None:
    """The embedding by itself: what it hands on has a gradient that nobody needs."""
    layout = Layout(1, 1, pipeline=4, adapted=True)
    assert run_distributed([(losses, (layout, 1))], 4)


def test_a_stage_where_nothing_learns_does_not_say_how_often_adam_stepped(tmp_path: Path) -> None:
    layout = Layout(0, 1, pipeline=4, adapted="alone")
    run_distributed([(train_and_save, (layout, tmp_path, SAVED, 0))], 4)
    assert DeepSpeedCheckpoint(tmp_path / f"step-{SAVED:08d}").adam_step == SAVED


def test_adapters_alone_under_a_tied_embedding_in_two_stages() -> None:
    layout = Layout(1, 2, pipeline=2, tied=True, precision="bf16", adapted="alone")
    found = run_all({one: (losses, (one, STEPS)) for one in (layout, layout.reference)})
    assert deviation(found[layout], found[layout.reference]) < BF16_FROM_FP32


def test_the_command_adapts_a_folder_for_peft_too(tmp_path: Path) -> None:
    """The shape is that of the folder; what is trained is told; checkpoints give what the run's end gives."""
    path, base, run = make_run(tmp_path, checkpoint={"save_every": 2}), tmp_path / "base", tmp_path / "run"
    settings = yaml.safe_load(path.read_text())
    model = ModelConfig(**settings["model"])
    settings["model"] = {"lora": {"r": 2, "target_modules": ["q_proj", "up_proj", "down_proj"]}}
    settings["train"] |= {"ema": 0.5, "steps": 3, "eval_every": 0, "warmup": 0, "lr": 0.01}
    settings["train"] |= {"init_from": str(base), "param_groups": [{"params": "embed.weight", "rows": "new"}]}
    path.write_text(yaml.safe_dump(settings))
    layout = ShardReader(tmp_path / "shards" / "train").layout
    weights = Transformer.for_layout(model, layout).named_parameters()
    export_folder(base, weights, model, layout, Objective(), tmp_path / "shards")
    command = [sys.executable, TRAIN, "--config", str(path)]

    told = execute([*command, "--dry-run"]).stdout
    adapters = 2 * 2 * ((32 + 32) + (32 + 64) + (64 + 32))  # layers, rank; into and out of q, up and down
    rows = (layout.padded_vocab_size - layout.num_text_tokens) * 32
    assert (
        f"trained    {adapters + rows:,} parameters" in told and f"{adapters:,} of them of adapters of rank 2" in told
    )
    done = execute(command)
    assert done.returncode == 0, done.stderr
    before = [record["loss"] for record in records_of(run) if "loss" in record]
    done = execute([*command, "train.steps=4"])
    assert done.returncode == 0 and "from step 3" in done.stdout, done.stderr
    after = [record["loss"] for record in records_of(run) if "loss" in record]
    assert (len(before), len(after), after[:3]) == (3, 4, before)
    refused = execute([*command, "train.init_from=null", f"run_dir={tmp_path}/no", "--dry-run"])
    assert refused.returncode == 1 and "name it by train.init_from" in refused.stderr

    export_checkpoint(run / "checkpoints" / "step-00000004", tmp_path / "hf", torch.float32)
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert all(
        (tmp_path / "hf/adapter" / name).read_bytes() == (run / "export/adapter" / name).read_bytes() for name in names
    )
    adapted = need_package("peft", "lora").PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), tmp_path / "hf" / "adapter"
    )
    ids = torch.arange(3, layout.vocab_size, 7)[None]
    with torch.no_grad():
        found, merged = (
            model(ids).logits for model in (adapted, AutoModelForCausalLM.from_pretrained(tmp_path / "hf"))
        )
        plain = AutoModelForCausalLM.from_pretrained(base)(ids).logits
    torch.testing.assert_close(found[..., : layout.vocab_size], merged, rtol=0, atol=1e-5)
    assert (plain[..., : layout.vocab_size] - merged).abs().max() > 1e-3

    # What learns from here on was its own average before: of text, whose rows stay as they are, it is what it was.
    more = "train.param_groups=[{params: embed.weight, rows: new}, {params: head.weight, rows: new}]"
    done = execute([*command, "train.steps=6", more])
    assert done.returncode == 0 and "from step 4" in done.stdout, done.stderr
    export_checkpoint(run / "checkpoints" / "step-00000006", tmp_path / "average", torch.float32, kind=EMA)
    heads = [load_folder(folder).model.state_dict()["head.weight"] for folder in (base, tmp_path / "average")]
    torch.testing.assert_close(*(head[: layout.num_text_tokens] for head in heads))
