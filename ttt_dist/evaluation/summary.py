"""The summary of an evaluation: a function of its records and settings alone, as JSON and as Markdown."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ttt_dist.evaluation.args import EvalArgs
from ttt_dist.evaluation.ears import by_judge, called
from ttt_dist.evaluation.error_tables import error_tables
from ttt_dist.evaluation.job import Collection
from ttt_dist.evaluation.judge_registry import OWN
from ttt_dist.evaluation.metrics.quality import as_table
from ttt_dist.evaluation.metrics.scores import Record, Scored
from ttt_dist.inference.limits import at_limits
from ttt_dist.inference.sequence_state import LIMITS, OWN_ENDS

TOLD = 20  # problems named in a summary; the parts name all


def summarise(args: EvalArgs, made_from: dict[str, Any], collected: Collection, scored: Scored) -> dict[str, Any]:
    """Scores at the top level by name, and again with intervals and what they were made with; then all that made them."""
    about: dict[str, Any] = {
        "task": args.row.name,
        **{name: figure.to_dict()["value"] for name, figure in scored.figures.items()},
        **scored.details,
        **finishes(scored.records),
        "items": len(scored.records),
        "errors": len(collected.problems),
        "scores": {name: figure.to_dict() for name, figure in scored.figures.items()},
        "judge": next(iter(collected.judges.values()), None),
        "model": str(args.model),
        "model_sha256": made_from["model"],
        "device": made_from["device"],
        "data": str(args.data),
        "template": args.template,
    }
    for label, name in collected.judges.items():
        about.setdefault("judges", {}).setdefault(label, {}).update(judge=name, own_ears=label == OWN)
    if args.decoder_command is not None:
        about["decoder_command"] = args.decoder_command
    if "draws" in args.row.takes:
        about["noise"] = {"estimator": args.estimator, "draws": args.draws, "seed": args.seed}
    else:
        about["decoding"] = vars(args.decoding) | {"seed": args.seed}
    return about | {"problems": collected.problems[:TOLD]}


def finishes(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    """Why responses ended, and how many for each reason; nothing of a task that writes none."""
    said = [answer for record in records for answer in (record, *record.get("answers", ())) if isinstance(answer, dict)]
    found = Counter(answer["finish"] for answer in said if answer.get("finish") in (*OWN_ENDS, *LIMITS))
    return {"finishes": dict(sorted(found.items()))} if found else {}


def as_markdown(summary: dict[str, Any]) -> str:
    """The same for people."""
    rows = [
        [name, _number(score["value"]), _interval(score["interval_95"]), f"{score['items']:,}", score["by"]]
        for name, score in summary["scores"].items()
    ]
    facts = {
        "model": f"{summary['model']} (sha256 {summary['model_sha256'][:12]})",
        "data": summary["data"],
        "template": summary["template"],
        "device": summary["device"],
        "judges": ", ".join(called(label, judge["judge"]) for label, judge in summary.get("judges", {}).items()),
        "cut": summary.get("cut"),
        "forwards per second of sound": summary.get("forwards_per_second"),
        "with those of text": summary.get("all_forwards_per_second"),
        "cut off by a limit": _listed(at_limits(summary.get("finishes", {}))),
        "decoder command": summary.get("decoder_command"),
        "decoding": _listed(summary.get("decoding", {})),
        "noise": _listed(summary.get("noise", {})),
    }
    told = [f"- {name}: {value}" for name, value in facts.items() if value]
    problems = [f"- {problem}" for problem in summary["problems"]]
    hidden = summary["errors"] - len(problems)
    if hidden:
        problems.append(f"- and {hidden:,} more, named in the parts")
    parts = [
        f"# {summary['task']}",
        table(["score", "value", "95 % interval", "items", "by"], rows),
        *(table(found[0], found[1:]) for found in (by_judge(summary), as_table(summary)) if found),
        f"{summary['items']:,} items scored, {summary['errors']:,} not usable.",
        "\n".join(told),
        *(f"## {one.title}\n\n{one.note}\n\n{table(one.header, one.rows)}" for one in error_tables(summary)),
        "\n".join(["## Not usable", "", *problems]) if problems else "",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in lines)


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{_number(bounds[0])} to {_number(bounds[1])}"
