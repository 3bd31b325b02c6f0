"""Import of the released format: the published samples to the last id, every kind of file, and what is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from tokenizers import AddedToken, Tokenizer

from data_prep import released as subject
from data_prep.released import read_released, released_sample
from data_prep.token_layout_args import released_for
from tests.structures import SHARED, needs_shared
from ttt_dist.manifest.problems import Problems
from ttt_dist.sequence.sample import spans
from ttt_dist.sequence.templates import ChatTemplate
from ttt_dist.sequence.text_tokenizer import TextTokenizer, load_tokenizer, train_sentencepiece
from ttt_dist.sequence.tokens import released
from ttt_dist.util.errors import UserError

IM_START, IM_END, BEGIN, END, QUAD = 151644, 151645, 151674, 151675, 151676
FIRST_CODE, END_NEW, END_LAST = 151685, 168070, 168071
DELIMITERS = {
    "<|begin_of_audio|>": BEGIN,
    "<|end_of_audio|>": END,
    "<|begin_of_quad|>": QUAD,
    "<|end_of_audio_new|>": END_NEW,
    "<|end_of_audio_span_last|>": END_LAST,
}

GOOD = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
SPEECH = "so<|begin_of_quad|><|audio_1|><|audio_16383|><|end_of_audio_span_last|>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return train_sentencepiece(
        ["three one four", "system\n", "user\n", "assistant\n"] * 9, tmp_path_factory.mktemp("t"), 330
    )


@pytest.fixture(scope="module")
def template(tokenizer: TextTokenizer) -> ChatTemplate:
    return ChatTemplate(tokenizer, released_for(tokenizer))


def collect(path: Path, limit: int = 99) -> tuple[list, Problems]:
    problems = Problems(limit)
    return list(read_released(path, problems)), problems


def parsed_apart(content: str, encode: Tokenizer) -> list[int]:
    """A parse of the tests' own: one piece at a time, character by character."""
    ids: list[int] = []
    text = ""
    at = 0
    while at < len(content):
        piece = content[at : content.find("|>", at) + 2] if content.startswith("<|", at) else ""
        code = re.fullmatch(r"<\|audio_(\d+)\|>", piece)
        if code or piece in DELIMITERS:
            ids += encode.encode(text).ids if text else []
            ids.append(FIRST_CODE + int(code[1]) if code else DELIMITERS[piece])
            text, at = "", at + len(piece)
        else:
            text, at = text + content[at], at + 1
    return ids + (encode.encode(text).ids if text else [])


@needs_shared
def test_the_released_samples_give_the_published_ids_classes_spans_and_targets() -> None:
    bare = Tokenizer.from_file(str(SHARED / "gpt2-bpe" / "tokenizer.json"))
    tokenizer = load_tokenizer(SHARED / "gpt2-bpe")
    layout = released_for(tokenizer)
    records, problems = collect(SHARED / "ttt_released_samples.jsonl")
    assert not problems.count and [place.rpartition(":")[2] for place, _ in records] == ["1", "2"]
    expected_spans = [(68, [68]), (127, [26, 26, 75])]
    for (_, record), (heard, spoken) in zip(records, expected_spans, strict=True):
        sample = released_sample(ChatTemplate(tokenizer, layout), record)
        ids: list[int] = []
        targets: list[bool] = []
        for number, message in enumerate(record["messages"]):
            header = (bare.encode("\n").ids if number else []) + [IM_START, *bare.encode(message["role"] + "\n").ids]
            body = [*parsed_apart(message["content"], bare), IM_END]
            ids += header + body
            targets += [False] * len(header) + [message["role"] == "assistant"] * len(body)
        assert sample.ids.tolist() == ids
        assert sample.is_target.tolist() == targets
        is_audio = [FIRST_CODE <= i < FIRST_CODE + 16384 or i in (168069, END_NEW, END_LAST) for i in ids]
        assert layout.is_audio[sample.ids].tolist() == is_audio
        found = spans(sample.ids, layout)
        assert [ids[start - 1] for start, _ in found] == [BEGIN] * len(spoken) + [QUAD]
        assert [end - start for start, end in found] == [heard, *(number + 1 for number in spoken)]
        assert ids[found[0][1]] == END  # text class: it closes the prompt's audio and belongs to no span
        assert [ids[end - 1] for _, end in found[1:]] == [END_NEW] * (len(spoken) - 1) + [END_LAST]


