"""Templates: what each writes for random entries, what is a target, own templates in YAML, and what is refused."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data_prep.assets import render_template
from tests.written_samples import (
    NUM_CODES,
    Characters,
    all_settings,
    codes_of_clip,
    conversation,
    heard,
    inner,
    last,
    layout_of,
    layouts,
    spoken,
    words,
    written,
)
from ttt_dist.data.document import check_document
from ttt_dist.data.shards import to_document
from ttt_dist.manifest.clips import clips
from ttt_dist.sequence.sample import Sample, spans
from ttt_dist.sequence.template_form import read_template
from ttt_dist.sequence.template_writer import sort_recordings
from ttt_dist.sequence.templates import ChatTemplate, TemplateSettings, load_template_settings
from ttt_dist.sequence.text_tokenizer import train_sentencepiece
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.errors import UserError


def check(sample: Sample, layout: TokenLayout, whole: str, targets: str) -> None:
    assert written(sample.ids, layout) == whole
    assert written(sample.ids[sample.is_target], layout) == targets
    assert not list(check_document(to_document([sample]), layout, None))


@given(layout=layouts, choice=all_settings, text=words, codes=codes_of_clip, speaker=st.sampled_from([None, "", "ann"]))
def test_asr_and_tts(
    layout: TokenLayout, choice: TemplateSettings, text: str, codes: np.ndarray, speaker: str | None
) -> None:
    template = ChatTemplate(Characters(), layout, choice)
    answer = ("assistant", spoken(text, codes, choice))
    turns = [("system", "Transcribe the speech."), ("user", heard(codes)), answer]
    entry = {"audio": "a.wav", "text": text, "speaker": speaker, "lang": "zh"}
    check(template.sample("asr", entry, [codes]), layout, *conversation(*turns))
    prompt = f"ann: {text.strip()}" if choice.name_speaker and speaker else text.strip()
    turns = [("system", "Speak the text."), ("user", prompt), answer]
    check(template.sample("tts", entry, [codes]), layout, *conversation(*turns))
    np.testing.assert_array_equal(template.asr(codes, text).ids, template.sample("asr", entry, [codes]).ids)
    np.testing.assert_array_equal(template.tts(text, codes, speaker).ids, template.sample("tts", entry, [codes]).ids)


@given(
    layout=layouts,
    choice=all_settings,
    text=words,
    clip=codes_of_clip,
    speech=st.none() | codes_of_clip,
    label=st.sampled_from(["dog", " dog ", 7]),
)
def test_caption_classification_and_text(
    layout: TokenLayout, choice: TemplateSettings, text: str, clip: np.ndarray, speech: np.ndarray | None, label: object
) -> None:
    template = ChatTemplate(Characters(), layout, choice)
    entry: dict[str, Any] = {"audio": "a.wav", "text": text, "label": label}
    codes = [clip]
    if speech is not None:
        entry, codes = {**entry, "speech": {"audio": "b.wav"}}, [clip, speech]
    answer = text.strip() if speech is None else spoken(text, speech, choice)
    turns = [("system", "Describe the sound."), ("user", heard(clip)), ("assistant", answer)]
    check(template.sample("caption", entry, codes), layout, *conversation(*turns))
    turns = [("system", "Name the class of the sound."), ("user", heard(clip)), ("assistant", str(label).strip())]
    check(template.sample("classification", entry, codes), layout, *conversation(*turns))
    check(template.sample("text", entry, codes), layout, text.strip(), text.strip())


@st.composite
def chats(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Turns with text, audio or both, in any order of roles, and the codes of the recordings."""
    turns: list[dict[str, Any]] = [{"role": "system", "text": draw(words)}] if draw(st.booleans()) else []
    codes = []
    for role in draw(st.lists(st.sampled_from(["user", "assistant"]), min_size=1, max_size=5)):
        kind = draw(st.sampled_from(["text", "audio", "both"]))
        turn: dict[str, Any] = {"role": role} | draw(st.sampled_from([{}, {"text": None}, {"text": ""}]))
        if kind != "audio":
            turn["text"] = draw(words)
        if kind != "text":
            turn["audio"] = f"{len(codes)}.wav"
            codes.append(draw(codes_of_clip))
        turns.append(turn)
    return turns, codes


