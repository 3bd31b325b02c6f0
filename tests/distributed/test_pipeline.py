"""The whole way, small: recordings to shards, two processes of training, scores, speech and report, by the real commands."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.cases import ROOT

SMALL = [
    "prep.train_utterances=60",
    "prep.valid_utterances=8",
    "prep.test_utterances=6",
    "prep.codebook_size=32",
    "prep.seq_len=512",
    "model.hidden_size=32",
    "model.num_layers=2",
    "train.steps=4",
    "train.warmup=1",
    "train.eval_every=2",
    "evaluation.asr_utterances=4",
    "evaluation.tts_utterances=2",
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a pipeline over a few of the shipped recordings."""
    folder = tmp_path_factory.mktemp("pipeline")
    for path in (ROOT / "demo_speech").glob("*_alice_*.flac"):
        shutil.copy(path, folder)
    (folder / "hear.py").write_text(
        "import sys; open(sys.argv[2], 'w').write('1\\n' * len(open(sys.argv[1]).readlines()))"
    )
    judge = f"command:{shlex.join([sys.executable, str(folder / 'hear.py')])} {{wavs}} {{texts}}"
    command = [sys.executable, "tools/pipeline.py", "--config", "recipes/demo.yaml", "--source", str(folder)]
    command += ["--judge", judge]
    done = subprocess.run(
        [*command, "--out", str(folder / "run"), *SMALL], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder / "run" / "stdout.txt").write_text(done.stdout)
    return folder / "run"


def test_last_line_is_the_figures(out: Path) -> None:
    figures = json.loads((out / "stdout.txt").read_text().splitlines()[-1])
    assert {"wer", "tts_wer", "minutes", "report", "recordings_model", "ceiling_model"} <= set(figures)
    assert {"tts_wer_command", "recordings_command", "ceiling_command"} <= set(figures)
    references = [
        json.loads(line)["text"].split() for line in (out / "data" / "test.jsonl").read_text().splitlines()[:2]
    ]
    right = sum("one" in words for words in references)  # which the judge hears in everything, and writes as 1
    assert figures["ceiling_command"] == round(1 - right / sum(map(len, references)), 6)
    assert Path(figures["report"]).is_file()


def test_no_held_out_recording_is_trained_on(out: Path) -> None:
    def recordings(split: str) -> set[str]:
        lines = (out / "data" / f"{split}.jsonl").read_text().splitlines()
        return {Path(name).name for line in lines for name in json.loads(line)["audio"]}

    assert all("_9." in name for name in recordings("test") | recordings("valid"))
    assert recordings("train")
    assert not any("_9." in name for name in recordings("train"))


def test_report_is_self_contained(out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf8")
    for title in ("Loss", "Who sees whom", "Speech to text", "Own speech by judge", "Configuration"):
        assert f"<h2>{title}</h2>" in page
    assert "data:audio/wav;base64," in page
    assert not re.search(r"(src|href)=.(?!data:)[^'\"> ]*//", page)  # nothing is fetched when it is opened


def test_export_speaks_and_listens(out: Path) -> None:
    """generate.py: text to WAV and recording to text; after four steps the model may say nothing, and says so."""
    command = [sys.executable, "ttt_dist/generate.py", "--model", str(out / "export"), "--block", "8", "--steps", "2"]
    command += ["--max-text", "8", "--span-limit", "24"]
    speak = ["--prompt", "three one", "--speaker", "alice", "--out", str(out / "said.wav")]
    said = subprocess.run([*command, *speak], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (out / "said.wav").is_file() if said.returncode == 0 else "without speech" in said.stderr, said.stderr
    listen = ["--audio", str(ROOT / "demo_speech" / "one_alice_9.flac")]
    heard = subprocess.run([*command, *listen], cwd=ROOT, capture_output=True, text=True, check=False)
    assert heard.returncode == 0, heard.stderr
