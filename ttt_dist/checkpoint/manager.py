"""Checkpoints of a run: RUN/checkpoints/step-00000100/ and the file `latest`, which names the newest.

DeepSpeed writes its files into a folder of a temporary name. When all processes have written theirs, `run.json` (what the
checkpoint belongs to, in plain JSON) and the manifest with the checksums follow, the folder gets its name, and `latest` is
moved last: a checkpoint is complete or invisible. A run goes on from the newest one that is whole. The one integer of data
state is the step: order, noise and learning rate are functions of the seed and of it.

What looks for checkpoints and compares them with a run needs no torch, which is imported where processes agree.
"""

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ttt_dist.checkpoint.manifest import (
    MANIFEST,
    FileChecksum,
    file_checksum,
    read_manifest,
    require_checksums,
    require_whole,
    write_manifest,
)
from ttt_dist.checkpoint.trajectory import warn_of_another_trajectory
from ttt_dist.config.deepspeed import sub_group_size, zero_stage
from ttt_dist.config.loader import complete_record, to_dict
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.run import CheckpointConfig, Config
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.atomic_files import atomic_write, fsync_folder, remove, remove_leftovers, writing
from ttt_dist.util.console import warn
from ttt_dist.util.errors import UserError
from ttt_dist.util.similar_paths import remedy_for

if TYPE_CHECKING:
    import deepspeed
    import torch

    from ttt_dist.checkpoint.engine import ChecksummingEngine

T = TypeVar("T")

LATEST = "latest"
METADATA = "run.json"
UNIVERSAL = "portable"
GONE = ".gone-"  # what a checkpoint is called while its space is being freed
OPTIMIZER_BYTES = 12  # of a parameter: an fp32 weight and its two moments
_NAME = re.compile(r"step-[0-9]{8,18}")
_PARTS = {"step": int, "layout": dict, "config": dict, "world_size": int, "zero_stage": int}
"""What run.json must hold."""


@dataclass(frozen=True)
class CheckpointMetadata:
    """What a checkpoint belongs to."""

    layout: TokenLayout
    config: dict[str, Any]
    """The run's whole resolved configuration as plain values."""
    world_size: int
    zero_stage: int
    sub_group_size: int
    """By which ZeRO 3 cuts what it keeps."""

    @classmethod
    def of_run(cls, config: Config, layout: TokenLayout, world_size: int) -> "CheckpointMetadata":
        return cls(layout, to_dict(config), world_size, zero_stage(config.deepspeed), sub_group_size(config.deepspeed))


def list_checkpoints(folder: Path, trusts_files: bool = False) -> list[Path]:
    """The checkpoints of `folder` (RUN/checkpoints), newest first, from the newest one that is complete: of its contents, run.json's
    are read. Older ones are looked at by nobody before `first_whole` has found that this one is not whole.

    `trusts_files`: nor is it asked whether the files are there that its manifest lists. Warns of those that are newer than the
    newest complete one. Raises UserError where there are some, but none is complete.
    """
    named, broken = _named(folder)[::-1], []
    for number, path in enumerate(named):
        try:
            _require_described(path, trusts_files)
        except UserError as error:
            broken.append(str(error))
            continue
        for reason in [] if trusts_files else broken:  # who trusts is about to hear from one who does not
            warn(f"skipping a checkpoint: {reason}")
        return named[number:]
    if broken:
        raise UserError(f"{folder}: holds no complete checkpoint ({broken[0]}); remove the folder to start anew")
    return []


def _named(folder: Path) -> list[Path]:
    """What is called like a checkpoint, in order of the steps; `step-00000100.bak` is somebody's own."""
    return sorted((path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)), key=number)


def number(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix("step-"))


