#!/usr/bin/env bash
# megatron-core 0.16.1, torch 2.13.0, wandb 0.31.0, CPU.
# Expected: `from megatron.core import parallel_state`, to make process groups, brings in torch and little else.
# Seen: it brings in Inductor's code generator, and wandb where it is installed: fused functions are decorated with torch.compile when their modules are imported
#   (megatron.core.jit), and a module of inference asks for wandb. torch.compile being a stand-in for that moment, Inductor stays out.
# Why it matters: seconds of CPU and tens of megabytes in each of a node's processes before the first collective; and a job without a network has a client of a service in it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q megatron-core==0.16.1 torch==2.13.0 wandb==0.31.0 numpy==2.4.6
cat > "$work/import.py" <<'PY'
import resource
import sys

import torch


def usage():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, used.ru_maxrss // 1024


if sys.argv[1] == "stand-in":
    torch.compile = lambda function: function
before = usage()
from megatron.core import parallel_state  # noqa: E402, F401

after = usage()
found = "torch._inductor.codegen.cpp" in sys.modules or "torch._inductor.lowering" in sys.modules, "wandb" in sys.modules
print(f"{sys.argv[1]}: Inductor and wandb imported: {found}; {after[0] - before[0]:.1f} s of CPU, {after[1] - before[1]} MB")
sys.exit(found != (sys.argv[1] == "plain", True))
PY
"$work/venv/bin/python" -W ignore "$work/import.py" plain 2> "$work/warnings" || { cat "$work/warnings"; exit 1; }
"$work/venv/bin/python" -W ignore "$work/import.py" stand-in 2> "$work/warnings" || { cat "$work/warnings"; exit 1; }
