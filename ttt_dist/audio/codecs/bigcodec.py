"""BigCodec: one codebook of 8,192 entries, 80 codes a second, by the package `bigcodec`.

(Xin et al., "BigCodec", arXiv 2409.05377.) Its activations repeat the last sample behind the end, so that only equal
lengths share a forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ttt_dist.audio.codecs.packaged import PackagedCodec


class BigCodec(PackagedCodec):
    """The codec: intexcp/bigcodec, the published weights in the package's layout."""

    name = module = distribution = "bigcodec"
    weights = ("model.safetensors",)
    sample_rate = 16000

    @classmethod
    def build(cls, package: Any, config: Mapping[str, Any]) -> nn.Module:
        return package.BigCodec(**config)

    def measure(self, codebooks: int | None) -> None:
        layers = self.model.decoder.quantizer.layers
        self.num_codebooks = self.codes_per_frame = len(layers)
        self.require_all(codebooks, self.num_codebooks)
        self.size = layers[0].codebook_size
        self.frame_rate = self.sample_rate / int(self.model.encoder.hop_length)

    def frames(self, waves: Sequence[Tensor]) -> Tensor:
        return self.model.encode(self.stacked(waves)).movedim(0, 1)

    def speak(self, frames: Tensor) -> Tensor:
        return self.model.decode(frames[None])
