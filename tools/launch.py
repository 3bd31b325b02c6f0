"""Check a launch on all its hosts, then make it: each mistake is one line, before any process starts.

    python tools/launch.py --hostfile hosts ttt_dist/train.py --config recipes/demo.yaml run_dir=/shared/runs/mine
    python tools/launch.py --num_gpus 2 ttt_dist/train.py --config recipes/demo.yaml

Takes the arguments of `deepspeed`, and becomes it after the checks: the host file; every host reached by ssh, with the same
Python and files there, and the run folder shared; a free port; and all that train.py --dry-run finds.
"""

import argparse
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ttt_dist
from ttt_dist.config.loader import load_config
from ttt_dist.config.run import Config
from ttt_dist.config.section import brief
from ttt_dist.data.metadata import is_text_set
from ttt_dist.launch.process_group import choose_accelerator
from ttt_dist.util.console import run_command
from ttt_dist.util.errors import UserError
from ttt_dist.util.shipped import find_shipped

SSH_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
# Without it, pdsh waits for ever for a host that has lost its network, and with it whoever waits for pdsh.
KEEP_ALIVE = "-o ServerAliveInterval=10 -o ServerAliveCountMax=3"
PROBE_S = 60.0  # for a host to answer, which first reads Python from a file system that may be slow
MAX_HOSTFILE = 10**7  # bytes
MODULES = ("torch", "deepspeed", "megatron.core")

TRAIN = "ttt_dist/train.py"

Hosts = dict[str, list[int]]
"""Slots (processes) to use of each host, in the order of their ranks."""


def main() -> None:
    """Check everything, then become `deepspeed`."""
    arguments = parse_arguments()
    config_path, config = run_config(arguments)
    hosts = chosen_hosts(arguments)
    if hosts is None:
        num_processes = local_processes(arguments)
        if problem := port_problem(arguments.master_port):
            raise UserError(problem)
    else:
        num_processes = sum(map(len, hosts.values()))
        require_launcher(arguments.launcher)
        if not arguments.no_ssh:
            check_hosts(hosts, arguments, config_path, config)
    dry_run(arguments, num_processes)
    become_deepspeed()


def parse_arguments() -> argparse.Namespace:
    """The command line, as `deepspeed` reads it; outside a checkout ttt_dist/train.py is the installed one."""
    if {"-h", "--help"} & set(sys.argv[1:2]):
        sys.stdout.write(f"{__doc__}\n")
    given = dict(os.environ)
    choose_accelerator()  # DeepSpeed looks for its accelerator at its import
    from deepspeed.launcher.runner import parse_args

    os.environ.clear()
    os.environ.update(given)  # that was for this process; the hosts have accelerators of their own
    arguments = parse_args()
    if arguments.user_script == TRAIN and not Path(TRAIN).exists():
        arguments.user_script = str(Path(ttt_dist.__file__).with_name("train.py"))
        sys.argv[sys.argv.index(TRAIN)] = arguments.user_script
    return arguments


def run_config(arguments: argparse.Namespace) -> tuple[str, Config]:
    """The config file named behind train.py, and the run's settings. Raises UserError."""
    if Path(arguments.user_script).name != "train.py":
        raise UserError(f"{arguments.user_script}: tools/launch.py starts {TRAIN}; others start with deepspeed")
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--resume")
    known, others = parser.parse_known_args(arguments.user_args)
    return known.config, load_config(known.config, [word.removeprefix("--") for word in others if "=" in word])


def chosen_hosts(arguments: argparse.Namespace) -> Hosts | None:
    """The hosts to start on, after --include, --exclude, --num_nodes and --num_gpus; None: this one, without a host file."""
    from deepspeed.launcher.runner import DLTS_HOSTFILE, apply_num_nodes_and_gpus, parse_inclusion_exclusion

    if arguments.hostfile == DLTS_HOSTFILE and not Path(DLTS_HOSTFILE).exists():
        return None
    pool = read_hostfile(Path(arguments.hostfile))
    if (arguments.include or arguments.exclude) and max(arguments.num_nodes, arguments.num_gpus) >= 0:
        raise UserError("--include and --exclude do not go with --num_nodes and --num_gpus; give one pair or the other")
    try:
        chosen = parse_inclusion_exclusion(pool, arguments.include, arguments.exclude)
    except ValueError as error:
        raise UserError(f"--include={arguments.include} --exclude={arguments.exclude}: {error}") from None
    if not chosen:
        raise UserError(f"--exclude={arguments.exclude}: leaves no host of {arguments.hostfile}")
    return dict(apply_num_nodes_and_gpus(chosen, arguments.num_nodes, arguments.num_gpus))


