"""The note beside a learnt folder, codec or tokenizer: what it was learnt from."""

import json
from pathlib import Path
from typing import Any

from ttt_dist.data import metadata


def note_of(folder: Path) -> Path:
    """The JSON beside a learnt folder that says what it was learnt from; beside it, as copies of it must be equal."""
    return folder.with_name(f"{folder.name}.learnt.json")


def read_note(folder: Path) -> dict[str, Any] | None:
    """What the folder was learnt from; None where it was not learnt here, or its note is damaged."""
    note = note_of(folder)
    if not note.is_file() or not metadata.is_rendered(note.read_bytes()):
        return None
    return dict(json.loads(note.read_bytes()))