def test_a_text_is_all_target_and_has_no_markup(template: ChatTemplate) -> None:
    layout = template.layout
    sample = released_sample(template, {"text": f"three{SPEECH}"})
    text = [*template.tokenizer.encode("threeso"), QUAD, FIRST_CODE + 1, FIRST_CODE + 16383, END_LAST]
    assert sample.ids.tolist() == text and sample.is_target.all()
    assert spans(sample.ids, layout) == [(len(text) - 3, len(text))]


def test_text_that_looks_like_markup_without_being_it_stays_text(template: ChatTemplate) -> None:
    sly = "a <| b |> <|audio| audio_3|> <|audio_ 3|> | > <|"
    sample = released_sample(template, {"text": sly})
    assert sample.ids.tolist() == template.tokenizer.encode(sly)


MALFORMED = {
    "nothing": ({}, "neither 'messages' nor 'text'"),
    "empty": ({"messages": [], "text": " "}, "neither 'messages' nor 'text'"),
    "text is no string": ({"text": 3}, "neither 'messages' nor 'text'"),
    "messages is no list": ({"messages": {"role": "user"}}, "'messages' is dict"),
    "messages is no JSON": ({"messages": "hello"}, "a string that is not JSON"),
    "message is no object": ({"messages": ["hello"]}, "message 1 is str"),
    "role": ({"messages": [{"role": "robot", "content": "x"}]}, "message 1: unknown role 'robot'"),
    "no role": ({"messages": [{"content": "x"}]}, "message 1: unknown role None"),
    "content": ({"messages": [*GOOD["messages"], {"role": "user", "content": ["x"]}]}, "message 3: content is list"),
    "no content": ({"messages": [{"role": "user"}]}, "message 1: content is NoneType"),
    "no assistant": ({"messages": [{"role": "user", "content": "x"}]}, "no message of the assistant"),
    "code": ({"text": SPEECH.replace("16383", "16384")}, "audio code outside 0..16383"),
    "huge code": ({"text": SPEECH.replace("16383", "9" * 30)}, r"<\|audio_9+\|> is no piece"),
    "leading zero": ({"text": SPEECH.replace("_1|", "_01|")}, r"<\|audio_01\|> is no piece"),
    "unknown piece": (
        {"text": "so <|begin_of_audoi|> it is"},
        r"<\|begin_of_audoi\|> is no piece of the released format",
    ),
    "mask": ({"text": SPEECH.replace("<|audio_1|>", "<|mask_token|>")}, "mask has no place"),
    "padding": ({"text": "so<|endoftext|>"}, "pad has no place"),
    "unclosed": ({"text": "so<|begin_of_quad|><|audio_1|>"}, "no end of audio closes"),
    "unopened": ({"text": "so<|audio_1|><|end_of_audio_new|>"}, "without a start-of-audio token"),
}


