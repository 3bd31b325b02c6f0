"""Codecs, readers, tasks, judges and normalisers of one's own: a package outside ours, named on the command line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile

from data_prep.__main__ import main as data_prep
from tests.distributed.small_run import environment
from tests.evaluated import FEW, evaluate_here, line, make_workplace, read_lines, write_lines
from tests.tiny_model import RATE, noise
from ttt_dist.audio import describe_codec, load_codec, registry
from ttt_dist.util.errors import UserError
from ttt_dist.util.plugins import split_spec

pytestmark = pytest.mark.slow

CODEC = '''
"""Sixteen steps of loudness, 25 a second, and a hum that is as loud."""
import hashlib
import numpy as np
import torch
from ttt_dist.audio.codec import Codec

class Loudness(Codec):
    name, sample_rate, frame_rate, codebook_size = "loudness", 8000, 25.0, 16
    hash = hashlib.sha256(b"loudness 1").hexdigest()  # a new one wherever the codes change

    def encode(self, waves):
        padded = [torch.nn.functional.pad(wave, (0, -len(wave) % self.hop)) for wave in waves]
        loud = [wave.view(-1, self.hop).square().mean(dim=1).sqrt() for wave in padded]
        return [(30 * one).round().clamp(0, 15).numpy().astype(np.int32) for one in loud]

    def decode(self, codes):
        hum = torch.sin(torch.arange(self.hop) * 2 * torch.pi * 200 / self.sample_rate)
        return (torch.from_numpy(codes / 30).float()[:, None] * hum).flatten()

class Scaled(Loudness):
    name = "scaled"

    def __init__(self, folder, codebooks):
        self.folder, self.codes_per_frame = folder, codebooks
        self.hash = hashlib.sha256((folder / "scale").read_bytes() + bytes([codebooks])).hexdigest()

    @classmethod
    def load(cls, folder, codebooks=1):
        return cls(folder, codebooks)

class Unfinished(Codec):
    name = "unfinished"

class Wide(Loudness):
    def encode(self, waves):
        return [codes.astype(np.int64) for codes in super().encode(waves)]

class Short(Loudness):
    def encode(self, waves):
        return super().encode(waves)[1:]

class Loud(Loudness):
    def encode(self, waves):
        return [codes + np.int32(16) for codes in super().encode(waves)]
'''
READER = '''
"""NAME.wav, and beside it NAME.lab with its words."""
from data_prep.readers.common import add_duration, walk

def read_lab(options, problems):
    for path in walk(options.source, problems):
        if path.suffix == ".lab" and options.wants(path.parent.name, problems, str(path)):
            entry = {"id": path.stem, "audio": str(path.with_suffix(".wav")), "text": path.read_text().strip()}
            if add_duration(entry, problems, str(path)):
                yield entry

read_lab.takes = ("split",)

def read_nothing(options, problems):
    yield {"id": "a", "audio": str(options.source / "train" / "0.wav"), "text": "one"}
    raise KeyError("words")
'''
EVALUATION = '''
"""How long transcripts are, beside those that are wanted."""
from ttt_dist.evaluation.metrics.scores import Scored, mean
from ttt_dist.evaluation.tasks.item_adapters import transcript
from ttt_dist.evaluation.tasks.registry import Task
from ttt_dist.evaluation.tasks.transcription import GREEDY_TEXT

def run(context, items, item_errors):
    coded = context.encode_audio(items, item_errors)
    requests = item_errors.each(coded, lambda item, codes: context.request(item, item.entry, codes))
    results = context.generate(requests, item_errors.done(1.0), **GREEDY_TEXT)
    return [item.record() | {"wanted": len(item.entry["text"]), "got": len(result.text)} for item, result in results]

def score(records, normalisers):
    by = normalisers.names(records)
    return Scored(list(records), {"characters": mean(records, [record["got"] for record in records], by)})

LENGTH = Task(name="length", template="asr", prepare=transcript, run=run, score=score, version="1")
ASR = Task(name="asr", run=run, score=score)
PLAIN = Task(name="plain", template="asr", prepare=transcript, run=run, score=lambda records, normalisers: 0.5)
MIXED = Task(name="plain", template="asr", prepare=transcript, run=run, score=lambda *_: Scored([], {"characters": 0.5}))
BARE = Task(name="plain", template="asr", prepare=transcript, run=run, score=lambda *_: Scored([], 0.5))
NOTHING = Task(name="plain", template="asr", prepare=transcript, run=run, score=lambda *_: None)

def fold(text):
    return text.casefold().replace("one", "two")

class Deaf:
    sample_rate = 16000

    def __init__(self, says, device=None):
        self.name, self.says = f"deaf ({says})", says

    def transcribe(self, waves, langs, on_done=lambda: None):
        for _ in waves:
            on_done()
        return [self.says] * len(waves)
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a package outside ours, on PYTHONPATH."""
    folder = tmp_path / "own"
    (folder / "lab_extras").mkdir(parents=True)
    for name, source in (("codec", CODEC), ("reader", READER), ("evaluation", EVALUATION)):
        (folder / "lab_extras" / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "lab_extras"]:
        del sys.modules[name]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Recordings with their words beside them, in two splits."""
    for number, wave in enumerate(noise(seconds=0.4, count=4)):
        folder = tmp_path / "corpus" / ("test" if number == 3 else "train")
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{number}.wav", wave.numpy() * (1 + number), RATE)
        (folder / f"{number}.lab").write_text("one two\n")
    return tmp_path / "corpus"


@pytest.fixture
def manifest(own: Path, corpus: Path, tmp_path: Path) -> Path:
    out = tmp_path / "train.jsonl"
    data_prep(
        [
            *["manifest", "--reader", "lab_extras.reader:read_lab", "--split", "train", "--source"],
            str(corpus),
            "--out",
            str(out),
        ]
    )
    return out


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a.b:C", ("a.b:C", None)),
        ("a_1:C:/x y/z", ("a_1:C", "/x y/z")),
        ("a:C:", ("a:C", "")),
        ("mimi:/models/mimi", None),
        ("/models/mimi", None),
        ("a.:C", None),
        ("a:1", None),
        ("a", None),
    ],
)
def test_what_is_a_spec(text: str, wanted: tuple[str, str | None] | None) -> None:
    assert split_spec(text) == wanted


def test_a_reader_of_ones_own(manifest: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = read_lines(manifest)
    assert [(entry["id"], entry["audio"], entry["duration"]) for entry in found] == [
        (str(number), f"corpus/train/{number}.wav", 0.4) for number in range(3)
    ]
    report = json.loads(manifest.with_name("train.jsonl.report.json").read_text())
    assert "lab_extras.reader:read_lab" in report.values()
    words = ["manifest", "--source", str(corpus), "--out", str(tmp_path / "other.jsonl")]
    for more in (["--reader", "lab_extras.reader:read_lab", "--columns", "a=b"], ["--reader", "lab"]):
        with pytest.raises(SystemExit) as ended:
            data_prep([*words, *more])
        assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "--columns: is for reader captions, hf, table, webdataset, not lab_extras.reader:read_lab" in told
    assert "'lab' is none of aishell1, " in told
    for spec, says in {
        "lab_extras.reader:read_labs": r"module lab_extras.reader has no read_labs; did you mean read_lab\?",
        "lab_extra.reader:read_lab": "there is no module lab_extra; install its package, or put its folder on PYTHONPATH",
        "lab_extras.reader:__doc__": "is no function; write def read",
    }.items():
        with pytest.raises(UserError, match=f"--reader {spec}: {says}"):
            data_prep([*words, "--reader", spec])


def test_a_codec_of_ones_own_goes_the_whole_way(manifest: Path, own: Path, tmp_path: Path) -> None:
    """Encoded by two workers, composed, packed; what lies beside is enough to have it again, and says what is missing."""
    codes, samples, shards = (tmp_path / name for name in ("codes", "samples", "shards"))
    encode = ["encode", "--manifest", str(manifest), "--codec", "lab_extras.codec:Loudness", "--out", str(codes)]
    data_prep([*encode, "--part-size", "2", "--workers", "2"])
    data_prep([*encode, "--part-size", "2"])  # nothing is left to do
    part = json.loads((codes / "part-00000.json").read_text())
    assert part["codec"]["hash"] == part["made_from"]["codec_hash"] == describe_codec(codes / "codec").hash
    tokenizer = ["--train-tokenizer", "--vocab-size", "290"]
    data_prep(["compose", "--codes", str(codes), "--template", "asr,tts", *tokenizer, "--out", str(samples)])
    data_prep(["pack", "--samples", str(samples), "--seq-len", "512", "--out", str(shards / "train")])
    stored = json.loads((shards / "codec" / "codec.json").read_text())
    assert (stored["class"], stored["name"]) == ("lab_extras.codec:Loudness", "loudness")
    again = load_codec(shards / "codec")
    (wave,) = noise(0.4, 1)
    assert (again.decode(again.encode([wave])[0])[:4000].abs() <= 0.5).all()
    other = load_codec(f"lab_extras.codec:Loudness:{shards / 'codec'}")
    assert other.info == again.info == describe_codec(shards / "codec")
    sys.path.remove(str(own))
    for name in ("lab_extras.codec", "lab_extras"):
        del sys.modules[name]
    says = r"codec\.json: codec lab_extras\.codec:Loudness: there is no module lab_extras; install its package"
    with pytest.raises(UserError, match=says):
        load_codec(shards / "codec")


@pytest.mark.parametrize(
    ("name", "says"),
    [("Wide", r"gave int64 \[10\] for 3,200 samples; wanted is an array of int32 \[10\] in 0..15"),
     ("Short", "gave 2 arrays for 3 waveforms"),
     ("Loud", r"gave int32 \[10\] for 3,200 samples; wanted is an array of int32 \[10\] in 0..15")],
)  # fmt: skip
def test_codes_that_are_none_are_refused(name: str, says: str, manifest: Path, tmp_path: Path) -> None:
    """Whatever they are, the bytes would have been read as int32 afterwards."""
    codec = f"lab_extras.codec:{name}"
    with pytest.raises(UserError, match=f"codec loudness: encode {says}"):
        data_prep(["encode", "--manifest", str(manifest), "--codec", codec, "--out", str(tmp_path / "codes")])


def test_a_reader_that_fails_is_named_and_takes_no_flag_unasked(own: Path, corpus: Path, tmp_path: Path) -> None:
    words = ["manifest", "--source", str(corpus), "--out", str(tmp_path / "m.jsonl"), "--reader"]
    with pytest.raises(UserError, match=r"read_nothing: failed at what comes after 'a' \(KeyError: 'words'\)"):
        data_prep([*words, "lab_extras.reader:read_nothing"])
    with pytest.raises(SystemExit):
        data_prep([*words, "lab_extras.reader:read_nothing", "--split", "train"])
    data_prep([*words, "lab_extras.reader:read_lab", "--lang", "cy"])
    assert {entry["lang"] for entry in read_lines(tmp_path / "m.jsonl")} == {"cy"}


def test_a_codec_without_files_is_named_alone(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ships with us: its row says that it has no folder."""
    row = registry.CodecRow(target="lab_extras.codec:Loudness", help="as loud", has_folder=False)
    monkeypatch.setitem(registry.CODECS, "loudness", row)
    load_codec("loudness").save(tmp_path / "saved")
    assert load_codec(tmp_path / "saved").info == load_codec("loudness").info


