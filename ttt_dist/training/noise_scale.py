"""The gradient noise scale: from which batch size on a larger one is no longer worth its price.

McCandlish et al. 2018 (arXiv 1812.06162), the simple noise scale tr(Sigma) / |G|^2 of section 2.2, estimated as in appendix
A.1 from gradients of two sizes of batches: here those of single micro-batches, and that of the global batch. Each estimate
has far more noise than the ratio can bear, so numerator and denominator are averaged over measurements first.
"""

import math
from typing import Any

from ttt_dist.parallel.micro_batch_norms import MicroBatchNorms
from ttt_dist.training.step import StepResult

DECAY = 0.95  # of the moving averages, per measurement


class NoiseScale:
    """Moving averages of both parts; `state` and `NoiseScale(..., state)` carry them through a checkpoint."""

    def __init__(self, norms: MicroBatchNorms, every: int, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self.norms, self.every = norms, every
        self._noise: float = state.get("noise", 0.0)
        """Variance of the gradient of one loss unit, summed over weights. Both begin at 0, which the ratio does not show."""
        self._signal: float = state.get("signal", 0.0)
        """Square of the true gradient."""
        self._measured: StepResult | None = None

    @property
    def state(self) -> dict[str, Any]:
        return {"noise": self._noise, "signal": self._signal}

    def norms_at(self, step: int) -> MicroBatchNorms | None:
        """What measures the step, where it is one of those that are."""
        return self.norms if step % self.every == 0 else None

    def add(self, result: StepResult) -> None:
        """Count a step, unless it was not measured, is not finite, or has fewer than two micro-batches with a loss."""
        found = estimates(result)
        if found is not None:
            self._noise, self._signal = (
                DECAY * old + (1.0 - DECAY) * new for old, new in zip((self._noise, self._signal), found, strict=True)
            )
            self._measured = result

    def record(self, num_packs: int) -> dict[str, float]:
        """As records have it, for a batch of `num_packs`; nothing where no step was measured since, or noise hides the gradient."""
        measured, self._measured = self._measured, None
        if measured is None or self._signal <= 0.0 or self._noise <= 0.0:
            return {}
        batches = self._noise / self._signal / measured.counts.num_loss_units
        return {"noise_scale": batches * measured.counts.useful_tokens, "noise_scale_packs": batches * num_packs}


def estimates(result: StepResult) -> tuple[float, float] | None:
    """Unbiased ones of tr(Sigma), per loss unit, and |G|^2 (A.1 there); None where a step has none.

    With u_j units in micro-batch j, U in all, n micro-batches: the mean of |g_j|^2 with weights u_j / U is |G|^2 +
    tr(Sigma) n / U on average, as if all had U / n units.
    """
    small, big, counts = result.micro_batch_square, result.grad_norm**2, result.counts
    if small is None or counts.micro_batches < 2 or not math.isfinite(small + big):
        return None
    num = counts.micro_batches
    return (small - big) * counts.num_loss_units / (num - 1.0), (num * big - small) / (num - 1.0)
