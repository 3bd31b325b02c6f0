#!/usr/bin/env bash
# deepspeed 0.19.8, torch 2.11.0, CPU. (torch's default wheel brings CUDA libraries, some 5 GB for the time of the run.)
# Expected: a checkpoint of a bf16 pipeline holds a parameter once in bf16 and its fp32 weight and two moments once: 14 bytes, with ZeRO 1
#   and without.
# Seen: without ZeRO it takes 26 bytes a parameter: mp_rank_00_model_states.pt holds the optimizer of bf16_zero_pp_rank_0_..._optim_states.pt
#   once more, as BF16_Optimizer shards while the engine believes that nobody does. With ZeRO 1 it takes 14.
# Why it matters: 1.9 times the disk, the time of a save and the memory on the host, and a check of free space by 14 bytes is not one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q setuptools wheel numpy torch==2.11.0
"$work/venv/bin/pip" install -q --no-build-isolation deepspeed==0.19.8
cat > "$work/save.py" <<'PY'
import os
import sys
from pathlib import Path

import deepspeed
import torch
from deepspeed.pipe import LayerSpec, PipelineModule

os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2])
torch.distributed.init_process_group("gloo")
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)


def bytes_per_parameter(stage):
    specs = [LayerSpec(torch.nn.Linear, 512, 512, bias=False) for _ in range(4)]
    module = PipelineModule(specs, num_stages=1, loss_fn=torch.nn.functional.mse_loss)
    config = {"train_batch_size": 2, "train_micro_batch_size_per_gpu": 2, "bf16": {"enabled": True}}
    config |= {"zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True}
    adam = torch.optim.AdamW(module.parameters())
    engine, *_ = deepspeed.initialize(model=module, optimizer=adam, config=config)
    batch = torch.randn(2, 512, dtype=torch.bfloat16)
    engine.train_batch(iter([(batch, batch)]))
    folder = Path(sys.argv[1]) / str(stage)
    engine.save_checkpoint(str(folder), tag="saved")
    written = sum(path.stat().st_size for path in (folder / "saved").iterdir())
    return written / sum(weight.numel() for weight in module.parameters())


found = {stage: bytes_per_parameter(stage) for stage in (0, 1)}
for stage, size in found.items():
    print(f"pipeline, bf16, ZeRO {stage}: {size:.1f} bytes a parameter")
sys.exit(not (25 < found[0] < 27 and 13 < found[1] < 15))
PY
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
DS_ACCELERATOR=cpu "$work/venv/bin/python" -W ignore "$work/save.py" "$work" "$port" 2> "$work/log" | grep '^pipeline' || { tail -5 "$work/log"; exit 1; }
