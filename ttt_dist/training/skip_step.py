"""Which updates are applied: none whose loss or gradient is not finite, and, where asked for, none that is a spike.

The decision is made between the gradient's norm and the update, from the norm alone, which is the same number on all
processes: they agree without talking. A loss that is not finite has a gradient that is not, as both come from the logits.
"""

import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ttt_dist.config.run import GuardConfig

NUM_NORMS = 64  # accepted norms that the median is taken of
FEWEST_NORMS = 16  # before so many steps nothing is a spike


class SkipStep:
    """Decides step by step; `state` and `SkipStep(config, state)` carry its counters through a checkpoint."""

    def __init__(self, config: GuardConfig, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self.config = config
        self.skipped: int = state.get("skipped", 0)
        """Steps skipped in the whole run."""
        self.in_a_row: int = state.get("skipped_in_a_row", 0)
        """... without an update between them."""
        self._norms: list[float] = state.get("norms", [])
        self._accepted: bool | None = None

    @property
    def state(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "skipped_in_a_row": self.in_a_row, "norms": list(self._norms)}

    def accepts(self, norm: float) -> bool:
        """Whether the step at hand, whose gradient has this norm, is to be applied. Optimizers ask once for each group."""
        if self._accepted is None:
            self._accepted = not self.is_suspect(norm)
        return self._accepted

    def is_suspect(self, norm: float) -> bool:
        """Whether a step of this norm is not to be applied."""
        return not math.isfinite(norm) or self._is_spike(norm)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Between two steps of the run: no update is applied inside, and none is counted."""
        self._accepted = False
        try:
            yield
        finally:
            self._accepted = None

    def end_step(self, norm: float) -> bool:
        """Count the step; whether it was skipped. DeepSpeed skips some by itself and then asks for nothing."""
        applied = self.accepts(norm)
        self._accepted = None
        if applied:
            self._norms = [*self._norms, norm][-NUM_NORMS:]
            self.in_a_row = 0
        else:
            self.skipped += 1
            self.in_a_row += 1
        return not applied

    @property
    def gives_up(self) -> bool:
        """Whether more steps in a row were skipped than the settings allow."""
        return self.in_a_row > self.config.max_skipped

    def _is_spike(self, norm: float) -> bool:
        factor = self.config.spike_factor
        return factor > 0 and len(self._norms) >= FEWEST_NORMS and norm > factor * statistics.median(self._norms)
