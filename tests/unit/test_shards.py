"""Shards on disk: what is written is read back, every damage is found, and a failed write leaves nothing behind."""

import errno
import json
import resource
import shutil
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.megatron_files import indexed_dataset
from tests.structures import packs, tiny_layout
from ttt_dist.config.objective import Objective
from ttt_dist.data import metadata
from ttt_dist.data.document import Document, check_document
from ttt_dist.data.indexed import new_builder, open_indexed
from ttt_dist.data.metadata import with_suffix
from ttt_dist.data.shards import ShardReader, ShardWriter, to_document, to_samples
from ttt_dist.data.verify import verify
from ttt_dist.sequence.batch import collate
from ttt_dist.sequence.sample import Sample, Segment
from ttt_dist.util.errors import UserError

LAYOUT = tiny_layout(shuffle_seed=3)
SEQ_LEN = 64


def sample(*codes: int, text: tuple[int, ...] = (1, 2, 3)) -> Sample:
    """User audio, then text with the same audio."""
    audio = [LAYOUT.first_code + code for code in codes]
    prompt = [LAYOUT.im_start, LAYOUT.begin_of_audio, *audio, LAYOUT.end_of_audio]
    response = [*text, LAYOUT.begin_of_quad, *audio, LAYOUT.end_of_audio_span_last, LAYOUT.im_end]
    return Sample.of([Segment(np.array(prompt, np.int32), False), Segment(np.array(response, np.int32), True)])


def meta() -> dict:
    return {"layout": LAYOUT.to_dict(), "seq_len": SEQ_LEN}


