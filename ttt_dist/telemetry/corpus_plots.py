"""Pictures of a corpus before it is encoded, and of shards: lengths, rates, languages, speakers, fill. Takes numbers, writes a PNG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ttt_dist.telemetry.curves import BLUE, GREEN, GREY, ORANGE, RED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 60
MOST_LANGUAGES = 12


def draw_corpus(
    seconds: Sequence[float],
    rates: Sequence[float],
    languages: Mapping[str, float],
    speakers: Mapping[str, float],
    fills: Sequence[tuple[int, float, float]],
    path: str | Path | IO[bytes],
    title: str,
) -> None:
    """Draw how long utterances are (`seconds`), how fast they are spoken (`rates`, characters a second), and the hours of each
    language and speaker; and below, where `fills` are given, of (tokens of a pack, fill, share of samples too long) the latter two."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 9.6 if fills else 6.4), dpi=150, layout="constrained")
    (lengths, speaking), (by_language, by_speaker), *below = figure.subplots(3 if fills else 2, 2)
    _histogram(lengths, seconds, "seconds", BLUE)
    _histogram(speaking, rates, "characters a second", ORANGE)
    _bars(by_language, languages, GREEN)
    _shares(by_speaker, speakers)
    for filled, too_long in below:
        seq_lens = [f"{seq_len:,}" for seq_len, _, _ in fills]
        _columns(filled, seq_lens, [fill for _, fill, _ in fills], "fill of packs, predicted", BLUE)
        _columns(too_long, seq_lens, [share for _, _, share in fills], "samples longer than a pack", RED)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    figure.savefig(path, format="png")


def draw_packs(
    fills: Sequence[float],
    samples: Sequence[int],
    spans: Sequence[int],
    tokens: Mapping[str, float],
    path: str | Path | IO[bytes],
    title: str,
) -> None:
    """Draw how full the packs are (`fills`, 0 to 1), the tokens of samples and of audio spans, and the tokens of each kind of sample."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4), dpi=150, layout="constrained")
    (filled, by_kind), (of_samples, of_spans) = figure.subplots(2, 2)
    _histogram(filled, fills, "fill", BLUE, "packs")
    _bars(by_kind, tokens, GREEN, "kinds of samples", "tokens")
    _histogram(of_samples, samples, "tokens of a sample", ORANGE, "samples")
    _histogram(of_spans, spans, "tokens of an audio span", RED, "spans")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    figure.savefig(path, format="png")


def _columns(axis: Axes, names: Sequence[str], shares: Sequence[float], title: str, colour: str) -> None:
    columns = axis.bar(names, [100 * share for share in shares], color=colour, width=0.6)
    axis.bar_label(columns, [f"{share:.1%}" for share in shares], fontsize=8.5, color=GREY)
    axis.set_ylim(0, 108)
    _finish(axis, title, "tokens of a pack", "%")


def _histogram(axis: Axes, values: Sequence[float], name: str, colour: str, of: str = "utterances") -> None:
    """Up to the 99.9th percentile, so that a few outliers do not press all else together; they are told below."""
    numbers = np.asarray(values, np.float64)
    if not len(numbers):
        _finish(axis, f"{name}: none known", "", "")
        return
    low, median, high, end = np.percentile(numbers, [1, 50, 99, 99.9])
    shown = numbers[numbers <= end]
    axis.hist(shown, bins=BINS, color=colour, linewidth=0)
    for place in (low, median, high):
        axis.axvline(place, color=GREY, linestyle=(0, (4, 3)), linewidth=0.9)
    beyond = f" ({len(numbers) - len(shown):,} more, up to {numbers.max():,.4g})" if len(shown) < len(numbers) else ""
    _finish(axis, f"{name}: {low:.3g}, {median:.3g}, {high:.3g} (1, 50, 99 %)", name + beyond, of)


def _bars(axis: Axes, hours: Mapping[str, float], colour: str, what: str = "languages", unit: str = "hours") -> None:
    ranked = sorted(hours.items(), key=lambda item: -item[1])
    rest = sum(value for _, value in ranked[MOST_LANGUAGES:])
    shown = ranked[:MOST_LANGUAGES] + ([(f"{len(ranked) - MOST_LANGUAGES} more", rest)] if rest else [])
    axis.barh([name for name, _ in shown], [value for _, value in shown], color=colour, height=0.7)
    axis.invert_yaxis()
    if not shown:
        axis.set(xticks=[], yticks=[])
    _finish(axis, f"{what}: {len(ranked):,}", unit, "")


def _shares(axis: Axes, hours: Mapping[str, float]) -> None:
    """What share of all hours the first speakers have, from who speaks most on: a steep start says that few speak nearly all."""
    from matplotlib.ticker import NullFormatter, PercentFormatter, StrMethodFormatter

    ranked = np.sort(np.asarray(list(hours.values()), np.float64))[::-1]
    told = f"speakers: {len(ranked):,}"
    if ranked.sum() > 0:
        shares = np.cumsum(ranked) / ranked.sum()
        axis.step(range(1, len(ranked) + 1), shares, where="post", color=RED)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_ylim(0, 1.03)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        told += f"; half of the hours are of {int(np.searchsorted(shares, 0.5)) + 1:,}"
    _finish(axis, told, "speakers, who speaks most first", "of all hours")


def _finish(axis: Axes, title: str, x: str, y: str) -> None:
    style: dict[str, Any] = {"fontsize": 9, "color": GREY}
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel(x, **style)
    axis.set_ylabel(y, **style)
    axis.tick_params(labelsize=8.5, colors=GREY)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.2)
    axis.set_axisbelow(True)
