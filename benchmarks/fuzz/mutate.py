"""Ordinary damage: flipped bits, cut files, swapped values, wrong types. A mutation is a function of (content, random) alone."""

import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]

EXTREMES = (0, 1, 2, 7, 127, 128, 255, 256, 32767, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
NUMBERS = (
    *map(str, EXTREMES),
    "-1",
    "1e308",
    "-1e308",
    "1e-320",
    "1e400",
    "0.5",
    "NaN",
    "Infinity",
    "-0",
    "010",
    "9" * 401,
)
WORDS = (
    "",
    "null",
    "true",
    "[]",
    "{}",
    "a b",
    "é",
    "\u4e2d",
    "\ufeff",
    "\u202e",
    "\x1b[31m",
    "\\u0000",
    "..",
    "/",
    "~",
    "x" * 300,
)
LETTERS = (
    '"',
    "'",
    ",",
    "\t",
    "\n",
    "\r",
    "\x00",
    ":",
    "#",
    "\\",
    "{",
    "[",
    "]",
    "}",
    "&",
    "*",
    "=",
    "-",
    "\x85",
    "\u2028",
    " ",
)
LARGEST = 200_000
"""Bytes of a mutated file at most, unless its seed is larger."""


def mutate(content: bytes, kind: str, random: Random) -> bytes:
    """One to three mutations of one of KINDS."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        content = random.choice(KINDS[kind])(content, random)[: max(LARGEST, len(content))]
    return content


def _span(content: bytes, random: Random, most: int = 64) -> tuple[int, int]:
    start = random.randrange(len(content) + 1)
    return start, min(start + random.randrange(1, most + 1), len(content))


def flip(content: bytes, random: Random) -> bytes:
    """A bit."""
    if not content:
        return b"\x00"
    changed = bytearray(content)
    # Half of them near the start: headers decide more than samples do.
    most = len(content) if random.random() < 0.5 else min(len(content), 256)
    changed[random.randrange(most)] ^= 1 << random.randrange(8)
    return bytes(changed)


def cut(content: bytes, random: Random) -> bytes:
    """The end is missing."""
    return content[: random.randrange(len(content) + 1)]


def leave_out(content: bytes, random: Random) -> bytes:
    """A few bytes are missing."""
    start, end = _span(content, random)
    return content[:start] + content[end:]


def blank(content: bytes, random: Random) -> bytes:
    """A stretch of zeros or of ones, as of a bad block."""
    start, end = _span(content, random, random.choice((8, 64, 1024)))
    return content[:start] + random.choice((b"\x00", b"\xff")) * (end - start) + content[end:]


def repeat(content: bytes, random: Random) -> bytes:
    """A stretch stands twice."""
    start, end = _span(content, random, random.choice((8, 512)))
    return content[:end] + content[start:end] + content[end:]


def swap(content: bytes, random: Random) -> bytes:
    """Two stretches change places."""
    (a, b), (c, d) = sorted((_span(content, random), _span(content, random)))
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:] if b <= c else content


def put_integer(content: bytes, random: Random) -> bytes:
    """A number of a header is another one."""
    size, order = random.choice((1, 2, 4, 8)), random.choice(("little", "big"))
    value = (random.choice(EXTREMES) % 256**size).to_bytes(size, order)
    most = len(content) if random.random() < 0.5 else min(len(content), 256)
    start = random.randrange(most + 1)
    return content[:start] + value + content[start + size :]


def put_letter(content: bytes, random: Random) -> bytes:
    """A letter that means something to some format, or is none."""
    letter = random.choice(LETTERS).encode() if random.random() < 0.9 else bytes([random.randrange(128, 256)])
    start = random.randrange(len(content) + 1)
    return content[:start] + letter + content[start + random.randrange(2) :]


def put_number(content: bytes, random: Random) -> bytes:
    """One of the text's numbers is an extreme one, or a word."""
    return _replaced(rb"-?\d+(?:\.\d+)?", content, random, random.choice((*NUMBERS, *WORDS)))


def put_word(content: bytes, random: Random) -> bytes:
    """One of the text's words is another, or a number."""
    return _replaced(rb"[^\s\"':,=]+", content, random, random.choice((*WORDS, *NUMBERS)))


def _replaced(pattern: bytes, content: bytes, random: Random, new: str) -> bytes:
    found = list(re.finditer(pattern, content[:LARGEST]))
    if not found:
        return content + new.encode()
    at = random.choice(found)
    return content[: at.start()] + new.encode() + content[at.end() :]


def change_lines(content: bytes, random: Random) -> bytes:
    """A line is missing, stands twice, or in another place."""
    lines = content.split(b"\n")
    line = lines.pop(random.randrange(len(lines)))
    for _ in range(random.randrange(3)):
        lines.insert(random.randrange(len(lines) + 1), line)
    return b"\n".join(lines)


def change_json(content: bytes, random: Random) -> bytes:
    """A value has another type or size, or another name, or is missing; the syntax stays whole."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return flip(content, random)
    return json.dumps(_changed(tree, random), ensure_ascii=random.random() < 0.5).encode("utf8", "surrogatepass")


def change_json_line(content: bytes, random: Random) -> bytes:
    """As `change_json`, in one of the lines."""
    lines = content.split(b"\n")
    place = random.randrange(len(lines))
    lines[place] = change_json(lines[place], random) if lines[place].strip() else lines[place]
    return b"\n".join(lines)


def _changed(tree: Any, random: Random) -> Any:
    if not isinstance(tree, dict | list) or not tree or random.random() < 0.1:
        return _odd(tree, random)
    key = random.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
    what = random.random()
    if what < 0.1:
        del tree[key]
    elif what < 0.2 and isinstance(tree, dict):
        tree[random.choice(WORDS) or key + "_"] = tree.pop(key)
    else:
        tree[key] = _changed(tree[key], random)
    return tree


def _odd(value: Any, random: Random) -> Any:
    """Something else in the place of `value`."""
    numbers = (*EXTREMES, -1, 0.5, 1e308, 1e-320, float("nan"), float("inf"), 10**400)
    texts = (*WORDS, "\x00", "\ud800", "nul\x00", str(value))
    nested: Any = None
    for _ in range(random.choice((1, 3, 300))):
        nested = [nested]
    return random.choice(
        (random.choice(numbers), random.choice(texts), None, True, [], {}, [value], {"a": value}, nested)
    )


BYTES: tuple[Mutation, ...] = (flip, flip, flip, cut, leave_out, blank, repeat, swap, put_integer, put_integer)
TEXT: tuple[Mutation, ...] = (flip, cut, leave_out, repeat, put_letter, put_letter, put_number, put_word, change_lines)
KINDS: dict[str, tuple[Mutation, ...]] = {
    "bytes": BYTES,
    "text": TEXT,
    "json": (*TEXT, change_json, change_json, change_json, change_json, change_json),
    "jsonl": (*TEXT, change_json_line, change_json_line, change_json_line, change_json_line),
    "tree": (change_json,),
}
