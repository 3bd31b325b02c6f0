"""Manifests of lhotse: cuts, or recordings and supervisions, as JSONL; and Shar, whose recordings lie in tars.

Read without lhotse, a line in memory at a time (of recordings beside supervisions a small part each). A cut's extent is the
entry's; where it has several supervisions, each is an entry of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.readers import ReaderOptions
from data_prep.readers.common import TOLERANCE_SECONDS, lines_of, walk
from data_prep.readers.locating import Locator
from data_prep.readers.pipes import Pipes, recipe_folder
from data_prep.readers.tar_members import tar_members
from data_prep.readers.transcripts import no_speech, punctuated
from ttt_dist.manifest.entry import Entry, is_seconds, parse_object
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.text_files import stem_of, suffix_of
from ttt_dist.util.errors import UserError

KIND = re.compile(r"(?:.*[_-])?(cuts|recordings|supervisions)(?:[_-](.+))?")
SHARD = re.compile(r"cuts(\.\d+)?")
CUTS = ("MonoCut", "MultiCut")
HARMLESS = ("Resample",)  # transforms that leave what is said, and how long it takes, as it is
NO_DATA = (".nodata", ".nometa")  # members that stand for a recording that a cut of a Shar does not have
LANGS = {
    "arabic": "ar",
    "chinese": "zh",
    "dutch": "nl",
    "english": "en",
    "french": "fr",
    "german": "de",
    "italian": "it",
    "japanese": "ja",
    "korean": "ko",
    "mandarin": "zh",
    "polish": "pl",
    "portuguese": "pt",
    "russian": "ru",
    "spanish": "es",
}
"""Codes of languages that recipes write in full."""


def read_lhotse(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """A file of cuts or supervisions (.jsonl, .jsonl.gz), or a folder with such files or with Shar's shards.

    `*cuts_SPLIT.jsonl.gz`; or `*supervisions_SPLIT.jsonl.gz` with `*recordings_SPLIT.jsonl.gz` beside it, where there
    are no cuts; or `cuts.000000.jsonl.gz` with `recording.000000.tar`, the split being the folder's name. Relative
    paths start from the folder or one above it, or from --audio-root. Sources of type `command` need --allow-pipes.
    """
    if not options.source.exists():
        raise UserError(f"{options.source}: no such file or folder; correct --source")
    manifests = _manifests(options.source, problems)
    if not manifests:
        raise UserError(f"{options.source}: has no cuts and no supervisions in JSONL; correct --source")
    for path, kind in manifests:
        split = path.parent.name if SHARD.fullmatch(stem_of(path)) else _kind_and_split(path)[1]
        if options.wants(split, problems, str(path)):
            yield from _Manifest(path, split, options, problems).entries(kind)


def _kind_and_split(path: Path) -> tuple[str, str]:
    found = KIND.fullmatch(stem_of(path))
    return (found[1], found[2] or "") if found else ("", "")


def _manifests(source: Path, problems: Problems) -> list[tuple[Path, str]]:
    """The files to read and what is in them; those that only say again what others do are skipped."""
    if source.is_file():
        return [(source, _kind_and_split(source)[0] or ("cuts" if SHARD.fullmatch(stem_of(source)) else "any"))]
    found: dict[str, list[Path]] = {"cuts": [], "supervisions": [], "recordings": []}
    for path in walk(source, problems):
        if suffix_of(path) == ".jsonl":
            kind = "cuts" if SHARD.fullmatch(stem_of(path)) else _kind_and_split(path)[0]
            if kind:
                found[kind].append(path)
            else:
                problems.skip("no cuts, recordings or supervisions by its name", str(path))
    kind = "cuts" if found["cuts"] else "supervisions"
    if kind == "cuts":
        for path in found["recordings"] + found["supervisions"]:
            problems.skip("beside cuts", str(path))
    return [(path, kind) for path in found[kind]]


@dataclass
class _Manifest:
    """One file being read, and where its recordings are."""

    path: Path
    split: str
    options: ReaderOptions
    problems: Problems
    members: Mapping[str, dict[str, int]] | None = None
    """Of a Shar: the place of each cut's recording in the tar."""
    recordings: dict[str, Entry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._locator = Locator(self.path.parent, self.options.audio_root)
        self._pipes = Pipes(recipe_folder(self.path.parent, self.options.audio_root), self.options.pipes)

    def entries(self, kind: str) -> Iterator[Entry]:
        """The entries of all lines."""
        tar = self.path.with_name(self._shard_name())
        if tar.is_file():
            self.members = _shard_members(tar, self.problems)
        if kind == "supervisions":
            self._load_recordings()
        for place, line in lines_of(self.path, self.problems):
            try:
                yield from self._line(parse_object(line, place), place)
            except UserError as error:
                self.problems.report(error)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                message = f"{place}: lacks or garbles a field ({type(error).__name__}: {error}); write the line again"
                self.problems.report(message)

    def _shard_name(self) -> str:
        return re.sub(r"\.jsonl(\.\w+)?$", ".tar", self.path.name.replace("cuts", "recording", 1))

    def _load_recordings(self) -> None:
        beside = self.path.with_name(self.path.name.replace("supervisions", "recordings"))
        if not beside.is_file():
            raise UserError(f"{self.path}: has no {beside.name} beside it; fetch it, or make cuts of both")
        for place, line in lines_of(beside, self.problems):
            try:
                recording = parse_object(line, place)
                known = ("id", "sources", "duration", "transforms")
                self.recordings[recording["id"]] = {key: recording.get(key) for key in known}
            except (UserError, KeyError, TypeError) as error:
                self.problems.report(error if isinstance(error, UserError) else f"{place}: has no id; write it again")

    def _line(self, item: Entry, place: str) -> Iterator[Entry]:
        if "recording_id" in item and "supervisions" not in item:
            yield from self._supervision(item, place)
            return
        kind = item.get("type", CUTS[0])
        if kind not in CUTS:
            message = f"{place}: cut {item.get('id')} is a {kind}, which is made when it is loaded; save the cuts it is made of"
            self.problems.report(message, "mixed cut")
            return
        clip = self._clip(item.get("recording"), item.get("channel", 0), item["id"], place)
        if clip is not None:
            yield from self._cut(item, clip, place)

    def _supervision(self, item: Entry, place: str) -> Iterator[Entry]:
        recording = self.recordings.get(item["recording_id"])
        if recording is None:
            message = (
                f"{place}: recording {item['recording_id']} is in no list of recordings; add it, or remove the line"
            )
            self.problems.report(message, "no recording")
            return
        clip = self._clip(recording, item.get("channel", 0), item["id"], place)
        if clip is not None and (words := self._words(item, place)):
            extent = _extent(_seconds(item["start"]), _seconds(item["duration"]), recording)
            yield {"id": item["id"], **clip, **extent, **words}

    def _cut(self, cut: Entry, clip: Entry, place: str) -> Iterator[Entry]:
        start, seconds, supervisions = _seconds(cut["start"]), _seconds(cut["duration"]), cut.get("supervisions") or []
        if not supervisions:
            self.problems.report(f"{place}: cut {cut['id']} has no supervision, so no text; remove it", "no text")
        for supervision in supervisions:
            begin, end = float(supervision["start"]), float(supervision["start"]) + float(supervision["duration"])
            covers = begin <= TOLERANCE_SECONDS and end >= seconds - TOLERANCE_SECONDS
            if covers and len(supervisions) == 1:
                name, begin, end = cut["id"], 0.0, seconds
            elif begin < -TOLERANCE_SECONDS or end > seconds + TOLERANCE_SECONDS:
                self.problems.skip("supervision cut off by its cut", f"{place}: {supervision['id']}")
                continue
            else:
                name = cut["id"] if len(supervisions) == 1 else supervision["id"]
                begin, end = max(begin, 0.0), min(end, seconds)
            words = self._words(supervision, place)
            if words:
                extent = _extent(round(start + begin, 6), round(end - begin, 6), cut["recording"])
                yield {"id": name, **clip, **extent, **words}

    def _words(self, supervision: Entry, place: str) -> Entry | None:
        """What is said, by whom and in which language; None, reported or skipped, where nothing is."""
        custom = supervision.get("custom") or {}
        texts = custom.get("texts") or [""]  # LibriHeavy: as printed, and as LibriSpeech would write it
        text = punctuated(supervision.get("text") or texts[0])
        if tag := no_speech(text):
            self.problems.skip(f"no speech: {tag}", place)
            return None
        if not text:
            message = f"{place}: supervision {supervision.get('id')} has no text; complete or remove it"
            self.problems.report(message, "no text")
            return None
        lang = supervision.get("language") or ""
        lang = self.options.lang or LANGS.get(lang.lower(), lang)
        known = {"lang": lang, "speaker": supervision.get("speaker"), "gender": supervision.get("gender")}
        return {"text": text, **{name: value for name, value in known.items() if value}, "split": self.split}

    def _clip(self, recording: Entry | None, channel: int | list[int], name: str, place: str) -> Entry | None:
        """The recording of a cut; None, reported or skipped, where it has none that can be read."""
        if recording is None:
            return self._refuse(
                f"{place}: {name} has no recording, only features; name cuts with recordings", "no recording"
            )
        if any(transform.get("name") not in HARMLESS for transform in recording.get("transforms") or []):
            self.problems.skip("changed when it is loaded (speed, volume, ...)", f"{place}: {name}")
            return None
        wanted = channel if isinstance(channel, list) else [channel]
        sources = [source for source in recording["sources"] if set(source["channels"]) & set(wanted)]
        if len(sources) != 1 or (len(wanted) > 1 and not set(sources[0]["channels"]) <= set(wanted)):
            what = f"{place}: {name} is of channels {channel}, some of several; name one of them, or all of one file"
            return self._refuse(what, "some channels of several")
        clip, channels = self._source(sources[0]["type"], sources[0]["source"], name, place), sources[0]["channels"]
        if clip is None or set(channels) <= set(wanted):
            return clip
        return {**clip, "channel": channels.index(wanted[0])}

    def _source(self, kind: str, source: str, name: str, place: str) -> Entry | None:
        if kind == "shar":
            member = (self.members or {}).get(name)
            if member is None:
                what = f"{place}: {name} is not in {self._shard_name()}; fetch that tar, or name the Shar's folder"
                return self._refuse(what, "no recording")
            return {"audio": str(self.path.with_name(self._shard_name())), "member": member}
        if kind not in ("file", "command"):
            return self._refuse(
                f"{place}: {name} is a source of type '{kind}'; save its audio to files", "no recording"
            )
        if kind == "command":
            path = self._pipes.output(source.strip().removesuffix("|").strip(), self.problems, place)
        else:
            path = self._locator.find(source, self.problems, place)
        return {"audio": path} if path else None

    def _refuse(self, message: str, reason: str) -> Entry | None:
        self.problems.report(message, reason)
        return None


def _extent(start: float, seconds: float, recording: Entry) -> Entry:
    """`offset` and `duration`; of a whole recording the latter alone."""
    if start <= TOLERANCE_SECONDS and seconds >= _seconds(recording["duration"]) - TOLERANCE_SECONDS:
        return {"duration": seconds}
    return {"offset": start, "duration": seconds}


def _seconds(value: Any) -> float:
    if not is_seconds(value):
        raise ValueError(f"{value!r} are no seconds")
    return float(value)


def _shard_members(tar: Path, problems: Problems) -> dict[str, dict[str, int]]:
    """The recordings of one shard by the cut's id; beside each lies its JSON."""
    members: dict[str, dict[str, int]] = {}
    for member in tar_members(tar, problems):
        key, _, suffix = member.name.rpartition(".")
        if suffix != "json" and f".{suffix}" not in NO_DATA:
            members[key] = member.place()
    return members
