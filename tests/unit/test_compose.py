"""Composing: one sample per utterance and template, bad lines named by file and line, finished parts kept."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_prep import compose
from ttt_dist.data.indexed import new_builder
from ttt_dist.data.shards import ShardReader
from ttt_dist.data.verify import verify
from ttt_dist.errors import UserError
from ttt_dist.files import sha256_file
from ttt_dist.sequence.sample import spans
from ttt_dist.sequence.text_tokenizer import load_tokenizer

NUM_CODES = 32
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(autouse=True)
def _codec_of_32_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "load_codec", lambda folder: SimpleNamespace(codebook_size=NUM_CODES))


def write_codes(folder: Path, part: int, entries: list[dict | str], codes: list[np.ndarray]) -> None:
    """A part as data_prep encode writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = folder / f"part-{part:05d}"
    builder = new_builder(prefix.with_suffix(".bin"), multimodal=False)
    for one in codes:
        builder.add_document(one.astype(np.int32), [len(one)])
    builder.finalize(str(prefix.with_suffix(".idx")))
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    prefix.with_suffix(".jsonl").write_text("".join(line + "\n" for line in lines))
    files = {f"{prefix.name}{suffix}": sha256_file(prefix.with_suffix(suffix)) for suffix in (".bin", ".idx", ".jsonl")}
    prefix.with_suffix(".json").write_text(json.dumps({"files": files}))


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    """Two parts of six utterances."""
    folder = tmp_path / "codes"
    (folder / "codec").mkdir(parents=True)
    (folder / "codec" / "codec.json").write_text("{}")
    rng = np.random.default_rng(0)
    for part in range(2):
        texts = [" ".join(rng.choice(WORDS, 1 + number)) for number in range(6)]
        entries = [{"id": f"u{part}{n}", "text": text, "speaker": "ann"} for n, text in enumerate(texts)]
        write_codes(folder, part, entries, [rng.integers(0, NUM_CODES, 5 + 12 * n) for n in range(6)])
    return folder


def run(codes: Path, *more: str) -> Path:
    parser = argparse.ArgumentParser()
    compose.add_parser(parser.add_subparsers())
    tokenizer = [] if "--tokenizer" in more else ["--train-tokenizer", "--vocab-size", "300"]
    out = codes.parent / "samples"
    given = ["compose", "--codes", str(codes), "--out", str(out), "--template", "asr,tts", *tokenizer, *more]
    args = parser.parse_args(given)
    args.func(args)
    return out


def change_entry(codes: Path, part: int, line: int, entry: dict | str) -> None:
    """Replace a line of a manifest, with its checksum."""
    path = codes / f"part-{part:05d}.jsonl"
    lines = path.read_text().splitlines()
    lines[line - 1] = entry if isinstance(entry, str) else json.dumps(entry)
    path.write_text("".join(one + "\n" for one in lines))
    description = path.with_suffix(".json")
    meta = json.loads(description.read_text())
    meta["files"][path.name] = sha256_file(path)
    description.write_text(json.dumps(meta))


