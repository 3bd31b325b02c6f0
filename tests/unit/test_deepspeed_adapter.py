"""What the adapters use of DeepSpeed and Megatron-Core is there, does what they say, and is still needed.

A test that fails after an upgrade names the function of ttt_dist/parallel/deepspeed_adapter.py or megatron_adapter.py that
has to be looked at.
"""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.distributed import adapter_cases as cases
from tests.distributed.cases import Layout
from tests.distributed.launch import run_distributed
from ttt_dist.config.model import ModelConfig
from ttt_dist.model.structure import parameter_shapes
from ttt_dist.parallel import stages
from ttt_dist.parallel.deepspeed_adapter import mark_split

pytestmark = pytest.mark.slow

WRAPPERS = {
    Layout(): "AdamW",
    Layout(precision="bf16"): "FP16_UnfusedOptimizer",
    Layout(zero=1): "DeepSpeedZeroOptimizer",
    Layout(zero=2, precision="bf16"): "DeepSpeedZeroOptimizer",
    Layout(zero=3): "DeepSpeedZeroOptimizer_Stage3",
    Layout(zero=3, precision="bf16"): "DeepSpeedZeroOptimizer_Stage3",
}
UNFUSED = Layout(precision="bf16")
PIPELINE = Layout(zero=1, micro=4, pipeline=2)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Any, ...], Any]:
    """What every case gives on one process."""
    folder = str(tmp_path_factory.mktemp("files"))
    wanted: list[tuple[Any, tuple[Any, ...]]] = [
        (case, (layout,))
        for layout in WRAPPERS
        for case in (cases.weights_and_fragments, cases.refreshed, cases.norms_asked)
    ]
    wanted += [(cases.files_written, (Layout(zero=1), folder)), (cases.allocating_step, (UNFUSED,))]
    wanted += [(cases.norm_of_deepspeeds_clipping, (Layout(),)), (cases.inductor_imported, ())]
    results = run_distributed(wanted, 1)
    return {(case.__name__, *arguments[:1]): found for (case, arguments), (found,) in zip(wanted, results, strict=True)}


@pytest.fixture(scope="module")
def two() -> list[list[Any]]:
    """What two processes give: the groups that are left, and a pipeline's step."""
    wanted: list[tuple[Any, tuple[Any, ...]]] = [(cases.remembered_groups, ()), (cases.order_of_update, (PIPELINE,))]
    return run_distributed([*wanted, (cases.inductor_imported, ())], 2, is_fresh=True)  # forks have imported Megatron


@pytest.mark.parametrize("layout", WRAPPERS, ids=str)
def test_fragments_are_where_the_numbers_of_a_weight_are(layout: Layout, alone: dict) -> None:
    """`masters`, `fragments`, `inner_adam`, `full_shape`, `forget_allocating_step`."""
    found = alone["weights_and_fragments", layout]
    assert found["optimizer"] == WRAPPERS[layout]
    assert found["covered"] and found["masters"] and found["worst"] == 0.0
    assert found["steps"] == {1}


@pytest.mark.parametrize("layout", WRAPPERS, ids=str)
def test_weights_are_made_anew_from_the_masters(layout: Layout, alone: dict) -> None:
    """`refresh_model_weights`."""
    assert alone["refreshed", layout] == [0.25]


@pytest.mark.parametrize("layout", WRAPPERS, ids=str)
def test_the_norm_is_known_before_the_update(layout: Layout, alone: dict) -> None:
    """`wrap_optimizer_step`, `keep_norm_of_clipping`."""
    heard, reported, moved = alone["norms_asked", layout]
    assert heard and all(norm == pytest.approx(reported, rel=1e-6) for norm in heard)
    assert reported > 0 and moved == 0.0


def test_no_engine_compiles_muon(alone: dict) -> None:
    """`import_muon_uncompiled`."""
    from deepspeed.runtime.zero.muon import original_muon

    assert alone["inductor_imported",] is False
    assert "@compiler.compile()\n" in inspect.getsource(original_muon)


def test_megatron_compiles_no_fused_function(two: list[list[Any]]) -> None:
    """`import_core_uncompiled`."""
    from megatron.core import jit

    assert two[2] == [False, False]
    assert "jit_fuser = torch.compile" in inspect.getsource(jit)
    assert jit.jit_fuser is torch.compile


