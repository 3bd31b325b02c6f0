"""Plain text sets of Megatron in a blend: which tokens a row has, what is refused, no copy, one order whatever the ranks."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import text_set as benchmark
from tests.distributed.cases import ROOT
from tests.megatron_files import indexed_dataset
from tests.structures import NUM_TEXT, tiny_layout
from ttt_dist.checkpoint.export import assets_folder
from ttt_dist.config.data import DataConfig, SourceConfig
from ttt_dist.config.run import Config, TrainConfig
from ttt_dist.data import text_set
from ttt_dist.data.loader import open_loaders
from ttt_dist.data.shards import ShardReader, ShardWriter
from ttt_dist.data.sources import Sources
from ttt_dist.data.text_set import TextSet
from ttt_dist.sequence.sample import Sample, Segment
from ttt_dist.training.dry_run import describe_data
from ttt_dist.util.errors import UserError

LAYOUT = tiny_layout()
SEQ_LEN = 32


def write_text(prefix: Path, documents: list[list[list[int]]], dtype: type = np.uint16) -> Path:
    """A set as preprocess_data.py writes it, by Megatron's own builder: documents of sentences."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = indexed_dataset().IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        builder.add_document([token for sentence in document for token in sentence], [len(one) for one in document])
    builder.finalize(f"{prefix}.idx")
    return prefix


def write_packs(prefix: Path, num_packs: int = 6) -> str:
    spoken = [LAYOUT.begin_of_audio, *LAYOUT.code_ids(np.arange(9)), LAYOUT.end_of_audio_span_last, LAYOUT.im_end]
    with ShardWriter(prefix, {"layout": LAYOUT.to_dict(), "seq_len": SEQ_LEN}) as writer:
        for number in range(num_packs):
            writer.add(
                [Sample.of([Segment(np.array([number], np.int32), False), Segment(np.array(spoken, np.int32), True)])]
            )
    return str(prefix)


def numbered(lengths: list[list[int]]) -> list[list[list[int]]]:
    """Documents of sentences of these lengths; each token says where it stands, modulo the vocabulary."""
    count = iter(range(10**9))
    return [[[next(count) % NUM_TEXT for _ in range(length)] for length in document] for document in lengths]


documents_of = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=3), min_size=1, max_size=90)


@given(lengths=documents_of, seq_len=st.integers(2, 40), dtype=st.sampled_from([np.uint16, np.int32]))
@settings(max_examples=60)
def test_rows_are_the_mixed_documents_cut(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[list[int]], seq_len: int, dtype: type
) -> None:
    documents = numbered(lengths)
    prefix = write_text(tmp_path_factory.mktemp("text") / "a", documents, dtype)
    if sum(map(sum, lengths)) < 2:
        with pytest.raises(UserError, match="holds no text|is empty"):
            TextSet(prefix, LAYOUT, seq_len)
        return
    rows = TextSet(prefix, LAYOUT, seq_len)
    whole = [[token for sentence in document for token in sentence] for document in documents]
    order = [
        (number, place, token) for number in rows._mixed(0, len(whole)) for place, token in enumerate(whole[number])
    ]
    assert sorted(rows._mixed(0, len(whole)).tolist()) == list(range(len(whole)))
    for index in range(len(rows)):
        expected: dict[int, list[int]] = {}
        for number, _, token in order[index * (seq_len - 1) : index * (seq_len - 1) + seq_len]:
            expected.setdefault(number, []).append(token)
        assert [s.ids.tolist() for s in rows[index]] == [ids for ids in expected.values() if len(ids) > 1]
        assert all(sample.is_target.all() for sample in rows[index])
    assert len(rows) * (seq_len - 1) + 1 >= len(order) > (len(rows) - 1) * (seq_len - 1)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=60), seq_len=st.integers(2, 40))
@settings(max_examples=30)
def test_every_token_but_the_first_of_a_document_is_a_target_once(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seq_len: int
) -> None:
    prefix = write_text(tmp_path_factory.mktemp("text") / "a", numbered([[length + 1] for length in lengths]))
    rows = TextSet(prefix, LAYOUT, seq_len)
    targets = sum(len(sample) - 1 for index in range(len(rows)) for sample in rows[index])
    assert targets == sum(lengths)