def test_choices_of_a_codec_of_ones_own(own: Path, tmp_path: Path) -> None:
    (tmp_path / "scale").write_text("7")
    spec = f"lab_extras.codec:Scaled:{tmp_path}"
    load_codec(spec, codebooks=2).save(tmp_path / "saved")
    again = load_codec(tmp_path / "saved")
    assert again.codes_per_frame == 2
    with pytest.raises(UserError, match="saved with 2 codebooks, not 3"):
        load_codec(tmp_path / "saved", codebooks=3)
    (tmp_path / "scale").write_text("8")
    with pytest.raises(UserError, match="was saved of weights with hash"):
        load_codec(tmp_path / "saved")
    with pytest.raises(UserError, match="dtype float32: lab_extras.codec:Scaled has one precision"):
        load_codec(spec, dtype="float32")
    with pytest.raises(UserError, match="codec 'mimmi' is not known; known are bigcodec, .* of your own"):
        load_codec("mimmi:folder")
    for wrong, says in {
        "lab_extras.codec:Scaled": "missing a required argument: 'folder'",
        "lab_extras.codec:Unfinished": "lacks decode, encode; write what Codec asks for",
        "lab_extras.codec:hashlib": "is no subclass of ttt_dist.audio.codec.Codec",
    }.items():
        with pytest.raises(UserError, match=f"--codec {wrong}: .*{says}"):
            load_codec(wrong)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("own_evaluation"))


