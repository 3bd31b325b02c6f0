"""Blends: rule 2 (one order) over sources, weights, stages and epochs; the settings that say so; what a resume warns of."""

import json
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.distributed.cases import ROOT
from tests.structures import tiny_layout
from ttt_dist.checkpoint import manager
from ttt_dist.checkpoint.export import assets_folder, require_assets
from ttt_dist.config.data import DataConfig, SourceConfig, StageConfig
from ttt_dist.config.loader import to_dict
from ttt_dist.config.objective import Objective
from ttt_dist.config.run import Config
from ttt_dist.data.blend import BlendOrder, Order, SampleIndex, SingleSource, Stage, exact
from ttt_dist.data.loader import PackLoader
from ttt_dist.data.sampler import PackOrder
from ttt_dist.data.shards import ShardReader, ShardWriter
from ttt_dist.data.sources import Sources
from ttt_dist.data.step_sizes import StepSizes
from ttt_dist.sequence.sample import TASKS, Sample, Segment, task_of
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.training.dry_run import describe_data
from ttt_dist.util.errors import UserError

NAMES = ["asr", "chat", "music", "text", "tts"]
decimals = st.integers(0, 5000).map(lambda number: Fraction(number, 100))
weightings = st.dictionaries(st.sampled_from(NAMES), decimals, min_size=1).filter(lambda found: any(found.values()))


@st.composite
def blends(draw: st.DrawFn) -> BlendOrder:
    """Up to five sources, up to four stages of a few steps each."""
    sizes = {name: draw(st.integers(1, 40)) for name in NAMES}
    stages, from_step = [], 0
    for weights in draw(st.lists(weightings, min_size=1, max_size=4)):
        stages.append(Stage.of(from_step, weights))
        from_step += draw(st.integers(1, 12))
    return BlendOrder(sizes, stages, draw(st.integers(0, 2**40)), StepSizes.of(draw(st.integers(1, 12))))


def read(order: Order, step: int) -> list[SampleIndex]:
    return [order.sample_at(step, slot) for slot in range(order.sizes.global_batch(step))]


@given(order=blends())
def test_every_slot_is_a_pack_and_an_epoch_holds_each_pack_once(order: BlendOrder) -> None:
    found: dict[tuple[str, int], Counter[int]] = defaultdict(Counter)
    for step in range(40):
        for source, pack, epoch in read(order, step):
            assert 0 <= pack < order.packs[source].num_packs
            found[source, epoch][pack] += 1
    for (source, epoch), packs in found.items():
        assert max(packs.values()) == 1
        last = max(number for name, number in found if name == source)
        assert epoch == last or len(packs) == order.packs[source].num_packs


@given(order=blends(), step=st.integers(0, 60))
def test_counts_are_what_was_read(order: BlendOrder, step: int) -> None:
    found = Counter(place.source for earlier in range(step) for place in read(order, earlier))
    assert {name: count for name, count in order.counts(step).items() if count} == found


@given(weights=weightings, num_slots=st.integers(0, 300))
def test_the_share_is_exact_after_any_number_of_slots(weights: dict[str, Fraction], num_slots: int) -> None:
    stage = Stage.of(0, weights)
    found = Counter(stage.pick(slot)[0] for slot in range(num_slots))
    assert stage.counts(num_slots) == {name: found[name] for name in stage.weights}
    total = sum(weights.values())
    for name, weight in weights.items():
        assert abs(found[name] - num_slots * weight / total) <= len(weights)
    if len(stage.weights) == 2:  # one division: within a slot
        assert all(abs(found[name] - num_slots * share) < 1 for name, share in stage.shares.items())


@given(weights=weightings)
def test_the_readings_of_a_source_are_numbered_in_turn(weights: dict[str, Fraction]) -> None:
    picked = [Stage.of(0, weights).pick(slot) for slot in range(200)]
    for name in weights:
        numbers = [number for source, number in picked if source == name]
        assert numbers == list(range(len(numbers)))


@given(order=blends(), step=st.integers(0, 10**9), data=st.data())
def test_a_step_does_not_depend_on_the_steps_before_it(order: BlendOrder, step: int, data: st.DataObject) -> None:
    sizes = {name: packs.num_packs for name, packs in order.packs.items()}
    fresh = BlendOrder(sizes, order.stages, order.seed, order.sizes)
    slots = data.draw(st.permutations(range(order.sizes.global_batch(step))))
    late = {slot: fresh.sample_at(step, slot) for slot in slots}
    assert [late[slot] for slot in range(order.sizes.global_batch(step))] == read(order, step)


