"""Sets of many shards: one index for all, files opened when they are read, few at a time; and whatever is wrong is told by name."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.structures import tiny_layout
from tools.simulate.counting import COUNTER, handles
from ttt_dist.data import metadata, set_index
from ttt_dist.data.metadata import with_suffix
from ttt_dist.data.set_index import Check, index_of_set, load_index, open_index
from ttt_dist.data.shards import OPEN_SHARDS, ShardReader, ShardWriter, _open_shard
from ttt_dist.data.verify import _verify_index, verify
from ttt_dist.sequence.sample import Sample, Segment
from ttt_dist.util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = tiny_layout()
SHARDS, PACKS = 3 * OPEN_SHARDS, 3


def sample(number: int) -> Sample:
    """A prompt and an answer that tell the number of their pack."""
    return Sample.of([Segment(np.array([number % 20, 1], np.int32), False), Segment(np.array([2], np.int32), True)])


def make_set(folder: Path, num_shards: int = SHARDS) -> Path:
    """A set of an earlier version: one JSON that lists its shards, and no index."""
    common = {"layout": LAYOUT.to_dict(), "seq_len": 12}
    names = [f"train-{number:05d}-of-{num_shards:05d}" for number in range(num_shards)]
    counts: dict[str, int] = {}
    for number, name in enumerate(names):
        with ShardWriter(folder / name, common) as writer:
            for pack in range(PACKS):
                writer.add([sample(PACKS * number + pack)] * (1 + pack))
        of_shard = metadata.read(folder / name)["counts"]
        counts = {key: counts.get(key, 0) + of_shard[key] for key in of_shard}
    files = {
        f"{name}.json": {"bytes": (folder / f"{name}.json").stat().st_size, "sha256": sha256(folder / f"{name}.json")}
        for name in names
    }
    meta = {"format": metadata.FORMAT, **common, "shards": names, "counts": counts, "files": files, "beside": {}}
    (folder / "train.json").write_text(metadata.render(meta))
    return folder / "train"


def sha256(path: Path) -> str:
    from hashlib import sha256 as digest

    return digest(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("set"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """To be damaged."""
    return make_set(tmp_path, 4)


def first_tokens(reader: ShardReader) -> list[int]:
    return [int(reader[index][0].ids[0]) for index in range(len(reader))]


def test_who_comes_first_makes_the_index_and_the_others_read_two_files(prefix: Path) -> None:
    with_suffix(prefix, ".shards").unlink(missing_ok=True)
    COUNTER.watch(prefix.parent)
    made = open_index(prefix)
    assert COUNTER.calls.opens > SHARDS
    COUNTER.watch(prefix.parent)
    reader = ShardReader(prefix, "nothing")
    assert (COUNTER.calls.opens, COUNTER.calls.stats) == (2, 0)
    assert len(reader) == SHARDS * PACKS == made.ends[-1]
    assert reader.meta == {key: value for key, value in metadata.read(prefix).items() if key not in ("shards", "files")}
    assert verify(prefix) == []


def test_packs_are_those_of_the_shards_one_by_one(prefix: Path) -> None:
    reader = ShardReader(prefix)
    assert first_tokens(reader) == [number % 20 for number in range(SHARDS * PACKS)]
    assert [len(reader[index]) for index in range(PACKS)] == [1, 2, 3]
    assert reader.lengths().tolist() == [3, 6, 9] * SHARDS
    chosen = np.random.default_rng(0).permutation(len(reader))
    found = reader.documents(chosen)
    assert [one.ids[0] for one in found] == [number % 20 for number in chosen]


@pytest.mark.parametrize(("check", "stats", "listings"), [("sizes", 2 * SHARDS, 0), ("names", 0, 1), ("nothing", 0, 0)])
def test_what_is_asked_of_the_files(prefix: Path, check: Check, stats: int, listings: int) -> None:
    open_index(prefix)
    COUNTER.watch(prefix.parent)
    ShardReader(prefix, check)
    assert (COUNTER.calls.stats, COUNTER.calls.listings) == (stats, listings)


@pytest.mark.parametrize("is_far", [False, True])
def test_threads_ask_for_sizes_where_the_file_system_is_far_away(
    is_far: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(set_index, "PROBED", 10)
    monkeypatch.setattr(set_index, "NEAR_S", 0.0 if is_far else 100.0)
    prefix = make_set(tmp_path)
    asked, real = [], os.stat

    def stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if str(path).endswith((".bin", ".idx")):
            asked.append((str(path), threading.current_thread() is threading.main_thread()))
        return real(path, *arguments, **options)

    index = open_index(prefix)
    monkeypatch.setattr(os, "stat", stat)
    index.require_files(tmp_path, "sizes")
    assert len({path for path, _ in asked}) == len(asked) == 2 * SHARDS
    assert sum(is_main for _, is_main in asked) == (2 * 10 if is_far else 2 * SHARDS)
    for number in (0, 10, SHARDS - 1):
        name = f"train-{number:05d}-of-{SHARDS:05d}.idx"
        os.rename(tmp_path / name, tmp_path / "away")
        with pytest.raises(UserError, match=name):
            index.require_files(tmp_path, "sizes")
        os.rename(tmp_path / "away", tmp_path / name)


def test_few_files_are_open_however_many_are_read(prefix: Path) -> None:
    _open_shard.cache_clear()
    before = handles()
    readers = [ShardReader(prefix) for _ in range(3)]
    for reader in readers:
        first_tokens(reader)
    assert 0 < handles() - before <= 2 * OPEN_SHARDS + len(readers)
    del readers, reader
    _open_shard.cache_clear()
    assert handles() == before


def test_an_index_is_read_once_however_often_its_shard_is_opened(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ttt_dist.data.indexed import Indexed

    summed = []
    real = Indexed.idx_sha256
    monkeypatch.setattr(Indexed, "idx_sha256", lambda self: summed.append(self) or real(self))
    reader = ShardReader(prefix)
    first_tokens(reader)
    first_tokens(reader)
    assert len(summed) == SHARDS


def removed(path: Path) -> None:
    path.unlink()


def shortened(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4)


def exchanged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize(("damage", "says"), [(removed, "missing"), (shortened, "bytes")])
def test_a_damaged_file_is_told_at_the_start_and_when_it_is_read(
    small: Path, damage: Any, says: str, suffix: str
) -> None:
    name = "train-00002-of-00004"
    damage(small.with_name(f"{name}{suffix}"))
    told = rf"{name}\{suffix}: .*{says}.*; write the shard again"
    with pytest.raises(UserError, match=told):
        ShardReader(small)
    if damage is removed:
        with pytest.raises(UserError, match=told):
            ShardReader(small, "names")
    reader = ShardReader(small, "nothing")
    assert len(reader[0]) == 1
    for _ in range(2):
        with pytest.raises(UserError, match=rf"{name}\{suffix}: "):
            reader[2 * PACKS]


def test_changed_bytes_of_an_idx_are_told_when_its_shard_is_read(small: Path) -> None:
    exchanged(small.with_name("train-00002-of-00004.idx"))
    reader = ShardReader(small)
    assert len(reader[0]) == 1
    with pytest.raises(UserError, match=r"train-00002-of-00004\.idx: checksum differs"):
        reader[2 * PACKS]


def test_a_shard_of_other_packs_than_its_json_says(small: Path) -> None:
    """A JSON that was edited consistently: the sum is no longer the set's, and where that was edited too, the shard tells."""
    name = small.with_name("train-00001-of-00004")
    meta = metadata.read(name)
    meta["counts"]["packs"] += 1
    with_suffix(name, ".json").write_text(metadata.render(meta))
    with pytest.raises(UserError, match=r"train\.json: says 12 packs, its shards have 13"):
        ShardReader(small)
    meta = metadata.read(small)
    meta["counts"]["packs"] += 1
    with_suffix(small, ".json").write_text(metadata.render(meta))
    reader = ShardReader(small)
    with pytest.raises(UserError, match=r"train-00001-of-00004\.idx: 3 documents, its JSON says 4"):
        reader[PACKS]


