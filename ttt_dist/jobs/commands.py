"""Commands of the project as processes of their own."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence

from ttt_dist.util.console import print_rank0
from ttt_dist.util.errors import UserError


def command_line(arguments: Sequence[object]) -> str:
    """As it may be pasted into a shell."""
    return shlex.join(["python", *map(str, arguments)])


def run_python(arguments: Sequence[object]) -> None:
    """Print what is run, and run it. Raises UserError with the exit status where it fails."""
    print_rank0(f"\n$ {command_line(arguments)}")
    command = [sys.executable, *map(str, arguments)]
    status = subprocess.run(command, env=os.environ | {"PYTHONUNBUFFERED": "1"}, check=False).returncode
    if status:
        started = command_line(arguments[:3] if arguments[0] == "-m" else arguments[:1])
        raise UserError(f"stopped: `{started} ...` ended with exit status {status}; see its message above")
