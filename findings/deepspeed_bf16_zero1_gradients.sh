#!/usr/bin/env bash
# deepspeed 0.19.8, torch 2.11.0, CPU, two processes. (torch's default wheel brings CUDA libraries, some 5 GB for the time of the run.)
# Expected: {"data_types": {"grad_accum_dtype": "fp32"}} makes the gradients that ZeRO accumulates fp32, and leaves how they are divided as it is.
# Seen: in bf16 at ZeRO 1 another optimizer is made for it (BF16_Optimizer), which keeps all gradients on every process; without the setting
#   ZeRO 1, and with it ZeRO 2, keep a process's share.
# Why it matters: 4 bytes a parameter more on each GPU where 4 / N were meant; ZeRO 2 is the stage to ask for.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q setuptools wheel numpy torch==2.11.0
"$work/venv/bin/pip" install -q --no-build-isolation deepspeed==0.19.8
cat > "$work/grads.py" <<'PY'
import os
import sys

import deepspeed
import torch
import torch.multiprocessing as mp


def numbers(stage):
    model = torch.nn.Linear(1000, 1000, bias=False)
    config = {"train_batch_size": 2, "bf16": {"enabled": True}, "zero_optimization": {"stage": stage},
              "data_types": {"grad_accum_dtype": "fp32"}}
    engine, optimizer, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config
    )
    loss = engine(torch.ones(4, 1000, dtype=torch.bfloat16)).sum()
    engine.backward(loss)
    kept = getattr(optimizer, "fp32_groups_gradients_flat", None)
    if kept is None:
        kept = [part for parts in optimizer.averaged_gradients.values() for part in parts]
    return type(optimizer).__name__, sum(part.numel() for part in kept), str(kept[0].dtype)


def work(rank, told):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29589", "RANK": str(rank), "WORLD_SIZE": "2",
                   "LOCAL_RANK": str(rank), "LOCAL_SIZE": "2"}
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled, and is not needed
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    told[rank] = [numbers(stage) for stage in (1, 2)]
    os._exit(0)


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    told = mp.Manager().dict()
    processes = [mp.get_context("spawn").Process(target=work, args=(rank, told)) for rank in range(2)]
    [process.start() for process in processes]
    [process.join(200) for process in processes]
    for rank, found in sorted(told.items()):
        for stage, (name, count, dtype) in zip((1, 2), found):
            print(f"rank {rank}, ZeRO {stage}: {name} keeps {count:,} gradients as {dtype} of 1,000,000 weights")
    kept = {stage: {found[stage - 1][1:] for found in told.values()} for stage in (1, 2)}
    sys.exit(not (kept[1] == {(1_000_000, "torch.float32")} and {count for count, _ in kept[2]} == {500_000}))
PY
"$work/venv/bin/python" -W ignore "$work/grads.py" 2>/dev/null | grep '^rank'
