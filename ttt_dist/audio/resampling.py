"""Changing the sample rate: torchaudio's windowed sinc, at a cost that does not depend on what divides the two rates.

torchaudio keeps a kernel for every one of the new / gcd phases, each of orig / gcd samples and more, of which all but a few
are zero: from 44,099 Hz to 24,000 Hz that is 4 GB. Where its kernels would be large, only what is near an output is computed
here: the same figures, so that the samples agree but for the order in which float32 adds.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchaudio import functional

"""Hz that a recording may have. Beyond, it is the header that is wrong, and memory would follow it."""
LARGE_KERNELS = 2**20  # elements of torchaudio's kernels: those of the usual rates are far below
GROUP = 16  # outputs in a row that are one product: they share most of their inputs
BLOCK = 2**18  # elements at once: what the processor's cache holds
ZEROS, ROLLOFF = 6, 0.99  # torchaudio's `lowpass_filter_width` and `rolloff`


def resample(wave: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """[T] at `from_rate` Hz to [ceil(T * to_rate / from_rate)] at `to_rate` Hz (windowed sinc)."""
    if from_rate == to_rate:
        return wave
    divisor = math.gcd(from_rate, to_rate)
    orig, new = from_rate // divisor, to_rate // divisor
    if new * (orig + 2 * _width(orig, new)) <= LARGE_KERNELS:
        return functional.resample(wave, from_rate, to_rate)
    return _by_groups(wave, orig, new)


def _width(orig: int, new: int) -> int:
    """Samples of the input on each side of an output that bear on it."""
    return math.ceil(ZEROS * orig / (min(orig, new) * ROLLOFF))


def _by_groups(wave: Tensor, orig: int, new: int) -> Tensor:
    """Output n lies at n * orig / new of the input. A cycle of `new` outputs takes `orig` samples, then all comes again.

    The outputs of a cycle are cut into groups; a group of all cycles is one product [cycles, span] x [span, GROUP].
    """
    starts, kernels = _kernels(orig, new)
    span, width = kernels.shape[1], _width(orig, new)
    length = -(-len(wave) * new // orig)
    cycles = -(-length // new)
    around = pad(wave, (width, cycles * orig + width + span - len(wave))).unfold(0, span, 1)  # a view: [..., span]
    first = torch.arange(cycles) * orig
    result = wave.new_empty(cycles, len(starts), GROUP)
    for some in torch.arange(min(len(starts), -(-length // GROUP))).split(max(1, BLOCK // (cycles * span))):
        inputs = around[(starts[some, None] + first).to(wave.device)]  # [groups, cycles, span]
        result[:, some] = torch.bmm(inputs, kernels[some].to(wave)).transpose(0, 1)
    return result.flatten(1)[:, :new].flatten()[:length]


@lru_cache(maxsize=4)
def _kernels(orig: int, new: int) -> tuple[Tensor, Tensor]:
    """The first sample of each group, counted from `width` before the cycle, and its kernels [groups, span, GROUP].

    (torchaudio.functional._get_sinc_resample_kernel, Hann window; it computes in float32, and so do we.)
    """
    width, cutoff = _width(orig, new), min(orig, new) * ROLLOFF
    phases = torch.arange(-(-new // GROUP) * GROUP).unflatten(0, (-1, GROUP))
    starts = phases[:, 0] * orig // new
    span = 2 * width + 1 + -(-(GROUP - 1) * orig // new)
    kernels = torch.empty(len(starts), span, GROUP)
    for some in torch.arange(len(starts)).split(max(1, BLOCK // (span * GROUP))):
        samples = starts[some, None] + torch.arange(-width, span - width)
        t = (samples / orig)[:, :, None] - (phases[some] / new)[:, None]  # in cycles
        t = (t * cutoff).clamp(-ZEROS, ZEROS)
        kernels[some] = torch.sinc(t) * torch.cos(t * (math.pi / ZEROS / 2)).square() * (cutoff / orig)
    return starts, kernels