@given(place=st.integers(0, 10**6), bits=st.integers(1, 255))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_index_with_a_changed_byte_is_made_again(prefix: Path, place: int, bits: int) -> None:
    right = index_of_set(prefix, metadata.read(prefix))
    path = with_suffix(prefix, ".shards")
    right.write(prefix)
    content = bytearray(path.read_bytes())
    before = bytes(content)
    content[place % len(content)] ^= bits
    path.write_bytes(content)
    assert load_index(prefix) is None
    assert _verify_index(prefix, metadata.read(prefix)) == [
        f"{path}: differs from its shards; remove it, it is made again"
    ]
    again = open_index(prefix)
    assert path.read_bytes() == before
    assert again.meta == right.meta and (again.ends == right.ends).all()


@pytest.mark.parametrize("content", [b"", b"TTTSHRD1", b"\0" * 500])
def test_what_is_no_index_is_made_again(small: Path, content: bytes) -> None:
    with_suffix(small, ".shards").write_bytes(content)
    assert len(ShardReader(small)) == 12
    assert load_index(small) is not None


def test_an_index_belongs_to_its_json(small: Path) -> None:
    ShardReader(small)
    meta = metadata.read(small)
    meta["seq_len"] = 16
    with_suffix(small, ".json").write_text(metadata.render(meta))
    assert load_index(small) is None
    assert ShardReader(small).seq_len == 16


