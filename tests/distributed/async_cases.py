"""What the processes of test_async_save run: saves beside training, against saves that keep it waiting."""

import errno
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.distributed.cases import Layout, new_engine, run_step
from tests.distributed.random_packs import LAYOUT
from ttt_dist.checkpoint import async_save, local_saves, manager
from ttt_dist.checkpoint.async_save import AsyncSaver
from ttt_dist.checkpoint.local_saves import LocalSaves, restore_newest_set
from ttt_dist.checkpoint.torch_io import read_state
from ttt_dist.config.run import CheckpointConfig, Config

BEFORE, AFTER = 2, 3
KEEP = CheckpointConfig(keep_last=0)


def shared_folder() -> Path:
    names = [tempfile.mkdtemp()]
    dist.broadcast_object_list(names)
    return Path(names[0])


def metadata_of(layout: Layout) -> manager.CheckpointMetadata:
    return manager.CheckpointMetadata.of_run(layout.config(), LAYOUT, dist.get_world_size())


def beside_training(layout: Layout) -> tuple[list[str], list[Any], list[Any], list[Any]]:
    """Where a save beside training differs from one that keeps it waiting; figures of the steps after it: undisturbed,
    with the save beside them, and of a run that goes on from it."""
    folder, metadata = shared_folder(), metadata_of(layout)
    steps = range(BEFORE, BEFORE + AFTER)
    with new_engine(layout) as engine:
        for step in range(BEFORE):
            run_step(engine, layout, step)
        waited = manager.save(engine, folder / "waited", BEFORE, metadata, {"skipped": 1}, KEEP)
        undisturbed = [run_step(engine, layout, step) for step in steps]
    with new_engine(layout) as engine:
        manager.load(engine, waited)
        saver = AsyncSaver(engine)
        copy_as_late_as_possible(saver)
        assert saver.save(folder / "beside", BEFORE, metadata, {"skipped": 1}, KEEP) is None
        assert saver.poll() is None and not (folder / "beside" / waited.name).exists()
        beside = [run_step(engine, layout, step) for step in steps]
        saved = saver.wait()
    assert saved is not None and saved.failure is None and manager.latest(folder / "beside") == saved.folder, saved
    differences = differing(waited, saved.folder)
    with new_engine(layout) as engine:
        manager.load(engine, saved.folder)
        resumed = [run_step(engine, layout, step) for step in steps]
    manager.on_first_rank(lambda: shutil.rmtree(folder))
    return differences, undisturbed, beside, resumed


def copy_as_late_as_possible(saver: AsyncSaver) -> None:
    """Let the copies begin only when the next update is about to be made."""
    go, write, wait = threading.Event(), saver._write, saver._wait_for_copies

    def write_late(*arguments: Any) -> None:
        assert go.wait(60)
        write(*arguments)

    def wait_for_them() -> None:
        go.set()
        wait()

    saver._write, saver._wait_for_copies = write_late, wait_for_them  # type: ignore[method-assign]


def differing(one: Path, other: Path) -> list[str]:
    """Files of two checkpoints that hold other values, on this process's view of the disk."""
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    torch_files = [name for name in names if name.endswith(".pt")]
    assert torch_files and (one / manager.METADATA).read_bytes() == (other / manager.METADATA).read_bytes()
    return [name for name in torch_files if not equal(read_state(one / name), read_state(other / name))]


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(equal, one, other))
    return vars(one) == vars(other) if hasattr(one, "__dict__") else bool(one == other)


def failure_on_one_rank(layout: Layout) -> tuple[str, list[str], bool]:
    """What is told where rank 1 finds the disk full, what is left in the folder, and whether the next save succeeds."""
    folder, metadata = shared_folder(), metadata_of(layout)
    right = async_save.write_state

    def full(*_: object) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with new_engine(layout) as engine:
        saver = AsyncSaver(engine)
        run_step(engine, layout, 0)
        if dist.get_rank() == 1:
            async_save.write_state = full
        saver.save(folder, 1, metadata, {}, KEEP)
        failed = saver.wait()
        async_save.write_state = right
        left = [path.name for path in folder.iterdir()]
        dist.barrier()
        saver.save(folder, 1, metadata, {}, KEEP)
        saved = saver.wait()
    assert failed is not None and failed.failure is not None and saved is not None
    return failed.failure, left, saved.failure is None and manager.latest(folder) == saved.folder


