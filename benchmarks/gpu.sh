#!/bin/bash
# All that one GPU can tell about this build, in less than ten minutes and one call (docs: benchmarks/README.md):
#
#   bash benchmarks/gpu.sh [--device cpu] [--out DIR] [--only PHASE ...]
#
# Needs a machine with one H100 or H200, and no network: what it lacks is installed from .whl/, which
# benchmarks/gpu_prepare.sh has filled elsewhere, into .whl/site.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

if ! "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))' \
    deepspeed megatron hjson pydantic soundfile; then
    rm -rf .whl/site
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir \
        --target .whl/site .whl/*.whl
    export PYTHONPATH=$PWD/.whl/site${PYTHONPATH:+:$PYTHONPATH}
fi
exec "$PYTHON" -m benchmarks.gpu "$@"
