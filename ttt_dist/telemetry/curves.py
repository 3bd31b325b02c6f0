"""Curves of a run over its steps, from the records of metrics.jsonl and the events of events.jsonl. Returns matplotlib figures.
matplotlib is imported with the first of them.

Each function takes what there is: a curve without values is left out, and a figure without curves is None.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Formatter

Records = Sequence[Mapping[str, Any]]

BLUE, ORANGE, GREEN, RED, GREY = "#2a6f97", "#d9701a", "#3f8f5b", "#c2341d", "#6b7280"
COLOURS = (BLUE, ORANGE, GREEN, RED, "#57506b", "#b9a15f", "#4cb5ae")  # of runs side by side
PHASES = {
    "data": "#b9a15f",
    "forward": "#7fb2d1",
    "backward": "#2a6f97",
    "forward_backward": "#4c8fb5",
    "optimizer": "#57506b",
    "communication": "#d9701a",
}
SHADES = ("#f3c393", "#e9a05c", "#d9701a", "#a8480a", "#6e2c04")  # bins of p, from little noise to much
MOST_AREAS = 600  # records that areas are drawn of; lines are simplified by matplotlib, areas are not


@dataclass
class Marks:
    """What is marked in every curve, by the steps where it happened."""

    restarts: list[int] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    stages: list[int] = field(default_factory=list)
    """Of the objective, but the first."""

    @classmethod
    def of(cls, events: Records) -> Marks:
        kinds = ("start", "fault", "skipped_step", "stage")
        starts, faults, skipped, stages = ([e["step"] for e in events if e["event"] == kind] for kind in kinds)
        return cls(starts[1:], faults, skipped, sorted(set(stages) - {0}))

    def explained(self) -> str:
        """What the marks that are there mean; empty where there are none."""
        kinds = {
            "dashed lines are starts of the run again": self.restarts,
            "red lines faults": self.faults,
            "ticks at the bottom skipped steps": self.skipped,
            "green lines where a stage of the objective begins": self.stages,
        }
        told = [meaning for meaning, steps in kinds.items() if steps]
        return f"In the curves, {', '.join(told)}." if told else ""


@dataclass(frozen=True)
class Line:
    """A curve: the key of its values, and how it is drawn."""

    key: str
    label: str
    colour: str
    marker: str | None = None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Curves that share their axes."""

    title: str
    lines: Sequence[Line]
    formatter: Formatter | None = None
    bottom: float | None = 0.0
    """Where the axis begins; None: a logarithmic axis."""
    is_whole: bool = False
    """The values are whole numbers."""


def losses(records: Records, marks: Marks) -> Figure | None:
    """AR and NAR losses, of training steps and held out."""
    panels = [
        Panel(
            title=f"{name} ({key.upper()}), nats",
            lines=[
                Line(f"{key}_loss", "training", colour),
                Line(f"eval_{key}_loss", "held out", GREY, "o"),
                *_held_out_sets(records, key),
            ],
        )
        for key, name, colour in (("ar", "text", BLUE), ("nar", "speech", ORANGE))
    ]
    return _draw(records, marks, panels)


def _held_out_sets(records: Records, key: str) -> list[Line]:
    """A line for each held-out set that has a name."""
    names = {
        found[1] for record in records for name in record if (found := re.fullmatch(rf"eval_(.+)_{key}_loss", name))
    }
    return [
        Line(f"eval_{name}_{key}_loss", f"held out, {name}", colour, "o")
        for name, colour in zip(sorted(names), SHADES, strict=False)
    ]


def by_group(records: Records, marks: Marks) -> Figure | None:
    """AR and NAR losses in training of the sources, and of the tasks, where there are several."""
    panels = []
    for kind in ("source", "task"):
        shares = {
            found[1] for record in records for key in record if (found := re.fullmatch(f"{kind}_(.+)_share", key))
        }
        names = dict(zip(sorted(shares), cycle(COLOURS), strict=False)) if len(shares) > 1 else {}
        for key, title in (("ar", "text"), ("nar", "speech")):
            lines = [
                Line(f"{kind}_{name}_{key}_loss", name.replace("_", " "), colour) for name, colour in names.items()
            ]
            panels.append(Panel(title=f"{title} ({key.upper()}) by {kind}, nats", lines=lines))
    return _draw(records, marks, panels)


def compared(runs: Mapping[str, Records]) -> Figure | None:
    """Held-out AR and NAR losses of several runs in one picture: name -> records. A loss that is always 0 is none."""
    kinds = {"eval_ar_loss": "text (AR), nats, held out", "eval_nar_loss": "speech (NAR), nats, held out"}
    records = [
        {"step": record["step"], **{f"{name} {kind}": record[kind] for kind in kinds if record.get(kind)}}
        for name, run in runs.items()
        for record in run
    ]
    panels = [
        Panel(
            title=title,
            lines=[Line(f"{name} {kind}", name, colour) for name, colour in zip(runs, COLOURS, strict=False)],
        )
        for kind, title in kinds.items()
    ]
    return _draw(records, Marks(), panels)


def nar_by_p(records: Records, marks: Marks) -> Figure | None:
    """NAR loss by bins of the masking ratio, and how many tokens each bin had."""
    from matplotlib.ticker import EngFormatter

    bins = sorted(
        {key.removeprefix("nar_loss_") for record in records for key in record if key.startswith("nar_loss_p")}
    )
    shades = dict(zip(bins, SHADES, strict=False))
    means = [Line(f"nar_loss_{name}", f"p {name[1:].replace('-', ' to ')}", shades.get(name, GREY)) for name in bins]
    counts = [Line(f"nar_tokens_{name}", "", shades.get(name, GREY)) for name in bins]
    panels = [
        Panel(title="cross-entropy of masked tokens, nats", lines=means),
        Panel(title="masked tokens between records", lines=counts, formatter=EngFormatter(sep="")),
    ]
    return _draw(records, marks, panels)


