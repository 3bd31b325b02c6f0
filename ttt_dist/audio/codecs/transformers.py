"""Codecs that `transformers` implements: Mimi, EnCodec, DAC, X-Codec, X-Codec 2, NeuCodec, Higgs Audio.

They are read from a local folder, safetensors only, no code of the folder's. Which waveforms may share a batch is told
by `ttt_dist.audio.codecs.padding`; where a network would let one depend on another, only those of equal padded length do.
They run in fp32 on every device: residual quantisers find their later codes in small differences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ttt_dist.audio.batches import Sharing, choose_device, encode_pieces, fit, inference
from ttt_dist.audio.codec import Codes
from ttt_dist.audio.codecs.codebooks import flatten, unflatten
from ttt_dist.audio.codecs.padding import causal_from, encode_in_steps, silenced
from ttt_dist.audio.codecs.published import (
    CONFIG,
    REMEDY,
    PublishedCodec,
    choose_codebooks,
    folder_hash,
    read_config,
    weight_files,
)
from ttt_dist.audio.codecs.transformers_kinds import KINDS, Kind
from ttt_dist.audio.resampling import resample
from ttt_dist.util.errors import UserError, first_line

MAX_BATCH_SAMPLES = (
    1_000_000  # of a forward on CPU, where larger ones are no faster; 1.5 GB, and up to 3 with other codecs
)
BYTES_PER_SAMPLE = 3000  # of a forward: the first convolutions keep 64 channels at the full rate
CUDA_SHARE = 3  # one forward takes at most so much (1 / CUDA_SHARE) of the device's memory: two workers may share it
STEP_SAMPLES = 100_000  # of a forward of a codec that is run in steps, on CPU: what fits into its caches goes fastest
STEPPED_SAMPLES = 16_000_000  # of a batch that is run in steps: its keys and values take up to 0.6 GB
PIECE_S = 60  # longer speech is cut into pieces of so many seconds, each encoded by itself
BROKEN = (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError)  # what a damaged folder raises
TRAINING_ONLY = "masked_spec_embed"  # weight that published recognisers leave out


class Pretrained(PublishedCodec):
    """One of KINDS with its model; `codes_per_frame` of its codebooks are used, the first ones."""

    def __init__(
        self, name: str, model: Any, folder: Path, num_codebooks: int, hash: str, device: torch.device
    ) -> None:
        self.name, self.kind, self.folder, self.hash, self.device = name, KINDS[name], folder, hash, device
        self.model = model.eval().requires_grad_(False).to(device)
        config = model.config
        self.sample_rate = getattr(config, self.kind.sample_rate)
        self.frame_rate = _frame_rate(self.kind, config)
        self.num_codebooks = self.codes_per_frame = num_codebooks
        self.size = _codebook_size(self.kind, config)
        self.codebook_size = num_codebooks * self.size
        self.extractor = _extractor(self.kind, self.sample_rate, self.hop)
        self.pads_from = 0 if self.kind.silenced else causal_from(model, self.hop) if self.kind.causal else None
        self.in_steps = self.kind.in_steps and self.pads_from == 0

    @classmethod
    def load(cls, folder: str | Path, name: str, codebooks: int | None = None, device: str | None = None) -> Pretrained:
        """Read a published folder. Raises UserError naming the setting, file or weight that is wrong or missing."""
        folder, place = Path(folder), choose_device(device)
        _check_type(name, folder)
        model = read_model(name, KINDS[name].model_class, folder)
        chosen = _choose(name, folder, model.config, codebooks)
        return cls(name, model, folder, chosen, folder_hash(name, folder, chosen), place)

    def encode(self, waves: Sequence[Tensor]) -> list[Codes]:
        """Waveforms [T_i] -> codes [ceil(T_i / hop) * codes_per_frame]; the last frame is filled up with silence."""
        piece = int(PIECE_S * self.frame_rate) * self.hop
        return encode_pieces(waves, piece, self._encode_batch, self._sharing(), self._padded_length)

    def decode(self, codes: Codes) -> Tensor:
        """Codes [n * codes_per_frame] -> [n * hop]; a decoder of another rate is brought to `sample_rate`."""
        frames = unflatten(codes, self.codes_per_frame, self.size)
        num_frames = frames.shape[1]
        if not num_frames:
            return torch.zeros(0)
        with inference():
            given = torch.from_numpy(frames)[None].to(self.device)
            spoken = (
                self.model.decode(given[None], [None]) if self.kind.chunked else self.model.decode(audio_codes=given)
            )
            wave = spoken.audio_values.float().flatten().cpu()
        rate = getattr(self.model.config, self.kind.output_rate) if self.kind.output_rate else self.sample_rate
        return fit(resample(wave, rate, self.sample_rate).clamp(-1, 1), num_frames * self.hop)

    def describe(self) -> dict[str, Any]:
        """Adds what `transformers` was and which model it ran."""
        import transformers

        return {
            **super().describe(),
            "codebooks": self.num_codebooks,
            "model_type": self.kind.model_type,
            "transformers": transformers.__version__,
            "dtype": "float32",
        }

    def _sharing(self) -> Sharing:
        if self.in_steps:
            return Sharing(STEPPED_SAMPLES, self.pads_from, self._step_frames())
        return Sharing(max_batch_samples(self.device), self.pads_from)

    def _step_frames(self) -> int:
        """Of a forward of all rows together, where the codec is run in steps."""
        on_cuda = self.device.type == "cuda"
        return max((max_batch_samples(self.device) if on_cuda else STEP_SAMPLES) // self.hop, 1)

    def _padded_length(self, num_samples: int) -> int:
        return -(-(num_samples + self.kind.appended) // self.hop) * self.hop - self.kind.appended

    def _encode_batch(self, waves: list[Tensor]) -> list[Codes]:
        padded = [fit(wave, self._padded_length(len(wave))) for wave in waves]
        with inference():
            found = self._codes(padded)[:, : self.num_codebooks].cpu().numpy()  # [B, k, n]
        counts = [-(-len(wave) // self.hop) for wave in waves]
        assert max(counts) <= found.shape[2], f"{self.name} gave {found.shape[2]} frames for {max(counts)}"
        return [flatten(row[:, :count], self.size) for row, count in zip(found, counts, strict=True)]

    def _codes(self, waves: list[Tensor]) -> Tensor:
        """[B, k or more, n or more] of waveforms of whole frames."""
        options = self.kind.options(self.model.config, self.num_codebooks)
        if self.in_steps:
            step = self._step_frames() // len(waves) * self.hop
            return encode_in_steps(self.model, waves, step, self.device, **options)
        lengths = [len(wave) for wave in waves]
        inputs = {
            name: value.to(self.device)
            for name, value in self._inputs([fit(wave, max(lengths)) for wave in waves]).items()
        }
        with silenced(self.model.encoder, lengths) if self.kind.silenced else nullcontext():
            codes: Tensor = self.model.encode(**inputs, **options).audio_codes
        return codes[0] if self.kind.chunked else codes

    def _inputs(self, waves: list[Tensor]) -> dict[str, Tensor]:
        """What the model is called with, for waveforms of one length."""
        if self.extractor is None:
            return {"input_values": torch.stack(waves)[:, None]}
        arrays = [wave.numpy() for wave in waves]
        inputs = dict(self.extractor(arrays, sampling_rate=self.sample_rate, return_tensors="pt"))
        inputs.pop("padding_mask")  # nothing is padded
        return inputs


def max_batch_samples(device: torch.device) -> int:
    """Samples of a forward: a constant of the kind of device, so that the same machines make the same batches."""
    if device.type != "cuda":
        return MAX_BATCH_SAMPLES
    total = torch.cuda.get_device_properties(device).total_memory
    return max(MAX_BATCH_SAMPLES, total // CUDA_SHARE // BYTES_PER_SAMPLE)


def read_model(name: str, model_class: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model of a folder, a class of `transformers`, with all its weights. Raises UserError where it is not whole.

    Safetensors only, no code of the folder's. Without the check `transformers` would make up weights that are missing.
    """
    weight_files(folder)  # before transformers looks for other kinds of files
    import transformers

    with quiet():
        try:
            model, loading = getattr(transformers, model_class).from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=dtype,
                output_loading_info=True,
            )
        except BROKEN as error:
            raise UserError(f"{folder}: {name} cannot be read ({first_line(error)}); {REMEDY}") from error
    missing = sorted(key for key in loading["missing_keys"] if not key.endswith(TRAINING_ONLY))
    if missing:
        raise UserError(f"{folder}: lacks {len(missing)} weights of {name}, first {missing[0]}; {REMEDY}")
    return model


