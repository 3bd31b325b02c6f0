"""OUT.report.json beside a manifest: what was listed, how much of it there is, and what was left out and why."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttt_dist.data.metadata import is_rendered, render, with_suffix
from ttt_dist.manifest.entry import Entry
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.atomic_files import atomic_write, sha256_file

FORMAT = "ttt_dist manifest report 1"


@dataclass
class Totals:
    """What a manifest holds; `groups` counts by the values of `split` and `lang`, and by the channels that are named."""

    lines: int = 0
    seconds: float = 0.0
    groups: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: {"splits": {}, "langs": {}, "channels": {}}
    )

    def add(self, entry: Entry) -> None:
        """Count one entry."""
        self.add_all([entry])

    def add_all(self, entries: Sequence[Entry]) -> None:
        """Count entries; neighbours mostly are of one split and language, and are added at once."""
        seconds = [float(entry.get("duration") or 0.0) for entry in entries]
        self.lines += len(entries)
        self.seconds = sum(seconds, start=self.seconds)
        for group, name in (("splits", "split"), ("langs", "lang")):
            values = [entry.get(name) for entry in entries]
            self._count(group, values, seconds)
        sided = [index for index, entry in enumerate(entries) if "channel" in entry or "turns" in entry]
        self._count("channels", [_channels(entries[index]) for index in sided], [seconds[index] for index in sided])

    def _count(self, group: str, values: Sequence[Any], seconds: Sequence[float]) -> None:
        """Count entries by the value that each has; mostly all have one, and are added at once."""
        counts = self.groups[group]
        if values and values.count(values[0]) == len(values):
            if values[0] is not None:
                count = counts.setdefault(str(values[0]), [0, 0.0])
                count[0] += len(values)
                count[1] = sum(seconds, start=count[1])
            return
        for value, duration in zip(values, seconds, strict=True):
            if value is not None:
                count = counts.setdefault(str(value), [0, 0.0])
                count[0] += 1
                count[1] += duration

    def describe(self) -> str:
        """`1,234 utterances, 1.52 hours`."""
        return f"{self.lines:,} utterances, {self.seconds / 3600:.2f} hours"

    def summary(self) -> dict[str, Any]:
        """Lines and hours, of all and by split and language."""
        groups = {
            group: {name: {"lines": count[0], "hours": _hours(count[1])} for name, count in sorted(values.items())}
            for group, values in self.groups.items()
            if values or group != "channels"
        }
        return {"lines": self.lines, "hours": _hours(self.seconds), **groups}


def _channels(entry: Entry) -> str | None:
    """`0`, or `0+1` of a conversation; None where the channels are mixed, or there is one."""
    if "channel" in entry:
        return str(entry["channel"])
    if "turns" not in entry:
        return None
    return "+".join(str(turn["channel"]) for turn in entry["turns"] or () if "channel" in turn) or None


def _hours(seconds: float) -> float:
    return round(seconds / 3600, 6)


def report_of(manifest: Path) -> Path:
    """Where the report of a manifest stands."""
    return with_suffix(manifest, ".report.json")


def provenance(manifest: Path) -> dict[str, Any]:
    """Where a manifest comes from, for what is made of it: its name, and what its report says of reader and corpus."""
    report = report_of(manifest)
    if not report.is_file() or not is_rendered(content := report.read_bytes()):
        return {"name": manifest.name}
    known = json.loads(content)
    return {"name": manifest.name} | {key: known[key] for key in ("made_by", "source") if key in known}


def write_report(path: Path, made_by: str, source: Path, written: Mapping[Path, Totals], problems: Problems) -> None:
    """Write the report; it ends in its own checksum. `made_by` is the reader or the command."""
    manifests = {path.name: {"sha256": sha256_file(path), **totals.summary()} for path, totals in written.items()}
    meta = {"format": FORMAT, "made_by": made_by, "source": str(source), "manifests": manifests, **problems.summary()}
    with atomic_write(path) as file:
        file.write(render(meta))
