"""Recordings inside tars, Parquet and Arrow files: read without reading the rest, and refused by name."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tests.corpora import RATE, encoded, record, tone
from ttt_dist.audio import UtteranceReader, containers
from ttt_dist.audio.containers import Containers, open_table
from ttt_dist.util.errors import UserError


def exact(wave: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def write_tar(path: Path, files: list[bytes]) -> list[dict[str, int]]:
    """The members' places, as tarfile finds them."""
    with tarfile.open(path, "w") as tar:
        for number, data in enumerate(files):
            info = tarfile.TarInfo(f"{number}.wav")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as tar:
        return [{"offset": member.offset_data, "size": member.size} for member in tar]


def write_parquet(path: Path, cells: list[Any], rows: int, column: str = "audio") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({column: cells, "n": range(len(cells))}), path, row_group_size=rows)
    return path


def write_arrow(path: Path, cells: list[Any], rows: int, stream: bool) -> None:
    table = pa.table({"audio": cells})
    open_writer = pa.ipc.new_stream if stream else pa.ipc.new_file
    with open_writer(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


@settings(max_examples=15)
@given(st.data())
def test_every_container_gives_the_samples_that_went_in(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("containers")
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    waves = [random.uniform(-1, 1, data.draw(st.integers(1, 900))).astype(np.float32) for _ in range(5)]
    files = [exact(wave) for wave in waves]
    cells = [{"bytes": file, "path": "x.wav"} for file in files]
    rows = data.draw(st.integers(1, 6))
    members = write_tar(folder / "a.tar", files)
    write_parquet(folder / "a.parquet", cells, rows)
    write_parquet(folder / "plain.parquet", files, rows)
    write_arrow(folder / "a.arrow", cells, rows, stream=False)
    write_arrow(folder / "s.arrow", cells, rows, stream=True)
    reader = UtteranceReader(folder, RATE, cache_bytes=data.draw(st.sampled_from([0, 10**6])))
    for _ in range(12):
        n = data.draw(st.integers(0, 4))
        start = data.draw(st.integers(0, len(waves[n]) - 1))
        count = data.draw(st.integers(1, len(waves[n]) - start))
        piece = {"offset": start / RATE, "duration": count / RATE} if data.draw(st.booleans()) else {}
        expected = torch.from_numpy(waves[n][start : start + count] if piece else waves[n])
        for name in ("a.tar", "a.parquet", "plain.parquet", "a.arrow", "s.arrow"):
            member = members[n] if name == "a.tar" else {"row": n, "column": "audio"}
            torch.testing.assert_close(reader.read({"audio": name, "member": member, **piece}), expected)


def test_of_a_tar_the_member_alone_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member = write_tar(tmp_path / "a.tar", [b"x" * 10**6, encoded("a"), b"x" * 10**6])[1]
    read: list[int] = []

    class Counted(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            read.append(len(data))
            return data

    monkeypatch.setattr(containers, "open", lambda path, mode: Counted(path), raising=False)
    UtteranceReader(tmp_path, RATE).read({"audio": "a.tar", "member": member})
    assert read == [member["size"]]


def test_rows_in_order_read_each_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", [encoded(str(n)) for n in range(10)], rows=3)
    groups: list[int] = []
    real = parquet.ParquetFile.read_row_group

    def counted(self: Any, group: int, **options: Any) -> Any:
        assert options["columns"] == ["audio"]
        groups.append(group)
        return real(self, group, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counted)
    fetcher = Containers()
    for row in range(10):
        assert fetcher.fetch(path, {"row": row, "column": "audio"}) == encoded(str(row))
    assert groups == [0, 1, 2, 3]


def test_few_tables_are_held_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_parquet(tmp_path / f"{n}.parquet", [encoded(str(n))], 1) for n in range(5)]
    opened: list[Path] = []
    real = containers.open_table

    def counted(path: Path) -> containers.Table:
        opened.append(path)
        return real(path)

    monkeypatch.setattr(containers, "open_table", counted)
    fetcher = Containers(open_tables=2)
    for n in (0, 1, 0, 2, 0, 1, 3, 4):  # 0 is used again and again and stays, 1 goes when 2 comes
        fetcher.fetch(paths[n], {"row": 0, "column": "audio"})
    assert [path.stem for path in opened] == ["0", "1", "2", "1", "3", "4"]


@pytest.mark.parametrize("folder", ["corpus/clips", "corpus/data/clips"])
def test_a_row_may_name_a_file_beside_the_table_or_its_folder(tmp_path: Path, folder: str) -> None:
    record(tmp_path / folder / "b.flac")
    cells = [{"bytes": None, "path": "clips/b.flac"}]
    write_parquet(tmp_path / "corpus" / "data" / "t.parquet", cells, 1)
    wave = UtteranceReader(tmp_path, RATE).read(
        {"audio": "corpus/data/t.parquet", "member": {"row": 0, "column": "audio"}}
    )
    np.testing.assert_allclose(wave.numpy(), tone("b"), atol=1e-3)


@pytest.mark.parametrize("name", ["../secret.wav", "{absolute}"])
def test_a_row_cannot_name_a_file_outside_the_allowed_folder(tmp_path: Path, name: str) -> None:
    record(tmp_path / "secret.wav")
    cell = {"bytes": None, "path": name.format(absolute=tmp_path / "secret.wav")}
    write_parquet(tmp_path / "in" / "t.parquet", [cell], 1)
    clip = {"audio": "t.parquet", "member": {"row": 0, "column": "audio"}}
    with pytest.raises(UserError, match=r"t\.parquet: row 0 of column 'audio': .*lies outside"):
        UtteranceReader(tmp_path / "in", RATE).read(clip)
    assert len(UtteranceReader(tmp_path / "in", RATE, allow_outside=True).read(clip)) == len(tone("secret"))
    with pytest.raises(UserError, match="lies outside"):
        UtteranceReader(tmp_path / "other", RATE).read({**clip, "audio": "../in/t.parquet"})


def test_a_parquet_of_fewer_rows_than_it_states_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "a.parquet", [encoded("a")] * 3, 3)
    table = open_table(tmp_path / "a.parquet")
    assert len(list(table.read(["n"]))) == 3
    monkeypatch.setattr(table, "_stated", 5)  # one flipped bit of the footer
    rows = table.read(["n"])
    assert [next(rows) for _ in range(3)]
    with pytest.raises(ValueError, match="states 5 rows and has 3"):
        next(rows)


def test_a_column_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    table = pa.table({"audio": [{"bytesXX": b"", "path": "a"}]})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    content = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(content.replace(b"bytesXX", b"bytes\x80X"))
    with pytest.raises(UserError, match=r"a\.arrow: is no Parquet or Arrow file .*utf-8"):
        open_table(tmp_path / "a.arrow")


def test_what_cannot_be_read_is_named_with_file_and_member(tmp_path: Path) -> None:
    members = write_tar(tmp_path / "a.tar", [encoded("a"), b"no audio at all"])
    write_parquet(tmp_path / "a.parquet", [encoded("a"), b"no audio", None], 2)
    write_parquet(tmp_path / "cut.parquet", [encoded("a")] * 9, 3)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-20])
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "rotten.parquet").write_bytes(whole[:60] + b"\xff" * (len(whole) - 700) + whole[-640:])
    (tmp_path / "no.arrow").write_text("this is no table")
    size = (tmp_path / "a.tar").stat().st_size

    def row(number: int, column: str = "audio") -> dict[str, Any]:
        return {"row": number, "column": column}

    for name, member, reason in [
        ("a.tar", {"offset": 512, "size": size}, rf"a\.tar: member at byte 512: .* the file ends at {size:,}"),
        ("a.tar", members[1], rf"a\.tar: member at byte {members[1]['offset']}: cannot be read as audio .*convert"),
        ("missing.tar", members[0], r"missing\.tar: cannot be read \(No such file"),
        ("a.parquet", row(3), r"a\.parquet: row 3 of column 'audio': the file has 3 rows"),
        ("a.parquet", row(1), r"a\.parquet: row 1 of column 'audio': cannot be read as audio .*convert"),
        ("a.parquet", row(2), r"a\.parquet: row 2 of column 'audio': holds neither audio nor"),
        ("a.parquet", row(0, "n"), r"a\.parquet: row 0 of column 'n': holds neither audio nor"),
        ("a.parquet", row(0, "x"), r"a\.parquet: row 0 of column 'x': the file has no such column"),
        ("cut.parquet", row(0), r"cut\.parquet: .*fetch it again"),
        ("rotten.parquet", row(0), r"rotten\.parquet: "),
        ("no.arrow", row(0), r"no\.arrow: is no Parquet or Arrow file"),
        ("missing.parquet", row(0), r"missing\.parquet: cannot be read"),
    ]:
        with pytest.raises(UserError, match=reason) as error:
            UtteranceReader(tmp_path, RATE).read({"audio": name, "member": member})
        assert "\n" not in str(error.value)