def optimisation(records: Records, marks: Marks) -> Figure | None:
    """Gradient norm, learning rate, and, where there are any, skipped steps so far."""
    panels = [
        Panel(title="gradient norm", lines=[Line("grad_norm", "", BLUE)], bottom=None),
        Panel(title="learning rate", lines=[Line("lr", "", GREEN)]),
    ]
    if any(record.get("skipped_steps") for record in records):
        panels.append(Panel(title="skipped steps so far", lines=[Line("skipped_steps", "", RED)], is_whole=True))
    return _draw(records, marks, panels)


def speed(records: Records, marks: Marks) -> Figure | None:
    """Useful tokens per second, MFU, memory, and how far the slowest rank lags."""
    from matplotlib.ticker import EngFormatter, PercentFormatter

    panels = [
        Panel(
            title="useful tokens a second",
            lines=[Line("useful_tokens_per_s", "", BLUE)],
            formatter=EngFormatter(sep=""),
        ),
        Panel(
            title="model FLOPs utilisation",
            lines=[Line("mfu", "", GREEN)],
            formatter=PercentFormatter(1.0),
        ),
        Panel(
            title="peak memory of rank 0",
            lines=[Line("memory_bytes", "", GREY)],
            formatter=EngFormatter("B"),
        ),
        Panel(
            title="own work of the slowest rank / median",
            lines=[Line("slowest_ratio", "", ORANGE)],
            bottom=1.0,
        ),
    ]
    return _draw(records, marks, panels)


def step_split(records: Records, marks: Marks) -> Figure | None:
    """Seconds of a step by phase, as areas on top of each other; the black line is the whole step."""
    from matplotlib.figure import Figure

    timed = [record for record in records if record.get("step_s") is not None]
    timed = timed[:: -(-len(timed) // MOST_AREAS) or 1]
    phases = [phase for phase in PHASES if any(f"{phase}_s" in record for record in timed)]
    if not phases:
        return None
    figure = Figure(figsize=(10, 3), layout="constrained")
    axis = figure.subplots()
    steps = [record["step"] for record in timed]
    values = [[record.get(f"{phase}_s") or 0.0 for record in timed] for phase in phases]
    labels = [phase.replace("_", " and ") for phase in phases]
    axis.stackplot(steps, values, labels=labels, colors=[PHASES[phase] for phase in phases], linewidth=0)
    axis.plot(steps, [record["step_s"] for record in timed], color="#1f2933", linewidth=0.8, label="step")
    _finish(axis, Panel(title="seconds per step", lines=[]), marks)
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], frameon=False, loc="outside right upper", fontsize=9)
    return figure


def _draw(records: Records, marks: Marks, panels: Sequence[Panel]) -> Figure | None:
    """The panels that have values, side by side."""
    from matplotlib.figure import Figure

    found = [(panel, [line for line in panel.lines if _points(records, line.key)]) for panel in panels]
    drawn = [(panel, lines) for panel, lines in found if lines]
    if not drawn:
        return None
    columns = 3 if len(drawn) == 3 else min(len(drawn), 2)
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(10, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (panel, lines) in zip(axes, drawn, strict=True):
        for line in lines:
            style: dict[str, Any] = {"marker": line.marker, "markersize": 3, "linewidth": 1.3}
            axis.plot(*_points(records, line.key), color=line.colour, label=line.label, **style)
        _finish(axis, panel, marks)
        if any(line.label for line in lines):
            axis.legend(frameon=False, fontsize=8.5)
    return figure


def _points(records: Records, key: str) -> tuple[list[int], list[float]] | tuple[()]:
    """Steps and values of a key; null, which stands for a value that is not finite, leaves a gap."""
    points = [(r["step"], float("nan") if r[key] is None else r[key]) for r in records if key in r]
    return ([step for step, _ in points], [value for _, value in points]) if points else ()


def _finish(axis: Axes, panel: Panel, marks: Marks) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_title(panel.title, fontsize=10, loc="left")
    axis.set_xlabel("step", fontsize=9, color=GREY)
    axis.tick_params(labelsize=8.5, colors=GREY)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.2)
    axis.margins(x=0.01)
    if panel.bottom is None:
        _make_logarithmic(axis)
    else:
        axis.set_ylim(bottom=panel.bottom)
    if panel.is_whole:
        axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    if panel.formatter is not None:
        axis.yaxis.set_major_formatter(panel.formatter)
    for step in marks.restarts:
        axis.axvline(step, color=GREY, linestyle=(0, (4, 3)), linewidth=0.9)
    for step in marks.faults:
        axis.axvline(step, color=RED, linewidth=0.9)
    for step in marks.stages:
        axis.axvline(step, color=GREEN, linewidth=0.9)
    if marks.skipped:
        bottom = [0.015] * len(marks.skipped)
        axis.plot(marks.skipped, bottom, "|", color=RED, markersize=7, transform=axis.get_xaxis_transform())


def _make_logarithmic(axis: Axes) -> None:
    """With plain numbers, those between the powers of ten too where these are few."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    plain = StrMethodFormatter("{x:g}")
    axis.yaxis.set_major_formatter(plain)
    axis.yaxis.set_minor_formatter(plain if high / low < 10 else NullFormatter())
    axis.tick_params(which="minor", labelsize=8.5, colors=GREY)