def chat_turns(turns: list[dict[str, Any]], codes: list[np.ndarray], choice: TemplateSettings) -> list[tuple[str, str]]:
    left = iter(codes)
    found = [] if turns[0]["role"] == "system" else [("system", "Answer with text and speech.")]
    for turn in turns:
        text = (turn.get("text") or "").strip()
        if "audio" not in turn:
            found.append((turn["role"], text))
        elif turn["role"] == "assistant":
            found.append((turn["role"], spoken(text, next(left), choice)))
        else:
            found.append((turn["role"], heard(next(left)) + text))
    return found


@given(layout=layouts, choice=all_settings, chat=chats())
def test_chats_of_several_turns(layout: TokenLayout, choice: TemplateSettings, chat: tuple[list, list]) -> None:
    turns, codes = chat
    template = ChatTemplate(Characters(), layout, choice)
    entry = {"turns": turns}
    if not any(turn["role"] == "assistant" for turn in turns):
        with pytest.raises(UserError, match="has no (turn of the assistant|audio)"):
            template.sample("audio_chat", entry, codes)
    elif not codes:
        with pytest.raises(UserError, match=r"has no audio: .* \(template audio_chat\)"):
            template.sample("audio_chat", entry, codes)
        found = chat_turns(turns, codes, choice)
        found[0] = found[0] if turns[0]["role"] == "system" else ("system", "Answer with text.")
        check(template.sample("text_chat", entry, codes), layout, *conversation(*found))
    else:
        found = chat_turns(turns, codes, choice)
        check(template.sample("audio_chat", entry, codes), layout, *conversation(*found))
        if all(turn.get("text") for turn in turns):
            texts = [(turn["role"], turn["text"].strip()) for turn in turns]
            texts = texts if turns[0]["role"] == "system" else [("system", "Answer with text."), *texts]
            check(template.sample("text_chat", entry, codes), layout, *conversation(*texts))


@given(layout=layouts, choice=all_settings, parts=st.lists(st.tuples(words, codes_of_clip), min_size=1, max_size=5))
def test_segments_are_followed_by_their_speech(
    layout: TokenLayout, choice: TemplateSettings, parts: list[tuple]
) -> None:
    template = ChatTemplate(Characters(), layout, choice)
    entry = {"audio": "long.wav", "segments": [{"text": text, "offset": 1.0, "duration": 1.0} for text, _ in parts]}
    document = ""
    for number, (text, codes) in enumerate(parts, start=1):
        document += " " * (number > 1) + text.strip() + (last if number == len(parts) else inner)(codes)
    check(template.sample("interleaved", entry, [codes for _, codes in parts]), layout, document, document)


@given(layout=layouts, choice=all_settings, chat=chats(), text=words, clip=codes_of_clip)
def test_a_prompt_is_how_the_sample_begins(
    layout: TokenLayout, choice: TemplateSettings, chat: tuple[list, list], text: str, clip: np.ndarray
) -> None:
    template = ChatTemplate(Characters(), layout, choice)
    whole = {"audio": "a.wav", "text": text, "label": "dog", "speaker": "ann"}
    needed: dict[str, tuple[dict, list]] = {
        "asr": ({"audio": "a.wav"}, [clip]),
        "tts": ({"text": text, "speaker": "ann"}, []),
        "caption": ({"audio": "a.wav"}, [clip]),
        "classification": ({"audio": "a.wav"}, [clip]),
    }
    for name, (entry, codes) in needed.items():
        sample = template.sample(name, whole, [clip])
        prompt = template.prompt(name, entry, codes)
        np.testing.assert_array_equal(sample.ids[: len(prompt)], prompt)
        assert sample.is_target[len(prompt) :].all() and not sample.is_target[: len(prompt)].any()
    np.testing.assert_array_equal(template.asr_prompt(clip), template.prompt("asr", whole, [clip]))
    np.testing.assert_array_equal(template.tts_prompt(text, "ann"), template.prompt("tts", whole, [clip]))
    turns, codes = chat
    if codes and turns[-1]["role"] == "assistant":
        sample = template.sample("audio_chat", {"turns": turns}, codes)
        asked = codes[:-1] if "audio" in turns[-1] else codes
        for asking in (turns, turns[:-1]):
            if asking and asking[-1]["role"] != "assistant":
                prompt = template.prompt("audio_chat", {"turns": asking}, asked)
                np.testing.assert_array_equal(sample.ids[: len(prompt)], prompt)
                assert sample.is_target[len(prompt) :].all()


