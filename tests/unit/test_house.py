"""The house rules that a machine can check: lint, types, the direction of imports, words that do not belong here."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Eight floors, top first: a module may import its own package, the floors below, and on the ground its neighbours.
FLOORS = [
    ["ttt_dist.train", "ttt_dist.generate", "ttt_dist.evaluate", "ttt_dist.serve", "tools"],
    ["ttt_dist.training", "ttt_dist.evaluation", "ttt_dist.serving"],
    ["ttt_dist.checkpoint", "ttt_dist.inference", "data_prep"],
    ["ttt_dist.parallel", "ttt_dist.jobs"],
    ["ttt_dist.model"],
    ["ttt_dist.data", "ttt_dist.manifest"],
    ["ttt_dist.audio", "ttt_dist.sequence", "ttt_dist.telemetry", "ttt_dist.launch"],
    ["ttt_dist.config", "ttt_dist.util"],
]
GROUND = len(FLOORS) - 1
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
STANDARD_OR_THIRD_PARTY = {"codecs", "datasets", "tokenizers", "wandb", "torch", "types", "random", "queue", "platform"}


def tracked(pattern: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", pattern], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def owner(module: str) -> str | None:
    return next((name for name in FLOOR_OF if module == name or module.startswith(name + ".")), None)


def imported(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def test_imports_go_down() -> None:
    wrong = []
    for folder in ("ttt_dist", "data_prep", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            mine = owner(module)
            if mine is None:
                assert module == "ttt_dist", f"{module} stands on no floor"
                continue
            for name in filter(None, map(owner, imported(path))):
                same_package = name == mine
                level = FLOOR_OF[name] - FLOOR_OF[mine]
                if not same_package and (level < 0 or (level == 0 and FLOOR_OF[mine] < GROUND)):
                    wrong.append(f"{module} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_model_and_sequence_know_no_process_group() -> None:
    for folder in ("sequence", "model", "inference"):
        for path in (ROOT / "ttt_dist" / folder).rglob("*.py"):
            assert not {m for m in imported(path) if m.startswith(("torch.distributed", "deepspeed", "megatron"))}, path


def test_no_module_hides_another() -> None:
    """train.py runs as a file: what lies beside it comes first on the path."""
    names = {path.stem for path in (ROOT / "ttt_dist").iterdir()}
    assert not names & (STANDARD_OR_THIRD_PARTY | (set(sys.stdlib_module_names) - {"__init__"}) - {"__main__"})


@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join
)
def test_style_and_types(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_repository_speaks_of_the_project_alone() -> None:
    index = re.compile(r"--(?:extra-)?index-url|--find-links|https?://\S+/simple\b")
    for path in tracked("*"):
        if path.suffix in {".flac", ".png", ".wav"} or path == Path(__file__):
            continue
        found = index.search(path.read_text(encoding="utf8", errors="replace"))
        assert not found, f"{path} names a package index: {found}"
        assert path.stat().st_size < 2_000_000, f"{path} is large"