def write(prefix: Path, documents: list[list[Sample]]) -> dict:
    with ShardWriter(prefix, meta()) as writer:
        for document in documents:
            writer.add(document)
    return metadata.read(prefix)


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A sound shard of five packs, with a tokenizer beside it."""
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.model").write_bytes(b"any bytes")
    write(tmp_path / "train", [[sample(i, 1, 2), sample(3, i)] for i in range(5)])
    assert verify(tmp_path / "train") == []
    return tmp_path / "train"


def same(a: Sample, b: Sample) -> bool:
    return a.ids.tolist() == b.ids.tolist() and a.is_target.tolist() == b.is_target.tolist() and a.key == b.key


@given(documents=packs(LAYOUT))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_written_packs_are_read_back(documents: list[list[Sample]], tmp_path: Path) -> None:
    documents = [document for document in documents if document] or [[sample(1)]]
    with ShardWriter(tmp_path / "any", {"layout": LAYOUT.to_dict(), "seq_len": 4096}) as writer:
        for document in documents:
            writer.add(document)
    reader = ShardReader(tmp_path / "any")
    assert len(reader) == len(documents)
    for index, document in enumerate(documents):
        assert all(same(a, b) for a, b in zip(reader[index], document, strict=True))
    assert reader.lengths().tolist() == [sum(map(len, document)) for document in documents]
    assert reader.layout == LAYOUT
    everything = [one for document in documents for one in document]
    counts = reader.meta["counts"]
    assert counts["samples"] == len(everything)
    assert counts["tokens"] == sum(map(len, everything))
    assert counts["audio_tokens"] == sum(int(LAYOUT.is_audio[one.ids].sum()) for one in everything)
    assert counts["target_tokens"] == sum(int(one.is_target.sum()) for one in everything)
    assert verify(tmp_path / "any") == []


def test_empty_segments_vanish_and_borders_of_samples_stay() -> None:
    empty = Segment(np.zeros(0, np.int32), False)
    document = to_document([Sample.of([empty, *sample(1).segments]), sample(2)])
    assert document.lengths.min() > 0
    assert all(same(a, b) for a, b in zip(to_samples(document), [sample(1), sample(2)], strict=True))


def test_other_megatron_tools_read_it(prefix: Path) -> None:
    dataset = indexed_dataset().IndexedDataset(str(prefix), multimodal=True)
    sequences, modes = dataset[0:4]
    assert modes.tolist() == [1, 2, 1, 2]
    assert np.concatenate(sequences).tolist() == [*sample(0, 1, 2).ids, *sample(3, 0).ids]


def test_equal_input_gives_equal_bytes(prefix: Path, tmp_path: Path) -> None:
    other = tmp_path / "again"
    shutil.copytree(prefix.parent / "tokenizer", other / "tokenizer")
    write(other / "train", [[sample(i, 1, 2), sample(3, i)] for i in range(5)])
    for suffix in (".bin", ".idx", ".json"):
        assert (other / f"train{suffix}").read_bytes() == prefix.with_suffix(suffix).read_bytes()


@given(data=st.data())
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_is_found(data: st.DataObject, prefix: Path) -> None:
    name = data.draw(st.sampled_from(["train.bin", "train.idx", "train.json", "tokenizer/tokenizer.model"]))
    path = prefix.parent / name
    good = path.read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[place] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(bad)
        assert verify(prefix), f"byte {place} of {name}"
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize("name", ["train.bin", "train.idx", "train.json", "tokenizer/tokenizer.model"])
@pytest.mark.parametrize("how", ["truncate", "empty", "append", "delete"])
def test_damaged_files_are_named(prefix: Path, name: str, how: str) -> None:
    path = prefix.parent / name
    content = path.read_bytes()
    if how == "delete":
        path.unlink()
    else:
        path.write_bytes({"truncate": content[:-3], "empty": b"", "append": content + b"x"}[how])
    problems = verify(prefix)
    assert len(problems) >= 1
    assert name.split("/")[0] in problems[0]
    if name in ("train.bin", "train.idx"):
        with pytest.raises(UserError, match=name):
            ShardReader(prefix)


def test_a_stale_index_is_found(prefix: Path) -> None:
    """An index of equal size that belongs to other packs."""
    write(prefix.parent / "other", [[sample(3, i), sample(i, 1, 2)] for i in range(5)])
    shutil.copy(prefix.parent / "other.idx", prefix.with_suffix(".idx"))
    assert any("train.idx" in problem for problem in verify(prefix))


def test_a_json_that_was_edited_consistently_is_still_checked_against_the_packs(prefix: Path) -> None:
    path = prefix.with_suffix(".json")
    values = json.loads(path.read_text())
    values["counts"]["audio_tokens"] += 1
    path.write_text(metadata.render(values))
    assert verify(prefix) == [f"{path}: counts 61 audio_tokens, the packs hold 60"]


def changed(change: Callable[[list[int]], None]) -> Document:
    document = to_document([sample(1, 2, 3), sample(4)])
    ids = document.ids.tolist()
    change(ids)
    return document._replace(ids=np.array(ids, np.int32))


# sample(1, 2, 3): 0 im_start, 1 begin, 2..4 codes, 5 end_of_audio; 6..8 text, 9 quad, 10..12 codes, 13 end, 14 im_end
BREACHES = {
    "outside the vocabulary": lambda ids: ids.__setitem__(3, LAYOUT.vocab_size),
    "is outside": lambda ids: ids.__setitem__(3, -1),
    "pad has no place": lambda ids: ids.__setitem__(7, LAYOUT.pad),
    "mask has no place": lambda ids: ids.__setitem__(11, LAYOUT.mask),
    "without a start-of-audio": lambda ids: ids.__setitem__(7, LAYOUT.first_code),
    "in the middle of a span": lambda ids: ids.__setitem__(11, LAYOUT.end_of_audio_new),
    "no end of audio closes": lambda ids: ids.__setitem__(13, LAYOUT.first_code),
    "no end_of_audio follows": lambda ids: ids.__setitem__(5, 1),
}


@pytest.mark.parametrize("message", BREACHES)
def test_breaches_of_the_token_classes_are_named(message: str) -> None:
    assert list(check_document(changed(lambda ids: None), LAYOUT, SEQ_LEN)) == []
    assert any(message in problem for problem in check_document(changed(BREACHES[message]), LAYOUT, SEQ_LEN))


def test_breaches_of_the_structure_are_named() -> None:
    document = to_document([sample(1, 2, 3), sample(4)])
    for modes, message in (
        ([2, 2, 1, 2], "does not start a sample"),
        ([1, 2, 5, 2], "unknown bits"),
        ([1, 2, 1, 0], "no token of it is a target"),
    ):
        bad = document._replace(modes=np.array(modes, np.int8))
        assert any(message in problem for problem in check_document(bad, LAYOUT, SEQ_LEN))
    assert any("longer than seq_len" in problem for problem in check_document(document, LAYOUT, 10))


def test_verify_names_the_pack(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "bad", meta()) as writer:
        writer.add([sample(1)])
        writer.add_document(changed(lambda ids: ids.__setitem__(7, LAYOUT.pad)))
    assert verify(tmp_path / "bad")[0].startswith(f"{tmp_path / 'bad'}: pack 1: token 7: pad")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_with_full_disk(*_: object, **__: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


class FullDisk:
    """A file that takes nothing more, not even what is still buffered."""

    write = close = fail_with_full_disk


@pytest.mark.parametrize("moment", ["data", "index", "json"])
def test_full_disk_leaves_the_earlier_shard_and_nothing_else(
    prefix: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    before = {name: (prefix.parent / name).read_bytes() for name in ("train.bin", "train.idx", "train.json")}
    writer = ShardWriter(prefix, meta())
    if moment == "data":
        writer._builder.data_file.close()
        monkeypatch.setattr(writer._builder, "data_file", FullDisk())
    if moment == "index":
        monkeypatch.setattr(writer._builder, "finalize", fail_with_full_disk)
    if moment == "json":
        monkeypatch.setattr(Path, "write_text", fail_with_full_disk)
    with pytest.raises(UserError, match=r"train\.bin: no space left"), writer:
        writer.add([sample(5)])
    assert names(prefix.parent) == ["tokenizer", "train.bin", "train.idx", "train.json"]
    assert {name: (prefix.parent / name).read_bytes() for name in before} == before


def test_the_systems_own_refusal_to_write_more(prefix: Path) -> None:
    """A real limit (of file size) hits in the buffered write or in the flush that closing does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match=r"big\.bin: no space left"):
            write(prefix.parent / "big", [[sample(*range(10))]] * 400)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(prefix.parent) == ["tokenizer", "train.bin", "train.idx", "train.json"]
    assert verify(prefix) == []


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "train", meta())
    with suppress(KeyboardInterrupt), writer:
        writer.add([sample(1)])
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_a_shard_without_packs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to write"), ShardWriter(tmp_path / "train", meta()):
        pass
    assert names(tmp_path) == []


