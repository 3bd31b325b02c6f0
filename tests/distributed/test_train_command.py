"""The real command: `deepspeed --num_gpus 2 ttt_dist/train.py` on small random shards: train, resume, refuse, export."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.distributed.small_run import (
    ROOT,
    SAVED,
    STEPS,
    TRAIN,
    copy_of,
    execute,
    launch,
    make_run,
    records,
    timeless,
    train_on_two,
)
from ttt_dist.checkpoint import manager
from ttt_dist.checkpoint.export import model_folder
from ttt_dist.checkpoint.universal import open_checkpoint
from ttt_dist.config.loader import load_config
from ttt_dist.data.shards import ShardReader, ShardWriter
from ttt_dist.model.hf.folder import load_folder
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.telemetry.events import read_events
from ttt_dist.util.errors import UserError

CURRICULUM = {"stages": [{"from_step": 0, "kind": "ar"}, {"from_step": SAVED}]}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small shards, everything that lies beside them, and a config."""
    folder = tmp_path_factory.mktemp("train")
    make_run(folder, telemetry={"log_every": 1, "wandb": "offline", "tensorboard": True}, objective=CURRICULUM)
    return folder


@pytest.fixture(scope="module")
def run(work: Path) -> Path:
    """The run folder after a whole run on two processes."""
    launch(work / "config.yaml")
    return work / "run"


