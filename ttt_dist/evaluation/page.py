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
from ttt_dist.evaluation.ears import EARS_NOTE, by_judge
from ttt_dist.evaluation.error_tables import error_tables
from ttt_dist.evaluation.items import Item
from ttt_dist.evaluation.metrics.quality import QUALITY_NOTE, as_table
from ttt_dist.evaluation.metrics.scores import Normalisers, Record, wavs
from ttt_dist.manifest.clips import clips
from ttt_dist.util.errors import UserError

NUM_ITEMS = 50
AUDIO_BYTES = 12 * 10**6  # of all players; items beyond it have none
SAMPLE_RATE = 16000  # of recordings in the page


def render(
    args: EvalArgs,
    summary: Mapping[str, Any],
    worst: Sequence[Record],
    items: Mapping[str, Item],
    normalisers: Normalisers,
) -> str:
    """The page. `worst` are scored records, the worst first."""
    players = Players(args)
    rows = [
        {"item": record["id"]} | players.of(record, items.get(record["id"])) | args.row.cells(record, normalisers)
        for record in worst[:NUM_ITEMS]
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name, "") for name in names] for row in rows]
    note = f"The worst {len(rows)} of {summary['items']}. Struck out: missing; underlined: wrong."
    sections = [
        report.figures({name: _percent(name, score["value"]) for name, score in summary["scores"].items()}),
        report.section("Scores", "With 95 % intervals over the items.", _scores(summary)),
        *own_speech(summary),
        *(report.section(one.title, one.note, report.table(one.header, one.rows)) for one in error_tables(summary)),
        report.section("Items", note, report.table(names, cells)),
    ]
    if summary["errors"]:
        note = f"{summary['errors']} in all; the first of them."
        sections.append(report.section("Not usable", note, report.text("\n".join(summary["problems"]))))
    return report.page(f"Evaluation: {args.row.name}", f"{args.model} on {args.data}", sections)


class Players:
    """Players of what was heard and said, as long as the page has room."""

    def __init__(self, args: EvalArgs) -> None:
        self.args = args
        self._left = AUDIO_BYTES
        self._reader = UtteranceReader(args.data.parent, SAMPLE_RATE, audio_root=args.audio_root, cache_bytes=0)

    def of(self, record: Record, item: Item | None) -> dict[str, str]:
        """Columns of the item's recordings and of the model's speech, where there are any."""
        said = [self._player((self.args.out / name).read_bytes(), "wav") for name in wavs(record)]
        given = [self._recording(clip) for clip in clips(item.entry)] if item is not None else []
        columns = {"recording": report.joined(given), "speech": report.joined(said)}
        return {name: cell for name, cell in columns.items() if cell}

    def _recording(self, clip: Mapping[str, Any]) -> str:
        buffer = io.BytesIO()
        with suppress(UserError):  # it has gone since it was evaluated
            wave = self._reader.read(locate(clip, self.args.data.parent, self.args.audio_root))
            soundfile.write(buffer, wave.clamp(-1, 1).numpy(), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        return self._player(buffer.getvalue(), "flac")

    def _player(self, content: bytes, kind: str) -> str:
        if not content or len(content) > self._left:
            return ""
        self._left -= len(content)
        return report.player_of(content, kind)


def own_speech(summary: Mapping[str, Any]) -> Iterator[str]:
    """Sections of own speech beside its ceiling: as each judge hears it, and how it sounds; none of what is not known."""
    cut = f" {summary['cut'].capitalize()}." if "cut" in summary else ""
    kinds = {"Own speech by judge": (by_judge, EARS_NOTE + cut), "Quality of speech": (as_table, QUALITY_NOTE)}
    for title, (make, note) in kinds.items():
        table = make(summary)
        if table:
            yield report.section(title, f"{note} With 95 % intervals.", report.table(table[0], table[1:]))


def _scores(summary: Mapping[str, Any]) -> str:
    rows = []
    for name, score in summary["scores"].items():
        low, high = score["interval_95"] or (None, None)
        rows.append([name, *(_percent(name, value) for value in (score["value"], low, high)), score["by"]])
    return report.table(["score", "value", "from", "to", "by"], rows)


def _percent(name: str, value: float | None) -> str:
    """Shares as per cent; BLEU is given as such, CIDEr-D and nats are no shares."""
    if value is None:
        return "none"
    return f"{value:.3g}" if name in ("bleu", "cider_d") or "nats" in name else f"{100 * value:.1f} %"
