"""The page of an evaluation: its scores, and the worst items with players and marked errors. Nothing is fetched."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import soundfile

from ttt_dist.audio import UtteranceReader
from ttt_dist.evaluation import report
from ttt_dist.evaluation.args import EvalArgs
from ttt_dist.evaluation.context import locate
from ttt_dist.evaluation.ears import EARS_NOTE, MOST, by_judge
from ttt_dist.evaluation.items import Item
from ttt_dist.evaluation.metrics.error_rates import compared
from ttt_dist.evaluation.metrics.quality import QUALITY_NOTE, as_table
from ttt_dist.evaluation.metrics.scores import Normalisers, Record, wavs
from ttt_dist.manifest.clips import clips
from ttt_dist.util.errors import UserError

NUM_ITEMS = 50
AUDIO_BYTES = 12 * 10**6  # of all players; items beyond it have none
SAMPLE_RATE = 16000  # of recordings in the page


def render(
    plan: EvalArgs,
    summary: Mapping[str, Any],
    worst: Sequence[Record],
    items: Mapping[str, Item],
    normalisers: Normalisers,
) -> str:
    """The page. `worst` are scored records, the worst first."""
    players = Players(plan)
    rows = [
        {"item": report.plain(record["id"])} | players.of(record, items.get(record["id"])) | _cells(record, normalisers)
        for record in worst[:NUM_ITEMS]
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name, "") for name in names] for row in rows]
    note = f"The worst {len(rows)} of {summary['items']}. Struck out: missing; underlined: wrong."
    sections = [
        report.figures({name: _percent(name, score["value"]) for name, score in summary["scores"].items()}),
        report.section("Scores", "With 95 % intervals over the items.", _scores(summary)),
        *own_speech(summary),
        report.section("Items", note, report.table(names, cells)),
    ]
    if summary["errors"]:
        note = f"{summary['errors']} in all; the first of them."
        sections.append(report.section("Not usable", note, report.text("\n".join(summary["problems"]))))
    return report.page(f"Evaluation: {plan.task}", f"{plan.model} on {plan.data}", sections)


class Players:
    """Players of what was heard and said, as long as the page has room."""

    def __init__(self, plan: EvalArgs) -> None:
        self.plan = plan
        self._left = AUDIO_BYTES
        self._reader = UtteranceReader(plan.data.parent, SAMPLE_RATE, audio_root=plan.audio_root, cache_bytes=0)

    def of(self, record: Record, item: Item | None) -> dict[str, str]:
        """Columns of the item's recordings and of the model's speech, where there are any."""
        said = [self._player((self.plan.out / name).read_bytes(), "wav") for name in wavs(record)]
        given = [self._recording(clip) for clip in clips(item.entry)] if item is not None else []
        columns = {"recording": "".join(given), "speech": "".join(said)}
        return {name: cell for name, cell in columns.items() if cell}

    def _recording(self, clip: Mapping[str, Any]) -> str:
        buffer = io.BytesIO()
        with suppress(UserError):  # it has gone since it was evaluated
            wave = self._reader.read(locate(clip, self.plan.data.parent, self.plan.audio_root))
            soundfile.write(buffer, wave.clamp(-1, 1).numpy(), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        return self._player(buffer.getvalue(), "flac")

    def _player(self, content: bytes, kind: str) -> str:
        if not content or len(content) > self._left:
            return ""
        self._left -= len(content)
        return report.player_of(content, kind)


def _cells(record: Record, normalisers: Normalisers) -> dict[str, str]:
    """Name of column -> cell, as HTML: what was wanted, and what came."""
    if "reference" in record:
        return {"wanted": report.plain(record["reference"])} | _transcripts(record, normalisers)
    if "captions" in record:
        wanted = "<br>".join(map(report.plain, record["captions"]))
        return {"wanted": wanted, "got": report.plain(record["hypothesis"]), "CIDEr-D": f"{record['cider_d']:.2f}"}
    if "label" in record:
        got = report.plain(record["hypothesis"], not record["is_right"])
        return {"wanted": report.plain(record["label"]), "got": got}
    if "number" in record:
        return {"chat": "<br>".join(_chat_lines(record))}
    if "question" in record:
        asked = {"question": record["question"], "accepted": "; ".join(record["answers"])}
        given = {
            name: report.plain(record[name], record.get(right) is False)
            for name, right in (("text", "text_is_right"), ("heard", "speech_is_right"))
            if name in record
        }
        return {name: report.plain(text) for name, text in asked.items()} | given
    return {
        f"{name}, nats per token": f"{sum(found['nats']) / len(found['nats']) / max(found['tokens'], 1):.3f}"
        for name, found in record.items()
        if name in ("text", "audio")
    }


def _transcripts(record: Record, normalisers: Normalisers) -> dict[str, str]:
    """What was heard, with its errors marked: of speech by every judge, cut as it is scored."""
    most = MOST if "heard" in record else None
    others = list(record["heard"]["speech"].items())[1:] if "heard" in record else []
    given = {"got": record["hypothesis"]} | {f"got by {label}": text for label, text in others}
    norm = normalisers.of(record)
    return {name: report.marked(*compared(record["reference"], text, norm, most)) for name, text in given.items()}


def _chat_lines(record: Record) -> Iterator[str]:
    for answer in record["answers"]:
        yield f"<b>{report.plain(answer['question'] or '(spoken)')}</b>"
        yield report.plain(answer["text"] or "(no text)", not answer["text"])


def own_speech(summary: Mapping[str, Any]) -> Iterator[str]:
    """Sections of own speech beside its ceiling: as each judge hears it, and how it sounds; none of what is not known."""
    cut = f" {summary['cut'].capitalize()}." if "cut" in summary else ""
    kinds = {"Own speech by judge": (by_judge, EARS_NOTE + cut), "Quality of speech": (as_table, QUALITY_NOTE)}
    for title, (make, note) in kinds.items():
        table = make(summary)
        if table:
            cells = [[report.plain(cell) for cell in row] for row in table[1:]]
            yield report.section(title, f"{note} With 95 % intervals.", report.table(table[0], cells))


def _scores(summary: Mapping[str, Any]) -> str:
    rows = []
    for name, score in summary["scores"].items():
        low, high = score["interval_95"] or (None, None)
        cells = [name, *(_percent(name, value) for value in (score["value"], low, high)), score["by"]]
        rows.append([report.plain(cell) for cell in cells])
    return report.table(["score", "value", "from", "to", "by"], rows)


def _percent(name: str, value: float | None) -> str:
    """Shares as per cent; BLEU is given as such, CIDEr-D and nats are no shares."""
    if value is None:
        return "none"
    return f"{value:.3g}" if name in ("bleu", "cider_d") or "nats" in name else f"{100 * value:.1f} %"
