"""Everything of DeepSpeed that its documentation does not promise: private attributes that are read, methods that are replaced.

Each function says why it is needed. tests/unit/test_deepspeed_adapter.py fails where DeepSpeed no longer has what is used
here, or no longer needs it.

Where DeepSpeed keeps the numbers of a weight. All of its optimizers wrap the AdamW that they are given, and update fp32
tensors (masters) with the moments of Adam beside them. What a master is depends on the wrapper:

    ZeRO 0 in fp32   no wrapper                     each parameter is its own master
    ZeRO 0 in bf16   FP16_UnfusedOptimizer          a whole fp32 tensor for each parameter
    ZeRO 1 and 2     DeepSpeedZeroOptimizer         a group's weights end to end in one flat tensor, cut into equal parts
    pipeline, bf16   BF16_Optimizer                 the same
    ZeRO 3           DeepSpeedZeroOptimizer_Stage3  each weight cut into equal parts, those of a process end to end

Weights of the forward pass are made from the masters after each update.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime import compiler
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.pipe.engine import PipelineEngine
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

RUN = 1 << 24  # numbers that are read or sent at once, so that memory does not grow with the weights

# The process group


def take_over_process_group() -> None:
    """Let DeepSpeed work on torch's process group, which must exist; once more does nothing.

    It would compile a kernel for inference here, which needs a C++ compiler and is of no use in training.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)


def import_muon_uncompiled() -> None:
    """Import DeepSpeed's optimizer Muon, about which its ZeRO asks of every other one, without compiling its kernels.

    Nothing here uses Muon, and its `torch.compile` brings in all of Inductor: 2 s of CPU and 40 MB for each process.
    """
    compiler.compile, kept = lambda: lambda function: function, compiler.compile
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    finally:
        compiler.compile = kept


def forget_groups() -> None:
    """DeepSpeed remembers the mpu of the last engine, whose groups are about to be destroyed, for the next one."""
    from deepspeed.utils import groups

    groups.mpu = None


# One step


def set_accumulation_steps(engine: deepspeed.DeepSpeedEngine, number: int) -> None:
    """Take so many micro-batches for the next update; between two updates only.

    The engine has a method for it, but goes on counting micro-batches since the start, and updates where that count is a
    multiple of the new number; and ZeRO 1 and 2 with offload keep a number of their own.
    """
    if engine.gradient_accumulation_steps() == number:
        return
    engine.set_train_batch_size(number * engine.train_micro_batch_size_per_gpu() * engine.dp_world_size)
    engine.micro_steps = 0
    if hasattr(engine.optimizer, "gradient_accumulation_steps"):
        engine.optimizer.gradient_accumulation_steps = number


def keep_norm_of_clipping(engine: deepspeed.DeepSpeedEngine) -> None:
    """Clip at ZeRO 0 in fp32 by a function of ours: DeepSpeed's drops the norm, which is to be logged and judged.

    Its own also counts what several pipeline stages hold of a tied weight more than once.
    """
    engine.clip_fp32_gradients = MethodType(_clip_gradients, engine)


def _clip_gradients(engine: deepspeed.DeepSpeedEngine) -> None:
    group = None if engine.mpu is None else engine.mpu.get_model_parallel_group()
    is_first = engine.mpu is None or engine.mpu.get_tensor_model_parallel_rank() == 0
    parameters = [parameter for parameter in engine.module.parameters() if parameter.grad is not None]
    squares = torch.zeros((), dtype=torch.float64, device=engine.device)
    for parameter in parameters:
        # A slice is counted by all processes of the model-parallel group, what is whole on each by the first alone; of a
        # tied weight the last stage has a copy (`ds_pipe_replicated`), which is not counted.
        is_split = getattr(parameter, "tensor_model_parallel", False)
        if (is_split or is_first) and not getattr(parameter, "ds_pipe_replicated", False):
            squares += torch.linalg.vector_norm(parameter.grad, dtype=torch.float64) ** 2
    if group is not None:
        dist.all_reduce(squares, group=group)
    norm = squares.sqrt()
    engine._global_grad_norm = float(norm)  # what get_global_grad_norm() returns
    torch.nn.utils.clip_grads_with_norm_(parameters, engine.gradient_clipping(), norm.float())