def _require_described(checkpoint: Path, trusts_files: bool = False) -> None:
    """Raise UserError unless a checkpoint's files are there in full and run.json is what was written."""
    files = read_manifest(checkpoint) if trusts_files else require_whole(checkpoint)
    require_checksums(checkpoint, files, [METADATA])
    read_metadata(checkpoint)


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of `folder` (RUN/checkpoints); None where there is none."""
    return next(iter(list_checkpoints(folder)), None)


def resolve_resume_path(path: Path, trusts_files: bool = False) -> list[Path]:
    """The checkpoints that `--resume PATH` means: that one, or those of a run folder, newest first. Raises UserError."""
    if (path / METADATA).is_file():
        _require_described(path, trusts_files)
        return [path]
    for folder in (path / "checkpoints", path):
        if checkpoints := list_checkpoints(folder, trusts_files):
            return checkpoints
    remedy = remedy_for(path, "name RUN/checkpoints/step-N, a run folder, or a reshard's --out")
    raise UserError(f"--resume {path}: no checkpoint here; {remedy}")


def bytes_per_parameter(config: Config, learns: bool = True) -> int:
    """What DeepSpeed writes of a parameter (measured in tests/distributed/test_checkpoint_size.py).

    Of one that does not learn beside adapters, the weight of the forward pass; from a GPU at ZeRO 2 it is there twice.

    Beside the optimizer's numbers the weights of the forward pass, unless they are the optimizer's own (ZeRO 0 in fp32) or are
    made from them (ZeRO 3). A pipeline in bf16 without ZeRO has the optimizer's numbers twice.
    """
    stage, is_bf16 = zero_stage(config.deepspeed), config.train.precision == "bf16"
    if not learns:
        return (2 if is_bf16 else 4) * (2 if stage == 2 else 1)
    of_optimizer = OPTIMIZER_BYTES + (4 if config.train.ema else 0)
    if stage == 0 and not is_bf16:
        return of_optimizer
    if stage == 0 and config.parallel.pipeline > 1:
        return 2 * of_optimizer + 2
    return of_optimizer + (0 if stage == 3 else 2 if is_bf16 else 4)


def require_space(run_dir: Path, needed: int) -> None:
    """Raise UserError where a checkpoint of so many bytes would find no place, or nothing can be written at all."""
    folder = next(path for path in (run_dir, *run_dir.absolute().parents) if path.is_dir())
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"run_dir={run_dir}: {folder} cannot be written; choose another place")
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"run_dir={run_dir}: a checkpoint takes {needed / 1e9:.3g} GB, but {free / 1e9:.3g} GB are free; "
            "free some, or choose another place"
        )


def read_metadata(checkpoint: Path) -> dict[str, Any]:
    """What `run.json` of a checkpoint says. Raises UserError where it cannot be read, or says something else."""
    path = checkpoint / METADATA
    try:
        metadata = json.loads(path.read_text(encoding="utf8"))
        complete_record(metadata["config"])
        parts = [(name, metadata[name], kind) for name, kind in _PARTS.items()]
        parts += [
            (f"config.{name}", metadata["config"][name], dict) for name in ("model", "objective", "data", "train")
        ]
        wrong = next((name for name, value, kind in parts if type(value) is not kind), None)
        if wrong is None:
            return metadata
        reason = f"`{wrong}` is not what it should be"
    except KeyError as error:
        reason = f"it lacks `{error.args[0]}`"
    except (OSError, ValueError, TypeError, RecursionError) as error:
        reason = str(error)[:200]
    raise UserError(f"{path}: cannot be read ({reason}); remove this checkpoint, or resume from another")


def step_of(checkpoint: Path) -> int:
    """Updates done when `checkpoint` was written."""
    return int(read_metadata(checkpoint)["step"])


def progress_of(checkpoint: Path) -> tuple[int, dict[str, Any]]:
    """Updates done when `checkpoint` was written, and the run's counters."""
    metadata = read_metadata(checkpoint)
    return int(metadata["step"]), metadata.get("counters", {})


def require_resumable(checkpoint: Path, run: CheckpointMetadata) -> None:
    """Refuse a checkpoint of another token layout or model, with both values named; warn of lesser changes."""
    where = str(checkpoint)
    metadata = read_metadata(checkpoint)
    run.layout.require_same(TokenLayout.from_dict(metadata["layout"], where), where)
    saved, usual = metadata["config"], to_dict(ModelConfig())
    for name, here in run.config["model"].items():
        _require_equal(f"model.{name}", saved["model"].get(name, usual[name]), here, where)
    warn_of_another_trajectory(saved, run.config, int(metadata["step"]), where)


