"""Chat templates of tokenizers: Llama's and Mistral's kinds, what is a target in them, and plain text that stays plain."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.structures import SHARED, needs_shared
from ttt_dist.data.document import check_document
from ttt_dist.data.shards import to_document
from ttt_dist.sequence.chat_markup import end_of_turn
from ttt_dist.sequence.templates import ChatTemplate, TemplateSettings
from ttt_dist.sequence.text_tokenizer import HuggingFaceTokenizer, TextTokenizer, load_tokenizer, train_sentencepiece
from ttt_dist.sequence.tokens import extend
from ttt_dist.util.errors import UserError

LLAMA = """{{- bos_token }}
{%- if date_string is not defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
    {{- "<|start_header_id|>system<|end_header_id|>\n\nToday Date: " + date_string + "\n\n" + system + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}"""
MISTRAL = """{{ bos_token }}{% for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{%- if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"""
QWEN = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endfor %}"""
SYSTEM_LAST = """{%- set system = messages[0].content if messages[0].role == 'system' else none %}
{%- for message in messages %}{%- if message.role == 'user' %}{{- '[INST] ' }}
{%- if system and loop.index == messages | length - 1 %}{{- system + '\n\n' }}{%- endif %}
{{- message.content + '[/INST]' }}{%- elif message.role == 'assistant' %}{{- message.content + eos_token }}{%- endif %}
{%- endfor %}"""
SPECIALS = [
    "<s>",
    "</s>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|im_start|>",
    "<|im_end|>",
    "[INST]",
]
CODES = np.arange(7)


def make(folder: Path, chat_template: str | None) -> HuggingFaceTokenizer:
    """A byte-level BPE tokenizer folder as `transformers` saves it."""
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bare.train_from_iterator(["three one four five", "Transcribe the speech.", "system user assistant"] * 20, trainer)
    extra = {"additional_special_tokens": SPECIALS[2:], "chat_template": chat_template}
    PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>", **extra).save_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    return tokenizer


def template_of(tokenizer: TextTokenizer, **more: Any) -> ChatTemplate:
    return ChatTemplate.for_codes(
        tokenizer, 32, TemplateSettings(text_ratio=3, audio_ratio=4, chat_template="tokenizer", **more)
    )


def told(template: ChatTemplate, ids: np.ndarray) -> str:
    """Text class as text, the tokens appended to the vocabulary left out."""
    return template.tokenizer.decode(ids[ids < template.tokenizer.size].tolist())


def test_a_template_with_headers(tmp_path: Path) -> None:
    template = template_of(make(tmp_path, LLAMA))
    layout, tokenizer = template.layout, template.tokenizer
    assert layout.im_end == tokenizer.special_id("<|eot_id|>") != tokenizer.special_id("<|im_end|>")
    sample = template.asr(CODES, "three one four five")
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    system = header.format("system") + "Today Date: 26 Jul 2024\n\nTranscribe the speech.<|eot_id|>"
    whole = f"<s>{system}{header.format('user')}<|eot_id|>{header.format('assistant')}three one four five<|eot_id|>"
    assert told(template, sample.ids) == whole
    assert sample.ids[0] == tokenizer.special_id("<s>") and np.count_nonzero(sample.ids == layout.im_end) == 3
    targets = sample.ids[sample.is_target]
    assert told(template, targets) == "three one four five<|eot_id|>" and targets[-1] == layout.im_end
    assert (
        layout.codes_of(targets).tolist() == layout.codes_of(sample.ids[~sample.is_target]).tolist() == CODES.tolist()
    )
    assert not list(check_document(to_document([sample]), layout, None))
    prompt = template.asr_prompt(CODES)
    np.testing.assert_array_equal(sample.ids[: len(prompt)], prompt)
    assert sample.is_target[len(prompt) :].all()


def test_a_template_that_refuses_a_system_turn(tmp_path: Path) -> None:
    tokenizer = make(tmp_path, MISTRAL)
    template = template_of(tokenizer)
    assert template.layout.im_end == tokenizer.special_id("</s>") == end_of_turn(tokenizer)
    with pytest.raises(UserError, match=r"refuses the turns system, user, assistant \(.*alternate.*\); give templates"):
        template.asr(CODES, "three")
    plain: Any = {"asr": [{"user": "{audio}"}, {"assistant": "{text+audio}"}], "chat": ["{text_turns}"]}
    template = template_of(tokenizer, templates=plain)
    assert told(template, template.asr(CODES, "three").ids) == "<s>[INST]  [/INST]three</s>"
    turns = [{"role": role, "text": text} for role, text in zip(["user", "assistant"] * 2, "abcd", strict=True)]
    sample = template.sample("chat", {"turns": turns}, [])
    assert told(template, sample.ids) == "<s>[INST] a [/INST]b</s>[INST] c [/INST]d</s>"
    assert told(template, sample.ids[sample.is_target]) == "b</s>d</s>"
    prompt = template.prompt("chat", {"turns": turns[:3]}, [])
    np.testing.assert_array_equal(sample.ids[: len(prompt)], prompt)
    assert told(template, sample.ids[len(prompt) :]) == "d</s>"


def test_a_template_of_chatml_gives_the_ids_of_chatml(tmp_path: Path) -> None:
    tokenizer = make(tmp_path, QWEN)
    own = template_of(tokenizer)
    chatml = ChatTemplate(tokenizer, extend(tokenizer, 32), TemplateSettings(text_ratio=3, audio_ratio=4))
    assert own.layout == chatml.layout
    for one, other in ((t.asr(CODES, "three one"), t.tts("five", CODES)) for t in (own, chatml)):
        assert one.is_target[-1] and other.is_target[-1]
    np.testing.assert_array_equal(own.asr(CODES, "three one").ids, chatml.asr(CODES, "three one").ids)
    np.testing.assert_array_equal(own.tts("three one", CODES).is_target, chatml.tts("three one", CODES).is_target)


def test_a_template_may_move_a_turn(tmp_path: Path) -> None:
    template = template_of(make(tmp_path, SYSTEM_LAST))
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": content} for role, content in turns]
    sample = template.chat(messages)
    assert told(template, sample.ids) == "[INST] a[/INST]b</s>[INST] s\n\nc[/INST]d</s>"
    assert told(template, sample.ids[sample.is_target]) == "b</s>d</s>"


REFUSED = {
    "none": (None, "has no chat template of its own; set chat_template chatml"),
    "no end": ("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}", "with no special token"),
    "nothing after": ("{% for m in messages %}[INST]{{ m.content }}{% endfor %}", "with no special token"),
    "content left out": ("{{ messages[0].content }}</s>", "does not write each of the turns user, assistant once"),
    "content twice": (
        "{% for m in messages %}{{ m.content + m.content }}</s>{% endfor %}",
        "does not write each of the turns",
    ),
    "error": ("{{ messages[0].content + 3 }}", "refuses the turns user, assistant"),
    "no template": ("{% for m in messages %}", "refuses the turns user, assistant"),
}


@pytest.mark.parametrize(("chat_template", "message"), REFUSED.values(), ids=REFUSED)
def test_templates_that_cannot_be_used_are_named(tmp_path: Path, chat_template: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        template_of(make(tmp_path / "toy", chat_template))
    assert str(caught.value).startswith("tokenizer toy: ") and "\n" not in str(caught.value)


def test_turns_that_end_in_different_ways_are_refused(tmp_path: Path) -> None:
    last = "{% for m in messages %}{{ m.content + ('</s>' if loop.last else '[INST]') }}{% endfor %}"
    template = template_of(make(tmp_path, last))
    messages = [{"role": role, "content": "a"} for role in ("user", "assistant", "user", "assistant")]
    with pytest.raises(
        UserError, match="ends the assistant's turn 2 of user, assistant, user, assistant with other tokens"
    ):
        template.chat(messages)


def test_the_layout_must_end_turns_as_the_template_does(tmp_path: Path) -> None:
    tokenizer = make(tmp_path, LLAMA)
    with pytest.raises(UserError, match=r"ends a turn with token \d+, the token layout with \d+"):
        ChatTemplate(tokenizer, extend(tokenizer, 32), TemplateSettings(chat_template="tokenizer"))


def test_sentencepiece_has_no_chat_template(tmp_path: Path) -> None:
    tokenizer = train_sentencepiece(["three one four"] * 20, tmp_path / "t", 300)
    with pytest.raises(UserError, match="has no chat template of its own; set chat_template chatml"):
        template_of(tokenizer)


def test_an_end_of_turn_that_also_pads_gets_a_pad_of_its_own(tmp_path: Path) -> None:
    class WithEnd(HuggingFaceTokenizer):
        def special_id(self, piece: str) -> int | None:
            return super().special_id({"<|endoftext|>": "</s>"}.get(piece, piece))

    make(tmp_path, MISTRAL)
    layout = extend(WithEnd(tmp_path), 32, end_of_turn=1)
    assert layout.im_end == 1 and layout.pad >= WithEnd(tmp_path).size


def test_markup_is_rendered_once_per_succession_of_roles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make(tmp_path, LLAMA)
    template = template_of(tokenizer)
    rendered: list[int] = []
    render = tokenizer.render_chat
    monkeypatch.setattr(tokenizer, "render_chat", lambda messages: rendered.append(len(messages)) or render(messages))
    for text in ("three", "one", "four"):
        template.asr(CODES, text)
        template.chat([{"role": "user", "content": text}, {"role": "assistant", "content": text}])
    assert rendered == [3, 2]


pieces = st.sampled_from(
    [*SPECIALS, "\n", " ", "three", "<|", "|>", "<|audio_3|>", "<|endoftext|>", "é", "你", "\ue0f00\ue0f1"]
)
sly_texts = st.lists(pieces | st.text(st.characters(exclude_categories=["Cs"]), max_size=3), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ChatTemplate:
    return template_of(make(tmp_path_factory.mktemp("llama"), LLAMA))


@given(sly=sly_texts.map("".join))
def test_plain_text_never_becomes_markup(llama: ChatTemplate, sly: str) -> None:
    tokenizer = llama.tokenizer
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    ids = tokenizer.encode(sly)
    assert ids == tokenizer._tokenizer.encode(sly, add_special_tokens=False, split_special_tokens=True)
    assert not set(ids) & {tokenizer.special_id(piece) for piece in SPECIALS}
    assert tokenizer.decode(ids) == sly
    if not sly.strip():
        return
    sample = llama.tts(sly, CODES)
    for piece, number in (("<|eot_id|>", 3), ("<s>", 1), ("</s>", 0), ("<|start_header_id|>", 3), ("[INST]", 0)):
        assert np.count_nonzero(sample.ids == tokenizer.special_id(piece)) == number
    assert llama.layout.codes_of(sample.ids).tolist() == CODES.tolist()


def test_the_first_text_is_plain_too(tmp_path: Path) -> None:
    tokenizer = make(tmp_path, LLAMA)
    assert not set(tokenizer.encode("<s>three<|eot_id|>")) & {tokenizer.special_id(piece) for piece in SPECIALS}
    assert tokenizer.encode_markup("<s>three<|eot_id|>")[0] == tokenizer.special_id("<s>")
    assert not set(tokenizer.encode("<s>three<|eot_id|>")) & {tokenizer.special_id(piece) for piece in SPECIALS}


@needs_shared
@settings(max_examples=30)
@given(sly=sly_texts.map("".join))
def test_a_published_tokenizer_gives_the_ids_of_transformers(sly: str) -> None:
    tokenizer = published()
    expected = tokenizer._tokenizer.encode(sly, add_special_tokens=False, split_special_tokens=True)
    assert tokenizer.encode(sly) == expected


def published(cache: list[HuggingFaceTokenizer] = []) -> HuggingFaceTokenizer:  # noqa: B006 (loaded once)
    if not cache:
        cache.append(HuggingFaceTokenizer(SHARED / "gpt2-bpe"))
    return cache[0]


def test_a_limit_on_length_in_the_tokenizer_file_cuts_nothing(tmp_path: Path) -> None:
    make(tmp_path, None)
    bare = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    bare.enable_truncation(4)
    bare.enable_padding(length=16)
    bare.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("three one four five nine ten")) == "three one four five nine ten"


def test_half_a_surrogate_pair_is_refused(tmp_path: Path) -> None:
    for tokenizer in (make(tmp_path / "b", None), train_sentencepiece(["one two"] * 20, tmp_path / "s", 300)):
        with pytest.raises(UserError, match="half of a surrogate pair"):
            tokenizer.encode("a \ud83d b")