def mark_split(parameter: nn.Parameter) -> nn.Parameter:
    """Tell DeepSpeed that the other tensor-parallel processes hold other slices: norms of the gradient sum over them."""
    parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
    return parameter


def inner_adam(engine: deepspeed.DeepSpeedEngine) -> torch.optim.AdamW:
    """The AdamW that the engine was given, inside DeepSpeed's own optimizer where there is one."""
    adam: torch.optim.AdamW = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return adam


def wrap_optimizer_step(engine: deepspeed.DeepSpeedEngine, accepts: Callable[[float], bool]) -> None:
    """Apply an update only where `accepts` says so of the gradient's norm.

    DeepSpeed computes the norm, clips and updates in one call. Between norm and update stands only the step of the AdamW
    inside, and by then each of its optimizers has left the norm in `_global_grad_norm`.
    """
    adam = inner_adam(engine)
    update = adam.step

    def step(*arguments: Any, **named: Any) -> Any:
        owner = engine.optimizer if hasattr(engine.optimizer, "_global_grad_norm") else engine
        return update(*arguments, **named) if accepts(float(owner._global_grad_norm)) else None

    adam.step = step  # type: ignore[method-assign]


@contextmanager
def steps_not_counted(engine: deepspeed.DeepSpeedEngine) -> Iterator[None]:
    """Steps inside, none of which is applied, do not count in what the engine keeps in its checkpoints."""
    before = {
        name: getattr(engine, name) for name in ("global_steps", "global_samples", "skipped_steps", "micro_steps")
    }
    try:
        yield
    finally:
        vars(engine).update(before)


def before_adam(engine: deepspeed.DeepSpeedEngine, tell: Callable[[], None]) -> None:
    """Call `tell` before Adam changes weights and moments. An update that is not accepted changes none, and is not told."""
    inner_adam(engine).register_step_pre_hook(lambda *_: tell())


def forget_allocating_step(engine: deepspeed.DeepSpeedEngine) -> None:
    """bf16 at ZeRO 0: DeepSpeed allocates Adam's moments by a step with zero gradients, and so counts one step too many."""
    if isinstance(engine.optimizer, FP16_UnfusedOptimizer):
        engine.optimizer.optimizer.state.clear()


