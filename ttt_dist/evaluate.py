"""Evaluate an exported model on a manifest: word and character error rates of transcripts, or of its own speech.

    python ttt_dist/evaluate.py --model runs/demo/export --task asr --data test.jsonl --out results/
    python ttt_dist/evaluate.py --model runs/demo/export --task tts --data test.jsonl --out results/ --limit 50
    python ttt_dist/evaluate.py --model runs/glm/export --task tts --data test.jsonl --out results/ \\
        --decoder-command "python glm_decode.py {codes} {wav}"

asr transcribes each line's audio. tts speaks each line's text (its speaker is named where the model was trained so),
writes the WAV, and has the model transcribe it. One JSON line per utterance goes to OUT/TASK.jsonl, the summary to
OUT/TASK_summary.json and, as the last line, to stdout. Lines that cannot be used are named, counted and left out;
more than --max-errors of them: exit status 1.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

# Run as a file, Python puts this file's folder first into the path; its modules are to be found as ttt_dist.* only.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ttt_dist.errors import UserError
from ttt_dist.evaluation.judge import ModelJudge
from ttt_dist.evaluation.metrics import NORMALISER
from ttt_dist.evaluation.tasks import TASKS, Outcome, Setting, read_items
from ttt_dist.files import atomic_write
from ttt_dist.inference.settings import add_decoding_flags, settings_from_flags
from ttt_dist.model.huggingface import load_folder
from ttt_dist.telemetry.console import main_guard, result, warn


def main() -> None:
    """Read the manifest, decode, score, and write records and summary."""
    arguments = parse_arguments()
    decoding = settings_from_flags(arguments)
    items, broken = read_items(arguments.data, arguments.limit)
    if not items and not broken:
        raise UserError(f"{arguments.data}: holds no line; name a JSONL manifest with at least one utterance")
    folder, root = load_folder(arguments.model), arguments.data.parent
    setting = Setting.of(
        folder, decoding, arguments.batch, arguments.seed, root, arguments.audio_root, arguments.decoder_command
    )

    start = time.monotonic()
    outcome = TASKS[arguments.task](setting, items, arguments.out)
    outcome.errors[:0] = broken
    summary = summarise(arguments, outcome, time.monotonic() - start)

    for message in outcome.errors:
        warn(message)
    with atomic_write(arguments.out / f"{arguments.task}.jsonl") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in outcome.records)
    with atomic_write(arguments.out / f"{arguments.task}_summary.json") as file:
        file.write(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    result(summary)
    if len(outcome.errors) > arguments.max_errors or not outcome.records:
        raise UserError(
            f"{arguments.data}: {len(outcome.errors)} line(s) could not be used, {len(outcome.records)} were; "
            f"correct them (named above), or allow more by --max-errors {len(outcome.errors)}"
        )


def summarise(arguments: argparse.Namespace, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """The figures of a task, and what they were made with."""
    score = outcome.score.to_dict()
    about = {
        "normaliser": NORMALISER,
        "judge": ModelJudge.name,
        "model": str(arguments.model),
        "data": str(arguments.data),
    }
    if arguments.decoder_command is not None:
        about["decoder_command"] = arguments.decoder_command
    decoding = vars(settings_from_flags(arguments)) | {"seed": arguments.seed}
    counts = {"utterances": len(outcome.records), "errors": len(outcome.errors), "seconds": round(seconds, 1)}
    return {"task": arguments.task, **score, **counts, **about, "decoding": decoding}


def parse_arguments() -> argparse.Namespace:
    """The command line; bad usage ends with status 2."""
    summary, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, type=Path, help="exported model folder")
    parser.add_argument("--task", required=True, choices=sorted(TASKS), help="what to measure")
    parser.add_argument("--data", required=True, type=Path, help="manifest (JSONL) with text, and audio for asr")
    parser.add_argument("--out", required=True, type=Path, help="folder for results")
    parser.add_argument("--audio-root", type=Path, help="folder that all audio lies in (default: the manifest's)")
    parser.add_argument(
        "--decoder-command",
        metavar="COMMAND",
        help="program that makes the speech of the codes, with {codes} and {wav} in it (docs/codecs.md)",
    )
    parser.add_argument("--limit", type=int, help="use the first LIMIT lines")
    parser.add_argument("--batch", type=int, default=32, help="requests decoded side by side, per core (default 32)")
    parser.add_argument("--max-errors", type=int, default=0, help="lines that may be unusable (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is sampled")
    add_decoding_flags(parser)
    arguments = parser.parse_args()
    if arguments.batch < 1 or (arguments.limit is not None and arguments.limit < 1) or arguments.seed < 0:
        parser.error("--batch and --limit must be at least 1, --seed at least 0")
    if arguments.decoder_command is not None and arguments.task != "tts":
        parser.error("--decoder-command makes speech: it goes with --task tts")
    return arguments


if __name__ == "__main__":
    main_guard(main)
