"""Speakers by name on their way from codes to an exported model, commonest first."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep.commands import compose, pack
from tests.distributed.small_run import TRAIN, execute, make_run
from tests.tiny_model import CODES, export_tiny, make_parts, noise
from tests.unit.test_compose import write_codes
from ttt_dist.data import metadata
from ttt_dist.data.speakers import MOST_LISTED, SPEAKERS, add_up, read_speakers, shard_speakers
from ttt_dist.model.hf.folder import export_folder, load_folder
from ttt_dist.util.errors import UserError


def command(module: object, *words: object) -> None:
    parser = argparse.ArgumentParser()
    module.add_parser(parser.add_subparsers())  # type: ignore[attr-defined]
    args = parser.parse_args([str(word) for word in words])
    args.func(args)


@pytest.fixture
def prefix(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Shards of two parts: bob speaks three times, ann twice, cid once and without a text, someone once."""
    make_parts(tmp_path, noise(seconds=1, count=2), "one two three", vocab_size=300)
    rng = np.random.default_rng(0)
    said = [
        [("bob", "one"), ("ann", "two"), ("cid", "")],
        [("bob", "two"), ("bob", "three"), ("ann", "one"), (None, "two")],
    ]
    for part, lines in enumerate(said):
        entries = [{"id": f"{part}{n}", "text": text, "speaker": who} for n, (who, text) in enumerate(lines)]
        write_codes(tmp_path / "codes", part, 2, entries, [rng.integers(0, CODES, 5) for _ in lines])
    (tmp_path / "codec").rename(tmp_path / "codes" / "codec")
    flags = getattr(request, "param", ["--template", "asr,tts", "--name-speaker"])
    given = [
        "compose",
        "--codes",
        tmp_path / "codes",
        "--out",
        tmp_path / "samples",
        "--tokenizer",
        tmp_path / "tokenizer",
    ]
    command(compose, *given, "--max-errors", 9, *flags)
    command(pack, "pack", "--samples", tmp_path / "samples", "--seq-len", 256, "--out", tmp_path / "shards" / "train")
    return tmp_path / "shards" / "train"


def test_those_whom_prompts_name_are_counted(prefix: Path) -> None:
    assert metadata.read(prefix)["source"]["speakers"] == {"bob": 3, "ann": 2}
    assert shard_speakers([prefix, prefix, prefix.with_name("gone")]) == ["bob", "ann"]


@pytest.mark.parametrize("prefix", [["--template", "asr", "--name-speaker"], ["--template", "asr,tts"]], indirect=True)
def test_those_whom_no_prompt_names_are_not(prefix: Path) -> None:
    assert "speakers" not in metadata.read(prefix)["source"] and shard_speakers([prefix]) == []


def test_a_model_folder_lists_them(tmp_path: Path) -> None:
    make_parts(tmp_path, noise(seconds=1, count=2), "one two three", vocab_size=300)
    model = export_tiny(tmp_path, "model", lambda *_: None, num_layers=1, init_std=0.1)
    loaded = load_folder(model)
    assert loaded.speakers == [] and not (model / SPEAKERS).exists()  # of before, or without names
    config, layout = loaded.model.config, loaded.layout
    weights = dict(loaded.model.named_parameters())
    export_folder(tmp_path / "named", weights, config, layout, loaded.objective, tmp_path, speakers=["bob", "ann"])
    assert load_folder(tmp_path / "named").speakers == ["bob", "ann"]


@pytest.mark.slow
def test_a_training_hands_them_on(tmp_path: Path) -> None:
    train = {"steps": 1, "eval_every": 0, "warmup": 0}
    config = make_run(tmp_path, train=train)
    shard = tmp_path / "shards" / "train.json"
    meta = metadata.read(shard.with_suffix(""))
    shard.write_text(metadata.render(meta | {"source": {"speakers": {"ann": 1, "bob": 2}}}), encoding="utf8")
    done = execute([sys.executable, TRAIN, "--config", str(config)], DS_ACCELERATOR="cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_speakers(tmp_path / "run" / "export") == ["bob", "ann"]


@pytest.mark.parametrize("text", ["[]", '{"speakers": "bob"}', '{"speakers": [1]}', '{"speakers": [" "]}', "no"])
def test_a_list_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / SPEAKERS).write_text(text)
    with pytest.raises(UserError, match=rf"{SPEAKERS}: .*; "):
        read_speakers(tmp_path)


def test_many_are_cut_to_the_commonest() -> None:
    counts = {f"s{number:04}": 1 + number % 7 for number in range(2 * MOST_LISTED)}
    found = add_up([counts, {"s0000": 100}])
    assert len(found) == MOST_LISTED and next(iter(found)) == "s0000" and found["s0000"] == 101
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert json.dumps(found) == json.dumps(add_up([{"s0000": 100}, counts]))
