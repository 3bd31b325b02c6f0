"""A small run of the real command: random shards with everything beside them, a config, and ways to start it."""

import atexit
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.distributed import warm
from tests.distributed.random_packs import SEQ_LEN, random_pack
from ttt_dist.data.shards import ShardWriter
from ttt_dist.launch.rendezvous import free_port
from ttt_dist.sequence.text_tokenizer import train_sentencepiece
from ttt_dist.sequence.tokens import extend

ROOT = Path(__file__).resolve().parents[2]
TRAIN = "ttt_dist/train.py"
STEPS, SAVED = 6, 3
GRACE_S = 30.0


def make_run(folder: Path, **sections: dict[str, Any]) -> Path:
    """Make shards and a config of `STEPS` steps in `folder`, with settings replaced by section; the config's path."""
    shards = folder / "shards"
    words = ["one two three four five", "six seven eight nine zero"]
    tokenizer = train_sentencepiece(words * 20, shards / "tokenizer", vocab_size=300)
    layout = extend(tokenizer, 32)
    (shards / "codec").mkdir()
    (shards / "codec" / "codec.json").write_text("{}")
    (shards / "template.json").write_text("{}")
    for seed, (name, num_packs) in enumerate({"train": 20, "valid": 5}.items()):
        random = np.random.default_rng(seed)
        with ShardWriter(shards / name, {"layout": layout.to_dict(), "seq_len": SEQ_LEN}) as writer:
            for _ in range(num_packs):
                writer.add(random_pack(random, layout))
    settings: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        "deepspeed": str(ROOT / "ds_configs/zero3.json"),
        "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_hidden_size": 64},
        "data": {"train": str(shards / "train"), "valid": str(shards / "valid")},
        "train": {"steps": STEPS, "global_batch": 8, "micro_batch": 2, "eval_every": 3, "warmup": 2, "lr": 3e-3},
        "checkpoint": {"save_every": SAVED, "keep_last": 0},
        "telemetry": {"log_every": 1},
    }
    for section, values in sections.items():
        settings.setdefault(section, {}).update(values)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def environment(**more: str) -> dict[str, str]:
    """Environment of a command of ours: this Python's programs first, the project on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **more}


def execute(command: list[str], **more: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in the project's folder to its end; Python itself as `warm.python`."""
    if command[0] == sys.executable:
        return warm.python(command[1:], environment(**more), timeout_s=300)
    return subprocess.run(
        command, cwd=ROOT, env=environment(**more), capture_output=True, text=True, timeout=300, check=False
    )


def launch(config: Path, *arguments: str) -> None:
    """Train with the deepspeed launcher on two processes, without a fault."""
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", str(free_port())]
    done = execute([*command, TRAIN, "--config", str(config), *arguments])
    assert done.returncode == 0, done.stdout + done.stderr


def train_on_two(config: Path, *arguments: str) -> None:
    """Train on two processes, without a fault; a third of the CPU of `launch`, whose processes import for themselves."""
    ranks = Ranks(2, "--config", str(config), *arguments, log=config.with_name("output"))
    assert ranks.wait() == [0, 0], ranks.output()


class Ranks:
    """Processes of one run started as `srun` starts them, one by one, by any program that takes train.py's arguments."""

    def __init__(self, world_size: int, *arguments: str, program: str = TRAIN, log: Path, **more: str) -> None:
        """Output of rank 0 and all errors go to `log`-rank-N files."""
        rendezvous = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        self.logs = [log.with_name(f"{log.name}-rank-{rank}.txt") for rank in range(world_size)]
        self.processes = []
        for rank, path in enumerate(self.logs):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_SIZE": str(world_size), "OMP_NUM_THREADS": "1"}
            path.write_text("")
            given = ([program, *arguments], environment(**rendezvous, **own, **more), path, path)
            self.processes.append(warm.context().Process(target=warm.run_python, args=given))
        atexit.register(self.kill)  # multiprocessing would wait for them
        for process in self.processes:
            process.start()

    @property
    def running(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def signal(self, number: int, rank: int | None = None) -> None:
        """Send a signal to all ranks, or to one."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)

    def wait(self, timeout_s: float = 300) -> list[int]:
        """Exit statuses. As launchers do, kills what still runs GRACE_S after a rank has failed, or at the end."""
        end = time.monotonic() + timeout_s
        while any(process.is_alive() for process in self.processes) and time.monotonic() < end:
            if any(process.exitcode for process in self.processes):
                end = min(end, time.monotonic() + GRACE_S)
            time.sleep(0.1)
        self.kill()
        statuses = [process.exitcode for process in self.processes]
        assert None not in statuses, statuses
        return [status for status in statuses if status is not None]

    def kill(self) -> None:
        for process in self.processes:
            if process.pid is not None:
                process.kill()
                process.join()

    def output(self) -> str:
        return "".join(path.read_text() for path in self.logs)


def records(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


TIMELESS = ("step", "loss", "ar_loss", "nar_loss", "grad_norm", "lr", "eval_loss")


def timeless(run: Path) -> list[dict[str, Any]]:
    """What two runs of the same steps must have alike to the last bit."""
    return [{key: record.get(key) for key in TIMELESS} for record in records(run)]


def copy_of(run: Path, target: Path) -> Path:
    """A copy of a run folder at another place, without its export: as its state was while it trained."""
    shutil.copytree(run, target)
    shutil.rmtree(target / "export", ignore_errors=True)
    return target
