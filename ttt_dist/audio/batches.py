"""How a network encodes many waveforms: where it runs, in what precision, and in batches of bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ttt_dist.audio.codec import Codes
from ttt_dist.util.errors import UserError

MOST_PADDED = 1.5  # longest over shortest of a batch: what is padded is computed for nothing


def choose_device(device: str | None) -> torch.device:
    """`device`, by default the CUDA device of this process (LOCAL_RANK), or the CPU where there is none."""
    if device is not None:
        try:
            chosen = torch.device(device)
        except RuntimeError as error:
            raise UserError(f"device {device}: is no device; use cpu or cuda:0") from error
        if chosen.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device {device}: this machine has no CUDA device; use cpu")
        return chosen
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # A scheduler may show each process its own device only, which is then number 0 whatever the rank.
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


@contextmanager
def inference() -> Iterator[None]:
    """No gradients, and on CUDA the same figures every time: no TF32, no kernels chosen by a race."""
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        yield


@dataclass(frozen=True)
class Sharing:
    """Which waveforms share a batch: number x longest is at most `max_samples`, and the number at most `max_rows`.

    Those of at least `pads_from` samples may be padded to one another's length, where that makes none more than
    MOST_PADDED times as long; shorter ones, and with None all, share a batch with their own length only.
    """

    max_samples: int
    pads_from: int | None = 0
    max_rows: int | None = None

    def fits(self, number: int, shortest: int, longest: int) -> bool:
        """Whether so many waveforms of these lengths may be one batch."""
        if number * longest > self.max_samples or number > (self.max_rows or number):
            return False
        may_pad = self.pads_from is not None and self.pads_from <= shortest and longest <= MOST_PADDED * shortest
        return shortest == longest or may_pad


def encode_pieces(
    waves: Sequence[Tensor],
    piece: int,
    encode: Callable[[list[Tensor]], list[Codes]],
    sharing: Sharing,
    padded_length: Callable[[int], int] = int,
) -> list[Codes]:
    """The codes of waveforms [T_i], cut every `piece` samples, in batches by their `padded_length` (samples -> samples)."""
    pieces = [(owner, part) for owner, wave in enumerate(waves) if len(wave) for part in wave.split(piece)]
    codes: dict[int, Codes] = {}
    for batch in batches([padded_length(len(part)) for _, part in pieces], sharing):
        codes |= dict(zip(batch, encode([pieces[index][1] for index in batch]), strict=True))
    joined: list[list[Codes]] = [[np.zeros(0, np.int32)] for _ in waves]
    for index, (owner, _) in enumerate(pieces):
        joined[owner].append(codes[index])
    return [np.concatenate(parts) for parts in joined]


def batches(lengths: Sequence[int], sharing: Sharing) -> Iterator[list[int]]:
    """Indices in batches by length; one that fits nowhere is a batch alone."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if batch and not sharing.fits(len(batch) + 1, lengths[batch[0]], lengths[index]):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def fit(wave: Tensor, length: int) -> Tensor:
    """[T] with zeros appended, or cut, to [length]."""
    return functional.pad(wave[:length], (0, max(0, length - len(wave))))