@pytest.mark.parametrize(("record", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_records_are_refused_in_one_line(template: ChatTemplate, record: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        released_sample(template, record)
    assert "\n" not in str(caught.value)


records = st.lists(
    st.fixed_dictionaries(
        {"text": st.text(st.characters(exclude_categories=["Cs"]), max_size=40)},
        optional={"n": st.none() | st.integers() | st.lists(st.text('{}[]",\\', max_size=4), max_size=3)},
    ),
    max_size=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    items=records,
    chunk=st.integers(1, 40),
    layout=st.sampled_from(["array", "indented array", "lines", "one line", "JSONL"]),
    ascii_only=st.booleans(),
)
def test_every_json_layout_gives_the_records_whatever_the_size_of_a_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, items: list[dict], chunk: int, layout: str, ascii_only: bool
) -> None:
    written = [json.dumps(item, ensure_ascii=ascii_only) for item in items]
    text = {
        "array": json.dumps(items, ensure_ascii=ascii_only),
        "indented array": json.dumps(items, ensure_ascii=ascii_only, indent=2) + "\n",
        "lines": "\n".join(written),
        "one line": " ".join(written),
        "JSONL": "\n\n".join(written) + "\n",
    }[layout]
    path = tmp_path / ("samples.jsonl" if layout == "JSONL" else "samples.json")
    path.write_bytes(text.encode())
    monkeypatch.setattr(subject, "CHUNK", chunk)
    found, problems = collect(path)
    assert [record for _, record in found] == items and not problems.count
    if layout in ("lines", "JSONL"):
        step = 1 if layout == "lines" else 2
        assert [place for place, _ in found] == [f"{path}:{1 + step * number}" for number in range(len(items))]


def test_a_json_file_is_read_in_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "samples.json"
    path.write_text(json.dumps([{"text": "x" * 500} for _ in range(400)]))
    monkeypatch.setattr(subject, "CHUNK", 1000)
    widest = 0
    whole = subject._JsonText._more

    def more(self: subject._JsonText) -> bool:
        nonlocal widest
        done = whole(self)
        widest = max(widest, len(self.window))
        return done

    monkeypatch.setattr(subject._JsonText, "_more", more)
    assert len(collect(path)[0]) == 400
    assert widest < 4000


BROKEN_JSON = {
    "cut in a record": ('[{"text": "a"},\n {"text": "b', r"x\.json:2: is no JSON record"),
    "cut after a comma": ('[{"text": "a"},\n', r"x\.json:2: is no JSON record"),
    "cut after a record": ('[{"text": "a"}', r"x\.json:1: a comma or `\]` is missing"),
    "comma missing": ('[{"text": "a"}\n\n{"text": "b"}]', r"x\.json:3: a comma or `\]` is missing"),
    "comma at the end": ('[{"text": "a"},]', r"x\.json:1: is no JSON record"),
    "more follows": ('[{"text": "a"}]\n{"text": "b"}', r"x\.json:2: more follows the array"),
    "no JSON": ("text: a", r"x\.json:1: is no JSON record"),
    "not UTF-8": (b'[{"text": "\xff"}]', r"x\.json: is not UTF-8"),
    "deep": ("[" * 100_000, r"x\.json:1: is no JSON record"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN_JSON.values(), ids=BROKEN_JSON)
def test_broken_json_is_named_with_its_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        collect(tmp_path / "x.json")


def test_a_number_cut_by_a_read_is_one_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "CHUNK", 3)
    (tmp_path / "x.json").write_text('[12345678, {"text": "a"}]')
    found, problems = collect(tmp_path / "x.json")
    assert [record for _, record in found] == [{"text": "a"}] and problems.count == 1


def test_a_record_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "CHUNK", 100)
    monkeypatch.setattr(subject, "LONGEST_RECORD", 1000)
    (tmp_path / "x.json").write_text('[{"text": "' + "a" * 100_000)
    with pytest.raises(UserError, match=r"longer than 1,000 characters"):
        collect(tmp_path / "x.json")


def test_bad_lines_and_records_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text"\n[1]\n\n\xff\n{"text": "b"}\n' + b"[" * 100_000)
    found, problems = collect(path)
    assert [(place.rpartition(":")[2], record["text"]) for place, record in found] == [("1", "a"), ("6", "b")]
    told = sorted(place for tally in problems.errors.values() for place in tally.places)
    assert problems.count == 4 and [re.search(r"jsonl:(\d+): ", text)[1] for text in told] == ["2", "3", "5", "7"]
    (tmp_path / "y.json").write_text('[{"text": "a"}, 3, null, {"text": "b"}]')
    found, problems = collect(tmp_path / "y.json")
    assert len(found) == 2 and problems.count == 2


def test_parquet_of_messages_of_text_and_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "ROWS", 3)
    messages = GOOD["messages"]
    rows = [{"messages": messages, "text": None, "n": 1}, {"messages": None, "text": "so", "n": 2}] * 4
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path)
    found, problems = collect(path)
    assert [record for _, record in found] == [{"messages": messages}, {"text": "so"}] * 4 and not problems.count
    assert [place for place, _ in found] == [f"{path}:row {number}" for number in range(1, 9)]
    parquet.write_table(pa.Table.from_pylist([{"messages": json.dumps(messages)}]), path)
    ((_, record),) = collect(path)[0]
    assert subject._messages(record["messages"]) == messages


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"speech": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet: has no column messages or text"):
        collect(tmp_path / "x.parquet")
    (tmp_path / "y.parquet").write_bytes(b"PAR1, but no more")
    with pytest.raises(UserError, match=r"y\.parquet: is no readable Parquet file"):
        collect(tmp_path / "y.parquet")
    for name in ("z.parquet", "z.json", "z.jsonl"):
        with pytest.raises(UserError, match=rf"{name}: "):
            collect(tmp_path / name)
    with pytest.raises(UserError, match=r"x\.csv: unknown kind of file"):
        collect(tmp_path / "x.csv")


