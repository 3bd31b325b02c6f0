"""Parts of samples, which compose and import write: a shard of one sample per document, or a JSON alone where none was left."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ttt_dist.data.metadata import with_suffix
from ttt_dist.data.shards import SUFFIXES, ShardWriter
from ttt_dist.jobs.parts import has_files, read_part, versions
from ttt_dist.jobs.runner import Outcome
from ttt_dist.sequence.sample import Sample
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.atomic_files import remove_leftovers
from ttt_dist.util.errors import UserError


class SampleWriter:
    """Writes one part; as a context manager it completes the part on success and leaves nothing on an error.

    `problems` takes a line for everything that was left out; `counts` what else is to be counted; `speakers` the samples
    whose prompt names one.
    """

    def __init__(
        self, prefix: Path, number: int, num_parts: int, layout: TokenLayout, made_from: dict[str, Any]
    ) -> None:
        self.problems: list[str] = []
        self.counts = {"copies": 0}
        self.speakers: Counter[str] = Counter()
        meta = {"layout": layout.to_dict(), "seq_len": None, "part": number, "parts": num_parts}
        remove_leftovers(*(with_suffix(prefix, suffix) for suffix in SUFFIXES))
        self._meta = {**meta, "made_from": made_from, "versions": versions()}
        self._shard = ShardWriter(prefix, self._meta, may_be_empty=True)

    def add(self, sample: Sample) -> None:
        """Append a sample."""
        self._shard.add([sample])

    def outcome(self) -> Outcome:
        """What the part came to."""
        return _outcome({"counts": self._shard.counts(), **self._extra()})

    def _extra(self) -> dict[str, Any]:
        speakers = {"speakers": dict(sorted(self.speakers.items()))} if self.speakers else {}
        return {"problems": self.problems, "left_out": dict(self.counts), **speakers}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            self._shard.abort()
            return
        self._meta.update(self._extra())
        self._shard.close()


PER_PART = ("codes", "left_out_sha256", "lines_sha256", "first_line", "source")
"""Keys of `made_from` that differ between the parts of a folder; the others are the same for all."""


def shared(made_from: dict[str, Any]) -> dict[str, Any]:
    """What the parts of a folder have in common: settings, templates, tokenizer, codec."""
    return {key: value for key, value in made_from.items() if key not in PER_PART}


def finished_samples(prefix: Path, made_from: dict[str, Any]) -> Outcome | None:
    """What a finished part came to; None where there is none, or one of other codes or lines, which is then written anew.

    Raises UserError where it was made with other settings, templates, tokenizer or codec.
    """
    part = read_part(prefix, "compose again")
    if part is None:
        return None
    before, now = shared(part["made_from"]), shared(made_from)
    if before != now:
        key = next(key for key in (*now, *before) if before.get(key) != now.get(key))
        raise UserError(f"{prefix}.json: was made with other {key}; remove its folder or choose another --out")
    return _outcome(part) if part["made_from"] == made_from and has_files(prefix, part) else None


def _outcome(part: dict[str, Any]) -> Outcome:
    counts = {name: part["counts"][name] for name in ("samples", "tokens", "audio_tokens")}
    return Outcome({**counts, **part["left_out"]}, list(part["problems"]))
