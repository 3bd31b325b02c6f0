#!/usr/bin/env bash
# torch 2.11.0, torchaudio 2.11.1, as `pip install "torch>=2.11,<2.12" "torchaudio>=2.11,<2.12"` chooses them; CPU.
# Expected: torchaudio 2.11.1 says `Requires-Dist: torch>=2.11`, so it works beside torch 2.11.0, the newest 2.11 that there is.
# Seen: its library does not load: it wants torch_exception_get_what_without_backtrace, which torch 2.11.0 does not have. 2.11.0 loads.
# Why it matters: a range of minor versions, with which a project was tested, gives a fresh environment in which `import torchaudio` fails.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.11.0 numpy==2.4.6
import_with() {
    "$work/venv/bin/pip" install -q "torchaudio==$1"
    "$work/venv/bin/python" -W ignore -c 'import torchaudio; print("loads")' > "$work/said" 2>&1 || true
    grep -m1 -oE '^loads|undefined symbol: \w+' "$work/said"
}
echo "required by 2.11.1: $("$work/venv/bin/pip" download -q --no-deps -d "$work" torchaudio==2.11.1 && unzip -p "$work"/torchaudio-2.11.1*.whl '*/METADATA' | grep '^Requires-Dist: torch')"
told_0=$(import_with 2.11.0)
told_1=$(import_with 2.11.1)
echo "torchaudio 2.11.0: $told_0"
echo "torchaudio 2.11.1: $told_1"
[ "$told_0" = loads ] && [ "$told_1" = "undefined symbol: torch_exception_get_what_without_backtrace" ]
