"""Single recordings joined to utterances, and utterances grouped."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.__main__ import main
from data_prep.commands.group import group_entries
from data_prep.commands.utterances import build_utterances
from tests.corpora import CHAT, RATE, read_entries, record
from ttt_dist.audio import UtteranceReader
from ttt_dist.manifest.clips import clips
from ttt_dist.manifest.entry import Entry, parse_entry
from ttt_dist.util.errors import UserError


def recordings() -> list[Entry]:
    return [
        {"audio": f"{word}_{who}_{take}", "text": word, "speaker": who, "duration": 0.5}
        for word in ("one", "two", "three")
        for who in ("ann", "bob")
        for take in range(4)
    ]


def test_utterances_follow_from_the_seed_and_are_balanced() -> None:
    def build(seed: int) -> list[Entry]:
        return list(build_utterances(recordings(), 240, (1, 4), (0.0, 0.2), (0.1, 0.3), seed, "train"))

    built = build(0)
    assert built == build(0)
    assert built != build(1)
    assert [entry["id"] for entry in built[:2]] == ["train-000000", "train-000001"]
    for entry in built:
        parts = [part.split("_") for part in entry["audio"]]
        assert {who for _, who, _ in parts} == {entry["speaker"]}
        assert entry["text"].split() == [word for word, _, _ in parts]
        assert len(entry["gaps"]) == len(parts)
        assert all(0 <= gap <= 0.2 for gap in entry["gaps"])
        assert 0.1 <= entry["tail"] <= 0.3
        assert entry["duration"] == pytest.approx(0.5 * len(parts) + sum(entry["gaps"]) + entry["tail"])
    used = Counter(part for entry in built for part in entry["audio"])
    assert len(used) == 24
    for who in ("ann", "bob"):
        for word in ("one", "two", "three"):  # words are drawn freely, the recordings of a word in turn
            counts = [used[f"{word}_{who}_{take}"] for take in range(4)]
            assert max(counts) - min(counts) <= 1
            assert 60 <= sum(counts) <= 140
    texts = [entry["text"].split() for entry in built]
    assert any(a == b for words in texts for a, b in pairwise(words))  # strings repeat words
    assert Counter(len(entry["audio"]) for entry in built) == dict.fromkeys(range(1, 5), 60)
    assert Counter(entry["speaker"] for entry in built) == {"ann": 120, "bob": 120}


def test_a_longer_list_begins_with_the_shorter() -> None:
    short = list(build_utterances(recordings(), 10, (1, 4), (0.0, 0.2), (0.1, 0.3), 0, "t"))
    assert list(build_utterances(recordings(), 30, (1, 4), (0.0, 0.2), (0.1, 0.3), 0, "t"))[:10] == short


def test_utterances_command_moves_paths(tmp_path: Path) -> None:
    for word in ("one", "two"):
        record(tmp_path / "speech" / f"{word}_ann.wav")
    singles, out = tmp_path / "singles.jsonl", tmp_path / "speech" / "strings.jsonl"
    names = ["--reader", "pattern", "--pattern", "{text}_{speaker}.wav"]
    main(["manifest", *names, "--source", str(tmp_path / "speech"), "--out", str(singles)])
    main(["utterances", "--manifest", str(singles), "--out", str(out), "--count", "7", "--gap", "0.1"])
    built = read_entries(out)
    assert len(built) == 7
    assert all((out.parent / part).is_file() for entry in built for part in entry["audio"])
    assert {gap for entry in built for gap in entry["gaps"]} == {0.1}
    with pytest.raises(SystemExit, match="2"):
        main(["utterances", "--manifest", str(singles), "--out", str(out), "--count", "7", "--min-words", "6"])


@given(
    st.lists(st.tuples(st.sampled_from("xy"), st.integers(1, 50)), min_size=1, max_size=40),
    st.integers(1, 60),
)
def test_groups_keep_all_utterances_in_order(chapters: list[tuple[str, int]], most: int) -> None:
    members = [
        {"id": str(n), "audio": f"{n}.wav", "text": f"t{n}", "duration": s, "chapter": c, "lang": "en", "index": n}
        for n, (c, s) in enumerate(chapters)
    ]
    groups = list(group_entries(members, "chapter", most))
    flat = [(group["chapter"], segment) for group in groups for segment in group["segments"]]
    kept = ("text", "audio", "duration")
    assert flat == [(entry["chapter"], {name: entry[name] for name in kept}) for entry in members]
    assert len({group["id"] for group in groups}) == len(groups)
    for group in groups:
        assert group["duration"] == sum(segment["duration"] for segment in group["segments"])
        assert group["duration"] <= most or len(group["segments"]) == 1
        assert group["lang"] == "en"
        assert ("index" in group) == (len(group["segments"]) == 1)
    for one, two in pairwise(groups):  # as long as may be
        assert one["chapter"] != two["chapter"] or one["duration"] + two["segments"][0]["duration"] > most


def test_group_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "in" / "a.wav", seconds=1.0)
    box = {"audio": "t.tar", "duration": 0.3, "text": "x"}
    lines = [
        *({"id": f"a{n}", "audio": "a.wav", "text": f"t{n}", "offset": n / 4, "duration": 0.25} for n in range(3)),
        {**box, "id": "m0", "member": {"offset": 512, "size": 9}},
        {**box, "id": "m1", "member": {"offset": 2048, "size": 9}},
        {"id": "chat", "turns": CHAT},
        {"id": "label", "audio": "a.wav", "label": "rain", "duration": 1},
    ]
    source, out = tmp_path / "in" / "m.jsonl", tmp_path / "out" / "g.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    command = ["group", "--manifest", str(source), "--out", str(out), "--by"]
    with pytest.raises(UserError, match=r"2 bad files or lines.*3 groups were written"):
        main([*command, "audio"])
    found = read_entries(out)
    assert [entry["id"] for entry in found] == ["a0+2", "m0+0", "m1+0"]
    assert found[0]["segments"][1] == {
        "text": "t1",
        "audio": str(tmp_path / "in" / "a.wav"),
        "offset": 0.25,
        "duration": 0.25,
    }
    assert found[2]["segments"][0]["member"] == {"offset": 2048, "size": 9}
    assert parse_entry(json.dumps(found[0]), "m:1") == found[0]
    reader = UtteranceReader(out.parent, RATE, audio_root=tmp_path)
    assert [len(reader.read(clip)) for clip in clips(found[0])] == [RATE // 4] * 3
    assert "m.jsonl:6: is not one recording" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds no entry that can be grouped by 'chapter'"):
        main([*command, "chapter"])
    for flags in (["audio", "--max-seconds", "0"], ["audio", "--out", str(source)]):
        with pytest.raises(SystemExit, match="2"):
            main([*command, *flags])


def test_only_whole_files_of_words_are_joined(tmp_path: Path) -> None:
    lines = [
        {"id": "a", "audio": "a.wav", "text": "one", "duration": 1},
        {"id": "b", "audio": "b.tar", "member": {"offset": 0, "size": 9}, "text": "one", "duration": 1},
        {"id": "c", "turns": CHAT},
        {"id": "d", "audio": "d.wav", "label": "rain", "duration": 1},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match="3 bad files or lines"):
        main(
            ["utterances", "--manifest", str(tmp_path / "m.jsonl"), "--out", str(tmp_path / "o.jsonl"), "--count", "2"]
        )
    assert {part for entry in read_entries(tmp_path / "o.jsonl") for part in entry["audio"]} == {"a.wav"}
