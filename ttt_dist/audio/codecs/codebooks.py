"""Several codebooks as one: frame by frame c_0, c_1 + K, c_2 + 2K, ... for codebooks of K entries each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ttt_dist.audio.codec import Codes
from ttt_dist.util.console import warn
from ttt_dist.util.errors import UserError


def flatten(frames: npt.NDArray[np.integer], size: int) -> Codes:
    """Codes [k, n] of k codebooks, each in 0..size-1 -> [n * k] in 0..k*size-1."""
    offsets = np.arange(len(frames), dtype=np.int64)[:, None] * size
    return (frames.astype(np.int64) + offsets).T.reshape(-1).astype(np.int32)


def unflatten(codes: Codes, num_codebooks: int, size: int) -> npt.NDArray[np.int64]:
    """Codes [n * k] -> [k, n], each in 0..size-1: `flatten` undone.

    A model may write what no codec would: a code in another codebook's place counts by its number within its own
    codebook, and an unfinished last frame is left out, both with a warning. Raises UserError on a code that no codebook
    has.
    """
    codes = np.asarray(codes)
    total = num_codebooks * size
    if codes.size and (codes.min() < 0 or codes.max() >= total):
        wrong = int(codes.max() if codes.max() >= total else codes.min())
        raise UserError(f"code {wrong}: outside the codec's {total} codes; was it made by this codec?")
    num_frames, left_over = divmod(len(codes), num_codebooks)
    frames = codes[: num_frames * num_codebooks].reshape(num_frames, num_codebooks).T.astype(np.int64)
    misplaced = int((frames // size != np.arange(num_codebooks)[:, None]).sum())
    if misplaced or left_over:
        warn(
            f"{misplaced} of {len(codes)} codes stand in another codebook's place, {left_over} are left over at the end"
        )
    return frames % size
