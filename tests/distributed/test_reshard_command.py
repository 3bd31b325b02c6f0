"""The real commands: a run saved by ZeRO-3, resharded, goes on tensor-parallel; exports of a checkpoint are the run's own."""

from pathlib import Path

import pytest

from tests.distributed.small_run import SAVED, STEPS, make_run, records, train_on_two
from tests.unit.test_convert import command
from ttt_dist.checkpoint.saved_state import KINDS

EXACT = ("step", "lr", "ar_tokens", "nar_tokens")
CLOSE = ("loss", "ar_loss", "nar_loss", "grad_norm", "eval_loss")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on two processes, ZeRO-3."""
    folder = tmp_path_factory.mktemp("reshard_command")
    train_on_two(make_run(folder))
    return folder


def done_of(*arguments: object) -> str:
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_resharded_run_goes_on(work: Path) -> None:
    source = work / "run" / "checkpoints" / f"step-{SAVED:08d}"
    assert f"step       {SAVED}" in done_of("inspect", "--source", source)
    assert f"step {SAVED}" in done_of("reshard", "--source", source, "--out", work / "portable")
    assert {path.name for path in (work / "portable").iterdir()} == {*KINDS, "run.json", "manifest.json"}
    for name, start in (("portable", work / "portable"), ("direct", source)):
        other = work / name / "run"
        train_on_two(work / "config.yaml", f"run_dir={other}", "parallel.tensor=2", "--resume", str(start))
        expected = [record for record in records(work / "run") if record["step"] > SAVED]
        found = records(other)
        assert len(found) == len(expected) > 0
        for mine, theirs in zip(found, expected, strict=True):
            for key in EXACT:
                assert mine.get(key) == theirs.get(key), key
            for key in set(CLOSE) & set(theirs):
                assert mine[key] == pytest.approx(theirs[key], rel=1e-5), key


def test_export_of_a_checkpoint_is_that_of_the_run(work: Path) -> None:
    done_of("export-hf", "--source", work / "run", "--out", work / "of_run")
    done_of("export-hf", "--source", work / "run" / "export", "--out", work / "of_export")
    of_run, of_export = (
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (work / "of_run", work / "of_export")
    )
    assert of_run == of_export
    assert of_run.keys() >= {"model.safetensors", "config.json"}
    assert f"step       {STEPS}" in done_of("inspect", "--source", work / "run")
