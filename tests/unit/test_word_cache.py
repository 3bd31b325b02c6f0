"""The word cache gives exactly the tokenizer's ids, whatever the text, for every pre-tokenizer that it accepts."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ttt_dist.sequence.id_bytes import to_array, to_bytes
from ttt_dist.sequence.word_cache import PATTERNS, WordCache, is_exact_for

TEXTS = [
    "the quick brown fox's 12 lazy dogs, don't \"jump\" over 1234 fences!",
    "é ß İ 中文 a\u0301 x_y",
    "say 'tis so 's",
]


def trained(pattern: str | None, nfc: bool) -> Tokenizer:
    """A byte-level BPE as GPT-2's (no pattern) or as those that split by a pattern first."""
    tokenizer = Tokenizer(models.BPE())
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), behavior="isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, plain]) if split else plain
    tokenizer.decoder = decoders.ByteLevel()
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS * 9, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


KINDS = {"gpt2": trained(None, False), "qwen": trained(PATTERNS[0], True), "llama": trained(PATTERNS[1], False)}
ALPHABET = st.sampled_from(
    [*list("ab'st 12,.\"_!\t\n\r"), " ", "  ", " '", "é", "中", "́", "\xa0", "\u2028", "İ", "ſ", "🙂"]
)


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.lists(ALPHABET, max_size=30).map("".join) | st.text(max_size=30))
@settings(max_examples=400)
def test_ids_are_the_tokenizers(kind: str, text: str) -> None:
    backend = KINDS[kind]

    def whole(text: str) -> list[int]:
        return list(backend.encode(text, add_special_tokens=False).ids)

    try:
        expected = whole(text)
    except (TypeError, UnicodeEncodeError):
        return
    cache = WordCache(lambda text: to_bytes(whole(text)))
    assert to_array(cache.encode(text)).tolist() == expected
    assert to_array(cache.encode(text)).tolist() == expected  # now from memory


def test_which_tokenizers_are_taken() -> None:
    for backend in KINDS.values():
        assert is_exact_for(backend.to_str())
    values = json.loads(KINDS["qwen"].to_str())
    for change in (
        {"model": {"type": "Unigram"}},
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
        {"added_tokens": [{"content": "<a>", "special": False, "rstrip": True}]},
        {"added_tokens": [{"content": "a b", "special": False}]},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}},
    ):
        assert not is_exact_for(json.dumps(values | change)), change
    for odd in (
        {"normalizer": []},
        {"normalizer": ["NFC"]},
        {"pre_tokenizer": {"pretokenizers": []}},
        {"added_tokens": [1]},
        {"model": 3},
    ):
        assert not is_exact_for(json.dumps(values | odd)), odd
    values["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+ \w+|."
    assert not is_exact_for(json.dumps(values))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttt_dist.sequence.word_cache.MOST_WORDS", 5)
    asked: list[str] = []
    cache = WordCache(lambda text: asked.append(text) or to_bytes([len(text)]))  # type: ignore[func-returns-value]
    text = " ".join("x" * n for n in range(1, 30))
    assert to_array(cache.encode(text)).tolist() == [1, *range(3, 31)]
    assert len(cache._later) <= 5
    cache.encode("one two three\nfour one two three\nfour")
    assert asked[-1] == " three\nfour"


def test_what_hardly_recurs_is_not_kept() -> None:
    asked: list[str] = []
    cache = WordCache(lambda text: asked.append(text) or b"")  # type: ignore[func-returns-value]
    text = "我们今天去公园散步看见了很多漂亮的花草树木还有许多小孩子在那里玩耍 然后 回家"
    cache.encode(text)
    cache.encode(text)
    assert asked == [text, text]
