"""`model.generate` of transformers with an export's custom_generate: the tokens of our decoder, on the weights that are loaded."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

from tests.tiny_model import CODES, make_parts, noise
from tests.unit.test_huggingface import VARIANTS
from ttt_dist.config.decode import DecodeSettings, folder_settings
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.objective import Objective
from ttt_dist.inference.custom_generate import TextToTalkOutput
from ttt_dist.inference.decoder import Decoder, Request
from ttt_dist.inference.detokenizer import Finished, SpanDone, TextPiece
from ttt_dist.model.hf.families import read_model_config
from ttt_dist.model.hf.folder import export_folder, load_folder
from ttt_dist.model.hf.shared_weights import transformer_on
from ttt_dist.model.layers import LocalLayerFactory, RandomWeights
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.templates import ChatTemplate
from ttt_dist.sequence.text_tokenizer import load_tokenizer
from ttt_dist.sequence.tokens import extend
from ttt_dist.util.errors import UserError

FEW = {"max_text": 14, "span_limit": 13, "block": 6, "steps": 3}
DECODING = DecodeSettings(remasking="margin", **FEW)
TEXTS = ["one two", "three four five"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("custom_generate")
    make_parts(folder, noise(seconds=0.5, count=2), "zero one two three four five", vocab_size=290)
    return folder


def export(parts: Path, name: str, config: ModelConfig) -> Path:
    """A model of random weights that writes some text and opens spans."""
    folder, layout = parts / name, extend(load_tokenizer(parts / "tokenizer"), CODES)
    if not folder.exists():
        config = dataclasses.replace(config, init_std=0.4)
        model = Transformer.for_layout(config, layout, LocalLayerFactory(RandomWeights(2)))
        with torch.no_grad():
            model.head.weight[layout.begin_of_audio] *= 4
            model.head.weight[layout.begin_of_quad] = -model.head.weight[layout.begin_of_audio]  # one of them is likely
        export_folder(
            folder, model.named_parameters(), config, layout, Objective(audio_ar=0.3), parts, decoding=DECODING
        )
    return folder


@pytest.fixture(scope="module")
def folder(parts: Path) -> Path:
    return export(parts, "gqa", VARIANTS["gqa"])


def prompts_of(folder: Path) -> list[np.ndarray]:
    loaded = load_folder(folder)
    template = ChatTemplate(loaded.tokenizer, loaded.layout, loaded.template)
    return [template.tts_prompt(text) for text in TEXTS]


def padded(prompts: list[np.ndarray], pad: int) -> tuple[Tensor, Tensor]:
    """Prompts filled up from the left, and their mask."""
    width = max(map(len, prompts))
    rows = [torch.tensor([pad] * (width - len(ids)) + ids.tolist()) for ids in prompts]
    mask = [torch.tensor([0] * (width - len(ids)) + [1] * len(ids)) for ids in prompts]
    return torch.stack(rows), torch.stack(mask)


WAYS = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "top_k": 20, "code_temperature": 1.0},
    "guided": {"cfg": 1.5, "steps": 6},
    "verified": {"audio_mode": "verified"},
    "tidar": {"audio_mode": "tidar"},
    "transcribing": {"stop_at_last_span": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_are_those_of_our_decoder(variant: str, parts: Path) -> None:
    folder = export(parts, variant, VARIANTS[variant])
    prompts, ours = prompts_of(folder), Decoder(load_folder(folder))
    model = AutoModelForCausalLM.from_pretrained(folder)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    ids, mask = padded(prompts, ours.folder.layout.pad)
    num_spans = 0
    for changes in WAYS.values():
        settings = folder_settings(folder).changed(**changes)
        wanted = ours.generate([Request(prompt, 3 + row) for row, prompt in enumerate(prompts)], settings)
        found = model.generate(
            ids, attention_mask=mask, seed=3, custom_generate=str(folder), trust_remote_code=True,
            return_dict_in_generate=True, **changes,
        )  # fmt: skip
        assert type(found).__name__ == TextToTalkOutput.__name__
        for row, result in enumerate(wanted):
            response = found.sequences[row, ids.shape[1] :].tolist()
            assert response[: len(result.ids)] == result.ids.tolist(), changes
            assert set(response[len(result.ids) :]) <= {ours.folder.layout.pad}
            assert (found.text[row], found.finish[row]) == (result.text, result.finish)
            assert [span.tolist() for span in found.spans[row]] == [span.tolist() for span in result.spans]
            num_spans += len(result.spans)
    how = {"custom_generate": str(folder), "trust_remote_code": True, "seed": 3}
    assert torch.equal(model.generate(ids, **how), model.generate(ids, attention_mask=mask, **how))
    assert num_spans > 4
    for name, weight in model.named_parameters():  # neither overwritten nor laid out anew
        assert torch.equal(weight, before[name]) and weight.is_contiguous()


def test_nothing_is_copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the decoder computes with lies where the model has it: a changed weight changes the response at once."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    ours = transformer_on(model, read_model_config(folder), load_folder(folder).layout)
    assert {one.data_ptr() for one in ours.parameters()} == {one.data_ptr() for one in model.parameters()}
    ids = torch.from_numpy(prompts_of(folder)[0])
    how = {"custom_generate": str(folder), "trust_remote_code": True}
    first = model.generate(ids, **how)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.flip(0))
    assert not torch.equal(model.generate(ids, **how), first)
    model.lm_head.weight.data = model.lm_head.weight.data.flip(0).clone()  # moved, as `model.to` does
    assert torch.equal(model.generate(ids, **how), first)


class Told(BaseStreamer):
    def __init__(self) -> None:
        self.pieces: list[list[int]] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.pieces.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


def test_a_model_that_trusts_the_folder_generates_by_itself_and_streams(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    prompt, streamer, events = torch.from_numpy(prompts_of(folder)[0]), Told(), []
    whole = model.generate(prompt, streamer=streamer, on_event=lambda row, event: events.append((row, event)))
    assert [token for piece in streamer.pieces for token in piece] == whole[0].tolist() and streamer.ended
    assert streamer.pieces[0] == prompt.tolist() and len(streamer.pieces) > 3
    kinds = [type(event) for _, event in events]
    assert {TextPiece, SpanDone} <= set(kinds[:-1]) and kinds[-1] is Finished
    result = events[-1][1].result
    assert "".join(event.text for _, event in events if isinstance(event, TextPiece)) == result.text
    few = model.generate(prompt, max_new_tokens=4)
    assert few[0].tolist() == [*prompt.tolist(), *result.ids[:4].tolist()]


def test_what_is_not_taken_is_named(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids, how = torch.from_numpy(prompts_of(folder)[0]), {"custom_generate": str(folder), "trust_remote_code": True}

    def refused(message: str, *args: object, **options: object) -> None:
        with pytest.raises(UserError, match=message) as caught:
            model.generate(*args, **how, **options)
        assert "\n" not in str(caught.value)

    refused("takes no num_beams; it takes seed, max_new_tokens", ids, num_beams=2)
    refused("takes no do_sample.*code_temperature", ids, do_sample=True)
    refused(r"steps \(--steps\)", ids, steps=0)
    refused("no prompt; give input_ids")
    refused("max_new_tokens is 0; give a whole number from 1 on", ids, max_new_tokens=0)
    refused("seed is -1; give a whole number from 0 on", ids, seed=-1)
    refused("a streamer takes one prompt, not 2", ids.expand(2, -1), streamer=Told())
    refused("ids outside the vocabulary", ids + 100_000)
    model.model.norm.weight = torch.nn.Parameter(model.model.norm.weight.to("meta"))
    refused("no plain weight model.norm.weight", ids)
    del model.model.layers[1]
    refused("no plain weight model.layers.1", ids)
    with pytest.raises(ValueError, match="trust_remote_code"):
        model.generate(ids, custom_generate=str(folder), trust_remote_code=False)


@pytest.fixture
def offline_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder as the Hub's cache holds a repository, and no network."""
    name, revision = "somebody/tiny-talk", "0" * 40
    cache = tmp_path / "models--somebody--tiny-talk"
    shutil.copytree(folder, cache / "snapshots" / revision)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(revision)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return name


