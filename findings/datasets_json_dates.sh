#!/usr/bin/env bash
# datasets 5.2.0, pyarrow 26.0.1.
# Expected: a string of a JSON Lines file is a string of the data set.
# Seen: where all strings of a column are written like dates (2024-01-05, with a time or without), the column is of timestamps, streamed or not: a text
#   comes as datetime(2024, 1, 5, 0, 0), one with +02:00 in another zone's hours. With a string for it in `features` the text is rewritten, 2024-01-05 00:00:00.
#   One other string among them and all stay as they are.
# Why it matters: transcripts and ids of a corpus named by dates differ from the file's, and from those of the next file that is read.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q datasets==5.2.0 pyarrow==26.0.1 numpy==2.4.6
cat > "$work/dates.py" <<'PY'
import datetime
import json
import sys

from datasets import Features, Value, load_dataset
from datasets.utils.logging import disable_progress_bar

disable_progress_bar()


def read(texts, **options):
    with open("texts.jsonl", "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    both = [load_dataset("json", data_files="texts.jsonl", split="train", streaming=s, **options) for s in (False, True)]
    first, second = ([row["text"] for row in rows] for rows in both)
    assert first == second
    print(f"{texts} {'with features ' if options else ''}-> {first}")
    return first


dates = ["2024-01-05", "2024-01-06 10:00:00"]
found = (
    read(dates) == [datetime.datetime(2024, 1, 5), datetime.datetime(2024, 1, 6, 10)],
    read(["2024-01-05T10:00:00+02:00"]) == [datetime.datetime(2024, 1, 5, 8)],
    read(["2024-01-05", "the fifth"]) == ["2024-01-05", "the fifth"],
    read(dates, features=Features({"text": Value("string")})) == ["2024-01-05 00:00:00", "2024-01-06 10:00:00"],
)
sys.exit(not all(found))
PY
cd "$work"
HF_HUB_OFFLINE=1 HF_DATASETS_CACHE="$work/cache" "$work/venv/bin/python" -W ignore dates.py
