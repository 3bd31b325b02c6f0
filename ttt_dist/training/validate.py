"""The loss on held-out packs: always the same packs with the same noise, so that figures of different steps compare."""

from typing import NamedTuple

import deepspeed
import torch
import torch.distributed as dist

from ttt_dist.data.loader import ValidationLoader
from ttt_dist.parallel.mesh import Mesh


class HeldOutLoss(NamedTuple):
    """Losses over the held-out packs, normalised like those of a training step."""

    loss: float
    ar_loss: float
    nar_loss: float


@torch.no_grad()
def held_out_loss(engine: deepspeed.DeepSpeedEngine, mesh: Mesh, loader: ValidationLoader) -> HeldOutLoss:
    """Evaluate all packs of `loader`; collective."""
    batches = list(loader)
    engine.eval()
    if mesh.pipeline > 1:
        from ttt_dist.parallel.pipeline import evaluate_pipeline

        sums = evaluate_pipeline(engine, batches)
    else:
        sums = torch.zeros(2, dtype=torch.float64, device=engine.device)
        for batch in batches:
            output = engine(batch.to(engine.device))
            sums += torch.stack([output.ar_sum, output.nar_sum])
    engine.train()
    count = torch.tensor([sum(batch.count for batch in batches)], dtype=torch.float64, device=engine.device)
    sums = torch.cat([sums * mesh.is_loss_rank, count * mesh.is_data_source_rank])
    dist.all_reduce(sums)
    ar_sum, nar_sum, count_sum = sums.tolist()
    divisor = max(count_sum, 1e-12)
    return HeldOutLoss((ar_sum + nar_sum) / divisor, ar_sum / divisor, nar_sum / divisor)
