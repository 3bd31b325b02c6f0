"""Rows A1 to A3, A10 and A11: what corpora hold (with the extra `containers`)."""

import gzip
import io
import struct
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from kit import main, manifest, module, prep, row, wav, wave, work, write


def seconds(path: Path) -> str:
    """Seconds that a manifest states of a recording, and seconds that are read of it."""
    audio = module("ttt_dist.audio.io", "ttt_dist.audio.files")
    stated = audio.audio_seconds(path)
    return f"{stated:.2f} s stated, {len(audio.read_audio(path, 16_000)) / 16_000:.2f} s read"


def mp3(path: Path) -> Path:
    """12 s of MP3 of variable rate without the first frame, which counts the others."""
    file = io.BytesIO()
    soundfile.write(file, wave(12), 16_000, format="MP3", bitrate_mode="VARIABLE")
    data = file.getvalue()
    return write(path, data[data.index(b"\xff\xf3", 4) :])


@row("A1", "MP3 of 12 s without a count", "^12.* stated, 12.* read", "sound_headers::mp3_without_a_count")
def mp3_without_a_count(folder: Path) -> str:
    return seconds(mp3(folder / "a.mp3"))


@row(
    "A1",
    "WAV of 3 s with a data size of 0",
    "^3.00 s stated, 3.00 s read",
    "sound_headers::wav_that_was_written_into_a_pipe",
)
def wav_size_of_zero(folder: Path) -> str:
    data = bytearray(wav(folder / "a.wav", 3).read_bytes())
    data[data.index(b"data") + 4 :][:4] = struct.pack("<I", 0)
    place = data.index(b"data") + 4
    return seconds(write(folder / "b.wav", bytes(data[:place]) + bytes(4) + bytes(data[place + 4 :])))


@row(
    "A1",
    "FLAC of 3 s with unknown length",
    "^3.00 s stated, 3.00 s read",
    "sound_headers::other_formats_of_unknown_length",
)
def flac_without_length(folder: Path) -> str:
    data = bytearray(wav(folder / "a.flac", 3).read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return seconds(write(folder / "b.flac", bytes(data)))


@row("A1", "GSM in WAV, 2 s", "^2.*read", "sound_headers::whole_and_in_pieces")
def gsm(folder: Path) -> str:
    return seconds(wav(folder / "a.wav", 2, 8000, subtype="GSM610"))


@row("A1", ".m4a", "s read|pip install av", "sound_headers::what_telephones_and_browsers_record")
def m4a(folder: Path) -> str:
    import av

    with av.open(str(folder / "a.m4a"), "w") as out:
        stream = out.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave(2)[None], format="fltp", layout="mono")
        frame.rate = 16_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            out.mux(packet)
    return seconds(folder / "a.m4a")