OPENED = """
import random, sys
from pathlib import Path
from ttt_dist.audio.containers import DAMAGE, open_table
path, generator, names = Path(sys.argv[1]), random.Random(0), []
whole = path.read_bytes()
for _ in range(400):
    data = bytearray(whole)
    for _ in range(generator.choice([1, 1, 2, 4])):
        place = generator.choice([generator.randrange(len(data)), generator.randrange(1500)])
        data[place] = generator.choice([0, 255, data[place] ^ 1 << generator.randrange(8)])
    path.write_bytes(data)
    try:
        table = open_table(path)
        list(table.read(table.schema.names))
    except DAMAGE:
        names.append("refused")
print(len(names))
"""


@pytest.mark.parametrize("stream", [False, True])
def test_a_damaged_arrow_file_is_refused_and_ends_no_process(tmp_path: Path, stream: bool) -> None:
    table = pa.table({"audio": [{"bytes": bytes([n]) * 300, "path": "x"} for n in range(50)], "text": ["hello"] * 50})
    open_writer = pa.ipc.new_stream if stream else pa.ipc.new_file
    with open_writer(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=20)
    command = [sys.executable, "-c", OPENED, str(tmp_path / "a.arrow")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert 50 < int(done.stdout) < 350


@pytest.mark.parametrize("stream", [False, True])
def test_an_arrow_file_that_is_not_whole_is_never_read_as_a_shorter_one(tmp_path: Path, stream: bool) -> None:
    """Whatever byte it ends at, and whichever of its lengths becomes zero."""
    table, path = pa.table({"text": [f"row {n}" for n in range(40)]}), tmp_path / "a.arrow"
    for legacy in (True, False):
        options = pa.ipc.IpcWriteOptions(use_legacy_format=legacy)
        with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=20)
        assert len(list(containers.open_table(path).read(["text"]))) == 40
    whole = path.read_bytes()
    lengths = [place + 4 for place in range(0, len(whole) - 12, 8) if whole[place : place + 4] == containers.MARK]
    zeroed = [whole[:place] + bytes(4) + whole[place + 4 :] for place in lengths if any(whole[place : place + 4])]
    assert len(zeroed) == 3  # the schema and two batches
    for content in (*zeroed, *(whole[:size] for size in range(0, len(whole), 4))):
        path.write_bytes(content)
        with pytest.raises((*containers.DAMAGE, UserError)):
            list(containers.open_table(path).read(["text"]))
