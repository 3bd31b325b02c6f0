"""Log-mel features of Whisper (Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

SAMPLE_RATE = 16000
HOP = 160  # samples per frame: 100 frames a second
NUM_FFT = 400
HIGH_HZ = 8000.0
FLOOR = 1e-10
RANGE = 8.0  # decades below the loudest bin of the waveform, under which all counts as silence


class WhisperFeatures:
    """Waveforms to log-mel frames, each as `transformers`' WhisperFeatureExtractor makes them of that waveform alone."""

    def __init__(self, num_mels: int, device: torch.device) -> None:
        from transformers.audio_utils import mel_filter_bank

        filters = mel_filter_bank(
            1 + NUM_FFT // 2, num_mels, 0.0, HIGH_HZ, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
        )
        self.filters = torch.from_numpy(filters).to(device, torch.float32)  # [NUM_FFT / 2 + 1, num_mels]
        self.window = torch.hann_window(NUM_FFT, device=device)
        self.device = device

    def __call__(self, waves: Sequence[Tensor]) -> Tensor:
        """Waveforms [T_i], T_i a multiple of HOP and longer than NUM_FFT / 2 -> [B, num_mels, max T_i / HOP], float32.

        The loudest bin of a waveform sets the floor of all its frames, later ones included; all else in a frame follows
        from the NUM_FFT samples around its first one. Each waveform is mirrored at its own two ends, and zeros for the
        longest one's length come after that, so that a waveform's frames are the same in every batch. The frames
        behind its end mean nothing.
        """
        edge = NUM_FFT // 2
        mirrored = [functional.pad(wave.to(self.device)[None], (edge, edge), "reflect")[0] for wave in waves]
        spectrum = torch.stft(
            pad_sequence(mirrored, batch_first=True),
            NUM_FFT,
            HOP,
            window=self.window,
            center=False,
            return_complex=True,
        )
        power = spectrum[..., :-1].abs().square()
        log_mel = (self.filters.T @ power).clamp(min=FLOOR).log10()
        lengths = torch.tensor([len(wave) // HOP for wave in waves], device=self.device)
        outside = torch.arange(log_mel.shape[2], device=self.device) >= lengths[:, None]
        loudest = log_mel.masked_fill(outside[:, None], -torch.inf).amax(dim=(1, 2), keepdim=True)
        return (torch.maximum(log_mel, loudest - RANGE) + 4) / 4
