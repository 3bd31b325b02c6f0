"""Data that a run has given up on: which packs its next starts pass over, kept in the run folder as data.skip would say it."""

import json
from pathlib import Path

from ttt_dist.util.atomic_files import atomic_write
from ttt_dist.util.errors import UserError
from ttt_dist.util.json_files import parse, read_bytes

FILE = "skipped_data.json"
REMEDY = "put its ranges into data.skip and remove it"
Skips = list[tuple[int, int]]


def read_skips(run_dir: Path) -> Skips:
    """What `add_skip` has noted; nothing where there is no such file. Raises UserError for a damaged one."""
    path = run_dir / FILE
    if not path.exists():
        return []
    try:
        found = [(first, end) for first, end in parse(read_bytes(path, REMEDY))]
        if all(type(step) is int and step >= 0 for pair in found for step in pair):
            return found
        reason = "a step is no number"
    except (ValueError, TypeError) as error:
        reason = str(error)[:200]
    raise UserError(f"{path}: cannot be read ({reason}); {REMEDY}")


def add_skip(run_dir: Path, first: int, end: int) -> None:
    """Note that what the steps `first` to `end` - 1 have read is to be passed over at step `first`."""
    with atomic_write(run_dir / FILE) as file:
        json.dump([*read_skips(run_dir), (first, end)], file)
