"""The memory that `--dry-run` tells, against what autograd keeps, what a process takes, and what layouts must do to it."""

import gc
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.compiling import watch_compiler
from tests.distributed.random_packs import LAYOUT
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.run import Config, ParallelConfig, TrainConfig
from ttt_dist.model.transformer import Transformer
from ttt_dist.parallel.activation_checkpoint import apply_activation_checkpointing
from ttt_dist.parallel.compile import apply_compile
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.parallel.stages import layer_sizes
from ttt_dist.sequence.batch import Batch
from ttt_dist.training.memory_estimate import FP32, Kept, Memory, Widths, memory_per_rank

ROOT = Path(__file__).resolve().parents[2]
ONE = Mesh(tensor=1, ulysses=1, data=1, pipeline=1, rank=0)
WIDE = replace(LAYOUT, padded_vocab_size=4096)


def run_config(model: ModelConfig, zero: int = 0, **train: object) -> Config:
    """One micro-batch of one pack per step, unless `train` says otherwise."""
    values = {"global_batch": 1, "micro_batch": 1, **train}
    return Config(deepspeed=str(ROOT / f"ds_configs/zero{zero}.json"), model=model, train=TrainConfig(**values))


def full_batch(seq_len: int, num_samples: int) -> Batch:
    """A pack of equal samples with a span each, where every token is a target."""
    place, ids = torch.arange(seq_len), torch.arange(seq_len).unsqueeze(0) % 64
    length = seq_len // num_samples
    position, sample = (place % length).unsqueeze(0), (place // length + 1).unsqueeze(0)
    span = ((position > length // 4) & (position < length // 2)).long()
    ones = torch.ones(1, seq_len)
    return Batch(
        input_ids=ids, position_ids=position, sample_ids=sample, span_ids=span, ar_targets=ids, ar_weights=ones,
        nar_targets=ids, nar_weights=0 * ones, nar_bins=0 * ids, group_ids=0 * ids, num_loss_units=1.0,
    )  # fmt: skip


def live_after_forward(model: Transformer, batch: Batch) -> int:
    """Bytes that a forward pass leaves allocated, by the allocator's own account.

    Hooks of saved tensors would miss what selective checkpointing keeps: its cache is no saved tensor.
    """
    gc.collect()  # what earlier tests left must not be freed meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        output = model(batch)
    assert output.loss.requires_grad
    events = trace.profiler.kineto_results.events()
    return sum(event.nbytes() for event in events if event.name() == "[memory]")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
# Not both: of compiled norms of heads this test keeps one copy more than the compiler's own code, which fuses it away.
@pytest.mark.parametrize(("qk_norm", "compiled"), [(False, False), (True, False), (False, True)])
def test_activations_are_what_autograd_keeps(
    monkeypatch: pytest.MonkeyPatch, precision: str, checkpointing: str, qk_norm: bool, compiled: bool
) -> None:
    config, seq_len = (
        ModelConfig(
            hidden_size=256,
            num_layers=6,
            num_heads=8,
            num_kv_heads=2,
            ffn_hidden_size=768,
            qkv_bias=not qk_norm,
            qk_norm=qk_norm,
        ),
        1024,
    )
    model = Transformer.for_layout(config, LAYOUT).to(torch.float32 if precision == "fp32" else torch.bfloat16)
    apply_activation_checkpointing(model.blocks, config.hidden_size, checkpointing, compiled)
    if compiled:
        apply_compile(model.blocks)
    batch = full_batch(seq_len, 16)
    if compiled:
        watch_compiler(monkeypatch)
        model(batch).loss.backward()
    found = live_after_forward(model, batch)

    width = FP32 if precision == "fp32" else 2
    widths = Widths.of(config, ONE, False)
    per_token = 6 * widths.saved(width, Kept(checkpointing, False, compiled)) + widths.saved_by_ends(width, True, False)
    head = width * config.hidden_size * (seq_len + LAYOUT.padded_vocab_size)  # the loss keeps both gradients
    assert per_token * seq_len + head == pytest.approx(found, rel=0.05)


PEAK = """
import sys
from dataclasses import replace
from tests.unit.test_memory import ONE, WIDE, full_batch, peak_config
from ttt_dist.config.model import ModelConfig
from ttt_dist.model.layers import RandomWeights
from ttt_dist.launch.process_group import current_dist_info, init_process_group, leave_process_group, prepare_process
from ttt_dist.parallel.parallelize import parallelize
from ttt_dist.training.step import train_step

def resident(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

prepare_process(1)
init_process_group(current_dist_info())
def train(config, seq_len):
    engine = parallelize(config, WIDE, ONE, RandomWeights())
    for _ in range(2):
        train_step(engine, ONE, [full_batch(seq_len, 8)] * 2, 1e-3)

config = peak_config(sys.argv[1])
small = ModelConfig(hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=2, ffn_hidden_size=64)
train(replace(config, model=small), 32)  # what the libraries take at their first use
before = resident("VmRSS")
train(config, int(sys.argv[2]))
print(resident("VmHWM") - before)
leave_process_group()
"""


def peak_config(checkpointing: str) -> Config:
    """28 million parameters, in fp32; two micro-batches, so that the second meets whole gradients."""
    return run_config(
        ModelConfig(hidden_size=512, num_layers=8, num_heads=8, num_kv_heads=2, ffn_hidden_size=1536),
        global_batch=2,
        precision="fp32",
        activation_checkpointing=checkpointing,
    )


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_the_total_is_what_a_process_takes(checkpointing: str) -> None:
    """A fixed threshold makes malloc give freed tensors back at once; by itself it would keep some of them."""
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PATH": "/usr/bin"}
    command = [sys.executable, "-c", PEAK, checkpointing, "512"]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = int(done.stdout.split()[-1])
    estimate = memory_per_rank(peak_config(checkpointing), WIDE, ONE, 0, 512)
    assert estimate.total == pytest.approx(found, rel=0.1), (str(estimate), found / 2**20)


def estimate(config: Config, mesh: Mesh, zero: int = 0, on_cuda: bool = True) -> Memory:
    return memory_per_rank(config, WIDE, mesh, zero, 1024, on_cuda)


MODEL = ModelConfig(hidden_size=256, num_layers=8, num_heads=8, num_kv_heads=2, ffn_hidden_size=768)


def test_tensor_parallelism_divides_matrices_and_pads_the_vocabulary() -> None:
    whole, half = (layer_sizes(MODEL, WIDE, tensor) for tensor in (1, 2))
    for found, expected in zip(half, whole, strict=True):
        assert found == [size if size == MODEL.hidden_size else size // 2 for size in expected]
    narrow = replace(WIDE, padded_vocab_size=128)
    assert layer_sizes(MODEL, narrow, 2)[0] == [128 * MODEL.hidden_size]  # 128 rows of each rank, half of them empty


def test_each_zero_stage_divides_one_thing_more() -> None:
    mesh = Mesh(tensor=1, ulysses=1, data=64, pipeline=1, rank=0)
    parts = {
        zero: estimate(run_config(MODEL, zero, global_batch=64, precision="bf16"), mesh, zero) for zero in range(3)
    }
    count = sum(map(sum, layer_sizes(MODEL, WIDE, 1)))
    assert [parts[zero].optimizer for zero in range(3)] == [12 * count, 12 * count // 64, 12 * count // 64]
    assert all(parts[zero].weights == 2 * count for zero in range(3))


def test_sequence_parallelism_and_ulysses_divide_activations() -> None:
    config = run_config(MODEL, global_batch=1)
    alone, tensor = estimate(config, ONE), estimate(config, Mesh(tensor=2, ulysses=1, data=1, pipeline=1, rank=0))
    split = estimate(
        replace(config, parallel=ParallelConfig(2, sequence_parallel=True)),
        Mesh(tensor=2, ulysses=1, data=1, pipeline=1, rank=0),
    )
    ulysses = estimate(config, Mesh(tensor=1, ulysses=2, data=1, pipeline=1, rank=0))
    assert split.activations < tensor.activations < alone.activations
    assert ulysses.activations == pytest.approx(alone.activations / 2, rel=0.01)


def test_a_pipeline_is_told_by_its_fullest_stage() -> None:
    """The first stage holds more micro-batches, the last the logits; neither is smaller than what is told."""
    config = run_config(MODEL, 1, global_batch=8)
    one, two = estimate(config, ONE, 1), estimate(config, Mesh(tensor=1, ulysses=1, data=1, pipeline=2, rank=0), 1)
    assert one.weights / 2 == pytest.approx(two.weights, rel=0.1)
    assert two.activations == pytest.approx(one.activations, rel=0.25)  # half the blocks, twice the micro-batches


def test_an_offloaded_optimizer_takes_no_memory_of_a_gpu(tmp_path: Path) -> None:
    path = tmp_path / "offload.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}))
    config = replace(run_config(MODEL), deepspeed=str(path))
    assert estimate(config, ONE, 3).optimizer == 0
    assert estimate(config, ONE, 3, on_cuda=False).optimizer > 0


def test_the_line_has_one_unit() -> None:
    assert str(Memory(weights=2**20, gradients=2**19, optimizer=0, activations=2**20, logits=0)) == (
        "2.5 MiB: weights 1.0, gradients 0.5, optimizer 0.0, activations 1.0, logits 0.0"
    )
    assert str(Memory(weights=2**30, gradients=0, optimizer=0, activations=0, logits=0)).startswith(
        "1.0 GiB: weights 1.0"
    )
