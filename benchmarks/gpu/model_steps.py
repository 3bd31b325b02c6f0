"""Steps of the model alone: time, MFU and memory by way of saving activations, compiled or not, and where the time goes."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from benchmarks.contestants import Contestant, Ours
from benchmarks.contestants import setting as shape_of
from benchmarks.gpu.batches import draw_batches
from benchmarks.gpu.setting import Figures, Measurement, Setting, weights_drawn_on
from benchmarks.measure import measure_steps, peak_flops
from ttt_dist.sequence.batch import Batch
from ttt_dist.training.flops import ModelFlops

STEPS, NUM_PACKS = 3, 4
KERNELS = 12


@dataclass(frozen=True)
class Way:
    """How blocks save activations, and the packs of a micro-batch."""

    checkpointing: str
    compiled: bool
    rows: int


WAYS = [Way("none", True, 2), Way("selective", True, 2), Way("none", True, 1), Way("none", False, 1)]


def measurements(setting: Setting) -> Iterator[Measurement]:
    """The ways, best first."""
    for way in WAYS:
        how = "compiled" if way.compiled else "eager"
        yield f"{way.checkpointing} {how}, {way.rows} x {setting.seq_len}", partial(measure_way, setting, way)


def measure_way(setting: Setting, way: Way) -> Figures:
    """Figures of one way, `kernels` in milliseconds of a micro-batch among them."""
    if way.compiled:
        setting.require_cuda("compiled blocks")
    counters.clear()
    with weights_drawn_on(setting.device):
        ours = Ours(setting.layout, setting.device, setting.seq_len, way.checkpointing, way.compiled)
    batches = draw_batches(setting, NUM_PACKS // way.rows if setting.on_cuda else 1, way.rows, setting.seq_len)
    begin = time.perf_counter()
    figures = measure_side(setting, "ours", ours, batches)
    graphs = {"graphs": counters["stats"]["unique_graphs"], "graph_breaks": sum(counters["graph_break"].values())}
    figures |= graphs | {"warm_up_s": time.perf_counter() - begin - sum(figures["seconds"])}
    if setting.on_cuda:
        figures["kernels"] = heaviest_kernels(ours, batches[0])
    return figures


def measure_side(setting: Setting, name: str, side: Contestant, batches: list[Batch]) -> Figures:
    """Steps of a side on these micro-batches, with rates."""
    measured = measure_steps(name, side, batches, STEPS if setting.on_cuda else 1, setting.device)
    seconds = statistics.median(measured["seconds"])
    flops = ModelFlops.of(shape_of(setting.device)[0], setting.layout.vocab_size)
    work = sum(flops.useful(b.useful_tokens, b.ar_tokens + b.nar_tokens, b.visible_pairs) for b in batches)
    mfu = {"mfu": work / seconds / peak_flops(setting.device)[0]} if setting.on_cuda else {}
    return {
        "step_s": seconds,
        "tokens_s": measured["useful_tokens"] / seconds,
        "useful_tflops": work / seconds / 1e12,
        **mfu,
        "memory_gb": measured["memory"] / 1e9,
        "loss": measured["loss"],
        "seconds": measured["seconds"],
    }


def heaviest_kernels(side: Contestant, batch: Batch) -> dict[str, float]:
    """Milliseconds of each of the kernels that take most of a micro-batch's forward and backward."""

    def run() -> None:
        (side.loss(batch) / batch.num_loss_units).backward()
        torch.cuda.synchronize()

    run()
    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        run()
    averages: list[Any] = sorted(watched.key_averages(), key=lambda kernel: -kernel.self_device_time_total)
    print(watched.key_averages().table(sort_by="self_device_time_total", row_limit=40, max_name_column_width=90))
    return {f"{kernel.key[:60]} x {kernel.count}": kernel.self_device_time_total / 1e3 for kernel in averages[:KERNELS]}
