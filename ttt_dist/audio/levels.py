"""What the levels of a recording tell of a mistake in its making: it can be read and encoded, and is worth a look.

Samples at full scale are 1. Channels are mixed by their mean, and where one is the other upside down nothing is left.
"""

from __future__ import annotations

import numpy as np

FAR_BEYOND = 2.0  # lossy decoders and limiters go somewhat over 1; 16-bit numbers and unit variances as floats go far
OPPOSITE = 0.1  # |sum of channels|^2 over the sum of |channel|^2: 2 of two like channels, 1 of independent ones
BEYOND = f"samples beyond {FAR_BEYOND:g} times full scale (divide them by what they were multiplied with)"
CANCELLED = "channels in opposite phase, of which the mix leaves next to nothing (turn one of them over)"
SILENT = "nothing but silence"


class Levels:
    """Of one recording: the peak of its samples, and the energies of its channels and of their mean."""

    def __init__(self) -> None:
        self.peak = self._channels = self._mix = 0.0

    def add(self, channels: np.ndarray, mix: np.ndarray) -> None:
        """A block: [T, C], C > 1, and the mean of its channels [T]."""
        self.peak = max(self.peak, float(channels.max()), -float(channels.min()))
        flat = channels.ravel()
        self._channels += float(np.vdot(flat, flat)) / channels.shape[1] ** 2
        self._mix += float(np.vdot(mix, mix))

    def notes(self, low: float, high: float) -> list[str]:
        """What there is to say; `low` and `high` are the least and the greatest sample of the mix."""
        peak = max(self.peak, high, -low)
        if peak == 0.0:
            return [SILENT]
        found = [BEYOND] if peak > FAR_BEYOND else []
        return [*found, CANCELLED] if self._mix < OPPOSITE * self._channels else found
