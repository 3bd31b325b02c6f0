"""SNAC: a residual quantiser whose codebooks run at different rates, by the package `snac`.

(Siuzdak et al., "SNAC: Multi-Scale Neural Audio Codec", arXiv 2410.14411.) A frame is one code of the slowest codebook
with all that refine it, each code before those below it: with strides 4, 2, 1 the seven codes c0, c1, c2, c2, c1, c2, c2,
as Orpheus-TTS writes them, place j of a frame in j*K..(j+1)*K-1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ttt_dist.audio.codecs.packaged import PackagedCodec
from ttt_dist.audio.codecs.padding import silenced
from ttt_dist.audio.codecs.published import choose_codebooks


class Snac(PackagedCodec):
    """The codec: hubertsiuzdak/snac_24khz, snac_32khz or snac_44khz."""

    name = module = distribution = "snac"
    weights = ("model.safetensors", "pytorch_model.bin")
    pads_from = 0

    @classmethod
    def build(cls, package: Any, config: Mapping[str, Any]) -> nn.Module:
        return package.SNAC(**config)

    def measure(self, codebooks: int | None) -> None:
        model = self.model
        self.num_codebooks = choose_codebooks(self.name, self.folder, model.n_codebooks, codebooks)
        model.quantizer.n_codebooks = self.num_codebooks  # what it sums up when it decodes
        self.order = list(places(model.vq_strides[: self.num_codebooks]))
        self.sample_rate, self.size, self.codes_per_frame = model.sampling_rate, model.codebook_size, len(self.order)
        self.frame_rate = self.sample_rate / (int(model.hop_length) * model.vq_strides[0])
        window = model.attn_window_size or 1  # steps of the fastest codebook, within which the larger models attend
        self.window = math.lcm(model.vq_strides[0], window) // model.vq_strides[0]

    def padded_length(self, num_samples: int) -> int:
        """Samples up to the end of the last window: the package fills it up with silence."""
        return -(-num_samples // (self.hop * self.window)) * self.hop * self.window

    def frames(self, waves: Sequence[Tensor]) -> Tensor:
        with silenced(self.model.encoder, [len(wave) for wave in waves]):
            codes = self.model.encode(self.stacked(waves))  # of each codebook [B, n * its codes per frame]
        by_frame = [of_one.unflatten(1, (len(codes[0][0]), -1)) for of_one in codes]
        return torch.stack([by_frame[book][:, :, place] for book, place in self.order], dim=1)

    def speak(self, frames: Tensor) -> Tensor:
        """The decoder adds noise, always the same here. The last frame is repeated up to the end of its window."""
        num_frames = frames.shape[1]
        whole = -(-num_frames // self.window) * self.window
        frames = frames[:, torch.arange(whole, device=frames.device).clamp(max=num_frames - 1)]
        of_book: list[list[Tensor]] = [[] for _ in range(self.num_codebooks)]
        for row, (book, _) in zip(frames, self.order, strict=True):
            of_book[book].append(row)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)
            return self.model.decode([torch.stack(rows, dim=1).flatten()[None] for rows in of_book])


def places(strides: Sequence[int], book: int = 0, place: int = 0) -> Iterator[tuple[int, int]]:
    """(codebook, number among its codes of this frame) of each code of a frame, a code before those that refine it."""
    yield book, place
    if book + 1 < len(strides):
        below = strides[book] // strides[book + 1]
        for child in range(place * below, (place + 1) * below):
            yield from places(strides, book + 1, child)
