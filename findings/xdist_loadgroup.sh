#!/usr/bin/env bash
# pytest-xdist 3.8.0 under pytest 9.2.0 (with 9.1.1 it does what is expected; its authors know, issue 1386).
# Expected: with `--dist loadgroup`, tests that share an xdist_group mark run on one worker.
# Seen: they run on all workers, with no error and no warning: xdist writes the group into `item._nodeid`, and since 9.2
#   pytest's `nodeid` is made of something else. The option is accepted, and "LoadGroupScheduling" is what -v says.
# Why it matters: tests that were grouped because they share a port, a daemon or a dear fixture now run side by side and
#   make it once per worker. Scheduling by file or scope (`--dist loadfile`, `loadscope`) does not depend on it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
mkdir "$work/tests"
cat > "$work/tests/test_grouped.py" <<'PY'
import os
import time

import pytest


@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(8))
def test_grouped(number):
    time.sleep(0.2)
    with open(os.environ["SEEN"], "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
PY
workers_of() { # the number of workers that ran tests of the one group, under pytest $1
    "$work/venv/bin/pip" install -q "pytest==$1" pytest-xdist==3.8.0
    rm -f "$work/seen"
    (cd "$work/tests" && SEEN="$work/seen" "$work/venv/bin/python" -m pytest -q -n 2 --dist loadgroup . > /dev/null)
    sort -u "$work/seen" | wc -l
}
before=$(workers_of 9.1.1) now=$(workers_of 9.2.0)
echo "workers that ran the one group: pytest 9.1.1 $before, pytest 9.2.0 $now"
[ "$before" = 1 ] && [ "$now" = 2 ]
