"""What the spawned processes of tests/distributed/test_loss_terms.py run: training and evaluation with a further term."""

from tests.distributed.cases import GLOBAL_BATCH, LAYOUT, Layout, new_engine, run_step
from tests.distributed.random_packs import SEQ_LEN, global_batches
from ttt_dist.sequence import loss_terms
from ttt_dist.sequence.batch import collate
from ttt_dist.sequence.loss_terms import LossTerm


def losses_with_a_term(layout: Layout, num_steps: int) -> list[tuple[float, ...]]:
    """Losses by term and gradient norm of each step, then the losses of held-out packs."""
    from ttt_dist.training.validate import held_out_loss

    loss_terms.MORE_TERMS["own"] = LossTerm(
        "ar", lambda nats, log_sums: log_sums**2 / (1 + nats), lambda objective: 0.1
    )
    try:
        with new_engine(layout) as engine:
            rows: list[tuple[float, ...]] = [run_step(engine, layout, step) for step in range(num_steps)]
            mesh, [packs] = layout.mesh(), global_batches(1, GLOBAL_BATCH)
            size, objective = layout.micro, layout.config().objective
            firsts = range(mesh.data_rank * size, GLOBAL_BATCH, size * layout.dp)
            held_out = [
                collate(packs[first : first + size], LAYOUT, objective, 7, [0] * size, SEQ_LEN) for first in firsts
            ]
            losses = held_out_loss(engine, mesh, held_out)  # type: ignore[arg-type]  # batches are all that it asks for
            return [*rows, (*losses.record().values(), 0.0)]
    finally:
        del loss_terms.MORE_TERMS["own"]
