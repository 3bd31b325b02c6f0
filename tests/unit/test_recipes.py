"""`data_prep run`: recipes make the shards that they train on, of corpora in their real layout; what is done is not done again."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.commands.run import run_steps
from data_prep.recipe_steps import Step, plan_steps
from tests.recipe_corpora import LAPTOP, make_corpora
from ttt_dist.config.corpora import CorporaConfig
from ttt_dist.config.loader import read_config
from ttt_dist.data.shards import ShardReader
from ttt_dist.util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ("libritts", "aishell1", "wenetspeech", "chat")


class Runner:
    """Runs steps in this process; is stopped before the step of the number `stops_at`."""

    def __init__(self, stops_at: int = -1) -> None:
        self.ran: list[str] = []
        self.stops_at = stops_at

    def __call__(self, words: Sequence[object]) -> None:
        if len(self.ran) == self.stops_at:
            raise KeyboardInterrupt
        main([str(word) for word in words[2:]])
        self.ran.append(str(words[2]))


def steps_of(recipe: str, *overrides: str) -> list[Step]:
    return plan_steps(read_config(f"recipes/{recipe}.yaml", overrides).corpora)


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").glob("*.bin"))}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_makes_the_shards_it_trains_on(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with nothing but the corpus: interrupted, gone on with, and asked again."""
    monkeypatch.chdir(tmp_path)
    settings = make_corpora(tmp_path, recipe)
    steps, out = steps_of(recipe, *settings), Path("data") / recipe
    first, second, third = Runner(stops_at=4), Runner(), Runner()
    with pytest.raises(KeyboardInterrupt):
        run_steps(steps, out, first)
    assert run_steps(steps, out, second) == len(steps) - 4
    assert first.ran + second.ran == [step.command for step in steps]
    made = shards(out)
    assert run_steps(steps, out, third) == 0 and third.ran == []
    assert shards(out) == made

    config = read_config(f"recipes/{recipe}.yaml", settings)
    for prefix in [*config.data.prefixes().values(), *config.data.held_out.values()]:
        assert len(ShardReader(prefix)) > 0
        main(["verify", prefix])
    run_again_differs_nowhere(steps, recipe, tmp_path, monkeypatch)


