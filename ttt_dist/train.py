"""Train a model on packed shards, with DeepSpeed or as one process.

    deepspeed [--num_gpus 2] ttt_dist/train.py --config recipes/demo.yaml train.lr=3e-4 run_dir=runs/mine
    python ttt_dist/train.py --config recipes/demo.yaml --dry-run

Everything about the run ends up in its run_dir. Started again with the same run_dir, it goes on from the newest complete
checkpoint, on as many processes in whatever layout; a new run_dir may start from a checkpoint of another one with --resume.
Any setting of ttt_dist/config/ can be given as section.key=value behind the config file.

Exit status: 0 finished, 75 stopped as asked (saved; start again), 76 a process was lost (start again), 77 diverged, 1 a
mistake that one line explains, 2 bad usage.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# Run as a file, Python puts this file's folder first into the path; its modules are to be found as ttt_dist.* only.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ttt_dist.util.console import main_guard, print_rank0
from ttt_dist.util.errors import UserError

# The rest is imported where it is used: --help and mistakes of the command line wait for nothing.
if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from ttt_dist.launch.launchers import DistInfo
    from ttt_dist.parallel.groups import Mpu
    from ttt_dist.training.loop import Trainer
    from ttt_dist.training.plan import TrainPlan


def main() -> None:
    """Settle everything that can be wrong; then train, or say what would be trained."""
    arguments = parse_arguments()
    from ttt_dist.config.loader import read_config
    from ttt_dist.launch.process_group import choose_accelerator, current_dist_info
    from ttt_dist.training.dry_run import describe
    from ttt_dist.training.plan import prepare

    dist_info = current_dist_info()
    choose_accelerator()
    try:
        job = prepare(read_config(arguments.config, arguments.overrides), dist_info, arguments.resume)
    except UserError:
        if dist_info.local_rank != 0:
            sys.exit(1)  # every process of this machine meets the same mistake: one of them tells it
        raise
    if arguments.dry_run:
        describe(job, dist_info)
    else:
        train(job, dist_info)


def train(job: "TrainPlan", dist_info: "DistInfo") -> None:
    """Join the other processes, build or restore the model, train it, export it."""
    from ttt_dist.checkpoint.export import export_model
    from ttt_dist.launch.process_group import leave_process_group, share_cores
    from ttt_dist.training.loop import fit

    share_cores(dist_info.local_size)
    run = set_up(job, dist_info)
    last, export = max(job.config.train.steps, run.start_step), run.folder / "export"
    try:
        with run.watchdog.faults_told():
            fit(run)
            run.watchdog.mark(last, "exporting the model", job.config.guard.start_timeout)
            export_model(run.engine, run.mesh, job.config, job.metadata.layout, export, last)
        run.tell("finish", last)
        print_rank0(f"{export}: the trained model")
    finally:
        run.close()
    leave_process_group()


def set_up(job: "TrainPlan", dist_info: "DistInfo") -> "Trainer":
    """Everything that the loop works with: the process group, the engine with its weights, the logs; collective."""
    # DeepSpeed takes seconds to import and looks for its accelerator while at it: after choose_accelerator, after the checks.
    from ttt_dist.checkpoint import manager
    from ttt_dist.config.deepspeed import require_accepted
    from ttt_dist.config.loader import save_config, to_dict
    from ttt_dist.launch.process_group import init_process_group, log_to_files
    from ttt_dist.parallel import groups
    from ttt_dist.telemetry.events import Events
    from ttt_dist.telemetry.metrics import open_metrics
    from ttt_dist.telemetry.profiler import ProfileWindow
    from ttt_dist.telemetry.run_folder import environment, write_environment
    from ttt_dist.training.dry_run import count_parameters, describe_data
    from ttt_dist.training.engine import wrap_optimizer_step
    from ttt_dist.training.loop import Trainer
    from ttt_dist.training.skip_step import SkipStep
    from ttt_dist.training.stop_signals import SignalHandler
    from ttt_dist.training.watchdog import Watchdog

    config, mesh, run_dir = job.config, job.mesh, Path(job.config.run_dir)
    stop = SignalHandler(60 * config.guard.stop_after)
    if mesh.tensor > 1:  # Megatron overlaps sums with products only where the device runs its queues in order
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    require_accepted(config.deepspeed)
    init_process_group(dist_info, config.guard.start_timeout)
    log_to_files(run_dir / "logs", dist_info.rank)
    events = Events(run_dir)
    watchdog = Watchdog(
        run_dir / "logs", config.guard.start_timeout, lambda step, reason: events.log("fault", step, reason=reason)
    )
    engine, source = build(job, groups.join(mesh))
    start_step, counters = (0, {}) if source is None else manager.progress_of(source)
    if source is not None and source.parent == run_dir / "checkpoints":
        newest = source
        manager.on_first_rank(lambda: manager.make_newest(newest, config.checkpoint))
    guard = SkipStep(config.guard, counters)
    wrap_optimizer_step(engine, guard)
    metrics = None
    if dist_info.is_first:
        save_config(config, run_dir / "config.yaml")
        write_environment(run_dir, environment(dist_info.world_size, start_step))
        chosen = config.telemetry
        metrics = open_metrics(
            run_dir, start_step, to_dict(config), chosen.wandb, chosen.wandb_project, chosen.tensorboard
        )
    profile = ProfileWindow.of_run(config, dist_info.rank, start_step)
    run = Trainer(
        config, engine, mesh, job.loader, job.held_out, job.metadata, guard, stop, watchdog, profile, metrics, events, start_step
    )  # fmt: skip
    run.tell("start", start_step, checkpoint=source and str(source), world_size=dist_info.world_size, mesh=str(mesh))
    num_parameters = sum(count_parameters(config.model, job.metadata.layout).values())
    print_rank0(
        f"{run_dir}: {num_parameters:,} parameters on {dist_info.world_size} process(es), {mesh}, from step {start_step}"
    )
    for line in describe_data(job.loader, config.train.steps):
        print_rank0(line)
    return run


def build(job: "TrainPlan", mpu: "Mpu | None") -> "tuple[DeepSpeedEngine, Path | None]":
    """The engine with its first weights or those of a checkpoint, and which checkpoint that was; collective."""
    from ttt_dist.checkpoint import manager
    from ttt_dist.checkpoint.universal import load_universal
    from ttt_dist.model.hf.folder import FolderWeights
    from ttt_dist.model.layers import RandomWeights, WeightSource, zero_weights
    from ttt_dist.training.engine import build_engine, build_model

    config, mesh, layout = job.config, job.mesh, job.metadata.layout
    source, init_from = manager.first_whole(job.candidates), config.train.init_from
    weights: WeightSource = RandomWeights(config.seed)
    if source is not None:
        weights = zero_weights  # all of them are about to be read
    elif init_from is not None:
        weights = FolderWeights(init_from, config.model, layout)
    engine = build_engine(build_model(config, layout, mesh, mpu, weights), config, mesh, mpu)
    if source is not None and manager.has_layout_of(source, job.metadata):
        manager.load(engine, source)
    elif source is not None:
        print_rank0(f"{source}: of another layout of processes, its weights and moments are dealt out anew")
        load_universal(engine, mesh, config.model, layout, source)
    return engine, source


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
    arguments, others = parser.parse_known_intermixed_args()
    wrong = next((word for word in others if word.startswith("-") and "=" not in word), None)
    if wrong is not None:
        name = wrong.lstrip("-")
        parser.error(f"{wrong}: no such option; settings are one word without dashes, as in {name}=VALUE")
    # Megatron and torchtitan would take `--train.lr=1e-4`. In order: the last of two is what holds.
    settings = {*arguments.overrides, *others}
    arguments.overrides = [word.removeprefix("--") for word in sys.argv[1:] if word in settings]
    if arguments.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
    return arguments


def command() -> None:
    """The entry point `ttt-train`."""
    main_guard(main)


if __name__ == "__main__":
    command()
