"""AISHELL-1, -2 and -3: Mandarin read aloud, a file per utterance. Spaces beside Han characters are dropped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_prep.readers import ReaderOptions
from data_prep.readers.common import add_duration, lines_of, require_file, require_folder, walk
from data_prep.readers.transcripts import unsegmented
from ttt_dist.manifest.entry import Entry
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.errors import UserError


def read_aishell1(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """wav/{train,dev,test}/SPEAKER/ID.wav and transcript/aishell_transcript_v0.8.txt (`ID WORD WORD ...`).

    The spaces between Chinese words are a segmentation, not spelling: they are dropped. Recordings without a line are
    skipped: the published corpus has some hundred.
    """
    folder = require_folder(options.source)
    transcript = require_file(folder / "transcript" / "aishell_transcript_v0.8.txt")
    texts = _keyed_lines(transcript, problems)
    for audio in walk(require_folder(folder / "wav"), problems):
        if audio.suffix != ".wav" or not options.wants(audio.parent.parent.name, problems, str(audio)):
            continue
        if audio.stem not in texts:
            problems.skip("no transcript", str(audio))
            continue
        place, text = texts.pop(audio.stem)
        entry = _entry(audio.stem, audio, text, audio.parent.name, audio.parent.parent.name, options)
        if add_duration(entry, problems, place):
            yield entry
    if not options.split:
        for name, (place, _) in texts.items():
            problems.report(f"{place}: recording {name}.wav is not below {folder / 'wav'}; fetch it", "no recording")


def read_aishell2(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """Folders with wav.scp (`ID<TAB>wav/SPEAKER/ID.wav`) and trans.txt (`ID<TAB>TEXT`), at any depth.

    Such are iOS/data of the corpus, and iOS/dev, Android/test, ... of its evaluation set; the split is the folder's
    name, `data` being `train`. Ids begin with the folder above where it is one of several.
    """
    folder = require_folder(options.source)
    lists = [path for path in _lists_of(folder) if path.with_name("trans.txt").is_file()]
    if not lists:
        raise UserError(
            f"{folder}: has no wav.scp with trans.txt beside it, here or up to three folders down; correct --source"
        )
    for scp in lists:
        split = "train" if scp.parent.name == "data" else scp.parent.name
        if not options.wants(split, problems, str(scp)):
            continue
        prefix = f"{scp.parent.parent.name}-" if len(lists) > 1 else ""
        texts = _keyed_lines(scp.with_name("trans.txt"), problems)
        for place, line in lines_of(scp, problems):
            name, _, audio = line.partition("\t")
            if name not in texts:
                problems.report(
                    f"{place}: utterance {name} has no line in trans.txt; add or remove it", "no transcript"
                )
                continue
            path = scp.parent / audio
            entry = _entry(prefix + name, path, texts.pop(name)[1], path.parent.name, split, options)
            if add_duration(entry, problems, place):
                yield entry
        for name, (place, _) in texts.items():
            problems.report(f"{place}: utterance {name} has no line in wav.scp; add or remove it", "no recording")


def _lists_of(folder: Path) -> list[Path]:
    """wav.scp here or up to three folders down: the corpus has a million files, which are not worth listing."""
    return sorted(path for depth in ("", "*/", "*/*/", "*/*/*/") for path in folder.glob(f"{depth}wav.scp"))


def read_aishell3(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """{train,test}/content.txt (`FILE.wav<TAB>字 pinyin 字 pinyin ...`) and {train,test}/wav/SPEAKER/FILE.wav.

    The text is every other token; SPEAKER is the file's name without its last four digits.
    """
    folder = require_folder(options.source)
    for split in ("train", "test"):
        content = folder / split / "content.txt"
        if not content.is_file() or not options.wants(split, problems, str(content)):
            continue
        for place, line in lines_of(content, problems):
            name, _, tokens = line.partition("\t")
            stem = name.strip().removesuffix(".wav")
            speaker, text = stem[:-4], unsegmented(" ".join(tokens.split()[::2]))
            if not text:
                problems.report(f"{place}: utterance {stem} has no text; complete or remove the line", "no text")
                continue
            audio = folder / split / "wav" / speaker / f"{stem}.wav"
            entry = _entry(stem, audio, text, speaker, split, options)
            if add_duration(entry, problems, place):
                yield entry


def _keyed_lines(path: Path, problems: Problems) -> dict[str, tuple[str, str]]:
    """(`file:line`, text without its segmentation) by key, of lines `KEY TEXT`; lines without a text are reported."""
    texts: dict[str, tuple[str, str]] = {}
    for place, line in lines_of(path, problems):
        name, *words = line.split(maxsplit=1)
        if words:
            texts[name] = place, unsegmented(words[0])
        else:
            problems.report(f"{place}: utterance {name} has no text; complete or remove the line", "no text")
    return texts


def _entry(name: str, audio: Path, text: str, speaker: str, split: str, options: ReaderOptions) -> Entry:
    lang = options.lang or "zh"
    return {"id": name, "audio": str(audio), "text": text, "lang": lang, "speaker": speaker, "split": split}
