"""What an entrance is: whole files, and the way in that the product's commands take to read them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from benchmarks.fuzz.mutate import mutate
from ttt_dist.manifest.problems import Problems

ENDLESS = 10**9


@dataclass(frozen=True)
class Counted:
    """What became of the items of a file."""

    given: int
    problems: int
    """Reported, or counted as skipped by a rule."""
    there: int
    """At least so many were in it."""
    each: bool = True
    """Whether each lost one must be counted; else one problem may stand for many (a damaged archive)."""

    @property
    def is_lossy(self) -> bool:
        """Whether some item is neither in the output nor counted."""
        missing = self.there - self.given
        return missing > 0 and (self.problems < missing if self.each else self.problems == 0)


@dataclass(frozen=True, kw_only=True)
class Entrance:
    """One way in."""

    name: str
    make: Callable[[Path], None]
    """Writes whole files into a folder."""
    files: dict[str, str]
    """Which of them are mutated, and how: a kind of `mutate`."""
    read: Callable[[Path], Counted | None]
    """Reads the folder as the product does. Raises UserError where that refuses it."""
    seal: Callable[[bytes], bytes] = bytes
    """What is done to mutated content: a checksum in it may be made anew, so that what lies behind is reached."""
    is_written: bool = False
    """Whether reading changes the folder, so that each input needs a fresh one."""

    def input(self, folder: Path, seed: int, number: int) -> tuple[str, bytes]:
        """(file, content) of an input: a function of the seed, the entrance and the number. `folder` has the whole files."""
        random = Random(f"{seed}/{self.name}/{number}")
        name = random.choice(sorted(self.files))
        return name, self.seal(mutate((folder / name).read_bytes(), self.files[name], random))


def quiet_problems() -> Problems:
    """Which are counted and not printed."""
    return Problems(limit=ENDLESS, told=0)


def num_counted(problems: Problems) -> int:
    return problems.count + sum(tally.count for tally in problems.skipped.values())


def drain(items: Iterable[object]) -> int:
    """Their number."""
    return sum(1 for _ in items)


def num_lines(content: bytes) -> int:
    """Lines that hold something: a row whose cells are all empty, as spreadsheets write them, is a blank line."""
    blank = str.maketrans("", "", ",\ufeff")
    return sum(bool(line.decode("utf8", "replace").translate(blank).strip()) for line in content.split(b"\n"))