def test_a_row_is_that_of_megatrons_own_reader(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(1, 80, size=3000).tolist()
    prefix = write_text(tmp_path / "a", numbered([[length] for length in lengths]))
    theirs, rows = indexed_dataset().IndexedDataset(str(prefix)), TextSet(prefix, LAYOUT, SEQ_LEN)
    order = rows._mixed(0, len(lengths)).tolist()
    tokens, owners = (
        np.concatenate([theirs[number] for number in order]),
        np.repeat(order, [lengths[n] for n in order]),
    )
    for index in range(0, len(rows), 97):
        row = slice(index * (SEQ_LEN - 1), index * (SEQ_LEN - 1) + SEQ_LEN)
        pieces = np.split(tokens[row], np.flatnonzero(np.diff(owners[row])) + 1)
        assert [s.ids.tolist() for s in rows[index]] == [piece.tolist() for piece in pieces if len(piece) > 1]


def test_the_documents_of_a_row_lie_all_over_the_set(tmp_path: Path) -> None:
    """A set that is sorted by its sources is not read source by source."""
    rows = TextSet(write_text(tmp_path / "a", [[[number // 50] * 4] for number in range(1000)]), LAYOUT, 161)
    for index in range(len(rows) - 1):
        sources = [int(sample.ids[0]) for sample in rows[index]]
        assert len(set(sources)) >= 18


def test_counting_in_chunks_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = write_text(tmp_path / "a", numbered([[1 + number % 7, 2] for number in range(500)]))
    whole = TextSet(prefix, LAYOUT, SEQ_LEN)
    monkeypatch.setattr(text_set, "CHUNK", 2 * text_set.GROUP)
    assert TextSet(prefix, LAYOUT, SEQ_LEN)._group_ends.tolist() == whole._group_ends.tolist()
    assert whole.counts["tokens"] == sum(3 + number % 7 for number in range(500))


def test_an_end_of_document_that_is_the_pad_is_left_out(tmp_path: Path) -> None:
    layout = tiny_layout()
    layout.special_ids["pad"] = 3  # as where <|endoftext|> is both
    rows = TextSet(write_text(tmp_path / "a", [[[1, 2, 5, 3, 6, 7, 3]]]), layout, SEQ_LEN)
    assert [sample.ids.tolist() for sample in rows[0]] == [[1, 2, 5], [6, 7]]


def test_ids_that_are_no_text_are_named(tmp_path: Path) -> None:
    prefix = write_text(tmp_path / "a", [[[1, 2, 3]], [[4, NUM_TEXT, 5]]])
    with pytest.raises(
        UserError, match=rf"a\.bin: document 1, token 1: id {NUM_TEXT} is no text of the tokenizer tiny"
    ):
        TextSet(prefix, LAYOUT, SEQ_LEN)
    write_text(prefix, [[[1, -2, 3]]], np.int32)
    with pytest.raises(UserError, match="document 0, token 1: id -2"):
        TextSet(prefix, LAYOUT, SEQ_LEN)


def test_broken_sets_are_refused(tmp_path: Path) -> None:
    prefix = write_text(tmp_path / "a", numbered([[4], [5], [6]]))
    index, tokens = (tmp_path / "a.idx").read_bytes(), (tmp_path / "a.bin").read_bytes()

    def refused(message: str, new_index: bytes = index, new_tokens: bytes = tokens) -> None:
        (tmp_path / "a.idx").write_bytes(new_index)
        (tmp_path / "a.bin").write_bytes(new_tokens)
        with pytest.raises(UserError, match=message):
            TextSet(prefix, LAYOUT, SEQ_LEN)

    refused(r"a\.bin: 28 bytes, but its index asks for 30", new_tokens=tokens[:-2])
    refused(r"a\.idx: says more than a text set does", new_index=index + b"\0\0\0")
    refused("not a readable Megatron index", new_index=index[:-8])
    refused("holds float32", new_index=index[:17] + b"\7" + index[18:])
    lengths = 34
    refused("do not lie one after the other", new_index=index[:lengths] + b"\3" + index[lengths + 1 :])
    pointers = lengths + 3 * 4
    refused("do not lie one after the other", new_index=index[: pointers + 8] + b"\4" + index[pointers + 9 :])


def blend(folder: Path, **text: object) -> DataConfig:
    """A blend of a shard of packs and a text set."""
    if not (folder / "speech/train.json").exists():
        write_packs(folder / "speech/train")
        write_text(folder / "corpus_text_document", numbered([[1 + number % 40] for number in range(300)]))
    sources = {
        "speech": SourceConfig(str(folder / "speech/train"), weight=0.5),
        "a_text": SourceConfig(str(folder / "corpus_text_document"), weight=0.5, **text),  # type: ignore[arg-type]
    }
    return DataConfig(blend=sources)


def test_a_blend_reads_rows_and_packs_alike_on_any_ranks(tmp_path: Path) -> None:
    config = Config(data=blend(tmp_path), train=TrainConfig(global_batch=8))

    def rows(step: int, micro: int, size: int) -> list[tuple[list[int], list[int], list[int]]]:
        config.train.micro_batch = micro
        loaders = [open_loaders(config, rank, size)[0] for rank in range(size)]
        steps = [loader.step(step) for loader in loaders]
        for loader in loaders:
            loader.close()
        batches = [batch for number in range(8 // (micro * size)) for batch in (one[number] for one in steps)]
        names = ("input_ids", "sample_ids", "ar_targets")
        return [tuple(getattr(b, n)[row].tolist() for n in names) for b in batches for row in range(micro)]  # type: ignore[misc]

    first = rows(5, 1, 1)
    assert first == rows(5, 2, 2) == rows(5, 4, 2)
    assert first != rows(6, 1, 1)
    # Documents of a row are samples of their own: attention and positions begin anew in each.
    assert max(max(sample_ids) for _, sample_ids, _ in first) > 1


def test_the_text_is_a_source_like_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(data=blend(tmp_path))
    loader, _ = open_loaders(config, 0, 1)
    warned = capsys.readouterr().err
    assert f"{tmp_path}/corpus_text_document.idx: does not say which tokenizer made its ids" in warned
    assert "data.blend.a_text.tokenizer" in warned
    assert loader.sources.first.prefix == tmp_path / "speech/train"
    assert assets_folder(config) == tmp_path / "speech"
    number = len(loader.sources.readers["a_text"])
    line = f"a_text: {tmp_path}/corpus_text_document: {number:,} packs of 32 tokens, 300 samples, 5,950 tokens"
    assert describe_data(loader, 10)[0].startswith(line)
    loader.close()


def test_text_may_be_held_out(tmp_path: Path) -> None:
    data = blend(tmp_path)
    data.valid = str(write_text(tmp_path / "held_text_document", numbered([[30]] * 9)))
    loader, held_out = open_loaders(Config(data=data), 0, 1)
    loader.close()
    (held,) = held_out.values()
    assert len(held) == 9
    assert sum(batch.ar_tokens for batch in held) == 9 * 29


def test_the_tokenizer_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        hash = LAYOUT.tokenizer_hash

    from ttt_dist.sequence import text_tokenizer

    monkeypatch.setattr(text_tokenizer, "load_tokenizer", lambda path: Found())
    Sources.open(blend(tmp_path, tokenizer="mine"))
    Found.hash = "1" * 64
    with pytest.raises(
        UserError, match=r"data\.blend\.a_text\.tokenizer=mine: has hash 1{12}, the tokenizer of .* 0{12}"
    ):
        Sources.open(blend(tmp_path, tokenizer="mine"))
    data = blend(tmp_path)
    data.blend["speech"].tokenizer = "mine"
    with pytest.raises(UserError, match=r"data\.blend\.speech\.tokenizer=mine: .*train\.json says which it is"):
        Sources.open(data)


def test_text_alone_says_no_layout(tmp_path: Path) -> None:
    data = blend(tmp_path)
    text = data.blend.pop("a_text")
    with pytest.raises(UserError, match="all sources are plain text sets"):
        Sources.open(DataConfig(blend={"a_text": text}))
    with ShardWriter(tmp_path / "samples", {"layout": LAYOUT.to_dict(), "seq_len": None}) as writer:
        writer.add([Sample.of([Segment(np.array([1, 2], np.int32), True)])])
    samples = SourceConfig(str(tmp_path / "samples"), weight=1)
    with pytest.raises(UserError, match=r"samples: has no packs, .*corpus_text_document.* run data_prep pack"):
        Sources.open(DataConfig(blend={"a_text": text, "samples": samples}))
    with pytest.raises(UserError, match=r"as a source of data\.blend beside packed shards: data\.blend\.text\.shard="):
        Sources.open(DataConfig(train=text.shard))
    with pytest.raises(UserError, match=r"as a source of data\.blend beside packed shards"):
        ShardReader(f"{text.shard}.bin")


@pytest.mark.slow
def test_megatrons_gpt_dataset_reads_packs_but_not_as_packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/data.md says of it: prompts and answers are documents of their own, and rows are cut across packs."""
    monkeypatch.setattr(benchmark, "SEQ_LEN", 16)
    rows = benchmark.gpt_dataset(Path(write_packs(tmp_path / "train", 6)))
    reader = ShardReader(tmp_path / "train")
    assert sorted(rows.document_index.tolist()) == list(range(12)), "two segments a pack"
    read = [rows[index]["tokens"].tolist() for index in range(len(rows))]
    packs = [[token for sample in pack for token in sample.ids.tolist()] for pack in map(reader.__getitem__, range(6))]
    assert sum(str(pack)[1:-1] in str(row) for pack in packs for row in read) < 3, "most prompts have lost their answer"


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.text_set",
        "--documents",
        "3000",
        "--rows",
        "5",
        "--out",
        str(tmp_path / "out.md"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    sides = json.loads(done.stdout.splitlines()[-1])["sides"]
    assert set(sides) == set(benchmark.SIDES)
    assert all(figures["row_ms"] > 0 <= figures["memory_mb"] for figures in sides.values())
    assert {figures["num_rows"] for figures in sides.values()} != {0}
    assert "| ours |" in (tmp_path / "out.md").read_text()


def test_packs_without_their_json_are_no_text(tmp_path: Path) -> None:
    data = blend(tmp_path)
    write_packs(tmp_path / "lost/train")
    (tmp_path / "lost/train.json").unlink()
    data.blend["a_text"].shard = str(tmp_path / "lost/train")
    with pytest.raises(UserError, match=r"train\.idx: says more than a text set does .*; of packs the JSON is missing"):
        Sources.open(data)
