"""Packing: every sample once, packs full, short and long mixed, the same in every run, memory bounded by the window."""

import argparse
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_prep.commands import pack
from data_prep.packing.binpack import best_fit_decreasing, num_windows, pack_window
from data_prep.packing.sample_parts import SampleWriter
from data_prep.packing.truncation import cut, pieces
from tests.structures import tiny_layout
from ttt_dist.data import metadata
from ttt_dist.data.document import check_document
from ttt_dist.data.set_index import load_index
from ttt_dist.data.shards import ShardReader, to_document, to_samples
from ttt_dist.data.verify import verify
from ttt_dist.jobs.parts import part_prefix
from ttt_dist.sequence.sample import Sample, Segment
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.errors import UserError

LAYOUT = tiny_layout()


def librispeech_like(num_samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of ASR and TTS samples, and which are ASR.

    Utterances of 2 to 17 s: 70 % normal around 14 s (deviation 1.6 s), 30 % uniform over 2 to 16 s. 12.5 codes and 3
    text tokens a second; ASR has the codes twice and the text once, TTS the codes once and the text twice; two
    delimiters per 13 text tokens; 77 and 60 tokens of prompt and turns.
    """
    rng = np.random.default_rng(seed)
    usual = np.clip(rng.normal(14, 1.6, num_samples), 2, 17)
    seconds = np.where(rng.random(num_samples) < 0.7, usual, rng.uniform(2, 16, num_samples))
    text, codes = (seconds * 3).astype(int), (seconds * 12.5).astype(int)
    delimiters = 2 * -(-text // 13)
    is_asr = rng.integers(0, 2, num_samples).astype(bool)
    return np.where(is_asr, 2 * codes + text + 77, codes + 2 * text + 60) + delimiters, is_asr


def packed(lengths: np.ndarray, seq_len: int, seed: int = 0, window: int = 100_000) -> list[np.ndarray]:
    windows = range(num_windows(len(lengths), window))
    return [one for number in windows for one in pack_window(lengths, number, seq_len, seed, window)[1]]


@given(
    lengths=st.lists(st.integers(1, 70), max_size=80),
    seq_len=st.integers(1, 64),
    seed=st.integers(0, 9),
    window=st.integers(1, 100),
)
def test_every_sample_that_fits_is_packed_once(lengths: list[int], seq_len: int, seed: int, window: int) -> None:
    array = np.array(lengths, dtype=np.int64)
    packs = packed(array, seq_len, seed, window)
    assert all(len(one) and array[one].sum() <= seq_len for one in packs)
    assert sorted(i for one in packs for i in one.tolist()) == np.flatnonzero(array <= seq_len).tolist()


@given(lengths=st.lists(st.integers(1, 20), max_size=12))
def test_best_fit_decreasing_against_the_plain_rule(lengths: list[int]) -> None:
    """Brute force: longest first, into the fullest pack that still holds it."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in spaces if space >= length]
        if fitting:
            spaces[spaces.index(min(fitting))] -= length
        else:
            spaces.append(20 - length)
    packs = best_fit_decreasing(lengths, list(range(len(lengths))), 20)
    assert sorted(20 - sum(lengths[i] for i in one) for one in packs) == sorted(spaces)


@pytest.mark.parametrize(
    ("num_samples", "seq_len", "fill"),
    [(1_000, 2048, 0.97), (50_000, 2048, 0.995), (50_000, 4096, 0.998), (50_000, 1024, 0.97), (2_000, 8192, 0.97)],
)
def test_packs_are_full(num_samples: int, seq_len: int, fill: float) -> None:
    lengths, _ = librispeech_like(num_samples)
    assert lengths.sum() / (seq_len * len(packed(lengths, seq_len))) >= fill


def test_packs_mix_short_and_long_and_templates() -> None:
    """The spread of a pack's mean is that of a random draw, within a factor; best-fit-decreasing is at about 4."""
    lengths, is_asr = librispeech_like(50_000)
    packs = packed(lengths, 2048)
    per_pack = np.mean([len(one) for one in packs])
    for values in (lengths, is_asr):
        spread = np.var([values[one].mean() for one in packs])
        assert spread < 1.6 * values.var() / per_pack


def test_order_has_no_trend() -> None:
    """Neither the packs of the shard nor the samples of a pack stand in order of length."""
    lengths, _ = librispeech_like(50_000)
    packs = [one for one in packed(lengths, 2048) if len(one) >= 5]
    means = [lengths[one].mean() for one in packs]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.05
    first, last = ([lengths[one[place]] for one in packs] for place in (0, -1))
    assert abs(np.mean(first) - np.mean(last)) < 0.03 * lengths.mean()


def test_seeded() -> None:
    lengths, _ = librispeech_like(3_000)
    one, again, other = (packed(lengths, 2048, seed, window=1000) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=False))


