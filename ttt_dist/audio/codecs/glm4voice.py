"""GLM-4-Voice's speech tokenizer: 16 kHz speech to one of 16,384 codes every 80 ms.

Its folder is the published glm-4-voice-tokenizer (config.json, model.safetensors). Speech is cut every 30 s, as the
published code does. The way back is a flow-matching model of its own project: see `ttt_dist.audio.codecs.external`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ttt_dist.audio.batches import Sharing, choose_device, encode_pieces, fit, inference
from ttt_dist.audio.codec import Codes
from ttt_dist.audio.codecs.published import CONFIG, REMEDY, PublishedCodec, folder_hash, read_config, weight_files
from ttt_dist.audio.codecs.whisper_features import HOP, SAMPLE_RATE, WhisperFeatures
from ttt_dist.audio.codecs.whisper_vq import CONV_STRIDES, WhisperVQ, WhisperVQConfig
from ttt_dist.util.errors import UserError

MAX_BATCH_SAMPLES = 4 * 30 * SAMPLE_RATE  # about 0.4 GB beside the weights, in fp32
CUDA_BATCH_SAMPLES = 4 * MAX_BATCH_SAMPLES
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TRAINING_PREFIX = "model.encoder."  # before every name in files that were saved with Whisper's decoder


class Glm4Voice(PublishedCodec):
    """The codec. Layers run in `chosen_dtype`, or else in bf16 on CUDA and in fp32 elsewhere; distances to the codebook in
    fp32 everywhere. A choice is part of the hash: codes of one precision are not continued in another unnoticed.
    """

    name = "glm4voice"
    sample_rate = SAMPLE_RATE
    num_codebooks = 1
    no_decoder = (
        "glm4voice: its codes are made speech by an external program; give --decoder-command 'PROGRAM {codes} {wav}'"
    )

    def __init__(
        self, model: WhisperVQ, folder: Path, hash: str, device: torch.device, dtype: str | None = None
    ) -> None:
        self.folder, self.hash, self.device, self.chosen_dtype = folder, hash, device, dtype
        self.dtype = DTYPES[dtype or ("bfloat16" if device.type == "cuda" else "float32")]
        self.model = model.to_inference(device, self.dtype)
        self.features = WhisperFeatures(model.config.num_mel_bins, device)
        self.position_samples = HOP * CONV_STRIDES[0] * CONV_STRIDES[1]
        self.frame_rate = SAMPLE_RATE / (self.position_samples * model.config.pooling_kernel_size)
        self.codebook_size = model.config.quantize_vocab_size

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None, dtype: str | None = None) -> Glm4Voice:
        """Read a published folder. Raises UserError naming the setting, file or weight that is wrong or missing."""
        folder = Path(folder)
        if dtype not in (None, *DTYPES):
            raise UserError(f"dtype {dtype}: glm4voice runs in {' or '.join(DTYPES)}; choose one")
        place = choose_device(device)
        config = WhisperVQConfig.read(read_config(folder), folder / CONFIG)
        with torch.device("meta"):
            model = WhisperVQ(config)
        model.load_state_dict(
            _weights(folder, {name: value.shape for name, value in model.state_dict().items()}), assign=True
        )
        return cls(model, folder, folder_hash(cls.name, folder, 1, *filter(None, [dtype])), place, dtype)

    def encode(self, waves: Sequence[Tensor]) -> list[Codes]:
        """Waveforms [T_i] at 16 kHz -> codes [ceil(T_i / 1280)]; pieces of 30 s are encoded each by itself.

        Within a piece, audio after a block of 4 s changes no code of that block, save by being so loud that quiet parts
        fall under the features' floor (8 decades below the loudest bin of the piece).
        """
        piece = self.model.config.max_source_positions * self.position_samples
        most = CUDA_BATCH_SAMPLES if self.device.type == "cuda" else MAX_BATCH_SAMPLES
        return encode_pieces(waves, piece, self._encode_batch, Sharing(most))

    def decode(self, codes: Codes) -> Tensor:
        """Refused: the published decoder is no part of this tokenizer."""
        raise UserError(self.no_decoder)

    def describe(self) -> dict[str, Any]:
        """Adds the precision of the layers, in which the last digits of the distances lie."""
        return {**super().describe(), "dtype": str(self.dtype).removeprefix("torch.")}

    def _encode_batch(self, pieces: list[Tensor]) -> list[Codes]:
        padded = [fit(piece, -(-len(piece) // self.hop) * self.hop) for piece in pieces]
        # A position counts as audio where its first sample does: the published mask is taken from the samples' mask.
        num_positions = torch.tensor([-(-len(piece) // self.position_samples) for piece in pieces], device=self.device)
        with inference():
            codes = self.model(self.features(padded), num_positions).cpu().numpy().astype(np.int32)
        return [row[: len(wave) // self.hop] for row, wave in zip(codes, padded, strict=True)]


def _weights(folder: Path, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """The wanted weights by name, in fp32; others in the files (decoder, training statistics) are left alone."""
    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for stored in file.keys():  # noqa: SIM118  # no mapping
                    name = stored.removeprefix(TRAINING_PREFIX)
                    if name in shapes:
                        found[name] = file.get_tensor(stored)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: not a whole safetensors file ({error}); {REMEDY}") from error
    missing = [name for name in shapes if name not in found]
    if missing:
        raise UserError(f"{folder}: lacks {len(missing)} of {len(shapes)} weights, first {missing[0]}; {REMEDY}")
    for name, shape in shapes.items():
        if found[name].shape != shape:
            raise UserError(
                f"{folder}: weight {name} is {list(found[name].shape)}, but config.json asks for {list(shape)}; {REMEDY}"
            )
    return {name: tensor.float() for name, tensor in found.items()}
