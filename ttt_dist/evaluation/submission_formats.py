"""Answers in the layouts that benchmarks' own judges read: AlpacaEval, VoiceBench, URO-Bench; captions for aac-metrics."""

import csv
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ttt_dist.evaluation.args import EvalArgs
from ttt_dist.evaluation.job import write_jsonl
from ttt_dist.evaluation.metrics.scores import Record
from ttt_dist.evaluation.tasks.item_adapters import question_text
from ttt_dist.model.hf.folder import new_folder
from ttt_dist.util.atomic_files import atomic_write

FILE_NAME = re.compile(r"[^A-Za-z0-9_-]")


def alpaca_eval(args: EvalArgs, records: Sequence[Record]) -> list[Path]:
    """A list of {"dataset", "instruction", "output", "generator"} each for text and speech, of questions without answers."""
    written = []
    for name, key in (("text", "text"), ("speech", "heard")):
        known = [record for record in records if key in record and not record["answers"]]
        if known:
            outputs = [
                {
                    "dataset": record.get("dataset", args.data.stem),
                    "instruction": record["question"],
                    "output": record[key],
                    "generator": str(args.model),
                }
                for record in known
            ]
            written.append(args.out / f"alpaca_eval_{name}.json")
            with atomic_write(written[-1]) as file:
                file.write(json.dumps(outputs, indent=1, ensure_ascii=False) + "\n")
    return written


def aac_metrics(args: EvalArgs, records: Sequence[Record]) -> list[Path]:
    """A CSV that `aac-metrics-eval -i` reads: all captions of a sound stand in one cell, as there may be any number of them."""
    path = args.out / "aac_metrics.csv"
    with atomic_write(path) as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["id", "caption_predicted", "captions"])
        for record in records:
            rows.writerow([record["id"], record["hypothesis"], json.dumps(record["captions"], ensure_ascii=False)])
    return [path]


def voicebench_and_uro_bench(args: EvalArgs, records: Sequence[Record]) -> list[Path]:
    """What both want of chats."""
    return [*_voicebench(args, records), _uro_bench(args, records)] if records else []


def _voicebench(args: EvalArgs, records: Sequence[Record]) -> list[Path]:
    """Each item as the benchmark gave it, less its audio, with `prompt` and `response`: chats of one question only."""
    single = [record for record in records if len(record["answers"]) == 1 and "dialogue" not in record["given"]]
    if not single:
        return []
    path = args.out / "voicebench.jsonl"
    told = [{"prompt": _question(record), "response": record["answers"][0]["text"]} for record in single]
    write_jsonl(path, [record["given"] | more for record, more in zip(single, told, strict=True)])
    return [path]


def _question(record: Record) -> str:
    """The words of a single question, where the data has them."""
    return question_text(record["given"]) or next((answer["question"] for answer in record["answers"]), "")


def _uro_bench(args: EvalArgs, records: Sequence[Record]) -> Path:
    """OUT/uro_bench: of single questions the texts in three files and audio/NNNN.wav; of dialogues one file with all."""
    folder = args.out / "uro_bench"
    with new_folder(folder) as place:
        if any("dialogue" in record["given"] for record in records):
            write_jsonl(place / "output_with_text.jsonl", [_dialogue(args.out, place, record) for record in records])
        else:
            _single_round(args.out, place, records)
    return folder


def _single_round(out: Path, place: Path, records: Sequence[Record]) -> None:
    """Numbers of four digits count the items of the data, usable or not, from 0."""
    texts: dict[str, list[Record]] = {"question_text": [], "pred_text": [], "gt_text": []}
    for record in records:
        number, answer = f"{record['number'] - 1:04d}", record["answers"][0] if record["answers"] else {}
        wanted = record["given"].get("target_text") or _question(record)
        wanted = " / ".join(map(str, wanted)) if isinstance(wanted, list) else str(wanted)
        values = (_question(record), answer.get("text", ""), wanted)
        for lines, value in zip(texts.values(), values, strict=True):
            lines.append({number: value})
        _place_wav(out, answer, place / "audio" / f"{number}.wav")
    for name, lines in texts.items():
        write_jsonl(place / f"{name}.jsonl", lines)


def _dialogue(out: Path, place: Path, record: Record) -> Record:
    rounds = record["given"].get("dialogue") or [{"source_text": answer["question"]} for answer in record["answers"]]
    told = []
    for number, turn in enumerate(rounds):
        answer = record["answers"][number] if number < len(record["answers"]) else {}
        told.append({"round": number} | turn | {"output_text": answer.get("text", "")})
        _place_wav(out, answer, place / FILE_NAME.sub("_", record["id"]) / f"round_{number}_output.wav")
    return {"id": record["given"].get("id", record["id"]), "num_round": len(rounds), "dialogue": told}


def _place_wav(out: Path, answer: Mapping[str, Any], target: Path) -> None:
    """The speech under the benchmark's name: a second name of the same file where the file system has such."""
    if not answer.get("wav"):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(out / answer["wav"], target)
    except OSError:
        shutil.copyfile(out / answer["wav"], target)
