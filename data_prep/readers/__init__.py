"""Readers: one per corpus layout, each yielding manifest entries in a fixed order.

An entry's paths are ones that this process can open. Where a corpus does not state lengths, the header of every file
is opened, so that a broken one is found when the corpus is listed and not hours later; where it does, the file's being
there is checked. Only the module of the reader that was asked for is imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ttt_dist.manifest.entry import Entry
from ttt_dist.manifest.problems import Problems


@dataclass(frozen=True)
class ReaderOptions:
    """What the command line says about the corpus."""

    source: Path
    pattern: str | None = None
    lang: str | None = None
    split: str | None = None
    subset: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)  # field of an entry: column of the corpus's table

    def wants(self, split: str, problems: Problems, place: str) -> bool:
        """Whether the split is the one asked for; one that is not is counted as skipped."""
        if self.split in (None, split):
            return True
        problems.skip(f"not in split {self.split}", place)
        return False


Reader = Callable[[ReaderOptions, Problems], Iterator[Entry]]


@dataclass(frozen=True)
class Layout:
    """A module of this package, whose function `read_NAME` reads the layout, and a line of help."""

    module: str
    help: str


READERS = {
    "aishell1": Layout("aishell", "folder with wav/ and transcript/"),
    "aishell2": Layout("aishell", "folder; below it wav.scp, trans.txt and wav/"),
    "aishell3": Layout("aishell", "folder with {train,test}/content.txt and wav/"),
    "captions": Layout(
        "captions", "CSV, or folder of CSVs: file_name and caption or caption_1, ... (Clotho, AudioCaps)"
    ),
    "commonvoice": Layout("commonvoice", "folder with train.tsv, ... and clips/, or folder of such folders"),
    "emilia": Layout("emilia", "folder or file: tars, JSONL with mp3, or JSON beside mp3"),
    "gigaspeech": Layout("long_recordings", "GigaSpeech.json or its folder; --subset XL, L, M, S or XS"),
    "hf": Layout("huggingface", "data set folder of Hugging Face: save_to_disk, Parquet, or metadata.csv with files"),
    "jsonl": Layout("own", "JSONL of manifest lines, paths relative to the file"),
    "librispeech": Layout("librispeech", "folder: SPEAKER/CHAPTER/*.trans.txt and .flac"),
    "mls": Layout("librispeech", "folder with {train,dev,test}/transcripts.txt and audio/ (Multilingual LibriSpeech)"),
    "pattern": Layout("own", "folder of files whose names say all; see --pattern"),
    "table": Layout("tables", "TSV, CSV, JSONL or Parquet file; see --columns"),
    "wenetspeech": Layout("long_recordings", "WenetSpeech.json or its folder; --subset L, M or S"),
}


def load_reader(name: str) -> Reader:
    """The function of a reader of READERS."""
    reader: Reader = getattr(importlib.import_module(f"{__name__}.{READERS[name].module}"), f"read_{name}")
    return reader
