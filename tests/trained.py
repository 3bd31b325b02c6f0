"""A small run of one process that trains, saves and exports, killed again and again.

python -m tests.trained kill --work DIR --changes 1      killed before each change of a file; prints a line of figures
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from tests.distributed.small_run import make_run, timeless
from tests.shared_work import add_campaign, campaign, contents
from ttt_dist import train
from ttt_dist.launch.rendezvous import free_port
from ttt_dist.parallel import parallelize, zero  # noqa: F401
from ttt_dist.training import loop  # noqa: F401  before the forks: training imports them late

ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


def train_here(config: Path) -> None:
    """Run the command in this process."""
    os.environ |= ALONE | {"MASTER_PORT": str(free_port())}
    sys.argv = ["train.py", "--config", str(config)]
    train.main()


def seen(run: Path) -> dict[str, Any]:
    """All names in a run folder, its figures, and the bytes of what others read of it."""
    told = ("export/", "checkpoints/latest")
    files = {name: content if name.startswith(told) else b"" for name, content in contents(run).items()}
    return files | {"figures": timeless(run)}


def main() -> None:
    """The campaign as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data and run, made here")
    add_campaign(parser)
    args = parser.parse_args()
    config = args.work / "config.yaml"
    if not config.exists():
        make_run(args.work, train={"steps": 4, "eval_every": 2}, checkpoint={"save_every": 2, "keep_last": 1})
    campaign(lambda: train_here(config), args.work / "run", args, seen)


if __name__ == "__main__":
    main()
