"""Composing: one sample per utterance and template, bad lines named by file and line, finished parts kept."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.commands import compose
from data_prep.jobs.codes_writer import PartWriter
from tests.megatron_files import indexed_dataset
from tests.structures import SHARED, needs_shared
from ttt_dist.data.shards import ShardReader
from ttt_dist.data.verify import verify
from ttt_dist.jobs.parts import describe_file, part_prefix, write_part
from ttt_dist.sequence.sample import spans
from ttt_dist.sequence.text_tokenizer import load_tokenizer, train_sentencepiece
from ttt_dist.util.errors import UserError

NUM_CODES = 32
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def write_codes(folder: Path, part: int, parts: int, entries: list[dict], codes: list[np.ndarray]) -> None:
    """A part as data_prep encode writes it."""
    with PartWriter(part_prefix(folder, part)) as writer:
        for number, one in enumerate(codes):
            writer.add(entries[number] if number < len(entries) else {}, [one.astype(np.int32)])
        counts = {"utterances": len(codes), "codes": sum(map(len, codes)), "seconds": 1.0}
        made = {
            "made_from": {},
            "manifest": {"name": "m"},
            "codec": {"name": "melvq"},
            "versions": {},
            "counts": counts,
            "problems": [],
        }
        writer.finish({**made, "part": part, "parts": parts})


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    """Two parts of six utterances."""
    folder = tmp_path / "codes"
    (folder / "codec").mkdir(parents=True)
    codec = {"name": "melvq", "hash": "0", "sample_rate": 8000, "frame_rate": 25.0, "codebook_size": NUM_CODES}
    (folder / "codec" / "codec.json").write_text(json.dumps(codec))
    rng = np.random.default_rng(0)
    for part in range(2):
        texts = [" ".join(rng.choice(WORDS, 1 + number)) for number in range(6)]
        entries = [{"id": f"u{part}{n}", "text": text, "speaker": "ann"} for n, text in enumerate(texts)]
        write_codes(folder, part, 2, entries, [rng.integers(0, NUM_CODES, 5 + 12 * n) for n in range(6)])
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


def given_tokenizer(codes: Path) -> Path:
    """A tokenizer trained on other texts."""
    folder = codes.parent / "tokenizer"
    train_sentencepiece(WORDS * 3, folder, 300)
    return folder


def change_entry(codes: Path, part: int, line: int, entry: dict | str) -> None:
    """Replace a line of a manifest, with its checksum."""
    prefix = part_prefix(codes, part)
    path = prefix.with_suffix(".jsonl")
    lines = path.read_text().splitlines()
    lines[line - 1] = entry if isinstance(entry, str) else json.dumps(entry)
    path.write_text("".join(one + "\n" for one in lines))
    meta = json.loads(prefix.with_suffix(".json").read_text())
    meta["files"][path.name] = describe_file(path)
    write_part(prefix, meta)


def test_samples_hold_what_was_said(codes: Path) -> None:
    out = run(codes, "--text-ratio", "3", "--audio-ratio", "10")
    tokenizer = load_tokenizer(out / "tokenizer")
    dataset = indexed_dataset().IndexedDataset(str(codes / "part-00001"))
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
    write_codes(codes, 1, 2, entries, [np.array([1, 2]), np.array([], int), np.array([1, NUM_CODES])])
    with pytest.raises(UserError, match="2 utterances"):
        run(codes)
    told = capsys.readouterr().err
    assert "part-00001.jsonl:2: silent: the audio has no codes" in told
    assert "part-00001.jsonl:3: high: audio code outside 0..31" in told


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
    with pytest.raises(UserError, match=r"part-00000\.jsonl:2: not JSON"):
        run(codes, "--tokenizer", str(codes.parent / "samples" / "tokenizer"))
    (codes / "part-00000.json").write_text("{}")
    with pytest.raises(UserError, match=r"codes/part-00000\.json: is damaged, its checksum differs"):
        run(codes)


def test_manifest_and_codes_of_different_length(codes: Path) -> None:
    path = codes / "part-00001.jsonl"
    for lines in (path.read_text().splitlines()[:-1], [*path.read_text().splitlines(), '{"text": "one"}']):
        path.write_text("".join(line + "\n" for line in lines))
        change_entry(codes, 1, 1, {"id": "a", "text": "one"})
        with pytest.raises(UserError, match=r"part-00001\.jsonl: \d lines for 6 utterances"):
            run(codes, "--template", "tts", "--tokenizer", str(given_tokenizer(codes)))
    assert not list((codes.parent / "samples").glob("*part-00001*"))


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
    out = run(codes)
    (out / "part-00002.json").write_text("{}")
    with pytest.raises(UserError, match=r"part-00002\.json: left by another run"):
        run(codes)
    (codes / "part-00000.json").unlink()
    with pytest.raises(UserError, match=r"part-00000\.json: missing, there are to be 2 parts"):
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


def test_templates_are_known_before_anything_is_done(codes: Path) -> None:
    assert compose.template_names("tts,asr,tts") == ("tts", "asr")
    with pytest.raises(UserError, match="no template 'sing'"):
        run(codes, "--template", "asr,sing")
    assert not (codes.parent / "samples").exists()


def test_copies_of_a_recording_are_left_out(codes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first of those with the same audio stays, in whichever part."""
    hashes = [f"{number:032x}" for number in (1, 2, 1, 3, 4, 5, 6, 2, 7, 7, 8, 9)]
    for number, value in enumerate(hashes):
        part, line = divmod(number, 6)
        change_entry(codes, part, line + 1, {"id": f"u{number}", "text": "one two", "audio_hash": value})
    out = run(codes, "--deduplicate", "--template", "asr", "--tokenizer", str(given_tokenizer(codes)))
    assert "9 samples" in (told := capsys.readouterr().out) and "3 copies of earlier recordings were left out" in told
    assert [len(ShardReader(out / f"part-0000{part}")) for part in range(2)] == [5, 4]
    run(codes, "--template", "asr", "--tokenizer", str(given_tokenizer(codes)))  # asked otherwise: made anew
    assert [len(ShardReader(out / f"part-0000{part}")) for part in range(2)] == [6, 6]


