"""Parts of codes: what encode wrote is what compose reads, and copies of recordings are found over all parts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.jobs.compose import CodesPart, find_copies, fingerprint
from ttt_dist.data.indexed import IndexedBuilder
from ttt_dist.util.atomic_files import sha256_file
from ttt_dist.util.errors import UserError

CLIPS = [[[1, 2, 3], [4]], [[5]], []]
"""Codes of the clips of three utterances, the last of text alone."""


def write(folder: Path, entries: list[dict[str, Any]], clips: list[list[list[int]]]) -> CodesPart:
    prefix = folder / "part-00000"
    builder = IndexedBuilder(prefix.with_suffix(".bin"), multimodal=False)
    for utterance in clips:
        for codes in utterance:
            builder.add_item(np.array(codes, np.int32))
        builder.end_document()
    builder.finalize(prefix.with_suffix(".idx"))
    prefix.with_suffix(".jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    files = {path.name: {"sha256": sha256_file(path)} for path in folder.glob("part-00000.*")}
    return CodesPart(prefix, {"counts": {"utterances": len(clips)}, "files": files, "checksum": "c"})


def to_bytes(codes: np.ndarray) -> bytes:
    return (codes + 100).astype("<i4").tobytes()


def refuse(codes: np.ndarray) -> bytes:
    raise UserError("a code outside")


def test_each_utterance_has_its_own_clips(tmp_path: Path) -> None:
    part = write(tmp_path, [{"id": "a"}, {"id": "b"}, {"id": "c"}], CLIPS)
    part.check()
    read = list(part.utterances(to_bytes))
    assert [(number, entry["id"]) for number, entry, _ in read] == [(1, "a"), (2, "b"), (3, "c")]
    ids = [[np.frombuffer(clip, "<i4").tolist() for clip in clips] for *_, clips in read]
    assert ids == [[[code + 100 for code in clip] for clip in clips] for clips in CLIPS]
    plain = [[list(clip) for clip in clips] for *_, clips in part.utterances(refuse)]
    assert plain == CLIPS, "codes that are refused are handed on for whoever uses them"


@pytest.mark.parametrize("ids", ["ab", "abcd"])
def test_lines_that_do_not_match_the_codes_are_refused(tmp_path: Path, ids: str) -> None:
    part = write(tmp_path, [{"id": name} for name in ids], CLIPS)
    with pytest.raises(UserError, match=r"part-00000.jsonl: \d lines for 3 utterances"):
        list(part.utterances(to_bytes))


def test_damage_is_named_with_its_line(tmp_path: Path) -> None:
    part = write(tmp_path, [{"id": "a"}, {"id": "b"}, {"id": "c"}], CLIPS)
    for line, message in (("{broken", "2: not JSON"), ("[1]", "2: not a JSON object")):
        part.manifest.write_text(f'{{"id": "a"}}\n{line}\n{{"id": "c"}}\n')
        with pytest.raises(UserError, match=message):
            list(part.entries())
    with pytest.raises(UserError, match=r"part-00000.jsonl: missing or changed since it was written"):
        part.check()


@given(hashes=st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=1, max_size=4))
def test_copies_are_all_but_the_first(hashes: list[list[int]]) -> None:
    class Part:
        def __init__(self, values: list[int]) -> None:
            self.values, self.num_utterances = values, len(values)

        def entries(self) -> list[dict[str, str]]:
            return [{"audio_hash": f"{value:032x}"} for value in self.values]

    seen: set[int] = set()
    wanted: list[set[int]] = []
    for values in hashes:
        wanted.append(set())
        for line, value in enumerate(values, 1):
            if value in seen:
                wanted[-1].add(line)
            seen.add(value)
    assert find_copies([Part(values) for values in hashes]) == wanted


def test_the_fingerprint_depends_on_the_order_of_parts() -> None:
    parts = [CodesPart(Path("p"), {"checksum": checksum}) for checksum in ("a", "b")]
    assert fingerprint(parts) == fingerprint(parts[:]) != fingerprint(parts[::-1])
