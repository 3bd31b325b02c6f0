"""WenetSpeech and GigaSpeech: one JSON file names long recordings and the utterances in them.

An entry is a piece (`offset`, `duration`) of a long file. The header of each long file is opened once; no file is
decoded, and encoding seeks to the pieces. The JSON is read as a stream: memory does not grow with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_prep.readers import ReaderOptions
from data_prep.readers.common import TOLERANCE_SECONDS, require_file
from data_prep.readers.transcripts import no_speech, punctuated
from ttt_dist.audio.io import audio_seconds
from ttt_dist.manifest.entry import Entry, is_deep, is_seconds, is_unicode
from ttt_dist.manifest.json_stream import stream_array
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.errors import UserError

WEAK = "W"
EVALUATION = {"DEV": "dev", "TEST": "test", "TEST_NET": "test_net", "TEST_MEETING": "test_meeting"}

TextOf = Callable[[dict[str, Any]], str]


def read_wenetspeech(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """WenetSpeech.json: `audios` with `path` and `segments` of `sid`, `begin_time`, `end_time`, `text`, `confidence`.

    `--subset` L, M, S or W; DEV, TEST_NET and TEST_MEETING are splits, everything else is `train`. The labels of W are weak, read
    off by a recogniser that was less sure: they are skipped unless they are asked for.
    """
    yield from _read(options, problems, "WenetSpeech.json", "zh", lambda segment: segment["text"].strip())


def read_gigaspeech(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """GigaSpeech.json: `audios` with `path` and `segments` of `sid`, `speaker`, `begin_time`, `end_time`, `text_tn`.

    Tags of punctuation become punctuation (`<COMMA>`); segments that are no speech (`<MUSIC>`, ...) are skipped.
    `--subset` XL, L, M, S or XS; DEV and TEST are splits, everything else is `train`.
    """
    yield from _read(options, problems, "GigaSpeech.json", "en", lambda segment: punctuated(segment["text_tn"]))


def _read(options: ReaderOptions, problems: Problems, name: str, lang: str, text_of: TextOf) -> Iterator[Entry]:
    """The utterances of the JSON file `name`, or of another one that `--source` names, beside its `audio/`."""
    path = require_file(options.source / name if options.source.is_dir() else options.source)
    for place, audio in stream_array(path, "audios", problems):
        try:
            recording = path.parent / audio["path"]
            segments = list(audio["segments"])
        except (KeyError, TypeError) as error:
            problems.report(f"{place}: this audio lacks a path or segments ({error}); fetch the file again")
            continue
        wanted = [entry for segment in segments if (entry := _entry(segment, place, options, problems, text_of))]
        if not wanted:
            continue
        try:
            seconds = audio_seconds(recording)
        except UserError as error:
            problems.report(f"{place}: {error}", "bad audio")
            continue
        for entry in wanted:
            if _lies_within(entry, seconds, recording, place, problems):
                yield {"id": entry.pop("id"), "audio": str(recording), **entry, "lang": options.lang or lang}


def _entry(segment: Any, place: str, options: ReaderOptions, problems: Problems, text_of: TextOf) -> Entry | None:
    """A segment that was asked for, checked; None, reported or counted as skipped, where it is not."""
    try:
        name, subsets = str(segment["sid"]), [str(subset).strip("{}") for subset in segment.get("subsets", [])]
        begin, end = float(segment["begin_time"]), float(segment["end_time"])
        text = text_of(segment)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        message = f"{place}: a segment lacks or garbles a field ({type(error).__name__}: {error}); correct the file"
        problems.report(message, "bad segment")
        return None
    where = f"{place}: segment {name}"
    if not _is_wanted(subsets, text, where, options, problems):
        return None
    entry: Entry = {"id": name, "offset": begin, "duration": round(end - begin, 6), "text": text}
    if segment.get("speaker") not in (None, "", "N/A"):
        entry["speaker"] = str(segment["speaker"])
    if "confidence" in segment:
        entry["confidence"] = segment["confidence"]
    is_piece = is_seconds(begin) and is_seconds(end) and begin < end
    if not text or not is_piece or is_deep(entry) or not is_unicode(json.dumps(entry, ensure_ascii=False)):
        message = f"{where}: has no text, text that is not UTF-8, or no length ({begin} to {end} s); correct the file"
        problems.report(message, "bad segment")
        return None
    return entry | {"split": _split(subsets)}


def _is_wanted(subsets: list[str], text: str, where: str, options: ReaderOptions, problems: Problems) -> bool:
    if tag := no_speech(text):
        problems.skip(f"no speech: {tag}", where)
    elif options.subset and options.subset not in subsets:
        problems.skip(f"not in subset {options.subset}", where)
    elif not options.subset and set(subsets) == {WEAK}:
        problems.skip(f"weak label; ask for them by --subset {WEAK}", where)
    else:
        return options.wants(_split(subsets), problems, where)
    return False


def _split(subsets: list[str]) -> str:
    return next((EVALUATION[subset] for subset in subsets if subset in EVALUATION), "train")


def _lies_within(entry: Entry, seconds: float, recording: Path, place: str, problems: Problems) -> bool:
    end = entry["offset"] + entry["duration"]
    if end <= seconds + TOLERANCE_SECONDS:
        return True
    message = (
        f"{place}: segment {entry['id']}: ends at {end:.3f} s, but {recording} has {seconds:.3f} s; fetch it again"
    )
    problems.report(message, "bad segment")
    return False