class Sized(TextTokenizer):
    """So many entries, some of them special."""

    def __init__(self, size: int, special: dict[str, int]) -> None:
        self.name, self.hash, self.size, self.special, self.files = "sized", "0" * 64, size, special, []

    def encode(self, text: str) -> list[int]:
        return [0] * len(text)

    def decode(self, ids: object) -> str:
        return ""

    def special_id(self, piece: str) -> int | None:
        return self.special.get(piece)


def test_only_tokenizers_that_leave_the_released_ids_free_are_taken() -> None:
    qwen = {"<|endoftext|>": 151643, "<|im_start|>": IM_START, "<|im_end|>": IM_END}
    layout = released_for(Sized(151665, qwen))
    assert layout.special_ids == released().special_ids and layout.tokenizer_hash == "0" * 64
    assert released_for(Sized(50_000, {"<|im_end|>": 7})).im_end == IM_END
    with pytest.raises(UserError, match="151,666 entries, the released vocabulary has room for 151,665"):
        released_for(Sized(151666, qwen))
    with pytest.raises(UserError, match=r"id 151644 is not <\|im_start\|>"):
        released_for(Sized(151665, qwen | {"<|im_start|>": 5}))


def test_a_run_of_codes_does_not_pass_through_the_text_tokenizer(
    template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    encode = type(template.tokenizer).encode
    monkeypatch.setattr(type(template.tokenizer), "encode", lambda self, text: seen.append(text) or encode(self, text))
    codes = np.random.default_rng(0).integers(0, 16384, 3000)
    audio = "".join(f"<|audio_{code}|>" for code in codes)
    ids = template.parse(f"unheard of<|begin_of_audio|>{audio}<|end_of_audio|>till now")
    assert seen == ["unheard of", "till now"]
    np.testing.assert_array_equal(template.layout.codes_of(ids), codes)


@needs_shared
def test_codes_by_name_are_what_the_released_tokenizer_makes_of_them(tmp_path: Path) -> None:
    """The released way: codes and delimiters are tokens of the text tokenizer. The same ids, up to where they begin."""
    bare = Tokenizer.from_file(str(SHARED / "gpt2-bpe" / "tokenizer.json"))
    names = [*DELIMITERS, *(f"<|audio_{code}|>" for code in range(16384))]
    bare.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    by_id = {DELIMITERS.get(name, FIRST_CODE + int(name[8:-2]) if name[8:-2].isdigit() else 0): name for name in names}
    template = ChatTemplate(load_tokenizer(SHARED / "gpt2-bpe"), released())
    for _, record in collect(SHARED / "ttt_released_samples.jsonl")[0]:
        for message in record["messages"]:
            expected = bare.encode(message["content"]).ids
            ours = [
                bare.token_to_id(by_id[i]) if i in by_id else i for i in template.parse(message["content"]).tolist()
            ]
            assert ours == expected