def test_deepspeeds_own_clipping_still_drops_the_norm(alone: dict) -> None:
    """`keep_norm_of_clipping`."""
    assert alone["norm_of_deepspeeds_clipping", Layout()] != alone["norm_of_deepspeeds_clipping", Layout()]  # NaN


def test_a_new_engine_in_bf16_without_zero_still_has_made_a_step(alone: dict) -> None:
    """`forget_allocating_step`."""
    left, forgotten = alone["allocating_step", UNFUSED]
    assert left > 0 and forgotten == 0


def test_files_go_through_our_storage_and_no_script_lies_beside_them(alone: dict) -> None:
    """`write_through`, and `pickled_classes`: the state is read again without running anything in it."""
    ours, others = alone["files_written", Layout(zero=1)]
    assert ours == ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"] and not others


def test_the_groups_of_an_engine_are_left_for_good(two: list[list[Any]]) -> None:
    """`forget_groups`, `destroy_groups`."""
    for remembers, forgotten, before, after in two[0]:
        assert remembers and forgotten
        assert after == before


def test_a_pipeline_tells_before_it_updates(two: list[list[Any]]) -> None:
    """`before_update`."""
    for told in two[1]:
        assert told[0] == "forward_backward" and set(told[1:]) == {"update"}


def test_signatures() -> None:
    """Methods that are replaced or called with arguments that no documentation promises."""
    from deepspeed import DeepSpeedEngine
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
    from deepspeed.runtime.pipe.engine import PipelineEngine
    from megatron.core import parallel_state

    assert list(inspect.signature(DeepSpeedEngine.clip_fp32_gradients).parameters) == ["self"]
    assert list(inspect.signature(DeepSpeedEngine._copy_recovery_script).parameters) == ["self", "save_path"]
    assert list(inspect.signature(PipelineEngine._take_model_step).parameters) == ["self", "lr_kwargs"]
    backward = inspect.getclosurevars(DeepSpeedEngine.backward).nonlocals["func"]  # inside its timer
    assert "scale_wrt_gas" in inspect.signature(backward).parameters
    evaluated = {"data_iter", "reduce_output", "bcast_loss", "num_micro_batches"}
    assert evaluated <= set(inspect.signature(PipelineEngine.eval_batch).parameters)
    assert {"create", "makedirs", "save", "load", "commit"} <= set(dir(CheckpointEngine))
    groups = {"tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size", "order"}
    assert groups <= set(inspect.signature(parallel_state.initialize_model_parallel).parameters)


def test_names() -> None:
    """Attributes of parameters, of modules and of an operation, which are strings to us."""
    import deepspeed
    from deepspeed.ops.op_builder.cpu import comm
    from deepspeed.runtime.constants import PIPE_REPLICATED
    from deepspeed.runtime.utils import is_model_parallel_parameter, partition_balanced
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import mappings

    assert PIPE_REPLICATED == "ds_pipe_replicated"
    assert is_model_parallel_parameter(mark_split(nn.Parameter(torch.ones(1))))
    assert partition_balanced([3, 1, 1, 1], 2) == [0, 1, 4]
    assert comm.ShareMemCommBuilder.NAME == "deepspeed_shm_comm"
    assert isinstance(deepspeed.ops.__compatible_ops__, dict)
    assert hasattr(parallel_state, "_global_process_group_list")
    assert "torch.cuda.current_device()" in inspect.getsource(mappings)


@pytest.mark.parametrize("tied", [False, True])
def test_names_of_a_pipelines_weights_have_an_inverse(tied: bool) -> None:
    model = ModelConfig(
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        ffn_hidden_size=64,
        qkv_bias=True,
        qk_norm=True,
        tie_embeddings=tied,
    )
    names = list(parameter_shapes(model, 128))
    theirs = [stages.pipeline_name(name, model) for name in names]
    assert [stages.weight_name(name, model.num_layers) for name in theirs] == names
    assert len(set(theirs)) == len(names)


def test_nobody_else_reaches_into_the_libraries() -> None:
    """Their private names stand in the adapters alone."""
    root = Path(__file__).resolve().parents[2] / "ttt_dist"
    private = ("engine._", "optimizer._", "._global_grad_norm", "_hp_mapping", "ds_shape", "ds_numel", "fp16_groups",
               "checkpoint_engine =", "__compatible_ops__", "_take_model_step", "_global_process_group_list",
               "torch.cuda.current_device =")  # fmt: skip
    for path in root.rglob("*.py"):
        if not path.name.endswith("_adapter.py"):
            text = path.read_text()
            assert not [name for name in private if name in text], path
