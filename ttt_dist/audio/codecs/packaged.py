"""Codecs that a package of their own implements (the extra `codecs`): what they have in common.

The package's network is built from the folder's files and nothing else: its own ways of loading may ask a hub. As with
those of `transformers`, it runs in fp32, and waveforms share a forward only where that changes no code.
"""

from __future__ import annotations

import importlib
import pickle
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ttt_dist.audio.batches import Sharing, choose_device, encode_pieces, fit, inference
from ttt_dist.audio.codec import Codes
from ttt_dist.audio.codecs.codebooks import flatten, unflatten
from ttt_dist.audio.codecs.published import CONFIG, REMEDY, PublishedCodec, files_hash, read_config
from ttt_dist.audio.codecs.transformers import BROKEN, PIECE_S, max_batch_samples
from ttt_dist.util.errors import UserError, first_line


class PackagedCodec(PublishedCodec):
    """A network of the package `module`; a subclass says how it is built, measured and asked."""

    module: ClassVar[str]  # that is imported
    distribution: ClassVar[str]  # that is installed
    weights: ClassVar[tuple[str, ...]]  # names of the file of weights, of which the first that is there is read
    pads_from: ClassVar[int | None] = None  # samples from which waveforms of other lengths may share a forward
    piece_s: ClassVar[float] = PIECE_S  # longer speech is cut into pieces of so many seconds
    size: int  # entries of each codebook

    def __init__(
        self, model: Any, folder: Path, files: Sequence[Path], codebooks: int | None, device: torch.device
    ) -> None:
        self.folder, self.device = folder, device
        self.model = model.eval().requires_grad_(False).to(device)
        self.measure(codebooks)
        self.codebook_size = self.codes_per_frame * self.size
        self.hash = files_hash(self.name, files, self.num_codebooks)

    @classmethod
    def load(cls, folder: str | Path, codebooks: int | None = None, device: str | None = None) -> PackagedCodec:
        """Read a published folder. Raises UserError naming the package, setting, file or weight that is missing."""
        folder, place = Path(folder), choose_device(device)
        package, files = import_package(cls.name, cls.module), cls.files(folder)
        try:
            return cls(cls.read(package, files), folder, files, codebooks, place)
        except UserError:
            raise
        except (*BROKEN, pickle.UnpicklingError, EOFError) as error:
            raise UserError(f"{folder}: {cls.name} cannot be read ({first_line(error)}); {REMEDY}") from error

    @classmethod
    def files(cls, folder: Path) -> list[Path]:
        """config.json and the weights. Raises UserError where one is missing."""
        read_config(folder)
        return [folder / CONFIG, find_weights(folder, cls.weights)]

    @classmethod
    def read(cls, package: Any, files: Sequence[Path]) -> nn.Module:
        """The network with all its weights."""
        config, weights = files
        model = cls.build(package, read_config(config.parent))
        fill(model, read_weights(weights), cls.name, weights)
        return model

    @classmethod
    @abstractmethod
    def build(cls, package: Any, config: Mapping[str, Any]) -> nn.Module:
        """The network of a config.json."""

    @abstractmethod
    def measure(self, codebooks: int | None) -> None:
        """Set the rates and sizes that the model has, with so many codebooks. Raises UserError where it has fewer."""

    @abstractmethod
    def frames(self, waves: Sequence[Tensor]) -> Tensor:
        """Codes [B, codes_per_frame, n or more] of waveforms of whole frames."""

    def speak(self, frames: Tensor) -> Tensor:
        """The speech [T or more] of codes [codes_per_frame, n], by a codec that does not say `no_decoder`."""
        raise NotImplementedError

    def encode(self, waves: Sequence[Tensor]) -> list[Codes]:
        """Waveforms [T_i] -> codes [ceil(T_i / hop) * codes_per_frame]; the last frame is filled up with silence."""
        piece = int(self.piece_s * self.frame_rate) * self.hop
        sharing = Sharing(max_batch_samples(self.device), self.pads_from)
        return encode_pieces(waves, piece, self._encode_batch, sharing, self.padded_length)

    def decode(self, codes: Codes) -> Tensor:
        """Codes [n * codes_per_frame] -> [n * hop]. Raises UserError where the package has no decoder."""
        self.require_decoder()
        frames = unflatten(codes, self.codes_per_frame, self.size)
        num_frames = frames.shape[1]
        if not num_frames:
            return torch.zeros(0)
        with inference():
            wave = self.speak(torch.from_numpy(frames).to(self.device)).float().flatten().cpu()
        return fit(wave.clamp(-1, 1), num_frames * self.hop)

    def describe(self) -> dict[str, Any]:
        """Adds which version of the package it was."""
        made_by = {self.distribution: version(self.distribution), "dtype": "float32"}
        return {**super().describe(), "codebooks": self.num_codebooks, **made_by}

    def padded_length(self, num_samples: int) -> int:
        """Samples up to the end of the last frame."""
        return -(-num_samples // self.hop) * self.hop

    def stacked(self, waves: Sequence[Tensor]) -> Tensor:
        """[B, 1, T] of waveforms, with silence behind the shorter ones."""
        return pad_sequence(list(waves), batch_first=True)[:, None].to(self.device)

    def require_all(self, codebooks: int | None, number: int) -> None:
        """Refuse to leave out codebooks that do not refine one another."""
        if codebooks not in (None, number):
            raise UserError(f"codebooks {codebooks}: {self.name} speaks with all its {number}; leave the choice out")

    def _encode_batch(self, waves: list[Tensor]) -> list[Codes]:
        padded = [fit(wave, self.padded_length(len(wave))) for wave in waves]
        with inference():
            found = self.frames(padded).cpu().numpy()
        counts = [-(-len(wave) // self.hop) for wave in waves]
        assert max(counts) <= found.shape[2], f"{self.name} gave {found.shape[2]} frames for {max(counts)}"
        return [flatten(row[:, :count], self.size) for row, count in zip(found, counts, strict=True)]


def import_package(name: str, module: str) -> Any:
    """The package of codec `name`. Raises UserError where it, or one that it needs, is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"codec {name}: module {error.name} is not installed; install the extra: pip install 'ttt-dist[codecs]'"
        ) from error


def find_weights(folder: Path, names: Sequence[str]) -> Path:
    """The first of the names that is a file of the folder. Raises UserError where none is."""
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder}: holds none of {', '.join(names)}; name the folder that was downloaded")
    return found


def read_weights(path: Path) -> dict[str, Tensor]:
    """A file's tensors by name: of safetensors, or of what torch.save wrote, of which only tensors are read."""
    if path.suffix == ".safetensors":
        return load_file(path)
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def fill(model: nn.Module, weights: Mapping[str, Tensor], name: str, path: Path, may_lack: str = "nothing") -> None:
    """Put the weights into the model. Raises UserError unless the file has what the model has, but for names that end so."""
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise UserError(f"{path}: does not fit ({str(error).splitlines()[-1].strip()}); {REMEDY}") from error
    missing = [key for key in missing if not key.endswith(may_lack)]
    if missing:
        raise UserError(f"{path}: lacks {len(missing)} weights of {name}, first {missing[0]}; {REMEDY}")
    if unexpected:
        raise UserError(f"{path}: has {len(unexpected)} weights that {name} has not, first {unexpected[0]}; {REMEDY}")
