"""How a network encodes many waveforms: where it runs, in what precision, and in batches of bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ttt_dist.audio.codec import Codes
from ttt_dist.errors import UserError


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


def encode_pieces(
    waves: Sequence[Tensor],
    piece: int,
    max_samples: int,
    encode: Callable[[list[Tensor]], list[Codes]],
    padded_length: Callable[[int], int] | None = None,
) -> list[Codes]:
    """The codes of waveforms [T_i], cut every `piece` samples, in batches of at most `max_samples` with their padding.

    Where `padded_length` (samples -> samples) is given, only pieces of the same padded length share a batch.
    """
    pieces = [(owner, part) for owner, wave in enumerate(waves) if len(wave) for part in wave.split(piece)]
    lengths = [len(part) if padded_length is None else padded_length(len(part)) for _, part in pieces]
    codes: dict[int, Codes] = {}
    for batch in batches(lengths, max_samples, equal=padded_length is not None):
        codes |= dict(zip(batch, encode([pieces[index][1] for index in batch]), strict=True))
    joined: list[list[Codes]] = [[np.zeros(0, np.int32)] for _ in waves]
    for index, (owner, _) in enumerate(pieces):
        joined[owner].append(codes[index])
    return [np.concatenate(parts) for parts in joined]


def batches(lengths: Sequence[int], max_samples: int, equal: bool = False) -> Iterator[list[int]]:
    """Indices in batches by length: number x longest is at most `max_samples`, or it is one waveform alone.

    With `equal` all of a batch have the same length: nothing is padded, whatever the network makes of padding.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        full = (len(batch) + 1) * lengths[index] > max_samples
        if batch and (full or (equal and lengths[index] != lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def fit(wave: Tensor, length: int) -> Tensor:
    """[T] with zeros appended, or cut, to [length]."""
    return functional.pad(wave[:length], (0, max(0, length - len(wave))))
