"""Exceptions that a user is meant to read, and the exit statuses that scripts go by."""

import re
from typing import ClassVar

MAX_MESSAGE = 2000  # characters: messages quote what files hold, which may be megabytes
_NOT_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def one_line(text: object) -> str:
    """A message as a line of bounded length: its middle is left out where it is long, and what moves a cursor, ends a line or
    is no character is written as Python writes it. File names and files of others may hold anything."""
    line = _NOT_TEXT.sub(lambda found: repr(found[0])[1:-1], str(text))
    if len(line) <= MAX_MESSAGE:
        return line
    return (
        f"{line[: MAX_MESSAGE * 3 // 4]} [{len(line) - MAX_MESSAGE:,} characters left out] {line[-MAX_MESSAGE // 4 :]}"
    )


class UserError(ValueError):
    """Something the user can put right: one line that names the place (file and line, or key) and the remedy."""

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))

    status: ClassVar[int] = 1
    """Exit status of a command that ends with it; 2 is bad usage."""
    is_agreed: ClassVar[bool] = False
    """Whether all processes of a job raise it alike, so that the first one tells it for all."""


class StopRequestedError(UserError):
    """The run stopped because it was asked to, with everything saved: started again, it goes on."""

    status = 75
    is_agreed = True


class LostProcessError(UserError):
    """A process of the run died, hangs or cannot be reached: started again, the run goes on from its last checkpoint."""

    status = 76


class DivergedError(UserError):
    """Too many steps in a row had a loss or a gradient that is not finite: starting again does not help."""

    status = 77
    is_agreed = True
