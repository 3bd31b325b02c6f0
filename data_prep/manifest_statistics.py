"""What a manifest holds, to be looked at before hours of encoding: lengths, speaking rates, languages, speakers."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from data_prep.packing.prediction import Fill, predicted_fill, predicted_tokens
from data_prep.selection.measures import measure, number
from ttt_dist.manifest.entry import Entry
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.reading import read_batches
from ttt_dist.telemetry.corpus_plots import draw_corpus
from ttt_dist.util.atomic_files import atomic_write
from ttt_dist.util.console import Progress

MOST_NAMED = 8
_rate = measure("chars_per_second")


@dataclass
class ManifestStatistics:
    """Lengths and rates of a manifest's entries, and hours by language and speaker; entries without one are in none."""

    lines: int = 0
    seconds: array[float] = field(default_factory=lambda: array("d"))
    rates: array[float] = field(default_factory=lambda: array("d"))
    """Characters a second."""
    codes_per_second: float | None = None
    """Of the codec that is to be taken: then `tokens` are those of each sample, predicted."""
    tokens: array[int] = field(default_factory=lambda: array("q"))
    hours: dict[str, defaultdict[str, float]] = field(
        default_factory=lambda: {"lang": defaultdict(float), "speaker": defaultdict(float)}
    )

    def add(self, entry: Entry) -> None:
        """Count one entry."""
        self.lines += 1
        seconds, rate = number(entry.get("duration")), _rate(entry)
        if seconds is not None:
            self.seconds.append(seconds)
        if rate is not None:
            self.rates.append(rate)
        if self.codes_per_second is not None:
            tokens = predicted_tokens(entry, self.codes_per_second)
            self.tokens.extend([] if tokens is None else [tokens])
        for name, hours in self.hours.items():
            if entry.get(name) is not None:
                hours[str(entry[name])] += (seconds or 0.0) / 3600

    def describe(self) -> Iterator[str]:
        """The statistics as lines of text."""
        yield f"  {self.lines:,} entries, {sum(self.seconds) / 3600:.2f} hours"
        yield f"  {'':20}{'min':>8}{'1 %':>8}{'median':>8}{'99 %':>8}{'max':>8}{'mean':>8}"
        yield _distribution("seconds", self.seconds)
        yield _distribution("characters a second", self.rates)
        for name, hours in self.hours.items():
            ranked = sorted(hours.items(), key=lambda item: (-item[1], item[0]))
            shown = [f"{value} {spent:.2f} h" for value, spent in ranked[:MOST_NAMED]]
            more = [f"{len(ranked) - MOST_NAMED:,} more"] if len(ranked) > MOST_NAMED else []
            yield f"  {name}: {len(ranked):,}" + (f" ({', '.join(shown + more)})" if shown else "")

        for one in self.fills:
            too_long = f", {one.too_long:.1%} of samples too long" if one.too_long else ""
            yield f"  packs of {one.seq_len:,}: fill {one.fill:.1%}{too_long} (predicted)"

    @cached_property
    def fills(self) -> list[Fill]:
        """The predicted fill of packs, by their length."""
        return list(predicted_fill(self.tokens)) if self.tokens else []

    def draw(self, path: Path, title: str) -> None:
        """Draw them as a PNG."""
        with atomic_write(path, "wb") as file:
            draw_corpus(self.seconds, self.rates, self.hours["lang"], self.hours["speaker"], self.fills, file, title)


def _distribution(name: str, values: Sequence[float]) -> str:
    import numpy as np

    if not values:
        return f"  {name:20}{'none':>8}"
    figures = [*np.percentile(values, [0, 1, 50, 99, 100]), np.mean(values)]
    return f"  {name:20}" + "".join(f"{figure:8.2f}" for figure in figures)


def read_statistics(manifest: Path, problems: Problems, codes_per_second: float | None = None) -> ManifestStatistics:
    """The statistics of a manifest's good lines; bad ones are reported."""
    found = ManifestStatistics(codes_per_second=codes_per_second)
    with Progress(None, "reading", "line") as progress:
        for batch in read_batches(manifest, problems):
            for _, _, entry in batch:
                found.add(entry)
            progress.advance(len(batch))
    return found