@given(layout=layouts, choice=all_settings, chat=chats())
def test_what_is_written_can_be_parsed(layout: TokenLayout, choice: TemplateSettings, chat: tuple[list, list]) -> None:
    """The released strings of a sample, imported, give the sample."""
    assume(any(turn["role"] == "assistant" for turn in chat[0]))
    template = ChatTemplate(Characters(), layout, choice)
    found = chat_turns(*chat, choice)
    sample = template.chat([{"role": role, "content": content} for role, content in found])
    check(sample, layout, *conversation(*found))
    np.testing.assert_array_equal(template.document(written(sample.ids, layout)).ids, sample.ids)


def test_chunks_bound_every_span_and_lose_no_code() -> None:
    layout, codes = layout_of(0), np.arange(100) % NUM_CODES
    for last_span, lengths in (("rest", [10, 90]), ("chunks", [10] * 10)):
        template = ChatTemplate(
            Characters(), layout, TemplateSettings(text_ratio=5, audio_ratio=10, last_span=last_span)
        )  # type: ignore[arg-type]
        ids = template.sample("tts", {"audio": "a", "text": "abcdefgh"}, [codes]).ids
        found = spans(ids, layout)
        assert [end - start - 1 for start, end in found] == lengths
        assert [ids[start - 1] == layout.begin_of_quad for start, _ in found] == [False] * (len(lengths) - 1) + [True]
        np.testing.assert_array_equal(layout.codes_of(ids), codes)


@given(
    audio=st.booleans(),
    member=st.booleans(),
    turns=st.lists(st.booleans(), max_size=3),
    segments=st.lists(st.booleans(), max_size=3),
    speech=st.booleans(),
)
def test_recordings_are_where_clips_puts_them(
    audio: bool, member: bool, turns: list[bool], segments: list[bool], speech: bool
) -> None:
    entry: dict[str, Any] = {"text": "a"} | ({"audio": "own"} if audio else {}) | ({"member": {}} if member else {})
    entry["turns"] = [{"audio": f"turn {n}"} if has else {"text": "a"} for n, has in enumerate(turns)]
    entry["segments"] = [{"offset": n} | ({"audio": "its own"} if has else {}) for n, has in enumerate(segments)]
    if speech:
        entry["speech"] = {"audio": "speech"}
    listed = clips(entry)
    found = sort_recordings(entry, [bytes([number]) for number in range(len(listed))])
    assert (found.own is None) == (not audio or bool(segments))
    assert found.own is None or listed[found.own[0]] is entry
    assert [codes is not None for codes in found.turns] == turns
    for number, codes in enumerate(found.turns):
        assert codes is None or listed[codes[0]] is entry["turns"][number]
    assert [listed[codes[0]]["offset"] for codes in found.segments if codes is not None] == list(range(len(segments)))
    assert (found.speech is not None) == speech and (found.speech is None or listed[found.speech[0]] is entry["speech"])


