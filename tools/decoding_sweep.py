"""Own speech at several numbers of forwards, for tools/compare_objectives.py: what quality costs, by model and way of decoding."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from ttt_dist.config.decode import MOST_AHEAD, DecodeSettings
from ttt_dist.config.objective import Objective
from ttt_dist.config.pipeline import Recipe
from ttt_dist.evaluation.judge_registry import OWN
from ttt_dist.telemetry.curves import COLOURS, GREY
from ttt_dist.tools import pipeline
from ttt_dist.util.console import warn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECORD = "sweep.json"
STEPS = (2, 4, 7)  # forwards a block, besides those of the recipe
RATIOS = (1.0, 0.1, 0.03)  # of drafts of one forward: DecodeSettings.accept_ratio
DENOISED, CAUSAL, VERIFIED, TIDAR = "denoised", "left to right", "verified", "tidar"
MARKERS = {DENOISED: "o", CAUSAL: "s", VERIFIED: "^", TIDAR: "v"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """Words wrong, as a rate, by each judge's label; forwards per second of sound; both of one model, decoded in one way."""

    way: str
    steps: int
    accept_ratio: float = 1.0
    forwards_per_second: float
    wer: Mapping[str, float]
    ceiling: Mapping[str, float]


def ways(objective: Objective, settings: DecodeSettings) -> list[tuple[str, DecodeSettings]]:
    """How a model is decoded: a denoising one at several numbers of forwards, and as it would write codes one by one.

    Whatever way the recipe decodes it in.
    """
    settings = replace(settings, audio_mode="diffusion", accept_ratio=1.0)
    if objective.kind == "ar":
        return [(CAUSAL, settings)]
    found = [(DENOISED, replace(settings, steps=steps)) for steps in sorted({*STEPS, settings.steps})]
    if objective.learns_audio_ar:
        found.append((CAUSAL, replace(settings, audio_mode="ar")))
        verified = replace(settings, audio_mode="verified", steps=1)
        tidar = replace(verified, audio_mode="tidar", block=min(settings.block, MOST_AHEAD), cfg=0.0)
        drafting = {VERIFIED: verified, TIDAR: tidar}
        found += [(way, replace(how, accept_ratio=ratio)) for way, how in drafting.items() for ratio in RATIOS]
    return found


def sweep(config: Recipe, source: Path, data: Path, run: Path, judges: Sequence[str]) -> dict[str, Any]:
    """Own speech of a scored run in all ways: the points, as plain values. The ceilings are those of its scores."""
    points = []
    scored = json.loads((run / "figures.json").read_text("utf8"))["figures"]
    trained = config.objective.at(config.train.steps - 1)
    for way, settings in ways(trained, config.evaluation.decode):
        out = run / "sweep" / f"{way.replace(' ', '_')}-{settings.steps}-{settings.accept_ratio:g}"
        summary = pipeline.evaluate_task(config, "tts", source, data, run, judges, out, settings, "--no-ceiling")
        if not summary["forwards_per_second"]:
            warn(f"{out}: {way}, {settings.steps} forwards a block: no forward of a span came of it, so it is left out")
            continue
        own = pipeline.own_speech(summary)
        labels = {OWN: "tts_wer"} | {key.removeprefix("tts_wer_"): key for key in own if key.startswith("tts_wer_")}
        points.append(
            {
                "way": way,
                "steps": settings.steps,
                "accept_ratio": settings.accept_ratio,
                "forwards_per_second": summary["forwards_per_second"],
                "wer": {label: own[key] for label, key in labels.items()},
                "ceiling": {label: scored[f"ceiling_{label}"] for label in labels if f"ceiling_{label}" in scored},
            }
        )
    return {"points": points}


def over_runs(runs: Iterable[Path]) -> list[Point]:
    """Means of what was measured alike in several runs, as far as it was."""
    by_way: dict[tuple[str, int, float], list[Point]] = {}
    for record in (run / RECORD for run in runs):
        found = json.loads(record.read_text("utf8")).get("figures", {}) if record.is_file() else {}
        for point in (Point(**values) for values in found.get("points", [])):
            by_way.setdefault((point.way, point.steps, point.accept_ratio), []).append(point)
    return [
        Point(
            way=way,
            steps=steps,
            accept_ratio=ratio,
            forwards_per_second=mean(one.forwards_per_second for one in points),
            wer={label: mean(one.wer[label] for one in points) for label in points[0].wer},
            ceiling={label: mean(one.ceiling[label] for one in points) for label in points[0].ceiling},
        )
        for (way, steps, ratio), points in by_way.items()
    ]


def named(point: Point) -> str:
    """The way of a point, with what else it hangs on."""
    return point.way if point.accept_ratio == 1 else f"{point.way}, accept_ratio {point.accept_ratio:g}"


def table(found: Mapping[str, Sequence[Point]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, as text; `found` by the model's title."""
    labels = list(dict.fromkeys(label for points in found.values() for point in points for label in point.wer))
    header = ["model", "speech", "forwards a block", "forwards per second of sound"]
    cells = [
        [title, named(point), "" if point.way == CAUSAL else str(point.steps), f"{point.forwards_per_second:.1f}"]
        + [f"{100 * point.wer[label]:.1f}" for label in labels]
        for title, points in found.items()
        for point in points
    ]
    return header + [f"by {'the model itself' if label == OWN else label}, WER %" for label in labels], cells


def figure(found: Mapping[str, Sequence[Point]]) -> "Figure":
    """Words wrong by the last judge against forwards per second of sound, and the codec's ceiling."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    picture = Figure(figsize=(9.0, 4.2), layout="constrained")
    axis = picture.subplots()
    points = [point for some in found.values() for point in some]
    label = list(points[0].wer)[-1]
    for (title, some), colour in zip(found.items(), COLOURS, strict=False):
        for way in dict.fromkeys(point.way for point in some):
            line = sorted((p.forwards_per_second, 100 * p.wer[label]) for p in some if p.way == way)
            axis.plot(*zip(*line, strict=True), marker=MARKERS[way], color=colour, label=f"{title}, {way}")
    ceilings = [point.ceiling[label] for point in points if label in point.ceiling]
    if ceilings:
        axis.axhline(100 * mean(ceilings), color=GREY, linestyle="--", linewidth=1, label="codec and back (ceiling)")
    axis.set_xscale("log", base=2)  # its ticks are then the numbers of forwards that one tries
    axis.xaxis.set_major_locator(LogLocator(base=2, subs=(1, 1.5)))  # and between them: a sweep may span two octaves
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("forwards per second of sound")
    axis.set_ylabel(f"words wrong, %, by {'the model itself' if label == OWN else label}")
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.2)
    picture.legend(frameon=False, fontsize=8.5, loc="outside right upper")
    return picture
