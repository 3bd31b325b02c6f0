"""Judges hear what the network alone says: tiny recognisers with random weights, the model itself, and programs."""

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import (
    GenerationConfig,
    HubertConfig,
    HubertForCTC,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from ttt_dist.audio.codecs.melvq import MelVQ, MelVQSettings
from ttt_dist.config.decode import DecodeSettings
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.objective import Objective
from ttt_dist.evaluation import recognisers
from ttt_dist.evaluation.judge import Judge, ModelJudge, load_judge
from ttt_dist.evaluation.recognisers import Ctc, Recogniser, Whisper, pieces
from ttt_dist.inference.decoder import Decoder, Request
from ttt_dist.model.hf.folder import export_folder, load_folder
from ttt_dist.model.layers import LocalLayerFactory, RandomWeights
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.templates import ChatTemplate, TemplateSettings
from ttt_dist.sequence.text_tokenizer import train_sentencepiece
from ttt_dist.sequence.tokens import extend
from ttt_dist.util.errors import UserError

RATE = 16000
SPECIALS = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|zh|>"]
SPECIALS += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]


def noise(*seconds: float, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(int(RATE * length), generator=generator) * 0.1 for length in seconds]


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two languages, hears one second at a time."""
    folder = tmp_path_factory.mktemp("whisper")
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(["one two three four"] * 5, vocab_size=280, show_progress=False)
    (folder / "trained").mkdir()
    tokenizer = WhisperTokenizer(*trainer.save_model(str(folder / "trained")))
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS[1:]})
    ids = dict(zip(SPECIALS, tokenizer.convert_tokens_to_ids(SPECIALS), strict=True))
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "num_mel_bins": 80,
        "vocab_size": len(tokenizer),
    }
    start, end = ids["<|startoftranscript|>"], ids["<|endoftext|>"]
    tokens = {"decoder_start_token_id": start, "eos_token_id": end, "pad_token_id": end, "bos_token_id": end}
    lengths = {"max_source_positions": 50, "max_target_positions": 32}
    torch.manual_seed(1)
    model = WhisperForConditionalGeneration(WhisperConfig(**sizes, **heads, **tokens, **lengths, init_std=0.5))
    model.generation_config = GenerationConfig(
        **tokens,
        max_length=12,
        is_multilingual=True,
        lang_to_id={token: ids[token] for token in ("<|en|>", "<|zh|>")},
        task_to_id={task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
        no_timestamps_token_id=ids["<|notimestamps|>"],
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["wav2vec2", "hubert"])
def ctc(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "vocab.json").write_text(
        json.dumps({token: n for n, token in enumerate(["<pad>", "<unk>", "|", *"abc"])})
    )
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), bos_token=None, eos_token=None).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 6,
    }
    convolutions = {"conv_dim": (8, 8), "conv_stride": (20, 16), "conv_kernel": (40, 16), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "initializer_range": 2.0}
    config, network = (Wav2Vec2Config, Wav2Vec2ForCTC) if request.param == "wav2vec2" else (HubertConfig, HubertForCTC)
    torch.manual_seed(0)
    network(config(**sizes, **convolutions, **positions)).save_pretrained(folder)
    return folder


def judged(judge: Judge, waves: Sequence[Tensor], langs: Sequence[str | None]) -> list[str]:
    done: list[int] = []
    texts = judge.transcribe(waves, langs, lambda: done.append(1))
    assert len(done) == len(waves)
    return texts


def whisper_alone(folder: Path, wave: Tensor, lang: str, most: int = 12) -> str:
    """The likeliest tokens one after the other, at most `most`, each from a forward over all before it."""
    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = WhisperTokenizer.from_pretrained(folder)
    inputs = WhisperFeatureExtractor.from_pretrained(folder)(wave.numpy(), sampling_rate=RATE, return_tensors="pt")
    prompt = ["<|startoftranscript|>", f"<|{lang}|>", "<|transcribe|>", "<|notimestamps|>"]
    ids = tokenizer.convert_tokens_to_ids(prompt)
    while len(ids) < most + len(prompt) and ids[-1] != model.config.eos_token_id:
        with torch.no_grad():
            logits = model(inputs.input_features, decoder_input_ids=torch.tensor([ids])).logits
        ids.append(int(logits[0, -1].argmax()))
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_whisper_writes_what_the_network_says_in_the_language_of_the_item(whisper: Path) -> None:
    judge = Whisper(whisper)
    waves = noise(0.3, 0.9, 0.5, 1.0)
    langs = ["en", "zh-CN", "zh", "en-US"]
    alone = [whisper_alone(whisper, wave, lang[:2]) for wave, lang in zip(waves, langs, strict=True)]
    assert judged(judge, waves, langs) == alone
    assert len(set(alone)) == 4 and all(alone)
    assert alone[0] != whisper_alone(whisper, waves[0], "zh")


def test_whisper_stops_where_a_text_is_longer_than_anybody_says(whisper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop is cut by the sound's own length, whatever is heard beside it."""
    monkeypatch.setattr(recognisers, "TOKENS", 1)
    monkeypatch.setattr(recognisers, "TOKENS_PER_S", 4)
    judge, waves = Whisper(whisper), noise(0.25, 0.5, 1.0)
    cut = [whisper_alone(whisper, wave, "en", most) for wave, most in zip(waves, (2, 3, 5), strict=True)]
    assert judged(judge, waves, ["en"] * 3) == cut
    assert cut != [whisper_alone(whisper, wave, "en") for wave in waves]