def test_a_sentencepiece_model_puts_the_space_itself(tmp_path: Path) -> None:
    tokenizer = train_sentencepiece(["three one four five nine"] * 50, tmp_path / "t", 330)
    template = ChatTemplate.for_codes(tokenizer, NUM_CODES, TemplateSettings())
    entry = {"segments": [{"text": "one four.", "audio": "a"}, {"text": "Nine", "audio": "b"}]}
    ids = template.sample("interleaved", entry, [np.array([1]), np.array([2])]).ids
    assert tokenizer.decode(ids[ids < tokenizer.size].tolist()) == "one four. Nine"


def test_chinese_sentences_get_no_space() -> None:
    template = ChatTemplate(Utf8(), layout_of(0))
    for sentences, joined in (
        (["你好。", "再见。"], "你好。再见。"),
        (["Hi.", "Bye."], "Hi. Bye."),
        (["네.", "예."], "네. 예."),
    ):
        entry = {"segments": [{"text": text, "audio": "a"} for text in sentences]}
        ids = template.sample("interleaved", entry, [np.array([1])] * 2).ids
        assert bytes((ids[ids >= 1000] - 1000).tolist()).decode() == joined


class Utf8(Characters):
    """Bytes, above all other ids, for text alone."""

    def encode(self, text: str) -> list[int]:
        return [1000 + byte for byte in text.encode()]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i - 1000 for i in ids).decode()


@pytest.mark.parametrize(
    ("lang", "system"),
    [
        ("en", "Hello"),
        ("zh", "Ni hao"),
        ("en-US", "Hello"),
        ("zh_CN", "Ni hao"),
        ("fr", "Hello"),
        (None, "Hello"),
        (3, "Hello"),
    ],
)
def test_the_language_chooses_the_text(lang: object, system: str) -> None:
    items: Any = [{"system": {"en": "Hello", "zh": "Ni hao"}}, {"user": "{text}"}, {"assistant": "{answer}"}]
    template = ChatTemplate(Characters(), layout_of(1), TemplateSettings(templates={"greet": items}))
    entry = {"text": "a", "answer": "b", "lang": lang}
    whole, targets = conversation(("system", system), ("user", "a"), ("assistant", "b"))
    check(template.sample("greet", entry, []), layout_of(1), whole, targets)
    items[0]["system"] = {"de": "Hallo", "zh": "Ni hao", "default": "Hello"}
    template = ChatTemplate(Characters(), layout_of(1), TemplateSettings(templates={"greet": items}))
    check(template.sample("greet", entry, []), layout_of(1), whole, targets)


def test_text_and_fields_around_a_recording() -> None:
    items: Any = [{"user": "Hear {audio} and say {{{what}}}\n"}, {"assistant": "It is {text+audio} over."}]
    template = ChatTemplate(Characters(), layout_of(2), TemplateSettings(templates={"x": items}))
    whole = conversation(("user", f"Hear {heard([3])} and say {{why}}"), ("assistant", f"It is so{last([3])} over."))
    check(template.sample("x", {"audio": "a", "text": "so", "what": "why"}, [np.array([3])]), layout_of(2), *whole)


