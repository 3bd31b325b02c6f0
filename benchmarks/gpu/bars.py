"""What a GPU has to show (benchmarks/README.md), by the figures of the phases."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Found = dict[str, dict[str, dict[str, Any]]]
"""Figures by phase and measurement."""


@dataclass(frozen=True)
class Bar:
    """A figure and what it should be."""

    what: str
    at_least: float | None
    at_most: float | None
    of: Callable[[Found], float]
    """Raises KeyError or ValueError where it was not measured."""

    def judge(self, found: Found) -> dict[str, Any]:
        """Its value, what was wanted, and whether it is; None where it was not measured."""
        wanted = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        try:
            value = float(self.of(found))
        except (KeyError, ValueError, ZeroDivisionError):
            return {"value": None, "wanted": wanted, "met": None}
        met = value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0.0)
        return {"value": value, "wanted": wanted, "met": met}


def judged(found: Found) -> dict[str, dict[str, Any]]:
    """Every bar by what it is about."""
    return {bar.what: bar.judge(found) for bar in BARS}


def _best(found: Found, phase: str, key: str, word: str = "compiled", but: str = "fp8") -> float:
    """Of the measurements of a phase with `word` in their name and not `but`."""
    names = [name for name in found[phase] if word in name and but not in name]
    return max(found[phase][name][key] for name in names if key in found[phase][name])


def _largest(found: Found, phase: str, *ends: str) -> float:
    """Largest figure of a phase whose name ends so."""
    rows = found[phase].values()
    return max(value for row in rows for key, value in row.items() if key.endswith(ends) and isinstance(value, float))


def _codes(found: Found, side: str, batch: int) -> float:
    return float(found["decode"][f"{side}, batch {batch}"]["codes_s"])


def _memory(found: Found) -> float:
    """Largest deviation of a dry run from what was measured."""
    rows = [row for phase in ("zero1", "zero3") for row in found.get(phase, {}).values() if "dry_run_gb" in row]
    return max(abs(row["dry_run_gb"] / row["memory_gb"] - 1) for row in rows)


BARS = [
    Bar("MFU of the model alone, compiled", 0.45, None, lambda f: _best(f, "train", "mfu")),
    Bar("MFU of train.py, compiled", 0.45, None, lambda f: _best(f, "zero1", "mfu")),
    Bar("MFU of train.py, fp8", 0.5, None, lambda f: _best(f, "zero1", "mfu", "fp8", but="eager")),
    Bar(
        "useful tokens/s over the released way", 8, None,
        lambda f: _best(f, "train", "tokens_s") / f["released"]["steps"]["tokens_s"],
    ),
    Bar("waits of the host in a micro-batch", None, 0, lambda f: f["zero1"]["compiled"]["waits_per_micro_batch"]),
    Bar("dry run's memory, relative deviation", None, 0.1, _memory),
    Bar("real-time factor at batch 1", None, 0.08, lambda f: f["decode"]["ours, batch 1"]["real_time_factor"]),
    Bar("codes/s at batch 32 over batch 1", 15, None, lambda f: _codes(f, "ours", 32) / _codes(f, "ours", 1)),
    Bar("codes/s over AR at batch 32", 1.5, None, lambda f: _codes(f, "ours", 32) / _codes(f, "AR", 32)),
    Bar("FlexAttention's largest error (bf16's unit)", None, 2**-7, lambda f: _largest(f, "attention", "_error")),
    Bar("parity with the CPU in fp32, largest deviation", None, 1e-5, lambda f: _largest(f, "parity", "_difference")),
    Bar("running out of memory is told, with a snapshot", 1, None, lambda f: f["memory"]["snapshot"]["is_told"]),
    Bar("failed unit tests", None, 0, lambda f: sum(row["num_failed"] for row in f["tests"].values())),
]  # fmt: skip
