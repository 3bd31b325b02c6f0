"""What every process tries before the first step: arithmetic, links and the disk, so that a bad node is named, not searched for.

The product is of whole numbers that each format holds exactly (TF32 too), and so are all of its sums: right devices agree to
the last bit, whatever they are. Times are compared with the median: of one kind of device, of all links, of all hosts.
"""

import os
import socket
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryFile
from typing import NoReturn

import torch
import torch.distributed as dist

from ttt_dist.launch.elastic import host_name, note_bad
from ttt_dist.util.console import warn
from ttt_dist.util.errors import BadDeviceError, OwnDeviceError

SIZES = {"cuda": 4096, "cpu": 512}  # of the square matrices
TRIES = 3  # the fastest counts: the first one loads kernels, opens links
LINK_BYTES = {"cuda": 2**26, "cpu": 2**22}
DISK_BYTES = 2**20
CPU = "CPU"
SLOW = {"product": 1.5, "link": 3.0, "disk": 5.0}
"""How many times the median is worth a word."""
BAD_HOSTS = "BAD_HOSTS"  # the variable in which train.sbatch names its file of hosts to be excluded
LEAST_CPU_S = 1.0  # cores that others use too are slow for no reason of theirs


@dataclass(frozen=True)
class Report:
    """What one process found."""

    host: str
    device: str
    """What kind it is."""
    digest: str
    seconds: Mapping[str, float]
    """Of the product, of the link to the next rank, and of the disk (by one process of each host)."""


def check_nodes(folder: Path, device: torch.device, is_first_of_host: bool) -> list[str]:
    """Try this process's node; what was found to be slow, the same on all ranks. Collective.

    `folder` is where the run will write. Raises BadDeviceError naming ranks and hosts that multiply wrongly.
    """
    digest, product_s = _product(device)
    seconds = {"product": product_s, **_link(device)}
    if is_first_of_host:
        seconds["disk"] = _fastest(lambda: _write(folder))
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else CPU
    reports: list[Report] = [None] * dist.get_world_size()  # type: ignore[list-item]
    dist.all_gather_object(reports, Report(socket.gethostname(), kind, digest, seconds))
    if wrong := wrong_ranks(reports):
        end_for(
            wrong,
            f"{_named(wrong, reports)}: a product of matrices comes out wrong; leave the node out and start again",
        )
    found = slow_ranks(reports)
    if dist.get_rank() == 0:
        for told in found:
            warn(told)
    return found


def end_for(ranks: Sequence[int], told: str) -> NoReturn:
    """End the run, on all ranks alike, for what the devices of these ranks do: whoever starts it again hears of their hosts."""
    if dist.get_rank() not in ranks:
        raise BadDeviceError(told)
    if path := os.environ.get(BAD_HOSTS):
        note_bad(Path(path), [host_name()])
    raise OwnDeviceError(told)


def wrong_ranks(reports: list[Report]) -> list[int]:
    """Those whose product is not that of most."""
    digests = [report.digest for report in reports]
    right = max(digests, key=digests.count)
    return [rank for rank, digest in enumerate(digests) if digest != right]


def slow_ranks(reports: list[Report]) -> list[str]:
    """A line for each rank that was much slower than the others at something."""
    lines = []
    for what, times_slower in SLOW.items():
        for rank, report in enumerate(reports):
            peers = [
                peer.seconds[what]
                for peer in reports
                if what in peer.seconds and (what != "product" or peer.device == report.device)
            ]
            if what not in report.seconds or len(peers) < 2:
                continue
            usual, own = statistics.median_low(peers), report.seconds[what]
            if own > times_slower * usual and own > (LEAST_CPU_S if report.device == CPU else 0.0):
                to = f" to rank {(rank + 1) % len(reports)}" if what == "link" else ""
                lines.append(
                    f"{_named([rank], reports)}: {what}{to} takes {own * 1e3:.1f} ms, {own / usual:.1f} times the median of "
                    f"{len(peers)}; the whole run waits for it"
                )
    return lines


def _named(ranks: list[int], reports: list[Report]) -> str:
    return ", ".join(f"rank {rank} ({reports[rank].host}, {reports[rank].device})" for rank in ranks)


def _product(device: torch.device) -> tuple[str, float]:
    """Digest and seconds of a product, each of whose sums is below 2^24: exact in fp32, in whatever order it is added."""
    size = SIZES[device.type]
    left, right = (
        ((torch.arange(size * size) * step).remainder(15) - 7).float().view(size, size).to(device)
        for step in (7919, 104729)
    )
    result = left @ right

    def multiply() -> None:
        torch.mm(left, right, out=result)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    seconds = _fastest(multiply)
    return blake2b(result.cpu().numpy().tobytes(), digest_size=8).hexdigest(), seconds


def _link(device: torch.device) -> dict[str, float]:
    """Seconds in which this rank sends to the next one, all ranks at once; nothing where it is alone."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if world_size == 1:
        return {}
    sent = torch.zeros(LINK_BYTES[device.type], dtype=torch.uint8, device=device)
    received = torch.empty_like(sent)

    def send() -> None:
        work = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, sent, (rank + 1) % world_size),
                dist.P2POp(dist.irecv, received, (rank - 1) % world_size),
            ]
        )
        for part in work:
            part.wait()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return {"link": _fastest(send)}


def _write(folder: Path) -> None:
    """Force some bytes to the disk of `folder`, which the first start of a run has to make."""
    # A disk that cannot be written is told of where it is needed. The file has no name that a killed process would leave.
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(bytes(DISK_BYTES))
            file.flush()
            os.fsync(file.fileno())


def _fastest(action: Callable[[], None]) -> float:
    times = []
    for _ in range(TRIES):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return min(times)
