"""Log-mel frames back to a waveform: inverse mel filters, then Griffin-Lim."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torchaudio.functional import griffinlim

from ttt_dist.audio.logmel import FLOOR, LogMel

INVERSE_MEL_STEPS = 100
GRIFFIN_LIM_STEPS = 64
MOMENTUM = 0.99
BORDER = 0.1  # share of its neighbour that a frame beside a code's border takes; more costs round-trip agreement


def synthesise(frames: Tensor, logmel: LogMel, stack: int) -> Tensor:
    """Log-mel frames [n, num_mels] in stacks of `stack` -> waveform [n * frame], deterministic, in -1..1.

    The grid is `logmel`'s: frame i of the analysis of the result lies on frame i of the input.
    """
    mel_power = (_smooth_borders(frames, stack).exp() - FLOOR).clamp(min=0)
    power = functional.pad(inverse_mel(mel_power, logmel.filters), (0, 0, 1, 1))  # a silent frame at each end
    with torch.random.fork_rng(devices=[]):  # griffinlim draws its first phases from the global generator
        torch.manual_seed(0)
        wave = griffinlim(
            power.T,
            logmel.window,
            n_fft=logmel.num_fft,
            hop_length=logmel.frame,
            win_length=logmel.num_fft,
            power=2.0,
            n_iter=GRIFFIN_LIM_STEPS,
            momentum=MOMENTUM,
            length=None,
            rand_init=True,
        )
    # Its frames are centred on multiples of the hop, ours on the middle between: the first, silent one lies half a hop
    # before our first sample.
    start, length = logmel.frame // 2, len(frames) * logmel.frame
    return functional.pad(wave[start : start + length], (0, max(0, start + length - len(wave)))).clamp(-1, 1)


def inverse_mel(mel_power: Tensor, filters: Tensor) -> Tensor:
    """Power spectrum [n, F] >= 0 whose mel power comes nearest to [n, num_mels], by multiplicative updates.

    (Lee and Seung, "Algorithms for non-negative matrix factorization", eq. 4: a least-squares solution that stays
    non-negative, where clipping the unconstrained one would bend the spectrum.)
    """
    wanted = mel_power @ filters.T
    gram = filters @ filters.T
    power = wanted.clamp(min=1e-9)
    for _ in range(INVERSE_MEL_STEPS):
        power = power * wanted / (power @ gram + 1e-9)
    return power


def _smooth_borders(frames: Tensor, stack: int) -> Tensor:
    smooth = frames.clone()
    right = torch.arange(stack, len(frames), stack)
    smooth[right] = torch.lerp(frames[right], frames[right - 1], BORDER)
    smooth[right - 1] = torch.lerp(frames[right - 1], frames[right], BORDER)
    return smooth
