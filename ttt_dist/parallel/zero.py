"""ZeRO: the DeepSpeed engine around a model, its JSON completed with the run's settings, and the optimizer."""

import io
import logging
import sys
from contextlib import AbstractContextManager, redirect_stdout
from typing import Any

import deepspeed
import torch
from torch import nn

from ttt_dist.config.deepspeed import read_deepspeed, zero_stage
from ttt_dist.config.run import Config, TrainConfig
from ttt_dist.parallel import deepspeed_adapter
from ttt_dist.parallel.groups import Mpu
from ttt_dist.parallel.mesh import Mesh

logger = logging.getLogger(__name__)


def deepspeed_config(config: Config, mesh: Mesh) -> dict[str, Any]:
    """DeepSpeed's settings: those of the file in ds_configs/ plus what the run's config decides."""
    values, train = read_deepspeed(config.deepspeed), config.train
    settings = {
        **values,
        "train_batch_size": train.global_batch * mesh.ulysses,  # whose processes count as data-parallel
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": train.global_batch // (train.micro_batch * mesh.data),
        "gradient_clipping": train.clip or sys.float_info.max,  # it is the clipping that computes the norm
        "bf16": {"enabled": train.precision == "bf16"},
    }
    settings.setdefault("steps_per_print", 2**31)  # the console line is ours
    settings.setdefault("timers", {"throughput": {"enabled": False}})  # it waits for the device twice per micro-batch
    if train.precision == "bf16" and values.get("zero_optimization", {}).get("stage", 0) > 0:
        # Sums of many small gradients lose most of their bits in bf16. DeepSpeed has no such choice at stage 0.
        settings.setdefault("data_types", {"grad_accum_dtype": "fp32"})
        settings.setdefault("communication_data_type", "fp32")
    if config.parallel.sequence_parallel:
        # Stages would hand on a slice of what they take to be the same on all tensor-parallel processes.
        settings["pipeline"] = {"pipe_partitioned": False, "grad_partitioned": False}
    return settings


def born_partitioned(config: Config, mesh: Mesh, mpu: Mpu | None) -> AbstractContextManager[Any]:
    """At ZeRO 3, what is built inside is taken apart weight by weight: no process ever holds the whole model."""
    return deepspeed.zero.Init(
        data_parallel_group=None if mpu is None else mpu.get_data_parallel_group(),
        config_dict_or_path=deepspeed_config(config, mesh),
        enabled=zero_stage(config.deepspeed) == 3,
        mpu=mpu,
    )


def apply_zero(model: nn.Module, config: Config, mesh: Mesh, mpu: Mpu | None) -> deepspeed.DeepSpeedEngine:
    """The engine that trains `model`: optimizer state, gradients and weights divided as the ZeRO stage asks; collective."""
    printed = io.StringIO()
    with redirect_stdout(printed):  # DeepSpeed prints its memory figures; they belong into the rank's log file
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=_build_optimizer(model, config.train),
            config=deepspeed_config(config, mesh),
            mpu=mpu if mesh.pipeline == 1 else None,  # a PipelineModule has its own
        )
    logger.info("deepspeed.initialize: %s", printed.getvalue())
    deepspeed_adapter.forget_allocating_step(engine)
    deepspeed_adapter.keep_norm_of_clipping(engine)
    return engine


def _build_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW whose weight decay leaves norms and biases alone. Its rate is 0 until a step sets it."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in model.parameters():
        (matrices if len(deepspeed_adapter.full_shape(parameter)) >= 2 else vectors).append(parameter)
    groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=train.betas, eps=train.eps, fused=True)


def reported_norm(engine: deepspeed.DeepSpeedEngine) -> float:
    """The gradient norm that DeepSpeed's optimizer computed in the last step, before clipping."""
    norm = engine.get_global_grad_norm()
    return float("nan") if norm is None else float(norm)


def set_learning_rate(engine: deepspeed.DeepSpeedEngine, value: float) -> None:
    """Use `value` in the next update."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value
