"""Corpora for speech synthesis: LibriTTS, LJSpeech, VCTK, HiFi-TTS, WenetSpeech4TTS; a file per utterance."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.readers import ReaderOptions
from data_prep.readers.common import is_complete, is_there, lines_of, require_file, require_folder, walk
from data_prep.readers.transcripts import text_beside
from ttt_dist.manifest.entry import Entry, bad_path, is_seconds, parse_object
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.errors import UserError

HIFI_MANIFEST = re.compile(r"(\d+)_manifest_(clean|other)_(train|dev|test)\.json")
VCTK_AUDIO = ("wav48_silence_trimmed", "wav48")  # of release 0.92, and of those before
GENDERS = {"F": "female", "M": "male"}
GRADES = ("Premium", "Standard", "Basic")  # of WenetSpeech4TTS; a subset is a grade and those before it


def read_libritts(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """LibriTTS and LibriTTS-R: SPLIT/SPEAKER/CHAPTER/ID.wav, ID.normalized.txt beside it; genders by SPEAKERS.txt.

    `--source` is the corpus or any folder in it.
    """
    folder = require_folder(options.source)
    genders = _libritts_genders(folder, problems)
    for path in walk(folder, problems):
        chapter, speaker, split = path.parent.name, path.parent.parent.name, path.parent.parent.parent.name
        if path.name.endswith(".normalized.txt"):
            audio = path.with_name(path.name.replace(".normalized.txt", ".wav"))
            if not audio.is_file() and options.wants(split, problems, str(path)):
                problems.report(f"{path}: has no {audio.name} beside it; fetch it, or remove the file", "no recording")
        elif path.suffix == ".wav" and options.wants(split, problems, str(path)):
            text = text_beside(path.with_suffix(".normalized.txt"), problems)
            entry: Entry = {"id": path.stem, "audio": str(path), "text": text, "lang": "en", "speaker": speaker}
            entry |= {"chapter": chapter, "split": split} | ({"gender": genders[speaker]} if speaker in genders else {})
            if text is not None and is_complete(entry, options, problems, str(path)):
                yield entry


def _libritts_genders(folder: Path, problems: Problems) -> dict[str, str]:
    """Of SPEAKERS.txt (`ID | SEX | SUBSET | ...`, comments behind `;`), here or up to three folders above."""
    above = [folder.absolute(), *folder.absolute().parents][:4]
    path = next((found for place in above if (found := place / "SPEAKERS.txt").is_file()), None)
    rows = [line.split("|") for _, line in lines_of(path, problems)] if path else []
    named = {row[0].strip(): GENDERS.get(row[1].strip(), "") for row in rows if len(row) > 2}
    return {speaker: gender for speaker, gender in named.items() if gender}


def read_ljspeech(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """metadata.csv (`ID|text|normalised text`, no header, `"` is a letter) and wavs/ID.wav; other corpora in this form too.

    Without a third column the second is the text. An ID may be a path below the folder (`wavs/a.wav`).
    """
    path = require_file(options.source / "metadata.csv" if options.source.is_dir() else options.source)
    for place, line in lines_of(path, problems):
        name, *texts = (part.strip() for part in line.split("|"))
        if not name or not texts or bad_path(name):
            problems.report(f"{place}: is not ID|TEXT|NORMALISED TEXT; correct the line")
            continue
        text = next((text for text in (*texts[1:2], texts[0]) if text), "")
        audio = path.parent / name if "/" in name else path.parent / "wavs" / name
        audio = audio if audio.suffix == ".wav" else audio.with_name(f"{audio.name}.wav")
        entry = {
            "id": audio.stem,
            "audio": str(audio),
            "text": text,
            "lang": "en",
            "speaker": path.parent.resolve().name,
        }
        if is_complete(entry, options, problems, place):
            yield entry


def read_vctk(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """txt/SPEAKER/ID.txt with wav48_silence_trimmed/SPEAKER/ID_mic1.flac (0.92) or wav48/SPEAKER/ID.wav, speaker-info.txt.

    Of two microphones the first is read, the second where it is alone. Recordings without text (speaker p315) are skipped.
    """
    folder = require_folder(options.source)
    root = next((found for name in VCTK_AUDIO if (found := folder / name).is_dir()), None)
    if root is None:
        raise UserError(f"{folder}: has neither {' nor '.join(VCTK_AUDIO)}; correct --source")
    speakers = _vctk_speakers(folder / "speaker-info.txt", problems)
    for path in walk(root, problems):
        name, _, microphone = path.stem.partition("_mic")
        if path.suffix not in (".flac", ".wav"):
            continue
        if microphone == "2" and path.with_name(f"{name}_mic1{path.suffix}").is_file():
            problems.skip("second microphone", str(path))
            continue
        speaker = path.parent.name
        transcript = folder / "txt" / speaker / f"{name}.txt"
        if not transcript.is_file():
            problems.skip("no transcript", str(path))
            continue
        text = text_beside(transcript, problems)
        entry = {
            "id": name,
            "audio": str(path),
            "text": text,
            "lang": "en",
            "speaker": speaker,
            **speakers.get(speaker, {}),
        }
        if text is not None and is_complete(entry, options, problems, str(path)):
            yield entry


def _vctk_speakers(path: Path, problems: Problems) -> dict[str, Entry]:
    """Of `ID AGE GENDER ACCENT ...` below a header; 0.92 writes p225, releases before it 225."""
    speakers: dict[str, Entry] = {}
    for _, line in list(lines_of(path, problems))[1:] if path.is_file() else ():
        parts = line.split()
        if len(parts) >= 4:
            name = parts[0] if parts[0][0].isalpha() else f"p{parts[0]}"
            speakers[name] = {"age": parts[1], "gender": GENDERS.get(parts[2], parts[2]), "accents": parts[3]}
    return speakers


def read_hifitts(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """SPEAKER_manifest_{clean,other}_{train,dev,test}.json (JSON lines) with `audio_filepath`, `duration`, `text_normalized`."""
    folder = require_folder(options.source)
    manifests = [(path, found) for path in sorted(folder.iterdir()) if (found := HIFI_MANIFEST.fullmatch(path.name))]
    if not manifests:
        raise UserError(f"{folder}: has no SPEAKER_manifest_clean_train.json; correct --source")
    for path, (speaker, _, split) in ((path, found.groups()) for path, found in manifests):
        if not options.wants(split, problems, str(path)):
            continue
        for place, line in lines_of(path, problems):
            try:
                fields = parse_object(line, place)
                name, seconds = str(fields["audio_filepath"]), fields.get("duration")
            except (UserError, KeyError) as error:
                problems.report(error if isinstance(error, UserError) else f"{place}: lacks {error}; correct the line")
                continue
            text = str(fields.get("text_normalized") or fields.get("text") or "").strip()
            entry: Entry = {
                "id": name.removeprefix("audio/").rpartition(".")[0],
                "audio": str(folder / name),
                "text": text,
            }
            entry |= {
                "lang": options.lang or "en",
                "speaker": speaker,
                "chapter": Path(name).parent.name,
                "split": split,
            }
            if is_seconds(seconds) and seconds and text:
                entry["duration"] = seconds
                if is_there(folder / name, problems, place):
                    yield entry
            elif is_complete(entry, options, problems, place):
                yield entry


def read_wenetspeech4tts(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """GRADE/WenetSpeech4TTS_GRADE_N/wavs/ID.wav and txts/ID.txt (`ID<TAB>TEXT`, times in the second line).

    The grades are Premium, Standard and Basic; `--subset Standard` is Premium and Standard, as the corpus has it.
    """
    folder = require_folder(options.source)
    if options.subset and options.subset not in GRADES:
        raise UserError(f"--subset {options.subset}: WenetSpeech4TTS has {', '.join(GRADES)}")
    wanted = GRADES[: GRADES.index(options.subset) + 1] if options.subset else GRADES
    for path in walk(folder, problems):
        if path.suffix != ".wav":
            continue
        found = re.search(rf"WenetSpeech4TTS_({'|'.join(GRADES)})", path.parent.parent.name)
        grade = found[1] if found else path.parent.parent.parent.name
        if grade in GRADES and grade not in wanted:
            problems.skip(f"not in subset {options.subset}", str(path))
            continue
        text = text_beside(path.parent.parent / "txts" / f"{path.stem}.txt", problems)
        first = text.splitlines()[0] if text else ""
        entry: Entry = {"id": path.stem, "audio": str(path), "text": first.partition("\t")[2].strip(), "lang": "zh"}
        entry["grade"] = grade
        if text is not None and is_complete(entry, options, problems, str(path)):
            yield entry
