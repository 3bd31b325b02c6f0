"""Callbacks that a config names: found and made before anything starts, or refused in one line that names the entry."""

import json
import sys
from pathlib import Path

import pytest

from ttt_dist.config.loader import load_config
from ttt_dist.training.callbacks import Callback, callback_states, load_callback_states, load_callbacks
from ttt_dist.util.errors import UserError

MODULE = """
from ttt_dist.training.callbacks import Callback

class Plain(Callback):
    pass

class Every(Callback):
    def __init__(self, every: int, name: str = "x") -> None:
        self.every, self.name = every, name

class Stranger:
    pass

def function():
    pass
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user's own on the path."""
    (tmp_path / "users_hooks.py").write_text(MODULE)
    (tmp_path / "users_broken.py").write_text("import users_lost")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_hooks", raising=False)
    return "users_hooks"


def test_by_name_and_with_arguments() -> None:
    entries = ["users_hooks:Plain", {"users_hooks:Every": {"every": 10}}, {"users_hooks:Plain": None}]
    plain, every, other = load_callbacks(entries)
    assert all(isinstance(callback, Callback) for callback in (plain, every, other))
    assert (every.every, every.name) == (10, "x")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("users_lost.hooks:Plain", "users_lost.hooks:Plain: there is no module users_lost; install its package"),
        ("users_broken:Plain", "there is no module users_lost"),
        ("users_hooks:Plane", "users_hooks has no Plane; did you mean Plain?"),
        ("users_hooks:Stranger", "no subclass of ttt_dist.training.callbacks.Callback; derive it from that"),
        ("users_hooks:function", "no subclass"),
        ("users_hooks:Every", "cannot be made with no arguments (missing a required argument: 'every')"),
        ({"users_hooks:Every": {"evry": 3}}, "it takes (every: int, name: str = 'x')"),
        ({"users_hooks:Every": [3]}, "write my_package.module:Class, or {my_package.module:Class: {every: 10}}"),
        ({"users_hooks:Plain": {}, "users_hooks:Every": {}}, "names no class"),
        ("users_hooks.Plain", "names no class"),
        (3, "callbacks: 3 names no class"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(entry: object, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_callbacks([entry])
    message = str(caught.value)
    assert message.startswith("callbacks: ") and said in message and "\n" not in message


def test_a_config_names_them_and_an_override_does(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("callbacks:\n  - a.b:C\n  - {a.b:D: {every: 10}}\n")
    assert load_config(path).callbacks == ["a.b:C", {"a.b:D": {"every": 10}}]
    assert load_config(path, ["callbacks=[x:Y]"]).callbacks == ["x:Y"]
    path.write_text("seed: 1\n")
    assert load_config(path).callbacks == []


class Counting(Callback):
    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def test_each_callback_gets_its_own_state_back(capsys: pytest.CaptureFixture[str]) -> None:
    before: list[Callback] = [Counting(), Callback(), Counting()]
    before[0].count, before[2].count = 3, 5  # type: ignore[attr-defined]
    states = json.loads(json.dumps(callback_states(before)))
    assert [entry["name"] for entry in states] == [f"{__name__}:Counting"] * 2
    after = [Counting(), Counting(), Counting()]
    load_callback_states([*after], states)
    assert [callback.count for callback in after] == [3, 5, 0]
    load_callback_states([], states)
    assert f"{__name__}:Counting, which this run does not name" in capsys.readouterr().err
