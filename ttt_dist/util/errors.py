"""Exceptions that a user is meant to read, and the exit statuses that scripts go by."""

from typing import ClassVar


class UserError(ValueError):
    """Something the user can put right: one line that names the place (file and line, or key) and the remedy."""

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