@given(order=blends(), weights=weightings, later=st.integers(1, 20))
def test_a_stage_changes_nothing_before_it(order: BlendOrder, weights: dict[str, Fraction], later: int) -> None:
    sizes = {name: packs.num_packs for name, packs in order.packs.items()}
    from_step = order.stages[-1].from_step + later
    longer = BlendOrder(sizes, [*order.stages, Stage.of(from_step, weights)], order.seed, order.sizes)
    assert [read(longer, step) for step in range(from_step)] == [read(order, step) for step in range(from_step)]
    # What follows goes on counting: no pack is read twice before all were.
    assert all(longer.counts(from_step + 9)[name] >= count for name, count in order.counts(from_step).items())


@given(weights=weightings, factor=st.integers(1, 999), seed=st.integers(0, 99), data=st.data())
def test_the_scale_of_weights_and_the_order_of_names_change_nothing(
    weights: dict[str, Fraction], factor: int, seed: int, data: st.DataObject
) -> None:
    names = data.draw(st.permutations(sorted(weights)))
    scaled = {name: weights[name] * Fraction(factor, 7) for name in names}
    orders = [
        BlendOrder({name: 7 + len(name) for name in found}, [Stage.of(0, found)], seed, StepSizes.of(8))
        for found in (weights, scaled)
    ]
    assert [read(orders[0], step) for step in range(9)] == [read(orders[1], step) for step in range(9)]


def test_an_added_source_leaves_the_order_within_the_others() -> None:
    def packs(order: BlendOrder) -> list[tuple[int, int]]:
        places = [place for step in range(60) for place in read(order, step) if place.source == "asr"]
        return [(place.pack, place.epoch) for place in places]

    two = BlendOrder({"asr": 20, "tts": 9}, [Stage.of(0, {"asr": Fraction(1), "tts": Fraction(1)})], 3, StepSizes.of(1))
    weights = {name: Fraction(1) for name in ("aaa", "asr", "tts")}
    three = BlendOrder({"aaa": 5, "asr": 20, "tts": 9}, [Stage.of(0, weights)], 3, StepSizes.of(1))
    assert packs(three) == packs(two)[: len(packs(three))]
    assert len(packs(three)) == 20


def test_sources_seeds_and_steps_have_orders_of_their_own() -> None:
    equal = {"asr": Fraction(1), "tts": Fraction(1)}
    order = BlendOrder({"asr": 64, "tts": 64}, [Stage.of(0, equal)], 3, StepSizes.of(8))
    first = {name: [order.packs[name].nth(number)[0] for number in range(64)] for name in equal}
    assert first["asr"] != first["tts"] != [PackOrder(64, 3).nth(number)[0] for number in range(64)]
    assert first["asr"] != [PackOrder(64, 4, "asr").nth(number)[0] for number in range(64)]
    # The slots of a step are mixed anew each time: no rank is left with one source.
    assert len({tuple(place.source for place in read(order, step)) for step in range(20)}) > 10


@given(num_packs=st.integers(1, 60), seed=st.integers(0, 99), global_batch=st.integers(1, 9), step=st.integers(0, 99))
def test_a_single_shard_keeps_its_order(num_packs: int, seed: int, global_batch: int, step: int) -> None:
    order, packs = SingleSource("train", num_packs, seed, StepSizes.of(global_batch)), PackOrder(num_packs, seed)
    expected = [("train", *packs.nth(step * global_batch + slot)) for slot in range(global_batch)]
    assert read(order, step) == expected
    assert order.counts(step) == {"train": step * global_batch}


GOLDEN = ["tts 4 0", "asr 76 0", "tts 23 1", "text 5 3", "text 4 4", "text 1 20", "text 3 392"]


def golden_places() -> list[str]:
    first = {"asr": exact(0.3), "tts": exact(0.6), "text": exact(0.1)}
    stages = [Stage.of(0, first), Stage.of(40, {"tts": exact(1e-1), "text": exact(2.0)})]
    order = BlendOrder({"asr": 100, "tts": 30, "text": 9}, stages, 1234, StepSizes.of(8))
    where = ((0, 0), (0, 1), (7, 3), (39, 7), (40, 0), (60, 2), (500, 5))
    return [" ".join(map(str, order.sample_at(step, slot))) for step, slot in where]


