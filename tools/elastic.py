"""Train on a set of hosts, and go on by itself on those that are left when a process or a host is lost.

    srun --ntasks-per-node=1 python tools/elastic.py --nproc-per-node 8 ttt_dist/train.py --config recipes/demo.yaml ...
    RANK=0 WORLD_SIZE=2 MASTER_ADDR=n1 MASTER_PORT=29400 python tools/elastic.py ttt_dist/train.py --config ... # on each host

Started once per host, by srun or by hand with RANK as the host's number. Hosts beyond `--max-nodes`, and those that the
global batch cannot be divided over, stand by until another one is lost. Exit status: as of train.py.
"""

import argparse
import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ttt_dist.config.loader import read_config
from ttt_dist.config.run import Config
from ttt_dist.launch.launchers import detect_launcher
from ttt_dist.util.console import run_command
from ttt_dist.util.errors import UserError


def main() -> None:
    """Meet the other hosts' agents, and follow the first one's plan to the end."""
    arguments = parse_arguments()
    known = argparse.ArgumentParser(add_help=False)
    known.add_argument("--config", required=True)
    run, others = known.parse_known_args(arguments.arguments)
    config = read_config(run.config, [word.removeprefix("--") for word in others if "=" in word])
    launch = detect_launcher(os.environ)
    if launch.dist_info.local_size != 1 and "SLURM_STEP_ID" in os.environ:
        raise UserError("tools/elastic.py is started once per host: srun --ntasks-per-node=1")
    number, num_hosts = launch.dist_info.rank, launch.dist_info.world_size
    address = os.environ.get("MASTER_ADDR") or launch.address or "127.0.0.1"
    port = str(os.environ.get("MASTER_PORT") or launch.port or 29400)
    if not port.isdigit():
        raise UserError(f"MASTER_PORT={port}: no port; give a number from 1 to 65535")
    os.environ["RANK"] = str(number)  # the first host's agent talks

    from ttt_dist.launch.elastic import Agent, Coordinator, open_store, own_address

    store = open_store(number, address, int(port), arguments.join_timeout)
    processes, most = arguments.nproc_per_node, arguments.max_nodes or num_hosts
    coordinator = None
    if number == 0:
        coordinator = Coordinator(
            store, num_hosts, most, lambda hosts: is_divisible(config, hosts * processes),
            max_restarts=arguments.max_restarts, join_s=arguments.join_timeout, bad_hosts=arguments.bad_hosts,
        )  # fmt: skip
    agent = Agent(
        number=number, store=store, address=address if number == 0 else own_address(address, int(port)),
        command=[sys.executable, arguments.script, *arguments.arguments], num_processes=processes,
        bad_hosts=arguments.bad_hosts, coordinator=coordinator,
    )  # fmt: skip
    status = agent.run()
    if number == 0 and arguments.status_file is not None:
        arguments.status_file.write_text(f"{status}\n")
    sys.exit(status)


def is_divisible(config: Config, world_size: int) -> bool:
    """Whether the run can be made on so many processes."""
    parallel, train = config.parallel, config.train
    model_size = parallel.tensor * parallel.pipeline * parallel.ulysses
    data = world_size // model_size
    if world_size % model_size or not data:
        return False
    return all(global_batch % (train.micro_batch * data) == 0 for global_batch in train.global_batches)


def parse_arguments() -> argparse.Namespace:
    """The command line; what stands behind the script is the script's own."""
    summary, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nproc-per-node", type=int, default=1, help="processes of each host (default 1)")
    parser.add_argument("--max-nodes", type=int, help="hosts to use at most; the others stand by (default all)")
    parser.add_argument("--max-restarts", type=int, default=20, help="starts after the first one (default 20)")
    parser.add_argument(
        "--join-timeout", type=float, default=300.0, help="seconds to wait for all hosts at the beginning (default 300)"
    )
    parser.add_argument(
        "--bad-hosts", type=Path, help="file to which the names of hosts are added that were lost or lost a process"
    )
    parser.add_argument(
        "--status-file",
        type=Path,
        help="file to which the first host writes the exit status: srun's own is 137 for a lost host",
    )
    parser.add_argument("script", help="ttt_dist/train.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="those of the script")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
