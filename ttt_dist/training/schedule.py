"""The learning rate as a pure function of the step: linear warm-up, then the schedule. Nothing of it needs saving."""

import math
from collections.abc import Callable

from ttt_dist.config.run import TrainConfig
from ttt_dist.data.step_sizes import StepSizes


def learning_rate(step: int, train: TrainConfig, sizes: StepSizes) -> float:
    """Learning rate of the update number `step` (0 is the first of `train.steps`).

    It rises linearly to `train.lr` at the last update of the warm-up; `train.schedule` says what comes then:

    - `cosine`, `linear`: down to `min_lr_ratio` of it at the last update;
    - `constant`: none of that;
    - `inverse_sqrt`: with the root of the updates done (Vaswani et al. 2017, section 5.3);
    - `wsd`: constant, then in each of the last `decay_steps` further down by 1 - sqrt (Haegele et al. 2024, arXiv 2405.18392).

    Where it goes by tokens, packs take the place of updates.
    """
    done: Callable[[int], int] = sizes.trained if train.schedule_by == "tokens" else int
    if step < train.warmup:
        return train.lr * done(step + 1) / done(train.warmup)

    def progress(start: int) -> float:
        """From 0 at the update `start` to 1 at the last one."""
        return max(0.0, min((done(step) - done(start)) / max(done(train.steps - 1) - done(start), 1), 1.0))

    if train.schedule == "cosine":
        share = 0.5 * (1.0 + math.cos(math.pi * progress(train.warmup)))
    elif train.schedule == "linear":
        share = 1.0 - progress(train.warmup)
    elif train.schedule == "wsd":
        decay_steps = train.decay_steps or max(train.steps // 10, 1)
        share = 1.0 - math.sqrt(progress(max(train.steps - decay_steps - 1, 0)))  # the last update at the peak
    elif train.schedule == "inverse_sqrt":
        return train.lr * max(train.min_lr_ratio, math.sqrt(max(done(train.warmup), 1) / done(step + 1)))
    else:
        return train.lr
    return train.lr * (train.min_lr_ratio + (1.0 - train.min_lr_ratio) * share)
