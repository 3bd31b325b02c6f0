"""A program of the user's that works on files: a decoder of codes, a recogniser.

Such a command comes from the command line, never from a file. Names in braces in it stand for files. No shell takes part.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence

from ttt_dist.util.errors import UserError


class Command:
    """The command that `flag` was given, with all `names` in it; `example` shows how it is written.

    Raises UserError where quotes are open or a name is missing.
    """

    def __init__(self, flag: str, command: str, names: Sequence[str], example: str) -> None:
        self.flag = flag
        try:
            self.arguments = shlex.split(command)
        except ValueError as error:
            raise UserError(f"{flag}: {error}; close the quotes") from error
        for name in names:
            if not any(name in argument for argument in self.arguments[1:]):
                raise UserError(f"{flag}: lacks {name}; write it as '{example}'")

    @property
    def program(self) -> str:
        """The first word, for messages."""
        return self.arguments[0]

    def run(self, places: Mapping[str, str]) -> None:
        """Run it with paths in place of the names. Raises UserError where it cannot be run or fails."""
        filled = [_fill(argument, places) for argument in self.arguments]
        try:
            done = subprocess.run(filled, capture_output=True, stdin=subprocess.DEVNULL, check=False)
        except OSError as error:
            raise UserError(
                f"{self.flag}: {self.program} cannot be run ({error.strerror}); correct the command"
            ) from error
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise UserError(
                f"{self.flag}: {self.program} ended with status {done.returncode}"
                f" ({lines[-1].strip() if lines else 'without a message'}); run it by hand to see more"
            )


def _fill(argument: str, places: Mapping[str, str]) -> str:
    for name, path in places.items():
        argument = argument.replace(name, path)
    return argument
