"""NeMo's manifests: JSON lines with `audio_filepath`, `duration`, `text`, `offset`; of tarred sets `shard_id` too.

Source of the forms: NeMo's documentation of ASR and TTS data, and its script convert_to_tarred_audio_dataset.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from data_prep.readers import ReaderOptions
from data_prep.readers.common import add_duration, clip_seconds, lines_of
from data_prep.readers.locating import Locator
from data_prep.readers.tar_members import TarMember, tar_members
from data_prep.readers.transcripts import no_speech, punctuated
from ttt_dist.manifest.entry import Entry, bad_path, parse_object, seconds_of
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.errors import UserError

OPEN, CLOSE = (
    re.compile(r"_OP_|[(\[<]"),
    re.compile(r"_CL_|[)\]>]"),
)  # what NeMo takes for { and }, which a shell would expand
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
SHARD = re.compile(r"_(\d+)[^/_]*\.(?:json|jsonl|tar)(?:\.gz)?$")
PIECE = re.compile(r"(.+)-sub\d+")
SPLIT = re.compile(r"(?<![a-z])(train|dev|val|valid|validation|test)(?![a-z])")
MANIFESTS = ("tarred_audio_manifest.json", "sharded_manifests/manifest_*.json", "*manifest*.json", "*.json", "*.jsonl")
TARS = "audio_*.tar"
TEXTS = ("text", "normalized_text", "text_normalized", "answer")
ROUNDING = 0.2  # seconds by which a `duration` may differ from a whole recording's, as NeMo has it


def read_nemo(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """A manifest, several as a range (`manifest__OP_0..63_CL_.json`), or a folder with one or more.

    Paths are relative to the manifest's folder, or to --audio-root. Of a tarred set --audio-root names the tars: a
    range (`audio__OP_0..63_CL_.tar`), or their folder; without it they are the audio_N.tar beside the manifest, or in the
    folder above. A line is found in the tar of its `shard_id`, or of its manifest's own number. `-sub1` and so on at the end of a
    name are pieces of one recording by `offset`. Text: `text`, or else `normalized_text`, `text_normalized`, `answer`.
    """
    paths = _manifests(options.source)
    tars = _Tars(_tar_paths(paths[0].parent, options.audio_root), problems)
    for path in paths:
        split = found[1] if (found := SPLIT.search(path.name)) else ""
        if not options.wants(split, problems, str(path)):
            continue
        locator = Locator(path.parent, options.audio_root)
        for place, line in lines_of(path, problems):
            try:
                fields = parse_object(line, place)
                entry = _entry(fields, place, options, problems)
                if entry is None:
                    continue
                entry = {"id": f"{path.stem}-{place.rpartition(':')[2]}", **entry} | ({"split": split} if split else {})
                if tars.paths:
                    shard = fields.get("shard_id", _shard(path))
                    yield tars.placed(entry, fields["audio_filepath"], shard, place)
                elif audio := locator.find(fields["audio_filepath"], problems, place):
                    entry["audio"] = audio
                    if ("duration" in entry and "offset" not in entry) or add_duration(entry, problems, place):
                        yield entry
            except _LeftOut as error:
                problems.report(error, "no recording")
            except UserError as error:
                problems.report(error)
    tars.report_rest()


def expand(pattern: str) -> list[str]:
    """`a__OP_0..2_CL_.tar` as a_0.tar to a_2.tar, `{x,y}` as both; leading zeros are kept (`{000..127}`)."""
    pattern = CLOSE.sub("}", OPEN.sub("{", pattern)) if "{" not in pattern else pattern
    parts = BRACES.split(pattern)
    choices = [_choices(part) if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(inside: str) -> list[str]:
    if (found := RANGE.fullmatch(inside)) is None:
        return inside.split(",")
    width = len(found[1]) if found[1].startswith("0") else 0
    return [str(number).zfill(width) for number in range(int(found[1]), int(found[2]) + 1)]


def _expanded(path: Path) -> list[Path]:
    return [path] if path.exists() else [Path(name) for name in expand(str(path))]


def _manifests(source: Path) -> list[Path]:
    paths = _expanded(source)
    if source.is_dir():
        paths = next((sorted(found) for pattern in MANIFESTS if (found := list(source.glob(pattern)))), [])
    if not paths:
        raise UserError(f"{source}: has no manifest (*.json); name it by --source")
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(f"{missing[0]}: no such file; correct --source")
    return sorted(paths, key=lambda path: (_shard(path) or 0, str(path)))


def _tar_paths(folder: Path, audio_root: Path | None) -> list[Path]:
    """The tars of a tarred set in the order of their numbers; none where it is none."""
    if audio_root is not None and not audio_root.is_dir():
        tars = _expanded(audio_root)
        if missing := [path for path in tars if not path.is_file()]:
            raise UserError(f"{missing[0]}: no such file; correct --audio-root")
    else:
        places = [audio_root] if audio_root else [folder, folder.parent]
        tars = next((found for place in places if (found := list(place.glob(TARS)))), [])
    return sorted(tars, key=lambda path: (_shard(path) or 0, str(path)))


def _shard(path: Path) -> int | None:
    found = SHARD.search(path.name)
    return int(found[1]) if found else None


class _LeftOut(UserError):
    """A line of a tarred set whose recording is not there."""


def _entry(fields: Entry, place: str, options: ReaderOptions, problems: Problems) -> Entry | None:
    """A line's fields but `audio`; None, skipped, where nothing is said. Raises UserError where one is missing or garbled."""
    name = fields.get("audio_filepath")
    text = punctuated(next((text for key in TEXTS if isinstance(text := fields.get(key), str) and text.strip()), ""))
    if not isinstance(name, str) or not name or bad_path(name):
        raise UserError(f"{place}: has no 'audio_filepath', or one that is no path; correct the line")
    if tag := no_speech(text):
        problems.skip(f"no speech: {tag}", place)
        return None
    if not text:
        problems.report(f"{place}: has no {' or '.join(TEXTS)}; complete or remove the line", "no text")
        return None
    entry: Entry = {"text": text}
    for key in ("offset", "duration"):
        if fields.get(key) is not None:
            entry[key] = seconds_of(fields[key])
            if entry[key] is None:
                raise UserError(f"{place}: field '{key}' is {fields[key]!r}, not seconds; correct the line")
    known = {"lang": options.lang or fields.get("lang") or fields.get("target_lang"), "speaker": fields.get("speaker")}
    return entry | {key: str(value) for key, value in known.items() if value not in (None, "")}


