"""WebDataset tars: KEY.flac with KEY.txt, KEY.json or both, as img2dataset, LAION and the Hub's `webdataset` builder have them.

A key is a member's name up to its first dot below the last `/`. Nothing is unpacked: recordings are read by seeking.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.readers import ReaderOptions
from data_prep.readers.columns import DEFAULTS, choose_columns, entry_of
from data_prep.readers.common import AUDIO_SUFFIXES, add_duration, walk
from data_prep.readers.nemo import expand
from data_prep.readers.tar_members import TarMember, tar_members
from ttt_dist.audio.containers import Containers, member_bytes
from ttt_dist.manifest.entry import Entry, decode_line, parse_object
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.errors import UserError

WORDS = {".txt": "text", ".text": "text", ".lab": "text", ".transcript": "text", ".cls": "label"}
MAX_TEXT = 2**20  # bytes of a sample's text or JSON


def read_webdataset(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """A tar, several as a range (`data-{000000..000127}.tar`), or a folder with tars at any depth.

    A text is KEY.txt, or in KEY.json what `--columns` or one of the usual names holds (docs/corpora.md); a list of texts
    (LAION's captions) gives an entry for each. The split is that of the JSON, or the folder's name below --source. Other members
    are skipped by their suffix.
    """
    for path in _tars(options.source, problems):
        split = path.parent.name if options.source.is_dir() and path.parent != options.source else None
        yield from _Tar(path, split, options, problems).entries()


def _tars(source: Path, problems: Problems) -> Iterator[Path]:
    if source.is_dir():
        found = [path for path in walk(source, problems) if path.name.endswith((".tar", ".tar.gz", ".tgz"))]
    else:
        found = [source] if source.exists() else [Path(name) for name in expand(str(source))]
    if not found or not found[0].is_file():
        raise UserError(f"{found[0] if found else source}: no such file, or no tar in it; correct --source")
    yield from found


class _Tar:
    def __init__(self, path: Path, split: str | None, options: ReaderOptions, problems: Problems) -> None:
        self._path, self._split, self._options, self._problems = path, split, options, problems
        self._containers = Containers()

    def entries(self) -> Iterator[Entry]:
        """The samples in their order. One whose members lie apart waits for the later ones."""
        waiting: dict[str, dict[str, TarMember]] = {}
        last = None
        for member in tar_members(self._path, self._problems):
            key, suffix = _key_and_suffix(member.name)
            if suffix not in AUDIO_SUFFIXES and suffix not in WORDS and suffix != ".json":
                self._problems.skip(f"member {suffix}", f"{self._path}: {member.name}")
                continue
            if last not in (None, key) and _is_complete(waiting[last]):
                yield from self._sample(last, waiting.pop(last))
            waiting.setdefault(key, {})["audio" if suffix in AUDIO_SUFFIXES else suffix] = member
            last = key
        for key, members in waiting.items():
            yield from self._sample(key, members)

    def _sample(self, key: str, members: dict[str, TarMember]) -> Iterator[Entry]:
        place = f"{self._path}: {key}"
        audio = members.pop("audio", None)
        if audio is None or not members:
            missing = "recording" if audio is None else "text"
            self._problems.report(f"{place}: has no {missing} beside it; fetch the tar again", f"no {missing}")
            return
        try:
            row = self._row(members, place)
        except UserError as error:
            self._problems.report(error)
            return
        rows = _each_text(row, self._options.columns.get("text"))
        for number, words in enumerate(rows, start=1):
            entry = self._entry(words, place)
            if entry is None:
                return
            name = key if len(rows) == 1 else f"{key}-{number}"
            found = {"id": name, "audio": str(self._path), "member": audio.place(), **entry}
            split = str(found.get("split", ""))
            if self._options.wants(split, self._problems, place) and self._has_length(found, place):
                yield found

    def _row(self, members: dict[str, TarMember], place: str) -> dict[str, Any]:
        """What the sample's texts say: the fields of its JSON, and its text by itself over them."""
        row: dict[str, Any] = {}
        for suffix in sorted(members, key=lambda suffix: suffix != ".json"):
            member = members[suffix]
            if member.size > MAX_TEXT:
                raise UserError(f"{place}{suffix}: has {member.size:,} bytes, too many for a text; remove it")
            text = decode_line(member_bytes(self._path, member.offset, member.size), f"{place}{suffix}")
            row |= parse_object(text, f"{place}{suffix}") if suffix == ".json" else {WORDS[suffix]: text}
        return row

    def _entry(self, row: dict[str, Any], place: str) -> Entry | None:
        given = {name: column for name, column in self._options.columns.items() if column in row}
        chosen = choose_columns(row, given, self._path)
        columns = {name: column for name, column in chosen.items() if name not in ("id", "audio", "offset")}
        entry = entry_of(row, columns, place, self._options, self._problems)
        if entry is not None and self._split:
            entry.setdefault("split", self._split)
        return entry

    def _has_length(self, entry: Entry, place: str) -> bool:
        return bool(entry.get("duration")) or add_duration(entry, self._problems, place, self._containers)


def _key_and_suffix(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    key, _, suffixes = base.partition(".")
    return (folder + slash).removeprefix("./") + key, f".{suffixes.rpartition('.')[2].lower()}" if suffixes else ""


def _is_complete(members: dict[str, TarMember]) -> bool:
    return "audio" in members and len(members) > 1


def _each_text(row: dict[str, Any], given: str | None) -> list[dict[str, Any]]:
    """The row, or one for each text where the column of the texts, the given one if there is one, holds a list of them."""
    column = next((name for name in ([given] if given else DEFAULTS["text"]) if isinstance(row.get(name), list)), None)
    if column is None:
        return [row]
    texts = [text for text in row[column] if isinstance(text, str) and text.strip()]
    return [{**row, column: text} for text in texts or [""]]
