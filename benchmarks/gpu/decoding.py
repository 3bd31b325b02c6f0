"""The reply of `benchmarks.decode` (20 s of speech): ours at batch 1, 8 and 32, beside autoregressive decoding with a cache."""

import dataclasses
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.decode import BLOCK, CODE_RATE, NUM_CODES, NUM_TEXT
from benchmarks.decode_sides import Course, decode, draw_prompts, random_folder
from benchmarks.gpu.setting import Figures, Measurement, Setting, weights_drawn_on
from ttt_dist.decode_settings import DecodeSettings
from ttt_dist.inference.decoder import Decoder
from ttt_dist.sequence.objective import Objective

STEPS = 2  # forwards of a block


def measurements(setting: Setting) -> Iterator[Measurement]:
    """By worth. The first reply of each batch size warms up: kernels are loaded, plans of attention made."""
    with weights_drawn_on(setting.device):
        folder = random_folder(setting.config, setting.layout, setting.dtype, setting.device)
    ours, ar = Decoder(folder), Decoder(dataclasses.replace(folder, objective=Objective(kind="ar")))
    for batch in (1, 32, 8) if setting.on_cuda else (1, 2):
        yield f"ours, batch {batch}", partial(reply, setting, ours, batch)
    for batch in (1, 32) if setting.on_cuda else (1,):
        yield f"AR, batch {batch}", partial(reply, setting, ar, batch)
    yield "ours, batch 1, cuDNN attention the other way", partial(other_cudnn, setting, ours, 1)
    yield "ours, batch 32, cuDNN attention the other way", partial(other_cudnn, setting, ours, 32)


def reply(setting: Setting, decoder: Decoder, batch: int) -> Figures:
    """Seconds of a reply, and what follows from them; `cold_s` is the first one's."""
    num_text, num_codes = (NUM_TEXT, NUM_CODES) if setting.on_cuda else (26, 60)
    course, requests = Course.of(setting.layout, num_text, num_codes), draw_prompts(setting.layout, batch)
    settings = DecodeSettings(block=BLOCK, steps=STEPS)
    cold_s = decode(decoder, requests, settings, course).seconds
    measured = decode(decoder, requests, settings, course)
    return {
        "seconds": measured.seconds,
        "real_time_factor": measured.seconds / (num_codes / CODE_RATE),
        "codes_s": batch * num_codes / measured.seconds,
        "ms_per_forward": 1e3 * measured.seconds / measured.num_forwards,
        "first_span_s": measured.first_span_s,
        "cold_s": cold_s,
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9,
    }


def other_cudnn(setting: Setting, decoder: Decoder, batch: int) -> Figures:
    """With cuDNN's attention where decoding goes without, and the reverse."""
    setting.require_cuda("cuDNN attention")
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(not before)
    try:
        return reply(setting, decoder, batch) | {"cudnn": not before}
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
