"""How a forward is laid out: slots and their growth, runs, fixed shapes as graphs take them, and what depends on whom."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.plain_decoding import differing, draw_settings
from tests.unit.test_decode import decoder, drawn_prompts, folder, modes_of, random_prompts
from ttt_dist.config.decode import DecodeSettings
from ttt_dist.inference import cuda_graphs
from ttt_dist.inference import model_runner as forward_module
from ttt_dist.inference.batch import FIXED_ROWS, Row, exact_batch, fixed_batch, fixed_shape, split_rows
from ttt_dist.inference.cuda_graphs import MOST_TOKENS, ForwardRunner
from ttt_dist.model import products
from ttt_dist.model.attention import kv_cache
from ttt_dist.model.attention.kv_cache import FIRST_LENGTH, OPENED, Run, SequenceCache, SlotCache
from ttt_dist.model.layers import Linear, lay_transposed
from ttt_dist.model.products import linear
from ttt_dist.sequence.visibility import visible_end, visible_end_of_spans


@pytest.mark.slow
@pytest.mark.parametrize("case", range(12))
def test_fixed_shapes_give_the_tokens_of_the_plain_loop(case: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU would record and replay, run as it is: padded slots, rows and keys, one buffer of tokens per shape."""
    runners: list[ForwardRunner] = []

    def fixed(model: torch.nn.Module) -> ForwardRunner:
        runners.append(ForwardRunner(model, is_fixed=True))
        return runners[-1]

    monkeypatch.setattr(forward_module, "ForwardRunner", fixed)
    rng = np.random.default_rng(100 + case)
    model = folder(case % 5, ("ttt", "ttt", "ar", "nar")[case % 4], str(rng.choice(["bidirectional", "causal"])))
    prompts = drawn_prompts(rng, 10)
    kind = model.objective.kind
    modes = rng.choice(modes_of(kind), len(prompts))
    chosen = [draw_settings(rng, kind, audio_mode=mode, span_limit=60, max_text=5, max_codes=100) for mode in modes]
    assert differing(model, prompts, chosen, 1 + case % 8) == []
    recorded = [shape for runner in runners for shape, graph in runner._recorded.items() if graph is not None]
    assert recorded
    assert all(shape.rows in FIXED_ROWS and shape.num_slots in (1, 2, 4, 8, 16) for shape in recorded)
    assert len(recorded) <= 3 * len(FIXED_ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("case", range(8))
def test_parts_and_growth_give_the_tokens_of_the_plain_loop(case: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MOST_TOKENS, "cpu", 1 + 6 * case)
    monkeypatch.setattr(kv_cache, "FIRST_LENGTH", 64)
    rng = np.random.default_rng(200 + case)
    model = folder(case % 5, ("ttt", "ar", "ttt", "nar")[case % 4], str(rng.choice(["bidirectional", "causal"])))
    prompts, kind = drawn_prompts(rng, 10), model.objective.kind
    modes = rng.choice(modes_of(kind), len(prompts))
    chosen = [draw_settings(rng, kind, audio_mode=mode, span_limit=60, max_text=5, max_codes=100) for mode in modes]
    assert differing(model, prompts, chosen, 1 + case) == []


def row(slot: int, length: int, count: int) -> Row:
    return Row(
        np.arange(count),
        length + np.arange(count),
        np.stack([length + np.arange(count) + 1, np.zeros(count, int), np.zeros(count, int)]),
        SequenceCache(slot, length),
        np.array([count - 1]),
        length + count,
    )


def test_an_exact_batch_has_no_padding_and_few_runs() -> None:
    rows = [row(0, 10, 1), row(1, 20, 1), row(2, 90, 1), row(3, 40, 5)]
    batch = exact_batch(rows)
    assert batch.table.shape == (7, 8)
    assert batch.runs == (Run(0, 2, 1, 64, True), Run(2, 1, 1, 128, True), Run(3, 1, 5, 64, True))
    assert batch.table[1].tolist() == batch.table[2].tolist() == [10, 20, 90, 40, 41, 42, 43, 44]
    assert batch.needed.tolist() == [0, 1, 2, 7]


def test_a_fixed_batch_leaves_idle_tokens_to_the_spare_slot() -> None:
    rows = [row(2, 40, 5), row(0, 250, 1)]
    shape = fixed_shape(rows, capacity=512)
    assert shape == Run(0, 4, 8, 256, True)
    batch = fixed_batch(rows, shape, spare_slot=4)
    slots = batch.table[3].reshape(4, 8)
    assert slots[0].tolist() == [0] + [4] * 7
    assert slots[2].tolist() == [2] * 5 + [4] * 3
    assert (slots[[1, 3]] == 4).all()
    assert batch.needed.tolist() == [20, 0]
    assert fixed_shape([row(0, 0, FIXED_ROWS[-1] + 1)], 512) is None
    long = row(0, 0, 130)
    assert fixed_shape([long], 512) == Run(0, 1, 192, 256, True)
    assert fixed_shape([long, row(1, 0, 1)], 512) is None  # two thirds would be padding


def test_slots_are_reused_and_growth_keeps_what_was_written() -> None:
    cache = SlotCache(2, 3, 4, torch.float32, torch.device("cpu"))
    first, second = cache.take(), cache.take()
    cache.free(cache.take())  # before there is any room
    assert cache.reserve({first.slot: 3, second.slot: 10})
    assert not cache.reserve({first.slot: 3, second.slot: FIRST_LENGTH})
    for layer in cache.layers:
        layer[:, second.slot, :, :FIRST_LENGTH] = 7.0
    third = cache.take()
    assert cache.reserve({second.slot: 11, third.slot: FIRST_LENGTH + 1})
    assert cache.layers[0].shape == (2, 5, 3, 2 * FIRST_LENGTH, 4)
    assert [float(layer.sum()) for layer in cache.layers] == [7.0 * 2 * 3 * FIRST_LENGTH * 4] * 2
    cache.free(third)
    cache.free(first)
    assert [cache.take().slot, cache.take().slot, cache.take().slot] == [first.slot, third.slot, 3]


def test_short_sequences_take_little_memory_beside_a_long_one() -> None:
    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    cache = SlotCache(4, 4, 64, torch.float32, torch.device("cpu"))  # 8 KiB a key
    sequences, before = [cache.take() for _ in range(32)], resident_mb()
    ends = {sequence.slot: 10 for sequence in sequences}
    for length in range(500, 4001, 500):
        cache.reserve(ends | {0: length})
    assert (4000 + 31 * OPENED) * 8 / 1024 > 40
    assert resident_mb() - before < 80  # 514 where growth copied all that there was room for
    cache.reserve({sequence.slot: 1000 for sequence in sequences})
    assert resident_mb() - before > 250
    for sequence in sequences[1:]:
        cache.free(sequence)
    cache.reserve({0: 4100})
    assert resident_mb() - before < 120  # what is free is not copied


def test_prompts_that_are_many_are_computed_in_parts() -> None:
    rows = [row(slot, 0, count) for slot, count in enumerate((5, 3, 2, 11, 1, 1))]
    assert [[len(row.ids) for row in part] for part in split_rows(rows, 8)] == [[5, 3], [2], [11], [1, 1]]
    model = decoder().folder.model
    whole, parts = ForwardRunner(model), ForwardRunner(model)
    ids = torch.randint(0, len(model.embed.weight), (6, 11)).numpy()
    rows = [row._replace(ids=ids[row.sequence.slot, : len(row.ids)]) for row in rows]
    mixed = [2, 0, 1, 5, 3, 4]
    for _ in rows:
        whole.cache.take(), parts.cache.take()
    with (
        torch.inference_mode(),
        patch.dict(MOST_TOKENS, cpu=8),
        patch.object(cuda_graphs, "exact_batch", Mock(wraps=exact_batch)) as made,
    ):
        found = parts([rows[slot] for slot in mixed])
    slots = [[row.sequence.slot for row in call.args[0]] for call in made.mock_calls]
    assert slots == [[0, 1], [2], [3], [4, 5]]  # adjacent ones are one run
    with torch.inference_mode():
        rows = [row._replace(sequence=SequenceCache(row.sequence.slot)) for row in rows]
        torch.testing.assert_close(found, whole(rows)[mixed])


def test_what_a_request_leaves_in_the_cache_does_not_depend_on_batch_mates() -> None:
    """To the last bit; logits alone come from a product whose order of sums depends on the number of rows."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch is built without oneDNN: products of other libraries depend on the number of rows")
    requests, chosen = random_prompts(8), DecodeSettings(block=5, steps=3, span_limit=15)

    def kept(which: list[int]) -> dict[int, list[torch.Tensor]]:
        session = decoder().session()
        for index in which:
            session.add(requests[index], chosen)
        for _ in range(8):
            session.step()
        layers = session._forwards.cache.layers
        return {
            which[key]: [layer[:, running.own.slot, :, : running.own.length].clone() for layer in layers]
            for key, running in session._active.items()
        }

    together, backwards = kept(list(range(8))), kept(list(range(8))[::-1])
    assert len(together) > 3
    for index, layers in together.items():
        for alone, mates, others in zip(kept([index])[index], layers, backwards[index], strict=True):
            assert torch.equal(alone, mates)
            assert torch.equal(alone, others)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_ends_in_numpy_are_those_of_visibility(spans: list[int]) -> None:
    ids = np.sort(np.array(spans))
    rows = torch.from_numpy(ids)
    assert visible_end_of_spans(ids).tolist() == visible_end(torch.ones_like(rows), rows).tolist()


@pytest.mark.parametrize("num_rows", [1, 2, 31, 300])
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_of_inference_are_products(num_rows: int, has_bias: bool) -> None:
    layer = Linear(torch.randn(70, 33), torch.randn(70) if has_bias else None).requires_grad_(False)
    x, before = torch.randn(num_rows, 33), layer.weight.clone()
    expected = F.linear(x, before, layer.bias)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected)
        lay_transposed(layer)
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(
            linear(x, layer.weight[:40]), expected[:, :40] - (layer.bias[:40] if has_bias else 0)
        )
    assert layer.weight.stride() == (1, 70)
    assert torch.equal(layer.weight, before)


ROWS = """
import sys
import torch
from ttt_dist.model.layers import Linear, lay_transposed

wide, narrow, most, most_threads = map(int, sys.argv[1:])
layer = Linear(torch.randn(wide, narrow), None).requires_grad_(False)
lay_transposed(layer)
x = torch.randn(most, narrow)
counts = (1, 2, 3, 5, 7, 8, 13, 32, 33, 100, 257, most - 99)
with torch.inference_mode():
    for threads in range(1, most_threads + 1):
        torch.set_num_threads(threads)
        whole = layer(x)
        print([count for count in counts if not torch.equal(layer(x[:count]), whole[:count])])
"""


@pytest.mark.parametrize(
    ("fewer", "sizes"),
    [({}, (192, 64, 300, 2)), ({"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}, (1408, 512, 900, 4))],
    ids=["all instructions", "AVX2"],
)
def test_rows_of_a_transposed_weight_do_not_depend_on_their_number(
    fewer: dict[str, str], sizes: tuple[int, ...]
) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch is built without oneDNN")
    command = [sys.executable, "-c", ROWS, *map(str, sizes)]
    done = subprocess.run(command, env=os.environ | fewer, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n" * sizes[-1], done.stdout + done.stderr


def test_products_take_few_numbers_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN keeps half a megabyte for each."""
    seen: set[int] = set()

    def product(x: torch.Tensor, *others: object) -> torch.Tensor:
        seen.add(len(x))
        return x

    monkeypatch.setattr(products, "ONEDNN", product)
    with torch.inference_mode():
        assert all(len(linear(torch.zeros(count, 1), torch.zeros(1, 1))) == count for count in range(1, 4097))
    assert ({2, 28, 32, 216, 864} if products.IS_WIDE else {6, 24, 36, 48}) < seen
    assert len(seen) < 120


def test_no_noise_for_greedy_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random numbers are drawn for requests that sample, one a token, whatever the vocabulary."""
    drawn: list[int] = []
    plain = forward_module.uniforms

    def counted(state, needed: np.ndarray, context) -> np.ndarray:  # noqa: ANN001
        drawn.append(len(needed))
        return plain(state, needed, context)

    monkeypatch.setattr(forward_module, "uniforms", counted)
    session = decoder().session()
    for request, temperature in zip(random_prompts(4), (0.0, 0.0, 0.7, 0.0), strict=True):
        session.add(request, DecodeSettings(block=4, steps=2, max_text=5, temperature=temperature))
    forwards = 0
    while 2 in session._active or not forwards:
        session.step()
        forwards += 1
    assert 0 < len(drawn) <= forwards
    assert set(drawn) == {1}
