"""Pictures of a pack or of one sequence: who sees whom. Takes numpy arrays, writes PNG files."""

from pathlib import Path
from typing import IO, Any

import numpy as np

# Blue where a causal token looks, orange where a token of an audio span looks; the strong shade is what sets it apart.
COLOURS = {
    "outside": "#ffffff",
    "unseen": "#efeeea",
    "text to text": "#2f66ad",
    "text to audio": "#a7c6e8",
    "audio to earlier": "#fbd7a4",
    "audio to its span": "#e5761b",
}
LEGEND = {
    "text to text": "text looks back at text",
    "text to audio": "text looks back at audio",
    "unseen": "same sample, hidden",
    "audio to earlier": "audio looks at all before its span",
    "audio to its span": "audio looks at its whole span, both ways",
}
AR_COLOUR, NAR_COLOUR = "#1b3f73", "#a8480a"
INK, FAINT = "#2b2b2b", "#8a8a86"


def draw_mask(
    visible: np.ndarray,
    sample_ids: np.ndarray,
    span_ids: np.ndarray,
    path: str | Path | IO[bytes],
    ar_weights: np.ndarray | None = None,
    nar_weights: np.ndarray | None = None,
    title: str = "Who sees whom in a pack",
) -> None:
    """Draw visible [S, S] (query, key) as a PNG at `path`, or into an open file.

    sample_ids and span_ids are [S], 0 for padding and for causal tokens. Where weights [S] are given, a strip at the
    right marks the positions whose AR or NAR target counts. Crop the arrays to look at the first samples only.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1)
    figure = Figure(figsize=(9.6, 10.4), dpi=150, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(mask_colours(visible, sample_ids, span_ids), interpolation="antialiased", aspect="equal")
    _mark_samples(axes, sample_ids)
    _finish_axes(axes, len(sample_ids))
    handles = _legend_handles(COLOURS, LEGEND)
    if ar_weights is not None and nar_weights is not None:
        _draw_strip(axes, ar_weights, nar_weights)
        handles += _legend_handles({"ar": AR_COLOUR, "nar": NAR_COLOUR}, {"ar": "AR loss here", "nar": "NAR loss here"})
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9.5, labelcolor=INK)
    figure.suptitle(title, x=0.07, ha="left", fontsize=13, color=INK)
    figure.savefig(path, format="png")


def mask_colours(visible: np.ndarray, sample_ids: np.ndarray, span_ids: np.ndarray) -> np.ndarray:
    """Colour of each (query, key), float [S, S, 3]."""
    same_sample = (sample_ids[:, None] == sample_ids) & (sample_ids != 0)
    in_span_q, in_span_k = span_ids[:, None] != 0, span_ids != 0
    own_span = in_span_q & (span_ids[:, None] == span_ids)
    rules = (
        ("outside", np.ones_like(visible)),
        ("unseen", same_sample),
        ("text to text", visible & ~in_span_q & ~in_span_k),
        ("text to audio", visible & ~in_span_q & in_span_k),
        ("audio to earlier", visible & in_span_q & ~own_span),
        ("audio to its span", visible & own_span),
    )
    picture = np.zeros((*visible.shape, 3))
    for name, where in rules:
        picture[where] = _rgb(COLOURS[name])
    return picture


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def _mark_samples(axes: Any, sample_ids: np.ndarray) -> None:
    """A thin frame around each sample, with its number among several, and a hatched corner of padding."""
    from matplotlib.patches import Rectangle

    num_tokens = len(sample_ids)
    samples = np.unique(sample_ids[sample_ids != 0]).tolist()
    for sample in samples:
        where = np.flatnonzero(sample_ids == sample)
        start, size = float(where[0]), float(len(where))
        axes.add_patch(Rectangle((start - 0.5, start - 0.5), size, size, fill=False, edgecolor=INK, linewidth=0.7))
        if len(samples) > 1:
            _number_sample(axes, sample, start - 0.5, start + size - 0.5, num_tokens)
    padding = int(np.count_nonzero(sample_ids == 0))
    if padding:
        corner = num_tokens - padding - 0.5
        style: dict[str, Any] = {"facecolor": "white", "edgecolor": "#d6d5d0", "hatch": "////", "linewidth": 0}
        axes.add_patch(Rectangle((corner, corner), padding, padding, **style))


def _number_sample(axes: Any, sample: int, start: float, end: float, num_tokens: int) -> None:
    """The sample's number in the blank area beside its frame; none for slivers, whose numbers would collide."""
    if end - start < 0.014 * num_tokens:
        return
    style: dict[str, Any] = {"fontsize": 8.5, "color": INK}
    room = 0.006 * num_tokens
    if end < 0.95 * num_tokens:
        axes.text(end + room, start + room, str(sample), ha="left", va="top", **style)
    else:
        axes.text(start - room, min(end, num_tokens) - room, str(sample), ha="right", va="bottom", **style)


def _finish_axes(axes: Any, num_tokens: int) -> None:
    axes.set_xlabel("key: position", color=INK)
    axes.set_ylabel("query: position", color=INK)
    axes.set_xlim(-0.5, num_tokens - 0.5)
    axes.set_ylim(num_tokens - 0.5, -0.5)
    axes.tick_params(colors=FAINT, length=3)
    for side in axes.spines.values():
        side.set_color("#d6d5d0")


def _draw_strip(axes: Any, ar_weights: np.ndarray, nar_weights: np.ndarray) -> None:
    """Two columns at the right, in line with the rows of the mask; a lone target stays visible at any size."""
    num_tokens = len(ar_weights)
    strip = axes.inset_axes((1.012, 0, 0.034, 1))
    width = max(0.9, 615 / num_tokens)  # points: the height of a row, but no hairline
    for column, (weights, colour) in enumerate(((ar_weights, AR_COLOUR), (nar_weights, NAR_COLOUR))):
        rows = np.flatnonzero(weights)
        strip.hlines(rows, column + 0.06, column + 0.94, colors=colour, linewidth=width)
    strip.set_xlim(0, 2)
    strip.set_ylim(num_tokens - 0.5, -0.5)
    strip.set_yticks([])
    strip.xaxis.tick_top()
    strip.set_xticks([0.5, 1.5], ["AR", "NAR"], fontsize=8, rotation=90)
    strip.tick_params(colors=FAINT, length=0)
    for side in strip.spines.values():
        side.set_color("#d6d5d0")


def _legend_handles(colours: dict[str, str], labels: dict[str, str]) -> list[Any]:
    from matplotlib.patches import Patch

    style: dict[str, Any] = {"edgecolor": "#c9c8c3", "linewidth": 0.5}
    return [Patch(facecolor=colours[name], label=label, **style) for name, label in labels.items()]
