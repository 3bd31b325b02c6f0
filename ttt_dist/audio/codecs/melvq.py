"""The built-in speech tokenizer `melvq`: log-mel frames, stacked per code and quantised by k-means.

Learnt from the corpus in seconds, without a neural network: good enough to train and show the whole framework on two
CPU cores. One code covers `1 / frame_rate` seconds: 10 ms frames are stacked (4 at 25 Hz, 8 at 12.5 Hz), each code
by itself, so that codes and samples stay aligned. Two choices make the codes tell words apart across speakers and
recordings: an utterance is brought to one loudness before its analysis, and the loudness that is left in a stack
(its mean log-mel value) counts less in the distance than the stack's shape does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ttt_dist.audio.codec import Codec, Codes
from ttt_dist.audio.codecs.kmeans import learn_centroids, nearest
from ttt_dist.audio.logmel import LogMel, normalise_loudness
from ttt_dist.audio.vocoder import synthesise
from ttt_dist.util.atomic_files import atomic_write
from ttt_dist.util.errors import UserError
from ttt_dist.util.json_files import read_object

FORMAT = 1  # of the folder; raise it where codes of an old folder would change


@dataclass(frozen=True, kw_only=True)
class MelVQSettings:
    """What decides the codes, beside the corpus."""

    sample_rate: int = 16000  # Hz; 8000 for telephone speech
    frame_rate: float = 25.0  # codes per second: 12.5, 20, 25 or 50
    codebook_size: int = 512
    num_mels: int = 40
    loudness_weight: float = 0.3  # of a stack's mean in the distance; its shape counts 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.frame_rate <= 0 or 100 % self.frame_rate:
            raise UserError(f"frame_rate {self.frame_rate}: codes are stacks of 10 ms frames; use 12.5, 20, 25 or 50")
        if self.sample_rate < 8000 or self.sample_rate % 200:
            raise UserError(
                f"sample_rate {self.sample_rate}: use a multiple of 200 from 8000 on, such as 8000 or 16000"
            )
        if self.codebook_size < 2:
            raise UserError(f"codebook_size {self.codebook_size}: use at least 2")

    @property
    def stack(self) -> int:
        """10 ms frames per code."""
        return round(100 / self.frame_rate)


class MelVQ(Codec):
    """The codec; `codebook` [K, stack, num_mels] holds each code's mean log-mel frames."""

    name = "melvq"

    def __init__(self, settings: MelVQSettings, codebook: Tensor, mean: Tensor) -> None:
        self.settings = settings
        self.sample_rate = settings.sample_rate
        self.frame_rate = settings.frame_rate
        self.codebook_size = settings.codebook_size
        self.codebook = codebook.float().contiguous()
        self.mean = mean.float().contiguous()  # [num_mels], of the corpus
        self.logmel = LogMel(settings.sample_rate, settings.num_mels)
        self._points = self.points(self.codebook)
        self.hash = _hash_of(settings, self.codebook, self.mean)

    @classmethod
    def learn(cls, waves: Iterable[Tensor], settings: MelVQSettings) -> MelVQ:
        """Learn statistics and codebook from waveforms [T_i] at the settings' sample rate.

        Of a larger corpus a seeded random subset of stacks is used, so memory stays bounded.
        Deterministic in (waves, settings). Raises UserError where the corpus has fewer stacks than codes.
        """
        logmel = LogMel(settings.sample_rate, settings.num_mels)
        stacks = _sample_stacks(waves, logmel, settings, stacks_to_learn_from(settings))
        if len(stacks) < settings.codebook_size:
            raise UserError(
                f"codebook_size {settings.codebook_size}: the corpus has only {len(stacks)} stretches of "
                f"{1000 / settings.frame_rate:.0f} ms to learn from; use a smaller codebook or more speech"
            )
        mean = stacks.mean(dim=(0, 1))
        blank = cls(settings, torch.zeros(settings.codebook_size, settings.stack, settings.num_mels), mean)
        centroids = learn_centroids(blank.points(stacks), settings.codebook_size, settings.seed)
        return cls(settings, blank._unpoint(centroids), mean)

    def encode(self, waves: Sequence[Tensor]) -> list[Codes]:
        """Each waveform [T_i] -> codes [ceil(T_i / hop)]; the last one's missing samples count as silence.

        One waveform at a time, so that not a bit of the result depends on the batch; a long one piece by piece.
        """
        return [self._encode_one(wave) for wave in waves]

    def decode(self, codes: Codes) -> Tensor:
        """Codes [n] -> waveform [n * hop]; raises UserError on a code outside the codebook."""
        codes = np.asarray(codes)
        if codes.size and (codes.min() < 0 or codes.max() >= self.codebook_size):
            wrong = int(codes.max() if codes.max() >= self.codebook_size else codes.min())
            raise UserError(
                f"code {wrong}: outside melvq's codebook of {self.codebook_size}; was it made by this codec?"
            )
        if not len(codes):
            return torch.zeros(0)
        frames = self.codebook[torch.from_numpy(codes.astype(np.int64))].flatten(0, 1)
        return synthesise(frames, self.logmel, self.settings.stack)

    def stacks(self, wave: Tensor) -> Tensor:
        """[T] with T a multiple of the hop -> log-mel frames [T / hop, stack, num_mels]."""
        return self.logmel(wave).unflatten(0, (-1, self.settings.stack))

    def points(self, stacks: Tensor) -> Tensor:
        """Stacks [n, stack, num_mels] -> points [n, D] of the space in which the nearest centroid is sought."""
        centred = stacks - self.mean
        loudness = centred.mean(dim=(1, 2), keepdim=True)
        return (centred - (1 - self.settings.loudness_weight) * loudness).flatten(1)

    def _unpoint(self, points: Tensor) -> Tensor:
        shaped = points.unflatten(1, (self.settings.stack, self.settings.num_mels))
        loudness = shaped.mean(dim=(1, 2), keepdim=True) / self.settings.loudness_weight
        return shaped + (1 - self.settings.loudness_weight) * loudness + self.mean

    def _encode_one(self, wave: Tensor) -> Codes:
        whole = _pad_to(normalise_loudness(wave, self.sample_rate), self.hop)
        piece = 500 * self.hop
        edge = self.hop  # samples each side that the outermost frames of a piece see
        codes = []
        for start in range(0, len(whole), piece):
            lo, hi = max(start - edge, 0), min(start + piece + edge, len(whole))
            stop = min(start + piece, len(whole))
            stacks = self.stacks(whole[lo:hi])[(start - lo) // self.hop : (stop - lo) // self.hop]
            codes.append(nearest(self.points(stacks), self._points))
        return torch.cat(codes).numpy().astype(np.int32) if codes else np.zeros(0, np.int32)

    def save(self, folder: str | Path) -> None:
        """Write codec.json (settings and hash) and codebook.safetensors."""
        folder = Path(folder)
        with atomic_write(folder / "codebook.safetensors", "wb") as file:
            file.write(save({"codebook": self.codebook, "mean": self.mean}))
        with atomic_write(folder / "codec.json") as file:
            json.dump({"name": self.name, **asdict(self.settings), "format": FORMAT, "hash": self.hash}, file, indent=2)
            file.write("\n")

    @classmethod
    def load(cls, folder: str | Path) -> MelVQ:
        """Read a folder that `save` wrote; UserError names the file where it is damaged."""
        folder = Path(folder)
        try:
            description = read_object(folder / "codec.json", "learn the codec again")
            settings = MelVQSettings(**{key: description[key] for key in MelVQSettings.__dataclass_fields__})
            tensors = load_file(folder / "codebook.safetensors")
            codebook, mean = (tensors[name].float().contiguous() for name in ("codebook", "mean"))
            found = _hash_of(settings, codebook, mean)
        except UserError:
            raise
        except (KeyError, OSError, SafetensorError, RuntimeError, TypeError, ArithmeticError) as error:
            raise UserError(f"{folder}: melvq codec is damaged ({error}); restore it or learn it again") from error
        if found != description.get("hash"):  # before anything is made of the sizes that it states
            raise UserError(
                f"{folder}: melvq contents have hash {found[:12]}, codec.json says "
                f"{str(description.get('hash'))[:12]}; restore the folder or learn the codec again"
            )
        return cls(settings, codebook, mean)


def _hash_of(settings: MelVQSettings, codebook: Tensor, mean: Tensor) -> str:
    total = hashlib.sha256(json.dumps([MelVQ.name, FORMAT, asdict(settings)], sort_keys=True).encode())
    for tensor in (codebook, mean):
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def stacks_to_learn_from(settings: MelVQSettings) -> int:
    """The most stacks that are used to learn a codebook: at least 50 per code."""
    return max(100_000, 50 * settings.codebook_size)


def _sample_stacks(waves: Iterable[Tensor], logmel: LogMel, settings: MelVQSettings, most: int) -> Tensor:
    """At most `most` stacks [n, stack, num_mels] of the corpus, drawn evenly: each gets a random rank, lowest stay."""
    generator = torch.Generator().manual_seed(settings.seed)
    hop = round(settings.sample_rate / settings.frame_rate)
    kept: list[Tensor] = []
    ranks: list[Tensor] = []
    count = 0
    for wave in waves:
        padded = _pad_to(normalise_loudness(wave, settings.sample_rate), hop)
        kept.append(logmel(padded).unflatten(0, (-1, settings.stack)))
        ranks.append(torch.rand(len(kept[-1]), generator=generator, dtype=torch.float64))
        count += len(kept[-1])
        if count > 2 * most:
            kept, ranks = _lowest(kept, ranks, most)
            count = most
    if not kept:
        return torch.zeros(0, settings.stack, settings.num_mels)
    kept, _ = _lowest(kept, ranks, most)
    return kept[0]


def _lowest(kept: list[Tensor], ranks: list[Tensor], most: int) -> tuple[list[Tensor], list[Tensor]]:
    stacks, rank = torch.cat(kept), torch.cat(ranks)
    chosen = rank.argsort()[:most].sort().values
    return [stacks[chosen]], [rank[chosen]]


def _pad_to(wave: Tensor, multiple: int) -> Tensor:
    return torch.nn.functional.pad(wave, (0, -len(wave) % multiple))
