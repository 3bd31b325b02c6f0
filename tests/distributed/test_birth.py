"""ZeRO-3 from a model folder: no process ever holds the whole model, and what it holds are the folder's weights."""

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist
from safetensors.torch import save_file

from tests.distributed.cases import ROOT
from tests.distributed.launch import run_distributed
from tests.distributed.random_packs import LAYOUT
from ttt_dist.config.model import ModelConfig
from ttt_dist.config.run import Config, ParallelConfig
from ttt_dist.model.hf.folder import FolderWeights
from ttt_dist.model.hf.weight_names import to_huggingface
from ttt_dist.model.transformer import Transformer
from ttt_dist.parallel.mesh import Mesh

MODEL = ModelConfig(hidden_size=512, num_layers=16, num_heads=8, num_kv_heads=2, ffn_hidden_size=1536)
SMALL = ModelConfig(hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=2, ffn_hidden_size=64)


def peak_of_birth(folder: str, tensor: int, zero: int) -> tuple[int, float]:
    """Most bytes that building the model adds to this process, and a sum over this process's slices of one matrix."""
    from ttt_dist.model.layers import RandomWeights
    from ttt_dist.parallel import groups
    from ttt_dist.parallel.parallelize import build_model

    config = Config(
        deepspeed=str(ROOT / f"ds_configs/zero{zero}.json"), model=MODEL, parallel=ParallelConfig(tensor=tensor)
    )
    mesh = Mesh.of(config.parallel, dist.get_world_size(), dist.get_rank())
    mpu = groups.join(mesh)
    build_model(replace(config, model=SMALL), LAYOUT, mesh, mpu, RandomWeights())  # what libraries take at first use
    gc.collect()  # an earlier model must not go while this one is measured
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory("VmHWM")
    model = build_model(config, LAYOUT, mesh, mpu, FolderWeights(folder, MODEL, LAYOUT))
    for parameter in model.parameters():
        parameter.data.sum()  # where weights are the mapped file itself, its pages come when they are read
    peak = memory("VmHWM") - before
    weight = model.get_parameter("blocks.7.mlp.down.weight")
    held = weight.ds_tensor if zero == 3 else weight
    groups.leave()
    return peak, float(held.detach().double().sum())


def memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Transformer]:
    """A folder of weights, and the model that they are of."""
    model, folder = Transformer.for_layout(MODEL, LAYOUT), tmp_path_factory.mktemp("model")
    pairs = [to_huggingface(name, weight.detach(), MODEL) for name, weight in model.named_parameters()]
    save_file(
        {key: piece.contiguous() for pieces in pairs for key, piece in pieces.items()}, folder / "model.safetensors"
    )
    return folder, model


def test_no_process_holds_the_whole_model(whole: tuple[Path, Transformer], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, model = whole
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # freed tensors are given back at once
    num_bytes = sum(parameter.numel() * 4 for parameter in model.parameters())
    layouts = [(1, 3), (2, 3), (1, 1)]
    results = run_distributed([(peak_of_birth, (str(folder), *layout)) for layout in layouts], 2, is_fresh=True)
    expected = float(model.get_parameter("blocks.7.mlp.down.weight").detach().double().sum())
    data_parallel, tensor_parallel, plain = results
    for by_rank in (data_parallel, tensor_parallel):
        for peak, _ in by_rank:
            assert peak < 0.65 * num_bytes  # half of it, and one weight at a time
        assert sum(held for _, held in by_rank) == pytest.approx(expected, rel=1e-5)
    assert all(peak > 0.95 * num_bytes for peak, _ in plain)  # the measure does see a whole model