def write_samples(folder: Path, part: int, lengths: list[int]) -> None:
    """A part (of two) of samples whose text ids tell part and place."""
    made_from = {"settings": {}, "templates": ["asr"], "codes": f"codes of part {part}"}
    with SampleWriter(part_prefix(folder, part), part, 2, LAYOUT, made_from) as writer:
        for number, length in enumerate(lengths):
            ids = np.full(length, part, np.int32)
            ids[1] = number
            writer.add(Sample.of([Segment(ids[:1], False), Segment(ids[1:], True)]))


def arguments(folder: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    pack.add_parser(parser.add_subparsers())
    given = ["pack", "--samples", str(folder), "--out", str(folder.parent / "shards" / "train"), *more]
    return parser.parse_args(given)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "samples"
    write_samples(folder, 0, [5, 9, 12, 3])
    write_samples(folder, 1, [4, 4, 30, 6, 7])
    (folder / "template.json").write_text("{}\n")
    return folder


def contents(folder: Path) -> list[tuple[int, int, int]]:
    reader = ShardReader(folder.parent / "shards" / "train")
    samples = [one for index in range(len(reader)) for one in reader[index]]
    return sorted((int(one.ids[0]), int(one.ids[1]), len(one)) for one in samples)


def test_pack_keeps_all_and_names_what_is_too_long(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"shards/train: 1 samples exceed --seq-len 16"):
        pack.run(arguments(folder, "--seq-len", "16"))
    assert "part-00001.bin: document 2: 30 tokens" in capsys.readouterr().err
    assert contents(folder) == [(0, 0, 5), (0, 1, 9), (0, 2, 12), (0, 3, 3), (1, 0, 4), (1, 1, 4), (1, 3, 6), (1, 4, 7)]
    assert verify(folder.parent / "shards" / "train") == []
    reader = ShardReader(folder.parent / "shards" / "train")
    assert reader.meta["source"] == {"settings": {}, "templates": ["asr"], "imported": [], "parts": 2, "samples": 9}
    message = "part-00001.bin: document 2: 30 tokens, longer than seq_len 16: dropped"
    assert reader.meta["too_long"] == {"dropped": 1, "cut": 0, "pieces": 0, "tokens_lost": 30, "examples": [message]}
    pack.run(arguments(folder, "--seq-len", "16", "--max-errors", "1"))


def test_too_long_fail_writes_nothing(folder: Path) -> None:
    with pytest.raises(UserError, match=r"1 samples exceed --seq-len 16: raise it"):
        pack.run(arguments(folder, "--seq-len", "16", "--too-long", "fail", "--max-errors", "5"))
    assert not list((folder.parent / "shards").iterdir())


def test_the_shard_is_the_same_again(folder: Path) -> None:
    shard = folder.parent / "shards"
    pack.run(arguments(folder, "--seq-len", "32"))
    first = {path.name: path.read_bytes() for path in shard.iterdir()}
    pack.run(arguments(folder, "--seq-len", "32"))
    assert {path.name: path.read_bytes() for path in shard.iterdir()} == first
    assert sorted(first) == ["template.json", "train.bin", "train.idx", "train.json"]
    pack.run(arguments(folder, "--seq-len", "32", "--seed", "1"))
    assert (shard / "train.bin").read_bytes() != first["train.bin"]


def test_what_cannot_be_packed_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="no complete part"):
        pack.run(arguments(folder.parent / "none", "--seq-len", "32"))
    with pytest.raises(UserError, match="--seq-len 0"):
        pack.run(arguments(folder, "--seq-len", "0"))
    with pytest.raises(UserError, match="nothing to write"):
        pack.run(arguments(folder, "--seq-len", "2", "--max-errors", "99"))
    (folder / "part-00000.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"part-00000\.bin: is empty"):
        pack.run(arguments(folder, "--seq-len", "32"))


def test_template_of_another_run_is_refused(folder: Path) -> None:
    pack.run(arguments(folder, "--seq-len", "32"))
    (folder / "template.json").write_text('{"text_ratio": 5}\n')
    with pytest.raises(UserError, match=r"shards/template\.json: from a run with other settings"):
        pack.run(arguments(folder, "--seq-len", "32"))


def document_sample(layout: TokenLayout, spans: list[tuple[int, int]], prompt: int = 0) -> Sample:
    """`prompt` tokens of a prompt, then (text, codes) in turn, all targets."""
    ids: list[int] = []
    for number, (text, codes) in enumerate(spans, start=1):
        last = number == len(spans)
        ends = (
            (layout.begin_of_quad, layout.end_of_audio_span_last)
            if last
            else (layout.begin_of_audio, layout.end_of_audio_new)
        )
        ids += [1] * text + ([ends[0], *[layout.first_code] * codes, ends[1]] if codes else [])
    targets = np.array(ids, np.int32)
    return Sample.of(
        [Segment(np.full(prompt, 2, np.int32), False), Segment(targets, True)] if prompt else [Segment(targets, True)]
    )


@given(
    spans=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), min_size=1, max_size=8),
    prompt=st.integers(0, 9),
    seq_len=st.integers(4, 40),
)
@settings(max_examples=300)
def test_cuts_tear_no_span_and_lose_nothing_of_a_document(
    spans: list[tuple[int, int]], prompt: int, seq_len: int
) -> None:
    sample = document_sample(LAYOUT, spans, prompt)
    assume(len(sample) > seq_len)
    document = to_document([sample])
    found = pieces(document, LAYOUT, seq_len)
    for start, stop in found:
        assert 0 < stop - start <= seq_len
        assert not list(check_document(cut(document, start, stop), LAYOUT, seq_len))
        (piece,) = to_samples(cut(document, start, stop))
        np.testing.assert_array_equal(piece.ids, sample.ids[start:stop])
        np.testing.assert_array_equal(piece.is_target, sample.is_target[start:stop])
    longest = max(codes + 2 for _, codes in spans)
    if not prompt and longest <= seq_len:  # a piece of one token has nothing to learn: nothing else is left out
        borders = [0, *itertools.chain(*found), len(sample)]
        assert all(after - before in (0, 1) for before, after in zip(borders[::2], borders[1::2], strict=True))
    if prompt:
        assert len(found) <= 1