def test_missing_shard_and_foreign_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: no such shard"):
        ShardReader(tmp_path / "none")
    (tmp_path / "other.json").write_text('{"format": "another"}')
    with pytest.raises(UserError, match=r"other\.json: format 'another'"):
        ShardReader(tmp_path / "other")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UserError, match=r"list\.json: format 'list'"):
        ShardReader(tmp_path / "list")


def test_an_index_that_points_outside_is_named_when_read(prefix: Path) -> None:
    path = prefix.with_suffix(".idx")
    content = bytearray(path.read_bytes())
    num_sequences = 20
    content[34 + 4 * num_sequences + 8 * 4 + 6] = 1  # high byte of the pointer of pack 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train\.idx: checksum differs"):
        ShardReader(prefix)[1]
    meta = metadata.read(prefix)
    del meta["files"]["train.idx"]["sha256"]
    prefix.with_suffix(".json").write_text(metadata.render(meta))
    with pytest.raises(UserError, match=r"train\.idx: pack 1 lies outside"):
        ShardReader(prefix)[1]
    with pytest.raises(UserError, match=r"train\.idx: pack 1 lies outside"):
        ShardReader(prefix).documents(np.array([0, 1]))


@given(
    flips=st.lists(st.tuples(st.sampled_from([".bin", ".idx"]), st.integers(0, 10**6), st.integers(1, 255)), min_size=1)
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_that_changed_are_told_by_their_shard(prefix: Path, flips: list[tuple[str, int, int]]) -> None:
    """Of equal size, in a shard of a set: a pack is read as a sound one, or refused by name; nothing else ever fails on it."""
    content = {suffix: bytearray(with_suffix(prefix, suffix).read_bytes()) for suffix in (".bin", ".idx")}
    before = {suffix: bytes(some) for suffix, some in content.items()}
    for suffix, at, bits in flips:
        content[suffix][at % len(content[suffix])] ^= bits
    try:
        for suffix, some in content.items():
            with_suffix(prefix, suffix).write_bytes(some)
        told = []
        for index in range(5):
            try:
                reader = ShardReader(prefix)
                batch = collate([reader[index]], LAYOUT, Objective(), 0, [0], SEQ_LEN)
                assert 0 <= int(batch.input_ids.min()) <= int(batch.input_ids.max()) < LAYOUT.padded_vocab_size
            except UserError as error:
                told.append(str(error))
        assert all(message.startswith(f"{prefix}.") for message in told)
        assert len(told) == 5 or content[".idx"] == before[".idx"]
    finally:
        for suffix, some in before.items():
            with_suffix(prefix, suffix).write_bytes(some)


def test_a_changed_shard_of_a_set_is_named_with_its_own_pack(tmp_path: Path) -> None:
    names = [f"train-{number:05d}-of-00002" for number in range(2)]
    metas = [write(tmp_path / name, [[sample(number, i)] for i in range(3)]) for number, name in enumerate(names)]
    counts = {key: sum(one["counts"][key] for one in metas) for key in metas[0]["counts"]}
    joined = {"format": metadata.FORMAT, **meta(), "shards": names, "counts": counts, "files": {}}
    (tmp_path / "train.json").write_text(metadata.render(joined))
    path = tmp_path / f"{names[1]}.bin"
    path.write_bytes(path.read_bytes()[:-4] + b"\xff\xff\xff\x7f")
    reader = ShardReader(tmp_path / "train")
    assert [len(reader[index]) for index in range(5)] == [1] * 5
    with pytest.raises(
        UserError, match=rf"{names[1]}\.bin: pack 2: token \d+: id 2147483647 is outside the vocabulary"
    ):
        reader[5]


def test_out_of_range_packs(prefix: Path) -> None:
    reader = ShardReader(prefix)
    for index in (-1, 5):
        with pytest.raises(IndexError):
            reader[index]


@pytest.mark.parametrize("multimodal", [False, True])
def test_our_reader_and_megatrons_agree(multimodal: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    megatron = indexed_dataset()
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "any.bin"), dtype=np.int32, multimodal=multimodal)
    for number in range(7):
        lengths = random.integers(1, 9, number % 3 + 1).tolist()
        modes = random.integers(-128, 128, len(lengths)).tolist() if multimodal else None
        builder.add_document(torch.from_numpy(random.integers(-9, 99, sum(lengths), np.int32)), lengths, modes)
    builder.finalize(str(tmp_path / "any.idx"))
    theirs = megatron.IndexedDataset(str(tmp_path / "any"), multimodal=multimodal)
    ours = open_indexed(tmp_path / "any", multimodal)
    index = ours.index
    for name in ("sequence_lengths", "sequence_pointers", "document_indices"):
        mine, other = getattr(index, name), getattr(theirs.index, name)
        assert mine.dtype == other.dtype and mine.tolist() == other.tolist(), name
    assert index.sequence_modes.tolist() == (theirs.index.sequence_modes.tolist() if multimodal else [])
    for pointer, length in zip(index.sequence_pointers.tolist(), index.sequence_lengths.tolist(), strict=True):
        wanted = theirs.bin_reader.read(dtype=np.int32, count=length, offset=pointer)
        assert ours.read(pointer, length).tolist() == wanted.tolist()
    if multimodal:
        pointers, *parts = zip(*map(ours.document, range(ours.num_documents)), strict=True)
        assert list(pointers) == index.sequence_pointers[index.document_indices[:-1]].tolist()
        for part, column in zip(parts, (index.sequence_lengths, index.sequence_modes), strict=True):
            assert np.concatenate(part).dtype == column.dtype and np.concatenate(part).tolist() == column.tolist()


