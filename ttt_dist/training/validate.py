"""The loss on held-out packs: always the same packs with the same noise, so that figures of different steps compare."""

import deepspeed
import torch
import torch.distributed as dist

from ttt_dist.data.loader import ValidationLoader
from ttt_dist.model.loss import metric_names
from ttt_dist.parallel.mesh import Mesh
from ttt_dist.sequence.loss_terms import term_names
from ttt_dist.training.step import Losses


@torch.no_grad()
def held_out_loss(engine: deepspeed.DeepSpeedEngine, mesh: Mesh, loader: ValidationLoader, name: str = "") -> Losses:
    """Over all packs of `loader`, the set called `name`, normalised like those of a training step; collective."""
    batches = list(loader)
    engine.eval()
    if mesh.pipeline > 1:
        from ttt_dist.parallel.pipeline import evaluate_pipeline

        sums = evaluate_pipeline(engine, batches)
    else:
        sums = torch.zeros(len(metric_names(batches[0].num_groups)), dtype=torch.float64, device=engine.device)
        for batch in batches:
            sums += engine(batch.to(engine.device)).metric_sums()
    engine.train()
    names = term_names()
    num_units = sum(batch.num_loss_units for batch in batches) * mesh.is_data_source_rank
    terms = sums[: len(names)] * mesh.is_loss_rank
    total = torch.cat([terms, torch.tensor([num_units], dtype=torch.float64, device=engine.device)])
    dist.all_reduce(total)
    *by_term, num_units = total.tolist()
    return Losses.of_sums(dict(zip(names, by_term, strict=True)), num_units, name)
