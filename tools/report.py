"""A run folder as one self-contained HTML page: curves, restarts and faults, scores, mask picture, transcripts, speech.

    python tools/report.py runs/demo            # writes runs/demo/report.html

Shows what the run folder holds; parts that a run has not (no results yet, no mask picture) are left out.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ttt_dist.evaluation import report
from ttt_dist.evaluation.judge_registry import OWN
from ttt_dist.telemetry import curves
from ttt_dist.telemetry.events import read_events, with_silent_ends
from ttt_dist.telemetry.json_lines import Record, read_lines, read_metrics, warn_of_damage
from ttt_dist.util.atomic_files import atomic_write
from ttt_dist.util.console import print_rank0, run_command, warn
from ttt_dist.util.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from ttt_dist.audio import Codec

NUM_TRANSCRIPTS, NUM_SPOKEN = 12, 6
NUM_EVENTS, DETAIL_LENGTH = 60, 160
SAID = ("id", "reference", "hypothesis")  # of every record of an evaluation
COLUMNS = ("time", "step", "event")  # of every event; the rest are its details


def main() -> None:
    """Collect what the run folder holds and write RUN/report.html."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--data", type=Path, help="test manifest (default: RUN/data/test.jsonl)")
    parser.add_argument("--audio-root", type=Path, help="folder that the manifest's audio lies in")
    args = parser.parse_args()
    if not (args.run / "metrics.jsonl").is_file():
        raise UserError(f"{args.run}: no metrics.jsonl here; name the run_dir of a training run")
    out = args.run / "report.html"
    page = report.page(f"Text-to-Talk run {args.run.name}", subtitle(args.run), list(sections(args)))
    with atomic_write(out) as file:
        file.write(encodable(page))
    print_rank0(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


class Originals:
    """The held-out recordings, by utterance id, at the codec's rate; empty where the run has no test manifest."""

    def __init__(self, run: Path, manifest: Path, audio_root: Path | None) -> None:
        from ttt_dist.audio import UtteranceReader, load_codec

        lines = list(read_lines(manifest, lambda _: True))
        warn_of_damage(manifest, lines)
        entries = (line.record for line in lines if line.record is not None)
        self.entries = {str(entry.get("id", number)): entry for number, entry in enumerate(entries, start=1)}
        self.codec: Codec | None = load_codec(run / "export" / "codec") if (run / "export" / "codec").is_dir() else None
        rate = self.codec.sample_rate if self.codec else 16000
        self._reader = UtteranceReader(manifest.parent, rate, audio_root=audio_root)
        self._wavs = run / "results" / "originals"

    def player(self, utterance_id: str) -> str:
        """A player of the recording."""
        return report.player(self._write(f"{utterance_id}.wav", self.wave(utterance_id)))

    @property
    def can_resynthesise(self) -> bool:
        """Whether the codec makes speech by itself, without a program that would be given on a command line."""
        return self.codec is not None and self.codec.no_decoder is None

    def resynthesised(self, utterance_id: str) -> "tuple[Tensor, str]":
        """The recording through the codec and back: the best that speech of these codes can sound; and its player."""
        assert self.codec is not None
        wave = self.codec.decode(self.codec.encode([self.wave(utterance_id)])[0])
        return wave, report.player(self._write(f"{utterance_id}-codec.wav", wave))

    def wave(self, utterance_id: str) -> "Tensor":
        return self._reader.read(self.entries[utterance_id])

    def _write(self, name: str, wave: "Tensor") -> Path:
        from ttt_dist.audio import write_wav

        assert self.codec is not None
        path = self._wavs / name.replace("/", "_")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_wav(path, wave, self.codec.sample_rate)
        return path


def subtitle(run: Path) -> str:
    environment = read_json(run / "environment.json")
    hardware = environment.get("hardware")
    hardware = hardware if isinstance(hardware, dict) else {}
    gpus = hardware.get("gpus")
    models = Counter(map(str, gpus if isinstance(gpus, list) else []))
    devices = ", ".join(f"{count} x {name}" for name, count in models.items())
    devices = devices or f"{hardware.get('cores', '?')} CPU cores"
    processes = f"{environment.get('world_size', '?')} processes on {devices}"
    return f"{environment.get('started', '')} · {processes} · revision {environment.get('revision')}"


def sections(args: argparse.Namespace) -> Iterator[str]:
    """The parts of the page, in order."""
    run: Path = args.run
    records, events = read_metrics(run / "metrics.jsonl"), with_silent_ends(read_events(run))
    yield report.figures(key_figures(run, records, events))
    yield from training_sections(records, events)
    if (run / "data" / "mask.png").is_file():
        note = (
            "The first tokens of a training pack: which positions each position may look at, and where a loss is taken."
        )
        yield report.section("Who sees whom", note, report.image((run / "data" / "mask.png").read_bytes()))
    yield from intact("scores", score_sections(run, args.data or run / "data" / "test.jsonl", args.audio_root))
    profiles = sorted((run / "profile").glob("*.txt"))
    if profiles:
        note = "The heaviest operations of the profiled steps; the traces beside them open in ui.perfetto.dev."
        tables = (report.folded(path.stem, report.text(read_text(path))) for path in profiles)
        yield report.section("Profile", note, report.joined(tables))
    if (run / "config.yaml").is_file():
        yield report.section("Configuration", "As resolved at the start.", report.text(read_text(run / "config.yaml")))


def read_text(path: Path) -> str:
    return path.read_text(encoding="utf8", errors="replace")


def intact(name: str, parts: Iterator[str]) -> Iterator[str]:
    """The parts up to one whose files are damaged, which is told and ends nothing else."""
    try:
        yield from parts
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        warn(f"{name}: left out from here on ({' '.join(str(error).split())[:200]})")


def score_sections(run: Path, manifest: Path, audio_root: Path | None) -> Iterator[str]:
    """What the model hears and says. The run's codec is needed here only, so a run without results does without."""
    asr, tts = read_results(run / "results" / "asr.jsonl"), read_results(run / "results" / "tts.jsonl")
    if not asr and not tts:
        return
    originals = Originals(run, manifest, audio_root)
    if asr:
        note = "Held-out recordings, the worst first, then others. Struck out: missed; underlined: heard wrongly."
        yield report.section("Speech to text", note, transcripts(asr, originals))
    if tts:
        from ttt_dist.evaluation.page import own_speech

        again = ", the same through the codec and back," if originals.can_resynthesise else ""
        yield from own_speech(read_json(run / "results" / "tts_summary.json"))
        note = f"Held-out texts: a recording{again} and what the model says; below, what is heard in it."
        yield report.section("Text to speech", note, speech(run, tts, originals))


def training_sections(records: list[Record], events: list[Record]) -> Iterator[str]:
    """The curves of the run, and its diary."""
    marks = curves.Marks.of(events)
    yield report.note(marks.explained())
    parts = {
        "Loss": (curves.losses, "Cross-entropy of text and weighted cross-entropy of masked speech codes."),
        "Loss by noise": (
            curves.nar_by_p,
            "Cross-entropy of masked speech codes, without weights, by p: the share of a sample's codes that is masked.",
        ),
        "Loss by source and task": (
            curves.by_group,
            "Of training, each over its own samples; means of the steps since the last record.",
        ),
        "Optimisation": (curves.optimisation, "The gradient's norm is that before clipping."),
        "Speed": (curves.speed, "Of the steps since the last record; tokens are those that are not padding."),
        "Time of a step": (curves.step_split, "Where rank 0 spends its time."),
    }
    for title, (draw, note) in parts.items():
        figure = draw(records, marks)
        if figure is not None:
            yield report.section(title, note, report.svg(figure))
    if events:
        yield report.section("Events", describe_events(events), events_table(events))


def describe_events(events: list[Record]) -> str:
    """How often the run was started, saved, disturbed."""
    names = {
        "start": "start",
        "stop": "stop",
        "fault": "fault",
        "skipped_step": "skipped step",
        "checkpoint": "checkpoint",
    }
    numbers = {name: sum(event["event"] == kind for event in events) for kind, name in names.items()}
    told = ", ".join(f"{number:,} {name}{'s' if number > 1 else ''}" for name, number in numbers.items() if number)
    stalls = [event["seconds"] for event in events if event["event"] == "checkpoint" and "seconds" in event]
    return f"{told}." + (f" A checkpoint stalls training by {sum(stalls) / len(stalls):.2g} s." if stalls else "")


def events_table(events: list[Record]) -> str:
    """All but the checkpoints, the newest first."""
    shown = [event for event in events if event["event"] != "checkpoint"][::-1]
    rows = []
    for event in shown[:NUM_EVENTS]:
        fields = {key: value for key, value in event.items() if key not in COLUMNS and value is not None}
        details = ", ".join(f"{key}: {value}" for key, value in fields.items())
        cells = [str(event["time"] or "").partition(".")[0].replace("T", " "), f"{event['step']:,}"]
        cells += [event["event"].replace("_", " "), shortened(details)]
        rows.append(list(map(report.bad, cells)) if event["event"] == "fault" else cells)
    hidden = len(shown) - len(rows)
    more = f"{hidden:,} earlier ones are in events.jsonl" if hidden else ""
    return report.table(["time (UTC)", "step", "event", ""], rows) + report.note(more)


def shortened(details: str) -> str:
    return details if len(details) <= DETAIL_LENGTH else f"{details[:DETAIL_LENGTH]} ..."


def key_figures(run: Path, records: list[Record], events: list[Record]) -> dict[str, str]:
    """Name -> value of the cards at the top."""
    found: dict[str, str] = {}
    for task, label in (("asr", "speech to text, word error rate"), ("tts", "own speech transcribed, word error rate")):
        summary = read_json(run / "results" / f"{task}_summary.json")
        wer = number(summary, "wer")
        if wer is not None:
            by = f", by {summary['judge']}" if task == "tts" and summary.get("judge") else ""
            found[label + by] = f"{100 * wer:.1f} %"
    steps = [record for record in records if "loss" in record]
    if steps:
        last = steps[-1]
        told = {
            "steps": ("step", "{:,}"),
            "useful tokens a second": ("useful_tokens_per_s", "{:,.0f}"),
            "of the devices' peak (MFU)": ("mfu", "{:.1%}"),
            "of a step spent on reading data": ("data_share", "{:.1%}"),
        }
        values = {name: (number(last, key), form) for name, (key, form) in told.items()}
        found |= {
            name: form.format(value).replace("%", " %") for name, (value, form) in values.items() if value is not None
        }
    restarts = sum(event["event"] == "start" for event in events) - 1
    if restarts > 0:
        found["restarts"] = f"{restarts:,}"
    minutes = number(read_json(run / "figures.json"), "train_minutes")
    return found | ({"minutes of training": f"{minutes}"} if minutes else {})


def transcripts(records: list[Record], originals: Originals) -> str:
    """A table of recordings, references and marked transcripts."""
    worst_first = sorted(records, key=lambda r: report.word_errors(r["reference"], r["hypothesis"]), reverse=True)
    half = NUM_TRANSCRIPTS // 2
    rows = []
    for record in worst_first[:half] + worst_first[len(worst_first) // 2 :][:half]:
        known = record["id"] in originals.entries and originals.codec is not None
        heard = report.marked(record["reference"], record["hypothesis"])
        said = [record.get("speaker", ""), record["reference"]]
        rows.append([originals.player(record["id"]) if known else "", *said, heard])
    return report.table(["recording", "speaker", "said", "heard by the model"], rows)


def speech(run: Path, records: list[Record], originals: Originals) -> str:
    """Rows of three: recording, codec, model; spectrogram and player each."""
    from ttt_dist.audio import UtteranceReader

    rows = []
    for record in [record for record in records if record.get("wav")][:NUM_SPOKEN]:
        columns = []
        rate = originals.codec.sample_rate if originals.codec else 16000
        if record["id"] in originals.entries and originals.codec is not None:
            wave = originals.wave(record["id"])
            columns.append(
                report.captioned("recording", "", report.spectrogram(wave, rate), originals.player(record["id"]))
            )
            if originals.can_resynthesise:
                wave, player = originals.resynthesised(record["id"])
                columns.append(report.captioned("through the codec", "", report.spectrogram(wave, rate), player))
        path = run / "results" / record["wav"]
        wave = UtteranceReader(path.parent, rate).read({"audio": path.name})
        texts = record.get("heard", {}).get("speech") or {OWN: record["hypothesis"]}
        heard = "heard " + ", ".join(
            f"{'' if label == OWN else f'by {label} '}as “{text}”" for label, text in texts.items()
        )
        columns.append(report.captioned("the model", heard, report.spectrogram(wave, rate), report.player(path)))
        who = f" ({record['speaker']})" if "speaker" in record else ""
        rows.append(report.row(f"{record['reference']}{who}", columns))
    return report.joined(rows)


def read_json(path: Path) -> Record:
    """The object of a file; empty where there is none, or, with a warning, where it is damaged."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        values = str(error)[:200]
    if isinstance(values, dict):
        return values
    warn(f"{path}: is left out; it holds no JSON object" + (f" ({values})" if isinstance(values, str) else ""))
    return {}


def read_results(path: Path) -> list[Record]:
    """The records of an evaluation, each with what was said and what was heard. Warns of damaged lines."""
    lines = list(read_lines(path, lambda record: all(isinstance(record.get(name), str) for name in SAID)))
    warn_of_damage(path, lines)
    return [line.record for line in lines if line.record is not None]


def number(values: Record, name: str) -> float | None:
    """A finite number of a record; None where it has none."""
    value = values.get(name)
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def encodable(text: str) -> str:
    """Text without halves of characters, which JSON may hold and no file can."""
    return text.encode("utf8", "replace").decode()


def command() -> None:
    """The entry point `ttt-report`."""
    run_command(main)


if __name__ == "__main__":
    command()
