"""A long list of objects inside a JSON file, object by object: the metadata of WenetSpeech and GigaSpeech are gigabytes.

Memory holds one chunk of text and one object.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.text_files import reading
from ttt_dist.util.errors import UserError

CHUNK = 2**22  # characters read at once
MAX_OBJECT = 2**26  # characters of one object: beyond, the file is taken to be damaged
SEPARATORS = re.compile(r"[\s,]*")


def stream_array(path: Path, key: str | None, problems: Problems) -> Iterator[tuple[str, Any]]:
    """(`file:line`, item) of the list under `key` of the file's outermost object, the first such key in the file; without
    a key, of the list that the file is.

    Bytes that are not UTF-8 become lone surrogates in the strings. A list that breaks off is reported, and what came
    before it stays good. Raises UserError where the file cannot be read or has no such list.
    """
    decoder = json.JSONDecoder()
    with reading(path) as raw:
        file = io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape")
        text, at = _find(file, key, path)
        line = 1 + text.count("\n", 0, at)
        while True:
            start, at = at, SEPARATORS.match(text, at).end()  # type: ignore[union-attr]
            line += text.count("\n", start, at)
            if text.startswith("]", at):
                return
            try:
                item, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                more = file.read(max(CHUNK, len(text) - at)) if len(text) - at < MAX_OBJECT else ""
                if not more:
                    problems.report(
                        f"{path}:{line}: the list '{key or 'of the file'}' breaks off ({error}); fetch the file again"
                    )
                    return
                text, at = text[at:] + more, 0
                continue
            yield f"{path}:{line}", item
            line += text.count("\n", at, end)
            at = end


def _find(file: IO[str], key: str | None, path: Path) -> tuple[str, int]:
    """What was read of the file, and where in it the list's first object begins."""
    opening = re.compile(rf'"{key}"\s*:\s*\[' if key else r"\A\ufeff?\s*\[")
    text = ""
    while (found := opening.search(text)) is None:
        more = file.read(CHUNK) if len(text) < MAX_OBJECT else ""
        if not more:
            missing = f"has no list '{key}'" if key else "is no list of objects"
            raise UserError(f"{path}: {missing}; name the corpus's own JSON file or its folder")
        text += more
    return text, found.end()
