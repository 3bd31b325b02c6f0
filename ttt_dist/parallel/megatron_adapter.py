"""Everything of Megatron-Core that its documentation does not promise, and what is replaced to make it run on CPUs.

tests/unit/test_deepspeed_adapter.py fails where Megatron no longer has what is used here.
"""

import sys
import warnings

import torch
import torch.distributed as dist


def import_core_uncompiled() -> None:
    """Import Megatron-Core without compiling its fused functions, as their decorator `jit_fuser` does when they are defined.

    Nothing here uses them, and `torch.compile` brings in all of Inductor: 3.5 s of CPU and 70 MB for each process.
    """
    torch.compile, kept = lambda function: function, torch.compile  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kernels that it would use if they were installed
            from megatron.core import jit
    finally:
        torch.compile = kept
    jit.enable_jit_fuser()  # for whoever defines some later


def allocate_on_cpu() -> None:
    """Megatron allocates what it gathers on torch.cuda.current_device(), also where the tensors to gather are on the CPU."""
    if not torch.cuda.is_available():
        torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment, return-value]


def destroy_groups() -> None:
    """Leave the groups that `initialize_model_parallel` made; its own `destroy_model_parallel` only forgets them.

    The threads of a gloo group live as long as the group does.
    """
    if "megatron.core.parallel_state" not in sys.modules:
        return
    state = sys.modules["megatron.core.parallel_state"]
    for group in (state._global_process_group_list or [None])[1:]:  # the first stands for the default group
        dist.destroy_process_group(group)
    state.destroy_model_parallel()
