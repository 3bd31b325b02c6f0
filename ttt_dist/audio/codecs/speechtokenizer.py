"""SpeechTokenizer: residual codes of which the first carries what was said, by the package `speechtokenizer`.

(Zhang et al., "SpeechTokenizer", arXiv 2308.16692.) Its LSTM runs both ways over the utterance, so that only equal lengths
share a forward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ttt_dist.audio.codecs.packaged import PackagedCodec
from ttt_dist.audio.codecs.published import choose_codebooks


class SpeechTokenizer(PackagedCodec):
    """The codec: fnlp/SpeechTokenizer (speechtokenizer_hubert_avg), or fnlp/AnyGPT-speech-modules (speechtokenizer)."""

    name = module = distribution = "speechtokenizer"
    weights = ("model.safetensors", "SpeechTokenizer.pt", "ckpt.dev")

    @classmethod
    def build(cls, package: Any, config: Mapping[str, Any]) -> nn.Module:
        model = package.SpeechTokenizer(config)
        model.codebook_size, model.hop = config["codebook_size"], math.prod(config["strides"])
        return model

    def measure(self, codebooks: int | None) -> None:
        self.num_codebooks = choose_codebooks(self.name, self.folder, self.model.n_q, codebooks)
        self.codes_per_frame, self.size = self.num_codebooks, self.model.codebook_size
        self.sample_rate = self.model.sample_rate
        self.frame_rate = self.sample_rate / self.model.hop

    def frames(self, waves: Sequence[Tensor]) -> Tensor:
        return self.model.encode(self.stacked(waves), n_q=self.num_codebooks).movedim(0, 1)

    def speak(self, frames: Tensor) -> Tensor:
        return self.model.decode(frames[:, None])
