"""What the page shows of a scored record, by the kind of its task: what was wanted, and what came. And how bad that is."""

from typing import Any

from ttt_dist.evaluation import report
from ttt_dist.evaluation.ears import MOST
from ttt_dist.evaluation.metrics.error_rates import compared
from ttt_dist.evaluation.metrics.scores import Normalisers, Record

Cells = dict[str, str]
"""Name of column -> text, or HTML of `report`."""
SHOWN = 120  # characters of a value


def plain_cells(record: Record, normalisers: Normalisers) -> Cells:
    """All that is short in a record, but where it stands: for tasks that do not say."""
    values = {name: value for name, value in record.items() if name not in ("id", "where", "wav")}
    return {name: str(value) for name, value in values.items() if len(str(value)) <= SHOWN}


def transcript_cells(record: Record, normalisers: Normalisers) -> Cells:
    """What was heard, with its errors marked: of speech by every judge, cut as it is scored."""
    most = MOST if "heard" in record else None
    others = list(record["heard"]["speech"].items())[1:] if "heard" in record else []
    given = {"got": record["hypothesis"]} | {f"got by {label}": text for label, text in others}
    norm = normalisers.of(record)
    marked = {name: report.marked(*compared(record["reference"], text, norm, most)) for name, text in given.items()}
    return {"wanted": record["reference"], **marked}


def errors(record: Record) -> float:
    """Words wrong per word wanted, of a record with `transcript_cells`."""
    words = record["words"]
    edits = words["substitutions"] + words["deletions"] + words["insertions"]
    return float(edits / max(edits - words["insertions"] + words["hits"], 1))


def caption_cells(record: Record, normalisers: Normalisers) -> Cells:
    """The captions that people wrote, and the model's."""
    wanted = report.lines(record["captions"])
    return {"wanted": wanted, "got": record["hypothesis"], "CIDEr-D": f"{record['cider_d']:.2f}"}


def label_cells(record: Record, normalisers: Normalisers) -> Cells:
    """The class, and what the model named."""
    return {"wanted": record["label"], "got": _shown(record["hypothesis"], record["is_right"])}


def chat_cells(record: Record, normalisers: Normalisers) -> Cells:
    """The questions and answers of a chat."""
    turns = [
        (answer["question"] or "(spoken)", _shown(answer["text"] or "(no text)", bool(answer["text"])))
        for answer in record["answers"]
    ]
    return {"chat": report.chat(turns)}


def answer_cells(record: Record, normalisers: Normalisers) -> Cells:
    """The question, the accepted answers, and those that came as text and as speech."""
    given = {
        name: _shown(record[name], record.get(right) is not False)
        for name, right in (("text", "text_is_right"), ("heard", "speech_is_right"))
        if name in record
    }
    return {"question": record["question"], "accepted": "; ".join(record["answers"])} | given


def likelihood_cells(record: Record, normalisers: Normalisers) -> Cells:
    """Nats per token of each class."""
    return {f"{name}, nats per token": _nats(record[name]) for name in ("text", "audio") if name in record}


def _nats(found: dict[str, Any]) -> str:
    return f"{sum(found['nats']) / len(found['nats']) / max(found['tokens'], 1):.3f}"


def _shown(text: str, is_good: bool) -> str:
    return text if is_good else report.bad(text)
