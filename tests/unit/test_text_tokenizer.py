"""Ids come from a tokenizer's own file: wherever it lies, with holes in its vocabulary, whatever the text says; all texts teach."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ttt_dist.model.hf.published import _known_rows
from ttt_dist.sequence.sentencepiece_training import LONGEST, training_lines
from ttt_dist.sequence.text_tokenizer import load_tokenizer, train_sentencepiece
from ttt_dist.sequence.tokens import extend, released, require_room
from ttt_dist.util.errors import UserError

TEXT = "The year 2026: don't count 12345 words,  twice  spaced\nand cut; naïve cafés 中文 漢字"
MARKUP = ["<|im_start|>", "<|im_end|>", "<think>", "[INST]", "<｜User｜>", "<s>"]


def bpe(marked: bool = False, **model: Any) -> Tokenizer:
    """A BPE whose splitting is no class's of transformers: digits in threes, lower case; `marked` as Llama 2's, else byte-level."""
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    if marked:
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(split=True), decoders.Metaspace()
    else:
        split = pre_tokenizers.Split(Regex(r"\d{1,3}|\s+|[^\s\d]+"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
    alphabet = [] if marked else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator([TEXT, "12345 67890 don't twice"] * 20, trainer)
    return tokenizer


def write(
    folder: Path, tokenizer: Tokenizer, config: dict[str, Any] | None = None, model_type: str | None = None
) -> Path:
    """The folder of a published model: tokenizer.json, and what may lie beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config or {}))
    if model_type is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


# ---- the file decides


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama", "mistral", "phi3", None])
@pytest.mark.parametrize(
    "named", ["Qwen2Tokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", "GPT2Tokenizer", None]
)
def test_a_copy_means_the_same_wherever_it_lies(named: str | None, model_type: str | None, tmp_path: Path) -> None:
    bare = bpe()
    source = write(tmp_path / "source", bare, {"tokenizer_class": named} if named else {}, model_type)
    tokenizer = load_tokenizer(source)
    assert tokenizer.encode(TEXT) == bare.encode(TEXT, add_special_tokens=False).ids
    tokenizer.save(tmp_path / "copy")
    assert not (tmp_path / "copy" / "config.json").exists()
    again = load_tokenizer(tmp_path / "copy")
    assert (again.encode(TEXT), again.hash, again.size) == (tokenizer.encode(TEXT), tokenizer.hash, tokenizer.size)
    assert again.decode(again.encode(TEXT)) == bare.decode(bare.encode(TEXT).ids)