def read_hostfile(path: Path) -> dict[str, int]:
    """Slots by host of lines `NAME slots=N`; blank ones and comments are skipped. Raises UserError with the line."""
    pool: dict[str, int] = {}
    for number, line in enumerate(hostfile_lines(path), start=1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        match = re.fullmatch(r"\s*([!-~]+)[ \t]+slots=([0-9]{1,6})\s*(?:#.*)?", line)
        if match is None or int(match[2]) == 0:
            raise UserError(
                f"{path}:{number}: {brief(line.strip())} is not `NAME slots=N` with N processes, from 1 to 999,999"
            )
        if match[1] in pool:
            raise UserError(
                f"{path}:{number}: {match[1][:60]} is there twice; give each host one line with all its slots"
            )
        pool[match[1]] = int(match[2])
    if not pool:
        raise UserError(f"{path}: names no host; write a line `NAME slots=N` per host")
    return pool


def hostfile_lines(path: Path) -> list[str]:
    """The lines as DeepSpeed will read them again. Raises UserError for a file that it would read otherwise, or not."""
    if path.is_file() and path.stat().st_size > MAX_HOSTFILE:
        raise UserError(f"--hostfile {path}: has {path.stat().st_size:,} bytes; write a line `NAME slots=N` per host")
    try:
        text = path.read_text(encoding="utf8")
    except (OSError, ValueError) as error:
        raise UserError(f"--hostfile {path}: cannot be read ({error}); write a line `NAME slots=N` per host") from None
    if text.startswith("\ufeff"):
        raise UserError(
            f"--hostfile {path}: begins with a byte order mark, which DeepSpeed takes for a part of the first name; "
            "save it as UTF-8 without one"
        )
    return text.split("\n")


def require_launcher(name: str) -> None:
    """DeepSpeed starts the hosts' processes by another program."""
    if name.lower() == "pdsh" and shutil.which("pdsh") is None:
        raise UserError("pdsh: not installed; apt-get install pdsh, or take another one with --launcher")


def check_hosts(hosts: Hosts, arguments: argparse.Namespace, config_path: str, config: Config) -> None:
    """Ask every host at once over ssh what it lacks. Raises UserError that names all hosts in question."""
    ssh = ["ssh", *SSH_OPTIONS, *shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", ""))]
    ssh += ["-p", str(arguments.ssh_port)] if arguments.ssh_port is not None else []
    prefixes = [*config.data.prefixes().values(), *config.data.held_out.values()]
    data = [f"{prefix}{'.idx' if is_text_set(prefix) else '.json'}" for prefix in prefixes]
    files = [arguments.user_script, *map(str, map(find_shipped, (config_path, config.deepspeed))), *data]
    if config.train.init_from is not None:
        files.append(f"{config.train.init_from}/config.json")
    with marker(Path(config.run_dir)) as mark:
        asked = {"files": [*files, *([str(mark)] if mark else [])], "modules": MODULES}
        ports = [arguments.master_port, *[None] * (len(hosts) - 1)]
        with ThreadPoolExecutor(len(hosts)) as pool:
            answers = list(pool.map(lambda host, port: ask(ssh, host, asked, port), hosts, ports))
    problems = [f"{host}: {problem}" for host, problem in zip(hosts, answers, strict=True) if problem]
    if problems:
        told = "; ".join(problems).replace(str(mark), f"the run folder {config.run_dir} of this host (share it)")
        raise UserError(told)


@contextmanager
def marker(run_dir: Path) -> Iterator[Path | None]:
    """A file that hosts see if they share the run folder, or the nearest folder above it; None where none can be written."""
    folder = next(path for path in (run_dir.absolute(), *run_dir.absolute().parents) if path.is_dir())
    try:
        handle, name = tempfile.mkstemp(prefix=".launch-", dir=folder)
    except OSError:
        yield None  # train.py says so
        return
    os.close(handle)
    try:
        yield Path(name)
    finally:
        os.unlink(name)


def ask(ssh: list[str], host: str, asked: dict[str, Any], port: int | None) -> str:
    """What is wrong with a host, in words, or with a port of it; empty if nothing."""
    command = f"cd {shlex.quote(os.getcwd())} && exec {shlex.quote(sys.executable)} -"
    source = "".join(inspect.getsource(function) for function in (lacks, port_problem))
    source += f"print(lacks(**{asked!r}) or port_problem({port!r}))"
    try:
        done = subprocess.run(
            [*ssh, host, command], input=source, capture_output=True, text=True, check=False, timeout=PROBE_S
        )
    except subprocess.TimeoutExpired:
        return f"no answer over ssh within {PROBE_S:g} s"
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    if done.returncode == 255:
        return f"cannot be reached by ssh ({reason})"
    if done.returncode != 0:
        return f"cannot run the project ({reason}); it and its Python must be at the same path on all hosts"
    return done.stdout.strip()


def lacks(files: list[str], modules: list[str]) -> str:
    """What a host lacks, in words; empty if nothing. Runs there from its source alone."""
    import importlib.util
    import os

    def is_there(module: str) -> bool:
        try:
            return importlib.util.find_spec(module) is not None
        except ImportError:
            return False

    missing = [name for name in files if not os.path.exists(name)]
    missing += [f"the Python module {name}" for name in modules if not is_there(name)]
    return f"lacks {', '.join(missing)}" if missing else ""


def port_problem(port: int | None) -> str:
    """Why rank 0 cannot listen on a port, in words; empty if it can. Runs on its host from its source alone."""
    import socket

    try:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("", port or 0))
    except (OSError, OverflowError) as error:
        return f"port {port} cannot be opened ({error}); give another one with --master_port"
    return ""


def local_processes(arguments: argparse.Namespace) -> int:
    """How many processes `deepspeed` starts on this host."""
    from deepspeed.accelerator import get_accelerator

    if arguments.include:
        return len(arguments.include.partition(":")[2].split(","))
    return int(arguments.num_gpus) if arguments.num_gpus > 0 else int(get_accelerator().device_count())


def dry_run(arguments: argparse.Namespace, num_processes: int) -> None:
    """The run's own checks, as its first process makes them; what they print is the launch's own output."""
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(num_processes), "LOCAL_SIZE": str(num_processes)}
    command = [sys.executable, arguments.user_script, *arguments.user_args, "--dry-run"]
    done = subprocess.run(command, env=os.environ | place, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def become_deepspeed() -> None:
    """Start it in place of this process."""
    sys.stdout.flush()
    os.environ["PDSH_SSH_ARGS_APPEND"] = f"{os.environ.get('PDSH_SSH_ARGS_APPEND', '')} {KEEP_ALIVE}".strip()
    program = str(Path(sys.executable).with_name("deepspeed"))
    os.execv(program, [program, *sys.argv[1:]])


def command() -> None:
    """The entry point `ttt-launch`."""
    run_command(main)


if __name__ == "__main__":
    command()
