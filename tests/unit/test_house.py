"""The house rules that no linter holds (`make lint`): who stands on which floor, names, words that do not belong here."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from hypothesis import settings

ROOT = Path(__file__).resolve().parents[2]

STANDARD_OR_THIRD_PARTY = {"codecs", "datasets", "tokenizers", "wandb", "torch", "types", "random", "queue", "platform"}


def tracked(pattern: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", pattern], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def imported(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def test_every_module_stands_on_a_floor() -> None:
    """import-linter looks at what is listed: a folder that is not may import whatever it likes."""
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["tool"]["importlinter"]
    floors = next(contract["layers"] for contract in linter["contracts"] if contract["type"] == "layers")
    listed = {name for floor in floors for name in re.split(r"\s*[:|]\s*", floor)}
    there = {
        f"ttt_dist.{path.stem}"
        for path in (ROOT / "ttt_dist").iterdir()
        if any(path.glob("*.py")) or path.suffix == ".py"
    }
    assert there - {"ttt_dist.__init__"} | {"data_prep"} == listed


def test_model_and_sequence_know_no_process_group() -> None:
    """What import-linter cannot say of a part of a package of others."""
    for folder in ("sequence", "model", "inference"):
        for path in (ROOT / "ttt_dist" / folder).rglob("*.py"):
            assert not {m for m in imported(path) if m.startswith("torch.distributed")}, path


def test_no_module_hides_another() -> None:
    """train.py runs as a file: what lies beside it comes first on the path."""
    names = {path.stem for path in (ROOT / "ttt_dist").iterdir()}
    assert not names & (STANDARD_OR_THIRD_PARTY | (set(sys.stdlib_module_names) - {"__init__"}) - {"__main__"})


def test_every_test_file_stands_in_the_readme() -> None:
    told = set(re.findall(r"\w+", (ROOT / "tests" / "README.md").read_text(encoding="utf8")))
    files = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert not {name for name in files if not {name, name.removeprefix("test_")} & told}


def test_properties_do_not_depend_on_the_load() -> None:
    assert settings().deadline is None


def test_repository_speaks_of_the_project_alone() -> None:
    index = re.compile(r"--(?:extra-)?index-url|--find[-]links|https?://\S+/simple\b")
    for path in tracked("*"):
        if path.suffix in {".flac", ".png", ".wav"} or path == Path(__file__):
            continue
        found = index.search(path.read_text(encoding="utf8", errors="replace"))
        assert not found, f"{path} names a package index: {found}"
        assert path.stat().st_size < 2_000_000, f"{path} is large"
