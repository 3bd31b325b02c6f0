#!/usr/bin/env bash
# pydantic 2.14.3.
# Expected: under strict=True a field of type Literal[0, 1, 2, 3] refuses true and 1.0, as one of type int does.
# Seen: it takes both, from JSON too, and gives the whole number 1. A field of type int refuses them.
# Why it matters: a choice among numbers, such as a ZeRO stage, is no guard against `"stage": true`; a range
#   (Annotated[int, Interval(ge=0, le=3)]) is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/literal.py" <<'PY'
import sys
from typing import Literal

import pydantic


def read(kind, text):
    try:
        return pydantic.TypeAdapter(kind).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        return error.errors()[0]["type"]


seen = [read(kind, text) for kind in (Literal[0, 1, 2, 3], int) for text in ("true", "1.0")]
print(pydantic.VERSION, "true and 1.0 as Literal, true and 1.0 as int:", seen)
sys.exit([repr(item) for item in seen] != ["1", "1", "'int_type'", "'int_type'"])
PY
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q pydantic==2.14.3
"$work/venv/bin/python" "$work/literal.py"