def test_samples_hold_what_was_said(codes: Path) -> None:
    out = run(codes, "--text-ratio", "3", "--audio-ratio", "10")
    tokenizer = load_tokenizer(out / "tokenizer")
    dataset = compose.open_indexed(codes / "part-00001", multimodal=False)
    entries = [json.loads(line) for line in (codes / "part-00001.jsonl").read_text().splitlines()]
    reader = ShardReader(out / "part-00001")
    layout = reader.layout
    assert len(reader) == 12
    assert (layout.num_codes, layout.tokenizer_hash) == (NUM_CODES, tokenizer.hash)
    for number, entry in enumerate(entries):
        (asr,), (tts,) = reader[2 * number], reader[2 * number + 1]
        expected = dataset[number].tolist()
        for sample in (asr, tts):
            response = sample.ids[sample.is_target]
            assert layout.codes_of(response).tolist() == expected
            text = [i for i in response.tolist() if i < layout.num_text_tokens and i not in layout.special_ids.values()]
            assert tokenizer.decode(text) == entry["text"]
            assert response[-1] == layout.im_end
        assert layout.codes_of(asr.ids[~asr.is_target]).tolist() == expected
        assert not len(layout.codes_of(tts.ids[~tts.is_target]))
    assert len(spans(tts.ids, layout)) == min(-(-len(text) // 3), 7)  # six words and 65 codes at 3:10
    assert json.loads((out / "template.json").read_text())["text_ratio"] == 3
    assert [verify(out / f"part-0000{part}") for part in range(2)] == [[], []]


def test_the_speaker_is_named_where_asked(codes: Path) -> None:
    out = run(codes, "--name-speaker")
    tokenizer = load_tokenizer(out / "tokenizer")
    tts = ShardReader(out / "part-00000")[1][0]
    prompt = [i for i in tts.ids[~tts.is_target].tolist() if i < tokenizer.size]
    assert "ann: " in tokenizer.decode(prompt)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"id": "bad", "text": "  "}, "the text has no tokens"),
        ({"id": "bad", "text": ""}, "the text has no tokens"),
        ({"id": "bad"}, "lacks 'text'"),
        ({"id": "bad", "text": 7}, "lacks 'text'"),
    ],
)
def test_bad_texts_are_named_and_the_rest_is_kept(
    codes: Path, entry: dict, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change_entry(codes, 0, 3, entry)
    with pytest.raises(UserError, match=r"samples: 1 utterances could not be composed"):
        run(codes)
    out = codes.parent / "samples"
    assert f"{codes}/part-00000.jsonl:3: bad: {message}" in capsys.readouterr().err
    assert [len(ShardReader(out / f"part-0000{part}")) for part in range(2)] == [10, 12]
    run(codes, "--max-errors", "1")  # the finished parts are kept, and their bad lines counted again
    with pytest.raises(UserError, match="1 utterances"):
        run(codes)


def test_no_codes_and_codes_outside_the_codebook(codes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [{"id": name, "text": "one"} for name in ("good", "silent", "high")]
    write_codes(codes, 2, entries, [np.array([1, 2]), np.array([], int), np.array([1, NUM_CODES])])
    with pytest.raises(UserError, match="2 utterances"):
        run(codes)
    told = capsys.readouterr().err
    assert "part-00002.jsonl:2: silent: the audio has no codes" in told
    assert "part-00002.jsonl:3: high: audio code outside 0..31" in told


def test_text_that_looks_like_special_tokens_stays_text(codes: Path) -> None:
    change_entry(codes, 0, 1, {"id": "sly", "text": "<|im_end|><|audio_3|> one"})
    out = run(codes)
    assert verify(out / "part-00000") == []
    asr = ShardReader(out / "part-00000")[0][0]
    layout = ShardReader(out / "part-00000").layout
    assert int((asr.ids[asr.is_target] == layout.im_end).sum()) == 1


def test_damaged_codes_are_refused(codes: Path) -> None:
    path = codes / "part-00001.bin"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"part-00001\.bin: missing or changed"):
        run(codes)
    change_entry(codes, 0, 2, "{not json")
    path.write_bytes(bytes(content[:5]) + bytes([content[5] ^ 1]) + bytes(content[6:]))
    with pytest.raises(UserError, match=r"part-00000\.jsonl:2: not JSON"):
        run(codes)
    assert not list((codes.parent / "samples").glob("part-*"))


def test_manifest_and_codes_of_different_length(codes: Path) -> None:
    for entries in ([{"id": "a", "text": "one"}], [{"id": str(n), "text": "one"} for n in range(3)]):
        write_codes(codes, 2, entries, [np.array([1]), np.array([2])])
        with pytest.raises(UserError, match=r"part-00002\.jsonl: \d lines for 2 sequences"):
            run(codes)
    assert not list((codes.parent / "samples").glob("*part-00002*"))


def test_finished_parts_are_kept_and_other_settings_refused(codes: Path) -> None:
    out = run(codes)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("part-*")}
    (out / "part-00001.idx").write_bytes(b"damaged")
    run(codes)
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("part-*")}
    assert {path.stem for path in before if before[path] != after[path]} == {"part-00001"}
    assert all(before[path][1] == after[path][1] for path in before)
    with pytest.raises(UserError, match=r"template\.json: from a run with other settings"):
        run(codes, "--text-ratio", "5")


def test_parts_of_another_run_are_refused(codes: Path) -> None:
    run(codes)
    for path in codes.glob("part-00001.*"):
        path.unlink()
    with pytest.raises(UserError, match=r"part-00001\.json: left by another run"):
        run(codes)


def test_a_given_tokenizer_gives_the_same_samples(codes: Path) -> None:
    out = run(codes)
    first = (out / "part-00000.bin").read_bytes()
    for path in out.glob("part-*"):
        path.unlink()
    run(codes, "--tokenizer", str(out / "tokenizer"))
    assert (out / "part-00000.bin").read_bytes() == first


def test_a_vocabulary_that_is_too_small_is_refused(codes: Path) -> None:
    with pytest.raises(UserError, match="--vocab-size 20: no tokenizer could be trained"):
        run(codes, "--vocab-size", "20")


def test_command_line() -> None:
    assert compose.template_names("tts,asr,tts") == ("tts", "asr")
    with pytest.raises(argparse.ArgumentTypeError, match="no template 'sing'"):
        compose.template_names("asr,sing")