def test_pack_cuts_where_asked(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    made_from = {"settings": {}, "templates": ["text"], "codes": "x"}
    for part in range(2):
        with SampleWriter(part_prefix(folder, part), part, 2, LAYOUT, made_from) as writer:
            writer.add(document_sample(LAYOUT, [(10, 5), (10, 5), (9, 0)]))
            writer.add(document_sample(LAYOUT, [(3, 2)]))
            writer.add(document_sample(LAYOUT, [(3, 40)]))
    (folder / "template.json").write_text("{}\n")
    pack.run(arguments(folder, "--seq-len", "24", "--too-long", "cut"))
    reader = ShardReader(tmp_path / "shards" / "train")
    too_long = reader.meta["too_long"]
    # Two of 43 tokens become 24 and 19; of two with a span of 42 that fits nowhere the text before it is kept.
    assert (too_long["cut"], too_long["pieces"], too_long["dropped"], too_long["tokens_lost"]) == (4, 6, 0, 84)
    assert verify(tmp_path / "shards" / "train") == []
    lengths = sorted(len(one) for index in range(len(reader)) for one in reader[index])
    assert lengths == [3, 3, 7, 7, 19, 19, 24, 24]


def test_shards_without_samples_are_no_members_of_a_set(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    for part, lengths in enumerate(([5, 40, 40, 40, 40, 40], [40, 40, 40, 6])):
        write_samples(folder, part, lengths)
    (folder / "template.json").write_text("{}\n")
    small = ["--seq-len", "8", "--shard-samples", "2", "--max-errors", "9"]
    pack.run(arguments(folder, *small))
    reader = ShardReader(tmp_path / "shards" / "train")
    assert (
        1 <= len(metadata.read(reader.prefix)["shards"]) <= 2
        and len(list((tmp_path / "shards").glob("train-*.json"))) == 5
    )
    assert contents(folder) == [(0, 0, 5), (1, 3, 6)]
    assert verify(tmp_path / "shards" / "train") == []
    with pytest.raises(UserError, match="nothing to write, all samples are too long"):
        pack.run(arguments(folder, *small[2:], "--seq-len", "4"))


def test_a_set_becomes_one_shard_and_leaves_nothing_behind(folder: Path) -> None:
    shards = folder.parent / "shards"
    pack.run(arguments(folder, "--seq-len", "32", "--shard-samples", "4"))
    assert len(list(shards.glob("train-*-of-00003.bin"))) == 3
    index = load_index(shards / "train")
    assert index is not None and index.ends[-1] == metadata.read(shards / "train")["counts"]["packs"]
    before = contents(folder)
    pack.run(arguments(folder, "--seq-len", "32"))
    assert sorted(path.name for path in shards.iterdir()) == ["template.json", "train.bin", "train.idx", "train.json"]
    assert contents(folder) == before
