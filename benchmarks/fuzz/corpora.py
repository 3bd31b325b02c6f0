"""Entrances of data preparation: recordings, archives, tables, manifests, corpora."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.fuzz.entrance import Counted, Entrance, drain, num_counted, num_lines, quiet_problems
from data_prep.jobs.encode import EncodeJob
from data_prep.readers import ReaderOptions, load_reader
from tests.golden import commands
from ttt_dist.audio.io import UtteranceReader, audio_seconds, read_audio
from ttt_dist.jobs.parts import cut_lines
from ttt_dist.manifest.reading import read_manifest
from ttt_dist.util.errors import UserError

GOLDEN = Path(commands.__file__).with_name("files")
RATE = 16000
NUM_ITEMS = 6
WORDS = ("yes", "no", "one two", "three", "it's four", "five")
KINDS = {
    "wav": {"format": "WAV"},
    "float.wav": {"format": "WAV", "subtype": "FLOAT"},
    "flac": {"format": "FLAC"},
    "mp3": {"format": "MP3"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
}


def sound(kind: str, seconds: float = 0.1) -> bytes:
    """A short tone as a file."""
    file = io.BytesIO()
    wave = 0.3 * np.sin(np.arange(int(seconds * RATE)) * 0.2)
    soundfile.write(file, wave, RATE, **KINDS[kind])
    return file.getvalue()


def make_recordings(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(sound("wav"))


def make_sound(kind: str, folder: Path) -> None:
    (folder / f"a.{kind}").write_bytes(sound(kind))


def read_sound(kind: str, folder: Path) -> None:
    path = folder / f"a.{kind}"
    audio_seconds(path)
    read_audio(path, RATE)
    read_audio(path.read_bytes(), RATE, name="a member")


def make_tar(folder: Path) -> None:
    with tarfile.open(folder / "a.tar", "w") as tar:
        for number, text in enumerate(WORDS):
            about = json.dumps({"id": f"u{number}", "text": text, "language": "en", "speaker": "s"}).encode()
            for name, content in ((f"u{number}.json", about), (f"u{number}.wav", sound("wav", 0.02))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def read_corpus(
    reader: str,
    source: str,
    folder: Path,
    there: Callable[[Path], int] | None = None,
    each: bool = False,
    **options: Any,
) -> Counted | None:
    """All entries, and the recording of one that lies in a container."""
    problems = quiet_problems()
    entries = list(load_reader(reader)(ReaderOptions(source=folder / source, **options), problems))
    for entry in [entry for entry in entries if entry.get("member")][:1]:
        try:
            UtteranceReader(folder, RATE, cache_bytes=0, audio_root=folder).read(entry)
        except UserError as error:
            problems.report(error)
    wanted = NUM_ITEMS if there is None else there(folder)
    return Counted(len(entries), num_counted(problems), wanted, each)


def make_table(kind: str, folder: Path) -> None:
    """A row per utterance with its recording, as Parquet, or as Arrow's stream or file."""
    import pyarrow as pa
    from pyarrow import parquet

    audio = [{"bytes": sound("wav", 0.02), "path": f"{number}.wav"} for number in range(NUM_ITEMS)]
    columns = {"audio": audio, "text": list(WORDS), "speaker": ["s"] * NUM_ITEMS}
    table = pa.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": {"audio": {"_type": "Audio"}}}})}
    )
    path = str(folder / f"a.{kind.partition(' ')[0]}")
    if kind == "parquet":
        parquet.write_table(table, path, row_group_size=3)
        return
    new = pa.ipc.new_stream if kind == "arrow stream" else pa.ipc.new_file
    with pa.OSFile(path, "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table)


def make_lines(folder: Path) -> None:
    make_recordings(folder, [f"{number}.wav" for number in range(NUM_ITEMS)])
    entries = [
        {"id": f"u{number}", "audio": f"{number}.wav", "text": text, "duration": 0.1, "lang": "en"}
        for number, text in enumerate(WORDS)
    ]
    entries[1] |= {"offset": 0.01, "duration": 0.05}
    entries[2] |= {"audio": ["0.wav", "1.wav"], "gaps": [0.0, 0.1], "tail": 0.1}
    entries[3] = {"id": "u3", "turns": [{"role": "user", "audio": "3.wav"}, {"role": "assistant", "text": "yes"}]}
    (folder / "a.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def read_lines(folder: Path) -> Counted:
    problems, path = quiet_problems(), folder / "a.jsonl"
    return Counted(drain(read_manifest(path, problems)), problems.count, num_lines(path.read_bytes()))


def list_lines(folder: Path) -> Counted | None:
    """By the reader of manifests, which opens the recordings too."""
    return read_corpus("jsonl", "a.jsonl", folder, there=lambda folder: rows_of("a.jsonl", folder) + 1, each=True)


def make_encoding(folder: Path) -> None:
    make_lines(folder)
    shutil.copytree(GOLDEN / "export" / "codec", folder / "codec")


def encode(folder: Path) -> Counted:
    """The job of `data_prep encode`, in this process."""
    manifest = folder / "a.jsonl"
    job = EncodeJob(
        ranges=cut_lines(manifest, 100),
        codec=str(folder / "codec"),
        codebooks=None,
        out=folder / "codes",
        audio_root=None,
    )
    job.open()
    made = [job.make(number, lambda amount: None) for number in range(job.num_parts)]
    given = sum(int(outcome.counts["utterances"]) for outcome in made)
    return Counted(given, sum(len(outcome.problems) for outcome in made), num_lines(manifest.read_bytes()))


def make_rows(delimiter: str, header: tuple[str, ...], audio: str, name: str, folder: Path) -> None:
    make_recordings(folder, [f"{audio}{number}.wav" for number in range(NUM_ITEMS)])
    rows = [header, *((f"{number}.wav", text, "s")[: len(header)] for number, text in enumerate(WORDS))]
    (folder / name).write_text("".join(delimiter.join(row) + "\n" for row in rows))


def rows_of(name: str, folder: Path) -> int:
    """Rows below the header."""
    return num_lines((folder / name).read_bytes()) - 1


def make_aishell(folder: Path) -> None:
    make_recordings(folder, [f"wav/train/S1/u{number}.wav" for number in range(NUM_ITEMS)])
    lines = [f"u{number} 今天 很 好 {word}\n" for number, word in enumerate(WORDS)]
    (folder / "transcript").mkdir()
    (folder / "transcript" / "aishell_transcript_v0.8.txt").write_text("".join(lines))


def make_librispeech(folder: Path) -> None:
    place = folder / "dev" / "1" / "2"
    place.mkdir(parents=True)
    for number in range(NUM_ITEMS):
        (place / f"1-2-{number}.flac").write_bytes(sound("flac"))
    (place / "1-2.trans.txt").write_text("".join(f"1-2-{number} {word}\n" for number, word in enumerate(WORDS)))


def make_long(name: str, folder: Path) -> None:
    (folder / "audio").mkdir()
    (folder / "audio" / "a.wav").write_bytes(sound("wav", 1.0))
    segments = [
        {"sid": f"s{number}", "begin_time": number / 10, "end_time": (number + 1) / 10, "subsets": ["{S}", "S"]}
        | {"text": word, "text_tn": f"{word} <COMMA>", "confidence": 1.0, "speaker": "N/A"}
        for number, word in enumerate(WORDS)
    ]
    audios = [{"aid": "a", "path": "audio/a.wav", "segments": segments, "title": "t"}]
    (folder / name).write_text(json.dumps({"dataset": "d", "audios": audios}))


def corpus(
    name: str,
    make: Callable[[Path], None],
    file: str,
    kind: str,
    reader: str,
    *,
    source: str | None = None,
    rows: bool = True,
    each: bool = False,
    **options: Any,
) -> Entrance:
    """One file of a corpus, of which `source` (by default the file) is what the reader is given.

    `rows`: whether its items are the rows below its header; else there are NUM_ITEMS.
    """
    there = partial(rows_of, file) if rows else None
    read = partial(read_corpus, reader, source or file, there=there, each=each, **options)
    return Entrance(name=name, make=make, files={file: kind}, read=read)


def sounds(kind: str) -> Entrance:
    """A recording alone."""
    name = f"a.{kind}"
    return Entrance(
        name=f"audio.{kind}", make=partial(make_sound, kind), files={name: "bytes"}, read=partial(read_sound, kind)
    )


def table(name: str, reader: str, delimiter: str, header: tuple[str, ...], *, audio: str = "", **more: Any) -> Entrance:
    """A table of text beside recordings."""
    make = partial(make_rows, delimiter, header, audio, name)
    return corpus(f"{reader} {name}", make, name, "text", reader, **more)


def any_number(folder: Path) -> int:
    """Where the file is one tree: it does not say how many items it should have."""
    return 0


THREE = ("path", "sentence", "speaker")
LONG: tuple[tuple[str, dict[str, Any]], ...] = (("GigaSpeech", {}), ("WenetSpeech", {"subset": "S"}))
CORPORA = (
    *map(sounds, KINDS),
    corpus("tar", make_tar, "a.tar", "bytes", "emilia", rows=False),
    corpus("parquet", partial(make_table, "parquet"), "a.parquet", "bytes", "hf", source=".", rows=False),
    corpus("arrow stream", partial(make_table, "arrow stream"), "a.arrow", "bytes", "table", rows=False),
    corpus("arrow file", partial(make_table, "arrow file"), "a.arrow", "bytes", "table", rows=False),
    Entrance(name="manifest", make=make_lines, files={"a.jsonl": "jsonl"}, read=read_lines),
    Entrance(name="manifest, listed", make=make_lines, files={"a.jsonl": "jsonl"}, read=list_lines),
    Entrance(
        name="manifest, encoded",
        make=make_encoding,
        files={"a.jsonl": "jsonl", "0.wav": "bytes"},
        read=encode,
        is_written=True,
    ),
    table("a.tsv", "table", "\t", THREE, each=True),
    table("a.csv", "table", ",", THREE),
    table("a.csv", "captions", ",", ("file_name", "caption")),
    table("metadata.csv", "hf", ",", ("file_name", "text"), source="."),
    table("train.tsv", "commonvoice", "\t", THREE, audio="clips/", source=".", each=True),
    corpus(
        "aishell1", make_aishell, "transcript/aishell_transcript_v0.8.txt", "text", "aishell1", source=".", rows=False
    ),
    corpus("librispeech", make_librispeech, "dev/1/2/1-2.trans.txt", "text", "librispeech", source=".", rows=False),
    *(
        Entrance(
            name=name.lower(),
            make=partial(make_long, f"{name}.json"),
            files={f"{name}.json": "json"},
            read=partial(read_corpus, name.lower(), ".", there=any_number, **subset),
        )
        for name, subset in LONG
    ),
)