def test_other_templates_are_refused_where_samples_lie(codes: Path) -> None:
    out = run(codes, "--template", "asr", "--tokenizer", str(given_tokenizer(codes)))
    with pytest.raises(UserError, match=r"part-00000\.json: was made with other templates; remove its folder"):
        run(codes, "--template", "tts", "--tokenizer", str(given_tokenizer(codes)))
    assert len(ShardReader(out / "part-00000")) == 6


@needs_shared
def test_ids_of_the_released_checkpoints(codes: Path) -> None:
    with pytest.raises(UserError, match=r"--layout released has 16,384 audio codes, the codec 32"):
        run(codes, "--template", "asr", "--tokenizer", str(SHARED / "gpt2-bpe"), "--layout", "released")
    description = codes / "codec" / "codec.json"
    description.write_text(description.read_text().replace(f"{NUM_CODES}", "16384"))
    out = run(codes, "--template", "asr", "--tokenizer", str(SHARED / "gpt2-bpe"), "--layout", "released")
    layout = ShardReader(out / "part-00000").layout
    assert (layout.vocab_size, layout.first_code, layout.mask) == (168072, 151685, 168069)
    assert verify(out / "part-00000") == []


def test_a_learnt_tokenizer_knows_long_texts_and_all_that_templates_write(codes: Path, tmp_path: Path) -> None:
    """sentencepiece passes over a text above 4,192 bytes; {label} is no text of the entry, but of its sample."""
    path = part_prefix(codes, 0).with_suffix(".jsonl")
    entry = json.loads(path.read_text().splitlines()[0])
    change_entry(codes, 0, 1, entry | {"text": "wuxyzv qomsty " * 900, "label": "gigantic " * 99})
    out = run(codes, "--template", "classification,tts", "--max-errors", "99", "--vocab-size", "400")
    tokenizer = load_tokenizer(out / "tokenizer")
    assert [len(tokenizer.encode(word)) for word in ("wuxyzv", "qomsty")] == [1, 1]
    assert len(tokenizer.encode("gigantic")) <= 2
