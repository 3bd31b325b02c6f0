"""The loader: rule 2 (one order) for batches, the same samples and noise however a step is cut, errors that surface."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.structures import tiny_layout
from ttt_dist.config.objective import Objective, ObjectiveStage
from ttt_dist.data.loader import PackLoader, ValidationLoader
from ttt_dist.data.shards import ShardReader, ShardWriter
from ttt_dist.data.sources import Sources
from ttt_dist.data.step_sizes import StepSizes
from ttt_dist.sequence.batch import Batch
from ttt_dist.sequence.sample import Sample, Segment
from ttt_dist.util.errors import UserError

LAYOUT = tiny_layout()
SEQ_LEN = 48
NUM_PACKS = 13


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    prefix = tmp_path_factory.mktemp("shards") / "train"
    rng = np.random.default_rng(0)
    with ShardWriter(prefix, {"layout": LAYOUT.to_dict(), "seq_len": SEQ_LEN}) as writer:
        for _ in range(NUM_PACKS):
            writer.add([_sample(rng) for _ in range(2)])
    return ShardReader(prefix)


def _sample(rng: np.random.Generator) -> Sample:
    codes = LAYOUT.code_ids(rng.integers(0, LAYOUT.num_codes, 11))
    prompt = np.array([LAYOUT.im_start, *rng.integers(0, 20, 3)], np.int32)
    response = [*rng.integers(0, 20, 4), LAYOUT.begin_of_quad, *codes, LAYOUT.end_of_audio_span_last, LAYOUT.im_end]
    return Sample.of([Segment(prompt, False), Segment(np.array(response, np.int32), True)])


def loader(
    reader: ShardReader,
    global_batch: int = 8,
    micro: int = 2,
    rank: int = 0,
    size: int = 1,
    objective: Objective | None = None,
    **more: int,
) -> PackLoader:
    sources, objective = Sources({"train": reader}), objective or Objective()
    return PackLoader(sources, LAYOUT, objective, 5, SEQ_LEN, StepSizes.of(global_batch), micro, rank, size, **more)


def rows(batches: list[Batch]) -> list[tuple]:
    """Each row as bytes of all its tensors, so that equal means equal noise too."""
    keys = ("input_ids", "span_ids", "ar_targets", "ar_weights", "nar_targets", "nar_weights")
    return [tuple(getattr(b, k)[i].numpy().tobytes() for k in keys) for b in batches for i in range(len(b.input_ids))]


@given(step=st.integers(0, 30), micro=st.sampled_from([1, 2, 4, 8]), size=st.sampled_from([1, 2, 4]))
@settings(max_examples=20)
def test_a_step_is_the_same_however_it_is_cut(reader: ShardReader, step: int, micro: int, size: int) -> None:
    if 8 % (micro * size):
        return
    whole = loader(reader, 8, 8, prefetch=0).step(step)
    ranks = [loader(reader, 8, micro, rank, size, prefetch=0).step(step) for rank in range(size)]
    assert {len(batches) for batches in ranks} == {8 // (micro * size)}
    assert sorted(row for batches in ranks for row in rows(batches)) == sorted(rows(whole))
    assert sum(batch.num_loss_units for batches in ranks for batch in batches) == sum(
        batch.num_loss_units for batch in whole
    )


def test_prefetch_and_restart_change_nothing(reader: ShardReader) -> None:
    plain, ahead, restarted = loader(reader, prefetch=0), loader(reader, prefetch=2), loader(reader, prefetch=1)
    steps = [0, 1, 2, 3, 9, 10, 4, 4, 0]  # in order, then jumps as after a resume
    for step in steps:
        assert rows(ahead.step(step)) == rows(plain.step(step))
    assert rows(restarted.step(10)) == rows(plain.step(10))
    ahead.close()
    restarted.close()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_rank_can_read_what_another_one_reads(reader: ShardReader, prefetch: int) -> None:
    mine, other = (loader(reader, rank=rank, size=2, prefetch=prefetch) for rank in (0, 1))
    first, theirs = rows(mine.step(3)), rows(other.step(3))
    assert rows(mine.batches_of(3, 1)) == theirs != first
    assert rows(mine.batches_of(3, 0)) == first
    assert rows(mine.step(4)) == rows(loader(reader, rank=0, size=2).step(4))  # what was made ahead is as it was
    for one in (mine, other):
        one.close()


def test_each_step_has_the_objective_of_its_stage_prefetched_or_not(reader: ShardReader) -> None:
    staged = Objective(
        stages=[
            ObjectiveStage(from_step=0, kind="ar"),
            ObjectiveStage(from_step=2),
            ObjectiveStage(from_step=4, preset="paper"),
        ]
    )
    several = loader(reader, prefetch=2, objective=staged)
    for number, alike in enumerate((Objective(kind="ar"), Objective(), Objective(preset="paper"))):
        for step in (2 * number, 2 * number + 1):
            assert rows(several.step(step)) == rows(loader(reader, prefetch=0, objective=alike).step(step))
    several.close()
    held_out = [
        rows(list(ValidationLoader(reader, LAYOUT, objective, 5, SEQ_LEN, 2, 0, 1)))
        for objective in (staged, Objective())
    ]
    assert held_out[0] == held_out[1]


def test_epochs_bring_new_noise_and_every_pack(reader: ShardReader) -> None:
    one = loader(reader, 1, 1, prefetch=0)
    first, second = ([rows(one.step(NUM_PACKS * e + i))[0] for i in range(NUM_PACKS)] for e in (0, 1))
    assert len(set(first)) == NUM_PACKS
    assert not set(first) & set(second)
    assert one.epoch_of(NUM_PACKS) == {"train": 1.0}


def test_errors_of_the_thread_surface(reader: ShardReader, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = loader(reader, prefetch=1)
    broken.step(0)
    monkeypatch.setattr(type(reader), "__getitem__", lambda *_: (_ for _ in ()).throw(OSError("disk gone")))
    with pytest.raises(OSError, match="disk gone"):  # step 1 may have been prepared before the disk went
        _ = [broken.step(step) for step in (1, 2)]
    broken.close()


def test_what_does_not_divide_or_fit_is_refused(reader: ShardReader) -> None:
    with pytest.raises(UserError, match=r"global_batch=8 .*micro_batch=3"):
        loader(reader, 8, 3)
    with pytest.raises(UserError, match=r"global_batch=4 .*micro_batch=4 x 2"):
        loader(reader, 4, 4, size=2)
    with pytest.raises(UserError, match=r"packed at seq_len 48.*seq_len=32"):
        PackLoader(Sources({"train": reader}), LAYOUT, Objective(), 5, 32, StepSizes.of(8), 2, 0, 1)
    other = tiny_layout(shuffle_seed=1)
    with pytest.raises(UserError, match=r"train\.json: token layout differs in special_ids"):
        PackLoader(Sources({"train": reader}), other, Objective(), 5, SEQ_LEN, StepSizes.of(8), 2, 0, 1)


@pytest.mark.parametrize(("micro", "size"), [(1, 1), (4, 1), (4, 2), (16, 1), (8, 4)])
def test_the_held_out_set_is_read_once(reader: ShardReader, micro: int, size: int) -> None:
    ranks = [ValidationLoader(reader, LAYOUT, Objective(), 5, SEQ_LEN, micro, rank, size) for rank in range(size)]
    assert len({len(list(one)) for one in ranks}) == 1
    batches = [batch for one in ranks for batch in one]
    assert {tuple(batch.input_ids.shape) for batch in batches} == {(micro, SEQ_LEN)}
    filled = [torch.any(row != 0) for batch in batches for row in batch.sample_ids]
    assert sum(map(int, filled)) == NUM_PACKS
    assert sum(batch.num_loss_units for batch in batches) == 2 * NUM_PACKS
    assert [rows([batch]) for batch in ranks[0]] == [rows([batch]) for batch in ranks[0]]