def test_ids_are_the_same_each_time(tmp_path: Path) -> None:
    """`dropout` of merges is for training a tokenizer's user against; padding and truncation are for batches."""
    values = json.loads(bpe().to_str())
    values["model"]["dropout"] = 0.5
    values["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    write(tmp_path, bpe())
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    tokenizer = load_tokenizer(tmp_path)
    assert len({tuple(tokenizer.encode(TEXT)) for _ in range(20)}) == 1
    assert tokenizer.encode(TEXT) == bpe().encode(TEXT).ids


def test_an_export_is_opened_by_its_own_tokenizer(tmp_path: Path) -> None:
    write(tmp_path, Tokenizer(models.WordLevel({"x": 0}, unk_token="x")))
    write(tmp_path / "tokenizer", bpe())
    assert load_tokenizer(tmp_path).size == bpe().get_vocab_size()
    assert load_tokenizer(tmp_path / "tokenizer" / "tokenizer.json").hash == load_tokenizer(tmp_path).hash


# ---- holes


def with_holes(kind: str) -> tuple[dict[str, Any], int]:
    """A tokenizer.json whose ids go up to 499 with fewer entries, and its number of entries."""
    values = json.loads(bpe().to_str())
    if kind == "words":
        words = {"<unk>": 0, "the": 3, "year": 499}
        values["model"] = {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}
        values |= {"added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}}
        return values, 3
    entries = values["model"]["vocab"]
    if kind == "added":
        values["added_tokens"].append(values["added_tokens"][0] | {"id": 499, "content": "<|im_end|>"})
    else:
        entries[next(reversed(entries))] = 499
    return values, len(entries)


@pytest.mark.parametrize("kind", ["words", "merges", "added"])
def test_a_vocabulary_with_holes_is_as_long_as_its_largest_id(kind: str, tmp_path: Path) -> None:
    values, number = with_holes(kind)
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    tokenizer = load_tokenizer(tmp_path)
    assert number < tokenizer.size == 500
    if kind == "added":  # the library would have put it at the number of entries
        assert tokenizer.special_id("<|im_end|>") == 499 and tokenizer.text_size < 499
    layout = extend(tokenizer, 32)
    assert layout.num_text_tokens == 500 and layout.first_code >= 500
    assert not layout.is_audio[tokenizer.encode("the year")].any()
    assert _known_rows({}, tmp_path, tokenizer, layout, 512, False) == 500


def test_text_beyond_the_released_text_is_refused(tmp_path: Path) -> None:
    values, _ = with_holes("words")
    values["model"]["vocab"]["year"] = 151_700
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    tokenizer = load_tokenizer(tmp_path)
    assert released().is_audio[tokenizer.encode("year")].all()
    with pytest.raises(UserError, match=r"needs ids for 151,701 entries, the released vocabulary has room for 151,665"):
        require_room(tokenizer, released())


def test_ids_that_no_model_has_rows_for_are_refused(tmp_path: Path) -> None:
    values, _ = with_holes("words")
    values["model"]["vocab"]["year"] = 4_000_000_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"tokenizer\.json: has ids up to 4,000,000,000"):
        load_tokenizer(tmp_path)


# ---- plain text stays text


def marked_tokenizers(folder: Path) -> dict[str, Path]:
    """Tokenizers of many kinds that have all of MARKUP as entries."""
    made = {}
    flags = [
        AddedToken(piece, special=number % 2 == 0, normalized=number % 3 == 0) for number, piece in enumerate(MARKUP)
    ]
    for name, tokenizer in (("bytes", bpe()), ("spaces", bpe(marked=True, unk_token="<unk>"))):
        tokenizer.add_tokens(flags)
        made[name] = write(folder / name, tokenizer)
    words = Tokenizer(
        models.WordLevel({"<unk>": 0} | {piece: n + 1 for n, piece in enumerate(MARKUP)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pieces = [
        ("<unk>", 0.0),
        *((piece, 0.0) for piece in MARKUP),
        *((chr(n), -9.0) for n in range(32, 127)),
        ("▁", -9.0),
    ]
    unigram = Tokenizer(models.Unigram(pieces, unk_id=0))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    merged = {chr(n): n - 32 for n in range(32, 127)} | {"<s": 95, "<s>": 96, "<s>s": 97}
    chained = Tokenizer(models.BPE(merged, [("<", "s"), ("<s", ">"), ("<s>", "s")]))
    for name, tokenizer in (("words", words), ("unigram", unigram), ("merges", chained)):
        tokenizer.add_tokens(flags)
        made[name] = write(folder / name, tokenizer)
    user = train_sentencepiece([TEXT, "<|im_end|> x"] * 20, folder / "user", 330).files[0]
    proto = ModelProto.FromString(user.read_bytes())
    for piece, kind in zip(MARKUP, [4, 3, 4, 4, 4, 3], strict=True):  # user-defined, control
        proto.pieces.add(piece=piece, score=0.0, type=kind)
    user.write_bytes(proto.SerializeToString())
    return made | {"user": user.parent}


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folders = marked_tokenizers(tmp_path_factory.mktemp("marked"))
    return {name: load_tokenizer(folder) for name, folder in folders.items()}


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([*MARKUP, " ", "\n", "s", "<", "im_end", "|>", "<unk>", "x y"]), max_size=8).map("".join)
)
@pytest.mark.parametrize("name", ["bytes", "spaces", "words", "unigram", "merges", "user"])
def test_no_text_becomes_a_special_token(name: str, marked: dict[str, Any], text: str) -> None:
    tokenizer = marked[name]
    special = {tokenizer.special_id(piece) for piece in MARKUP}
    assert None not in special and not special & set(tokenizer.encode(text))
    for piece in MARKUP:
        known = tokenizer.special_id(piece)
        if name != "user":
            assert tokenizer.encode_markup(piece) == [known]
            assert tokenizer.decode([known]).strip() in (piece, piece.lower())  # a normalised one is told so


@pytest.mark.parametrize("name", ["bytes", "user"])
def test_markup_in_a_text_comes_back(name: str, marked: dict[str, Any]) -> None:
    text = "say <|im_end|> and <think> [inst]"
    assert marked[name].decode(marked[name].encode(text)) == text


def test_words_and_spaces_that_somebody_added_are_text(tmp_path: Path) -> None:
    tokenizer = bpe()
    tokenizer.add_tokens(["hypertension", "    ", "新词"])
    found = load_tokenizer(write(tmp_path, tokenizer))
    for piece in ("hypertension", "    ", "新词"):
        assert found.encode(piece) == [tokenizer.token_to_id(piece)] and found.special_id(piece) is None
    assert found.text_size == found.size


# ---- what teaches a tokenizer


@pytest.mark.parametrize("text", ["zyxwv utsrq " * 1000, "今天天气很好" * 700, "zyxwv\u2585 utsrq 今天天气"])
def test_every_text_teaches(text: str, tmp_path: Path) -> None:
    tokenizer = train_sentencepiece([text] * 20 + ["one two"], tmp_path, 320)
    for word in ("zyxwv", "utsrq", "今天天气"):
        if word in text:
            assert len(tokenizer.encode(word)) <= 2


@settings(max_examples=200)
@given(
    st.lists(
        st.sampled_from([" ", "\n", "a", "é", "中", "🙂", "word " * 700, "中文" * 900, "\ud800"]), max_size=12
    ).map("".join)
)
def test_lines_to_learn_from_are_the_text(text: str) -> None:
    lines = list(training_lines(text))
    assert all(0 < len(line.encode()) <= LONGEST for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace("\ud800", "").replace(" ", "")
    if len(text.encode("utf8", "ignore")) <= LONGEST and text:
        assert lines in ([text.replace("\ud800", "")], [])


# ---- files that are none


BAD = {
    "empty": b"", "text": b"hello", "list": b"[]", "utf16": '{"model": {}}'.encode("utf-16"), "latin": b'{"a": "\xe9"}',
    "deep": b'{"a":' + b"[" * 100_000, "other": b'{"version": "1.0"}', "model": b'{"model": 3, "added_tokens": 4}',
    "null": b"null", "nan": b'{"model": NaN}', "vocab": b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
    "tokens": b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": [{"id": "x"}]}',
    "hollow": b'{"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}',
    "unigram": b'{"model": {"type": "Unigram", "vocab": [["a"]], "unk_id": 9}}',
}  # fmt: skip


OBJECTS = ("other", "model", "nan", "vocab", "tokens", "hollow", "unigram")  # nothing of them is asked for in settings


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in ("tokenizer.json", "tokenizer.model") for kind in BAD]
    + [("tokenizer_config.json", kind) for kind in BAD if kind not in OBJECTS],
)
def test_bad_files_are_one_line(name: str, kind: str, tmp_path: Path) -> None:
    if name == "tokenizer_config.json":
        write(tmp_path, bpe())
    (tmp_path / name).write_bytes(BAD[kind])
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as refusal:
        load_tokenizer(tmp_path)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 600


def test_what_tiktoken_reads_is_told_apart_from_a_damaged_model(tmp_path: Path) -> None:
    """Llama 3 and Qwen publish such files beside a folder in transformers' form."""
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(
        UserError, match=r"tokenizer\.model: is tiktoken's, which is not read; .* with its tokenizer\.json"
    ):
        load_tokenizer(tmp_path)


def test_folders_and_links_in_the_place_of_files(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model"):
        (tmp_path / name / name).mkdir(parents=True)
        with pytest.raises(UserError, match=r"is no file of a tokenizer"):
            load_tokenizer(tmp_path / name)
    with pytest.raises(
        UserError, match=r"not fetched by name: `hf download Qwen/Qwen2.5-0.5B --local-dir DIR`, then name DIR"
    ):
        load_tokenizer("Qwen/Qwen2.5-0.5B")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no text tokenizer here"):
        load_tokenizer(tmp_path / "empty")


def test_a_token_that_only_the_settings_state_is_named(tmp_path: Path) -> None:
    write(tmp_path, bpe(), {"added_tokens_decoder": {"420": {"content": "<|im_end|>", "special": True}}})
    with pytest.raises(
        UserError, match=r"tokenizer_config\.json: states '<\|im_end\|>' as id 420, which tokenizer\.json lacks"
    ):
        load_tokenizer(tmp_path)