def closed_by_an_error(layout: Layout, lost: bool) -> tuple[list[str], str | None]:
    """What there is of a save that was in flight when the run ended, with all processes alive or (`lost`) one gone."""
    folder, metadata = shared_folder(), metadata_of(layout)
    with new_engine(layout) as engine:
        saver = AsyncSaver(engine)
        run_step(engine, layout, 0)
        if lost and dist.get_rank() == 1:
            saver._write_part = lambda snapshot: threading.Event().wait()  # type: ignore[method-assign,assignment,return-value]
        saver.save(folder, 1, metadata, {}, KEEP)
        saved = None if lost and dist.get_rank() == 1 else saver.close()
        dist.barrier()
    return sorted(path.name for path in folder.iterdir()), saved.failure if saved else None


def saved_locally(layout: Layout, folder: str, ranks_per_host: int, save_at: tuple[int, ...], after: int) -> list[Any]:
    """Figures of the steps after the newest local save, of a run that saves nothing else; what each disk holds stays."""
    config = local_config(layout, Path(folder), ranks_per_host)
    metadata = metadata_of(layout)
    with new_engine(layout) as engine:
        saver, local, figures = AsyncSaver(engine), LocalSaves(config), []
        for step in range(max(save_at) + after):
            figures.append(run_step(engine, layout, step))
            if step + 1 in save_at:
                local.save(saver, step + 1, metadata, {"skipped": step})
                saved = saver.wait()
                assert saved is not None and saved.is_local and saved.failure is None, saved
                local.complete = saved.step
    return figures[max(save_at) :]


def saved_locally_beside_a_bad_disk(layout: Layout, folder: str) -> list[tuple[str | None, list[str]]]:
    """Why each of three saves has failed, and which sets are on this rank's disk then; the first two copies of rank 0's part
    find no place on that of rank 1."""
    config, metadata, target = local_config(layout, Path(folder), 1), metadata_of(layout), local_saves._LocalTarget
    sound, local_saves.CHUNK, found = target.prepare, 1 << 12, []

    def in_the_way(self: Any) -> None:
        sound(self)
        (self.folder / "mp_rank_00_model_states.pt").mkdir()

    with new_engine(layout) as engine:
        saver, local = AsyncSaver(engine), LocalSaves(config)
        for step in (1, 2, 3):
            run_step(engine, layout, step - 1)
            target.prepare = in_the_way if step < 3 and dist.get_rank() == 1 else sound  # type: ignore[method-assign]
            local.save(saver, step, metadata, {})
            saved = saver.wait()
            assert saved is not None
            found.append((saved.failure, sorted(path.name for path in local.folder.glob("step-*"))))
    return found


def gone_on_locally(layout: Layout, folder: str, ranks_per_host: int, steps: range) -> tuple[str | None, list[Any]]:
    """The checkpoint that the sets on the disks make, and the figures of `steps` from it in this layout."""
    from ttt_dist.checkpoint.universal import load_universal

    config = local_config(layout, Path(folder), ranks_per_host)
    checkpoint = restore_newest_set(config, manager.latest(Path(folder) / "run" / "checkpoints"))
    if checkpoint is None:
        return None, []
    assert manager.first_whole([checkpoint]) == checkpoint
    with new_engine(layout) as engine:
        if manager.has_layout_of(checkpoint, metadata_of(layout)):
            manager.load(engine, checkpoint)
        else:
            load_universal(engine, layout.mesh(), layout.config().model, LAYOUT, checkpoint)
        return checkpoint.name, [run_step(engine, layout, step) for step in steps]


def local_config(layout: Layout, folder: Path, ranks_per_host: int) -> Config:
    config = layout.config()
    config.run_dir = str(folder / "run")
    os.environ["OWN_DISK"] = f"disk-of-host-{dist.get_rank() // ranks_per_host}"
    config.checkpoint = CheckpointConfig(local_every=1, local_dir=f"{folder}/$OWN_DISK")
    return config
