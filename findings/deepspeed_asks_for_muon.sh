#!/usr/bin/env bash
# deepspeed 0.19.8, torch 2.11.0, CPU, one process. (torch's default wheel brings CUDA libraries, some 5 GB for the time of the run.)
# Expected: an engine with a torch.optim.AdamW that compiles nothing imports no compiler.
# Seen: at ZeRO 1 (2 and 3 too) DeepSpeed asks whether the optimizer is its Muon; importing that module applies `torch.compile` to
#   Muon's kernels, which imports Inductor (`torch._inductor.compile_fx`). At ZeRO 0 it is not imported.
# Why it matters: 2 s of CPU and 40 MB more for each process of each start, measured on a Zen 3, though `import deepspeed` avoids it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q setuptools wheel numpy torch==2.11.0
"$work/venv/bin/pip" install -q --no-build-isolation deepspeed==0.19.8
cat > "$work/engine.py" <<'PY'
import os
import sys

import deepspeed
import torch

stage = int(sys.argv[1])
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled, and is not needed
deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
model = torch.nn.Linear(8, 8)
config = {"train_batch_size": 1, "zero_optimization": {"stage": stage}}
deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config)
print(f"stage {stage}: Inductor {'torch._inductor.compile_fx' in sys.modules}", flush=True)
os._exit(0)
PY
export DS_ACCELERATOR=cpu MASTER_ADDR=127.0.0.1 MASTER_PORT=29592 RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 LOCAL_SIZE=1
for stage in 0 1; do "$work/venv/bin/python" -W ignore "$work/engine.py" $stage 2>/dev/null | grep '^stage'; done | tee "$work/seen"
diff "$work/seen" - <<'SEEN'
stage 0: Inductor False
stage 1: Inductor True
SEEN
