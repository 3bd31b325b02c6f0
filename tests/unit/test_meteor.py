"""METEOR of captions: the sums that are scored here give what the authors' program says of them; what is missing is named."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ttt_dist.evaluation.metrics.meteor import JAR, Meteor, meteor
from ttt_dist.evaluation.metrics.scores import Normalisers
from ttt_dist.evaluation.tasks.captioning_classification import score_captions
from ttt_dist.util.errors import UserError

# Statistics and scores as METEOR 1.5 prints them (-stdio -l en -norm).
DOG = [7, 7, 3, 3, 2, 2, 2, 2, *[0] * 12, 3, 4, 4]
RAIN = [3, 5, 1, 2, 1, 1, *[0] * 11, 1, 1, 1, 1, 2, 3]  # with a paraphrase
NOTHING = [0, 5, 0, 2, *[0] * 19]
SCORES = [0.23122532971896473, 0.2473709481023278, 0.0]
TOGETHER = 0.1731035907171527


def test_the_formula_is_the_programs() -> None:
    assert meteor(np.array([DOG, RAIN, NOTHING], float)) == pytest.approx(SCORES, abs=1e-12)
    assert meteor(np.array([DOG, RAIN, NOTHING], float).sum(axis=0)[None]) == pytest.approx([TOGETHER], abs=1e-12)
    same = [3, 3, 1, 1, 2, 2, 1, 1, *[0] * 12, 1, 3, 3]
    assert meteor(np.array([same], float)) == pytest.approx([1.0])


def test_a_score_of_records() -> None:
    records = [
        {"id": str(number), "captions": ["a"], "hypothesis": "a", "meteor_stats": stats}
        for number, stats in enumerate((DOG, RAIN, NOTHING))
    ]
    figure = score_captions(records, Normalisers("basic")).figures["meteor"]
    assert figure.value == pytest.approx(TOGETHER) and figure.interval is not None
    without = [{name: value for name, value in record.items() if name != "meteor_stats"} for record in records]
    assert "meteor" not in score_captions(without, Normalisers("basic")).figures


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttt_dist.evaluation.metrics.meteor.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'--meteor: pycocoevalcap is not installed; pip install -e "\.\[captions\]"'):
        Meteor()
    monkeypatch.undo()
    (tmp_path / "pycocoevalcap").mkdir()
    (tmp_path / "pycocoevalcap" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pycocoevalcap", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no java on the PATH"):
        Meteor()
    program = tmp_path / "java"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(UserError, match="java ended"):
        Meteor().stats("a", ["a"])


@pytest.mark.slow
def test_the_program_itself() -> None:
    package = pytest.importorskip("pycocoevalcap", reason="the extra `captions` is not installed")
    if shutil.which("java") is None:
        pytest.skip("no java on the PATH")
    program = Meteor()
    assert (
        program.stats("the dog barks, and a car passes!", ["a dog barks loudly in the distance", "A dog is barking."])
        == DOG
    )
    found = np.array([program.stats(*pair) for pair in (("rain is falling", ["Rain falls on a roof"]), ("", ["a b"]))])
    assert found[0].tolist() == RAIN and meteor(found)[1] == 0
    jar = Path(package.__path__[0]) / JAR
    lines = "".join(f"EVAL ||| {' '.join(map(str, row))}\n" for row in found)
    command = ["java", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    told = subprocess.run(command, input=lines, capture_output=True, text=True, check=True).stdout.split()
    assert [float(told[0]), float(told[2])] == pytest.approx(meteor(found).tolist(), abs=1e-9)