def test_a_repository_of_the_hub_is_found_in_its_cache(offline_hub: str, folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(offline_hub, cache_dir=tmp_path, local_files_only=True)
    assert model.name_or_path == offline_hub
    ids, trusted = torch.from_numpy(prompts_of(folder)[0]), {"custom_generate": str(folder), "trust_remote_code": True}
    wanted = AutoModelForCausalLM.from_pretrained(folder).generate(ids, **trusted)
    assert torch.equal(model.generate(ids, **trusted), wanted)


def test_the_model_card_says_how(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the card has of Python runs as it stands, but for a text at which this model speaks."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code.replace("DIR", str(folder)).replace("three one four", TEXTS[0]), {})
    assert (tmp_path / "out.wav").stat().st_size > 44


def test_the_chat_template_writes_the_prompts_of_training(folder: Path) -> None:
    tokenizer, loaded = AutoTokenizer.from_pretrained(folder), load_folder(folder)
    template = ChatTemplate(loaded.tokenizer, loaded.layout, loaded.template)
    chat = [{"role": "user", "content": "three four"}]

    def ids(messages: list[dict[str, str]], **how: object) -> list[int]:
        return tokenizer.apply_chat_template(messages, return_dict=False, **how)  # type: ignore[no-any-return]

    assert '"tts": "Speak the text."' in tokenizer.chat_template
    assert ids(chat, task="tts", add_generation_prompt=True) == template.tts_prompt("three four").tolist()
    spoken = [{"role": "user", "content": "<|begin_of_audio|><|audio_3|><|audio_1|><|end_of_audio|>"}]
    asr = template.asr_prompt(np.array([3, 1]))
    assert ids(spoken, task="asr", add_generation_prompt=True) == asr.tolist()
    turns = {"turns": [{"role": "user", "text": "three four"}]}
    assert ids(chat, task="audio_chat", add_generation_prompt=True) == template.prompt("audio_chat", turns, []).tolist()
    answered = [*chat, {"role": "assistant", "content": "five"}]
    assert ids(answered) == template.chat(answered).ids.tolist()
    with pytest.raises(Exception, match="task: choose among asr, tts"):
        ids(chat, task="sing")
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "float32"