def has_layout_of(checkpoint: Path, run: CheckpointMetadata) -> bool:
    """Whether DeepSpeed can load `checkpoint` into the run as it is: the same processes with the same parts.

    What it writes of a pipeline in bf16 without ZeRO it cannot read.
    """
    metadata = read_metadata(checkpoint)
    saved = metadata["config"]
    mine = (run.config["parallel"], *_grouped(run.config["train"]), run.world_size, run.zero_stage)
    theirs = (saved.get("parallel"), *_grouped(saved["train"]), metadata["world_size"], metadata["zero_stage"])
    is_unreadable = run.config["parallel"]["pipeline"] > 1 and run.zero_stage == 0 and mine[1] == "bf16"
    is_cut_anew = run.zero_stage == 3 and metadata.get("sub_group_size", run.sub_group_size) != run.sub_group_size
    return metadata.get("form") != UNIVERSAL and mine == theirs and not (is_unreadable or is_cut_anew)


def _grouped(train: dict[str, Any]) -> tuple[Any, ...]:
    """What the optimizer's tensors are cut by: the precision, and which weights are groups of their own."""
    return train["precision"], [group["params"] for group in train.get("param_groups", [])]


def save(
    engine: "deepspeed.DeepSpeedEngine",
    folder: Path,
    step: int,
    run: CheckpointMetadata,
    counters: dict[str, Any],
    keep: CheckpointConfig,
) -> Path:
    """Write the state after `step` updates; collective. Returns the checkpoint's folder.

    Raises UserError, on all processes alike, where one could not write its part; nothing that was there before is lost.
    """
    final, aside = begin(folder, step)
    storage = _checksumming(engine)
    engine.save_checkpoint(str(folder), tag=aside.name, client_state={"step": step}, save_latest=False)
    parts = gather((storage.files, storage.failure))
    failure = next((failure for _, failure in parts if failure is not None), None)
    if failure is not None:
        on_first_rank(lambda: shutil.rmtree(aside, ignore_errors=True))
        raise failure
    files = {name: total for part, _ in parts for name, total in part.items()}
    on_first_rank(lambda: publish(aside, final, metadata_of(step, run, counters), files, keep))
    return final


def begin(folder: Path, step: int) -> tuple[Path, Path]:
    """Where the checkpoint of a step will lie, and the new empty folder that it is written into; collective."""
    final = folder / f"step-{step:08d}"
    aside = folder / f".{final.name}.tmp"
    on_first_rank(lambda: _make_empty(aside))
    return final, aside


def first_whole(candidates: Sequence[Path]) -> Path | None:
    """The first of `candidates` whose files have the checksums of their manifest; collective, each process reads its share.

    Warns of those passed over. None where there are no candidates; UserError where all of them are damaged.
    """
    failure: UserError | None = None
    for checkpoint in candidates:
        failure = next((error for error in gather(_failure_of_share(checkpoint)) if error is not None), None)
        if failure is None:
            return checkpoint
        warn(f"skipping a checkpoint: {failure}")
    if failure is not None:
        raise UserError(f"{failure}, and no other checkpoint is whole; remove the folder to start anew")
    return None


def _failure_of_share(checkpoint: Path) -> UserError | None:
    import torch.distributed as dist

    try:
        files = read_manifest(checkpoint)
        by_size = sorted(files, key=lambda name: (-files[name].bytes, name))
        require_checksums(checkpoint, files, by_size[dist.get_rank() :: dist.get_world_size()])
    except UserError as error:
        return error
    return None


def load(engine: "deepspeed.DeepSpeedEngine", checkpoint: Path) -> None:
    """Restore weights and optimizer from a checkpoint of this very layout; collective. See `has_layout_of`."""
    _checksumming(engine)
    path, state = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name, load_lr_scheduler_states=False)
    if path is None:
        raise UserError(f"{checkpoint}: DeepSpeed finds no weights in it; remove it, or resume from another")
    assert state["step"] == step_of(checkpoint)


def _checksumming(engine: "deepspeed.DeepSpeedEngine") -> "ChecksummingEngine":
    """Put our files under the engine, see `ChecksummingEngine`."""
    from ttt_dist.checkpoint.engine import ChecksummingEngine
    from ttt_dist.parallel.deepspeed_adapter import write_through

    storage = ChecksummingEngine()
    write_through(engine, storage)
    return storage