def alone(work: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """train.py as one plain process."""
    return execute([sys.executable, TRAIN, "--config", str(work / "config.yaml"), *arguments])


def test_a_run_that_compiles_nothing_says_so(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    done = alone(
        work,
        "train.compile=true",
        f"deepspeed={ROOT}/ds_configs/zero1.json",
        f"run_dir={tmp_path}/run",
        "train.steps=1",
        "train.warmup=0",
    )
    assert done.returncode == 0, done.stderr
    assert "warning: train.compile=true, but nothing was compiled" in done.stderr
    (event,) = (event for event in read_events(tmp_path / "run") if event["event"] == "compiled")
    assert event["graphs"] == 0


def test_a_decay_branches_off_a_trunk_under_growing_batches_and_a_budget_of_tokens(work: Path, tmp_path: Path) -> None:
    valid = work / "shards" / "valid"
    growing = [
        *("train.schedule=wsd", "train.warmup=1", "train.min_lr_ratio=0", "train.lr=1e-3", "telemetry.wandb=off"),
        *("train.batch_stages=[{from_step: 2, global_batch: 8}]", "train.eval_every=2"),
        *("checkpoint.save_every_minutes=1e-9", "checkpoint.async_save=true"),  # each step ends that much later
        f"data.valid={{near: {valid}, far: {valid}}}",
    ]
    seq_len = ShardReader(work / "shards" / "train").seq_len
    assert seq_len is not None
    trunk, branch = tmp_path / "trunk", tmp_path / "branch"
    budget = 2 * 4 + 3 * 8  # packs of the first two steps, and of three more
    done = alone(work, *growing, "train.global_batch=4", f"train.tokens={budget * seq_len - 1}", f"run_dir={trunk}")
    assert done.returncode == 0, done.stderr
    by_step = {r["step"]: r for r in records(trunk) if "lr" in r}
    assert list(by_step) == [1, 2, 3, 4, 5]
    assert [by_step[step]["lr"] for step in by_step] == [1e-3] * 4 + [0]  # a tenth of five steps is one
    assert all(
        {"eval_near_loss", "eval_near_ar_loss"} <= set(r) for r in records(trunk) if any("near" in key for key in r)
    )
    near, far = (
        [r[f"eval_{name}_loss"] for r in records(trunk) if f"eval_{name}_loss" in r] for name in ("near", "far")
    )
    assert near == far
    assert len(near) == 3  # at steps 2, 4, 5

    resume = ["--resume", str(trunk / "checkpoints" / "step-00000004")]
    done = alone(
        work, *growing, *resume, "train.global_batch=4", "train.steps=7", "train.decay_steps=3", f"run_dir={branch}"
    )
    assert done.returncode == 0, done.stderr
    assert "the learning rate goes on at" not in done.stderr
    found = [r["lr"] for r in records(branch) if "lr" in r]
    assert found == pytest.approx([1e-3 * (1 - (done / 3) ** 0.5) for done in (1, 2, 3)])
    assert next(r["loss"] for r in records(branch) if "lr" in r) == by_step[5]["loss"]


@pytest.mark.parametrize("groups", ["", "embed.weight"], ids=["dealt-out-anew", "as-saved"])
def test_rows_that_stay_stay_where_a_run_goes_on(work: Path, tmp_path: Path, groups: str) -> None:
    """They have no gradient from then on, but momentum of before; and an average that is given up is not taken up again."""
    before = f"train.param_groups=[{{params: {groups}}}]" if groups else "train.param_groups=[]"
    after = "train.param_groups=[{params: embed.weight, rows: new}]"
    small = ("telemetry.wandb=off", "data.valid=null", "train.steps=5")
    trunk, branch = tmp_path / "trunk", tmp_path / "branch"
    for arguments in (
        (before, "train.ema=0.5", f"run_dir={trunk}"),
        (after, f"run_dir={branch}", "--resume", str(trunk / "checkpoints" / f"step-{SAVED:08d}")),
    ):
        done = alone(work, *small, *arguments)
        assert done.returncode == 0, done.stderr
    there, here = (
        open_checkpoint(run / "checkpoints" / f"step-{step:08d}") for run, step in ((trunk, SAVED), (branch, 5))
    )
    moved = (here.read("embed.weight", "weights") != there.read("embed.weight", "weights")).any(1)
    assert not moved[: here.layout.num_text_tokens].any()
    assert moved[here.layout.num_text_tokens :].any()
    states = torch.load(next(here.folder.glob("*optim_states.pt")), weights_only=False)
    assert "'exp_avg'" in repr(states)
    assert "'ema'" not in repr(states)


def test_a_run_folder_holds_all_of_the_run(run: Path) -> None:
    assert load_config(run / "config.yaml").train.steps == STEPS
    assert json.loads((run / "environment.json").read_text())["world_size"] == 2
    assert [path.name for path in sorted((run / "logs").iterdir())] == ["rank-00000.log", "rank-00001.log"]
    assert list((run / "tensorboard").iterdir())
    assert list((run / "wandb").glob("offline-run-*"))
    assert [r["step"] for r in records(run) if "loss" in r] == list(range(1, STEPS + 1))
    assert [r["step"] for r in records(run) if "eval_loss" in r] == [3, 6]
    figures = {"ar_loss", "nar_loss", "ar_tokens", "nar_tokens", "grad_norm", "lr", "data_s", "forward_s", "backward_s"}
    assert figures | {"optimizer_s", "useful_tokens_per_s", "memory_bytes", "data_share"} <= set(records(run)[0])


def test_the_export_loads(run: Path) -> None:
    folder = load_folder(run / "export")
    weights = [parameter for _, parameter in folder.model.named_parameters()]
    assert all(bool(parameter.isfinite().all()) for parameter in weights)


def test_a_stage_begins_where_it_should_and_is_told(run: Path) -> None:
    steps = [record for record in records(run) if "loss" in record]
    assert [record["stage"] for record in steps] == [0, 0, 0, 1, 1, 1]
    assert [record["nar_tokens"] > 0 for record in steps] == [False] * SAVED + [True] * (STEPS - SAVED)
    assert all(
        record["eval_nar_loss"] > 0 for record in records(run) if "eval_loss" in record
    )  # of the objective itself
    told = [(event["step"], event["stage"]) for event in read_events(run) if event["event"] == "stage"]
    assert told == [(0, 0), (SAVED, 1)]
    assert load_folder(run / "export").objective == load_config(run / "config.yaml").objective.at(STEPS - 1)


def test_an_export_is_a_model_of_the_stage_that_its_last_step_was_of(run: Path, work: Path, tmp_path: Path) -> None:
    early = copy_of(run, tmp_path / "early")
    shutil.rmtree(early / "checkpoints" / f"step-{STEPS:08d}")
    done = alone(work, f"run_dir={early}", f"train.steps={SAVED}")
    assert done.returncode == 0, done.stderr
    assert load_folder(early / "export").objective.kind == "ar"


def test_exports_while_it_trains(run: Path, work: Path) -> None:
    """They cost the training nothing, and are the checkpoint of the same step, and at the last step the run's own export."""
    watched = work / "watched"
    train_on_two(work / "config.yaml", f"run_dir={watched}", f"export.every={SAVED}")
    assert timeless(watched) == timeless(run)
    exports = sorted((watched / "exports").iterdir())
    assert [path.name for path in exports] == [f"step-{step:08d}" for step in (SAVED, STEPS)]
    assert [load_folder(path).objective.kind for path in exports] == ["ar", "ttt"]
    for path in exports:
        loaded, same = load_folder(path), load_folder(model_folder(watched / "checkpoints" / path.name))
        assert loaded.objective == same.objective
        for (name, weight), other in zip(loaded.model.named_parameters(), same.model.parameters(), strict=True):
            rows = slice(0, loaded.layout.vocab_size if "embed" in name or "head" in name else None)  # without padding
            assert torch.equal(weight[rows], other[rows]), name
    card = (exports[0] / "README.md").read_text()
    assert f"{SAVED} steps, {8 * SAVED} packs" in card and "| held-out loss | loss " in card
    for name in ("model.safetensors", "README.md", "config.json", "generation_config.json"):
        assert (exports[1] / name).read_bytes() == (watched / "export" / name).read_bytes()


def test_resume_goes_on_as_if_never_stopped(run: Path, work: Path) -> None:
    resumed = copy_of(run, work / "resumed")
    shutil.rmtree(resumed / "checkpoints" / f"step-{STEPS:08d}")
    train_on_two(work / "config.yaml", f"run_dir={resumed}")
    assert timeless(resumed) == timeless(run)
    assert json.loads((resumed / "environment.json").read_text())["start_step"] == SAVED
    weights = "export/model.safetensors"
    assert (resumed / weights).read_bytes() == (run / weights).read_bytes()


def test_layouts_train_alike_from_a_model_folder(run: Path, work: Path) -> None:
    """Tensor parallel x ZeRO-3 and a pipeline, both started from the same weights, with what is learnt exported."""
    start = (f"train.init_from={run / 'export'}", "train.steps=4", "train.eval_every=2", "checkpoint.save_every=0")
    split = {
        "tensor": ("parallel.tensor=2", "parallel.sequence_parallel=true", "train.activation_checkpointing=selective"),
        "stages": ("parallel.pipeline=2", f"deepspeed={ROOT / 'ds_configs/zero1.json'}"),
    }
    for name, overrides in split.items():
        train_on_two(work / "config.yaml", f"run_dir={work / name}", *start, *overrides)
    tensor, stages = (records(work / name) for name in split)
    assert tensor[0]["loss"] < records(run)[0]["loss"] - 0.1  # it did start from what was learnt
    for mine, other in zip(tensor, stages, strict=True):
        for key in {"loss", "ar_loss", "nar_loss", "grad_norm", "eval_loss", "ar_tokens"} & set(mine):
            assert mine[key] == pytest.approx(other[key], rel=1e-5), key
    models = [load_folder(work / name / "export").model for name in split]
    for (name, mine), (_, other) in zip(*(model.named_parameters() for model in models), strict=True):
        assert (mine - other).abs().max() < 3e-4, name


def test_a_model_folder_of_another_shape_is_refused(run: Path, work: Path) -> None:
    done = alone(work, "--dry-run", f"train.init_from={run / 'export'}", "model.num_layers=3", f"run_dir={work / 'no'}")
    assert done.returncode == 1
    assert "num_layers" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_split_that_cannot_be_is_refused_before_the_processes_meet(work: Path) -> None:
    """One of four processes, the others never start: it does not wait for them."""
    command = [sys.executable, "ttt_dist/train.py", "--config", str(work / "config.yaml")]
    for overrides, reason in (
        (["parallel.pipeline=2", f"run_dir={work / 'no'}"], "ZeRO 0 or 1 only"),
        (["train.global_batch=6"], "must be a multiple of 8"),
    ):
        done = execute([*command, *overrides], RANK="0", WORLD_SIZE="4", LOCAL_RANK="0")
        assert done.returncode == 1
        assert re.search(reason, done.stderr), done.stderr


def test_another_layout_model_or_split_is_refused(run: Path) -> None:
    newest = manager.latest(run / "checkpoints")
    assert newest is not None
    layout = TokenLayout.from_dict(json.loads((newest / manager.METADATA).read_text())["layout"], "run.json")
    config = load_config(run / "config.yaml")
    same = manager.CheckpointMetadata.of_run(config, layout, 2)
    manager.require_resumable(newest, same)
    with pytest.raises(UserError, match=rf"num_codes: {layout.num_codes} there, 16 here"):
        manager.require_resumable(newest, replace(same, layout=replace(layout, num_codes=16)))
    assert manager.has_layout_of(newest, same)
    assert not manager.has_layout_of(newest, replace(same, world_size=1))
    wider = replace(config, model=replace(config.model, num_layers=3))
    with pytest.raises(UserError, match=r"model.num_layers is 2 in the checkpoint and 3"):
        manager.require_resumable(newest, manager.CheckpointMetadata.of_run(wider, layout, 2))


def test_a_mistake_is_one_line_and_status_1(work: Path) -> None:
    done = alone(work, "train.global_bach=8")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        "error: override 'train.global_bach=8': unknown key `train.global_bach`; did you mean `train.global_batch`?"
    ]


def test_held_out_codes_of_another_codec_are_refused(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "shards", tmp_path / "shards")
    (tmp_path / "shards" / "codec" / "codec.json").write_text('{"other": 1}')
    samples = ShardReader(work / "shards" / "valid")
    with ShardWriter(
        tmp_path / "shards" / "other", {key: samples.meta[key] for key in ("layout", "seq_len")}
    ) as writer:
        writer.add(samples[0])
    done = alone(work, f"data.valid={tmp_path}/shards/other", f"run_dir={tmp_path}/run", "--dry-run")
    assert done.returncode == 1
    assert "encode both with one codec" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_dry_run_prints_and_makes_nothing(work: Path) -> None:
    done = alone(work, "--dry-run", f"run_dir={work / 'nothing'}")
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout
    assert "20 packs" in done.stdout
    told = [line for line in done.stdout.splitlines() if line.startswith("objective ")]
    assert told[0] == "objective  steps 0 to 3: ar, normalisation sample"
    assert told[1].startswith("objective  steps 3 to 6: ttt, masking exact_count, audio_ar 1.0, p_mix 0.3")
    assert told[2].startswith("objective  held-out loss: ttt")
    assert not (work / "nothing").exists()


def test_a_run_elsewhere_is_described_without_its_disk_and_its_model(work: Path, tmp_path: Path) -> None:
    """As 64 processes, on a machine that could neither save nor start it."""
    settings = [
        "model.hidden_size=8192", "model.ffn_hidden_size=65536", "model.num_layers=4000", "train.global_batch=64",
        "train.micro_batch=1", "train.init_from=/models/none", f"run_dir={tmp_path}/run", "--dry-run",
    ]  # fmt: skip
    command = [sys.executable, TRAIN, "--config", str(work / "config.yaml"), *settings]
    done = execute(command, WORLD_SIZE="64")
    assert done.returncode == 0, done.stderr
    assert "processes  64 (data 64)" in done.stdout
    notes = [line for line in done.stdout.splitlines() if line.startswith("note ")]
    assert len(notes) == 2 and "/models/none" in notes[0] and "a checkpoint takes" in notes[1], done.stdout
    for here in ({"WORLD_SIZE": "64", "RANK": "0", "LOCAL_SIZE": "64"}, {}):  # as tools/launch.py asks, and alone
        refused = execute(command, **here)
        assert refused.returncode == 1 and "/models/none" in refused.stderr


def test_more_steps_on_resume_tell_that_the_rate_rises(run: Path, work: Path) -> None:
    again = alone(work, f"run_dir={run}", "train.steps=60", "--dry-run")
    assert again.returncode == 0, again.stderr
    told = [line for line in again.stderr.splitlines() if "the learning rate goes on at" in line]
    assert (
        len(told) == 1
        and "train.steps was 6, now 60: the learning rate goes on at 0.00297 instead of 0.0003; " in told[0]
    )
    assert "train.lr=0.0003 train.schedule=constant train.warmup=0 would keep it" in told[0]
    kept = alone(
        work,
        f"run_dir={run}",
        "train.steps=60",
        "train.lr=3e-4",
        "train.schedule=constant",
        "train.warmup=0",
        "--dry-run",
    )
    assert "the learning rate goes on" not in kept.stderr


def test_bad_usage_is_status_2(work: Path) -> None:
    assert alone(work, "--no-such-option").returncode == 2


def test_the_moving_average_is_exported_from_a_checkpoint(work: Path, tmp_path: Path) -> None:
    steps = ["train.steps=3", "train.warmup=1", "checkpoint.save_every_minutes=1e-9", "telemetry.wandb=off"]
    done = alone(work, *steps, "train.ema=0.5", f"run_dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    saved, convert = (
        tmp_path / "run" / "checkpoints",
        [sys.executable, "tools/convert_checkpoint.py", "export-hf", "--source"],
    )
    for number, kind in ((1, []), (2, []), (3, []), (3, ["--ema"])):
        out = tmp_path / f"{number}{''.join(kind)}"
        told = execute([*convert, str(saved / f"step-{number:08d}"), "--out", str(out), *kind])
        assert told.returncode == 0, told.stderr
    one, two, three, average = (load_folder(tmp_path / name).model.state_dict() for name in ("1", "2", "3", "3--ema"))
    for name, weight in average.items():  # of a decay of 0.5, begun with the weights after the first update
        torch.testing.assert_close(weight, one[name] / 4 + two[name] / 4 + three[name] / 2, rtol=0, atol=1e-6)
    assert any(not torch.equal(average[name], three[name]) for name in average)
    refused = execute([*convert, str(tmp_path / "3"), "--out", str(tmp_path / "no"), "--ema"])
    assert "a model has one set of weights" in refused.stderr
