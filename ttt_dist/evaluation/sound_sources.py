"""What is listened to in an evaluation of speech: what the model says, and what it is measured against."""

from collections.abc import Callable

from torch import Tensor

Sound = Callable[[int], Tensor]
"""Gives a waveform [T] at the rate asked for, in Hz."""

SOURCES = {"speech": "own speech", "recording": "recordings", "codec": "through the codec"}
"""Name in a record -> what a table calls it; the last two are the ceiling."""