def test_an_index_may_be_summed_twice(prefix: Path) -> None:
    data = open_indexed(prefix, multimodal=True)
    assert data.idx_sha256() == data.idx_sha256() == sha256(with_suffix(prefix, ".idx").read_bytes()).digest()


def test_a_negative_length_is_no_read_to_the_end(prefix: Path) -> None:
    with pytest.raises(ValueError, match="bytes 0 to -4"):
        open_indexed(prefix, multimodal=True).read(0, -1)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 0, "bad header"),
        (9, 2, "bad header"),
        (17, 99, "bad header"),
        (17, 5, "holds int64, not int32"),
        (25, 1, "asks for"),
    ],
)
def test_an_index_of_another_kind_is_refused(prefix: Path, place: int, value: int, message: str) -> None:
    content = bytearray(prefix.with_suffix(".idx").read_bytes())
    content[place] = value
    prefix.with_suffix(".idx").write_bytes(content)
    with pytest.raises(UserError, match=rf"train\.idx: .*{message}.*; write the shard again"):
        ShardReader(prefix)


def test_an_index_without_borders_is_refused(prefix: Path) -> None:
    content = bytearray(prefix.with_suffix(".idx").read_bytes())
    content[26:34] = bytes(8)
    prefix.with_suffix(".idx").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.idx: .*bad header"):
        ShardReader(prefix)


