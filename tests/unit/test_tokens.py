"""Token classes by explicit table."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.structures import SHARED, needs_shared, tiny_layout
from ttt_dist.sequence.id_bytes import to_array, to_bytes
from ttt_dist.sequence.sample import spans
from ttt_dist.sequence.template_writer import ContentWriter
from ttt_dist.sequence.templates import ChatTemplate
from ttt_dist.sequence.text_tokenizer import load_tokenizer, train_sentencepiece
from ttt_dist.sequence.tokens import TokenLayout, extend, released
from ttt_dist.util.errors import UserError


def test_released_vocabulary_is_the_published_one() -> None:
    layout = released()
    assert (layout.first_code, layout.num_codes, layout.vocab_size) == (151685, 16384, 168072)
    assert (layout.begin_of_audio, layout.end_of_audio, layout.begin_of_quad) == (151674, 151675, 151676)
    assert (layout.mask, layout.end_of_audio_new, layout.end_of_audio_span_last) == (168069, 168070, 168071)
    assert layout.is_audio[151685:168072].all() and layout.is_audio.sum() == 16384 + 3
    assert not layout.is_audio[
        151684
    ]  # the <|audio|> tag is text, though the released code's `>= 151684` says otherwise


def test_what_may_be_emitted() -> None:
    for layout in (released(), tiny_layout(), tiny_layout(shuffle_seed=3)):
        assert not (layout.text_allowed & layout.is_audio).any()
        assert not layout.span_allowed[layout.mask] and layout.span_allowed.sum() == layout.num_codes + 2
        assert layout.text_allowed[[layout.begin_of_audio, layout.begin_of_quad, layout.im_end]].all()
        assert not layout.text_allowed[[layout.pad, layout.im_start, layout.end_of_audio]].any()
        assert not layout.text_allowed[layout.vocab_size :].any() and not layout.span_allowed[layout.vocab_size :].any()


def test_layout_survives_a_file_and_names_what_differs(tmp_path: Path) -> None:
    layout = tiny_layout()
    layout.save(tmp_path / "token_layout.json")
    assert TokenLayout.load(tmp_path / "token_layout.json") == layout
    other = json.loads((tmp_path / "token_layout.json").read_text()) | {"num_codes": 11}
    with pytest.raises(UserError, match=r"runs/a: token layout differs in num_codes: 11 there, 12 here"):
        layout.require_same(TokenLayout.from_dict(other, "x"), "runs/a")
    del other["first_code"]
    with pytest.raises(UserError, match="token_layout.json: token layout lacks 'first_code'"):
        TokenLayout.from_dict(other, "token_layout.json")


def test_impossible_layouts_are_refused() -> None:
    values = tiny_layout().to_dict()
    with pytest.raises(UserError, match="is padding for the most part"):
        TokenLayout(**values | {"padded_vocab_size": 2**24})
    with pytest.raises(UserError, match="among the audio codes"):
        TokenLayout(**values | {"special_ids": values["special_ids"] | {"mask": values["first_code"]}})
    with pytest.raises(UserError, match="one id to two"):
        TokenLayout(**values | {"special_ids": values["special_ids"] | {"mask": values["special_ids"]["pad"]}})
    with pytest.raises(UserError, match="outside 0..11"):
        tiny_layout().code_ids(np.array([12]))


def test_extension_of_a_sentencepiece_tokenizer(tmp_path: Path) -> None:
    tokenizer = train_sentencepiece(["three one four", "five nine two"] * 50, tmp_path / "tok", 330)
    again = load_tokenizer(tmp_path / "tok")
    assert again.hash == tokenizer.hash
    assert again.decode(again.encode("nine <|audio_3|> öß\n two")) == "nine <|audio_3|> öß\n two"
    layout = extend(again, codebook_size=32)
    assert layout.padded_vocab_size % 128 == 0 and layout.vocab_size == again.size + 6 + 32 + 3
    assert layout.is_audio[: again.size].sum() == 0


@needs_shared
def test_extension_of_a_hugging_face_tokenizer_keeps_its_own_specials() -> None:
    tokenizer = load_tokenizer(SHARED / "gpt2-bpe")
    layout = extend(tokenizer, codebook_size=16384)
    assert layout.pad == 50256 and layout.im_start == 50257
    assert 50256 not in tokenizer.encode("<|endoftext|> in a text stays text")
    assert tokenizer.decode(tokenizer.encode(" a  b\n")) == " a  b\n"


@needs_shared
def test_released_samples_parse_to_the_stated_classes_spans_and_targets() -> None:
    layout = released()
    template = ChatTemplate(load_tokenizer(SHARED / "gpt2-bpe"), layout)
    lines = (SHARED / "ttt_released_samples.jsonl").read_text(encoding="utf8").splitlines()
    expected = [(68, [68]), (127, [26, 26, 75])]  # codes of the prompt, codes of each response span
    for line, (prompt_codes, response_codes) in zip(lines, expected, strict=True):
        messages = json.loads(line)["messages"]
        sample = template.chat(messages)
        found = [(sample.ids[a:b], sample.is_target[a:b]) for a, b in spans(sample.ids, layout)]
        assert [len(layout.codes_of(ids)) for ids, _ in found] == [prompt_codes, *response_codes]
        # The prompt's end-of-audio is text class, so its span is the codes alone; response ends belong to their spans.
        assert len(found[0][0]) == prompt_codes and not found[0][1].any()
        ends = [layout.end_of_audio_new] * (len(response_codes) - 1) + [layout.end_of_audio_span_last]
        for (ids, is_target), end in zip(found[1:], ends, strict=True):
            assert ids[-1] == end and layout.is_audio[ids].all() and is_target.all()
        # Exactly the assistant's content and its end of turn are targets.
        answer = np.append(template.parse(messages[-1]["content"]), layout.im_end)
        assert sample.is_target.sum() == len(answer)
        np.testing.assert_array_equal(sample.ids[sample.is_target], answer)
        np.testing.assert_array_equal(sample.ids[-len(answer) :], answer)


@needs_shared
def test_own_interleaving_is_the_released_one() -> None:
    layout = released()
    tokenizer = load_tokenizer(SHARED / "gpt2-bpe")
    template = ChatTemplate(tokenizer, layout)
    content = json.loads((SHARED / "ttt_released_samples.jsonl").read_text(encoding="utf8").splitlines()[1])[
        "messages"
    ][2]["content"]
    codes = layout.codes_of(template.parse(content))
    text_ids = np.concatenate([[1000], np.arange(13), np.arange(13), np.arange(2)])[1:]
    writer = ContentWriter(tokenizer, layout, 13, 26, "rest")
    ids = to_array(writer.spoken(to_bytes(text_ids), writer.audio(codes)))
    assert [len(layout.codes_of(ids[a:b])) for a, b in spans(ids, layout)] == [26, 26, 75]
    np.testing.assert_array_equal(ids[~layout.is_audio[ids] & (ids < 1000)], text_ids)
