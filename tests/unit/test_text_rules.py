"""Text rules: each does what its name says, twice is as good as once, and a chain reaches every text of an entry."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.__main__ import main
from data_prep.selection.text_rules import TEXT_RULES, read_text_rules, rewritten
from tests.corpora import read_entries
from tests.packages import need_package
from ttt_dist.util.errors import UserError


def apply(name: str, argument: object, text: str, lang: str | None = None) -> str:
    return TEXT_RULES[name].make(argument)(text, lang)


@pytest.mark.parametrize(
    ("name", "argument", "text", "wanted"),
    [
        ("case", "lower", "HELLO Ärger", "hello ärger"),
        ("case", "upper", "hello", "HELLO"),
        ("unicode", "NFKC", "１２ Ａ", "12 A"),
        ("unicode", "NFC", "e\u0301", "é"),
        ("spaces", None, "  a \t b ", "a b"),
        ("han_spaces", None, "你 好 big world 啊", "你好big world啊"),
        ("tags", None, "YES <COMMA> IT IS <PERIOD>", "YES, IT IS."),
        ("tags", {"<UM>": "", "&": "and", "<UM2>": "!"}, "a <UM> b & c <UM2>", "a b and c!"),
        ("punctuation", "ascii", "“你好”，it’s…（x）", '"你好",it\'s...(x)'),
        ("punctuation", "remove", "'Well,well' -- don't e-mail: ‘x’_y!", "Well well don't e-mail x y"),
        ("punctuation", "remove", "你好，世界。", "你好 世界"),
        ("punctuation", "remove", "नमस्ते।", "नमस्ते"),
    ],
)
def test_rules(name: str, argument: object, text: str, wanted: str) -> None:
    assert apply(name, argument, text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("21", "twenty-one"),
        ("he paid 1,234.50 or 5%", "he paid one thousand two hundred and thirty-four point five zero or five percent"),
        ("the 21st, 2ND and 3rd", "the twenty-first, second and third"),
        ("007 B2B 5kg", "zero zero seven B two B five kg"),
        ("-3.5 x-5 10-20kg", "minus three point five x-five ten to twenty kg"),
        (
            "$5-10 billion, $1-2 million, $100-$200",
            "five to ten billion dollars, one to two million dollars, one hundred dollars to two hundred dollars",
        ),
        ("½cup", "one half cup"),
        ("the 1990s, '90s, 1990's", "the nineteen nineties, nineties, nineteen nineties"),
        ("in 2024's 1900, 747s", "in twenty twenty-four's nineteen hundred, seven hundred and forty-sevens"),
        (
            "in 1984, 2005, 1,984",
            "in nineteen eighty-four, two thousand and five, one thousand nine hundred and eighty-four",
        ),
        (".5 or -.5", "point five or minus point five"),
        ("$5.50, $1, $.99", "five dollars and fifty cents, one dollar, ninety-nine cents"),
        ("£1.01 5€ ¥500", "one pound and one penny five euros five hundred yen"),
        ("-$3.5 million, $20k", "minus three point five million dollars, twenty thousand dollars"),
        ("$1,000.50 $5.505", "one thousand dollars and fifty cents five point five zero five dollars"),
        ("1,000.50, 1,000th, 007th", "one thousand point five zero, one thousandth, seventh"),
        ("10:30, 8:05 am, 8:00, 22:00", "ten thirty, eight oh five am, eight o'clock, twenty-two hundred"),
        ("10:30am to 9:15:01", "ten thirty am to nine fifteen and one second"),
        ("1/2, 3/4, 1 1/2, 1½ 9/11", "one half, three quarters, one and a half, one and a half nine slash eleven"),
        ("2024-01-05, 12/05/2024", "January fifth twenty twenty-four, twelve slash zero five slash twenty twenty-four"),
        (
            "10%-20% $5-$10 2019–2020",
            "ten percent to twenty percent five dollars to ten dollars twenty nineteen to twenty twenty",
        ),
        ("10:30-11:00", "ten thirty to eleven o'clock"),
        ("555-123-4567, 4-4-2", "five five five one two three four five six seven, four four two"),
        ("+1 (555) 123-4567", "plus one five five five one two three four five six seven"),
        ("(555) 123-4567", "five five five one two three four five six seven"),
        ("+44 20 7946 0018", "plus four four two zero seven nine four six zero zero one eight"),
        ("3:2, 16:9, v1.2.3", "three to two, sixteen to nine, v one point two point three"),
        ("-3℃, 41°F, 90°", "minus three degrees Celsius, forty-one degrees Fahrenheit, ninety degrees"),
        ("call 13812345678", "call one three eight one two three four five six seven eight"),
    ],
)
def test_english_numbers(text: str, wanted: str) -> None:
    need_package("num2words", "text")
    assert apply("numbers", "en", text, "en-GB") == apply("numbers", "en", text) == wanted
    assert apply("numbers", "en", text, "de") == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2024年10月1日", "二零二四年十月一日"),
        ("我有3.50个", "我有三点五零个"),
        ("涨了5%", "涨了百分之五"),
        ("气温-3.5℃，5-6度", "气温负三点五摄氏度，五-六度"),
        ("-3°C到41°F", "负三摄氏度到四十一华氏度"),  # as NFKC leaves them
        ("1,234元和12345", "一千二百三十四元和一万二千三百四十五"),
        ("电话13812345678", "电话一三八一二三四五六七八"),
        ("10年", "十年"),
        ("２０２４年", "二零二四年"),
        ("2024-01-05和2024/12/31", "二零二四年一月五日和二零二四年十二月三十一日"),
        ("8:05到9:00", "八点零五分到九点"),
        ("08:30:05", "八点三十分零五秒"),
        ("1/2的人付¥1,234.5", "二分之一的人付一千二百三十四点五元"),
        ("比分3:2，1.2.3版", "比分三比二，一点二点三版"),
        ("3.5%，20%-30%，5~6度", "百分之三点五，百分之二十到百分之三十，五到六度"),
        ("¥5.50，$3.5亿，€ 5", "五点五零元，三点五亿美元，五欧元"),
        ("138-1234-5678，138 1234 5678", "一三八一二三四五六七八，一三八一二三四五六七八"),
        ("010-12345678，400-800-1234", "零一零一二三四五六七八，四零零八零零一二三四"),
        ("+86 13812345678", "加八六一三八一二三四五六七八"),
        (".5 和 5.5万", "零点五 和 五点五万"),
    ],
)
def test_chinese_numbers(text: str, wanted: str) -> None:
    need_package("cn2an", "text")
    assert apply("numbers", "zh", text, "zh-CN") == wanted
    assert apply("numbers", "zh", text, "en") == text


MIXED = st.text(st.sampled_from("aZé 120:/¥,.-%$+()½'’ß你好，。 \t_年st<>İǆ"), max_size=12) | st.text(max_size=8)
PLAIN = [
    *(("case", "lower"), ("case", "upper"), ("unicode", "NFC"), ("unicode", "NFKC"), ("spaces", None)),
    *(("han_spaces", None), ("tags", None), ("punctuation", "ascii"), ("punctuation", "remove")),
]


@pytest.mark.parametrize(("name", "argument"), PLAIN)
@given(text=MIXED)
def test_twice_is_once(name: str, argument: object, text: str) -> None:
    once = apply(name, argument, text)
    assert apply(name, argument, once) == once


@pytest.mark.parametrize(("lang", "package"), [("en", "num2words"), ("zh", "cn2an")])
@given(text=MIXED)
def test_numbers_leave_no_digit(lang: str, package: str, text: str) -> None:
    need_package(package, "text")
    once = apply("numbers", lang, text)
    assert not set(once) & set("0123456789")
    assert apply("numbers", lang, once) == once


@given(text=MIXED)
def test_removed_punctuation_leaves_letters_alone(text: str) -> None:
    letters = [sign for sign in text if sign.isalnum()]
    assert [sign for sign in apply("punctuation", "remove", text) if sign.isalnum()] == letters


@pytest.mark.parametrize(("lang", "package"), [("en", "num2words"), ("zh", "cn2an")])
def test_a_missing_package_is_named(lang: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / "rules.yaml"
    path.write_text(f"rules: [numbers: {lang}]")
    with pytest.raises(
        UserError, match=rf'rules.yaml: rule numbers: {package} is not installed; pip install -e "\.\[text\]"'
    ):
        read_text_rules(path)


@pytest.mark.parametrize(
    ("yaml", "told"),
    [
        ("", "holds no list `rules:`"),
        ("rules: []", "holds no list `rules:`"),
        ("rules: [spaces]\nrule: x", "holds no list `rules:`"),
        ("rules: [space]", "space: is not known; did you mean spaces"),
        ("rules: [5]", "5: is not known"),
        ("rules: [case]", "case: None is none of lower, upper"),
        ("rules: [case: Lower]", "case: 'Lower' is none of lower, upper; write `case: lower`"),
        ("rules: [spaces: 2]", "spaces: takes no argument"),
        ("rules: [tags: [a]]", "tags: takes a mapping"),
        ("rules: [{tags: {a: [b]}}]", "tags: takes a mapping"),
        ("rules: [no_such_package_x:fold]", "there is no module no_such_package_x"),
        ("rules: [{case: lower, spaces: }]", "is not known"),
    ],
)
def test_chains_that_are_refused(yaml: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml)
    with pytest.raises(UserError) as refused:
        read_text_rules(path)
    assert str(refused.value).startswith(f"{path}: ") and told in str(refused.value)


def test_every_text_of_an_entry_goes_through_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("rules:\n  - tags\n  - case: lower\n  - spaces\n")
    chain = read_text_rules(path)
    entry = {
        "text": "A  <COMMA> B",
        "turns": [{"role": "user", "text": "C"}, {"role": "user", "audio": "D.wav"}],
        "segments": [{"text": "E", "offset": 0.0}],
        "label": "F",
    }
    assert rewritten(entry, chain) == {
        "text": "a, b",
        "turns": [{"role": "user", "text": "c"}, {"role": "user", "audio": "D.wav"}],
        "segments": [{"text": "e", "offset": 0.0}],
        "label": "F",
    }
    clean = {"text": "a", "lang": 5}
    assert rewritten(clean, chain) is clean


def test_filter_cleans_before_it_selects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rules.py").write_text(
        "def fold(text, lang):\n    return text.replace('colour', 'color')\n"
        "def broken(text, lang):\n    return text[99]\n"
        "def wrong(text, lang):\n    return None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    rules, out = tmp_path / "rules.yaml", tmp_path / "out.jsonl"
    rules.write_text("rules: [{punctuation: remove}, {case: lower}, own_rules:fold]")
    texts = ["Hello!", "hello", "...", "the COLOUR", "as it  is"]
    lines = [{"id": str(i), "audio": f"{i}.wav", "text": text, "duration": 1.0} for i, text in enumerate(texts)]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(line, indent=None, separators=(" , ", ":")) + "\n" for line in lines))
    command = ["filter", "--manifest", str(source), "--out", str(out), "--text-rules", str(rules)]
    main([*command, "--unique", "text"])
    assert [(entry["id"], entry["text"]) for entry in read_entries(out)] == [
        ("0", "hello"),
        ("3", "the color"),
        ("4", "as it is"),
    ]
    report = json.loads((tmp_path / "out.jsonl.report.json").read_text())
    assert {reason: tally["count"] for reason, tally in report["skipped"].items()} == {
        "no words left by --text-rules": 1,
        "text came before": 1,
    }
    rules.write_text("rules: [case: lower]")
    main(command)
    assert out.read_bytes().splitlines()[1] == source.read_bytes().splitlines()[1]
    for name, told in (("broken", r"failed at 'Hello!' \(IndexError"), ("wrong", "gave NoneType for 'Hello!'")):
        rules.write_text(f"rules: [own_rules:{name}]")
        with pytest.raises(UserError, match=f"--text-rules own_rules:{name}: {told}"):
            main(command)
