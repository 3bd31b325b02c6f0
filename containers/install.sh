#!/bin/sh
# Install the project and what it needs, as requirements.lock pins it. Dockerfile and ttt.def run this, and so do the tests.
#   containers/install.sh [options of pip install]
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m pip install --no-cache-dir --constraint requirements.lock "$@" ".[containers,text]"
