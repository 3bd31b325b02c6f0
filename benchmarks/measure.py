"""One side of `benchmarks.train_step` in its own process: time of a step, peak memory, and parts of a step apart."""

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contestants import Contestant, additive_mask, dense_attention, setting
from ttt_dist.model.structure import head_dim
from ttt_dist.sequence.batch import Batch
from ttt_dist.sequence.sample import Sample
from ttt_dist.training.flops import known_peak_tflops
from ttt_dist.util.console import Progress, warn
from ttt_dist.util.errors import UserError

PART_BATCHES = 4  # micro-batches that parts are measured on


def measure(
    name: str, side: Contestant, samples: list[Sample], size: int, steps: int, device: str, parts: bool
) -> dict[str, Any]:
    """Figures of a side with micro-batches of `size` rows, or of the half, a quarter ... where memory runs out."""
    while True:
        try:
            batches = [batch.to(device) for batch in side.batches(samples, size)]
            figures = measure_steps(name, side, batches, steps, device)
            return figures | {"micro_batch": size, "parts": measure_parts(side, batches, device) if parts else {}}
        except torch.OutOfMemoryError:
            if size == 1:
                raise UserError(f"{name}: one row is too much for the device's memory") from None
            warn(f"{name}: out of memory with micro-batches of {size} rows, trying {size // 2}")
        size //= 2  # out here, where the exception no longer holds on to tensors
        side.model.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure_steps(name: str, side: Contestant, batches: list[Batch], steps: int, device: str) -> dict[str, Any]:
    """Seconds of each step after a warm-up, the first loss, peak memory in bytes."""
    optimizer = torch.optim.AdamW(side.model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    # The warm-up has lr 0: the first measured loss is that of the initial weights. On CPU nothing is compiled or tuned,
    # so one micro-batch will do.
    train_step(f"{name}: warm-up", side, batches[:1] if device == "cpu" else batches, optimizer)
    optimizer.param_groups[0]["lr"] = 2e-5
    seconds, losses = [], []
    for step in range(steps):
        start = time.perf_counter()
        losses.append(train_step(f"{name}: step {step + 1} of {steps}", side, batches, optimizer))
        seconds.append(time.perf_counter() - start)
    useful, slots = (sum(x) for x in zip(*((b.useful_tokens, b.input_ids.numel()) for b in batches), strict=True))
    side.model.zero_grad(set_to_none=True)
    return {
        "seconds": seconds,
        "loss": losses[0],
        "memory": peak_memory(device),
        "useful_tokens": useful,
        "useful_share": useful / slots,
    }


def train_step(label: str, side: Contestant, batches: list[Batch], optimizer: torch.optim.Optimizer) -> float:
    """Gradients of all micro-batches, then the update; the loss before it."""
    optimizer.zero_grad(set_to_none=True)
    count = sum(batch.num_loss_units for batch in batches)
    total = torch.zeros((), device=batches[0].input_ids.device)
    with Progress(len(batches), label, "micro-batch") as progress:
        for batch in batches:
            loss = side.loss(batch) / count
            loss.backward()
            total += loss.detach()
            progress.advance()
    optimizer.step()
    return total.item()  # waits for the device


def peak_memory(device: str) -> int:
    """Bytes: largest resident set of this process, or what torch has allocated at most on the device."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text(encoding="utf8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def measure_parts(side: Contestant, batches: list[Batch], device: str) -> dict[str, float]:
    """Milliseconds per 1,000 useful tokens that attention (all layers) and the loss take, forward and backward."""
    seconds = {"attention_ms": 0.0, "loss_ms": 0.0}
    for batch in batches[:PART_BATCHES]:
        seconds["attention_ms"] += time_of(attention_part(side, batch, device), device)
        seconds["loss_ms"] += time_of(loss_part(side, batch, device), device)
    side.model.zero_grad(set_to_none=True)
    useful = sum(batch.useful_tokens for batch in batches[:PART_BATCHES])
    figures = {name: total * 1e6 / useful for name, total in seconds.items()}
    return figures | {"attention_error": attention_error(side, batches[0], device)}


def attention_part(side: Contestant, batch: Batch, device: str) -> Callable[[], None]:
    """Attention of all layers, forward and backward, the plan or mask included."""
    q, k, v = (x.requires_grad_() for x in random_heads(batch, device))

    def run() -> None:
        visibility = side.visibility(batch)
        for _ in range(setting(device)[0].num_layers):
            side.attention(q, k, v, visibility).sum().backward()

    return run


def loss_part(side: Contestant, batch: Batch, device: str) -> Callable[[], None]:
    """The loss and its gradients from the last hidden states on."""
    config, dtype = setting(device)
    hidden = torch.randn(batch.input_ids.numel(), config.hidden_size, device=device, dtype=dtype).requires_grad_()
    return lambda: side.head(hidden, batch).backward()


@torch.no_grad()
def attention_error(side: Contestant, batch: Batch, device: str) -> float:
    """Norm of a side's deviation from fp32 attention under the dense mask, relative; padding left out."""
    q, k, v = random_heads(batch, device)
    mine = side.attention(q, k, v, side.visibility(batch)).float()
    exact = dense_attention(q.float(), k.float(), v.float(), additive_mask(batch, torch.float32))
    real = batch.sample_ids.flatten() != 0
    return float((mine - exact)[real].norm() / exact[real].norm())


def random_heads(batch: Batch, device: str) -> list[Tensor]:
    """Queries, keys and values of a layer, [T, heads, D]."""
    config, dtype = setting(device)
    counts = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    return [torch.randn(batch.input_ids.numel(), n, head_dim(config), device=device, dtype=dtype) for n in counts]


def time_of(run: Callable[[], Any], device: str, repeat: int = 3) -> float:
    """Median seconds of `run`, after one run to warm up."""
    seconds = []
    for _ in range(repeat + 1):
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3)
        else:
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def peak_flops(device: str) -> tuple[float, str]:
    """FLOP/s that the device could do, and where the figure is from."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    known = known_peak_tflops(name)
    if known is not None:
        return known * 1e12, f"data sheet, {name} dense bf16"
    size, dtype = (2048, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    best = min(time_of(lambda: a @ b, device, repeat=1) for _ in range(5))
    return 2 * size**3 / best, f"measured, {str(dtype).removeprefix('torch.')} product of {size} x {size} matrices"
