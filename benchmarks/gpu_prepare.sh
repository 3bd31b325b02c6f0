#!/bin/bash
# Wheels that benchmarks/gpu.sh needs on a machine without a network, into .whl/ (ignored by git):
#
#   bash benchmarks/gpu_prepare.sh      in the checkout, where `make setup` was run and a package index is at hand
#
# They are for Python 3.12 on x86-64 Linux, in the versions of requirements.lock, without what they depend on: the GPU
# machine is taken to have torch 2.11 for CUDA, transformers, pytest and hypothesis, and what those bring. .whl/revision
# tells gpu.sh which revision a copy without .git is of.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python} MOST_MIB=48

# deepspeed needs hjson and pydantic, which needs the four after it; train.py's reports, codecs and data the others.
WHEELS="megatron-core hjson pydantic pydantic-core annotated-types typing-inspection typing-extensions
        einops msgpack py-cpuinfo soundfile cffi pycparser"
BUILT=deepspeed # the index has its source only

locked() { grep "^$1==" requirements.lock || { echo "requirements.lock has no $1" >&2; exit 1; }; }

rm -rf .whl
mkdir .whl
wanted=()
for name in $WHEELS; do wanted+=("$(locked "$name")"); done
platforms=()
for glibc in 2_17 2_24 2_27 2_28 2_31 2_34 2_35; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
"$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp --platform manylinux1_x86_64 --platform manylinux2014_x86_64 "${platforms[@]}" \
    --dest .whl "${wanted[@]}"
# No kernels are compiled: training uses torch's own AdamW. Without isolation, as its set-up imports torch.
DS_BUILD_OPS=0 DS_ACCELERATOR=cpu "$PYTHON" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    --wheel-dir .whl "$(locked "$BUILT")"

"$PYTHON" - <<'PY'
"""Every wheel installs on Python 3.12 for x86-64 Linux with glibc 2.35, or this fails."""
import sys
from pathlib import Path

from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

glibcs = ["manylinux1_x86_64", "manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in range(5, 36))]
usable = {*cpython_tags((3, 12), platforms=glibcs), *compatible_tags((3, 12), "cp312", glibcs)}
wrong = [path.name for path in Path(".whl").glob("*.whl") if not usable & parse_wheel_filename(path.name)[3]]
sys.exit(f"not for Python 3.12 on x86-64 Linux: {', '.join(wrong)}" if wrong else 0)
PY
git describe --always --dirty --abbrev=40 > .whl/revision
(cd .whl && ls -s --block-size=K ./*.whl)
mebibytes=$(($(du -s --block-size=1M .whl | cut -f1)))
[ "$mebibytes" -le "$MOST_MIB" ] || { echo ".whl has $mebibytes MiB, more than $MOST_MIB" >&2; exit 1; }
echo ".whl: $mebibytes MiB of wheels; now take the checkout with .whl to the GPU and run: bash benchmarks/gpu.sh"
