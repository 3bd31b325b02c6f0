"""Train a model on packed shards, with DeepSpeed or as one process.

    deepspeed [--num_gpus 2] ttt_dist/train.py --config recipes/demo.yaml train.lr=3e-4 run_dir=runs/mine
    python ttt_dist/train.py --config recipes/demo.yaml --dry-run
    deepspeed ttt_dist/train.py --config mine.yaml --init-from models/qwen2.5-0.5b data.train=shards/train

Everything about the run ends up in its run_dir. Started again with the same run_dir, it goes on from the newest complete
checkpoint, on as many processes in whatever layout; a new run_dir may start from a checkpoint of another one with --resume.
Any setting of ttt_dist/config/ can be given as section.key=value behind the config file.

Exit status: 0 finished, 75 stopped as asked (saved; start again), 76 a process was lost (start again), 77 diverged, 78 this
process's device computes wrongly (start again elsewhere), 1 a mistake that one line explains, 2 bad usage.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# Run as a file, Python puts this file's folder first into the path; its modules are to be found as ttt_dist.* only.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ttt_dist.util.console import print_rank0, run_command
from ttt_dist.util.errors import UserError

# The rest is imported where it is used: --help and mistakes of the command line wait for nothing.
if TYPE_CHECKING:
    from ttt_dist.launch.launchers import DistInfo
    from ttt_dist.training.loop import Trainer
    from ttt_dist.training.plan import TrainPlan


def main() -> None:
    """Settle everything that can be wrong; then train, or say what would be trained."""
    arguments = parse_arguments()
    from ttt_dist.config.loader import read_config
    from ttt_dist.launch.process_group import choose_accelerator, current_dist_info, is_only_asked_about
    from ttt_dist.model.hf.families import model_section
    from ttt_dist.training.plan import prepare

    is_elsewhere = arguments.dry_run and is_only_asked_about(os.environ)
    dist_info = current_dist_info(describes=arguments.dry_run)
    choose_accelerator()
    try:
        config = read_config(arguments.config, arguments.overrides, model_section)
        trusts_files = dist_info.world_size > 1 and not arguments.dry_run
        plan = prepare(config, dist_info, arguments.resume, is_elsewhere, trusts_files)
    except UserError:
        if dist_info.local_rank != 0:
            sys.exit(1)  # every process of this machine meets the same mistake: one of them tells it
        raise
    if arguments.dry_run:
        from ttt_dist.training.dry_run import describe

        describe(plan, dist_info)
    else:
        train(plan, dist_info)


def train(plan: "TrainPlan", dist_info: "DistInfo") -> None:
    """Join the other processes, build or restore the model, train it, export it."""
    from ttt_dist.checkpoint.export import export_model
    from ttt_dist.launch.process_group import leave_process_group, share_cores
    from ttt_dist.training.loop import fit

    share_cores(dist_info.local_size)
    trainer = set_up(plan, dist_info)
    config = trainer.config
    export = trainer.folder / "export"
    try:
        with trainer.watchdog.faults_told(plan):
            last = fit(trainer)
            trainer.watchdog.mark(last, "exporting the model", config.guard.start_timeout)
            export_model(trainer.engine, trainer.mesh, config, trainer.metadata.layout, export, last)
        trainer.tell("finish", last, **({"reason": trainer.stop_reason} if trainer.stop_reason else {}))
        print_rank0(f"{export}: the trained model")
    finally:
        trainer.close()
    leave_process_group()


def set_up(plan: "TrainPlan", dist_info: "DistInfo") -> "Trainer":
    """Everything that the loop works with: the process group, the engine with its weights, the logs; collective."""
    # DeepSpeed takes seconds to import and looks for its accelerator while at it: after choose_accelerator, after the checks.
    from ttt_dist.checkpoint.restore import choose_start, complete_local_saves, restore
    from ttt_dist.launch.process_group import init_process_group, log_to_files
    from ttt_dist.parallel.parallelize import parallelize
    from ttt_dist.telemetry.events import Events
    from ttt_dist.training.loop import Trainer
    from ttt_dist.training.plan import agree, prepare
    from ttt_dist.training.stop_signals import SignalHandler
    from ttt_dist.training.watchdog import Watchdog

    config, mesh = plan.config, plan.mesh
    limit_s, logs = config.guard.start_timeout, Path(config.run_dir) / "logs"
    stop = SignalHandler(60 * config.guard.stop_after)
    init_process_group(
        dist_info,
        limit_s,
        queues_in_order=mesh.tensor > 1,
        tried=Path(config.run_dir) if config.guard.check_nodes else None,
    )
    log_to_files(logs, dist_info.rank)
    events = Events(config.run_dir)
    watchdog = Watchdog(logs, limit_s, lambda step, reason: events.log("fault", step, reason=reason))
    with watchdog.faults_told(plan):
        if complete_local_saves(config, plan.start):
            # There is a newer checkpoint to go on from.
            plan = prepare(plan.asked, dist_info, plan.resume, trusts_files=dist_info.world_size > 1)
        if dist_info.world_size > 1:
            plan = agree(plan, dist_info)
        config, layout = plan.config, plan.metadata.layout
        watchdog.mark(0, "building the model", limit_s)
        checkpoint, weights = choose_start(config, layout, plan.candidates)
        engine = parallelize(config, layout, mesh, weights)
        start_step, counters = restore(engine, mesh, config, plan.metadata, checkpoint)
        trainer = Trainer.of_plan(plan, engine, start_step, counters, stop=stop, events=events, watchdog=watchdog)
        trainer.announce(checkpoint)
    return trainer


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
    parser.add_argument(
        "--init-from", metavar="MODEL",
        help="as train.init_from=MODEL: a model folder to start from, whose shape a config without `model` takes",
    )  # fmt: skip
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that replace those of the file"
    )
    arguments, others = parser.parse_known_intermixed_args()
    wrong = next((word for word in others if word.startswith("-") and "=" not in word), None)
    if wrong is not None:
        from ttt_dist.config.other_names import unknown_key
        from ttt_dist.config.reading import known_keys
        from ttt_dist.config.run import Config

        name, keys = wrong.lstrip("-"), known_keys(Config)
        how = (
            f"as in {name}=VALUE" if name in keys or "." in name else f"as in train.lr=VALUE; {unknown_key(name, keys)}"
        )
        parser.error(f"{wrong}: no such option; settings are one word without dashes, {how}")
    # Megatron and torchtitan would take `--train.lr=1e-4`. In order: the last of two is what holds.
    settings = {*arguments.overrides, *others}
    arguments.overrides = [word.removeprefix("--") for word in sys.argv[1:] if word in settings]
    if arguments.init_from is not None:
        arguments.overrides.append(f"train.init_from={arguments.init_from}")
    if arguments.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
    return arguments


def command() -> None:
    """The entry point `ttt-train`."""
    run_command(main, loses_lines="--dry-run" not in sys.argv)


if __name__ == "__main__":
    command()
