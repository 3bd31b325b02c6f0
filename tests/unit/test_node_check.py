"""Which nodes are named before the first step."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ttt_dist.launch import node_check
from ttt_dist.launch.node_check import Report, check_nodes, slow_ranks, wrong_ranks
from ttt_dist.util.errors import BadDeviceError, LostProcessError, OwnDeviceError

FINE = Report("node1", "H100", "aa", {"product": 0.010, "link": 0.02, "disk": 0.1})
FOUR = [
    FINE,
    replace(FINE, seconds={"product": 0.011, "link": 0.02}),
    replace(FINE, host="node2"),
    replace(FINE, host="node3"),
]


def test_equal_nodes_are_left_alone() -> None:
    assert wrong_ranks(FOUR) == []
    assert slow_ranks(FOUR) == []
    assert slow_ranks([FINE]) == []


def test_the_rank_that_multiplies_otherwise_is_wrong() -> None:
    assert wrong_ranks([*FOUR, replace(FINE, host="node9", digest="ab")]) == [4]


@pytest.mark.parametrize(
    ("what", "seconds", "told"),
    [
        ("product", 0.02, r"rank 4 \(node9, H100\): product takes 20\.0 ms, 2\.0 times the median of 5"),
        ("link", 0.2, r"rank 4 \(node9, H100\): link to rank 0 takes 200\.0 ms, 10\.0 times"),
        ("disk", 0.6, r"rank 4 \(node9, H100\): disk takes 600\.0 ms, 6\.0 times the median of 4"),
    ],
)
def test_what_is_slow_is_named(what: str, seconds: float, told: str) -> None:
    (line,) = slow_ranks([*FOUR, replace(FINE, host="node9", seconds={**FINE.seconds, what: seconds})])
    assert line.startswith("rank 4")
    import re

    assert re.match(told, line)


def test_another_kind_of_device_is_no_slow_one() -> None:
    slower = replace(FINE, device="A10", seconds={**FINE.seconds, "product": 0.1})
    assert slow_ranks([*FOUR, slower, slower]) == []


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_the_product_is_exact(alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_nodes(tmp_path, torch.device("cpu"), is_first_of_host=True) == []
    assert list(tmp_path.iterdir()) == []
    size = node_check.SIZES["cpu"]
    left, right = (((torch.arange(size * size) * step) % 15 - 7).view(size, size) for step in (7919, 104729))
    from hashlib import blake2b

    exact = blake2b((left @ right).float().numpy().tobytes(), digest_size=8).hexdigest()
    assert node_check._product(torch.device("cpu"))[0] == exact
    assert max(node_check.SIZES.values()) * 7 * 7 < 2**24


def test_the_disk_is_tried_where_the_run_has_made_no_folder_yet(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[int] = []
    monkeypatch.setattr(node_check.os, "fsync", forced.append)
    check_nodes(tmp_path / "runs" / "new", torch.device("cpu"), is_first_of_host=True)
    assert len(forced) == node_check.TRIES


def test_a_wrong_product_ends_the_run(alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_check, "wrong_ranks", lambda reports: [0])
    monkeypatch.setenv("BAD_HOSTS", str(tmp_path / "bad"))
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    with pytest.raises(
        OwnDeviceError, match=r"rank 0 \(.*, CPU\): a product of matrices comes out wrong; leave the node out"
    ):
        check_nodes(tmp_path, torch.device("cpu"), is_first_of_host=False)
    assert (tmp_path / "bad").read_text() == "n7\n"


def test_who_is_not_to_blame_ends_as_for_a_lost_process(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAD_HOSTS", str(tmp_path / "bad"))
    with pytest.raises(BadDeviceError) as found:
        node_check.end_for([1], "rank 1 is")
    assert (found.value.status, found.value.is_agreed) == (LostProcessError.status, True)
    assert not (tmp_path / "bad").exists()
