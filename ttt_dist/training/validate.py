"""The loss on held-out packs: always the same packs with the same noise, so that figures of different steps compare."""

from typing import NamedTuple

import deepspeed
import torch
import torch.distributed as dist

from ttt_dist.data.loader import HeldOutLoader


class HeldOutLoss(NamedTuple):
    """Losses over the held-out packs, normalised like those of a training step."""

    loss: float
    ar_loss: float
    nar_loss: float


@torch.no_grad()
def held_out_loss(engine: deepspeed.DeepSpeedEngine, loader: HeldOutLoader) -> HeldOutLoss:
    """Evaluate all packs of `loader`; collective."""
    sums = torch.zeros(3, dtype=torch.float64, device=engine.device)
    engine.eval()
    for batch in loader:
        output = engine(batch.to(engine.device))
        count = torch.tensor(batch.count, dtype=torch.float64, device=engine.device)
        sums += torch.stack([output.ar_sum.double(), output.nar_sum.double(), count])
    engine.train()
    dist.all_reduce(sums)
    ar_sum, nar_sum, count_sum = sums.tolist()
    divisor = max(count_sum, 1e-12)
    return HeldOutLoss((ar_sum + nar_sum) / divisor, ar_sum / divisor, nar_sum / divisor)
