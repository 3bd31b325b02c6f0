"""The head alone, from hidden states to gradients: ours against PyTorch's cross-entropy, and against the bare products."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.attention import relative
from benchmarks.gpu.batches import draw_batches
from benchmarks.gpu.clock import milliseconds
from benchmarks.gpu.setting import Figures, Measurement, Setting, weights_drawn_on
from ttt_dist.model.layers import LocalLayerFactory
from ttt_dist.model.loss import loss_rows
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.batch import Batch


def measurements(setting: Setting) -> Iterator[Measurement]:
    """On one pack, and on two."""
    config = dataclasses.replace(setting.config, num_layers=1)
    with weights_drawn_on(setting.device):
        model = Transformer.for_layout(config, setting.layout, LocalLayerFactory(dtype=setting.dtype)).to(
            setting.device
        )
    for rows in (1, 2):
        yield f"{rows} x {setting.seq_len}", partial(measure_loss, setting, model, rows)


def measure_loss(setting: Setting, model: Transformer, rows: int) -> Figures:
    """Milliseconds of each way, forward and backward, and how far our gradients are from those in fp32 at the targets."""
    (batch,), weight = draw_batches(setting, 1, rows, setting.seq_len), model.head.weight
    assert isinstance(weight, Tensor)
    classes = slice(setting.layout.vocab_size)  # the rest is padding, of which ours knows
    hidden = torch.randn(batch.input_ids.numel(), model.config.hidden_size, device=setting.device).to(setting.dtype)
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "ours": lambda x, _: model.head(x, loss_rows(batch, slice(0, len(x)))).loss,
        "all_logits": lambda x, w: all_logits(x, w[classes], batch),
        "targets": lambda x, w: of_targets(x, w[classes], batch),
    }
    leaves = hidden.requires_grad_(), weight
    runs = {name: lambda way=way: torch.autograd.grad(way(*leaves), leaves) for name, way in ways.items()}
    mine, exact = runs["ours"](), runs["targets"]()
    figures = {"hidden_error": relative(mine[0], exact[0].float()), "weight_error": relative(mine[1], exact[1].float())}
    del mine, exact
    figures |= {f"{name}_ms": milliseconds(run, setting) for name, run in runs.items()}
    num_targets = batch.ar_tokens + batch.nar_tokens
    return figures | {"num_targets": num_targets, "products_ms": products_ms(setting, *leaves, num_targets)}


def all_logits(hidden: Tensor, weight: Tensor, batch: Batch) -> Tensor:
    """Over every position, once for text and once for audio: the released code's way, in the weights' type."""
    logits = hidden @ weight.T
    return sum_of(F.cross_entropy(logits, batch.ar_targets.flatten(), reduction="none"), batch.ar_weights) + sum_of(
        F.cross_entropy(logits, batch.nar_targets.flatten(), reduction="none"), batch.nar_weights
    )


def of_targets(hidden: Tensor, weight: Tensor, batch: Batch) -> Tensor:
    """Over positions with a target only, in fp32."""
    total = torch.zeros((), device=hidden.device)
    for targets, weights in ((batch.ar_targets, batch.ar_weights), (batch.nar_targets, batch.nar_weights)):
        rows = weights.flatten().nonzero().squeeze(1)
        logits = (hidden[rows] @ weight.T).float()
        losses = F.cross_entropy(logits, targets.flatten()[rows], reduction="none")
        total = total + sum_of(losses, weights.flatten()[rows])
    return total


def sum_of(losses: Tensor, weights: Tensor) -> Tensor:
    """Weighted, in fp32."""
    return (losses.float() * weights.flatten()).sum()


def products_ms(setting: Setting, hidden: Tensor, weight: Tensor, num_targets: int) -> float:
    """The three products that no way can do without: logits, gradient of hidden states, gradient of the weight."""
    rows, classes = hidden.detach()[:num_targets], weight.detach()
    logits = torch.randn(len(rows), len(classes), device=rows.device, dtype=rows.dtype)
    return sum(
        milliseconds(run, setting)
        for run in (lambda: rows @ classes.T, lambda: logits @ classes, lambda: logits.T @ rows)
    )