ENTRIES = {
    "no template": ("rap", {}, 0, "no template 'rap': choose among asr, tts,"),
    "no text": ("asr", {"audio": "a"}, 1, r"lacks 'text': .* \(template asr\)"),
    "text is a number": ("asr", {"audio": "a", "text": 7}, 1, "lacks 'text'"),
    "text is empty": ("tts", {"audio": "a", "text": " "}, 1, "the text has no tokens"),
    "no audio": ("asr", {"text": "a"}, 0, r"has no audio: .* \(template asr\)"),
    "no audio to speak": ("tts", {"text": "a"}, 0, "has no audio"),
    "turns' audio alone": (
        "asr",
        {"text": "of the whole", "turns": [{"role": "user", "audio": "a"}, {"role": "assistant", "audio": "b"}]},
        2,
        r"has no audio: .* \(template asr\)",
    ),
    "segments' audio alone": ("tts", {"audio": "a", "text": "ab", "segments": [{"text": "a"}]}, 1, "has no audio"),
    "no label": ("classification", {"audio": "a"}, 1, r"lacks 'label' as text: .* \(template classification\)"),
    "label is a list": ("classification", {"audio": "a", "label": ["dog"]}, 1, "lacks 'label' as text"),
    "no turns": ("audio_chat", {"audio": "a"}, 1, "lacks 'turns'"),
    "no turns of text": ("text_chat", {"text": "a"}, 0, "lacks 'turns'"),
    "turn with nothing": ("text_chat", {"turns": [{"role": "assistant"}]}, 0, "turn 1: lacks 'text'"),
    "turn with no role": ("text_chat", {"turns": [{"text": "a"}]}, 0, "turn 1: role is None"),
    "turn of audio alone": ("text_chat", {"turns": [{"role": "assistant", "audio": "a"}]}, 1, "turn 1: lacks 'text'"),
    "turn without its codes": (
        "audio_chat",
        {"turns": [{"role": "assistant", "audio": "a"}]},
        0,
        "turn 1: has no audio",
    ),
    "no segments": ("interleaved", {"text": "a"}, 0, "lacks 'segments'"),
    "segment without text": ("interleaved", {"audio": "a", "segments": [{"offset": 0}]}, 1, "segment 1: lacks 'text'"),
    "segment without codes": ("interleaved", {"segments": [{"text": "a"}]}, 0, "segment 1: has no audio"),
}