def run_again_differs_nowhere(steps: list[Step], recipe: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was interrupted is, byte for byte, what a run without an interruption makes."""
    other = home / "other"
    other.mkdir()
    for corpus in ("LibriTTS", "data_aishell", "WenetSpeech", "chats"):
        if (home / corpus).exists():
            (other / corpus).symlink_to(home / corpus)
    monkeypatch.chdir(other)
    run_steps(steps, Path("data") / recipe, Runner())
    assert shards(home / "data" / recipe) == shards(other / "data" / recipe)


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """The real command, killed with all its processes when the second set is encoded; then asked for twice."""
    overrides = make_corpora(tmp_path, "aishell1")
    command = [sys.executable, "-m", "data_prep", "run", "recipes/aishell1.yaml", *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    kwargs = {"cwd": tmp_path, "env": environment, "text": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, **kwargs) as running:  # type: ignore[call-overload]
        for line in running.stdout:
            if line.startswith("[8/10] valid encode"):
                os.killpg(running.pid, signal.SIGKILL)
                break
    for there in (7, 10):
        done = subprocess.run(command, capture_output=True, check=False, **kwargs)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stderr
        told = done.stdout.splitlines()
        assert sum(line.startswith("[") and line.endswith(" is there") for line in told) == there
        assert told[-1] == f"data/aishell1: 10 steps, {there} of them were done before"
    listed = subprocess.check_output([*command, "--list", "--workers", "2"], **kwargs)  # type: ignore[call-overload]
    assert listed.count(": there\n") == 10 and listed.count("--workers 2") == 6
    train = [sys.executable, "-m", "ttt_dist.train", "--config", "recipes/aishell1.yaml", "--dry-run"]
    small = [
        "train.init_from=null",
        "train.precision=fp32",
        "train.compile=false",
        "train.global_batch=1",
        "train.micro_batch=1",
    ]
    described = subprocess.run([*train, *small], capture_output=True, check=False, **kwargs)  # type: ignore[call-overload]
    assert described.returncode == 0, described.stderr


@pytest.fixture
def speech(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the recipe of AISHELL-1 has run."""
    monkeypatch.chdir(tmp_path)
    settings = make_corpora(tmp_path, "aishell1")
    run_steps(steps_of("aishell1", *settings), Path("data/aishell1"), Runner())
    return tmp_path / "data" / "aishell1"


def test_a_changed_setting_runs_its_steps_or_is_refused(speech: Path) -> None:
    again = Runner()
    longer = [*LAPTOP, "corpora.every.pack.seq_len=1024"]
    assert run_steps(steps_of("aishell1", *longer), speech, again) == 2 and again.ran == ["pack", "pack"]
    assert json.loads((speech / "shards" / "train.json").read_text())["seq_len"] == 1024

    (speech / "shards" / "valid.bin").unlink()
    again = Runner()
    run_steps(steps_of("aishell1", *longer), speech, again)
    assert again.ran == ["pack"] and (speech / "shards" / "valid.bin").is_file()

    refused = Runner()
    fewer = [*longer, "corpora.sets.train.filter.where=speaker != 'S0002' or duration > 0"]
    run_steps(steps_of("aishell1", *fewer), speech, refused)
    assert refused.ran[0] == "filter"  # which kept the same lines, and so encode its parts
    with pytest.raises(UserError, match=r"^corpora\.sets\.train\.encode: .*--out.*or remove \S+ to make all anew"):
        run_steps(steps_of("aishell1", *longer, "corpora.sets.train.encode.part_size=2"), speech, Runner())


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (
            {"a": {"encode": {}}},
            r"^corpora\.sets\.a\.encode: there is nothing to work on; put manifest before it, or `from`$",
        ),
        ({"a": {"from": "x.jsonl", "compose": {}}}, r"^corpora\.sets\.a\.compose: .*put encode before it"),
        ({"a": {"from": "b", "encode": {}}}, r"^corpora\.sets\.a\.from: b is no set before this one"),
        ({"a": {"pak": {}}}, r"^corpora\.sets\.a\.pak: no such step; steps are manifest, "),
        (
            {"a": {"from": "x.jsonl", "filter": {"mix": "b=1"}}},
            r"^corpora\.sets\.a\.filter: .*--mix.* see .* filter --help$",
        ),
        ({"a": {"from": "x.jsonl", "group": {}}}, r"^corpora\.sets\.a\.group: .*required: --by"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(sets: dict, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        run_steps(plan_steps(CorporaConfig(out=str(tmp_path), sets=sets)), tmp_path, Runner(stops_at=0))


def test_codec_and_tokenizer_are_learnt_once(tmp_path: Path) -> None:
    chain: dict = {"encode": {}, "compose": {"template": "asr"}}
    sets = {
        "a": {"from": "a.jsonl", **chain},
        "b": {"from": "{x}/b.jsonl", **chain},
        "c": {"import": {"source": ["d", "e"]}},
    }
    steps = plan_steps(CorporaConfig(out="o", folders={"x": "y"}, sets=sets))
    words = [" ".join(step.words()) for step in steps]
    assert (
        "--codec melvq --train-codec --codec-out o/codec" in words[0]
        and "--train-tokenizer --tokenizer-out o/tokenizer" in words[1]
    )
    assert "--manifest y/b.jsonl --audio-root y --codec melvq:o/codec --out o/codes/b" in words[2]
    assert "--tokenizer o/tokenizer" in words[3] and "--train" not in words[2] + words[3]
    assert words[4] == "import --tokenizer o/tokenizer --codec melvq:o/codec --out o/samples/c --source d --source e"


def test_a_recipe_s_sections_are_checked(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("corpora: {sets: {a: {encode: fast}}}\n")
    with pytest.raises(UserError, match=r"corpora\.sets\.a\.encode: steps have flags"):
        read_config(recipe)
    recipe.write_text("run_dir: x\n")
    with pytest.raises(UserError, match=r"recipe\.yaml: has no corpora\.sets"):
        main(["run", str(recipe)])
