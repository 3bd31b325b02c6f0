"""FLEURS, VoxPopuli, YODAS and The People's Speech: transcripts in tables, recordings in folders or numbered archives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.readers import ReaderOptions
from data_prep.readers.common import is_complete, is_there, lines_of, require_folder, walk
from data_prep.readers.kaldi import Column, key_and_value
from data_prep.readers.stems import Stems
from ttt_dist.manifest.delimited import read_rows
from ttt_dist.manifest.entry import Entry, parse_object, seconds_of
from ttt_dist.manifest.problems import Problems
from ttt_dist.manifest.records import read_records
from ttt_dist.util.errors import UserError

SPLITS = ("train", "dev", "test")
FLEURS_RATE = 16000  # of all recordings; the tables count samples
FLEURS_LANGS = {"cmn": "zh"}
VOXPOPULI = {"speaker": "speaker_id", "gender": "gender", "accents": "accent"}
YODAS_FOLDER = re.compile(r"([a-z]{2,3})(\d)\d\d")  # en000 has captions that people wrote, en100 those of a recogniser
YODAS_PIECE = re.compile(r"(.+)-\d{5}-(\d{8})-(\d{8})")  # VIDEO-NUMBER-BEGIN-END, in hundredths of a second
CAPTIONS = {"0": "manual", "1": "automatic"}


def read_fleurs(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """LANG/{train,dev,test}.tsv without a header, recordings in LANG/audio/SPLIT/, LANG/SPLIT/, or LANG/audio/SPLIT.tar.

    Columns: id, file, text as printed (which is read), text normalised, its characters, samples, gender. `--source` is a
    language's folder or one with several; lhotse's form, with the tables in metadata/LANG/, is read too.
    """
    folder = require_folder(options.source)
    tables = sorted(
        path for depth in ("", "*/", "*/*/") for split in SPLITS for path in folder.glob(f"{depth}{split}.tsv")
    )
    if not tables:
        raise UserError(f"{folder}: has no train.tsv, here or two folders down; correct --source")
    for table in tables:
        split, lang = table.stem, table.resolve().parent.name
        if not options.wants(split, problems, str(table)):
            continue
        below = table.parent.parent.parent / lang if table.parent.parent.name == "metadata" else table.parent
        stems = Stems((below / "audio" if (below / "audio").is_dir() else below) / split, problems)
        for place, line in lines_of(table, problems):
            entry = _fleurs_entry(line.split("\t"), lang, split, place, problems)
            clip = stems.take(entry.pop("stem"), problems, place) if entry else None
            if entry and clip and is_complete(entry := {**entry, **clip}, options, problems, place):
                yield entry
        stems.skip_rest(problems)


def _fleurs_entry(row: list[str], lang: str, split: str, place: str, problems: Problems) -> Entry | None:
    if len(row) != 7 or not row[5].isdecimal():
        problems.report(f"{place}: has not the seven columns of FLEURS; correct the line")
        return None
    number, file, text, _, _, samples, gender = row
    stem = file.rpartition(".")[0]
    entry: Entry = {"id": f"{lang}-{stem}", "stem": stem, "text": text.strip(), "sentence": number, "split": split}
    entry |= {"lang": FLEURS_LANGS.get(lang.split("_")[0], lang.split("_")[0]), "gender": gender.strip().lower()}
    return entry | {"duration": round(int(samples) / FLEURS_RATE, 6)}


def read_voxpopuli(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """LANG/asr_{train,dev,test}.tsv (`id`, `raw_text`, `normalized_text`, `speaker_id`, ...) and LANG/YEAR/ID.ogg, as its scripts
    write them (transcribed_data/LANG), or LANG/SPLIT/ with folders or tars, as on the Hub. Normalised text stands in where raw is empty.
    """
    folder = require_folder(options.source)
    depths = ("", "*/", "*/*/")
    tables = sorted(path for depth in depths for split in SPLITS for path in folder.glob(f"{depth}asr_{split}.tsv"))
    if not tables:
        raise UserError(f"{folder}: has no asr_train.tsv, here or two folders down; correct --source")
    for table in tables:
        split, lang = table.stem.removeprefix("asr_"), table.resolve().parent.name
        if not options.wants(split, problems, str(table)):
            continue
        stems = Stems(table.parent / split, problems) if (table.parent / split).is_dir() else None
        for place, row in read_rows(table, problems, "\t"):
            name, text = row.get("id", ""), row.get("raw_text", "").strip() or row.get("normalized_text", "").strip()
            by_year: Entry = {"audio": str(table.parent / name[:4] / f"{name}.ogg")}
            clip = stems.take(name, problems, place) if stems else by_year
            entry: Entry = {"id": name, **(clip or {}), "text": text, "lang": lang.partition("_")[0], "split": split}
            entry |= {
                field: row[column] for field, column in VOXPOPULI.items() if row.get(column) not in (None, "", "None")
            }
            if clip and is_complete(entry, options, problems, place):
                yield entry
        if stems:
            stems.skip_rest(problems)


def read_yodas(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """data/LANG000/text/SHARD.txt (`ID TEXT`), duration/SHARD.txt, and audio/SHARD/ID.wav or audio/SHARD.tar (YODAS).

    Of YODAS2 text/SHARD.json: a list of `audio_id` and `text`, texts by VIDEO-NUMBER-BEGIN-END, which are pieces of the video's
    recording. LANG000 has captions that people wrote, LANG100 automatic ones (`captions`).
    """
    folder = require_folder(options.source)
    for path in walk(folder, problems):
        found = YODAS_FOLDER.fullmatch(path.parent.parent.resolve().name)
        if path.parent.name != "text" or path.suffix not in (".txt", ".json") or not found:
            continue
        shared = {"lang": found[1], "captions": CAPTIONS.get(found[2], found[2])}
        stems = Stems(path.parent.with_name("audio") / path.stem, problems)
        entries = _yodas_pieces if path.suffix == ".json" else _yodas_utterances
        for place, entry in entries(path, stems, problems):
            if is_complete(entry := {**entry, **shared}, options, problems, place):
                yield entry
        stems.skip_rest(problems)


def _yodas_utterances(path: Path, stems: Stems, problems: Problems) -> Iterator[tuple[str, Entry]]:
    lengths = Column(path.parent.with_name("duration") / path.name, problems)
    for place, line in lines_of(path, problems):
        name, text = key_and_value(line)
        length = lengths.take(name)
        seconds = seconds_of(length[1]) if length else None
        clip = stems.take(name, problems, place)
        if clip:
            yield place, {"id": name, **clip, "text": text} | ({"duration": seconds} if seconds else {})


def _yodas_pieces(path: Path, stems: Stems, problems: Problems) -> Iterator[tuple[str, Entry]]:
    for place, record in read_records(path, problems):
        texts = record.get("text") if isinstance(record, dict) else None
        if not isinstance(texts, dict) or not isinstance(record.get("audio_id"), str):
            problems.report(f"{place}: has no 'audio_id' with 'text' by utterance; fetch the file again")
            continue
        clip = stems.take(record["audio_id"], problems, f"{place}: {record['audio_id']}")
        for name, text in texts.items() if clip else ():
            found = YODAS_PIECE.fullmatch(name)
            if found is None or not isinstance(text, str):
                problems.report(f"{place}: {name} is not VIDEO-NUMBER-BEGIN-END with a text; fetch the file again")
                continue
            begin, end = int(found[2]) / 100, int(found[3]) / 100
            piece = {"offset": begin, "duration": round(end - begin, 6), "chapter": record["audio_id"]}
            yield f"{place}: {name}", {"id": name, **(clip or {}), **piece, "text": text.strip()}


def read_peoplesspeech(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """PART/NAME.json (JSON lines: `identifier`, `training_data` of `duration_ms`, `label`, `name`) and PART/NAME/ with the FLACs.

    PART is train, validation or test, and NAME clean, dirty, clean_sa, ... (`--subset`). Tars in place of folders are read too.
    """
    folder = require_folder(options.source)
    tables = sorted(path for depth in ("", "*/") for path in folder.glob(f"{depth}*.json"))
    if not tables:
        raise UserError(f"{folder}: has no train/clean.json or its like; correct --source")
    for table in tables:
        split, subset = table.resolve().parent.name, table.stem
        if options.subset not in (None, subset):
            problems.skip(f"not in subset {options.subset}", str(table))
        elif options.wants(split, problems, str(table)):
            yield from _peoples_table(table, {"split": split, "subset": subset, "lang": "en"}, options, problems)


def _peoples_table(table: Path, shared: Entry, options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    folder = table.with_suffix("")
    stems = None if next(folder.rglob("*.flac"), None) else Stems(folder, problems)
    for place, line in lines_of(table, problems):
        try:
            fields: dict[str, Any] = parse_object(line, place)
            data = fields["training_data"]
            rows = list(zip(data["duration_ms"], data["label"], data["name"], strict=True))
        except (UserError, KeyError, TypeError, ValueError) as error:
            problems.report(
                error if isinstance(error, UserError) else f"{place}: lacks or garbles {error}; correct the line"
            )
            continue
        for milliseconds, text, name in rows:
            seconds = seconds_of(milliseconds)
            if seconds is None or not isinstance(text, str) or not isinstance(name, str):
                problems.report(f"{place}: {name}: is no duration_ms, label and name; correct the line")
                continue
            stem = name.rpartition(".")[0]
            clip = _peoples_clip(folder, name, stems, problems, f"{place}: {name}")
            entry = {"id": stem, **(clip or {}), "text": text.strip(), "duration": seconds / 1000, **shared}
            entry["chapter"] = str(fields.get("identifier", ""))
            if clip and is_complete(entry, options, problems, f"{place}: {name}"):
                yield entry
    if stems:
        stems.skip_rest(problems)


def _peoples_clip(folder: Path, name: str, stems: Stems | None, problems: Problems, place: str) -> Entry | None:
    """Millions of files are not worth listing: where they are unpacked, each is looked for by its path."""
    if stems:
        return stems.take(name.rpartition("/")[2].rpartition(".")[0], problems, place)
    return {"audio": str(folder / name)} if is_there(folder / name, problems, place) else None
