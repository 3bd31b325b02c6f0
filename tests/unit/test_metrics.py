"""Error rates against values worked by hand, and the evaluation command from manifest to summary."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ttt_dist import evaluate, generate
from ttt_dist.audio import load_codec
from ttt_dist.audio.melvq import MelVQ, MelVQSettings
from ttt_dist.audio.whisper_vq import FIXED, WhisperVQ, WhisperVQConfig
from ttt_dist.config import ModelConfig
from ttt_dist.errors import UserError
from ttt_dist.evaluation.metrics import Counts, Score, normalise, word_counts
from ttt_dist.inference.decoder import Decoder
from ttt_dist.model.huggingface import export_folder
from ttt_dist.model.layers import PlainFactory, RandomWeights
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.objective import Objective
from ttt_dist.sequence.templates import TemplateSettings
from ttt_dist.sequence.text_tokenizer import train_sentencepiece
from ttt_dist.sequence.tokens import extend

BY_HAND = [
    # reference, hypothesis, words (hits, substitutions, deletions, insertions), WER, characters, CER
    ("three one four", "three one four", (3, 0, 0, 0), 0.0, (14, 0, 0, 0), 0.0),
    ("Three, one: four!", "three one four", (3, 0, 0, 0), 0.0, (14, 0, 0, 0), 0.0),
    ("three one four", "three nine", (1, 1, 1, 0), 2 / 3, None, None),
    ("one", "one two one", (1, 0, 0, 2), 2.0, (3, 0, 0, 8), 8 / 3),
    ("one two", "", (0, 0, 2, 0), 1.0, (0, 0, 7, 0), 1.0),
    ("", "one two", (0, 0, 0, 2), None, (0, 0, 0, 7), None),
    ("", "", (0, 0, 0, 0), 0.0, (0, 0, 0, 0), 0.0),
    ("don't", "dont", (0, 1, 0, 0), 1.0, (4, 0, 1, 0), 0.2),
]


@pytest.mark.parametrize("case", BY_HAND, ids=lambda case: f"{case[0]!r} {case[1]!r}")
def test_rates_by_hand(case: tuple) -> None:
    reference, hypothesis, words, wer, characters, cer = case
    score = Score.of(reference, hypothesis)
    assert score.words == Counts(*words)
    assert score.words.rate == wer
    if characters is not None:
        assert score.characters == Counts(*characters)
        assert score.characters.rate == cer


def edit_distance(a: list[str], b: list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        previous, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]


WORDS = st.lists(st.sampled_from(["one", "two", "six"]), max_size=7)


@given(WORDS, WORDS)
def test_counts_are_a_shortest_edit(reference: list[str], hypothesis: list[str]) -> None:
    counts = word_counts(" ".join(reference), " ".join(hypothesis))
    assert counts.substitutions + counts.deletions + counts.insertions == edit_distance(reference, hypothesis)
    assert counts.length == len(reference)
    assert counts.hits + counts.substitutions + counts.insertions == len(hypothesis)


def test_a_corpus_rate_is_that_of_the_sums() -> None:
    total = Score.of("one two three", "one") + Score.of("", "four") + Score.of("five", "five")
    assert total.words == Counts(hits=2, deletions=2, insertions=1)
    assert total.words.rate == 3 / 4
    assert total.to_dict()["wer"] == 0.75


def test_normalised_text() -> None:
    assert normalise("  It's  TWENTY-one,\t'ok' 中文。") == "it's twenty one ok 中文"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model with codec and tokenizer, and recordings of noise with a manifest."""
    folder = tmp_path_factory.mktemp("evaluation")
    generator = torch.Generator().manual_seed(0)
    waves = [torch.randn(8000, generator=generator) * 0.1 for _ in range(4)]
    MelVQ.learn(waves, MelVQSettings(sample_rate=8000, codebook_size=16)).save(folder / "codec")
    tokenizer = train_sentencepiece(["zero one two three four five"] * 5, folder / "tokenizer", vocab_size=290)
    (folder / "template.json").write_text(json.dumps(TemplateSettings(name_speaker=True).to_dict()))
    layout = extend(tokenizer, 16)
    config = ModelConfig(hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, ffn_hidden_size=16, init_std=0.3)
    model = Transformer.for_layout(config, layout, PlainFactory(RandomWeights(2)))
    with torch.no_grad():  # all states share a direction, which says: open a span
        model.embed.weight += 3.0
        model.head.weight[layout.begin_of_quad] = 1.0
    export_folder(folder / "model", model.named_parameters(), config, layout, Objective(), folder)
    lines = []
    for number, wave in enumerate(waves):
        soundfile.write(folder / f"{number}.wav", wave.numpy(), 8000)
        lines.append({"id": f"u/{number}", "audio": f"{number}.wav", "text": "one two", "speaker": "ann"})
    (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def command(monkeypatch: pytest.MonkeyPatch, module, *words: object) -> None:  # noqa: ANN001
    path = list(sys.path)
    monkeypatch.setattr(
        sys, "argv", [module.__name__, *map(str, words), "--max-text", "6", "--span-limit", "12", "--steps", "2"]
    )
    module.main()
    sys.path[:] = path


def test_asr_from_manifest_to_summary(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = workplace / "test.jsonl"
    command(monkeypatch, evaluate, "--model", workplace / "model", "--task", "asr", "--data", data, "--out", tmp_path)
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    records = [json.loads(line) for line in (tmp_path / "asr.jsonl").read_text().splitlines()]
    assert json.loads((tmp_path / "asr_summary.json").read_text()) == summary
    assert [record["id"] for record in records] == [f"u/{n}" for n in range(4)]
    assert (summary["utterances"], summary["errors"], summary["words"]["deletions"] <= 8) == (4, 0, True)
    edits = sum(record["words"][kind] for record in records for kind in ("substitutions", "deletions", "insertions"))
    assert summary["wer"] == edits / 8


def test_tts_writes_speech_and_transcribes_it(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = workplace / "test.jsonl"
    arguments = ["--model", workplace / "model", "--task", "tts", "--data", data, "--limit", 3, "--code-temperature", 1]
    outputs = []
    for out in (tmp_path / "a", tmp_path / "b"):
        command(monkeypatch, evaluate, *arguments, "--out", out)
        outputs.append((out / "tts.jsonl").read_text())
    assert outputs[0] == outputs[1]
    records = [json.loads(line) for line in outputs[0].splitlines()]
    assert len(records) == 3
    spoken = [record for record in records if record["wav"]]
    assert spoken
    for record in spoken:
        info = soundfile.info(tmp_path / "a" / record["wav"])
        assert (info.samplerate, info.frames) == (8000, record["codes"] * 320)


def test_what_cannot_be_used_is_named_counted_and_left_out(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (workplace / "test.jsonl").read_text().splitlines()
    (workplace / "empty.wav").write_bytes(b"")
    bad = [
        "not json",
        json.dumps({"id": "no text", "audio": "0.wav"}),
        json.dumps({"id": "no audio", "text": "one"}),
        json.dumps({"id": "missing", "audio": "none.wav", "text": "one"}),
        json.dumps({"id": "empty", "audio": "empty.wav", "text": "one"}),
        json.dumps({"id": "outside", "audio": "/etc/hostname", "text": "one"}),
    ]
    data = workplace / "broken.jsonl"
    data.write_text("\n".join([good[0], *bad, good[1]]) + "\n")
    arguments = ["--model", workplace / "model", "--task", "asr", "--data", data, "--out", tmp_path]
    with pytest.raises(UserError, match="6 line"):
        command(monkeypatch, evaluate, *arguments)
    printed = capsys.readouterr()
    summary = json.loads(printed.out.splitlines()[-1])
    assert (summary["utterances"], summary["errors"]) == (2, 6)
    for line in range(2, 8):
        assert f"broken.jsonl:{line}: " in printed.err
    command(monkeypatch, evaluate, *arguments, "--max-errors", 6)


def test_generate_speaks_and_transcribes(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = ["--model", workplace / "model"], tmp_path / "folder" / "out.wav"
    command(monkeypatch, generate, *model, "--prompt", "two", "--speaker", "ann", "--out", out)
    assert soundfile.info(out).frames > 0
    assert str(out) in capsys.readouterr().out
    command(monkeypatch, generate, *model, "--audio", out)
    assert capsys.readouterr().out.count("\n") == 1
    with pytest.raises(UserError, match=r"none\.wav"):
        command(monkeypatch, generate, *model, "--audio", tmp_path / "none.wav")
    with pytest.raises(UserError, match="no such model folder"):
        command(monkeypatch, generate, "--model", tmp_path / "none", "--prompt", "two")


def test_an_empty_prompt_is_refused(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no tokens"):
        command(monkeypatch, generate, "--model", workplace / "model", "--prompt", " ")


def test_codes_survive_the_way_through_a_wav(workplace: Path) -> None:
    """What the judge hears is the speech that was generated: codes to waveform to codes stays mostly in place."""
    codec = MelVQ.load(workplace / "codec")
    codes = np.random.default_rng(0).integers(0, 16, 40).astype(np.int32)
    (again,) = codec.encode([codec.decode(codes)])
    assert len(again) == len(codes)


@pytest.fixture(scope="module")
def mute(workplace: Path) -> Path:
    """The model with a codec of as many codes that has no decoder: a tiny glm4voice."""
    sizes = {"d_model": 16, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "num_mel_bins": 20}
    blocks = {"max_source_positions": 600, "quantize_causal_block_size": 200, "pooling_kernel_size": 4}
    values = FIXED | sizes | blocks | {"pooling_position": 1, "quantize_position": 1, "quantize_vocab_size": 16}
    weights, model = workplace / "glm", workplace / "mute"
    weights.mkdir()
    (weights / "config.json").write_text(json.dumps(values))
    torch.manual_seed(0)
    network = WhisperVQ(WhisperVQConfig.read(values, weights / "config.json"))
    save_file(network.state_dict(), weights / "model.safetensors")
    shutil.copytree(workplace / "model", model)
    shutil.rmtree(model / "codec")
    load_codec(f"glm4voice:{weights}").save(model / "codec")
    return model


def test_speech_is_refused_before_it_is_generated(
    workplace: Path, mute: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("something was generated")

    monkeypatch.setattr(Decoder, "generate", never)
    evaluation = ["--task", "tts", "--data", workplace / "test.jsonl", "--out", tmp_path / "results"]
    for module, words in ((generate, ["--prompt", "two", "--out", tmp_path / "out.wav"]), (evaluate, evaluation)):
        with pytest.raises(UserError, match="glm4voice: .*give --decoder-command") as caught:
            command(monkeypatch, module, "--model", mute, *words)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_command_speaks_for_a_codec_without_decoder(
    workplace: Path, mute: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import json, sys, soundfile; n = len(json.load(open(sys.argv[1])))\n"
    (tmp_path / "decode.py").write_text(f"{program}soundfile.write(sys.argv[2], [0.1] * (1920 * n), 24000)")
    decode = f"{shlex.join([sys.executable, str(tmp_path / 'decode.py')])} {{codes}} {{wav}}"
    data = ["--model", mute, "--data", workplace / "test.jsonl", "--limit", 2, "--out", tmp_path]
    command(monkeypatch, evaluate, *data, "--task", "tts", "--decoder-command", decode)
    summary = json.loads((tmp_path / "tts_summary.json").read_text())
    assert (summary["utterances"], summary["decoder_command"]) == (2, decode)
    records = [json.loads(line) for line in (tmp_path / "tts.jsonl").read_text().splitlines()]
    assert any(record["wav"] for record in records)
    for record in records:
        if record["wav"]:
            info = soundfile.info(tmp_path / record["wav"])
            assert (info.samplerate, info.frames) == (16000, 1280 * record["codes"])
    with pytest.raises(SystemExit):
        command(monkeypatch, evaluate, *data, "--task", "asr", "--decoder-command", decode)
    command(monkeypatch, evaluate, *data, "--task", "asr")  # transcribing takes no decoder
