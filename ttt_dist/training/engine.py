"""The DeepSpeed engine of a run: its JSON completed with the run's settings, the optimizer, and the gradient norm."""

import io
import logging
from contextlib import redirect_stdout
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import nn

from ttt_dist.config import Config, TrainConfig, read_deepspeed

logger = logging.getLogger(__name__)


def deepspeed_config(values: dict[str, Any], train: TrainConfig, dp: int) -> dict[str, Any]:
    """DeepSpeed's settings: `values` (one of ds_configs/) plus what the run's config decides."""
    settings = {
        **values,
        "train_batch_size": train.global_batch,
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": train.global_batch // (train.micro_batch * dp),
        "gradient_clipping": train.clip,
        "bf16": {"enabled": train.precision == "bf16"},
    }
    settings.setdefault("steps_per_print", 2**31)  # the console line is ours
    if train.precision == "bf16" and values.get("zero_optimization", {}).get("stage", 0) > 0:
        # Sums of many small gradients lose most of their bits in bf16. DeepSpeed has no such choice at stage 0.
        settings.setdefault("data_types", {"grad_accum_dtype": "fp32"})
        settings.setdefault("communication_data_type", "fp32")
    return settings


def build_engine(model: nn.Module, config: Config, dp: int) -> deepspeed.DeepSpeedEngine:
    """Wrap `model` for training on `dp` data-parallel processes. Needs a process group."""
    settings = deepspeed_config(read_deepspeed(config.deepspeed), config.train, dp)
    printed = io.StringIO()
    with redirect_stdout(printed):  # DeepSpeed prints its memory figures; they belong into the rank's log file
        engine, *_ = deepspeed.initialize(model=model, optimizer=build_optimizer(model, config.train), config=settings)
    logger.info("deepspeed.initialize: %s", printed.getvalue())
    if isinstance(engine.optimizer, FP16_UnfusedOptimizer):
        # bf16 at ZeRO 0: DeepSpeed allocates Adam's moments by a step with zero gradients, and so counts one step too many.
        engine.optimizer.optimizer.state.clear()
    return engine


def build_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW whose weight decay leaves norms and biases alone. Its rate is 0 until a step sets it."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in model.parameters():
        (matrices if _is_matrix(parameter) else vectors).append(parameter)
    groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=train.betas, eps=train.eps, fused=True)


def gradient_norm(engine: deepspeed.DeepSpeedEngine) -> float | None:
    """Norm of the whole gradient before clipping at ZeRO 0 in fp32, where DeepSpeed keeps none; else None.

    To be called between the last backward pass and the step; `reported_norm` then has the others after the step.
    """
    if engine.zero_optimization() or engine.bfloat16_enabled():
        return None
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def reported_norm(engine: deepspeed.DeepSpeedEngine) -> float:
    """The gradient norm that DeepSpeed's optimizer computed in the last step, before clipping."""
    norm = engine.get_global_grad_norm()
    return float("nan") if norm is None else float(norm)


def set_learning_rate(engine: deepspeed.DeepSpeedEngine, value: float) -> None:
    """Use `value` in the next update."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value


def _is_matrix(parameter: nn.Parameter) -> bool:
    # A ZeRO-3 parameter that is born partitioned shows an empty shape; DeepSpeed keeps the true one aside.
    return len(getattr(parameter, "ds_shape", parameter.shape)) >= 2
