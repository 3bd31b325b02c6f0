"""What normalisers make of texts, worked by hand, and which one a language gets."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.packages import need_package
from ttt_dist.evaluation.metrics import normalise
from ttt_dist.evaluation.metrics.error_rates import Score
from ttt_dist.evaluation.metrics.languages import written_language
from ttt_dist.evaluation.metrics.normalise import NORMALISERS, normaliser
from ttt_dist.evaluation.metrics.scores import Normalisers
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
        (
            "whisper-en",
            "I don\u2019t, it\u02bcs \u2018fine\u2019",
            "i do not it is fine",
        ),  # apostrophes that look alike
        ("whisper-en", "[noise] Um, twenty-one (laughs) cafés", "21 cafes"),
        ("whisper-en", "hmm", ""),
        (
            "spelt-en",
            "Call 911, 0 or 3-1-4: 2,050 MP3s",
            "call nine hundred eleven zero or three one four two thousand fifty mp3s",
        ),
        ("spelt-en", "007 and 19 x 80, 1,2", "zero zero seven and nineteen x eighty one two"),
        ("spelt-en", "21000000, 1000000000000", f"twenty one million one{' zero' * 12}"),
        ("espnet", "  Hello World,\tDON'T ", "hello world, don't"),  # as sclite 2.4.10 shows: signs count,
        ("espnet", "ÄRGER <noise> Ist", "Ärger <noise> ist"),  # and case counts but in ASCII
        ("wenet", "你好，world! 3.5个", "你 好 WORLD! 3.5 个"),
        ("wenet", "<unk>今天, <noise> hello,you don't", "今 天 HELLO,YOU DON'T"),
        ("wenet", "café ß", "CAF É SS"),
        ("wenet", "...!?，。", "...!?"),
        ("whisper-basic", "Hello, [noise] Wörld (x) 3.5", "hello wörld 3 5"),
        ("whisper-basic", "की", "क"),  # the vowel is a mark
        ("whisper-char", "你好 AB 3", "你 好 a b 3"),
        ("zh-char", "你好，world！３ 个", "你 好 world 3 个"),
        ("zh-char", "ＡＢ中C文don't", "ab 中 c 文 don't"),
        ("zh-char", "〇々\U00020000。", "〇 々 \U00020000"),
        ("zh-char", "。", ""),
        ("basic", "की बात, हिंदी!", "की बात हिंदी"),  # marks belong to their letters
        ("basic", "আমি বাংলায় গান গাই", "আমি বাংলায় গান গাই"),
        ("basic", "தமிழ் மொழி", "தமிழ் மொழி"),
        ("basic", "Ọ̀rẹ́ mi", "ọ̀rẹ́ mi"),
        ("basic", "שָׁלוֹם עֲלֵיכֶם", "שָׁלוֹם עֲלֵיכֶם"),
        ("basic", "\u0301 a \u0301b ❤\ufe0f 3\ufe0f\u20e3", "a b 3"),  # of no letter; selectors of variants
        ("basic", "م\u0640حمد \u200fco\u00adop", "محمد coop"),  # tatweel, direction, soft hyphen
        (
            "basic",
            "м\u2019ята м\u02bcята м'ята o\u02bbzbek d`Arc d\u00b4Arc ג׳ירף",
            "м'ята м'ята м'ята o'zbek d'arc d'arc ג'ירף",
        ),
        ("basic", "İstanbul i\u0307stanbul", "istanbul istanbul"),
        ("basic", "१२ ３ ٤", "12 3 4"),
        ("basic-tr", "İSTANBUL, IŞIK Iğdır", "istanbul ışık ığdır"),
        ("basic-fa", "می\u200cروم كتاب علي", "میروم کتاب علی"),
        ("char", "今日はAI、ﾃｽﾄ 2回。", "今 日 は ai テ ス ト 2 回"),
        ("char", "สวัสดี ok", "ส วั ส ดี ok"),
        ("char", "ສະບາຍດີ", "ສ ະ ບ າ ຍ ດີ"),
        ("char", "ភាសា", "ភា សា"),
        ("char", "မြန်မာ", "မြ န် မာ"),
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
        *((lang, BARE) for lang in ("en", "en-US", "English", "eng_latn", "American English")),
        *((lang, "zh-char") for lang in ("Mandarin Chinese", "Cantonese Chinese", "Chinese (Taiwan)", "cmn_hans_cn")),
        *(
            (lang, "zh-char")
            for lang in ("yue", "yue_hant_hk", "zh_TW", "ZH", "中文", "Min Nan Chinese", "nan-tw", "zho")
        ),
        *(
            (lang, "char")
            for lang in ("ja", "ja_jp", "Japanese", "th_th", "lo", "Lao", "Khmer", "km_kh", "Burmese", "my")
        ),
        *((lang, "basic-tr") for lang in ("tr", "tr-TR", "Turkish", "TÜRKÇE", "az", "aze_latn", "North Azerbaijani")),
        *((lang, "basic-fa") for lang in ("fa", "Persian", "fa_ir", "pes")),
        *((lang, "basic") for lang in ("ko", "ko_kr", "hi", "German", "vi", " - ")),
    ],
)
def test_a_language_has_its_normaliser(asked: str | None, name: str) -> None:
    assert normaliser(asked).name == name


def test_chinese_numerals_are_words_that_are_read_aloud() -> None:
    need_package("cn2an", "text")
    norm = normaliser("spelt-zh")
    assert norm("２０２４年3月，涨了5%") == " ".join("二零二四年三月涨了百分之五")
    assert Score.of("房间三一四", "房间314", norm).words.edits == Score.of("三百一十四", "314", norm).words.edits == 0
    assert Score.of("今年2024年", "今年二零二四年", norm).words.edits == 0
    assert Score.of("今年2024年", "今年二零二四年", normaliser("zh-char")).words.edits == 4


@pytest.mark.parametrize(
    ("lang", "name"),
    [
        ("en", BARE),
        ("German", "whisper-basic"),
        ("zh-CN", "whisper-char"),
        (None, "whisper-basic"),
        ("ko", "whisper-basic"),
    ],
)
def test_whisper_has_a_way_for_each_language(lang: str | None, name: str) -> None:
    assert Normalisers("whisper").of({"lang": lang, "reference": "abc"}).name == name


def test_whisper_goes_by_the_writing_without_a_language() -> None:
    assert Normalisers("whisper").of({"reference": "今天很好"}).name == "whisper-char"


def test_only_writing_without_spaces_has_spaces_that_do_not_count() -> None:
    assert normaliser("zh").characters("你 好 ok") == "你好ok"
    assert normaliser("basic").characters("to  be") == "to be"


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (["今天很好", "用Python"], "zh"),
        (["東京に行く"], "ja"),
        (["東京", "カメラ"], "ja"),
        (["สวัสดีครับ"], "th"),
        (["ສະບາຍດີ"], "lo"),
        (["ភាសាខ្មែរ"], "km"),
        (["မြန်မာ"], "my"),
        (["Işık yandı"], "tr"),
        (["hello 中文", "안녕하세요"], None),
        (["3.14", ""], None),
        ([], None),
    ],
)
def test_a_text_says_its_writing(texts: list[str], wanted: str | None) -> None:
    assert written_language(texts) == wanted


@given(st.text())
def test_any_text_folds_once(text: str) -> None:
    for name in ("basic", "basic-tr", "basic-fa", "char", "spelt-en"):
        norm = normaliser(name)
        once = norm(text)
        assert once == " ".join(once.split()) and norm.pair(text, text)[0] in norm.pair(text, text)[1]


def test_spellings_of_a_flag_and_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "package" / "normalizers" / "english.json"
    table.parent.mkdir(parents=True)
    table.write_text(json.dumps({"colour": "color"}))
    (table.parent.parent / "__init__.py").touch()
    assert normaliser(f"whisper-en:{table}")("colour") == "color"
    with pytest.raises(UserError, match=r"whisper-en:.*has no normalizer\.json"):
        normaliser(f"whisper-en:{tmp_path}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(normalise, "PACKAGES", {"package": "normalizers/english.json"})
    normalise._installed.cache_clear()
    try:
        assert (normaliser("en").name, normaliser("en")("colour")) == ("whisper-en", "color")
    finally:
        normalise._installed.cache_clear()


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


@given(st.text(alphabet=st.sampled_from("aB é中文1,.'。 \t")), st.sampled_from(["basic", "zh-char", "char"]))
def test_once_is_enough(text: str, name: str) -> None:
    once = normaliser(name)(text)
    assert normaliser(name)(once) == once == " ".join(once.split())


def test_names_are_those_of_the_flag() -> None:
    assert all(normaliser(name).name.startswith(name) for name in NORMALISERS)
