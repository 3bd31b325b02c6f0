#!/usr/bin/env bash
# datasets 5.2.0.
# Expected: a key that only later records have becomes a column with None before them, or an error.
# Seen: Dataset.from_list, Dataset.from_generator and IterableDataset.from_generator have the columns of the first record; what later ones bring
#   besides is gone without a word.
# Why it matters: of a corpus whose first utterance has no speaker, language or duration, no utterance has one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q datasets==5.2.0 pyarrow==26.0.1 numpy==2.4.6
cat > "$work/records.py" <<'PY'
import sys

from datasets import Dataset, IterableDataset
from datasets.utils.logging import disable_progress_bar

disable_progress_bar()
RECORDS = [{"text": "one"}, {"text": "two", "speaker": "ada"}]


def records():
    yield from RECORDS


found = {
    "from_list": Dataset.from_list(RECORDS)[1],
    "from_generator": Dataset.from_generator(records)[1],
    "iterable": list(IterableDataset.from_generator(records))[1],
}
for name, second in found.items():
    print(f"{name}: {second}")
sys.exit(any(second != {"text": "two"} for second in found.values()))
PY
cd "$work"
HF_HUB_OFFLINE=1 HF_DATASETS_CACHE="$work/cache" "$work/venv/bin/python" -W ignore records.py