@pytest.mark.slow
def test_the_order_is_the_same_in_every_process() -> None:
    """Golden figures: a change of the order would make resumed runs read other data."""
    assert golden_places() == GOLDEN
    code = "from tests.unit.test_blend import golden_places; print(golden_places())"
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    told = subprocess.check_output([sys.executable, "-c", code], env=environment, cwd=ROOT, text=True)
    assert told.strip() == str(GOLDEN)


@pytest.mark.parametrize(("number", "text"), [(0.3, "3/10"), (1e-5, "1/100000"), (3.0, "3"), (0.1 + 0.2, None)])
def test_a_weight_is_the_decimal_that_was_written(number: float, text: str | None) -> None:
    assert str(exact(number)) == text or (text is None and exact(number) != Fraction(3, 10))


# From here on with shards on disk.

SEQ_LEN = 48
SIZES = {"asr": 13, "text": 5, "tts": 8}


def write_shard(prefix: Path, num_packs: int, layout: TokenLayout, seq_len: int = SEQ_LEN, audio: bool = True) -> str:
    random = np.random.default_rng(num_packs)
    with ShardWriter(prefix, {"layout": layout.to_dict(), "seq_len": seq_len}) as writer:
        for _ in range(num_packs):
            codes = layout.code_ids(random.integers(0, layout.num_codes, 9)) if audio else []
            prompt = np.array([layout.im_start, *random.integers(0, 20, 3)], np.int32)
            ending = [layout.end_of_audio_span_last] if audio else []
            answer = [*random.integers(0, 20, 4), *codes, *ending, layout.im_end]
            writer.add([Sample.of([Segment(prompt, False), Segment(np.array(answer, np.int32), True)])])
    return str(prefix)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per source, with what an export needs beside each."""
    folder = tmp_path_factory.mktemp("sources")
    for name, num_packs in SIZES.items():
        for part in ("tokenizer", "codec"):
            (folder / name / part).mkdir(parents=True)
            (folder / name / part / "it.json").write_text("{}")
        (folder / name / "template.json").write_text(json.dumps({"of": name}))
        write_shard(folder / name / "train", num_packs, tiny_layout(), audio=name != "text")
    return folder


def blend_of(shards: Path, unit: str = "weight", **amounts: float) -> dict[str, SourceConfig]:
    return {name: SourceConfig(f"{shards / name}/train", **{unit: amount}) for name, amount in amounts.items()}


def loader(sources: Sources, micro: int = 8, rank: int = 0, size: int = 1) -> PackLoader:
    return loader_of(sources, StepSizes.of(8), micro, rank, size)


def loader_of(sources: Sources, sizes: StepSizes, micro: int = 8, rank: int = 0, size: int = 1) -> PackLoader:
    return PackLoader(sources, tiny_layout(), Objective(), 5, SEQ_LEN, sizes, micro, rank, size, prefetch=0)


def rows(loaders: list[PackLoader], step: int) -> list[bytes]:
    """The rows of a step by slot, noise and all."""
    found = {}
    for one in loaders:
        for number, batch in enumerate(one.step(step)):
            for row in range(one.micro_batch):
                slot = (number * one.dp_size + one.dp_rank) * one.micro_batch + row
                tensors = (batch.input_ids[row], batch.nar_targets[row], batch.nar_weights[row], batch.ar_weights[row])
                found[slot] = b"".join(tensor.numpy().tobytes() for tensor in tensors)
    return [found[slot] for slot in range(len(found))]


@given(step=st.integers(0, 30), micro=st.sampled_from([1, 2, 4, 8]), size=st.sampled_from([1, 2, 4]))
@settings(max_examples=15)
def test_batches_do_not_depend_on_ranks_and_micro_batches(shards: Path, step: int, micro: int, size: int) -> None:
    assume(8 % (micro * size) == 0)
    stages = [StageConfig(9, {"text": 1, "asr": 0.5})]
    sources = Sources.open(DataConfig(blend=blend_of(shards, asr=0.3, tts=0.7, text=0), stages=stages))
    cut = [loader(sources, micro, rank, size) for rank in range(size)]
    assert rows(cut, step) == rows([loader(sources)], step)


def test_a_batch_says_of_each_position_which_source_and_task_it_is_of(shards: Path) -> None:
    sources = Sources.open(DataConfig(blend=blend_of(shards, asr=1, text=1, tts=2)))
    whole = loader(sources, micro=8).step(3)[0]
    assert whole.num_groups == 3 * len(TASKS) and sum(whole.group_units) == whole.num_loss_units > 0
    names, units = list(sources.readers), np.zeros(whole.num_groups)
    for row, place in enumerate(loader(sources, micro=8).sample_indices(3)):
        for number, sample in enumerate(sources.readers[place.source][place.pack], start=1):
            group = names.index(place.source) * len(TASKS) + task_of(sample, tiny_layout())
            assert (whole.group_ids[row][whole.sample_ids[row] == number] == group).all()
            units[group] += 1.0
    np.testing.assert_array_equal(units, whole.group_units)
    assert not whole.group_ids[whole.sample_ids == 0].any()


def test_packs_are_the_sources_own_with_the_noise_of_its_epoch(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = Sources.open(DataConfig(blend=blend_of(shards, asr=1, text=3)))
    seen: list[tuple[list[list[Sample]], list[int]]] = []
    from ttt_dist.data import loader as module

    whole = module.collate
    monkeypatch.setattr(module, "collate", lambda *all_of: (seen.append((all_of[0], all_of[4])), whole(*all_of))[1])
    readers = {name: ShardReader(shards / name / "train") for name in SIZES}
    one = loader(sources)
    for step in range(20):
        one.step(step)
        packs, epochs = seen[-1]
        places = read(one.order, step)
        assert epochs == [place.epoch for place in places]
        for pack, place in zip(packs, places, strict=True):
            expected = readers[place.source][place.pack]
            assert [sample.ids.tolist() for sample in pack] == [sample.ids.tolist() for sample in expected]
    assert set(seen[-1][1]) == {
        38 // 13,
        39 // 13,
        114 // 5,
        119 // 5,
    }  # 2 packs of asr, 6 of text, each by its own count
    assert one.epoch_of(20) == {"asr": 40 / 13, "text": 120 / 5}


@given(epochs=st.fixed_dictionaries({name: st.integers(0, 4) for name in SIZES}))
@settings(max_examples=30)
def test_epochs_are_used_up_together(shards: Path, epochs: dict[str, int]) -> None:
    assume(any(epochs.values()))
    sources = Sources.open(DataConfig(blend=blend_of(shards, "epochs", **epochs)))
    wanted = {name: number * SIZES[name] for name, number in epochs.items()}
    assert sources.epoch_packs == sum(wanted.values())
    assert sources.order(0, StepSizes.of(1)).counts(sum(wanted.values())) == wanted
    steps = sources.epoch_steps(StepSizes.of(8))
    assert steps is not None
    for name, count in sources.order(0, StepSizes.of(8)).counts(steps).items():
        assert wanted[name] - len(epochs) <= count <= wanted[name] + 8
    sources.order(0, StepSizes.of(8)).sample_at(steps + 1000, 0)  # the shares go on


def test_weights_do_not_count_epochs(shards: Path) -> None:
    assert Sources.open(DataConfig(blend=blend_of(shards, asr=2, tts=1))).epoch_steps(StepSizes.of(8)) is None


def test_sources_that_do_not_fit_are_refused_by_both_names(shards: Path, tmp_path: Path) -> None:
    prefix = f"{shards}/asr/train"

    def refused(num: int, message: str, layout: TokenLayout | None = None, seq_len: int = SEQ_LEN) -> None:
        other = write_shard(tmp_path / str(num) / "train", 2, layout or tiny_layout(), seq_len)
        data = DataConfig(blend={"asr": SourceConfig(prefix, 1), "new": SourceConfig(other, 1)})
        with pytest.raises(UserError) as caught:
            Sources.open(data)
        assert message in str(caught.value)
        assert other in str(caught.value)
        assert prefix in str(caught.value)
        assert "\n" not in str(caught.value)

    refused(0, "token layout differs in special_ids", tiny_layout(shuffle_seed=1))
    refused(1, "packed at seq_len 64", seq_len=64)
    refused(2, "compose both with one tokenizer")
    for part, text in (("tokenizer", "{}"), ("codec", '{"other": 1}')):
        (tmp_path / "3" / part).mkdir(parents=True)
        (tmp_path / "3" / part / "it.json").write_text(text)
    refused(3, "encode both with one codec")
    with pytest.raises(UserError, match=r"nowhere\.json: no such shard"):
        Sources.open(DataConfig(blend={"asr": SourceConfig(str(tmp_path / "nowhere"), 1)}))


def test_text_alone_fits_any_codec(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "it.json").write_text("{}")
    text = write_shard(tmp_path / "text", 3, tiny_layout(), audio=False)
    data = DataConfig(blend={"a_text": SourceConfig(text, 1), **blend_of(shards, tts=1)})
    assert Sources.open(data).first.prefix == shards / "tts/train"
    assert Sources.open(DataConfig(blend={"a_text": data.blend["a_text"]})).first.prefix == Path(text)
    config = Config(data=data)
    assert assets_folder(config) == shards / "tts"  # the first that has a codec
    require_assets(config)


def test_an_export_takes_the_first_source(shards: Path, tmp_path: Path) -> None:
    config = Config(data=DataConfig(blend=blend_of(shards, tts=1, asr=1)))
    assert assets_folder(config) == shards / "asr"
    lacking = DataConfig(train=write_shard(tmp_path / "train", 2, tiny_layout()))
    with pytest.raises(UserError, match=r"lacks tokenizer, codec, template\.json"):
        require_assets(Config(data=lacking))


def test_what_is_read_is_told(shards: Path) -> None:
    blend = blend_of(shards, tts=0.75, asr=0.25)
    stages = [StageConfig(10, {"asr": 1}), StageConfig(1000, {"tts": 1})]
    told = describe_data(loader(Sources.open(DataConfig(blend=blend, stages=stages))), 20)
    assert told[0].startswith(
        f"asr: {shards}/asr/train: 13 packs of 48 tokens, 13 samples, 247 tokens; 20 steps are 7.7"
    )
    assert told[2:] == [
        "steps 0 to 10: asr 25.0% (to epoch 1.54), tts 75.0% (to epoch 7.50)",
        "steps 10 to 20: asr 100.0% (to epoch 7.69)",
    ]
    told = describe_data(loader(Sources.open(DataConfig(blend=blend_of(shards, "epochs", asr=2, tts=4)))), 9)
    assert told[2] == "the epochs of data.blend are 8 steps; train.steps=9"
    [line] = describe_data(loader(Sources.open(DataConfig(train=f"{shards}/asr/train"))), 13)
    assert line == f"{shards}/asr/train: 13 packs of 48 tokens, 13 samples, 247 tokens; 13 steps are 8.0 epochs"


@pytest.mark.parametrize("batches", [(), [(6, 16)], [(1, 24), (9, 8)]])
@pytest.mark.parametrize("skip", [[(2, 5)], [(0, 12)], [(3, 5), (3, 9), (11, 30)], []])
def test_stages_are_told_where_they_are_read(
    shards: Path, skip: list[tuple[int, int]], batches: list[tuple[int, int]]
) -> None:
    """What is passed over moves them up; one that is passed over whole is not told."""
    stages = [StageConfig(4, {"text": 1}), StageConfig(10, {"tts": 1})]
    data = DataConfig(blend=blend_of(shards, asr=1, tts=0, text=0), stages=stages)
    one = loader_of(Sources.open(data), StepSizes.of(8, batches, skip))
    told = [line.split(" (")[0] for line in describe_data(one, 14)[3:]]
    begins: dict[str, int] = {}
    for step in range(14):
        names = {place.source for place in read(one.order, step)}
        if len(names) == 1:  # else the border lies within the step
            begins.setdefault(names.pop(), step)
    ends = [*begins.values(), 14][1:]
    assert told == [
        f"steps {first} to {end}: {name} 100.0%" for (name, first), end in zip(begins.items(), ends, strict=True)
    ]


def test_epochs_are_over_earlier_where_packs_are_passed_over(shards: Path) -> None:
    sources = Sources.open(DataConfig(blend=blend_of(shards, "epochs", asr=2, tts=4)))
    told = describe_data(loader_of(sources, StepSizes.of(8, skip=[(2, 5)])), 9)
    assert told[2] == "the epochs of data.blend are 5 steps; train.steps=9"


# What a resumed run is warned of.

BLEND = {"asr": SourceConfig("shards/asr", 3), "tts": SourceConfig("shards/tts", 1)}
STAGED = DataConfig(blend=BLEND, stages=[StageConfig(10, {"asr": 1}), StageConfig(30, {"tts": 1})])
BY_EPOCHS = DataConfig(blend={"asr": SourceConfig("shards/asr", None, 1), "tts": SourceConfig("shards/tts", None, 2)})


def warned(before: DataConfig, now: DataConfig, step: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What resuming at `step` with `now` warns of, after a run with `before`."""
    metadata = manager.CheckpointMetadata.of_run(Config(data=before, deepspeed=ZERO1), tiny_layout(), 1)
    saved = {
        "step": step,
        "layout": metadata.layout.to_dict(),
        "world_size": 1,
        "zero_stage": 1,
        "config": metadata.config,
    }
    (folder / manager.METADATA).write_text(json.dumps(saved))
    run = replace(metadata, config=to_dict(Config(data=now, deepspeed=ZERO1)))
    manager.require_resumable(folder, run)
    return capsys.readouterr().err