class _Tars:
    """The recordings of a tarred set; the headers of each tar are read once, when its first line comes."""

    def __init__(self, paths: list[Path], problems: Problems) -> None:
        self.paths = {_shard(path): path for path in paths}
        self._only = paths[0] if len(paths) == 1 else None
        self._problems = problems
        self._members: dict[Path, dict[str, TarMember]] = {}
        self._unused: dict[Path, set[str]] = {}
        self._seconds: tuple[TarMember | None, float] = None, 0.0

    def placed(self, entry: Entry, name: str, shard: int | None, place: str) -> Entry:
        """The entry with its `audio` and `member`. Raises UserError where no tar has it, or the piece is outside."""
        path = self.paths.get(shard, self._only)
        if path is None:
            raise _LeftOut(
                f"{place}: is of shard {shard}, of which there is no tar; fetch it, or name it by --audio-root"
            )
        member = self._member(path, name)
        if member is None:
            raise _LeftOut(f"{place}: {name} is not in {path}; fetch the tar again, or remove the line")
        entry |= {"audio": str(path), "member": member.place()}
        is_cut = PIECE.fullmatch(_stem(member.name)) is not None  # it was cut when the set was made
        if "duration" in entry and (is_cut or "offset" not in entry):
            entry.pop("offset", None)
            return entry
        if self._seconds[0] != member:
            self._seconds = member, clip_seconds({"audio": str(path), "member": member.place()}, place)
        return _piece(entry, self._seconds[1], place)

    def _member(self, path: Path, name: str) -> TarMember | None:
        if path not in self._members:
            self._members[path] = {_stem(member.name): member for member in tar_members(path, self._problems)}
            self._unused[path] = set(self._members[path])
        stem = _stem(name)
        if stem not in self._members[path] and (piece := PIECE.fullmatch(stem)):
            stem = piece[1]
        self._unused[path].discard(stem)
        return self._members[path].get(stem)

    def report_rest(self) -> None:
        """Count what lies in the tars that were read, and no line names: NeMo leaves it out too."""
        for path, stems in self._unused.items():
            for stem in sorted(stems):
                self._problems.skip("in a tar, but not in its manifest", f"{path}: {self._members[path][stem].name}")


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0] or name


def _piece(entry: Entry, whole: float, place: str) -> Entry:
    """`offset` and `duration` against the recording's length; without `offset` where it is all of it."""
    offset = entry.pop("offset", 0.0)
    entry.setdefault("duration", round(whole - offset, 6))
    if offset == 0 and abs(entry["duration"] - whole) < ROUNDING:
        entry["duration"] = round(whole, 6)
        return entry
    if offset + entry["duration"] > whole + ROUNDING or offset >= whole:
        message = f"{place}: the piece at {offset} s of {entry['duration']} s is outside its recording of {whole:.3f} s"
        raise UserError(f"{message}; correct the line")
    return entry | {"offset": offset, "duration": round(min(entry["duration"], whole - offset), 6)}
