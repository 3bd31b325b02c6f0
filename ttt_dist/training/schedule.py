"""The learning rate as a pure function of the step: linear warm-up, then a cosine. Nothing of it needs saving."""

import math


def learning_rate(step: int, peak: float, warmup: int, steps: int, min_ratio: float) -> float:
    """Learning rate of the update number `step` (0 is the first of `steps`).

    Rises linearly to `peak` at update `warmup - 1`, then follows half a cosine down to `peak * min_ratio` at the last update.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min((step - warmup) / max(steps - 1 - warmup, 1), 1.0)
    return peak * (min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress)))