ZERO1 = str(ROOT / "ds_configs/zero1.json")
NEW = SourceConfig("shards/chat", 0)
SILENT = {
    "nothing": (STAGED, STAGED),
    "a later stage changed": (STAGED, replace(STAGED, stages=[STAGED.stages[0], StageConfig(30, {"asr": 2})])),
    "one that begins now": (STAGED, replace(STAGED, stages=[STAGED.stages[0], StageConfig(20, {"tts": 1})])),
    "later stages gone": (STAGED, replace(STAGED, stages=STAGED.stages[:1])),
    "weights scaled": (STAGED, replace(STAGED, blend={n: replace(s, weight=s.weight * 7) for n, s in BLEND.items()})),
    "another order of names": (STAGED, replace(STAGED, blend=dict(reversed(BLEND.items())))),
    "a source to come": (
        STAGED,
        replace(STAGED, blend={**BLEND, "chat": NEW}, stages=[STAGED.stages[0], StageConfig(25, {"chat": 1})]),
    ),
}
OTHER = {
    "a weight": (
        STAGED,
        replace(STAGED, blend={**BLEND, "tts": SourceConfig("shards/tts", 2)}),
        "data.blend was asr 3/4",
    ),
    "a shard": (STAGED, replace(STAGED, blend={**BLEND, "asr": SourceConfig("other", 3)}), "now asr 3/4 (other)"),
    "a source": (STAGED, replace(STAGED, blend={**BLEND, "chat": replace(NEW, weight=1)}), "chat 1/5 (shards/chat)"),
    "a stage that was": (
        STAGED,
        replace(STAGED, stages=[StageConfig(10, {"tts": 1})]),
        "data.stages.0 from step 10 was",
    ),
    "its step": (STAGED, replace(STAGED, stages=[StageConfig(11, {"asr": 1})]), "data.stages.0 from step 11 was unset"),
    "a stage in the past": (replace(STAGED, stages=[]), STAGED, "data.stages.0 from step 10 was unset, now asr 1 "),
    "epochs": (
        BY_EPOCHS,
        replace(BY_EPOCHS, blend=BLEND),
        "data.blend was asr 1/3 (shards/asr), tts 2/3 (shards/tts) by epochs",
    ),
    "a blend": (DataConfig(train="shards/asr"), replace(STAGED, stages=[]), "data.train was shards/asr, now unset"),
    "another shard": (DataConfig(train="shards/asr"), DataConfig(train="x"), "data.train was shards/asr, now x"),
}


@pytest.mark.parametrize(("before", "now"), SILENT.values(), ids=SILENT)
def test_what_is_to_come_may_be_changed(
    before: DataConfig, now: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert warned(before, now, 20, tmp_path, capsys) == ""


@pytest.mark.parametrize(("before", "now", "message"), OTHER.values(), ids=OTHER)
def test_another_past_is_warned_of(
    before: DataConfig, now: DataConfig, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in warned(before, now, 20, tmp_path, capsys)


def test_a_checkpoint_from_before_blends_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert warned(DataConfig(train="a"), DataConfig(train="a"), 20, tmp_path, capsys) == ""
    saved = json.loads((tmp_path / manager.METADATA).read_text())
    del saved["config"]["data"]["blend"], saved["config"]["data"]["stages"]
    (tmp_path / manager.METADATA).write_text(json.dumps(saved))
    metadata = manager.CheckpointMetadata.of_run(Config(data=DataConfig(train="b"), deepspeed=ZERO1), tiny_layout(), 1)
    manager.require_resumable(tmp_path, metadata)
    assert "data.train was a, now b" in capsys.readouterr().err
