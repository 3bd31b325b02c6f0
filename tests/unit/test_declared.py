"""What pyproject.toml declares is what the code imports."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
OURS = ("ttt_dist", "data_prep", "tools", "benchmarks", "tests")
DISTRIBUTIONS = {"yaml": "pyyaml", "megatron": "megatron-core", "piper": "piper-tts", "google": "protobuf"}
"""Of imported names, where it is not the same name."""
BROUGHT_FOR = {"tensorboard": "torch", "onnxruntime": "speechmos", "librosa": "speechmos", "setuptools": "resemblyzer"}
"""Declared packages that a package we import asks for only when it is used as we do."""


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\s<>=~!\[;]", line)[0].lower() for line in requirements}


def modules(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf8"))


def imported(module: ast.Module) -> set[str]:
    """Distributions whose modules are imported anywhere in a file."""
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in found - sys.stdlib_module_names - set(OURS)}


DEPENDENCIES = names(PROJECT["dependencies"])
EXTRAS = {extra: names(lines) for extra, lines in PROJECT["optional-dependencies"].items()}


def allowed(module: ast.Module) -> set[str]:
    """The dependencies, those of extras that the file's docstring names, and what it says that an environment of its own has."""
    text = " ".join((ast.get_docstring(module) or "").split())
    extras = [packages for extra, packages in EXTRAS.items() if f"extra `{extra}`" in text]
    own = re.findall(r"[\w-]+", text) if "environment of its own" in text else []
    return DEPENDENCIES.union(*extras, own)


def beside(path: str) -> set[str]:
    """Files that a script finds in its own folder."""
    return {file.stem for file in (ROOT / path).parent.glob("*.py")} if path.startswith("benchmarks/rows/") else set()


@pytest.mark.parametrize("folder", ["ttt_dist", "data_prep", "tools", "benchmarks"])
def test_what_is_imported_is_declared(folder: str) -> None:
    missing = {path: imported(module) - allowed(module) - beside(path) for path, module in modules(folder)}
    assert not {path: packages for path, packages in missing.items() if packages}


def test_what_is_declared_is_imported() -> None:
    ours = set().union(*(imported(module) for _, module in modules(*OURS[:-1])))
    tests = set().union(*(imported(module) for _, module in modules("tests")))
    assert set(BROUGHT_FOR.values()) <= ours
    assert not (DEPENDENCIES | EXTRAS["quality"]) - ours - BROUGHT_FOR.keys()
    plugins = {"pytest-timeout", "pytest-xdist"}
    assert not EXTRAS["test"] - tests - plugins


def test_libraries_whose_insides_we_use_have_an_upper_bound() -> None:
    bounded = names([line for line in PROJECT["dependencies"] if "<" in line])
    assert {"torch", "deepspeed", "megatron-core", "transformers"} <= bounded


def test_the_lock_holds_what_is_declared() -> None:
    pinned = names((ROOT / "requirements.lock").read_text(encoding="utf8").splitlines())
    assert DEPENDENCIES | EXTRAS["test"] | EXTRAS["judge"] | EXTRAS["dev"] - {"ttt-dist"} <= pinned
