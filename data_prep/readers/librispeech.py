"""LibriSpeech and Multilingual LibriSpeech: read audiobooks, a file per utterance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep.readers import ReaderOptions
from data_prep.readers.common import add_duration, is_there, lines_of, require_folder, walk
from ttt_dist.manifest.entry import Entry, seconds_of
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.errors import UserError

MLS_SPLITS = ("train", "dev", "test")
MLS_LANGS = {
    "mls_dutch": "nl",
    "mls_english": "en",
    "mls_french": "fr",
    "mls_german": "de",
    "mls_italian": "it",
    "mls_polish": "pl",
    "mls_portuguese": "pt",
    "mls_spanish": "es",
}


def read_librispeech(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """A LibriSpeech tree: SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt (`ID TEXT` per line) and ID.flac beside it."""
    for transcript in walk(require_folder(options.source), problems):
        split = transcript.parent.parent.parent.name
        if not transcript.name.endswith(".trans.txt") or not options.wants(split, problems, str(transcript)):
            continue
        named: set[str] = set()
        for place, line in lines_of(transcript, problems):
            name, _, text = line.partition(" ")
            named.add(name)
            entry = _librispeech_entry(transcript, name, text.strip(), options)
            if not entry["text"]:
                problems.report(f"{place}: utterance {name} has no text; complete or remove the line", "no text")
            elif add_duration(entry, problems, place):
                yield entry
        for audio in sorted(transcript.parent.glob("*.flac")):
            if audio.stem not in named:
                message = f"{audio}: has no line in {transcript.name}; add one or remove the file"
                problems.report(message, "no transcript")


def _librispeech_entry(transcript: Path, name: str, text: str, options: ReaderOptions) -> Entry:
    chapter = transcript.parent
    speaker_folder = chapter.parent
    return {
        "id": name,
        "audio": str(chapter / f"{name}.flac"),
        "text": text,
        "lang": options.lang or "en",
        "speaker": speaker_folder.name,
        "chapter": chapter.name,
        "split": speaker_folder.parent.name,
    }


def read_mls(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """One language of MLS: SPLIT/transcripts.txt (`ID<TAB>TEXT`) and SPLIT/audio/SPEAKER/BOOK/ID.flac (or .opus).

    ID is SPEAKER_BOOK_NUMBER. Lengths are those of SPLIT/segments.txt (`ID<TAB>URL<TAB>BEGIN<TAB>END`) where it is
    there, else of the files. The language follows from the folder's name (`mls_german`, `mls_german_opus`).
    """
    folder = require_folder(options.source)
    lang = options.lang or MLS_LANGS.get(folder.resolve().name.removesuffix("_opus"))
    splits = [split for split in MLS_SPLITS if (folder / split / "transcripts.txt").is_file()]
    if not splits:
        raise UserError(f"{folder}: has no {{train,dev,test}}/transcripts.txt; name the folder of one language")
    for split in splits:
        if options.wants(split, problems, str(folder / split)):
            yield from _mls_split(folder / split, lang, problems)


def _mls_split(folder: Path, lang: str | None, problems: Problems) -> Iterator[Entry]:
    seconds = _mls_seconds(folder / "segments.txt", problems)
    suffix = _mls_suffix(folder / "audio")
    for place, line in lines_of(folder / "transcripts.txt", problems):
        name, _, text = line.partition("\t")
        parts = name.split("_")
        if len(parts) != 3 or not text.strip():
            problems.report(f"{place}: is not SPEAKER_BOOK_NUMBER<TAB>TEXT; correct the line")
            continue
        speaker, book, _ = parts
        audio = folder / "audio" / speaker / book / f"{name}{suffix}"
        entry: Entry = {"id": name, "audio": str(audio), "text": text.strip(), "speaker": speaker, "chapter": book}
        entry |= {"split": folder.name} | ({"lang": lang} if lang else {})
        if name in seconds:
            entry["duration"] = seconds[name]
            if is_there(audio, problems, place):
                yield entry
        elif add_duration(entry, problems, place):
            yield entry


def _mls_suffix(folder: Path) -> str:
    """Of the split's audio files: the corpus is published as FLAC and as Opus."""
    first = next(folder.glob("*/*/*.*"), None)
    return ".flac" if first is None else first.suffix


def _mls_seconds(path: Path, problems: Problems) -> dict[str, float]:
    """Seconds by id; 100 bytes each, 1 GB for the ten million of English."""
    if not path.is_file():
        return {}
    seconds: dict[str, float] = {}
    for place, line in lines_of(path, problems):
        name, *_, begin, end = fields if len(fields := line.split("\t")) == 4 else ("", "", "")
        start, stop = seconds_of(begin), seconds_of(end)
        if start is not None and stop is not None and start < stop:
            seconds[name] = round(stop - start, 6)
        else:
            problems.report(f"{place}: is not ID<TAB>URL<TAB>BEGIN<TAB>END; correct the line")
    return seconds