def evaluated(workplace: Path, out: Path, task: str, *words: str) -> dict[str, Any]:
    where = ["--model", str(workplace / "model"), "--data", str(workplace / "test.jsonl"), "--out", str(out)]
    evaluate_here([*where, "--task", task, *words, *FEW])
    (summary,) = out.glob("*_summary.json")
    return json.loads(summary.read_text())


def test_a_task_of_ones_own(own: Path, workplace: Path, tmp_path: Path) -> None:
    spec = "lab_extras.evaluation:LENGTH"
    summary = evaluated(workplace, tmp_path / "out", spec, "--part-size", "2", "--workers", "2")
    records = read_lines(tmp_path / "out" / "length.jsonl")
    assert (summary["task"], summary["items"]) == ("length", 4)
    assert summary["characters"] == pytest.approx(sum(record["got"] for record in records) / 4)
    assert "<th>wanted</th><th>got</th>" in (tmp_path / "out" / "length.html").read_text()
    made_from = json.loads((tmp_path / "out" / "parts" / "length" / "part-00000.json").read_text())["made_from"]
    assert (made_from["task"], made_from["task_version"]) == (spec, "1")
    path = own / "lab_extras" / "evaluation.py"
    path.write_text(path.read_text().replace('version="1"', 'version="two"'))
    del sys.modules["lab_extras.evaluation"]
    with pytest.raises(UserError, match=r"made with another task_version \(1, now two\)"):
        evaluated(workplace, tmp_path / "out", spec, "--part-size", "2")
    for wrong, says in {
        "ASR": "its name is 'asr'; choose another",
        "fold": "is no ttt_dist.evaluation.tasks.registry.Task",
    }.items():
        with pytest.raises(UserError, match=f"--task lab_extras.evaluation:{wrong}: {says}"):
            evaluated(workplace, tmp_path / "other", f"lab_extras.evaluation:{wrong}", "--template", "asr")


