"""What normalisers make of texts, worked by hand, and which one a language gets."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttt_dist.evaluation.metrics.normalise import NORMALISERS, normaliser
from ttt_dist.util.errors import UserError

BARE = "whisper-en (no spelling table)"


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("basic", "  It's  TWENTY-one,\t'ok' 中文。", "it's twenty one ok 中文"),
        ("basic", "L\u2019e\u0301te\u0301 a\u0300 3 h", "l'été à 3 h"),  # a curly apostrophe, accents apart
        ("basic", "rock 'n' roll", "rock n roll"),
        ("basic", "... !", ""),
        ("whisper-en", "Mr. Brown can't pay $20 million", "mister brown can not pay $20000000"),
        ("whisper-en", "three one four", "314"),
        ("whisper-en", "[noise] Um, twenty-one (laughs) cafés", "21 cafes"),
        ("whisper-en", "hmm", ""),
        (
            "spelt-en",
            "Call 911, 0 or 3-1-4: 2,050 MP3s",
            "call nine hundred eleven zero or three one four two thousand fifty mp3s",
        ),
        ("spelt-en", "007 and 19 x 80, 1,2", "zero zero seven and nineteen x eighty one two"),
        ("spelt-en", "21000000, 1000000000000", f"twenty one million one{' zero' * 12}"),
        ("zh-char", "你好，world！３ 个", "你 好 world 3 个"),
        ("zh-char", "ＡＢ中C文don't", "ab 中 c 文 don't"),
        ("zh-char", "〇々\U00020000。", "〇 々 \U00020000"),
        ("zh-char", "。", ""),
    ],
)
def test_by_hand(name: str, text: str, wanted: str) -> None:
    assert normaliser(name)(text) == wanted
    assert normaliser(name).words(text) == wanted.split()


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        *((lang, "basic") for lang in (None, "", "de", "enm")),
        *((lang, "zh-char") for lang in ("zh", "zh-CN", "cmn_Hans")),
        *((lang, BARE) for lang in ("en", "en-US", "English")),
    ],
)
def test_a_language_has_its_normaliser(asked: str | None, name: str) -> None:
    assert normaliser(asked).name == name


def test_only_chinese_has_spaces_that_do_not_count() -> None:
    assert normaliser("zh").characters("你 好 ok") == "你好ok"
    assert normaliser("basic").characters("to  be") == "to be"


def test_spellings_come_from_a_folder(tmp_path: Path) -> None:
    assert normaliser("en", tmp_path / "none").name == BARE
    table = tmp_path / "normalizer.json"
    table.write_text(json.dumps({"colour": "color"}))
    assert (normaliser("en", tmp_path).name, normaliser("en", tmp_path)("Colours, colour")) == (
        "whisper-en",
        "colours color",
    )
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "normalizer.json").write_text("[1]")
    with pytest.raises(UserError, match=r"normalizer\.json: is no table"):
        normaliser("en", tmp_path / "bad")


@given(st.text(alphabet=st.sampled_from("aB é中文1,.'。 \t")), st.sampled_from(["basic", "zh-char"]))
def test_once_is_enough(text: str, name: str) -> None:
    once = normaliser(name)(text)
    assert normaliser(name)(once) == once == " ".join(once.split())


def test_names_are_those_of_the_flag() -> None:
    assert all(normaliser(name).name.startswith(name) for name in NORMALISERS)