@row(
    "A2",
    "a tar of 5 whose third header has a flipped bit",
    "^1: .*tar.*header",
    "readers_emilia::emilia_tars_end_as_archives_end",
)
def tar(folder: Path) -> str:
    """An archive with one bit of a header flipped."""
    path = folder / "emilia" / "a.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as out:
        for number in range(5):
            for name, data in (
                (f"k{number}.mp3", wav(folder / "a.mp3", 0.5).read_bytes()),
                (
                    f"k{number}.json",
                    f'{{"id": "k{number}", "wav": "k{number}.mp3", "text": "hello", "duration": 0.5}}'.encode(),
                ),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as archive:
        third = archive.getmembers()[4].offset
    data = bytearray(path.read_bytes())
    data[third] ^= 1
    path.write_bytes(data)
    return prep("manifest", "--reader", "emilia", "--source", path.parent, "--out", folder / "m.jsonl")


@row(
    "A3",
    "a TSV of 4 rows with a quote that is a letter: rows listed",
    "^4 rows",
    "foreign_tables::every_letter_of_a_tsv",
)
def tsv(folder: Path) -> str:
    for name in "abcd":
        wav(folder / f"{name}.wav")
    texts = ["plain", '"quoted to no end', "third", 'fourth" one']
    lines = ["path\tsentence", *(f"{name}.wav\t{text}" for name, text in zip("abcd", texts, strict=True))]
    listed = manifest("table", write(folder / "a.tsv", "\n".join(lines) + "\n"))
    return f"{len(listed)} rows, {[entry['text'] for entry in listed]}"


@row("A3", "captions in a TSV with a quote, 3 rows", "^3 rows", "foreign_tables::captions_and_data_files")
def captions(folder: Path) -> str:
    for name in "abc":
        wav(folder / f"{name}.wav")
    lines = ["file_name\tcaption", 'a.wav\t"a dog barks', "b.wav\ta cat", "c.wav\ta bird"]
    return f"{len(manifest('captions', write(folder / 'a.tsv', chr(10).join(lines) + chr(10))))} rows"


@row(
    "A10",
    "AISHELL-2: spaces between English words",
    "YESTERDAY ONCE MORE",
    "huggingface_layouts::english_words_of_aishell",
)
def aishell(folder: Path) -> str:
    source = folder / "data"
    wav(source / "wav" / "a.wav")
    write(source / "wav.scp", "a\twav/a.wav\n")
    write(source / "trans.txt", "a\t听 YESTERDAY ONCE MORE 吧\n")
    return str(manifest("aishell2", source)[0]["text"])


def parquet(path: Path, **columns: pa.Array) -> Path:
    """A Parquet of one recording with these columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = wav(path.parent.parent / "a.wav").read_bytes()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    audio = pa.array([{"bytes": data, "path": "a.wav"}], kind)
    pq.write_table(pa.table({"audio": audio, **columns}), path)
    return path


@row("A11", "hf: CONFIG/SPLIT/0000.parquet", "test, train", "huggingface_layouts::the_split_of_a_file")
def split(folder: Path) -> str:
    for name in ("train", "test"):
        parquet(folder / "set" / "default" / name / "0000.parquet", text=pa.array([name]))
    return ", ".join(sorted(entry["split"] for entry in manifest("hf", folder / "set")))


@row("A11", "hf: the class label `lang`", "'?de'?", "huggingface_layouts::every_class_label")
def label(folder: Path) -> str:
    path = parquet(folder / "set" / "train.parquet", text=pa.array(["hallo"]), lang=pa.array([0]))
    table = pq.read_table(path)
    features = (
        '{"info": {"features": {"audio": {"_type": "Audio"}, "lang": {"names": ["de", "en"], "_type": "ClassLabel"}}}}'
    )
    pq.write_table(table.replace_schema_metadata({"huggingface": features}), path)
    return repr(manifest("hf", folder / "set", "--columns", "lang=lang")[0]["lang"])


@row("A11", "hf: GigaSpeech's tags in Parquet", "^HELLO, YOU.$", "huggingface_layouts::tags_of_gigaspeech")
def tags(folder: Path) -> str:
    parquet(folder / "set" / "train.parquet", text=pa.array(["HELLO <COMMA> YOU <PERIOD>"]))
    return str(manifest("hf", folder / "set")[0]["text"])


@row("A11", "WenetSpeech without --subset: splits listed", "^train_l$|^train$", "readers::wenetspeech")
def wenetspeech(folder: Path) -> str:
    wav(folder / "wenet" / "audio" / "a.wav", 4)
    segments = ", ".join(
        f'{{"sid": "s{number}", "begin_time": {number}, "end_time": {number + 1}, "text": "你好", "confidence": 1.0, '
        f'"subsets": ["{subset}"]}}'
        for number, subset in enumerate(("L", "W"))
    )
    write(
        folder / "wenet" / "WenetSpeech.json",
        f'{{"audios": [{{"aid": "a", "path": "audio/a.wav", "duration": 4, "segments": [{segments}]}}]}}',
    )
    return ", ".join(entry["split"] for entry in manifest("wenetspeech", folder / "wenet"))


@row(
    "A3",
    "a CSV whose second row opens a quote that nobody closes",
    "2 rows.*line 3|:3",
    "foreign_tables::a_quote_in_a_csv",
)
def open_quote(folder: Path) -> str:
    for name in "abc":
        wav(folder / f"{name}.wav")
    path = write(folder / "a.csv", 'path,sentence\na.wav,one\nb.wav,"two\nc.wav,three\n')
    out = folder / "m.jsonl"
    said = prep("manifest", "--reader", "table", "--source", path, "--out", out, "--max-errors", "1")
    rows = len(out.read_text().splitlines()) if out.exists() else 0
    return f"{rows} rows, {said}"


@row(
    "C",
    "a manifest .jsonl.gz, encoded from",
    "^0: 1 utterances|^0: .*1 utterances",
    "hostile_lines::manifests_may_be_compressed",
)
def gzipped(folder: Path) -> str:
    wav(folder / "a.wav")
    lines = gzip.compress(b'{"id": "a", "audio": "a.wav", "text": "one"}\n')
    manifest = write(folder / "m.jsonl.gz", lines)
    return prep("encode", "--manifest", manifest, "--codec", f"melvq:{work()}/codes/codec", "--out", folder / "codes")


@row("C", "NeMo's train_manifest.json to `table`: rows listed", "^2 rows", "foreign_tables::json_lines_under_any_name")
def nemo(folder: Path) -> str:
    lines = [
        f'{{"audio_filepath": "{wav(folder / (name + ".wav"))}", "duration": 1.0, "text": "one"}}' for name in "ab"
    ]
    return f"{len(manifest('table', write(folder / 'train_manifest.json', chr(10).join(lines))))} rows"


@row(
    "C",
    "captions --source csv/train.csv, audio in audio/train: rows",
    "^1 rows",
    "foreign_tables::captions_whose_recordings",
)
def elsewhere(folder: Path) -> str:
    wav(folder / "audio" / "train" / "a.wav")
    listed = manifest("captions", write(folder / "csv" / "train.csv", "file_name,caption\na.wav,a dog barks\n"))
    return f"{len(listed)} rows"


if __name__ == "__main__":
    main()
