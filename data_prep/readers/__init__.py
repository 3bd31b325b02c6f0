"""Readers: one per corpus layout, each yielding manifest entries in a fixed order.

An entry's paths are ones that this process can open. Where a corpus does not state lengths, the header of every file
is opened, so that a broken one is found when the corpus is listed and not hours later; where it does, the file's being
there is checked. Only the module of the reader that was asked for is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ttt_dist.manifest.entry import Entry
from ttt_dist.manifest.problems import Problems
from ttt_dist.util.errors import UserError
from ttt_dist.util.plugins import load_function


@dataclass(frozen=True, kw_only=True)
class ReaderOptions:
    """What the command line says about the corpus."""

    source: Path
    pattern: str | None = None
    lang: str | None = None
    split: str | None = None
    subset: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)  # field of an entry: column of the corpus's table
    audio_root: Path | None = None  # where the recordings lie that a table names, if not beside it
    pipes: Path | None = None  # where the output of a corpus's shell commands is kept; None: none is run

    def wants(self, split: str, problems: Problems, place: str) -> bool:
        """Whether the split is the one asked for; one that is not is counted as skipped."""
        if self.split in (None, split):
            return True
        problems.skip(f"not in split {self.split}", place)
        return False


Reader = Callable[[ReaderOptions, Problems], Iterator[Entry]]
SIGNATURE = "def read(options: ReaderOptions, problems: Problems) -> Iterator[Entry]"
FLAGS = ("pattern", "split", "subset", "columns", "audio_root", "allow_pipes")
"""Of `data_prep manifest`: those that a reader may take or not."""


@dataclass(frozen=True)
class ReaderRow:
    """A corpus layout by name."""

    target: str
    """package.module:function of the reader."""
    help: str
    takes: tuple[str, ...] = ("split",)
    """Of FLAGS."""


READERS = {
    "aishell1": ReaderRow("data_prep.readers.aishell:read_aishell1", "folder with wav/ and transcript/"),
    "aishell2": ReaderRow("data_prep.readers.aishell:read_aishell2", "folder; below it wav.scp, trans.txt and wav/"),
    "aishell3": ReaderRow("data_prep.readers.aishell:read_aishell3", "folder with {train,test}/content.txt and wav/"),
    "captions": ReaderRow(
        "data_prep.readers.captions:read_captions",
        "CSV, or folder of CSVs: file_name and caption or caption_1, ... (Clotho, AudioCaps)",
        ("split", "columns", "audio_root"),
    ),
    "commonvoice": ReaderRow(
        "data_prep.readers.commonvoice:read_commonvoice",
        "folder with train.tsv, ... and clips/, or folder of such folders",
    ),
    "emilia": ReaderRow(
        "data_prep.readers.emilia:read_emilia", "folder or file: tars, JSONL with mp3, or JSON beside mp3", ()
    ),
    "fleurs": ReaderRow(
        "data_prep.readers.multilingual:read_fleurs", "folder of a language, or of several: train.tsv and audio/train/"
    ),
    "gigaspeech": ReaderRow(
        "data_prep.readers.long_recordings:read_gigaspeech",
        "GigaSpeech.json or its folder; --subset XL, L, M, S or XS",
        ("split", "subset"),
    ),
    "hf": ReaderRow(
        "data_prep.readers.huggingface:read_hf",
        "data set folder of Hugging Face: save_to_disk, Parquet, or metadata.csv with files",
        ("split", "columns"),
    ),
    "hifitts": ReaderRow(
        "data_prep.readers.tts:read_hifitts", "folder with SPEAKER_manifest_clean_train.json, ... and audio/ (HiFi-TTS)"
    ),
    "jsonl": ReaderRow(
        "data_prep.readers.own:read_jsonl",
        "JSONL of manifest lines, paths relative to the file",
        ("split", "audio_root"),
    ),
    "kaldi": ReaderRow(
        "data_prep.readers.kaldi:read_kaldi",
        "data directory of Kaldi or ESPnet, or folder of such: wav.scp, text, segments, utt2spk, ...",
        ("split", "audio_root", "allow_pipes"),
    ),
    "kespeech": ReaderRow(
        "data_prep.readers.kaldi:read_kespeech", "folder with Tasks/ASR/ and Audio/", ("split", "audio_root")
    ),
    "lhotse": ReaderRow(
        "data_prep.readers.lhotse:read_lhotse",
        "JSONL of cuts, or of supervisions beside recordings; or folder of such, or of Shar's shards",
        ("split", "audio_root", "allow_pipes"),
    ),
    "librilight": ReaderRow(
        "data_prep.readers.lhotse:read_lhotse",
        "cuts of LibriHeavy (libriheavy_cuts_small.jsonl.gz); --audio-root: Libri-Light, which has no text itself",
        ("split", "audio_root"),
    ),
    "librispeech": ReaderRow(
        "data_prep.readers.librispeech:read_librispeech", "folder: SPEAKER/CHAPTER/*.trans.txt and .flac"
    ),
    "libritts": ReaderRow(
        "data_prep.readers.tts:read_libritts",
        "folder: SPEAKER/CHAPTER/*.wav and .normalized.txt (LibriTTS, LibriTTS-R)",
    ),
    "ljspeech": ReaderRow(
        "data_prep.readers.tts:read_ljspeech", "folder with metadata.csv (ID|text|normalised) and wavs/", ()
    ),
    "macs": ReaderRow(
        "data_prep.readers.macs:read_macs",
        "MACS.yaml or its folder; recordings below it or --audio-root",
        ("audio_root",),
    ),
    "mls": ReaderRow(
        "data_prep.readers.librispeech:read_mls",
        "folder with {train,dev,test}/transcripts.txt and audio/ (Multilingual LibriSpeech)",
    ),
    "nemo": ReaderRow(
        "data_prep.readers.nemo:read_nemo",
        "manifest of NeMo's (JSON lines), a range (manifest__OP_0..63_CL_.json) or folder; tars beside it, or by --audio-root",
        ("split", "audio_root"),
    ),
    "pattern": ReaderRow(
        "data_prep.readers.own:read_pattern", "folder of files whose names say all; see --pattern", ("split", "pattern")
    ),
    "peoplesspeech": ReaderRow(
        "data_prep.readers.multilingual:read_peoplesspeech",
        "folder with train/clean.json and train/clean/; --subset clean, dirty, clean_sa or dirty_sa",
        ("split", "subset"),
    ),
    "table": ReaderRow(
        "data_prep.readers.tables:read_table",
        "TSV, CSV, JSON or Parquet file; see --columns",
        ("split", "columns", "audio_root"),
    ),
    "vctk": ReaderRow("data_prep.readers.tts:read_vctk", "folder with txt/ and wav48_silence_trimmed/ or wav48/", ()),
    "voxpopuli": ReaderRow(
        "data_prep.readers.multilingual:read_voxpopuli",
        "folder of a language, or of several: asr_train.tsv and recordings",
    ),
    "webdataset": ReaderRow(
        "data_prep.readers.webdataset:read_webdataset",
        "tar of KEY.flac with KEY.txt or KEY.json, a range (data-{000000..000127}.tar), or folder of tars",
        ("split", "columns"),
    ),
    "wenetspeech": ReaderRow(
        "data_prep.readers.long_recordings:read_wenetspeech",
        "WenetSpeech.json or its folder; --subset L, M or S",
        ("split", "subset"),
    ),
    "wenetspeech4tts": ReaderRow(
        "data_prep.readers.tts:read_wenetspeech4tts",
        "folder: WenetSpeech4TTS_GRADE_N/wavs/ and txts/; --subset Premium, Standard or Basic",
        ("subset",),
    ),
    "yodas": ReaderRow(
        "data_prep.readers.multilingual:read_yodas",
        "folder with en000/text/ and en000/audio/, ... (YODAS, YODAS2; its .tar.gz unpacked, or gunzipped to .tar)",
        (),
    ),
}


def find_reader(name: str) -> ReaderRow:
    """The row of a name of READERS, or of `package.module:function`, which takes the flags that its `takes` names.

    Raises UserError where there is no such function.
    """
    if name in READERS:
        return READERS[name]
    function = load_function(name, "--reader", SIGNATURE)
    return ReaderRow(name, "", tuple(getattr(function, "takes", ())))


def load_reader(name: str) -> Reader:
    """The function of a reader, as `find_reader` knows it; what one of a user's own raises becomes a line that names it."""
    function: Reader = load_function(find_reader(name).target, "--reader", SIGNATURE)
    return function if name in READERS else partial(_guarded, name, function)


def _guarded(name: str, function: Reader, options: ReaderOptions, problems: Problems) -> Iterator[Entry]:
    last = "the first entry"
    try:
        for entry in function(options, problems):
            last = f"what comes after {entry.get('id')!r}"
            yield entry
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"--reader {name}: failed at {last} ({type(error).__name__}: {error}); report what is bad by problems.report and go on"
        ) from error
