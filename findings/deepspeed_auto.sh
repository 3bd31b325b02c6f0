#!/usr/bin/env bash
# deepspeed 0.19.8, torch 2.11.0, CPU. (torch's default wheel brings CUDA libraries, some 5 GB for the time of the run.)
# Expected: "auto" in a DeepSpeed JSON, which every example for Hugging Face's Trainer has, is refused where nobody resolves it, or
#   resolved; and a section that DeepSpeed does not know is refused like a key within zero_optimization.
# Seen: {"bf16": {"enabled": "auto"}} trains in fp32 and {"zero_optimization": {"stage": "auto"}} without ZeRO, {"gradient_clipping": "auto"}
#   keeps the text "auto" as the norm, and "zero_optimisation" or "fp_16" as a section are passed over: stage 0, no word of it.
# Why it matters: a file copied from a Trainer's recipe runs, in another precision, unpartitioned, or fails at the first clipping.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q setuptools wheel numpy torch==2.11.0
"$work/venv/bin/pip" install -q --no-build-isolation deepspeed==0.19.8
cat > "$work/settings.py" <<'PY'
import sys

from deepspeed.runtime.config import DeepSpeedConfig


def read(**values):
    config = DeepSpeedConfig({"train_batch_size": 4, **values})
    return config.zero_optimization_stage, config.bfloat16_config.enabled, config.gradient_clipping


found = {
    "named": read(zero_optimization={"stage": 2}, bf16={"enabled": True}, gradient_clipping=1.0),
    "auto": read(zero_optimization={"stage": "auto"}, bf16={"enabled": "auto"}, gradient_clipping="auto"),
    "misspelt": read(zero_optimisation={"stage": 2}, fp_16={"enabled": True}),
}
for name, (stage, bf16, clipping) in found.items():
    print(f"{name}: ZeRO stage {stage}, bf16 {bf16}, gradient_clipping {clipping!r}")
sys.exit(found["named"] != (2, True, 1.0) or found["auto"] != (0, False, "auto") or found["misspelt"][:2] != (0, False))
PY
DS_ACCELERATOR=cpu "$work/venv/bin/python" -W ignore "$work/settings.py" 2>/dev/null
