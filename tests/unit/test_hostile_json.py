"""JSON of the wrong type, encoding, depth or size, wherever a command reads what says what other files are: one line each."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from data_prep.check import check
from data_prep.corpus_report import provenance
from data_prep.readers import ReaderOptions
from data_prep.readers.huggingface import read_hf
from tests.structures import tiny_layout
from ttt_dist.audio import describe_codec, load_codec
from ttt_dist.audio.codecs.published import weight_files
from ttt_dist.data import metadata
from ttt_dist.data.metadata import with_suffix
from ttt_dist.data.shards import ShardReader
from ttt_dist.data.verify import verify
from ttt_dist.jobs.parts import find_parts, write_part
from ttt_dist.manifest.problems import Problems
from ttt_dist.model.hf.tensor_files import INDEX, SINGLE, TensorFolder
from ttt_dist.sequence.tokens import MAX_IDS, TokenLayout
from ttt_dist.util.errors import MAX_MESSAGE, UserError
from ttt_dist.util.json_files import MAX_BYTES, read_object

GOLDEN = Path(__file__).parents[1] / "golden" / "files" / "shards"
HOSTILE = [
    b"", b"\xff\xfe{\x00}\x00", b"null", b"[]", b"7", b'"x"', b"{", b"{}", b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"a":' * 50_000,
    b'{"hash": "\\ud800", "name": "\\ud800"}', b'{"name": ' + b"9" * 5000 + b"}", b'{"name": NaN}', b'{"name": []}', b"\x00" * 64,
]  # fmt: skip
VALUES: list[Any] = [
    None, True, -1, 10**9, 10**12, 10**400, float("nan"), float("inf"), 1.5, "", "x", "9" * 10**6, [], [[]], {}, {"a": {}}, [None], "\ud800"
]  # fmt: skip


def told_by(what: Any, *arguments: Any) -> str:
    """The message of a refusal, or nothing; whatever else is raised fails the test."""
    try:
        found = what(*arguments)
        list(found) if isinstance(found, Iterator) else found
    except UserError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message and len(message) <= MAX_MESSAGE + 100
    return message


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "shards"
    shutil.copytree(GOLDEN, folder)
    return folder


def changed(values: Any, key: str, value: Any) -> Any:
    """A copy with the value at `a.b.c` replaced."""
    copy = json.loads(json.dumps(values))
    *above, last = key.split(".")
    inner = copy
    for name in above:
        inner = inner[name]
    inner[last] = value
    return copy


def keys_of(values: Any, prefix: str = "") -> Iterator[str]:
    for name, value in values.items() if isinstance(values, dict) else ():
        if "." not in name:
            yield prefix + name
            yield from keys_of(value, f"{prefix}{name}.")


def written(path: Path, values: Any) -> None:
    """Under a checksum of its own where it can have one, so that it is the value that is refused."""
    try:
        text = metadata.render(values)
        path.write_text(text, encoding="utf-8")
    except (ValueError, AttributeError):
        path.write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_files_that_are_no_such_json(tmp_path: Path, content: bytes) -> None:
    for name in (
        "train.json",
        "codec.json",
        "token_layout.json",
        "part-00000.json",
        "state.json",
        "dataset_dict.json",
        INDEX,
    ):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "m.jsonl.report.json").write_bytes(content)
    (tmp_path / "m.jsonl").write_bytes(b"")
    hf = ReaderOptions(source=tmp_path)
    assert told_by(ShardReader, tmp_path / "train").startswith(f"{tmp_path}/train.json: ")
    assert verify(tmp_path / "train")
    assert told_by(TokenLayout.load, tmp_path / "token_layout.json").startswith(f"{tmp_path}/token_layout.json: ")
    assert told_by(describe_codec, tmp_path).startswith(f"{tmp_path}/codec.json: ")
    assert told_by(load_codec, str(tmp_path)).startswith(f"{tmp_path}/codec.json: ")
    assert told_by(find_parts, tmp_path, "encode").startswith(f"{tmp_path}/part-00000.json: ")
    assert check(tmp_path, lambda: None)
    assert told_by(read_hf, hf, Problems(told=0)).startswith(f"{tmp_path}/dataset_dict.json: ")
    (tmp_path / "dataset_dict.json").unlink()
    assert told_by(read_hf, hf, Problems(told=0)).startswith(f"{tmp_path}/state.json: ")
    assert told_by(TensorFolder, tmp_path).startswith(f"{tmp_path}/{INDEX}: ")
    assert told_by(weight_files, tmp_path).startswith(f"{tmp_path}/{INDEX}: ")
    assert provenance(tmp_path / "m.jsonl")["name"] == "m.jsonl"


def test_a_json_of_any_size_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    with open(path, "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(UserError, match="train.json: has more than"):
        ShardReader(tmp_path / "train")
    with pytest.raises(UserError, match="has more than"):
        read_object(path, "")


KEYS = sorted(keys_of(json.loads((GOLDEN / "valid.json").read_text())))


@pytest.mark.parametrize("key", KEYS)
def test_every_value_of_a_shard_may_be_wrong(work: Path, key: str) -> None:
    path = with_suffix(work / "valid", ".json")
    before = path.read_bytes()
    try:
        for value in VALUES:
            written(path, changed(json.loads(before), key, value))
            message = told_by(lambda: [ShardReader(work / "valid")[0], *map(str, verify(work / "valid"))])
            assert not message or message.startswith(f"{work}/valid.")
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("key", ["files", "shards", "counts", "seq_len", "beside", "layout", "layout.special_ids"])
def test_every_value_of_a_set_may_be_wrong(work: Path, key: str) -> None:
    path = work / "train.json"
    before = path.read_bytes()
    more = [
        ["train"],
        ["../valid"],
        ["a\0"],
        {"/etc/passwd": {"bytes": 1, "sha256": "x"}},
        {"a": {"bytes": float("inf")}},
    ]
    try:
        for value in [*VALUES, *more]:
            written(path, changed(json.loads(before), key, value))
            told_by(lambda: [ShardReader(work / "train")[0], *map(str, verify(work / "train"))])
    finally:
        path.write_bytes(before)


def test_sets_that_list_each_other_are_refused(work: Path, tmp_path: Path) -> None:
    values = json.loads((work / "train.json").read_text())
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.json").write_text(
            metadata.render({**values, "shards": [other], "files": {}, "beside": {}})
        )
    assert "a set of shards within a set" in verify(tmp_path / "a")[0]
    assert told_by(ShardReader, tmp_path / "a").startswith(f"{tmp_path}/b.bin: missing")


LAYOUT = tiny_layout().to_dict()


@pytest.mark.parametrize("key", sorted(keys_of(LAYOUT)))
def test_every_value_of_a_token_layout_may_be_wrong(tmp_path: Path, key: str) -> None:
    for value in VALUES:
        (tmp_path / "token_layout.json").write_text(json.dumps(changed(LAYOUT, key, value)))
        assert told_by(lambda: TokenLayout.load(tmp_path / "token_layout.json").is_audio) or value in (
            "",
            "x",
            "9" * 10**6,
            "\ud800",
        )


def test_a_layout_of_billions_of_ids_makes_no_table() -> None:
    with pytest.raises(UserError, match=r"x: token layout has padded_vocab_size 67108865, not a whole number"):
        TokenLayout.from_dict({**LAYOUT, "padded_vocab_size": MAX_IDS + 1}, "x")


@pytest.mark.parametrize(
    "key", ["parts", "part", "counts", "files", "problems", "files.part-00000.bin", "counts.utterances"]
)
def test_every_value_of_a_part_may_be_wrong(tmp_path: Path, key: str) -> None:
    part = {"part": 0, "parts": 1, "counts": {"utterances": 0}, "problems": [], "files": {}}
    for value in VALUES:
        values = {**part, "files": {}}
        above, _, last = key.partition(".")
        values |= {above: {**values[above], last: value}} if last else {above: value}
        try:
            write_part(tmp_path / "part-00000", values)
        except ValueError:
            continue  # a lone surrogate cannot be written
        told_by(find_parts, tmp_path, "encode")
        check(tmp_path, lambda: None)


@pytest.mark.parametrize("key", sorted(json.loads((GOLDEN / "codec" / "codec.json").read_text())))
def test_every_value_of_a_codec_may_be_wrong(work: Path, key: str) -> None:
    """Without memory of the size that it states: its hash is compared before anything is made."""
    path = work / "codec" / "codec.json"
    before = path.read_bytes()
    try:
        for value in [*VALUES, 200 * 10**6]:
            path.write_text(json.dumps({**json.loads(before), key: value}))
            told_by(describe_codec, work / "codec")
            message = told_by(load_codec, str(work / "codec"))
            assert message or key == "format"
    finally:
        path.write_bytes(before)
    assert load_codec(str(work / "codec")).hash == json.loads(before)["hash"]


@given(
    at=st.integers(0, 10**6),
    bits=st.integers(1, 255),
    name=st.sampled_from(["valid.json", "train.json", "codec/codec.json"]),
)
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_is_one_line(work: Path, at: int, bits: int, name: str) -> None:
    path = work / name
    before = path.read_bytes()
    content = bytearray(before)
    content[at % len(content)] ^= bits
    try:
        path.write_bytes(content)
        told_by(lambda: ShardReader(work / "train")[0])
        told_by(lambda: ShardReader(work / "valid")[0])
        told_by(load_codec, str(work / "codec"))
        assert verify(work / "valid") or verify(work / "train")
    finally:
        path.write_bytes(before)


# What a user may have meant by a prefix


def test_what_is_no_prefix_of_shards_is_told_by_its_remedy(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("valid.bin", "valid.idx", "valid.json"):
        assert told_by(ShardReader, work / name).endswith(f"name them all by their prefix: {work / 'valid'}")
    message = told_by(ShardReader, work)
    assert "a folder; name a shard in it" in message and f"{work / 'train'}, {work / 'valid'}" in message
    for suffix in (".bin", ".idx"):
        shutil.copy(with_suffix(work / "valid", suffix), tmp_path / f"plain_text_document{suffix}")
    for name in ("plain_text_document", "plain_text_document.bin"):
        message = told_by(ShardReader, tmp_path / name)
        assert "have no plain_text_document.json" in message and "data.blend" in message
    write_part(tmp_path / "samples" / "part-00000", {"parts": 1})
    assert "a folder of parts; run data_prep pack" in told_by(ShardReader, tmp_path / "samples")
    (tmp_path / "empty").mkdir()
    assert "a folder; run data_prep pack" in told_by(ShardReader, tmp_path / "empty")
    (tmp_path / "train.jsonl").write_text("{}")
    assert "a file of another kind; run data_prep compose" in told_by(ShardReader, tmp_path / "train.jsonl")
    assert "no such shard, or one that was never completed" in told_by(ShardReader, tmp_path / "nothing")
    monkeypatch.chdir(work)
    assert "a folder; name a shard in it: train, valid" in told_by(ShardReader, ".")


# Weights


def test_an_index_that_is_left_beside_a_whole_file_does_not_count(tmp_path: Path) -> None:
    """As for transformers: whoever saves a model anew in one file leaves the index of its shards."""
    weights = {"a": torch.ones(2, 3)}
    save_file(weights, tmp_path / SINGLE)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    assert torch.equal(TensorFolder(tmp_path).read("a"), weights["a"])
    assert weight_files(tmp_path) == [tmp_path / SINGLE]
