"""DeepSpeed's JSON: which of its keys go with a run, and what `"auto"` in it comes to.

DeepSpeed passes over keys that it does not know outside `zero_optimization`, and takes "auto" for its default. Here every
key is known or refused. The classes below are the part of DeepSpeed's models that runs here were tested with; they are
checked without importing it, which takes seconds, and by its own models at a launch (`require_accepted`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval

from ttt_dist.config.section import NonNegativeInt, PositiveInt, Section, require
from ttt_dist.util.errors import UserError
from ttt_dist.util.shipped import find_shipped

Dtype = Literal["fp32", "bf16", "fp16"]


@dataclass
class OffloadConfig(Section):
    """Where the optimizer's state is kept."""

    device: Literal["none", "cpu"] = "none"
    pin_memory: bool = True
    buffer_count: NonNegativeInt = 5


@dataclass
class OffloadParamConfig(OffloadConfig):
    """Where weights are kept between their uses."""

    buffer_size: NonNegativeInt = 10**8
    max_in_cpu: NonNegativeInt = 10**9


@dataclass(kw_only=True)
class ZeroConfig(Section):
    """What is partitioned, and in pieces of how many elements."""

    stage: Annotated[int, Interval(ge=0, le=3)] = 0
    contiguous_gradients: bool = True
    reduce_scatter: bool = True
    reduce_bucket_size: PositiveInt = 500_000_000
    use_multi_rank_bucket_allreduce: bool = True
    allgather_partitions: bool = True
    allgather_bucket_size: PositiveInt = 500_000_000
    overlap_comm: bool | None = None
    load_from_fp32_weights: bool = True
    offload_optimizer: OffloadConfig | None = None
    offload_param: OffloadParamConfig | None = None
    sub_group_size: PositiveInt = 10**9
    stage3_prefetch_bucket_size: NonNegativeInt = 50_000_000
    stage3_param_persistence_threshold: NonNegativeInt = 100_000
    stage3_model_persistence_threshold: NonNegativeInt = 2**63 - 1
    stage3_max_live_parameters: NonNegativeInt = 10**9
    stage3_max_reuse_distance: NonNegativeInt = 10**9
    stage3_gather_16bit_weights_on_model_save: bool = False
    ignore_unused_parameters: bool = True
    round_robin_gradients: bool = False
    memory_efficient_linear: bool = True
    log_trace_cache_warnings: bool = False


@dataclass
class DataTypesConfig(Section):
    """In what gradients are summed over micro-batches."""

    grad_accum_dtype: Dtype | None = None


@dataclass
class ThroughputConfig(Section):
    """DeepSpeed's timer of samples per second, which waits for the device."""

    enabled: bool = True
    synchronized: bool = True


@dataclass
class TimersConfig(Section):
    """What DeepSpeed times."""

    throughput: ThroughputConfig = field(default_factory=ThroughputConfig)


@dataclass(kw_only=True)
class CommsLoggerConfig(Section):
    """DeepSpeed's log of its collectives."""

    enabled: bool = False
    verbose: bool = False
    prof_all: bool = True
    debug: bool = False
    prof_ops: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class DeepSpeedFile(Section):
    """A file of ds_configs/."""

    zero_optimization: ZeroConfig = field(default_factory=ZeroConfig)
    zero_force_ds_cpu_optimizer: bool = True
    zero_allow_untested_optimizer: bool = False
    communication_data_type: Dtype | None = None
    data_types: DataTypesConfig = field(default_factory=DataTypesConfig)
    steps_per_print: PositiveInt | None = None
    wall_clock_breakdown: bool = False
    memory_breakdown: bool = False
    dump_state: bool = False
    timers: TimersConfig = field(default_factory=TimersConfig)
    comms_logger: CommsLoggerConfig = field(default_factory=CommsLoggerConfig)


_DECIDED_BY_CONFIG = {
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.global_batch and train.micro_batch",
    "gradient_clipping": "train.clip",
    "optimizer": "train.lr, train.betas, train.weight_decay",
    "scheduler": "train.warmup, train.min_lr_ratio",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "bfloat16": "train.precision",
    "activation_checkpointing": "train.activation_checkpointing",
    "tensor_parallel": "parallel.tensor",
    "sequence_parallel_size": "parallel.ulysses",
    "pipeline": "parallel.pipeline",
    "compile": "train.compile",
    "flops_profiler": "telemetry.profile_steps",
    "tensorboard": "telemetry.tensorboard",
    "wandb": "telemetry.wandb",
    "csv_monitor": "telemetry.log_every",
    "checkpoint": "checkpoint.save_every",
}
_UNTESTED = {
    **dict.fromkeys(("mics_shard_size", "mics_hierarchical_params_gather"), "MiCS"),
    "zero_hpz_partition_size": "hpZ, the secondary partition of ZeRO++",
    **dict.fromkeys(
        ("zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights"),
        "quantised communication of ZeRO++",
    ),
    **dict.fromkeys(("aio", "nvme_path", "pipeline_read", "pipeline_write", "fast_init"), "offload to NVMe"),
    **dict.fromkeys(("ratio", "super_offload", "cpuadam_cores_perc"), "partial offload"),
    **dict.fromkeys(("zenflow", "elasticity", "autotuning", "amp", "hybrid_engine", "torch_autocast"), "that"),
    **dict.fromkeys(("compression_training", "data_efficiency", "curriculum_learning", "weight_quantization"), "that"),
    **dict.fromkeys(
        ("prescale_gradients", "gradient_predivide_factor", "gradient_allreduce_op"), "other sums of gradients"
    ),
    "compute_grad_norm": "steps without a gradient norm, which guard.spike_factor needs",
}
_FORMER = {
    "cpu_offload": 'offload_optimizer: {"device": "cpu"}',
    "cpu_offload_params": 'offload_param: {"device": "cpu"}',
    "cpu_offload_param": 'offload_param: {"device": "cpu"}',
    "cpu_offload_use_pin_memory": 'offload_optimizer: {"device": "cpu", "pin_memory": true}',
}
_LEAST_STAGE = {"offload_optimizer": 1, "offload_param": 3}
"""Below it DeepSpeed passes over the key."""
_INSTEAD_OF_AUTO = {
    "stage": "0, 1, 2 or 3",
    "reduce_bucket_size": "50000000, as ds_configs/zero3.json does",
    "allgather_bucket_size": "50000000, as ds_configs/zero2.json does",
    "stage3_prefetch_bucket_size": "50000000, as ds_configs/zero3.json does",
    "stage3_param_persistence_threshold": "1000000, as ds_configs/zero3.json does",
    "overlap_comm": "true at stage 3 and false elsewhere",
}