def _check_type(name: str, folder: Path) -> None:
    found = read_config(folder).get("model_type")
    if found == KINDS[name].model_type:
        return
    known = next((other for other, kind in KINDS.items() if kind.model_type == found), None)
    remedy = f"write {known}:{folder}" if known else f"name a folder of {name}"
    raise UserError(f"{folder / CONFIG}: holds a model of type {found!r}, not {KINDS[name].model_type!r}; {remedy}")


def _choose(name: str, folder: Path, config: Any, codebooks: int | None) -> int:
    """The number of codebooks to use; UserError where the model has fewer, or says more than its codes do."""
    kind = KINDS[name]
    for key, wanted in kind.fixed.items():
        if getattr(config, key) != wanted:
            raise UserError(
                f"{folder / CONFIG}: {key} {getattr(config, key)} is not supported, only {wanted}; use another {name}"
            )
    most = getattr(config, kind.num_codebooks) if kind.num_codebooks else 1
    return choose_codebooks(name, folder, most, codebooks)


def _extractor(kind: Kind, sample_rate: int, hop: int) -> Any | None:
    if kind.feature_extractor is None:
        return None
    import transformers

    return getattr(transformers, kind.feature_extractor)(sampling_rate=sample_rate, hop_length=hop)


def _frame_rate(kind: Kind, config: Any) -> float:
    """Exact, where the config's own property is rounded up."""
    return float(getattr(config, kind.sample_rate) / getattr(config, kind.hop) if kind.hop else config.frame_rate)


def _codebook_size(kind: Kind, config: Any) -> int:
    return config.codebook_size if kind.num_codebooks else math.prod(config.quantization_levels)


@contextmanager
def quiet() -> Iterator[None]:
    """No bars and reports of transformers': what is wrong with a folder we say in one line."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