@pytest.mark.parametrize(
    ("name", "given"), [("PLAIN", "float"), ("MIXED", "float"), ("BARE", "float"), ("NOTHING", "NoneType")]
)
def test_a_task_whose_score_is_no_scored_is_named(
    own: Path, workplace: Path, tmp_path: Path, name: str, given: str
) -> None:
    with pytest.raises(UserError, match=rf"^--task plain: its score\(\) gives {given} .* return Scored\("):
        evaluated(workplace, tmp_path / "out", f"lab_extras.evaluation:{name}")
    assert not (tmp_path / "out" / "plain_summary.json").exists()


def test_a_judge_and_a_normaliser_of_ones_own(own: Path, workplace: Path, tmp_path: Path) -> None:
    """The judge always hears what is wanted once "one" is "two" as well."""
    fold = ["--normaliser", "lab_extras.evaluation:fold"]
    judges = ["--judge", "lab_extras.evaluation:Deaf:two two", "--judge", "model", "--no-ceiling"]
    summary = evaluated(workplace, tmp_path / "out", "tts", *judges, *fold)
    assert summary["scores"]["wer"] == {
        "value": 0.0, "interval_95": [0.0, 0.0], "by": "lab_extras.evaluation:fold", "items": 4
    }  # fmt: skip
    assert summary["judges"]["Deaf"]["judge"] == summary["judge"] == "deaf (two two)"
    plain = evaluated(workplace, tmp_path / "out", "tts", *judges)  # the same records
    assert plain["wer"] == 0.5
    with pytest.raises(UserError, match="--judge lab_extras.evaluation:Deaf: cannot be called so .*'says'"):
        evaluated(workplace, tmp_path / "other", "tts", "--judge", "lab_extras.evaluation:Deaf")
    with pytest.raises(UserError, match="--normaliser lab_extras.evaluation:LENGTH: is no function; write def fold"):
        evaluated(workplace, tmp_path / "other", "asr", "--normaliser", "lab_extras.evaluation:LENGTH")


def test_the_entry_points_find_them_on_pythonpath(own: Path, workplace: Path, tmp_path: Path) -> None:
    """As a user starts them: in a process of its own."""
    data = write_lines(workplace / "one.jsonl", [line(0)])
    where = ["--model", workplace / "model", "--data", data, "--out", tmp_path / "out"]
    command = ["ttt_dist/evaluate.py", *where, "--task", "lab_extras.evaluation:LENGTH", *FEW]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=root, env=environment() | {"PYTHONPATH": str(own)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["task"] == "length"
