"""Train a model on packed shards, with DeepSpeed or as one process.

    deepspeed [--num_gpus 2] ttt_dist/train.py --config recipes/demo.yaml train.lr=3e-4 run_dir=runs/mine
    python ttt_dist/train.py --config recipes/demo.yaml --dry-run

Everything about the run ends up in its run_dir. Started again with the same run_dir, it goes on from the newest complete
checkpoint, on as many processes in whatever layout; a new run_dir may start from a checkpoint of another one with --resume.
Any setting of ttt_dist/config.py can be given as section.key=value behind the config file.

Exit status: 0 finished, 75 stopped as asked (saved; start again), 76 a process was lost (start again), 77 diverged, 1 a
mistake that one line explains, 2 bad usage.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

# Run as a file, Python puts this file's folder first into the path; its modules are to be found as ttt_dist.* only.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from ttt_dist.config import Config, check_run, load_config, save_config, to_dict
from ttt_dist.data.loader import HeldOutLoader, PackLoader
from ttt_dist.data.shards import ShardReader
from ttt_dist.data.sources import Sources
from ttt_dist.errors import UserError
from ttt_dist.model.families import require_same_model
from ttt_dist.parallel.mesh import Mesh, require_divisible
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.telemetry.console import main_guard, say
from ttt_dist.telemetry.events import Events
from ttt_dist.telemetry.metrics import open_metrics, require_sinks
from ttt_dist.telemetry.profiler import ProfileWindow
from ttt_dist.telemetry.run_folder import environment, write_environment
from ttt_dist.training import checkpoint
from ttt_dist.training.describe import count_parameters, describe_data
from ttt_dist.training.environment import (
    init_process_group,
    leave_process_group,
    log_to_files,
    prepare_process,
    processes,
)
from ttt_dist.training.export import export_model, require_assets
from ttt_dist.training.launchers import Processes
from ttt_dist.training.memory import memory_per_rank

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from ttt_dist.parallel.groups import Mpu
    from ttt_dist.training.loop import Run


def main() -> None:
    """Settle everything that can be wrong; then train, or say what would be trained."""
    arguments = parse_arguments()
    place = processes()
    prepare_process(place.local_size)
    try:
        job = settle(load_config(arguments.config, arguments.overrides), place, arguments.resume)
    except UserError:
        if place.local_rank != 0:
            sys.exit(1)  # every process of this machine meets the same mistake: one of them tells it
        raise
    if arguments.dry_run:
        describe(job, place)
    else:
        train(job, place)


@dataclass
class Job:
    """A run whose settings, files and checkpoint fit together."""

    config: Config
    mesh: Mesh
    loader: PackLoader
    held_out: HeldOutLoader | None
    facts: checkpoint.Facts
    candidates: list[Path]
    """Checkpoints to go on from, the first one that proves whole; none: the run starts anew."""

    @property
    def start(self) -> Path | None:
        """The checkpoint that the run would go on from, unless it proves damaged."""
        return next(iter(self.candidates), None)


def settle(config: Config, place: Processes, resume: Path | None = None) -> Job:
    """Open what the run needs and check that it fits, before any process group exists. Raises UserError."""
    check_run(config, place.world_size)
    mesh = Mesh.of(config.parallel, place.world_size, place.rank)
    require_sinks(config.telemetry.wandb, config.telemetry.tensorboard)
    sources = Sources.open(config.data)
    shard = sources.first
    require_assets(config)
    layout, seq_len, train = shard.layout, shard.seq_len or 0, config.train
    if train.init_from is not None:
        require_same_model(train.init_from, config.model)
        layout.require_same(
            TokenLayout.load(Path(train.init_from) / "token_layout.json"), f"train.init_from={train.init_from}"
        )
    require_divisible(train.micro_batch * seq_len, config.parallel)
    loader = PackLoader(
        sources, layout, config.objective, config.seed, seq_len, train.global_batch, train.micro_batch,
        mesh.data_rank, mesh.data, config.data.prefetch,
    )  # fmt: skip
    held_out = None
    if config.data.valid:
        valid = ShardReader(config.data.valid)
        valid.require_same_codec(shard)
        held_out = HeldOutLoader(
            valid, layout, config.objective, config.seed, seq_len, train.micro_batch,
            mesh.data_rank, mesh.data, train.eval_packs or None,
        )  # fmt: skip
    facts = checkpoint.Facts.of_run(config, layout, place.world_size)
    candidates = find_candidates(config, resume)
    for candidate in candidates[:1]:
        checkpoint.require_resumable(candidate, facts)
    checkpoint.require_space(Path(config.run_dir), sum(count_parameters(config.model, layout).values()))
    return Job(config, mesh, loader, held_out, facts, candidates)


def find_candidates(config: Config, resume: Path | None) -> list[Path]:
    """Checkpoints of this run, newest first, or, where it has none yet, those that --resume names."""
    own = checkpoint.found(Path(config.run_dir) / "checkpoints")
    if own and not config.checkpoint.resume:
        raise UserError(f"{own[0]}: run_dir holds a run already; set checkpoint.resume=true or choose another run_dir")
    return own or ([] if resume is None else checkpoint.named(resume))


def train(job: Job, place: Processes) -> None:
    """Join the other processes, build or restore the model, train it, export it."""
    from ttt_dist.training.loop import fit

    run = set_up(job, place)
    last, export = job.config.train.steps, run.folder / "export"
    try:
        with run.watchdog.faults_told():
            fit(run)
            run.watchdog.mark(last, "exporting the model", job.config.guard.start_timeout)
            export_model(run.engine, run.mesh, job.config, job.facts.layout, export)
        run.tell("finish", last)
        say(f"{export}: the trained model")
    finally:
        run.close()
    leave_process_group()


def set_up(job: Job, place: Processes) -> "Run":
    """Everything that the loop works with: the process group, the engine with its weights, the logs; collective."""
    # DeepSpeed takes seconds to import and looks for its accelerator while at it: after prepare_process, after the checks.
    from ttt_dist.parallel import groups
    from ttt_dist.training.engine import guard_updates
    from ttt_dist.training.guard import Guard
    from ttt_dist.training.loop import Run
    from ttt_dist.training.stopping import StopRequests
    from ttt_dist.training.watchdog import Watchdog

    config, mesh, run_dir = job.config, job.mesh, Path(job.config.run_dir)
    stop = StopRequests(60 * config.guard.stop_after)
    if mesh.tensor > 1:  # Megatron overlaps sums with products only where the device runs its queues in order
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    init_process_group(place, config.guard.start_timeout)
    log_to_files(run_dir / "logs", place.rank)
    events = Events(run_dir)
    watchdog = Watchdog(
        run_dir / "logs", config.guard.start_timeout, lambda step, reason: events.log("fault", step, reason=reason)
    )
    engine, source = build(job, groups.join(mesh))
    start_step, counters = (0, {}) if source is None else checkpoint.progress_of(source)
    if source is not None and source.parent == run_dir / "checkpoints":
        newest = source
        checkpoint.on_first_rank(lambda: checkpoint.make_newest(newest, config.checkpoint))
    guard = Guard(config.guard, counters)
    guard_updates(engine, guard)
    metrics = None
    if place.is_first:
        save_config(config, run_dir / "config.yaml")
        write_environment(run_dir, environment(place.world_size, start_step))
        chosen = config.telemetry
        metrics = open_metrics(
            run_dir, start_step, to_dict(config), chosen.wandb, chosen.wandb_project, chosen.tensorboard
        )
    profile = ProfileWindow.of_run(config, place.rank, start_step)
    run = Run(
        config, engine, mesh, job.loader, job.held_out, job.facts, guard, stop, watchdog, profile, metrics, events, start_step
    )  # fmt: skip
    run.tell("start", start_step, checkpoint=source and str(source), world_size=place.world_size, mesh=str(mesh))
    num_parameters = sum(count_parameters(config.model, job.facts.layout).values())
    say(f"{run_dir}: {num_parameters:,} parameters on {place.world_size} process(es), {mesh}, from step {start_step}")
    for line in describe_data(job.loader, config.train.steps):
        say(line)
    return run


def build(job: Job, mpu: "Mpu | None") -> "tuple[DeepSpeedEngine, Path | None]":
    """The engine with its first weights or those of a checkpoint, and which checkpoint that was; collective."""
    from ttt_dist.model.huggingface import FolderWeights
    from ttt_dist.model.layers import RandomWeights, WeightSource, zero_weights
    from ttt_dist.training.engine import build_engine, build_model
    from ttt_dist.training.portable import load_portable

    config, mesh, layout = job.config, job.mesh, job.facts.layout
    source, init_from = checkpoint.first_whole(job.candidates), config.train.init_from
    weights: WeightSource = RandomWeights(config.seed)
    if source is not None:
        weights = zero_weights  # all of them are about to be read
    elif init_from is not None:
        weights = FolderWeights(init_from, config.model, layout)
    engine = build_engine(build_model(config, layout, mesh, mpu, weights), config, mesh, mpu)
    if source is not None and checkpoint.has_layout_of(source, job.facts):
        checkpoint.load(engine, source)
    elif source is not None:
        say(f"{source}: of another layout of processes, its weights and moments are dealt out anew")
        load_portable(engine, mesh, config.model, layout, source)
    return engine, source


def describe(job: Job, place: Processes) -> None:
    """What `--dry-run` prints: model, layout of the processes, data, and where the run stands."""
    config, layout, train = job.config, job.facts.layout, job.config.train
    parts = count_parameters(config.model, layout)
    say(
        f"model      {sum(parts.values()):,} parameters: "
        + ", ".join(f"{name} {size:,}" for name, size in parts.items())
    )
    say(f"tokens     {layout.vocab_size:,} (padded to {layout.padded_vocab_size:,}), {layout.num_codes:,} audio codes")
    say(
        f"processes  {place.world_size} ({job.mesh}), ZeRO {job.facts.zero_stage}, {train.precision}; global batch "
        f"{train.global_batch} packs = {job.mesh.data} x {train.micro_batch} x {job.loader.num_micro_batches} accumulation steps"
    )
    on_cuda = torch.cuda.is_available() or train.precision == "bf16"  # said on a login node, meant for the GPUs
    memory = memory_per_rank(config, layout, job.mesh, job.facts.zero_stage, job.loader.seq_len, on_cuda)
    say(f"memory     {memory} (of the fullest process)")
    for line in describe_data(job.loader, train.steps):
        say(f"data       {line}")
    if job.held_out is not None:
        say(f"held out   {config.data.valid}: {job.held_out.num_packs:,} of {len(job.held_out.reader):,} packs")
    start = f"resumes at step {checkpoint.step_of(job.start)} from {job.start}" if job.start else "starts anew"
    say(f"run        {config.run_dir}: {start}")


def parse_arguments() -> argparse.Namespace:
    """The command line, with the settings that may stand before or after the options."""
    summary, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="YAML file with the run's settings")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print what would be trained, and exit"
    )
    parser.add_argument(
        "--resume", type=Path, metavar="PATH",
        help="checkpoint, or run folder, that a run_dir without checkpoints of its own starts from; any layout",
    )  # fmt: skip
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that replace those of the file"
    )
    arguments = parser.parse_intermixed_args()
    if arguments.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
    return arguments


if __name__ == "__main__":
    main_guard(main)
