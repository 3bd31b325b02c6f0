"""What a job had to leave out: bad files and lines, which count against `--max-errors`, and skips by a corpus's own rule;
and what it took that is worth a look.

Each is kept by reason, with its number and the first places, for the report beside a manifest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ttt_dist.util.console import warn
from ttt_dist.util.errors import UserError, one_line

PLACES = 20  # named per reason; beyond, only the count grows


@dataclass
class Tally:
    """How often something happened, and where first."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        """Once more, at `place`."""
        self.count += 1
        if len(self.places) < PLACES:
            self.places.append(one_line(place))

    def merge(self, other: Tally) -> None:
        """As often again as `other` says."""
        self.count += other.count
        self.places += other.places[: PLACES - len(self.places)]


Notes = dict[str, Tally]
"""What is worth a look, by reason."""


def merge_notes(notes: Notes, more: Notes) -> None:
    """Add `more` to `notes`."""
    for reason, tally in more.items():
        notes.setdefault(reason, Tally()).merge(tally)


@dataclass
class Problems:
    """Counts what a job had to leave out; `raise_if_over_limit` fails where that is more than the user allowed."""

    limit: int = 0
    count: int = 0
    told: int = field(default=20, repr=False)  # warnings printed one by one; beyond, only the count grows
    errors: dict[str, Tally] = field(default_factory=dict, repr=False)
    skipped: dict[str, Tally] = field(default_factory=dict, repr=False)

    def report(self, message: str | Exception, reason: str = "bad line") -> None:
        """Warn of one bad file or line; `reason` is the heading under which the report counts it."""
        self.count += 1
        self.errors.setdefault(reason, Tally()).add(str(message))
        if self.count <= self.told:
            warn(str(message))
        elif self.told and self.count == self.told + 1:
            warn("more of the same follows and is only counted")

    def skip(self, reason: str, place: str) -> None:
        """Count something good that is left out because the corpus or the user says so: no error, no warning."""
        self.skipped.setdefault(reason, Tally()).add(place)

    def raise_if_over_limit(self, kept: str) -> None:
        """To be called when all else is done; `kept` says what was made. Raises UserError above the limit."""
        if self.count > self.limit:
            raise UserError(
                f"{self.count} bad files or lines were left out (see the warnings), more than --max-errors "
                f"{self.limit} allows; {kept}"
            )

    def summary(self) -> dict[str, dict[str, Any]]:
        """`{"skipped": {reason: {"count", "places"}}, "errors": the same}`, by reason."""
        tallies = {"skipped": self.skipped, "errors": self.errors}
        return {name: {reason: vars(found[reason]) for reason in sorted(found)} for name, found in tallies.items()}


class Collected(Problems):
    """Problems that go into a list, to be told by whoever counts for the whole job."""

    def __init__(self, messages: list[Any]) -> None:
        super().__init__()
        self.messages = messages

    def report(self, message: str | Exception, reason: str = "bad line") -> None:
        """Note one bad line."""
        self.messages.append(one_line(message))
