"""NanoCodec of NVIDIA NeMo: four independent codebooks of 4,032 entries at 12.5 Hz, by a package.

(Casanova et al., "NanoCodec", arXiv 2508.05835.) Its encoder repeats the last sample behind the end, so that only equal
lengths share a forward. The package, `nanocodec-torch` of the extra `codecs`, builds one shape, whatever config.json says;
weights are read by their NeMo names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ttt_dist.audio.codecs.packaged import PackagedCodec
from ttt_dist.audio.codecs.published import REMEDY, read_config
from ttt_dist.util.errors import UserError


class NanoCodec(PackagedCodec):
    """The codec: nineninesix/nemo-nano-codec-22khz-0.6kbps-12.5fps-pytorch."""

    name = "nanocodec"
    module = "nanocodec_torch"
    distribution = "nanocodec-torch"
    weights = ("model.safetensors",)

    @classmethod
    def build(cls, package: Any, config: Mapping[str, Any]) -> nn.Module:
        return package.AudioCodecModel(sample_rate=config.get("sample_rate", 22050))

    @classmethod
    def read(cls, package: Any, files: Sequence[Path]) -> nn.Module:
        """The package's reader leaves what the file lacks as it was, and takes any shape: both are looked for."""
        from nanocodec_torch.utils import load_safetensors_weights

        config, path = files
        model = cls.build(package, read_config(config.parent))
        before = {name: value.data for name, value in model.named_parameters()}
        load_safetensors_weights(model, str(path), verbose=False)
        for name, value in model.named_parameters():
            if value.data_ptr() == before[name].data_ptr():
                raise UserError(f"{path}: lacks weight {name} of {cls.name}; {REMEDY}")
            if value.shape != before[name].shape:
                was, wanted = list(value.shape), list(before[name].shape)
                raise UserError(f"{path}: weight {name} is {was}, but {cls.name} has {wanted}; {REMEDY}")
        return model

    def measure(self, codebooks: int | None) -> None:
        quantizer = self.model.vector_quantizer
        self.num_codebooks = self.codes_per_frame = quantizer.num_groups
        self.require_all(codebooks, self.num_codebooks)
        self.size = quantizer.fsqs[0].codebook_size
        self.sample_rate = self.model.sample_rate
        self.frame_rate = self.sample_rate / self.model.samples_per_frame

    def frames(self, waves: Sequence[Tensor]) -> Tensor:
        return self.model.encode(self.stacked(waves))[0]

    def speak(self, frames: Tensor) -> Tensor:
        return self.model.decode(frames[None])[0]
