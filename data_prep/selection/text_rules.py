"""`--text-rules FILE.yaml`: a chain of rules that every text of an entry goes through, in their order."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.selection import text_functions as functions
from data_prep.selection.numbers import LANGUAGES, numbers
from data_prep.selection.text_functions import TextRule, require_choice
from ttt_dist.config.yaml_file import read_yaml
from ttt_dist.manifest.entry import Entry
from ttt_dist.util.errors import UserError
from ttt_dist.util.plugins import load_function, split_spec

FLAG = "--text-rules"
SIGNATURE = "def rule(text: str, lang: str | None) -> str"


@dataclass(frozen=True)
class TextRuleRow:
    """A rule by name."""

    make: Callable[[Any], TextRule]
    """Of the argument in the YAML."""
    choices: tuple[str, ...] = ()
    """Of the argument; () where it takes none, or a mapping."""
    takes_mapping: bool = False


TEXT_RULES = {
    "case": TextRuleRow(functions.case, ("lower", "upper")),
    "han_spaces": TextRuleRow(functions.han_spaces),
    "numbers": TextRuleRow(numbers, tuple(LANGUAGES)),
    "punctuation": TextRuleRow(functions.punctuation, ("ascii", "remove")),
    "spaces": TextRuleRow(functions.spaces),
    "tags": TextRuleRow(functions.tags, takes_mapping=True),
    "unicode": TextRuleRow(functions.unicode_form, ("NFC", "NFKC")),
}


def read_text_rules(path: Path) -> list[TextRule]:
    """The chain that a YAML file names under `rules`. Raises UserError that names the file and the rule."""
    values = read_yaml(path)
    rules = values.get("rules")
    if set(values) != {"rules"} or not isinstance(rules, list) or not rules:
        raise UserError(f"{path}: holds no list `rules:` alone; write one, such as `rules: [tags, case: lower]`")
    try:
        return [_rule(entry) for entry in rules]
    except UserError as error:
        raise UserError(f"{path}: rule {error}") from error


def _rule(entry: Any) -> TextRule:
    """`NAME`, `NAME: ARGUMENT`, or `package.module:name`."""
    if isinstance(entry, dict) and len(entry) == 1:
        ((name, argument),) = entry.items()
    else:
        name, argument = entry, None
    row = TEXT_RULES.get(name) if isinstance(name, str) else None
    if row is None:
        return _own_rule(name, argument)
    if row.choices:
        require_choice(name, argument, row.choices)
    elif argument is not None and not (row.takes_mapping and _is_mapping_of_text(argument)):
        what = "a mapping of text to text" if row.takes_mapping else "no argument"
        raise UserError(f"{name}: takes {what}, not {argument!r}; correct it")
    return row.make(argument)


def _is_mapping_of_text(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(key and isinstance(one, str) for key, one in value.items())


def _own_rule(name: Any, argument: Any) -> TextRule:
    if not isinstance(name, str) or argument is not None or split_spec(name) is None:
        near = difflib.get_close_matches(str(name), TEXT_RULES, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(TEXT_RULES)}, and package.module:name"
        raise UserError(f"{name}: is not known; {remedy}")
    return partial(_guarded, name, load_function(name, FLAG, SIGNATURE))


def _guarded(name: str, function: TextRule, text: str, lang: str | None) -> str:
    try:
        found = function(text, lang)
    except Exception as error:
        raise UserError(
            f"{FLAG} {name}: failed at {text[:80]!r} ({type(error).__name__}: {error}); correct it"
        ) from error
    if not isinstance(found, str):
        raise UserError(f"{FLAG} {name}: gave {type(found).__name__} for {text[:80]!r}, not text; write {SIGNATURE}")
    return found


def rewritten(entry: Entry, rules: Sequence[TextRule]) -> Entry:
    """The entry with every text of it, its segments' and its turns' as the rules have it; itself where none changes."""
    lang = entry["lang"] if isinstance(entry.get("lang"), str) else None
    changes = _changes(entry, rules, lang)
    for name in ("segments", "turns"):
        items = entry.get(name) or []
        changed = [{**item, **_changes(item, rules, lang)} for item in items]
        if changed != items:
            changes[name] = changed
    return {**entry, **changes} if changes else entry


def _changes(item: Mapping[str, Any], rules: Sequence[TextRule], lang: str | None) -> dict[str, Any]:
    text = found = item.get("text")
    if not isinstance(found, str):
        return {}
    for rule in rules:
        found = rule(found, lang)
    return {"text": found} if found != text else {}


def has_lost_its_words(entry: Entry) -> bool:
    """Whether a text of the entry, of a segment or of a turn is blank: such a line is bad in a manifest."""
    items = [entry, *(entry.get("segments") or []), *(entry.get("turns") or [])]
    return any(isinstance(item.get("text"), str) and not item["text"].strip() for item in items)
