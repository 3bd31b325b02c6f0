"""A codec by a program of the user's, both ways: the example's codes, what is said of a program that fails."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from data_prep.__main__ import main as data_prep
from tests.unit.test_packaged_codecs import sound
from ttt_dist.audio import describe_codec, load_codec, write_wav
from ttt_dist.audio.codecs import command as module
from ttt_dist.audio.codecs.command import CommandCodec
from ttt_dist.util.errors import UserError

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "codec_program.py"
LOUDNESS = shlex.join([sys.executable, str(EXAMPLE)])
ABOUT = {"name": "x", "hash": "1", "sample_rate": 8000, "frame_rate": 25, "codes_per_frame": 1, "codebook_size": 16}


def program(tmp_path: Path, *answers: object, ends: str = "") -> str:
    """A program that says these lines, each but the first when it is asked something."""
    lines = [answer if isinstance(answer, str) else json.dumps(answer) for answer in answers]
    text = f"import sys\nfor line in {lines!r}:\n    print(line, flush=True)\n    sys.stdin.readline()\n{ends}"
    (tmp_path / "program.py").write_text(text)
    return f"command:{shlex.join([sys.executable, str(tmp_path / 'program.py')])}"


def loud_steps(wave: Tensor) -> list[int]:
    frames = torch.nn.functional.pad(wave, (0, -len(wave) % 320)).view(-1, 320)
    return (30 * frames.square().mean(dim=1).sqrt()).round().clamp(0, 15).int().tolist()


def test_codes_and_speech_of_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PER_REQUEST", 2)
    codec = load_codec(f"command:{LOUDNESS}")
    assert isinstance(codec, CommandCodec) and codec.program is not None
    assert (codec.sample_rate, codec.hop, codec.codebook_size) == (8000, 320, 16)
    waves = [sound(length, seed) for seed, length in enumerate((3200, 0, 1, 321, 16000))]
    found = codec.encode(waves)
    assert [one.tolist() for one in found] == [loud_steps(wave) for wave in waves]
    assert all(one.dtype == np.int32 for one in found) and len(set(found[4].tolist())) > 4
    spoken = codec.decode(found[0])
    assert spoken.shape == (3200,)
    assert float(spoken[:320].abs().max()) == pytest.approx(found[0][0] / 30, abs=0.01)
    assert len(codec.decode(found[1])) == 0
    process = codec.program.process
    assert process.poll() is None  # the same one all the time
    del codec
    assert process.poll() == 0


def test_a_saved_one_needs_its_program_to_hear_and_speak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(module.VARIABLE, raising=False)
    codec = load_codec(f"command:{LOUDNESS}")
    codec.save(tmp_path)
    assert "python" not in (tmp_path / "codec.json").read_text()
    assert describe_codec(tmp_path) == codec.info
    closed = load_codec(tmp_path)
    assert closed.info == codec.info and closed.describe() == codec.describe()
    for use in (
        closed.require_decoder,
        lambda: closed.encode([sound(9)]),
        lambda: closed.decode(np.zeros(2, np.int32)),
    ):
        with pytest.raises(UserError, match="program of loudness is not known here; set TTT_CODEC_COMMAND to what"):
            use()
    monkeypatch.setenv(module.VARIABLE, LOUDNESS)
    opened = load_codec(tmp_path)
    opened.require_decoder()
    assert opened.encode([sound(3200)])[0].tolist() == loud_steps(sound(3200))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "codec.json").write_text('{"name": "command", "hash": "1"}')
    other = program(tmp_path, {**ABOUT, "hash": "2"}).removeprefix("command:")
    monkeypatch.setenv(module.VARIABLE, other)
    with pytest.raises(UserError, match="was saved with hash .* take the package that made it"):
        load_codec(tmp_path)
    monkeypatch.delenv(module.VARIABLE)
    with pytest.raises(UserError, match=r"codec\.json: does not say what the codec is"):
        load_codec(tmp_path / "damaged")


def test_a_command_that_speaks_alone_goes_with_a_closed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(module.VARIABLE, raising=False)
    load_codec(f"command:{LOUDNESS}").save(tmp_path)
    (tmp_path / "speak.py").write_text("import sys, soundfile; soundfile.write(sys.argv[2], [0.5] * 640, 8000)")
    speak = f"{shlex.quote(sys.executable)} {tmp_path / 'speak.py'} {{codes}} {{wav}}"
    codec = load_codec(tmp_path, decoder_command=speak)
    codec.require_decoder()
    assert float(codec.decode(np.zeros(2, np.int32)).mean()) == pytest.approx(0.5, abs=1e-3)


def test_encode_through_the_command(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", sound(16000), 16000)
    (tmp_path / "m.jsonl").write_text(json.dumps({"id": "a", "audio": "a.wav", "text": "a", "duration": 1.0}) + "\n")
    words = ["encode", "--manifest", str(tmp_path / "m.jsonl"), "--out", str(tmp_path / "codes")]
    data_prep([*words, "--codec", f"command:{LOUDNESS}"])
    assert describe_codec(tmp_path / "codes" / "codec").codebook_size == 16
    with pytest.raises(UserError, match="codebooks 2: command has one codebook"):
        data_prep([*words, "--codec", f"command:{LOUDNESS}", "--codebooks", "2"])


@pytest.mark.parametrize(
    ("answers", "ends", "says"),
    [
        ([ABOUT, {"error": "no GPU"}], "", "no GPU; run it by hand"),
        ([ABOUT], "sys.exit('one\\nout of memory')", r"ended with status 1 \(out of memory\)"),
        ([ABOUT], "import os; os._exit(3)", r"ended with status 3 \(without a message\)"),
        ([ABOUT, "loading ..."], "", "wrote 'loading ...', no JSON; let it print to stderr"),
        ([ABOUT, [1]], "", "no JSON object"),
        ([ABOUT, {}], "", "gave codes that are no lists of whole numbers"),
        ([ABOUT, {"codes": [["a"]]}], "", "gave codes that are no lists of whole numbers"),
        ([ABOUT, {"codes": [[2**40]]}], "", "gave codes that are no lists of whole numbers"),
        (
            [ABOUT, {"codes": [[1, 2]]}],
            "",
            r"encode gave int32 \[2\] for 320 samples; wanted is an array of int32 \[1\]",
        ),
        ([ABOUT, {"codes": [[16]]}], "", r"in 0\.\.15"),
        ([ABOUT, {"codes": []}], "", "gave 0 arrays for 1 waveforms"),
    ],
)
def test_programs_that_fail(tmp_path: Path, answers: list[object], ends: str, says: str) -> None:
    codec = load_codec(program(tmp_path, *answers, ends=ends))
    with pytest.raises(UserError, match=says) as caught:
        codec.encode([sound(320)])
    assert "\n" not in str(caught.value)


def test_a_program_that_does_not_speak(tmp_path: Path) -> None:
    codec = load_codec(program(tmp_path, ABOUT, {}))
    with pytest.raises(UserError, match="wrote no speech to the path"):
        codec.decode(np.zeros(3, np.int32))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("sample_rate", 0, "says sample_rate 0"),
        ("codebook_size", 2.5, "says codebook_size 2.5"),
        ("codes_per_frame", True, "says codes_per_frame True"),
        ("frame_rate", None, "says frame_rate None"),
        ("frame_rate", float("nan"), "says frame_rate nan"),
        ("hash", "", "says hash ''; wanted is a text that changes with the weights"),
        ("name", 3, "says name 3"),
    ],
)
def test_programs_that_do_not_say_what_they_are(tmp_path: Path, key: str, value: object, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_codec(program(tmp_path, {**ABOUT, key: value}))


@pytest.mark.parametrize(
    ("command", "says"),
    [("", "names no program"), ("no-such-program-here", "cannot be run"), ("python 'x", "close the quotes")],
)
def test_commands_that_cannot_be(command: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_codec(f"command:{command}")
    with pytest.raises(UserError, match="names no program"):
        load_codec("command")


def test_no_shell_takes_part(tmp_path: Path) -> None:
    load_codec(f"command:{LOUDNESS} ; touch {tmp_path / 'touched'}")
    assert not (tmp_path / "touched").exists()


def test_the_example_lets_libraries_print(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(EXAMPLE.parent)!r})\nfrom codec_program import Loudness, serve\n"
        "def make():\n    print('weights loaded')\n    return Loudness()\nserve(make)"
    )
    done = subprocess.run([sys.executable, "-c", code], input="", capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["name"] == "loudness" and "weights loaded" in done.stderr
