#!/usr/bin/env bash
# torch 2.13.0 (2.11.0 does the same), gloo, CPU; four processes in two groups of two.
# Expected: torch.distributed.nn.functional.all_gather is differentiable in any process group, as torch.distributed.all_gather works in any.
# Seen: its backward on gloo scatters from the ranks 0 and 1 of the group as if they were global ones: in the group of 2 and 3 it ends with
#   "Global rank 0 is not part of group", in the group of 0 and 1 it is right.
# Why it matters: a split of tokens written with it passes every test on all processes together, and fails beside data or tensor parallelism.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cat > "$work/gather.py" <<'PY'
import os
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.nn.functional import all_gather


def work(rank, told):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29587"}
    dist.init_process_group("gloo", rank=rank, world_size=4)
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    own = torch.full((2,), float(rank), requires_grad=True)
    try:
        sum(part.sum() for part in all_gather(own, group=groups[rank // 2])).backward()
        told[rank] = f"gradient {own.grad.tolist()}"
    except ValueError as error:
        told[rank] = str(error).partition(" <")[0]
    os._exit(0)  # the others of a group may wait for one that has failed


if __name__ == "__main__":
    told = mp.Manager().dict()
    processes = [mp.get_context("spawn").Process(target=work, args=(rank, told)) for rank in range(4)]
    [process.start() for process in processes]
    [process.join(90) for process in processes]
    for rank in range(4):
        print(f"rank {rank}: {told.get(rank, 'no answer')}")
    sys.exit(not ("gradient" in told.get(0, "") and any("not part of group" in told.get(rank, "") for rank in (2, 3))))
PY
"$work/venv/bin/python" -W ignore "$work/gather.py" 2>/dev/null
