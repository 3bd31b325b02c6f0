#!/usr/bin/env bash
# torch 2.13.0 (2.11.0 does the same), a TCPStore client and a port at which nobody listens.
# Expected: `TCPStore(..., timeout=t)` raises after t, as its message says ("has timed out after 4000ms").
# Seen: it tries once more, after a pause of seconds: it raises after 1.2 to 2.5 times its timeout, and the message names one.
# Why it matters: a process that asks the store of a rank that may be dead, to say which one is lost, waits longer than it was told to; and who reads
#   the message takes a rank for slow that was away for twice as long. Limits around such a call (a watchdog's, a launcher's) must allow for it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cat > "$work/connect.py" <<'PY'
import socket
import sys
import time
from datetime import timedelta

import torch.distributed as dist

with socket.socket() as unused:
    unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can
    ratios = []
    for seconds in (4, 6):
        start = time.monotonic()
        try:
            port = unused.getsockname()[1]
            dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=seconds), wait_for_workers=False)
        except dist.DistNetworkError as error:
            took = time.monotonic() - start
            ratios.append(took / seconds)
            told = str(error).splitlines()[0]
            print(f"timeout {seconds} s: raised after {took:.1f} s, saying: {told.replace(str(port), 'PORT')}")
sys.exit(not (len(ratios) == 2 and min(ratios) > 1.1 and max(ratios) < 3))
PY
"$work/venv/bin/python" -W ignore "$work/connect.py" 2>/dev/null