def read_deepspeed(path: str | Path) -> dict[str, Any]:
    """The DeepSpeed JSON as a dict, without what the run's config decides anyway.

    Raises UserError where it is missing or broken, holds a key that is not known, or sets what the config sets.
    """
    from ttt_dist.config.reading import as_typed, build

    where = f"deepspeed={path}"
    values = _read_json(path, where)
    for name, knob in _DECIDED_BY_CONFIG.items():
        if name in values and not _follows_config(name, values.pop(name)):
            raise UserError(f"{where}: remove `{name}`; the run's config sets it ({knob})")
    _require_tested(values, (), where)
    _require_used(build(DeepSpeedFile, values, where).zero_optimization, where)
    return as_typed(values, DeepSpeedFile)


def zero_stage(path: str | Path) -> int:
    """The ZeRO stage that a DeepSpeed JSON asks for."""
    return int(_zero_setting(path, "stage"))


def sub_group_size(path: str | Path) -> int:
    """In pieces of how many elements ZeRO 3 is to keep what a process updates."""
    return int(_zero_setting(path, "sub_group_size"))


def _zero_setting(path: str | Path, name: str) -> Any:
    return read_deepspeed(path).get("zero_optimization", {}).get(name, getattr(ZeroConfig, name))


def require_accepted(path: str | Path) -> None:
    """Raise UserError where the installed DeepSpeed's own models refuse a JSON. Imports DeepSpeed."""
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(read_deepspeed(path) | {"train_micro_batch_size_per_gpu": 1})
    except (AssertionError, TypeError, ValueError) as error:  # pydantic's and DeepSpeed's own are ValueErrors
        reason = " ".join(str(error).partition(" [type=")[0].split())
        raise UserError(f"deepspeed={path}: DeepSpeed refuses it ({reason[:300]})") from None


def _read_json(path: str | Path, where: str) -> dict[str, Any]:
    try:
        values = json.loads(find_shipped(path).read_text(encoding="utf8"), object_pairs_hook=_unique)
    except OSError as error:
        raise UserError(
            f"{where}: cannot be read ({error.strerror}); ds_configs/ holds zero0.json to zero3.json"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: line {error.lineno} is not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON ({str(error)[:100]})") from None
    require(isinstance(values, dict), f"{where}: must hold a JSON object")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"the key {twice!r} stands twice")
    return dict(pairs)


def _follows_config(name: str, value: Any) -> bool:
    """Whether a key that the config decides says no more than that: "auto", as files made for transformers say."""
    if isinstance(value, dict):
        if name == "fp16":
            return value.get("enabled") in ("auto", False)  # which it is; the scale of its loss is then nothing
        if name == "optimizer":
            return value.get("type") == "AdamW" and _follows_config("", value.get("params", {}))
        return bool(value) and all(item == "auto" for item in value.values())
    return bool(value == "auto")


def _require_used(zero: ZeroConfig, where: str) -> None:
    """Raise UserError where DeepSpeed would pass over an offload, or mistake one weight for another."""
    require(
        not zero.round_robin_gradients or zero.stage not in (1, 2),
        f"{where}: zero_optimization.round_robin_gradients: with it DeepSpeed puts the optimizer's weights into another order than "
        "it says, and checkpoints could neither be exported nor go on in another layout; write false",
    )
    for name, least in _LEAST_STAGE.items():
        offload = getattr(zero, name)
        require(
            offload is None or offload.device == "none" or zero.stage >= least,
            f"{where}: zero_optimization.{name} asks for what ZeRO {zero.stage} does not do; write stage {least}"
            f"{' or more' if least < 3 else ''}, or take it away",
        )


def _require_tested(values: Any, key: tuple[str, ...], where: str) -> None:
    """Raise UserError for what DeepSpeed knows and nothing here was tested with, and for "auto" that nothing decides."""
    for name, value in values.items() if isinstance(values, dict) else ():
        told = ".".join((*key, name))[:120]
        if name in _FORMER:
            raise UserError(f"{where}: `{told}` has another name by now; write {_FORMER[name]}")
        if name in _UNTESTED:
            raise UserError(f"{where}: remove `{told}`; nothing here was tested with {_UNTESTED[name]}")
        if value == "nvme":
            raise UserError(f"{where}: {told}=nvme: nothing here was tested with offload to NVMe; write cpu or none")
        if value == "auto":
            raise UserError(
                f'{where}: `{told}` is "auto", which nothing in the run\'s config decides; '
                + (f"write {_INSTEAD_OF_AUTO[name]}" if name in _INSTEAD_OF_AUTO else "take it away")
            )
        _require_tested(value, (*key, name), where)
