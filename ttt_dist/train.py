"""Train a model on packed shards, with DeepSpeed or as one process.

    deepspeed [--num_gpus 2] ttt_dist/train.py --config recipes/demo.yaml train.lr=3e-4 run_dir=runs/mine
    python ttt_dist/train.py --config recipes/demo.yaml --dry-run

Everything about the run ends up in its run_dir. Started again with the same run_dir, it goes on from the newest complete
checkpoint. Any setting of ttt_dist/config.py can be given as section.key=value behind the config file.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

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
from ttt_dist.telemetry.metrics import open_metrics, require_sinks
from ttt_dist.telemetry.run_folder import environment, write_environment
from ttt_dist.training import checkpoint
from ttt_dist.training.describe import count_parameters, describe_data
from ttt_dist.training.environment import Processes, init_process_group, leave_process_group, prepare_process, processes
from ttt_dist.training.export import export_model, require_assets
from ttt_dist.training.memory import memory_per_rank


def main() -> None:
    """Settle everything that can be wrong; then train, or say what would be trained."""
    arguments = parse_arguments()
    place = processes()
    prepare_process(place.local_size)
    try:
        job = settle(load_config(arguments.config, arguments.overrides), place)
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
    resume_from: Path | None


def settle(config: Config, place: Processes) -> Job:
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
    resume_from = checkpoint.latest(Path(config.run_dir) / "checkpoints")
    if resume_from is not None:
        if not config.checkpoint.resume:
            raise UserError(
                f"{resume_from}: run_dir holds a run already; set checkpoint.resume=true or choose another run_dir"
            )
        checkpoint.require_resumable(resume_from, facts)
    return Job(config, mesh, loader, held_out, facts, resume_from)


def train(job: Job, place: Processes) -> None:
    """Join the other processes, build or restore the model, train it, export it."""
    # DeepSpeed takes seconds to import and looks for its accelerator while at it: after prepare_process, after the checks.
    from ttt_dist.model.huggingface import FolderWeights
    from ttt_dist.model.layers import RandomWeights
    from ttt_dist.parallel import groups
    from ttt_dist.training.engine import build_engine, build_model
    from ttt_dist.training.environment import log_to_files
    from ttt_dist.training.loop import Run, fit

    config, mesh, layout, run_dir = job.config, job.mesh, job.facts.layout, Path(job.config.run_dir)
    if mesh.tensor > 1:  # Megatron overlaps sums with products only where the device runs its queues in order
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    init_process_group(place)
    log_to_files(run_dir / "logs", place.rank)
    mpu = groups.join(mesh)

    init_from = config.train.init_from
    weights = FolderWeights(init_from, config.model, layout) if init_from else RandomWeights(config.seed)
    engine = build_engine(build_model(config, layout, mesh, mpu, weights), config, mesh, mpu)
    start_step = checkpoint.load(engine, job.resume_from) if job.resume_from else 0

    metrics = None
    if place.is_first:
        save_config(config, run_dir / "config.yaml")
        write_environment(run_dir, environment(place.world_size, start_step))
        chosen = config.telemetry
        metrics = open_metrics(
            run_dir, start_step, to_dict(config), chosen.wandb, chosen.wandb_project, chosen.tensorboard
        )
    num_parameters = sum(count_parameters(config.model, layout).values())
    say(f"{run_dir}: {num_parameters:,} parameters on {place.world_size} process(es), {mesh}, from step {start_step}")
    for line in describe_data(job.loader, config.train.steps):
        say(line)
    fit(Run(config, engine, mesh, job.loader, job.held_out, job.facts, metrics, start_step))
    export_model(engine, mesh, config, layout, run_dir / "export")
    say(f"{run_dir / 'export'}: the trained model")
    if metrics is not None:
        metrics.close()
    job.loader.close()
    leave_process_group()


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
    start = (
        f"resumes at step {checkpoint.step_of(job.resume_from)} from {job.resume_from}"
        if job.resume_from
        else "starts anew"
    )
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