@pytest.mark.parametrize(("name", "entry", "num_clips", "message"), ENTRIES.values(), ids=ENTRIES)
def test_entries_that_lack_something_are_refused(name: str, entry: dict, num_clips: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ChatTemplate(Characters(), layout_of(0)).sample(name, entry, [np.array([1])] * num_clips)
    assert "\n" not in str(caught.value)


def test_recordings_without_codes_or_with_others_codes_are_refused() -> None:
    template = ChatTemplate(Characters(), layout_of(0))
    for codes, message in (([], "the audio has no codes"), ([NUM_CODES], "outside 0..11"), ([-1], "outside 0..11")):
        with pytest.raises(UserError, match=message):
            template.sample("asr", {"audio": "a", "text": "a"}, [np.array(codes, int)])
    with pytest.raises(UserError, match="template text writes a document"):
        template.prompt("text", {"text": "a"}, [])


FORMS: dict[str, tuple[Any, str]] = {
    "no list": ({"user": "a"}, "templates.x: is no list of turns"),
    "empty": ([], "templates.x: is no list of turns"),
    "two roles in one": ([{"user": "a", "assistant": "b"}], r"templates.x\[0\]: is .*; write one turn"),
    "a string": (["hello"], r"templates.x\[0\]: is 'hello'"),
    "braces without quotes": ([{"assistant": {"audio": None}}], r"templates.x\[0\].assistant: is None"),
    "role": ([{"robot": "a"}], r"templates.x\[0\]: unknown role 'robot'"),
    "no text": ([{"assistant": " "}], r"templates.x\[0\].assistant: is ' '"),
    "one brace": ([{"assistant": "{text"}], r"templates.x\[0\].assistant: cannot be read"),
    "format": ([{"assistant": "{text:3}"}], "a placeholder is a name alone"),
    "conversion": ([{"assistant": "{text!r}"}], "a placeholder is a name alone"),
    "empty placeholder": ([{"assistant": "{}"}], r"placeholder \{\} has no meaning there"),
    "odd placeholder": ([{"assistant": "{text+video}"}], r"placeholder \{text\+video\} has no meaning there"),
    "turns inside": ([{"user": "{turns}"}, {"assistant": "a"}], "it is a turn of its own"),
    "speech of the user": ([{"user": "{text+audio}"}, {"assistant": "a"}], "put it into the assistant's turn"),
    "sound of the system": ([{"system": "{audio}"}, {"assistant": "a"}], "put it into the user's"),
    "document and turns": ([{"document": "a"}, {"assistant": "a"}], "templates.x: has turns beside a document"),
    "late system": ([{"user": "a"}, {"system": "a"}, {"assistant": "a"}], "a system turn that is not the first"),
    "turns twice": (["{turns}", "{text_turns}"], "the entry's turns twice"),
    "nothing to learn": ([{"assistant": "a"}, {"user": "b"}], "ends with a user turn"),
}


@pytest.mark.parametrize(("items", "message"), FORMS.values(), ids=FORMS)
def test_templates_of_another_form_are_refused(items: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_template("x", items)
    assert "\n" not in str(caught.value)


def test_the_example_file_is_complete_and_its_templates_work() -> None:
    path = Path(__file__).resolve().parents[2] / "recipes" / "templates" / "example.yaml"
    settings = load_template_settings(path)
    assert {"asr", "tts", "interleaved", "emotion", "sound_question", "spoken_chat", "audiobook"} <= set(
        settings.templates
    )
    assert settings.templates["tts"] == TemplateSettings().templates["tts"]
    template = ChatTemplate(Utf8(), layout_of(0), settings)
    entry = {"audio": "a", "text": "oh", "emotion": "joy", "question": "what?", "lang": "en"}
    layout, ids = template.layout, template.sample("sound_question", entry, [np.array([4])]).ids
    assert ids.tolist().count(layout.begin_of_audio) == 1
    turns = [("system", "Name the speaker's emotion."), ("user", heard([4])), ("assistant", "joy")]
    check(
        ChatTemplate(Characters(), layout, settings).sample("emotion", entry, [np.array([4])]),
        layout,
        *conversation(*turns),
    )
    chinese = template.sample("asr", entry | {"lang": "zh"}, [np.array([4])]).ids
    assert "请把语音写成文字。" in bytes(int(i) - 1000 for i in chinese if i >= 1000).decode()


def test_a_file_is_read_over_the_usual_settings_and_its_faults_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("audio_ratio: 4\ntemplates:\n  asr:\n    - assistant: '{text}'\n")
    settings = load_template_settings(path)
    assert (settings.text_ratio, settings.audio_ratio, settings.templates["asr"]) == (13, 4, [{"assistant": "{text}"}])
    path.write_text("")
    assert load_template_settings(path) == TemplateSettings()
    for text, message in (
        ("audio_ration: 4", r"mine\.yaml: unknown key `audio_ration`; did you mean `audio_ratio`"),
        ("audio_ratio: 0", r"mine\.yaml: .*audio_ratio: is 0"),
        ("text_ratio: many", r"mine\.yaml: text_ratio must be a whole number"),
        ("last_span: all", r"mine\.yaml: last_span must be one of rest, chunks"),
        ("chat_template: llama", r"mine\.yaml: chat_template must be one of chatml, tokenizer"),
        ("templates: [asr]", r"mine\.yaml: templates is"),
        ("templates:\n  asr:\n    - robot: hi", r"mine\.yaml: templates\.asr\[0\]: unknown role 'robot'"),
        ("a: [", r"mine\.yaml: line \d is not YAML"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load_template_settings(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"templates": ["asr"]}, "templates: is list"),
        ({"templates": None}, "templates: is NoneType"),
        ({"name_speaker": "no"}, "name_speaker: is 'no'"),
    ],
)
def test_settings_of_another_type_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TemplateSettings(**values)


@given(choice=all_settings)
def test_settings_survive_template_json(tmp_path_factory: pytest.TempPathFactory, choice: TemplateSettings) -> None:
    path = tmp_path_factory.mktemp("t") / "template.json"
    path.write_text(render_template(choice), encoding="utf8")
    assert choice == TemplateSettings(**json.loads(path.read_text()))


def test_a_tokenizer_to_be_trained_learns_what_the_templates_write() -> None:
    items: Any = [{"system": {"en": "Now {x} sing", "zh": "Chang"}}, {"assistant": "{text}"}]
    settings = TemplateSettings(templates={"sing": items})
    assert settings.fixed_texts(["sing"]) == ["Now", "sing", "Chang", "system\n", "user\n", "assistant\n", "\n"]
