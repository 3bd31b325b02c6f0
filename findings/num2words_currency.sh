#!/usr/bin/env bash
# num2words 0.5.14.
# Expected: `num2words(5, to="currency", currency="USD")` is five dollars, and five dollars and a half read like any other amount.
# Seen: a whole number counts cents (5 is "zero dollars, five cents"), the same as a float or text counts dollars; what is zero is
#   spoken ("five dollars, zero cents"), and JPY in English is not implemented.
# Why it matters: prices of transcripts come out a hundred times too small where they happen to be whole.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/read.py" <<'PY'
import importlib.metadata
import sys

from num2words import num2words

seen = [num2words(amount, to="currency", currency="USD") for amount in (5, 5.0, "5.50")]
try:
    seen.append(num2words(5.0, to="currency", currency="JPY"))
except NotImplementedError:
    seen.append("not implemented")
print(importlib.metadata.version("num2words"), seen)
wanted = ["zero dollars, five cents", "five dollars, zero cents", "five dollars, fifty cents", "not implemented"]
sys.exit(seen != wanted)
PY
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q num2words==0.5.14
"$work/venv/bin/python" "$work/read.py"
