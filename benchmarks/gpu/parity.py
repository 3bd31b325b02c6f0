"""One loss on every device: a small fp32 model's loss and gradient norm on CUDA, in each way, against the CPU's."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.contestants import SMALL
from benchmarks.gpu.batches import draw_batches
from benchmarks.gpu.setting import Figures, Measurement, Setting
from ttt_dist.model.transformer import Transformer
from ttt_dist.parallel.activation_checkpoint import apply_activation_checkpointing
from ttt_dist.parallel.compile import apply_compile
from ttt_dist.sequence.batch import Batch

WAYS = [("none", False), ("selective", False), ("none", True), ("selective", True)]
SEQ_LEN, ROWS = 2048, 2


def measurements(setting: Setting) -> Iterator[Measurement]:
    """Relative differences of each way; the CPU's own figures first."""
    wanted = loss_and_norm(setting, "cpu", "none", False)
    yield "cpu", lambda: wanted
    for checkpointing, compiled in WAYS:
        name = f"{checkpointing} {'compiled' if compiled else 'eager'}"
        yield name, partial(differences, setting, wanted, checkpointing, compiled)
    yield "inference", lambda: {"loss_difference": abs(inference_loss(setting) / wanted["loss"] - 1)}


def differences(setting: Setting, wanted: Figures, checkpointing: str, compiled: bool) -> Figures:
    """Of loss and gradient norm, over those `wanted`."""
    if compiled:
        setting.require_cuda("compiled blocks")
    found = loss_and_norm(setting, setting.device, checkpointing, compiled)
    return {f"{key}_difference": abs(found[key] / value - 1) for key, value in wanted.items()}


def loss_and_norm(setting: Setting, device: str, checkpointing: str, compiled: bool) -> Figures:
    """Of one micro-batch; weights and noise are the same on all devices."""
    model, batch = small_model(setting, device)
    apply_activation_checkpointing(model.blocks, model.config.hidden_size, checkpointing, compiled)
    if compiled:
        apply_compile(model.blocks)
    loss = model(batch).loss / batch.num_loss_units
    loss.backward()
    norms = [torch.linalg.vector_norm(parameter.grad, dtype=torch.float64) for parameter in model.parameters()]
    return {"loss": loss.item(), "grad_norm": torch.stack(norms).norm().item()}


@torch.inference_mode()
def inference_loss(setting: Setting) -> float:
    """As an evaluation computes it: with attention in buckets, whatever the shape."""
    model, batch = small_model(setting, setting.device)
    return float(model(batch).loss / batch.num_loss_units)


def small_model(setting: Setting, device: str) -> tuple[Transformer, Batch]:
    """Both on the device."""
    config = SMALL if setting.on_cuda else setting.config
    (batch,) = draw_batches(setting, 1, ROWS, SEQ_LEN)
    return Transformer.for_layout(config, setting.layout).to(device), batch.to(device)
