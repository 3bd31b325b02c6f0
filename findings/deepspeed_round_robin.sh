#!/usr/bin/env bash
# deepspeed 0.19.8, torch 2.11.0, CPU, two processes. (torch's default wheel brings CUDA libraries, some 5 GB for the time of the run.)
# Expected: at ZeRO 1 and 2 a parameter's `_hp_mapping`, which `safe_get_full_fp32_param` and universal checkpoints go by, says where its
#   fp32 weight lies in the flat partition.
# Seen: with {"round_robin_gradients": true} the partition has the parameters in another order than the mapping, so that the fp32 weight
#   of one parameter is numbers of others.
# Why it matters: training is right, and so is a checkpoint on as many processes; whatever reads it weight by weight gets others' numbers.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q setuptools wheel numpy torch==2.11.0
"$work/venv/bin/pip" install -q --no-build-isolation deepspeed==0.19.8
cat > "$work/mapping.py" <<'PY'
import os
import sys

import deepspeed
import torch
import torch.multiprocessing as mp
from deepspeed.utils import safe_get_full_fp32_param


def right_ones(round_robin):
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8, bias=False) for _ in range(4)))
    for number, layer in enumerate(model):
        layer.weight.data.fill_(number)
    zero = {"stage": 2, "round_robin_gradients": round_robin}
    config = {"train_batch_size": 2, "zero_optimization": zero, "zero_allow_untested_optimizer": True}
    adam = torch.optim.AdamW(model.parameters())
    engine, *_ = deepspeed.initialize(model=model, optimizer=adam, config=config)
    return [torch.equal(safe_get_full_fp32_param(weight), weight.detach()) for weight in engine.module.parameters()]


def work(rank, told):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29591", "RANK": str(rank), "WORLD_SIZE": "2",
                   "LOCAL_RANK": str(rank), "LOCAL_SIZE": "2"}
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled, and is not needed
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    told[rank] = [right_ones(round_robin) for round_robin in (False, True)]
    os._exit(0)


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    told = mp.Manager().dict()
    processes = [mp.get_context("spawn").Process(target=work, args=(rank, told)) for rank in range(2)]
    [process.start() for process in processes]
    [process.join(200) for process in processes]
    plain, round_robin = told[0]
    print(f"rank 0: fp32 weights that are the parameter's own: {plain}, with round_robin_gradients {round_robin}")
    sys.exit(not (all(plain) and not all(round_robin)))
PY
"$work/venv/bin/python" -W ignore "$work/mapping.py" 2>/dev/null | grep '^rank'
