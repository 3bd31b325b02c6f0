"""Process groups of a mesh, made by Megatron-Core, and the `mpu` by which DeepSpeed asks for them.

Megatron-Core takes seconds to import: a run that is data-parallel alone does without it, and its mpu is None.
"""

from functools import partial
from typing import TYPE_CHECKING

from ttt_dist.parallel import megatron_adapter
from ttt_dist.parallel.mesh import Mesh

if TYPE_CHECKING:
    from ttt_dist.model.layers import LocalLayerFactory, WeightSource


class Mpu:
    """Megatron's groups under DeepSpeed's names: model parallel is tensor parallel.

    Ulysses processes count as data-parallel: each has the gradients of its tokens, and all are summed alike. (DeepSpeed
    has names for them too, but its ZeRO-3 then divides the gradients by one factor too many.)
    """

    def __init__(self) -> None:
        from megatron.core import parallel_state as state

        self.get_model_parallel_rank = self.get_tensor_model_parallel_rank = state.get_tensor_model_parallel_rank
        self.get_model_parallel_group = self.get_tensor_model_parallel_group = state.get_tensor_model_parallel_group
        self.get_model_parallel_world_size = state.get_tensor_model_parallel_world_size
        self.get_tensor_model_parallel_world_size = state.get_tensor_model_parallel_world_size
        self.get_tensor_model_parallel_src_rank = state.get_tensor_model_parallel_src_rank
        self.get_model_parallel_src_rank = state.get_tensor_model_parallel_src_rank
        self.get_data_parallel_rank = partial(state.get_data_parallel_rank, with_context_parallel=True)
        self.get_data_parallel_group = partial(state.get_data_parallel_group, with_context_parallel=True)
        self.get_data_parallel_world_size = partial(state.get_data_parallel_world_size, with_context_parallel=True)
        self.get_pipeline_model_parallel_rank = state.get_pipeline_model_parallel_rank
        self.get_pipeline_model_parallel_world_size = state.get_pipeline_model_parallel_world_size


def join(mesh: Mesh) -> Mpu | None:
    """Let DeepSpeed and Megatron make the groups of `mesh`; collective. None where all axes but data have size 1."""
    from ttt_dist.parallel.deepspeed_adapter import take_over_process_group  # takes seconds to import

    take_over_process_group()
    if mesh.data == mesh.world_size:
        return None
    megatron_adapter.import_core_uncompiled()
    megatron_adapter.allocate_on_cpu()
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=mesh.tensor,
        pipeline_model_parallel_size=mesh.pipeline,
        context_parallel_size=mesh.ulysses,
        order="tp-cp-ep-dp-pp",
        create_gloo_process_groups=False,
    )
    return Mpu()


def leave() -> None:
    """Destroy the groups of the last `join`, and Megatron's and DeepSpeed's memory of them."""
    from ttt_dist.parallel.deepspeed_adapter import forget_groups

    forget_groups()
    megatron_adapter.destroy_groups()


def layer_factory(
    mesh: Mesh, weights: "WeightSource", sequence_parallel: bool, fp8: bool = False
) -> "LocalLayerFactory":
    """The factory of this process's layers, after `join`; `fp8` is for whole layers only."""
    from ttt_dist.model.layers import LocalLayerFactory

    sequence_sharding = None
    if mesh.ulysses > 1:
        from megatron.core import parallel_state

        from ttt_dist.parallel.ulysses import UlyssesSplit

        sequence_sharding = UlyssesSplit(parallel_state.get_context_parallel_group())
    if fp8:
        from ttt_dist.model.fp8 import Fp8Factory

        return Fp8Factory(weights, sequence_sharding)
    if mesh.tensor == 1:
        return LocalLayerFactory(weights, sequence_sharding)
    from ttt_dist.parallel.tensor import TensorParallelFactory

    return TensorParallelFactory(weights, sequence_sharding, sequence_parallel)
