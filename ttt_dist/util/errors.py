"""Exceptions that a user is meant to read, and the exit statuses that scripts go by."""

import re
from typing import ClassVar

MAX_MESSAGE = 2000  # characters: messages quote what files hold, which may be megabytes
BROKEN = "\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff"  # control characters, and halves of characters
UNSEEN = (
    "\t\n\u2028\u2029\u202a-\u202e\u2066-\u2069"  # ends of lines and of words, and what turns the direction of text
)
_IN_A_LINE, _IN_A_TEXT = re.compile(f"[{BROKEN}{UNSEEN}]"), re.compile(f"[{BROKEN}]")


def one_line(message: object) -> str:
    """A message as it may be shown: a line of bounded length, whose middle is left out where it is long.

    Names of files and what is in them may hold line ends, orders to a terminal, or megabytes.
    """
    line = _IN_A_LINE.sub(_escaped, str(message))
    if len(line) <= MAX_MESSAGE:
        return line
    return (
        f"{line[: MAX_MESSAGE * 3 // 4]} [{len(line) - MAX_MESSAGE:,} characters left out] {line[-MAX_MESSAGE // 4 :]}"
    )


def printable(text: str) -> str:
    """What may be shown of a text that has lines and columns."""
    return _IN_A_TEXT.sub(_escaped, text)


def first_line(error: object) -> str:
    """What an error of a library says, in one line: some add the call stack, or a paragraph."""
    told = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(told).splitlines()[0].rstrip(".")


def _escaped(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape").decode()


class UserError(ValueError):
    """Something the user can put right: one line that names the place (file and line, or key) and the remedy."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message))

    status: ClassVar[int] = 1
    """Exit status of a command that ends with it; 2 is bad usage."""
    is_agreed: ClassVar[bool] = False
    """Whether all processes of a job raise it alike, so that the first one tells it for all."""


class AgreedError(UserError):
    """What one process has found and told all others."""

    is_agreed = True


class StopRequestedError(UserError):
    """The run stopped because it was asked to, with everything saved: started again, it goes on."""

    status = 75
    is_agreed = True


class LostProcessError(UserError):
    """A process of the run died, hangs or cannot be reached: started again, the run goes on from its last checkpoint."""

    status = 76


class BadDeviceError(LostProcessError):
    """A device of the run computes wrongly: started again, better without its host, the run goes on from its last checkpoint."""

    is_agreed = True


class OwnDeviceError(BadDeviceError):
    """... and that device is this process's own. Launchers leave out hosts of processes that end so."""

    status = 78


class DivergedError(UserError):
    """Too many steps in a row had a loss or a gradient that is not finite: starting again does not help."""

    status = 77
    is_agreed = True
