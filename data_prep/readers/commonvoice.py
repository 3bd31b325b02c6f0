"""Common Voice: tables of clips by split, the clips in one folder, or in numbered tars (the Hub)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep.readers import ReaderOptions
from data_prep.readers.common import add_duration, is_complete, is_there, require_folder
from data_prep.readers.stems import Stems
from ttt_dist.manifest.delimited import Row, read_rows
from ttt_dist.manifest.entry import Entry, seconds_of
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.errors import UserError

SPLITS = ("train", "dev", "test")
DEPTHS = ("", "*/", "transcript/*/")  # of a language, of a release, of the Hub's data set
OPTIONAL = {"client_id": "speaker", "age": "age", "gender": "gender", "accents": "accents"}


def read_commonvoice(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """LANG/{train,dev,test}.tsv (`client_id`, `path`, `sentence`, `locale`, ...) and LANG/clips/*.mp3.

    `--source` is the folder of a language or of a release. `--split validated` (or `other`, ...) reads that table
    instead; the three splits are parts of `validated`. Lengths are those of clip_durations.tsv where it is there, else
    of the files. In these tables `"` is a letter, not a quote.

    The Hub's data sets have transcript/LANG/SPLIT.tsv and audio/LANG/SPLIT/LANG_SPLIT_N.tar, whose clips are found by name;
    unpacked tars too.
    """
    folder = require_folder(options.source)
    splits = (options.split,) if options.split else SPLITS
    tables = sorted(path for depth in DEPTHS for split in splits for path in folder.glob(f"{depth}{split}.tsv"))
    if not tables:
        raise UserError(
            f"{folder}: has no {splits[0]}.tsv, nor has a folder in it or in its transcript/; correct --source or --split"
        )
    seconds: dict[str, float] = {}
    last = None
    for table in tables:
        if table.parent != last:
            last, seconds = table.parent, _clip_seconds(table.parent / "clip_durations.tsv", problems)
        clips = _clips_of_the_hub(table)
        stems = Stems(clips, problems) if clips else None
        for place, row in read_rows(table, problems, "\t", csv_cells=True):  # some releases quote sentences so
            entry = _entry(table, row, place, options, problems)
            if entry and stems:
                clip = stems.take(entry["id"], problems, place)
                if clip and is_complete(entry := {**entry, **clip}, options, problems, place):
                    yield entry
            elif entry and _has_length(entry, seconds, problems, place):
                yield entry
        if stems and clips and clips.name == table.stem:
            stems.skip_rest(problems)


def _clips_of_the_hub(table: Path) -> Path | None:
    """Where the Hub's form has the clips: in the split's folder, or where there is none (of validated) in all splits' ones."""
    transcripts = table.resolve().parent.parent
    if transcripts.name != "transcript":
        return None
    audio = transcripts.parent / "audio" / table.resolve().parent.name
    return audio / table.stem if (audio / table.stem).is_dir() else audio


def _entry(table: Path, row: Row, place: str, options: ReaderOptions, problems: Problems) -> Entry | None:
    name, text = row.get("path", ""), row.get("sentence", "").strip()
    if not name or not text:
        message = f"{place}: column 'path' or 'sentence' is missing or empty; complete or remove the line"
        problems.report(message, "no text")
        return None
    audio = table.parent / "clips" / (name if Path(name).suffix else f"{name}.mp3")  # early releases left it away
    entry = {"id": audio.stem, "audio": str(audio), "text": text, "split": table.stem}
    entry["lang"] = options.lang or row.get("locale") or table.parent.name
    return entry | {field: row[column] for column, field in OPTIONAL.items() if row.get(column)}


def _has_length(entry: Entry, seconds: dict[str, float], problems: Problems, place: str) -> bool:
    audio = Path(entry["audio"])
    if audio.name not in seconds:
        return add_duration(entry, problems, place)
    entry["duration"] = seconds[audio.name]
    return is_there(audio, problems, place)


def _clip_seconds(path: Path, problems: Problems) -> dict[str, float]:
    """Seconds by clip, from columns `clip` and `duration[ms]`."""
    seconds: dict[str, float] = {}
    if not path.is_file():
        return seconds
    for place, row in read_rows(path, problems, "\t"):
        milliseconds = seconds_of(row.get("duration[ms]"))
        if "clip" in row and milliseconds is not None:
            seconds[row["clip"]] = milliseconds / 1000
        else:
            problems.report(f"{place}: is not CLIP<TAB>MILLISECONDS below 'clip' and 'duration[ms]'; correct the line")
    return seconds
