"""Responses that a limit ended, not the model."""

from collections import Counter
from collections.abc import Iterable, Mapping

from ttt_dist.config.decode import DecodeSettings
from ttt_dist.inference.sequence_state import LIMITS
from ttt_dist.util.console import warn


def at_limits(finishes: Mapping[str, int]) -> dict[str, int]:
    """Of how many responses ended why, those that a limit cut off."""
    return {reason: count for reason, count in finishes.items() if reason in LIMITS}


def warn_of_limits(finishes: Iterable[str], settings: DecodeSettings) -> None:
    """Say how many responses did not end by themselves, by which limits, and the remedy."""
    counts = Counter(finishes)
    cut = at_limits(counts)
    if not cut:
        return
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(cut.items()))
    flags = [f"--{reason.replace('_', '-')}" for reason in sorted(cut) if reason != "max_length"]
    remedy = f"raise {' and '.join(flags)}" if flags else "the model takes no more tokens, so ask for less"
    more = "" if settings.repeats == "drawn" else "; --repeats drawn ends long pauses of what is written left to right"
    warn(
        f"{sum(cut.values()):,} of {counts.total():,} responses did not end, a limit cut them off ({reasons}): {remedy}{more}"
    )
