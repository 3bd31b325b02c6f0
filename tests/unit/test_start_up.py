"""What a command imports before it has anything to do: seconds that every --help and every mistake would wait for."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep.__main__ import COMMANDS
from tests.distributed.small_run import environment, make_run
from ttt_dist.launch.process_group import has_gpu

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    "torch", "torchaudio", "deepspeed", "megatron", "transformers", "datasets", "pyarrow", "pandas", "scipy", "matplotlib",
    "soundfile", "safetensors", "tokenizers", "sentencepiece", "jiwer", "sacrebleu", "wandb", "tensorboard", "werkzeug",
    "mpi4py", "psutil",
}  # fmt: skip
ENTRY_POINTS = ("train", "generate", "evaluate", "serve")
TOOLS = sorted({path.name for path in (ROOT / "tools").glob("*.py")} - {"__init__.py", "launch.py"})
"""launch.py reads its flags by DeepSpeed's own parser, which is in DeepSpeed."""


def heavy_imports(*words: object, status: int = 0) -> set[str]:
    """The heavy packages that a command imports until it ends with `status`."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *map(str, words)],
        cwd=ROOT, env=environment(CUDA_VISIBLE_DEVICES=""), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr[-2000:]
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "argparse" in names
    return {name.partition(".")[0] for name in names} & (HEAVY | {"numpy", "pydantic"})


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's config, with shards and a tokenizer beside it."""
    return make_run(tmp_path_factory.mktemp("start_up"))


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_help_of_the_entry_points(name: str) -> None:
    assert not heavy_imports(f"ttt_dist/{name}.py", "--help")


@pytest.mark.parametrize("name", TOOLS)
def test_help_of_the_tools(name: str) -> None:
    assert not heavy_imports(f"tools/{name}", "--help") & (HEAVY | {"pydantic"})


@pytest.mark.slow
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_of_data_prep(command: str) -> None:
    assert not heavy_imports("-m", "data_prep", *command.split(), "--help") & (HEAVY | {"pydantic"})


@pytest.mark.parametrize(("command", "status"), [("stats", 0), ("verify", 1)])  # not all of these packs are sound
def test_shards_are_read_without_torch(command: str, status: int, config: Path) -> None:
    assert not heavy_imports("-m", "data_prep", command, config.parent / "shards" / "train", status=status) & HEAVY


@pytest.mark.slow
def test_a_pack_is_shown_with_torch_and_its_tokenizer_alone(config: Path) -> None:
    found = heavy_imports("-m", "data_prep", "show", config.parent / "shards" / "train") & HEAVY
    assert found <= {"torch", "sentencepiece"}


@pytest.mark.parametrize("settings", [[], ["train.precision=bf16", "deepspeed=ds_configs/zero1.json"]])
def test_a_dry_run_counts_without_building(settings: list[str], config: Path) -> None:
    found = heavy_imports("ttt_dist/train.py", "--config", config, "--dry-run", *settings) & HEAVY
    assert found <= ({"torch"} if has_gpu() or Path("/proc/driver/nvidia").exists() else set())


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3"])
def test_recordings_are_listed_without_torch(kind: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / f"one_s_1.{kind}", np.zeros(8000), 8000)
    words = ["--reader", "pattern", "--pattern", f"{{text}}_{{speaker}}_{{index}}.{kind}", "--source", tmp_path]
    assert heavy_imports("-m", "data_prep", "manifest", *words, "--out", tmp_path / "m.jsonl") & HEAVY == {"soundfile"}
