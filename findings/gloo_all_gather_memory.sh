#!/usr/bin/env bash
# torch 2.13.0 (2.11.0 does the same), gloo, CPU; four processes, 100 MB from each.
# Expected: all_gather_into_tensor writes into the tensor that it is given, and needs no memory beside it.
# Seen: gloo gathers into a buffer of its own as large as the result, and copies: 390 MB more in each process. A broadcast from each process
#   into the same tensor needs none.
# Why it matters: optimizers whose shards are put together so (DeepSpeed's ZeRO 1 and 2) hold all weights twice for a moment wherever
#   gloo is the backend: tests and measurements of memory on CPU show a peak that NCCL has not, and a host may run out of memory.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cat > "$work/gather.py" <<'PY'
import os
import re
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SIZE = 100_000_000  # bytes of each process's part


def peak_mb(run):
    """By how much this process's peak memory rises above what it has now."""
    open("/proc/self/clear_refs", "w").write("5")  # the peak is what there is now
    before = resident()
    run()
    return resident("VmHWM") - before


def resident(key="VmRSS"):
    return int(re.search(rf"{key}:\s+(\d+)", open("/proc/self/status").read()).group(1)) // 1000


def work(rank, told):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29588"}
    dist.init_process_group("gloo", rank=rank, world_size=4)
    part, whole = torch.ones(SIZE, dtype=torch.uint8), torch.zeros(4 * SIZE, dtype=torch.uint8)
    parts = list(whole.chunk(4))
    dist.all_gather_into_tensor(torch.zeros(4), torch.ones(1))  # what is made at the first use
    gathered = peak_mb(lambda: dist.all_gather_into_tensor(whole, part))
    is_same = bool(whole.all())
    whole.zero_()
    parts[rank].copy_(part)
    sent = peak_mb(lambda: [dist.broadcast(parts[source], source) for source in range(4)])
    told[rank] = (gathered, sent, is_same and bool(whole.all()))
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    told = mp.Manager().dict()
    processes = [mp.get_context("spawn").Process(target=work, args=(rank, told)) for rank in range(4)]
    [process.start() for process in processes]
    [process.join(90) for process in processes]
    for rank, (gathered, sent, is_right) in sorted(told.items()):
        print(f"rank {rank}: all_gather_into_tensor {gathered} MB beyond its tensors, broadcasts {sent} MB, right: {is_right}")
    sys.exit(not (len(told) == 4 and all(g > 350 and s < 50 and right for g, s, right in told.values())))
PY
"$work/venv/bin/python" -W ignore "$work/gather.py" 2>/dev/null
