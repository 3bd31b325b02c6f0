#!/usr/bin/env bash
# torch 2.13.0 (2.11.0 does the same), CPU; torchrun with two agents of one worker each, one of which is killed (kill -9).
# Expected: workers go with their agent, as they do when it is asked to end; a launcher that is lost leaves nothing behind.
# Seen: the worker of the killed agent runs on, with init as its parent, after 15 seconds too.
# Why it matters: the agents that are left begin anew, while a process of the round before still computes, and may still write its checkpoint.
set -euo pipefail
work=$(mktemp -d)
trap 'pkill -9 -f "$work/worker.py" || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cat > "$work/worker.py" <<'PY'
import os
import sys
import time

with open(f"{sys.argv[1]}/worker-{os.environ['GROUP_RANK']}", "w") as file:
    file.write(str(os.getpid()))
time.sleep(300)
PY
agents=()
for number in 0 1; do
    "$work/venv/bin/torchrun" --nnodes 1:2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:29613 \
        --rdzv-id one --rdzv-conf last_call_timeout=20,is_host=$((number == 0)) "$work/worker.py" "$work" > "$work/agent-$number" 2>&1 &
    agents+=($!)
done
for _ in $(seq 120); do
    if [ -s "$work/worker-0" ] && [ -s "$work/worker-1" ]; then break; fi
    sleep 1
done
# Which group each agent's worker is: by its parent.
for number in 0 1; do
    if [ "$(ps -o ppid= -p "$(cat "$work/worker-$number")" | tr -d ' ')" = "${agents[1]}" ]; then pid=$(cat "$work/worker-$number"); fi
done
kill -9 "${agents[1]}"
sleep 15
if kill -0 "$pid" 2> /dev/null; then echo "the worker of the killed agent runs on, its parent is $(ps -o ppid= -p "$pid" | tr -d ' ')"; else echo "gone"; fi
left=0
kill -0 "$pid" 2> /dev/null || left=1
kill -9 "${agents[0]}" 2> /dev/null || true
exit $left
