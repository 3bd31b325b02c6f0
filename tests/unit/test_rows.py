"""The checks of benchmarks/rows: tests that they name exist, and answers of this build that cost little are right."""

import ast
import re
from pathlib import Path

import pytest

from benchmarks.rows.__main__ import FILES, FOLDER, answers, cell, is_right

ROOT = Path(__file__).resolve().parents[2]


def named_tests() -> set[str]:
    """`file::the beginning of a test's name` as the checks write it."""
    words = {
        node.value
        for name in FILES
        for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return {found for word in words for found in re.findall(r"\b\w+::\w+", word)}


def test_tests_that_are_named_exist() -> None:
    assert len(named_tests()) > 20
    for name in named_tests():
        file, _, start = name.partition("::")
        text = (ROOT / "tests" / "unit" / f"test_{file}.py").read_text(encoding="utf8")
        assert f"def test_{start}" in text, name


@pytest.mark.slow
def test_this_build_scores_languages_rightly() -> None:
    found = list(answers("scores", ROOT))
    assert len(found) > 10 and all(map(is_right, found)), [cell(answer) for answer in found if not is_right(answer)]


def test_a_cell_holds_an_answer_on_one_line() -> None:
    answer = {"row": "A1", "want": "^0: 3 s", "seen": "1: a | b\n\x1b[31m<c>" + "x" * 500}
    assert cell(answer).startswith("**wrong**: 1: a \\| b ") and "\n" not in cell(answer) and "\x1b" not in cell(answer)
    assert cell(answer | {"seen": "0: 3 s"}) == "0: 3 s"