def test_whisper_hears_the_language_where_none_is_told(whisper: Path) -> None:
    judge = Whisper(whisper)
    waves = noise(0.4, 0.8, 0.6)
    for wave, text in zip(waves, judged(judge, waves, [None, "tlh", None]), strict=True):
        assert text in {whisper_alone(whisper, wave, lang) for lang in ("en", "zh")}


def test_whisper_of_english_alone_is_told_no_language(whisper: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whisper, tmp_path / "english")
    settings = json.loads((folder / "generation_config.json").read_text())
    del settings["lang_to_id"], settings["task_to_id"]
    (folder / "generation_config.json").write_text(json.dumps(settings | {"is_multilingual": False}))
    assert judged(Whisper(folder), noise(0.5), ["en"]) != judged(Whisper(whisper), noise(0.5), ["en"])


def test_long_speech_is_heard_in_pieces(whisper: Path, ctc: Path) -> None:
    for judge in (Whisper(whisper), Ctc(ctc)):
        assert isinstance(judge, Recogniser)
        judge.longest = RATE
        (long, short) = noise(3.3, 0.5)
        parts = pieces(long, RATE, RATE // 10)
        assert len(parts) == 4 and torch.equal(torch.cat(parts), long)
        heard = judged(judge, parts, ["en"] * 4)
        assert judged(judge, [short, long], ["zh", "en"])[1] == " ".join(heard).strip()


def test_threads_hear_a_batch_each(whisper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, waves, together = Whisper(whisper), noise(0.3, 0.9, 0.5, 1.0), Barrier(2, timeout=60)
    alone = [judged(judge, [wave], ["en"])[0] for wave in waves]
    recognise = judge.recognise

    def two_at_once(batch: Sequence[Tensor], lang: str | None) -> list[str]:
        together.wait()
        return recognise(batch, lang)

    judge.batch_size = 1
    monkeypatch.setattr(judge, "recognise", two_at_once)
    monkeypatch.setattr(recognisers, "num_threads", lambda device: 2)
    assert judged(judge, waves, ["en"] * 4) == alone


def test_a_piece_ends_where_it_is_quiet() -> None:
    (wave,) = noise(1.5)
    wave[13_900:14_100] = 0
    first, second = pieces(wave, RATE, 200)
    assert 13_900 <= len(first) <= 14_100
    assert len(first) + len(second) == len(wave)
    assert [len(part) for part in pieces(torch.zeros(RATE), RATE, 200)] == [RATE]


def test_ctc_writes_the_likeliest_token_of_each_frame_once(ctc: Path) -> None:
    network = (Wav2Vec2ForCTC if "wav2vec2" in ctc.name else HubertForCTC).from_pretrained(ctc).eval()
    waves = noise(0.7, 0.2, 1.4, 0.001)
    texts = judged(Ctc(ctc), waves, [None] * 4)
    for wave, text in zip(waves[:3], texts, strict=False):
        values = ((wave - wave.mean()) / (wave.var(unbiased=False) + 1e-7).sqrt())[None]
        with torch.no_grad():
            frames = network(values).logits.argmax(-1)[0].tolist()
        kept = [frame for place, frame in enumerate(frames) if place == 0 or frame != frames[place - 1]]
        assert text.split() == "".join("\0\0 abc"[frame] for frame in kept).replace("\0", "").split()
    assert len(set(texts[:3])) == 3


def test_a_folder_that_is_not_whole_is_refused_in_one_line(whisper: Path, ctc: Path, tmp_path: Path) -> None:
    def refused(spec: str, *said: str) -> None:
        with pytest.raises(UserError) as caught:
            open_judge(spec)
        assert "\n" not in str(caught.value)
        assert all(words in str(caught.value) for words in said), caught.value

    def without(folder: Path, name: str) -> Path:
        copy = shutil.copytree(folder, tmp_path / f"{folder.name}-{name}")
        (copy / name).unlink()
        return copy

    refused(f"whisper:{tmp_path / 'none'}", "none/config.json: missing")
    refused(f"whisper:{ctc}", "holds a model of type", "wants one of whisper")
    refused(f"ctc:{whisper}", "holds a model of type 'whisper'", "wants one of", "hubert")
    for kind, folder in (("whisper", whisper), ("ctc", ctc)):
        refused(f"{kind}:{without(folder, 'model.safetensors')}", "model.safetensors: missing")
        refused(f"{kind}:{without(folder, 'preprocessor_config.json')}", "FeatureExtractor cannot be read")
    refused(f"ctc:{without(ctc, 'vocab.json')}", "Tokenizer cannot be read")
    refused(f"whisper:{without(whisper, 'tokenizer.json')}", "Tokenizer knows ", "tokens, the network")
    for spec in ("paraformer:x", "whisper", "ctc:", "model:x", "command:"):
        refused(spec, f"--judge {spec}: is no judge; write model, whisper:DIR")


def open_judge(spec: str) -> Judge:
    """Any but the model itself."""
    nothing: dict = dict.fromkeys(("decoder", "codec", "template"))
    return load_judge(spec, settings=DecodeSettings(), **nothing)


def program(path: Path, text: str) -> str:
    path.write_text(text)
    return shlex.join([sys.executable, str(path)])


def test_a_program_hears_one_file_at_a_time(tmp_path: Path) -> None:
    run = program(
        tmp_path / "hear it.py",
        "import sys, soundfile\nwave, rate = soundfile.read(sys.argv[1])\n"
        "open(sys.argv[2], 'w').write(f'{len(wave)} at\\n{rate}\\n')",
    )
    judge = open_judge(f"command:{run} {{wav}} {{text}}")
    assert judge.sample_rate == RATE
    assert judged(judge, noise(0.5, 0.25), [None, "en"]) == ["8000 at 16000", "4000 at 16000"]
    assert judged(judge, [], []) == []


def test_a_program_hears_all_files_at_once(tmp_path: Path) -> None:
    run = program(
        tmp_path / "hear.py",
        "import sys, soundfile\nlines = [str(soundfile.info(line.strip()).frames) for line in open(sys.argv[1])]\n"
        "lines[1] = ''\nopen(sys.argv[2], 'w').write('\\n'.join(lines) + '\\n')\nopen(__file__ + '.ran', 'a').write('x')",
    )
    judge = open_judge(f"command:{run} {{wavs}} {{texts}}")
    assert judged(judge, noise(0.5, 0.25, 0.1), [None] * 3) == ["8000", "", "1600"]
    assert judged(judge, [], []) == []
    assert (tmp_path / "hear.py.ran").read_text() == "x"


@pytest.mark.parametrize(
    ("names", "code", "said"),
    [
        ("{wav} {text}", "raise SystemExit('no ears')", "ended with status 1 (no ears)"),
        ("{wav} {text}", "", "wrote no text in UTF-8"),
        ("{wav} {text}", "import sys; open(sys.argv[2], 'wb').write(b'\\xff')", "wrote no text in UTF-8"),
        ("{wavs} {texts}", "import sys; open(sys.argv[2], 'w').write('one')", "wrote 1 lines of text for 2 of speech"),
    ],
)
def test_a_program_that_fails_is_named(names: str, code: str, said: str, tmp_path: Path) -> None:
    run = program(tmp_path / "hear.py", code)
    with pytest.raises(UserError) as caught:
        open_judge(f"command:{run} {names}").transcribe(noise(0.1, 0.1), [None, None])
    assert str(caught.value).startswith("--judge: ") and said in str(caught.value)
    with pytest.raises(UserError, match="--judge: lacks {text}; write it as 'command:python"):
        open_judge(f"command:{run} {{wav}}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model that is asked for a transcript in two languages."""
    folder = tmp_path_factory.mktemp("model")
    MelVQ.learn(noise(1.0), MelVQSettings(sample_rate=8000, codebook_size=16)).save(folder / "codec")
    tokenizer = train_sentencepiece(["one two three, write it down"] * 5, folder / "tokenizer", vocab_size=290)
    asr = [{"user": {"en": "write {audio}", "zh": "two {audio}"}}, {"assistant": "{text}"}]
    settings = TemplateSettings(templates=TemplateSettings().templates | {"asr": asr})
    (folder / "template.json").write_text(json.dumps(settings.to_dict()))
    layout = extend(tokenizer, 16)
    config = ModelConfig(hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, ffn_hidden_size=16, init_std=0.5)
    model = Transformer.for_layout(config, layout, LocalLayerFactory(RandomWeights(2)))
    export_folder(folder / "model", model.named_parameters(), config, layout, Objective(), folder)
    return folder / "model"


def test_the_model_hears_by_the_prompt_of_the_language(folder: Path) -> None:
    opened = load_folder(folder)
    template, codec = ChatTemplate(opened.tokenizer, opened.layout, opened.template), MelVQ.load(opened.codec)
    decoder, waves = Decoder(opened), noise(0.5, 0.25, 0.5)
    sampled = DecodeSettings(max_text=8, temperature=1.0, code_temperature=1.0)
    judge = load_judge("model", decoder, codec, template, sampled)
    assert isinstance(judge, ModelJudge) and judge.sample_rate == 8000
    greedy = DecodeSettings(max_text=8, stop_at_last_span=True)
    langs = ["en", "zh", None]
    prompts = [
        Request(template.prompt("asr", {"audio": "x", "lang": lang}, [np.asarray(codes)]))
        for lang, codes in zip(langs, codec.encode(waves), strict=True)
    ]
    wanted = [result.text for result in decoder.generate(prompts, greedy)]
    assert judged(judge, waves, langs) == wanted
    assert len(set(wanted)) == 3
