"""The reply of `benchmarks.decode` (20 s of speech): ours at batch 1, 8 and 32, beside autoregressive decoding with a cache."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.decode import BATCHES, BLOCK, CODE_RATE, NUM_CODES, NUM_TEXT
from benchmarks.decode_sides import Course, decode, draw_prompts, random_folder
from benchmarks.gpu.setting import Figures, Measurement, Setting, weights_drawn_on
from ttt_dist.config.decode import DecodeSettings
from ttt_dist.config.objective import Objective
from ttt_dist.inference import model_runner
from ttt_dist.inference.cuda_graphs import ForwardRunner
from ttt_dist.inference.decoder import Decoder

STEPS = 2  # forwards of a block
DENOISED = DecodeSettings(block=BLOCK, steps=STEPS)
TIDAR = DecodeSettings(audio_mode="tidar", block=13)


def measurements(setting: Setting) -> Iterator[Measurement]:
    """By worth."""
    with weights_drawn_on(setting.device):
        folder = random_folder(setting.config, setting.layout, setting.dtype, setting.device)
    ours, ar = (Replies(setting, Decoder(replace(folder, objective=Objective(kind=kind)))) for kind in ("ttt", "ar"))
    one, few, many = BATCHES if setting.on_cuda else (1, 2, 3)
    for batch in (one, many, few):
        yield f"ours, batch {batch}", partial(ours.measure, batch)
    for batch in (one, many):
        yield f"AR, batch {batch}", partial(ar.measure, batch)
    # Drafts of random weights are refused, so that a forward writes one code: what tells is its time beside one of AR.
    tidar = Replies(setting, ours.decoder, TIDAR)
    for batch in (one, few):
        yield f"tidar, batch {batch}", partial(tidar.measure, batch)
    for batch in (one, many):
        yield f"without CUDA graphs, batch {batch}", partial(without_graphs, setting, ours, batch)
        yield f"with cuDNN attention, batch {batch}", partial(with_cudnn, setting, ours, batch)


class Replies:
    """Of one decoder, to the same prompts."""

    def __init__(self, setting: Setting, decoder: Decoder, settings: DecodeSettings = DENOISED) -> None:
        num_text, self.num_codes = (NUM_TEXT, NUM_CODES) if setting.on_cuda else (26, 60)
        self.course = Course.of(setting.layout, num_text, self.num_codes)
        self.settings = settings
        self.decoder, self.prompts = decoder, draw_prompts(setting.layout, max(BATCHES))
        self.first: np.ndarray | None = None

    def measure(self, batch: int) -> Figures:
        """Seconds of a reply, and what follows. `cold_s` is the first one's, which loads kernels; `agrees` the share of tokens
        that the first prompt got at the first measurement too: in bf16 other shapes may round otherwise.
        """
        cold_s = decode(self.decoder, self.prompts[:batch], self.settings, self.course).seconds
        measured = decode(self.decoder, self.prompts[:batch], self.settings, self.course)
        self.first = measured.replies[0] if self.first is None else self.first
        return {
            "seconds": measured.seconds,
            "real_time_factor": measured.seconds / (self.num_codes / CODE_RATE),
            "codes_s": batch * self.num_codes / measured.seconds,
            "ms_per_forward": 1e3 * measured.seconds / measured.num_forwards,
            "first_span_s": measured.first_span_s,
            "cold_s": cold_s,
            "agrees": float((measured.replies[0] == self.first).mean()),
            "memory_gb": torch.cuda.max_memory_allocated() / 1e9,
        }


def without_graphs(setting: Setting, ours: Replies, batch: int) -> Figures:
    """Every forward in its own shape, launched kernel by kernel."""
    setting.require_cuda("CUDA graphs")
    with patch.object(model_runner, "ForwardRunner", partial(ForwardRunner, is_fixed=False)):
        return ours.measure(batch)


def with_cudnn(setting: Setting, ours: Replies, batch: int) -> Figures:
    """Attention as torch chooses it, which on sm_90 is cuDNN's first."""
    setting.require_cuda("cuDNN attention")
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        with patch.object(torch.backends.cuda, "enable_cudnn_sdp"):  # a session would switch it off
            return ours.measure(batch)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(False)
