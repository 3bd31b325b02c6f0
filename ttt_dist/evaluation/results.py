"""The results of an evaluation, once all its parts are there: records with scores, summary, page, benchmarks' layouts.

They are made of the parts alone, so whoever writes them, and however often, writes the same bytes.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ttt_dist.evaluation import page
from ttt_dist.evaluation.items import Item
from ttt_dist.evaluation.job import EvaluationJob, write_jsonl
from ttt_dist.evaluation.judge_registry import find_judge, parse
from ttt_dist.evaluation.metrics.normalise import FLAG as NORMALISER_FLAG
from ttt_dist.evaluation.metrics.normalise import SPELLING, WHISPER
from ttt_dist.evaluation.metrics.scores import BY_WRITING, Figure, Normalisers, Record, Scored
from ttt_dist.evaluation.summary import as_markdown, summarise
from ttt_dist.evaluation.tasks import registry
from ttt_dist.inference.limits import warn_of_limits
from ttt_dist.util.atomic_files import atomic_write, remove_leftovers
from ttt_dist.util.console import warn
from ttt_dist.util.errors import UserError
from ttt_dist.util.file_lock import lease


def write_results(job: EvaluationJob) -> dict[str, Any] | None:
    """Score all records and write OUT/TASK.jsonl, TASK_summary.json, TASK_summary.md and TASK.html; the summary.

    None where parts are still to be made: whoever makes the last one writes the results.
    """
    args = job.args
    collected = job.collect()
    if collected is None:
        return None
    task = args.row
    folders = [Path(place) for kind, place in map(parse, args.judges) if find_judge(kind).is_folder]
    tables = [folder for folder in (*folders, args.model) if (folder / SPELLING).is_file()]
    normalisers = Normalisers(args.normaliser, next(iter(tables), None))
    scored = _scored(task, collected.records, normalisers)
    _tell_normalisers(" + ".join(sorted({figure.by for figure in scored.figures.values()})))
    summary = summarise(args, job.made_from, collected, scored)
    warn_of_limits(Counter(summary.get("finishes", {})).elements(), args.decoding)
    worst = sorted(scored.records, key=task.worst, reverse=True)
    items = {line.id: line for line in job.lines if isinstance(line, Item)}
    paths = [args.out / f"{task.name}{end}" for end in (".jsonl", "_summary.json", "_summary.md", ".html")]
    with lease(paths[0], wait=True):
        remove_leftovers(*paths)
        write_jsonl(paths[0], scored.records)
        _write(paths[2], as_markdown(summary))
        _write(paths[3], page.render(args, summary, worst, items, normalisers))
        if task.submissions:
            task.submissions(args, scored.records)
        _write(paths[1], json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return summary


def _tell_normalisers(names: str) -> None:
    if BY_WRITING in names:
        warn(
            f"items without a `lang` that decides it are scored {BY_WRITING} ({names}); name it, or take {NORMALISER_FLAG}"
        )
    if f"{WHISPER} (" in names:
        warn(
            f"Whisper's spelling table is not here, so 'colour' and 'color' differ: install whisper-normalizer, "
            f"or {NORMALISER_FLAG} {WHISPER}:DIR with a folder of Whisper that has {SPELLING}"
        )


def _scored(task: registry.Task, records: list[Record], normalisers: Normalisers) -> Scored:
    """What the task makes of its records. Raises UserError where a task of one's own gives something else."""
    scored: Any = task.score(records, normalisers)
    figures = scored.figures if isinstance(scored, Scored) else scored
    found = list(figures.values()) if isinstance(scored, Scored) and isinstance(figures, dict) else [figures]
    wrong = [one for one in found if not isinstance(one, Figure)] if isinstance(scored, Scored) else found
    if not wrong:
        return scored
    raise UserError(
        f"{registry.FLAG} {task.name}: its score() gives {type(wrong[0]).__name__} {str(wrong[0])[:40]!r} where scores are wanted; "
        "return Scored(records, {'name': Figure(value, None, 'made by', len(records))}) of ttt_dist.evaluation.metrics.scores"
    )


def _write(path: Path, content: str) -> None:
    with atomic_write(path) as file:
        file.write(content)
