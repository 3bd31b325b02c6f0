"""The notebook: its cells are plain Python, which runs from top to bottom; it is committed without what they printed."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = json.loads((ROOT / "notebooks" / "quickstart.ipynb").read_text(encoding="utf8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_it_is_committed_without_outputs() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    for cell in CODE:
        assert cell["outputs"] == [] and cell["execution_count"] is None
        ast.parse("".join(cell["source"]))  # no magic, no shell: what a Python runs is what Jupyter runs


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """In one process, as a kernel would, with figures that are drawn and not shown."""
    script = "\n\n".join("".join(cell["source"]) for cell in CODE)
    losses = "[record['loss'] for record in records if 'loss' in record]"
    checks = (
        f"losses = {losses}; assert len(losses) == STEPS and losses[-1] < losses[0] and len(plt.get_fignums()) >= 2"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "-"], input=f"{script}\n{checks}\n", cwd=tmp_path, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "spoken: " in done.stdout and (tmp_path / "work/run/export/model.safetensors").is_file()