def test_an_index_that_lies_is_found_by_verify(small: Path) -> None:
    from dataclasses import replace

    index = open_index(small)
    replace(index, names=index.names[::-1].copy()).write(small)
    assert verify(small) == [f"{small}.shards: differs from its shards; remove it, it is made again"]


def test_without_a_place_to_write_each_process_reads_the_jsons(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(set_index, "MANY", 3)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert first_tokens(ShardReader(small)) == list(range(12))
    assert not with_suffix(small, ".shards").exists()
    assert "each process reads 4 JSONs; run `python -m data_prep stats" in capsys.readouterr().err


def test_a_full_disk_keeps_nobody_from_reading(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise UserError("no space left on the disk")

    monkeypatch.setattr(set_index.SetIndex, "write", full)
    assert len(ShardReader(small)) == 12
    assert not with_suffix(small, ".shards").exists()


def test_the_index_of_earlier_sets_is_what_pack_writes(small: Path) -> None:
    written = open_index(small)
    made = index_of_set(small, metadata.read(small))
    for name in ("ends", "num_bytes", "idx_sha256", "names"):
        np.testing.assert_array_equal(getattr(written, name), getattr(made, name))


AT_256 = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
import numpy as np
from pathlib import Path
from ttt_dist.config.data import DataConfig, SourceConfig
from ttt_dist.data.shards import ShardReader
from ttt_dist.data.sources import Sources
from ttt_dist.data.verify import _verify_index, verify
prefix = Path(sys.argv[1])
blend = {f"s{n}": SourceConfig(shard=f"{prefix.parent}/./" + "./" * n + prefix.name, weight=1) for n in range(12)}
sources = Sources.open(DataConfig(blend=blend))
for reader in sources.readers.values():
    reader.documents(np.arange(len(reader)))
assert verify(prefix) == []
assert len(ShardReader(prefix).lengths()) == 1800
"""


@pytest.mark.slow
def test_everything_works_with_256_handles(tmp_path: Path) -> None:
    prefix = make_set(tmp_path, 600)
    done = subprocess.run(
        [sys.executable, "-c", AT_256, str(prefix)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