def on_first_rank(action: Callable[[], None]) -> None:
    """Run `action` on rank 0 while the others wait; its failure becomes everyone's, so that none is left waiting."""
    import torch.distributed as dist

    failure: list[Exception | None] = [None]
    if dist.get_rank() == 0:
        try:
            action()
        except (OSError, UserError) as error:
            failure = [error]
    dist.broadcast_object_list(failure, device=_object_device())
    if failure[0] is not None:
        raise failure[0]


def from_first_rank(value: T) -> T:
    """Rank 0's value; collective."""
    import torch.distributed as dist

    values = [value]
    dist.broadcast_object_list(values, device=_object_device())
    return values[0]


def gather(value: T) -> list[T]:
    """The values of all processes, in order of rank; collective."""
    import torch.distributed as dist

    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _object_device() -> "torch.device":
    import torch
    import torch.distributed as dist

    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _make_empty(folder: Path) -> None:
    """A new folder; space that a killed process was about to free is freed first, or the save might not find enough."""
    with writing(folder):
        _remove_all(list(folder.parent.glob(f"{GONE}*")))
        remove(folder)
        folder.mkdir(parents=True)


def metadata_of(step: int, run: CheckpointMetadata, counters: dict[str, Any]) -> dict[str, Any]:
    """What run.json of the checkpoint of a step says."""
    return {
        "step": step,
        "form": "native",
        "layout": run.layout.to_dict(),
        "world_size": run.world_size,
        "zero_stage": run.zero_stage,
        "sub_group_size": run.sub_group_size,
        "config": run.config,
        "counters": counters,
    }


def publish(
    aside: Path, final: Path, metadata: dict[str, Any], files: dict[str, FileChecksum], keep: CheckpointConfig
) -> None:
    """Complete the folder written aside, give it its name, and make it the newest."""
    with atomic_write(aside / METADATA) as file:
        json.dump(metadata, file, indent=1)
    write_manifest(aside, {**files, METADATA: file_checksum(aside / METADATA)})
    with writing(final):
        fsync_folder(aside)
        if final.exists():  # one that was damaged, or of another past of this run
            _hide(final)
        os.replace(aside, final)
        fsync_folder(final.parent)
    make_newest(final, keep)


def make_newest(checkpoint: Path, keep: CheckpointConfig) -> None:
    """Point `latest` at a checkpoint and drop what is no longer kept; for one that is whole, in its run's folder.

    Done again where a run goes on from it: a process killed between a save and this leaves the rest to be done.
    """
    remove_leftovers(checkpoint.parent / LATEST)
    with atomic_write(checkpoint.parent / LATEST) as file:
        file.write(checkpoint.name + "\n")
    _drop(checkpoint, keep)


def _drop(newest: Path, keep: CheckpointConfig) -> threading.Thread:
    """Take checkpoints before `newest` that no rule keeps out of sight, and what unfinished saves left.

    The returned thread frees their space, so that training does not wait for the disk.
    """
    folder = newest.parent
    for left in folder.glob(".step-*.tmp"):
        remove(left)
    older = [path for path in _named(folder) if number(path) < number(newest)]
    complete = [path for path in older if (path / MANIFEST).is_file()]
    kept = {path for path in complete if keep.keep_every and number(path) % keep.keep_every == 0}
    num_recent = keep.keep_last - 1 if keep.keep_last else len(complete)  # beside the newest
    kept |= set(complete[max(len(complete) - num_recent, 0) :])
    for path in older:
        if path not in kept:
            _hide(path)
    removal = threading.Thread(target=_remove_all, args=(list(folder.glob(f"{GONE}*")),))
    removal.start()
    return removal


def _hide(checkpoint: Path) -> None:
    """Give a checkpoint a name under which nobody looks for one; the next `_drop` removes it."""
    gone = checkpoint.with_name(GONE + checkpoint.name)
    remove(gone)
    os.replace(checkpoint, gone)


def _remove_all(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)  # one of before may still be at it


def _require_equal(name: str, there: Any, here: Any, where: str) -> None:
    if there != here:
        raise UserError(
            f"{where}: {name} is {there} in the checkpoint and {here} in this run; change it back, or choose another run_dir"
        )
