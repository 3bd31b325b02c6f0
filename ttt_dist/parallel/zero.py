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
from ttt_dist.model.optimizer_groups import OptimizerGroup, learnt_names, optimizer_groups
from ttt_dist.model.structure import parameter_shapes
from ttt_dist.parallel import deepspeed_adapter
from ttt_dist.parallel.gather import own_parameters
from ttt_dist.parallel.groups import Mpu
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.parallel.pipeline import unused_parameter
from ttt_dist.sequence.tokens import TokenLayout

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


def apply_zero(
    model: nn.Module, config: Config, layout: TokenLayout, mesh: Mesh, mpu: Mpu | None
) -> deepspeed.DeepSpeedEngine:
    """The engine that trains `model`: optimizer state, gradients and weights divided as the ZeRO stage asks; collective."""
    deepspeed_adapter.import_muon_uncompiled()
    printed = io.StringIO()
    with redirect_stdout(printed):  # DeepSpeed prints its memory figures; they belong into the rank's log file
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=_build_optimizer(model, config, layout, mesh),
            config=deepspeed_config(config, mesh),
            mpu=mpu if mesh.pipeline == 1 else None,  # a PipelineModule has its own
        )
    logger.info("deepspeed.initialize: %s", printed.getvalue())
    deepspeed_adapter.forget_allocating_step(engine)
    if config.train.ema:
        _keep_average(deepspeed_adapter.inner_adam(engine), config.train.ema)
    deepspeed_adapter.keep_norm_of_clipping(engine)
    return engine


def _build_optimizer(model: nn.Module, config: Config, layout: TokenLayout, mesh: Mesh) -> torch.optim.AdamW:
    """AdamW with the groups that the settings ask for. Its rate is 0 until a step sets it. What is in no group gets no gradient."""
    own = own_parameters(model, mesh, config.model)
    learnt = learnt_names(parameter_shapes(config.model, layout.padded_vocab_size), config.train)
    for name, parameter in own.items():
        parameter.requires_grad_(name in learnt)
        if name not in learnt:
            parameter._hp_grad = None  # type: ignore[attr-defined]  # a pipeline of bf16 asks a tied weight for it
    groups = []
    for number, group in enumerate(groups_of(config, layout)):
        mine = [name for name in own if name in group.names]
        if group.is_masked:
            for name in mine:
                _mask_gradient(own[name], group, layout, mesh)
        spare = [unused_parameter(model, number)] if mesh.pipeline > 1 and not mine else []
        groups.append({"params": [own[name] for name in mine] or spare, **_settings(group, config.train)})
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def _keep_average(adam: torch.optim.AdamW, decay: float) -> None:
    """Keep a moving average of the weights that Adam updates among its state: divided, saved and resumed like its moments.

    It begins with the weights after the first update.
    """

    def average(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for weight in (
            weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None
        ):
            state = optimizer.state[weight]
            if "ema" in state:
                state["ema"].lerp_(weight, 1.0 - decay)
            else:
                state["ema"] = weight.clone()

    adam.register_step_post_hook(torch.no_grad()(average))


def groups_of(config: Config, layout: TokenLayout) -> list[OptimizerGroup]:
    """The optimizer's groups."""
    return optimizer_groups(parameter_shapes(config.model, layout.padded_vocab_size), config.train)


def _settings(group: OptimizerGroup, train: TrainConfig) -> dict[str, Any]:
    """What AdamW is told of a group, and by what its rate is multiplied."""
    return {
        "lr_scale": group.lr_scale,
        "weight_decay": group.weight_decay,
        "betas": train.betas,
        "eps": train.eps,
    }


def apply_settings(engine: deepspeed.DeepSpeedEngine, config: Config, layout: TokenLayout, mesh: Mesh) -> None:
    """Put the run's settings of the optimizer in the place of those that a checkpoint has brought."""
    groups, states = groups_of(config, layout), deepspeed_adapter.inner_adam(engine).state
    for theirs, ours in zip(engine.optimizer.param_groups, groups, strict=True):
        theirs.update(_settings(ours, config.train))
    if not config.train.ema:
        for state in states.values():
            state.pop("ema", None)
    own = own_parameters(engine.module, mesh, config.model)
    masked = {name: own[name] for group in groups if group.only_new_rows for name in group.names if name in own}
    for name, part in deepspeed_adapter.fragments(engine, masked):
        num_rows, width = deepspeed_adapter.full_shape(own[name])
        num_old = _num_old_rows(num_rows, layout, mesh) * width
        # Without a gradient, momentum of before would move them on.
        momentum = states.get(part.master, {}).get("exp_avg")
        if momentum is not None:
            momentum.view(-1).narrow(0, part.offset, max(min(num_old - part.first, part.size), 0)).zero_()


def _mask_gradient(parameter: nn.Parameter, group: OptimizerGroup, layout: TokenLayout, mesh: Mesh) -> None:
    """Put to zero what must not change a weight: with moments of zero and no decay, AdamW leaves it as it is."""
    if not group.only_new_rows:
        parameter.register_hook(torch.zeros_like)
        return
    num_old = _num_old_rows(deepspeed_adapter.full_shape(parameter)[0], layout, mesh)

    def mask(gradient: torch.Tensor) -> torch.Tensor:
        kept = gradient.clone()
        kept[:num_old] = 0
        return kept

    parameter.register_hook(mask)


def _num_old_rows(num_rows: int, layout: TokenLayout, mesh: Mesh) -> int:
    """Of the vocabulary's rows that this process has, those of text: they are divided in order of the tensor-parallel rank."""
    return min(max(layout.num_text_tokens - mesh.tensor_rank * num_rows, 0), num_rows)


def reported_norm(engine: deepspeed.DeepSpeedEngine) -> float:
    """The gradient norm that DeepSpeed's optimizer computed in the last step, before clipping."""
    norm = engine.get_global_grad_norm()
    return float("nan") if norm is None else float(norm)


def set_learning_rate(engine: deepspeed.DeepSpeedEngine, value: float) -> None:
    """Use `value` in the next update."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value * group["lr_scale"]
