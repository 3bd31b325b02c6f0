#!/usr/bin/env bash
# pyarrow 26.0.1.
# Expected: an Arrow stream that ends between two of its batches, as a copy that was broken off leaves it, is an error: the
#   format closes a stream by a mark of eight bytes.
# Seen: `pyarrow.ipc.open_stream(...).read_all()` gives the batches that are there, without a word; `datasets` keeps its
#   tables in such files.
# Why it matters: half of a data set is taken for the whole one. Whoever wants to know compares where reading ended with the
#   end of the file, and looks for the mark.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/read.py" <<'PY'
import io
import sys

import pyarrow as pa

schema = pa.schema([("text", pa.string())])
stream, ends = io.BytesIO(), []
with pa.ipc.new_stream(stream, schema) as writer:
    for text in ("one", "two", "three"):
        writer.write_batch(pa.record_batch([[text] * 100], schema=schema))
        ends.append(stream.tell())
whole = stream.getvalue()
seen = [pa.ipc.open_stream(content).read_all().num_rows for content in (whole, whole[: ends[0]], whole[: ends[1]])]
print(pa.__version__, "rows of the whole stream, of one cut behind the first and behind the second batch:", seen)
sys.exit(seen != [300, 100, 200])
PY
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q pyarrow==26.0.1
"$work/venv/bin/python" "$work/read.py"
