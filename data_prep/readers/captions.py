"""Captions of sounds: Clotho, AudioCaps and other CSVs, an entry per caption."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from data_prep.readers import ReaderOptions
from data_prep.readers.common import AUDIO_SUFFIXES, add_duration, require_folder, walk
from ttt_dist.manifest.delimited import Row, delimiter_of, read_rows
from ttt_dist.manifest.entry import Entry, bad_path
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.records import TABLES
from ttt_dist.manifest.text_files import raw_lines, stem_of, suffix_of
from ttt_dist.util.errors import UserError

CAPTION = re.compile(r"caption(?:_\d+)?")
SPEAKS_OF_AUDIO = re.compile("audio|wav|flac|mp3|clip|sound|recording", re.IGNORECASE)
CLOTHO_PREFIX = "clotho_captions_"


def read_captions(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """CSVs with `file_name` (or `youtube_id` and `start_time`) and `caption`, or `caption_1`, `caption_2`, ...

    `--source` is a CSV, or a folder, whose CSVs without captions (Clotho's metadata) are skipped. Recordings are found
    by name anywhere below the folder, or below `--audio-root`; of a CSV without recordings in its folder, below those folders
    beside it whose names speak of audio. Where several have the name, the one in a folder named as the split, which is
    the CSV's name (`clotho_captions_development.csv`: `development`). `--columns audio=...,text=...` names others.
    """
    if not options.source.exists():
        raise UserError(f"{options.source}: no such file or folder; correct --source")
    folder = options.source if options.source.is_dir() else options.source.parent
    found = list(walk(folder, problems))
    recordings = _recordings(found, options, problems)
    tables = [path for path in found if suffix_of(path) in TABLES]
    for table in tables if options.source.is_dir() else [options.source]:
        split = stem_of(table).removeprefix(CLOTHO_PREFIX)
        if not options.source.is_file() and not _has_captions(table, options, problems):
            problems.skip("table without captions", str(table))
        elif options.wants(split, problems, str(table)):
            yield from _read_table(table, split, recordings, options, problems)


def _recordings(found: list[Path], options: ReaderOptions, problems: Problems) -> dict[str, list[Path]]:
    """The recordings by name, with and without suffix: below --audio-root, else of `found`, else beside the CSV's folder."""
    if options.audio_root is not None:
        found = list(walk(require_folder(options.audio_root, "--audio-root"), problems))
    named = _by_name(found)
    if named or options.audio_root is not None or options.source.is_dir():
        return named
    beside = sorted(options.source.absolute().parent.parent.iterdir())
    folders = [path for path in beside if SPEAKS_OF_AUDIO.search(path.name) and path.is_dir()]
    return _by_name([path for folder in folders for path in walk(folder, problems)])


def _by_name(paths: list[Path]) -> dict[str, list[Path]]:
    named: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        if path.suffix.lower() in AUDIO_SUFFIXES:
            named[path.name].append(path)
            named[path.stem].append(path)
    return named


def _has_captions(table: Path, options: ReaderOptions, problems: Problems) -> bool:
    """Whether the header has a column of captions; Clotho's metadata beside them are not even UTF-8."""
    wanted = options.columns.get("text")
    try:
        first = next((raw for _, raw in raw_lines(table)), b"")
    except UserError as error:
        problems.report(error, "no access")
        return False
    header = first.decode("utf-8", "replace").removeprefix("\ufeff")
    names = [name.strip().strip('"') for name in header.split(delimiter_of(table))]
    return any(name == wanted if wanted else CAPTION.fullmatch(name) for name in names)


def _read_table(
    table: Path, split: str, recordings: dict[str, list[Path]], options: ReaderOptions, problems: Problems
) -> Iterator[Entry]:
    for place, row in read_rows(table, problems, delimiter_of(table)):
        captions = _captions(row, options)
        audio = _find(row, split, recordings, options)
        if not any(captions.values()):
            problems.report(f"{place}: has no caption; complete or remove the line", "no text")
            continue
        if not isinstance(audio, Path):
            problems.report(f"{place}: {audio}", "no recording")
            continue
        number = place.rpartition(":")[2]
        for column, text in captions.items():
            if not text:
                problems.skip("empty caption", f"{place}: {column}")
                continue
            tail = column.removeprefix("caption_") if len(captions) > 1 else number
            entry = {"id": f"{split}-{audio.stem}-{tail}", "audio": str(audio), "text": text}
            entry |= {"lang": options.lang or "en", "split": split}
            if not add_duration(entry, problems, place):
                break
            yield entry


def _captions(row: Row, options: ReaderOptions) -> Row:
    wanted = options.columns.get("text")
    names = [name for name in row if (name == wanted if wanted else CAPTION.fullmatch(name))]
    return {name: row[name].strip() for name in names}


def _find(row: Row, split: str, recordings: dict[str, list[Path]], options: ReaderOptions) -> Path | str:
    """The row's recording, or why there is none."""
    where = options.audio_root or "the corpus's folder"
    name = row.get(options.columns.get("audio", "file_name"), "").strip()
    video, start = row.get("youtube_id", ""), row.get("start_time", "")
    names = [name] if name else [video, f"Y{video}", f"{video}_{start}"] if video else []
    if not names:
        return "names no recording (column 'file_name'); complete the line, or name the column by --columns audio=..."
    paths = next((recordings[Path(name).name] for name in names if Path(name).name in recordings), [])
    if len(paths) > 1:
        paths = [path for path in paths if path.as_posix().endswith(f"/{names[0]}")] or paths
    if len(paths) > 1:
        paths = [path for path in paths if split in path.parts] or paths
    if not paths and name.startswith("/") and not bad_path(name) and Path(name).is_file():
        return Path(name)
    if len(paths) == 1:
        return paths[0]
    if not paths:
        return f"{names[0]}: no such recording below {where}; fetch it, or name the folder of the recordings by --audio-root"
    return f"{names[0]}: {len(paths)} recordings have this name, none in a folder '{split}'; name one CSV's own folder"
