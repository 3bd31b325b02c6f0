#!/usr/bin/env bash
# cn2an 0.5.24.
# Expected: `cn2an.transform(text, "an2cn")`, made for whole sentences, writes each number as it is read aloud.
# Seen: thousands with a comma are two numbers (1,234 is "one, two hundred and thirty-four"), the point of a decimal before ℃
#   stays ASCII, a time keeps its colon, and leading zeros go (007 is 7).
# Why it matters: as a text rule for speech it puts words into transcripts that nobody said. `an2cn` of a number found by one's own
#   rule is right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/read.py" <<'PY'
import importlib.metadata
import sys

import cn2an

seen = [cn2an.transform(text, "an2cn") for text in ("1,234元", "气温-3.5℃", "3:30", "007")]
print(importlib.metadata.version("cn2an"), seen, cn2an.an2cn("1234"))
sys.exit(seen != ["一,二百三十四元", "气温负三.五摄氏度", "三:三十", "七"] or cn2an.an2cn("1234") != "一千二百三十四")
PY
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q setuptools cn2an==0.5.24
"$work/venv/bin/python" "$work/read.py"
