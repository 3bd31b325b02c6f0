"""What `--dry-run` says without building anything: sizes of the model, what of the data is read when."""

import math
from typing import TYPE_CHECKING

from ttt_dist.checkpoint import manager
from ttt_dist.config.objective import Objective
from ttt_dist.config.run import Config
from ttt_dist.data.loader import PackLoader
from ttt_dist.launch.launchers import DistInfo
from ttt_dist.launch.process_group import has_gpu
from ttt_dist.model.optimizer_groups import num_trained
from ttt_dist.model.structure import count_parameters, is_adapter, parameter_shapes
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.training.memory_estimate import memory_per_rank
from ttt_dist.util.console import print_rank0

if TYPE_CHECKING:
    from ttt_dist.training.plan import TrainPlan


def describe(plan: "TrainPlan", dist_info: DistInfo) -> None:
    """What `--dry-run` prints: model, layout of the processes, data, and where the run stands."""
    config, layout, train = plan.config, plan.metadata.layout, plan.config.train
    parts = count_parameters(config.model, layout.padded_vocab_size)
    print_rank0(
        f"model      {sum(parts.values()):,} parameters: "
        + ", ".join(f"{name} {size:,}" for name, size in parts.items())
    )
    if told := describe_trained(config, layout):
        print_rank0(f"trained    {told}")
    print_rank0(
        f"tokens     {layout.vocab_size:,} (padded to {layout.padded_vocab_size:,}), {layout.num_codes:,} audio codes"
    )
    print_rank0(
        f"processes  {dist_info.world_size} ({plan.mesh}), ZeRO {plan.metadata.zero_stage}, {train.precision}; global batch "
        f"{train.global_batch} packs = {plan.mesh.data} x {train.micro_batch} x {plan.loader.num_micro_batches(0)} accumulation steps"
        + "".join(f", from step {stage.from_step:,} on {stage.global_batch} packs" for stage in train.batch_stages)
    )
    on_cuda = train.precision == "bf16" or has_gpu()  # said on a login node, meant for the GPUs
    memory = memory_per_rank(config, layout, plan.mesh, plan.metadata.zero_stage, plan.loader.seq_len, on_cuda)
    print_rank0(f"memory     {memory} (of the fullest process)")
    for line in describe_objective(config.objective, train.steps):
        print_rank0(f"objective  {line}")
    for line in describe_data(plan.loader, train.steps):
        print_rank0(f"data       {line}")
    for name, held_out in plan.held_out.items():
        which = f"{name}: {held_out.reader.prefix}" if name else held_out.reader.prefix
        print_rank0(f"held out   {which}: {held_out.num_packs:,} of {len(held_out.reader):,} packs")
    start = f"resumes at step {manager.step_of(plan.start)} from {plan.start}" if plan.start else "starts anew"
    print_rank0(f"run        {config.run_dir}: {start}")
    for note in plan.notes:
        print_rank0(f"note       on this machine: {note}")


def describe_trained(config: Config, layout: TokenLayout) -> str:
    """How many parameters an update may change; nothing where that is all of them."""
    shapes = parameter_shapes(config.model, layout.padded_vocab_size)
    number, total = num_trained(shapes, config.train, layout.num_text_tokens), sum(map(math.prod, shapes.values()))
    of_adapters = sum(math.prod(shape) for name, shape in shapes.items() if is_adapter(name))
    told = f", {of_adapters:,} of them of adapters of rank {config.model.lora.r}" if of_adapters else ""
    return f"{number:,} parameters ({number / total:.2%}){told}" if number != total else ""


def describe_objective(objective: Objective, steps: int) -> list[str]:
    """A line; of one with stages a line for each that begins before `steps`, and one of the held-out loss."""
    starts = [stage.from_step for stage in objective.stages if stage.from_step < steps]
    if not starts:
        return [str(objective)]
    ends = [*starts[1:], steps]
    lines = [f"steps {start:,} to {end:,}: {objective.at(start)}" for start, end in zip(starts, ends, strict=True)]
    return [*lines, f"held-out loss: {objective}"]


def describe_data(loader: PackLoader, steps: int) -> list[str]:
    """A line for each source (packs, samples, tokens, epochs after `steps`), and of a blend one for each stage."""
    epochs = loader.epoch_of(steps)
    lines = []
    for name, reader in loader.sources.readers.items():
        counts = reader.counts
        of_blend = f"{name}: " if loader.sources.stages else ""
        lines.append(
            f"{of_blend}{reader.prefix}: {counts['packs']:,} packs of {reader.seq_len:,} tokens, {counts['samples']:,} samples, "
            f"{counts['tokens']:,} tokens; {steps:,} steps are {epochs[name]:.1f} epochs"
        )
    asked = loader.sources.epoch_steps(loader.sizes)
    if asked is not None:
        lines.append(f"the epochs of data.blend are {asked:,} steps; train.steps={steps}")
    return lines + _describe_stages(loader, steps)


def _describe_stages(loader: PackLoader, steps: int) -> list[str]:
    """Share of the packs and epochs at its end, for each stage that a step before `steps` begins in: data.skip moves them up."""
    stages, sizes = loader.sources.stages, loader.sizes
    starts = [min(sizes.step_at(sizes.trained(stage.from_step)), steps) for stage in stages]
    lines = []
    for stage, start, end in zip(stages, starts, [*starts, steps][1:], strict=True):
        if start < end:
            epochs = loader.epoch_of(end)
            read = (f"{name} {float(share):.1%} (to epoch {epochs[name]:.2f})" for name, share in stage.shares.items())
            lines.append(f"steps {start:,} to {end:,}: {', '.join(read)}")
    return lines
