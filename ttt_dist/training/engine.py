"""The DeepSpeed engine of a run: its JSON completed with the run's settings, the optimizer, and the gradient norm."""

import io
import logging
import sys
from contextlib import redirect_stdout
from types import MethodType
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import nn

from ttt_dist.checkpoint.engine import ChecksummingEngine
from ttt_dist.config.deepspeed import read_deepspeed, zero_stage
from ttt_dist.config.run import Config, TrainConfig
from ttt_dist.model.layers import WeightSource
from ttt_dist.model.transformer import Transformer
from ttt_dist.parallel.activation_checkpoint import prepare_blocks
from ttt_dist.parallel.groups import Mpu, layer_factory
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.training.skip_step import SkipStep

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


def build_model(config: Config, layout: TokenLayout, mesh: Mesh, mpu: Mpu | None, weights: WeightSource) -> nn.Module:
    """This process's part of the model, born partitioned where ZeRO-3 would partition it; collective."""
    settings = deepspeed_config(config, mesh)
    factory = layer_factory(mesh, weights, config.parallel.sequence_parallel, config.train.fp8)
    checkpointing, compiled = config.train.activation_checkpointing, config.train.compile
    if mesh.pipeline > 1:
        from ttt_dist.parallel.pipeline import pipeline_module

        return pipeline_module(config.model, layout, factory, mesh, checkpointing, compiled)
    group = None if mpu is None else mpu.get_data_parallel_group()
    is_partitioned = zero_stage(config.deepspeed) == 3
    with deepspeed.zero.Init(data_parallel_group=group, config_dict_or_path=settings, enabled=is_partitioned, mpu=mpu):
        model = Transformer.for_layout(config.model, layout, factory)
    prepare_blocks(model.blocks, config.model.hidden_size, checkpointing, compiled)
    return model


def build_engine(model: nn.Module, config: Config, mesh: Mesh, mpu: Mpu | None) -> deepspeed.DeepSpeedEngine:
    """Wrap `model` for training. Needs a process group."""
    settings = deepspeed_config(config, mesh)
    printed = io.StringIO()
    with redirect_stdout(printed):  # DeepSpeed prints its memory figures; they belong into the rank's log file
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=build_optimizer(model, config.train),
            config=settings,
            mpu=mpu if mesh.pipeline == 1 else None,  # a PipelineModule has its own
        )
    logger.info("deepspeed.initialize: %s", printed.getvalue())
    if isinstance(engine.optimizer, FP16_UnfusedOptimizer):
        # bf16 at ZeRO 0: DeepSpeed allocates Adam's moments by a step with zero gradients, and so counts one step too many.
        engine.optimizer.optimizer.state.clear()
    engine.clip_fp32_gradients = MethodType(_clip_gradients, engine)
    engine.checkpoint_engine = ChecksummingEngine()
    engine._copy_recovery_script = lambda _: (
        None
    )  # DeepSpeed's converter knows neither tensor parallelism nor our names
    return engine


def wrap_optimizer_step(engine: deepspeed.DeepSpeedEngine, guard: SkipStep) -> None:
    """Let `guard` decide whether a step is applied, between the gradient's norm and the update."""
    adam = getattr(engine.optimizer, "optimizer", engine.optimizer)  # inside DeepSpeed's own, where there is one
    update = adam.step

    def step(*arguments: Any, **named: Any) -> Any:
        owner = engine.optimizer if hasattr(engine.optimizer, "_global_grad_norm") else engine
        return update(*arguments, **named) if guard.accepts(float(owner._global_grad_norm)) else None

    adam.step = step


def build_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW whose weight decay leaves norms and biases alone. Its rate is 0 until a step sets it."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in model.parameters():
        (matrices if _is_matrix(parameter) else vectors).append(parameter)
    groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=train.betas, eps=train.eps, fused=True)


def _clip_gradients(engine: deepspeed.DeepSpeedEngine) -> None:
    """Clip at ZeRO 0 in fp32, and keep the norm, which DeepSpeed's own function drops.

    Its own also counts what several pipeline stages hold of a tied weight more than once.
    """
    group = None if engine.mpu is None else engine.mpu.get_model_parallel_group()
    is_first = engine.mpu is None or engine.mpu.get_tensor_model_parallel_rank() == 0
    parameters = [parameter for parameter in engine.module.parameters() if parameter.grad is not None]
    squares = torch.zeros((), dtype=torch.float64, device=engine.device)
    for parameter in parameters:
        is_split = getattr(parameter, "tensor_model_parallel", False)
        if (is_split or is_first) and not getattr(parameter, "ds_pipe_replicated", False):
            squares += torch.linalg.vector_norm(parameter.grad, dtype=torch.float64) ** 2
    if group is not None:
        dist.all_reduce(squares, group=group)
    norm = squares.sqrt()
    engine._global_grad_norm = float(norm)
    torch.nn.utils.clip_grads_with_norm_(parameters, engine.gradient_clipping(), norm.float())


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
