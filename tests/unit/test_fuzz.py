"""The campaign of mutated inputs: it finds what it is to find, and a short one finds nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from benchmarks.fuzz.entrance import Counted, Entrance
from benchmarks.fuzz.mutate import KINDS, mutate
from benchmarks.fuzz.pool import Campaign
from benchmarks.fuzz.worker import ABORT, FAULTS, HANG, LOSS, MEMORY, MOST, TRACEBACK, Fault, trial
from ttt_dist.util.errors import UserError

WHOLE = b'{"a": 1, "b": ["text", 2.5]}\n' * 3
ROOT = Path(__file__).resolve().parents[2]


def make(folder: Path) -> None:
    (folder / "a").write_bytes(WHOLE)


def is_whole(folder: Path) -> bool:
    return (folder / "a").read_bytes() == WHOLE


def fine(folder: Path) -> None:
    pass


def refused(folder: Path) -> None:
    if not is_whole(folder):
        raise UserError("a: is damaged; fetch it again")


def fails(folder: Path) -> None:
    assert is_whole(folder)


def dies(folder: Path) -> None:
    if not is_whole(folder):
        os.abort()


def waits(folder: Path) -> None:
    while not is_whole(folder):
        pass


def grows(folder: Path) -> None:
    if not is_whole(folder):
        bytearray(b"x") * (MOST + 2**29)


def loses(folder: Path) -> Counted:
    return Counted(given=2, problems=0, there=2 if is_whole(folder) else 3)


class EnoughError(Exception):
    """The campaign has found what it was to find."""


READERS = {
    "fine": fine,
    "refused": refused,
    TRACEBACK: fails,
    ABORT: dies,
    HANG: waits,
    MEMORY: grows,
    LOSS: loses,
}
ENTRANCES = {name: Entrance(name=name, make=make, files={"a": "bytes"}, read=read) for name, read in READERS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_follows_from_its_number(kind: str) -> None:
    drawn = [[mutate(WHOLE, kind, Random(number)) for number in range(50)] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert kind == "tree" or len(set(drawn[0])) > 25
    assert all(isinstance(mutate(b"", kind, Random(number)), bytes) for number in range(50))


def test_what_becomes_of_an_input(tmp_path: Path) -> None:
    make(tmp_path)
    assert all(trial(entrance, tmp_path) is None for entrance in ENTRANCES.values())
    (tmp_path / "a").write_bytes(b"")
    found = {name: trial(ENTRANCES[name], tmp_path) for name in ("fine", "refused", TRACEBACK, LOSS)}
    assert [one and one[0] for one in found.values()] == [None, None, TRACEBACK, LOSS]
    assert found[TRACEBACK] is not None and "AssertionError" in found[TRACEBACK][2]


def test_a_loss_is_neither_given_nor_counted() -> None:
    assert not Counted(given=2, problems=1, there=3).is_lossy
    assert Counted(given=2, problems=1, there=4).is_lossy
    assert not Counted(given=2, problems=1, there=4, each=False).is_lossy
    assert not Counted(given=5, problems=0, there=4).is_lossy


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("kind", FAULTS)
def test_each_sort_of_fault_is_found_and_the_rest_goes_on(kind: str, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    for name in (kind, "fine"):
        (tmp_path / "seeds" / name).mkdir(parents=True)
        make(tmp_path / "seeds" / name)
    faults: list[Fault] = []

    def note(fault: Fault) -> None:
        faults.append(fault)
        if len(faults) > 1 and campaign.inputs["fine"]:
            raise EnoughError

    campaign = Campaign([kind, "fine"], f"{__name__}:ENTRANCES", tmp_path / "seeds", tmp_path / "scratch", 0, note)
    campaign.hang_s = 2.0 if kind == HANG else 120.0
    with pytest.raises(EnoughError):
        campaign.run(seconds=900, num_workers=1)  # it ends by what it finds
    assert {(fault.entrance, fault.kind) for fault in faults} == {(kind, kind)}


@pytest.mark.slow
def test_a_short_campaign_finds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.fuzz", "--seconds", "12", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures == {"inputs": figures["inputs"], **dict.fromkeys(FAULTS, 0)}, done.stdout
    assert figures["inputs"] > 100 and done.returncode == 0