@pytest.mark.parametrize("multimodal", [False, True])
@given(documents=st.lists(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=4), max_size=3), max_size=4))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_files_are_those_of_megatrons_builder(
    tmp_path: Path, multimodal: bool, documents: list[list[list[int]]]
) -> None:
    builders = {
        "theirs": indexed_dataset().IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), np.int32, multimodal),
        "ours": new_builder(tmp_path / "ours.bin", multimodal),
    }
    for name, builder in builders.items():
        for document in documents:
            for number, ids in enumerate(document):
                builder.add_item(torch.tensor(ids, dtype=torch.int32), number)
            builder.end_document()
        builder.finalize(str(tmp_path / f"{name}.idx"))
    many = new_builder(tmp_path / "many.bin", multimodal)
    sequences = [ids for document in documents for ids in document]
    modes = [number for document in documents for number in range(len(document))]
    content = np.array([i for ids in sequences for i in ids], "<i4").tobytes()
    many.add_documents(content, [len(ids) for ids in sequences], modes, [len(document) for document in documents])
    many.finalize(tmp_path / "many.idx")
    for suffix in ("bin", "idx"):
        theirs = (tmp_path / f"theirs.{suffix}").read_bytes()
        assert [(tmp_path / f"{name}.{suffix}").read_bytes() for name in ("ours", "many")] == [theirs, theirs]


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_an_empty_file_is_named(tmp_path: Path, suffix: str) -> None:
    builder = new_builder(tmp_path / "any.bin", multimodal=False)
    builder.add_item([1])
    builder.end_document()
    builder.finalize(tmp_path / "any.idx")
    (tmp_path / f"any{suffix}").write_bytes(b"")
    with pytest.raises(UserError, match=rf"any\{suffix}: is empty; write the shard again"):
        open_indexed(tmp_path / "any", multimodal=False)