@contextmanager
def before_update(engine: PipelineEngine, tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` when a batch has its gradients: the pipeline's schedule goes on to the update without a word."""
    update = engine._take_model_step

    def tell_and_update(*arguments: Any) -> None:
        tell()
        update(*arguments)

    engine._take_model_step = tell_and_update
    try:
        yield
    finally:
        engine._take_model_step = update


# Checkpoints


def write_through(engine: deepspeed.DeepSpeedEngine, storage: CheckpointEngine) -> None:
    """Let the engine read and write its files through `storage`; DeepSpeed's JSON can choose among its own classes only.

    And no zero_to_fp32.py beside each checkpoint, which knows neither tensor parallelism nor our names.
    """
    engine.checkpoint_engine = storage
    engine._copy_recovery_script = lambda _: None


def pickled_classes() -> list[Any]:
    """The classes that DeepSpeed puts into the files of our layouts beside plain values and tensors."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]


# Weights and their masters. DeepSpeed hangs its own attributes on parameters, which no type says.


class ParamFragment(NamedTuple):
    """`size` numbers of this process's slice of a weight, from number `first` on, are those of `master` from `offset` on."""

    master: Tensor
    offset: int
    first: int
    size: int


def full_shape(parameter: Any) -> torch.Size:
    """A ZeRO-3 parameter that is born partitioned shows an empty shape; DeepSpeed keeps the true one aside."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def masters(engine: deepspeed.DeepSpeedEngine) -> list[Tensor]:
    """The fp32 tensors that this process's Adam updates."""
    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return list(optimizer.fp32_partitioned_groups_flat)
    if isinstance(optimizer, (DeepSpeedZeroOptimizer, BF16_Optimizer)):
        return list(_flat_masters(optimizer))
    if isinstance(optimizer, FP16_UnfusedOptimizer):
        return [master for group in optimizer.fp32_groups for master in group]
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _flat_masters(optimizer: DeepSpeedZeroOptimizer | BF16_Optimizer) -> list[Tensor]:
    found: list[Tensor] = (
        optimizer.single_partition_of_fp32_groups
        if isinstance(optimizer, DeepSpeedZeroOptimizer)
        else optimizer.fp32_groups_flat_partition
    )
    return found


def fragments(
    engine: deepspeed.DeepSpeedEngine, parameters: dict[str, nn.Parameter]
) -> Iterator[tuple[str, ParamFragment]]:
    """Of the parameters that this process keeps numbers of: where those are. What has no gradient is its own master."""
    optimizer, kept = engine.optimizer, masters(engine)
    own_master: dict[nn.Parameter, Tensor] = {}
    if isinstance(optimizer, FP16_UnfusedOptimizer):
        rounded = (parameter for group in optimizer.fp16_groups for parameter in group)
        own_master = dict(zip(rounded, kept, strict=True))
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            fragment = _frozen(parameter)
        elif isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
            fragment = _partitioned(optimizer, parameter)
        elif isinstance(optimizer, (DeepSpeedZeroOptimizer, BF16_Optimizer)):
            fragment = _flattened(parameter, kept)
        else:
            fragment = ParamFragment(own_master.get(parameter, parameter), 0, 0, parameter.numel())
        if fragment.size:
            yield name, fragment


def _partitioned(optimizer: DeepSpeedZeroOptimizer_Stage3, parameter: Any) -> ParamFragment:
    group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
    first = size * optimizer._get_param_partition_rank(parameter)
    size = max(min(size, parameter.ds_numel - first), 0)  # the last parts may be padding
    return ParamFragment(optimizer.fp32_partitioned_groups_flat[group], offset, first, size)


def _frozen(parameter: Any) -> ParamFragment:
    if not hasattr(parameter, "ds_tensor"):
        return ParamFragment(parameter.data, 0, 0, parameter.numel())
    size = parameter.ds_tensor.ds_numel
    first = size * dist.get_rank(parameter.ds_process_group)
    return ParamFragment(parameter.ds_tensor.data, 0, first, max(min(size, parameter.ds_numel - first), 0))


def _flattened(parameter: Any, kept: list[Tensor]) -> ParamFragment:
    mapping = parameter._hp_mapping
    if mapping is None:  # another process keeps it
        return ParamFragment(kept[0], 0, 0, 0)
    here, there = mapping.hp_fragment_address, mapping.lp_fragment_address  # in the master, in the weight
    return ParamFragment(kept[mapping.param_group_index], here.start, there.start, there.numel)


def _refresh_flat(optimizer: DeepSpeedZeroOptimizer | BF16_Optimizer, groups: list[list[Tensor]]) -> None:
    """What `update_lp_params` does, some numbers at a time: under gloo its all-gather holds all weights once more."""
    for parts, master, group in zip(groups, _flat_masters(optimizer), optimizer.real_dp_process_group, strict=True):
        parts[dist.get_rank(group)].copy_(master)
        for rank, part in enumerate(parts if len(parts) > 1 else []):
            for run in part.split(RUN):
                dist.broadcast(run, dist.get_global_rank(group, rank), group)


@torch.no_grad()
def refresh_model_weights(engine: deepspeed.DeepSpeedEngine) -> None:
    """Make the weights of the forward pass anew from the masters, which were set from outside; collective."""
    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        optimizer.checkpoint_event_prologue()  # forget what is gathered
        for index in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        optimizer.checkpoint_event_epilogue()  # gather what stays gathered
    elif isinstance(optimizer, DeepSpeedZeroOptimizer):
        _refresh_flat(optimizer, optimizer.parallel_partitioned_bit16_groups)
    elif isinstance(optimizer, BF16_Optimizer):
        _refresh_flat(optimizer, optimizer.bf16_partitioned_groups)
    elif isinstance(optimizer, FP16_UnfusedOptimizer):
        for rounded, whole in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for weight, master in zip(rounded, whole, strict=True):
                weight.copy_(master)
