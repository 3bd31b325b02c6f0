"""Codes that were computed elsewhere: each form is read as the codec's own codes, and what does not fit is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.__main__ import main
from data_prep.codes_sources import flat_codes, open_codes
from data_prep.jobs.compose import CodesPart
from ttt_dist.audio.codec import CodecInfo
from ttt_dist.audio.codecs.melvq import MelVQ, MelVQSettings
from ttt_dist.util.errors import UserError

ENTRIES = 40
CODES = {f"u{number}": [(number * 7 + place) % ENTRIES for place in range(25 * (number + 1))] for number in range(4)}
"""A code 25 times a second, for 1 to 4 seconds."""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A manifest of recordings that are not there, and a codec."""
    settings = MelVQSettings(sample_rate=8000, frame_rate=25, codebook_size=ENTRIES)
    MelVQ(settings, torch.rand(ENTRIES, 4, 40), torch.zeros(40)).save(tmp_path / "codec")
    lines = [
        {"id": name, "audio": f"wav/{name}.flac", "text": name, "duration": len(codes) / 25}
        for name, codes in CODES.items()
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def run(corpus: Path, codes: Path, *more: str) -> dict[str, Any]:
    """The part's JSON."""
    out = corpus / "codes"
    command = ["encode", "--manifest", str(corpus / "train.jsonl"), "--from-codes", str(codes), "--out", str(out)]
    main([*command, "--codec", str(corpus / "codec"), *more])
    meta: dict[str, Any] = json.loads((out / "part-00000.json").read_text())
    return meta


def stored(corpus: Path) -> dict[str, list[int]]:
    """What compose reads of the part."""
    prefix = corpus / "codes" / "part-00000"
    part = CodesPart(prefix, json.loads(prefix.with_suffix(".json").read_text()))
    part.check()
    return {entry["id"]: list(clips[0]) for _, entry, clips in part.utterances(refuse)}


def refuse(codes: np.ndarray) -> bytes:
    raise UserError("as they are")


def files(ending: str, write: Callable[[Path, list[int]], object]) -> Callable[[Path], Path]:
    """A folder of one file per utterance, where the recordings have their own."""

    def make(corpus: Path) -> Path:
        folder = corpus / "elsewhere" / "wav"
        folder.mkdir(parents=True)
        for name, codes in CODES.items():
            write(folder / f"{name}{ending}", codes)
        return folder.parent

    return make


def one_file(name: str, write: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(corpus: Path) -> Path:
        write(corpus / name)
        return corpus / name

    return make


def lines(of: Callable[[str, list[int]], str]) -> Callable[[Path], object]:
    reversed_order = list(CODES.items())[::-1]
    return lambda path: path.write_text("".join(of(*item) + "\n" for item in reversed_order), encoding="utf8")


FORMS = {
    "npy": files(".npy", lambda path, codes: np.save(path, np.array(codes, np.int16))),
    "npy with axes": files(".npy", lambda path, codes: np.save(path, np.array([[codes]]))),
    "npz": files(".npz", lambda path, codes: np.savez(path, codes=codes, rate=25)),
    "pt": files(".pt", lambda path, codes: torch.save(torch.tensor(codes), path)),
    "pt by name": files(".pt", lambda path, codes: torch.save({"codes": torch.tensor([codes])}, path)),
    "json": files(".json", lambda path, codes: path.write_text(json.dumps(codes))),
    "VITA-Audio": files("_melvq.json", lambda path, codes: path.write_text(json.dumps(codes))),
    "npz by id": one_file("all.npz", lambda path: np.savez(path, **{n: np.array(c) for n, c in CODES.items()})),
    "pt by id": one_file("all.pt", lambda path: torch.save({n: torch.tensor(c) for n, c in CODES.items()}, path)),
    "jsonl": one_file("all.jsonl", lines(lambda name, codes: json.dumps({"id": name, "tokens": codes}))),
    "Kaldi": one_file("pseudo_labels_km40.txt", lines(lambda name, codes: f"{name} {' '.join(map(str, codes))} ")),
    "Kaldi with tabs": one_file("text.km", lines(lambda name, codes: f"{name}\t{' '.join(map(str, codes))}")),
    "text": one_file("all.jsonl", lines(lambda n, codes: json.dumps({"id": n, "units": " ".join(map(str, codes))}))),
    "a list as text": one_file("all.jsonl", lines(lambda n, codes: json.dumps({"id": n, "units": str(codes)}))),
    "tokens": one_file(
        "all.jsonl", lines(lambda n, c: json.dumps({"id": n, "codes": "".join(f"<|audio_{code}|>" for code in c)}))
    ),
    "tokens in a list": one_file(
        "all.jsonl", lines(lambda n, codes: json.dumps({"id": n, "codes": [f"<audio_{code}>" for code in codes]}))
    ),
    "Kaldi with tokens": one_file("text.km", lines(lambda n, codes: f"{n} {' '.join(f'<{code}>' for code in codes)}")),
    "ESPnet's characters": one_file(
        "text.ts.km40", lines(lambda name, codes: f"{name} {''.join(chr(0x4E00 + code) for code in codes)}")
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_read_without_audio(corpus: Path, form: str) -> None:
    meta = run(corpus, FORMS[form](corpus))
    assert stored(corpus) == CODES
    assert meta["counts"] == {"utterances": 4, "codes": 250, "seconds": 10.0}
    assert not meta["notes"]
    assert not meta["problems"]


def test_files_by_id(corpus: Path) -> None:
    (corpus / "flat").mkdir()
    for name, codes in CODES.items():
        np.save(corpus / "flat" / f"{name}.npy", codes)
    run(corpus, corpus / "flat")
    assert stored(corpus) == CODES


def test_what_does_not_fit_is_named_and_costs_no_other(corpus: Path) -> None:
    wrong: dict[str, Any] = {"u0": [1, ENTRIES], "u1": [], "u2": [0.5] * 75}
    text = "".join(json.dumps({"id": n, "codes": wrong.get(n, c)}) + "\n" for n, c in CODES.items())
    (corpus / "all.jsonl").write_text(text)
    with (corpus / "train.jsonl").open("a") as file:
        file.write('{"id": "lost", "audio": "lost.wav", "text": "a"}\n')
        file.write('{"id": "two", "segments": [{"text": "a", "audio": "a.wav"}, {"text": "b", "audio": "b.wav"}]}\n')
    meta = run(corpus, corpus / "all.jsonl", "--max-errors", "9")
    assert list(stored(corpus)) == ["u3"]
    told = [problem.removeprefix(f"{corpus}/") for problem in meta["problems"]]
    assert told[0].startswith(f"train.jsonl:1: code {ENTRIES} is outside 0..{ENTRIES - 1} of melvq")
    assert told[1] == "train.jsonl:2: has no codes"
    assert told[2].startswith("train.jsonl:3: codes of type float64, not whole numbers")
    assert told[3].startswith("train.jsonl:5: no codes of id 'lost'")
    assert told[4].startswith("train.jsonl:6: has turns, segments or speech")


REMEDY = r"no whole number; write a list of numbers, the text `12 55 7`, or tokens such as <audio_12>"


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        ("12 x5 7", f"codes with 'x5', {REMEDY}"),
        ("<audio_1> <audio_2> hello", f"codes with '<audio_1>', {REMEDY}"),
        ("1.5 2", f"codes with '1.5', {REMEDY}"),
        (["3", "four"], f"codes with 'four', {REMEDY}"),
        ("9" * 5000, f"codes with '999.*, {REMEDY}"),
        ("1" + " " * 100_000 + "x", f"codes with 'x', {REMEDY}"),
        ("<a_1><b_2>", "codes as tokens of several names, '<a_1> and <b_2>'; give those of one"),
        (["1 2", "3"], "codes as texts of 1 to 2 codes each; give all codebooks as many"),
        ("", "has no codes"),
        ([], "has no codes"),
    ],
)
def test_texts_that_are_no_codes_are_named(codes: object, told: str, tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text(json.dumps({"id": "u", "codes": codes}))
    with pytest.raises(UserError, match=told):
        flat_codes(open_codes(path, "two", tmp_path).read({"id": "u"}), SEVERAL)


def test_a_text_for_each_codebook(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text(json.dumps({"id": "u", "codes": ["1 2 3 4", "4 5 6 7", "7 8 9 0"]}))
    assert flat_codes(open_codes(path, "two", tmp_path).read({"id": "u"}), SEVERAL).tolist() == [
        *(1, 14, 27), *(2, 15, 28), *(3, 16, 29), *(4, 17, 20)
    ]  # fmt: skip


def test_codes_of_another_rate_are_noted(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "".join(
        f"{name} {' '.join(map(str, codes[::2] if name != 'u2' else codes[:-1]))}\n" for name, codes in CODES.items()
    )
    (corpus / "text.rm").write_text(text)  # as ESPnet's, whose repetitions are gone
    [(reason, tally)] = run(corpus, corpus / "text.rm")["notes"].items()
    assert reason.startswith("its codes do not last as long as its duration says")
    assert tally["count"] == 3
    assert [place.rpartition(" ")[2] for place in tally["places"]] == ["u0", "u1", "u3"]
    assert reason in capsys.readouterr().err


def test_other_codes_are_not_continued(corpus: Path) -> None:
    run(corpus, FORMS["Kaldi"](corpus))
    before = (corpus / "codes/part-00000.json").stat().st_mtime_ns
    run(corpus, FORMS["Kaldi"](corpus))
    assert (corpus / "codes/part-00000.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="was made from another manifest, codec or --from-codes"):
        run(corpus, FORMS["npy"](corpus))


def test_nothing_is_unpickled_and_nothing_above_the_folder_is_read(corpus: Path) -> None:
    folder = FORMS["npy"](corpus)
    np.save(folder / "wav/u0.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    torch.save(torch.nn.Linear(1, 1), folder / "wav/u1.pt")
    (folder / "wav/u1.npy").unlink()
    (folder / "wav/u2.npy").write_bytes(b"")
    np.save(corpus / "above.npy", CODES["u0"])
    with (corpus / "train.jsonl").open("a") as file:
        file.write('{"id": "../above", "audio": "../above.wav", "text": "a"}\n')
    meta = run(corpus, folder, "--max-errors", "9")
    assert list(stored(corpus)) == ["u3"]
    told = "\n".join(meta["problems"])
    assert "u0.npy: cannot be read (ValueError: Object arrays cannot be loaded" in told
    assert "u1.pt: cannot be read (UnpicklingError" in told
    assert "u2.npy: cannot be read (EOFError" in told
    assert "no codes in" in meta["problems"][3]


def test_ids_twice_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a 1 2\nb 3\na 4\n")
    with pytest.raises(UserError, match="has the id 'a' twice"):
        open_codes(tmp_path / "text", "any", tmp_path)


SEVERAL = CodecInfo(name="rvq", hash="", sample_rate=8000, frame_rate=25, codes_per_frame=3, codebook_size=30)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 40])
def test_codebooks_in_any_arrangement(num_frames: int) -> None:
    raw = np.random.default_rng(0).integers(0, 10, (3, num_frames))
    offsets = np.array([[0], [10], [20]])
    wanted = (raw + offsets).T.reshape(-1).tolist()
    more = np.concatenate([raw, np.full((2, num_frames), 9)])
    forms = [raw, raw[None], raw + offsets, raw.T.reshape(-1), np.array(wanted)]
    if num_frames != 3:
        forms.append(raw.T)
    if num_frames > 5:
        forms += [more, more.T]
    for codes in forms:
        assert flat_codes(codes, SEVERAL).tolist() == wanted


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((2, 40)), r"shape \[2, 40\], which has no axis of 3 codebooks"),
        (np.zeros((40, 2)), r"shape \[40, 2\], which has no axis"),
        (np.zeros(40), r"shape \[40\], where rvq has 3 to a frame"),
        (np.zeros((2, 3, 40)), r"shape \[2, 3, 40\]"),
        (np.full((3, 40), 10), r"code 10 is outside 0\.\.9 of rvq"),
        (np.full((3, 40), -1), r"code -1 is outside"),
        (np.zeros((3, 0)), "has no codes"),
    ],
)
def test_arrangements_that_do_not_fit(codes: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        flat_codes(codes.astype(np.int64), SEVERAL)
