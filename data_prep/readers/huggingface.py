"""Local data sets of Hugging Face: what `save_to_disk` wrote, folders of Parquet, folders of files with metadata.

The files are read as they are, without `datasets`, which decodes audio by a library that this project does not need.
Nothing is copied: entries refer to rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.readers import ReaderOptions
from data_prep.readers.arrow_rows import read_arrow_rows
from data_prep.readers.common import require_folder, walk
from data_prep.readers.dataset_card import declared_splits
from data_prep.readers.tables import read_text_rows
from ttt_dist.manifest.entry import Entry, bad_path
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.errors import UserError
from ttt_dist.util.json_files import read_object

NUMBERED = re.compile(r"-\d{5}-of-\d{5}.*$")  # train-00000-of-00002, with or without a hash behind
PIECE = re.compile(r"(.*?)[-_.]?\d+")  # 0000, part-3, train_12
SPLITS = {"train", "training", "validation", "valid", "dev", "val", "test", "testing", "eval", "evaluation"}
NO_SPLITS = {"", "data", "part", "shard", "chunk", "file", "output", "dataset", "metadata", "default"}
METADATA = ("metadata.csv", "metadata.jsonl")


def read_hf(options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """A data set's folder. The column of audio is found by the schema; `--columns` names others (`text=sentence`).

    `save_to_disk`: its Arrow files, the split being the folder's name in a `DatasetDict`. Otherwise all .parquet and
    .arrow files below, and each metadata.csv or metadata.jsonl with `file_name`; their split is what the data set's card
    says, or else what `split_of` finds.
    """
    folder = require_folder(options.source)
    saved = _saved(folder)
    if saved is not None:
        for path, split in saved:
            yield from _table(path, split, options, problems)
        return
    declared = declared_splits(folder)
    for path in walk(folder, problems):
        if path.suffix in (".parquet", ".arrow") and not path.name.startswith("cache-"):
            yield from _table(path, declared.get(path) or split_of(path, folder), options, problems)
        elif path.name in METADATA:
            yield from _metadata(path, declared, options, problems)


def split_of(path: Path, folder: Path) -> str | None:
    """The split of a file below a data set's folder: by its name (`train-00000-of-00002`, `test`), or else by its folder's
    (`CONFIG/train/0000.parquet`, `partial-train`); None where neither says one.

    A name with one of SPLITS in it goes before any other name.
    """
    stem = NUMBERED.sub("", path.stem)
    if stem == path.stem and (piece := PIECE.fullmatch(stem)) and piece[1].lower() in SPLITS | NO_SPLITS:
        stem = piece[1]
    above = [name.removeprefix("partial-") for name in reversed(path.parent.relative_to(folder).parts)]
    names = [name for name in (stem, *above) if name.lower() not in NO_SPLITS]
    if folder.name.lower() in SPLITS:
        names.append(folder.name)
    return next((name for name in names if SPLITS & set(re.split(r"[\W_]", name.lower()))), next(iter(names), None))


def _table(path: Path, split: str | None, options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    if options.wants(split or "", problems, str(path)):
        prefix = _name(path.with_suffix(""), options)
        yield from read_arrow_rows(path, prefix, options, problems, {"split": split} if split else {})


def _metadata(path: Path, declared: Mapping[Path, str], options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    """The rows of a metadata file: one above the folders of several splits has recordings of each."""
    folder = options.source
    named = replace(options, columns={"audio": "file_name", **options.columns})
    of_file = declared.get(path) or split_of(path, folder)

    def fields(recording: Path) -> dict[str, Any]:
        split = declared.get(recording) or _split_below(recording, path.parent) or of_file
        return {"split": split} if split else {}

    yield from read_text_rows(path, _name(path.with_suffix(""), options), named, problems, fields)


def _split_below(recording: Path, folder: Path) -> str | None:
    """The split that the folders between a metadata file and its recording name, if they name one of SPLITS."""
    if not recording.is_relative_to(folder):
        return None
    split = split_of(recording.with_name("data"), folder) if recording.parent != folder else None
    return split if split and SPLITS & set(re.split(r"[\W_]", split.lower())) else None


def _name(path: Path, options: ReaderOptions) -> str:
    return path.relative_to(options.source).as_posix().replace("/", "-")


def _saved(folder: Path) -> list[tuple[Path, str | None]] | None:
    """The Arrow files that `save_to_disk` wrote, in order, with their split; None where the folder is no such one."""
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits")
        if not isinstance(splits, list):
            raise UserError(f"{folder / 'dataset_dict.json'}: names no 'splits'; save the data set again")
        return [(path, str(split)) for split in splits for path in _files(folder / str(split))]
    if (folder / "state.json").is_file():
        split = _json(folder / "state.json").get("_split")
        return [(path, split if isinstance(split, str) else None) for path in _files(folder)]
    return None


def _files(folder: Path) -> list[Path]:
    """The files that a state.json lists; names that lead out of the folder are refused."""
    path = folder / "state.json"
    try:
        names = [Path(item["filename"]) for item in _json(path)["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: names no '_data_files'; save the data set again") from error
    if any(name.name != str(name) or bad_path(str(name)) for name in names):
        raise UserError(f"{path}: names files in other folders; save the data set again")
    return [folder / name for name in names]


def _json(path: Path) -> dict[str, Any]:
    remedy = "save the data set again"
    try:
        return read_object(path, remedy)
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; {remedy}") from error
