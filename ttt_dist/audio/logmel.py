"""Log-mel analysis on a grid that keeps frames and samples aligned, and the loudness that it is done at."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torchaudio.functional import melscale_fbanks

FRAMES_PER_SECOND = 100
WINDOW_S = 0.025
LOW_HZ, HIGH_HZ = 50.0, 7600.0
FLOOR = 1e-3  # added to the mel power of speech of LOUDNESS: what lies 50 dB below counts as silence
LOUDNESS = 0.1  # root mean square over the frames that hold speech
SPEECH_SHARE = 0.01  # a frame holds speech where its power is at least this share (-20 dB) of the loudest frame's


class LogMel:
    """[n * frame] samples -> [n, num_mels]: frame i is centred on the middle of samples [i * frame, (i+1) * frame)."""

    def __init__(self, sample_rate: int, num_mels: int) -> None:
        self.frame = sample_rate // FRAMES_PER_SECOND
        width = round(WINDOW_S * sample_rate)
        self.num_fft = 1 << (width - 1).bit_length()
        side = self.num_fft - width
        self.window = functional.pad(torch.hann_window(width), (side // 2, side - side // 2))
        high = min(HIGH_HZ, sample_rate / 2)
        self.filters = melscale_fbanks(self.num_fft // 2 + 1, LOW_HZ, high, num_mels, sample_rate)  # [F, num_mels]

    def power(self, wave: Tensor) -> Tensor:
        """Power spectrum [n, num_fft / 2 + 1] of [n * frame] samples; silence is assumed before and after."""
        side = self.num_fft - self.frame
        frames = functional.pad(wave, (side // 2, side - side // 2)).unfold(0, self.num_fft, self.frame)
        spectrum = torch.fft.rfft(frames * self.window)
        return spectrum.real.square() + spectrum.imag.square()  # half the time of abs().square()

    def __call__(self, wave: Tensor) -> Tensor:
        """Natural logarithm of the mel power, [n, num_mels]."""
        if len(wave) == 0:
            return torch.zeros(0, self.filters.shape[1])
        return torch.log(self.power(wave) @ self.filters + FLOOR)


def normalise_loudness(wave: Tensor, sample_rate: int) -> Tensor:
    """[T] scaled so that the frames that hold speech have the power LOUDNESS^2; silence stays silence."""
    frame = sample_rate // FRAMES_PER_SECOND
    if len(wave) == 0:
        return wave
    power = functional.pad(wave, (0, -len(wave) % frame)).unflatten(0, (-1, frame)).square().mean(dim=1)
    loudest = power.max()
    if loudest < 1e-10:  # -100 dB: digital silence, or nothing but rounding
        return torch.zeros_like(wave)
    speech = power[power >= SPEECH_SHARE * loudest].mean()
    return wave * (LOUDNESS / speech.sqrt())
