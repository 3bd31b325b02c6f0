"""Values mean what they look like: YAML by the core rules of 1.2, within bounds."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt_dist.config.yaml_file import MAX_CHARACTERS, Plain, core_value, parse_yaml, read_yaml
from ttt_dist.util.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10), ("0o17", 15), ("0x1F", 31), ("+3", 3), ("-0", 0),
        ("1e-3", 1e-3), ("1.0e-4", 1e-4), (".5", 0.5), ("5.", 5.0), ("1E3", 1000.0), ("-.inf", -math.inf),
        ("true", True), ("FALSE", False), ("null", None), ("~", None), ("", None),
        ("1:30", "1:30"), ("2024_01", "2024_01"), ("1_000", "1_000"), ("2024-01-01", "2024-01-01"), ("yes", "yes"),
        ("tRue", "tRue"), ("0b1", "0b1"), ("1.2.3", "1.2.3"), ("e5", "e5"), ("٣", "٣"), ("=", "="),
    ],
)  # fmt: skip
def test_scalars_are_those_of_the_core_schema(text: str, value: object) -> None:
    found = core_value(text)
    assert (found, type(found)) == (value, type(value))


def test_scalars_stay_text_until_a_field_is_known() -> None:
    values = parse_yaml("{a: 1.10, b: '1.10', no: [yes, 1:30], 3: x, d: !!int 4}", "here:")
    assert values == {"a": "1.10", "b": "1.10", "no": ["yes", "1:30"], "3": "x", "d": "4"}
    assert [isinstance(values[key], Plain) for key in ("a", "b", "d")] == [True, False, True]
    assert parse_yaml("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}", "")["b"] == {"p": "1", "q": "3"}


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: {c: 1,\n c: 2}", "line 3 .*the key `c` stands twice"),
        (BOMB, "line .*aliases repeat so much"),
        (BOMB.replace("[", "{<<: [").replace("]", "]}").replace("[x, x]", "{x: 1}"), "line .*"),
        ("a: &a [*a]", "line 1 .*contains itself"),
        ("[" * 5000, "nested too deeply"),
        ("a: !!python/object:os.system x", "line 1 .*could not determine a constructor"),
        ("a: !!binary eA==", "line 1 .*could not determine a constructor"),
        ("a: \0", "not YAML"),
        ("? [a]\n: 1", "line 1 .*unhashable"),
        ("--- 1\n--- 2", "line 2 .*another document"),
        ("a" * (MAX_CHARACTERS + 1), "more than"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_settings_is_refused_in_a_line(text: str, told: str) -> None:
    with pytest.raises(UserError, match=f"^run.yaml: ?{told}|^run.yaml:.*{told}") as caught:
        parse_yaml(text, "run.yaml:")
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("run_dir: caf\xe9".encode("latin1"))
    with pytest.raises(UserError, match=r"latin\.yaml: byte 12 is not UTF-8"):
        read_yaml(tmp_path / "latin.yaml")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(UserError, match=r"list\.yaml: must hold sections"):
        read_yaml(tmp_path / "list.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_in_a_line(text: str) -> None:
    refusal = "run.yaml:"
    try:
        parse_yaml(text, "run.yaml:")
    except UserError as error:
        refusal = str(error)
    assert refusal.startswith("run.yaml:") and "\n" not in refusal and len(refusal) < 300
