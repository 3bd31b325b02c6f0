"""What training reads, packed shards and plain text sets: opened, fit to be mixed, and with the weights that the settings give them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from socket import gethostname
from typing import Protocol

from ttt_dist.config.data import DataConfig
from ttt_dist.data.blend import BlendOrder, Order, SingleSource, Stage, exact
from ttt_dist.data.metadata import is_text_set
from ttt_dist.data.set_index import Check
from ttt_dist.data.shards import ShardReader
from ttt_dist.data.step_sizes import StepSizes
from ttt_dist.data.text_set import TextSet
from ttt_dist.sequence.sample import Sample
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.console import warn
from ttt_dist.util.errors import UserError


class PackReader(Protocol):
    """Packs to train on: those of a shard, or rows of a text set."""

    prefix: Path
    layout: TokenLayout

    @property
    def seq_len(self) -> int | None: ...

    @property
    def counts(self) -> Mapping[str, int]:
        """packs, samples (of a text set its documents), tokens, audio_tokens."""

    @property
    def checksum(self) -> str | None:
        """Equal where two machines have the same packs under this name, as far as can be told without reading them."""

    def require_files(self, check: Check) -> None:
        """Raise UserError naming a file that is missing or has another size, as far as is asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> list[Sample]: ...


@dataclass(frozen=True)
class Sources:
    """What training reads."""

    readers: dict[str, PackReader]
    """By name, in order of the names."""
    stages: tuple[Stage, ...] = ()
    """When which source has which weight; empty for the one shard of data.train."""
    epoch_packs: Fraction | None = None
    """Packs in the epochs that data.blend asks for, over all sources; None where it gives weights."""

    @classmethod
    def open(cls, data: DataConfig, check: Check = "sizes") -> "Sources":
        """Open what the settings name. Raises UserError where a shard is missing or broken, or two cannot be mixed."""
        prefixes = data.prefixes()
        packed = [name for name, prefix in prefixes.items() if not (data.blend and is_text_set(prefix))]
        if not packed:
            raise UserError(
                f"data.blend: all sources are plain text sets, whose ids say neither layout nor seq_len ({prefixes[min(prefixes)]}, ...); "
                "add a packed shard, be it with weight 0"
            )
        shards = {name: ShardReader(prefixes[name], check) for name in packed}
        require_alike(list(shards.values()))
        like = _with_audio(list(shards.values()))[0]
        readers: dict[str, PackReader] = {}
        for name, prefix in prefixes.items():
            key, tokenizer = f"data.blend.{name}.tokenizer", data.blend[name].tokenizer if data.blend else None
            if name not in shards:
                readers[name] = open_text_set(prefix, like, tokenizer, key)
            elif tokenizer is None:
                readers[name] = shards[name]
            else:
                raise UserError(f"{key}={tokenizer}: {prefix}.json says which it is; leave the key out")
        if not data.blend:
            return cls(readers)
        sizes = {name: len(reader) for name, reader in readers.items()}
        weights, epoch_packs = first_weights(data, sizes)
        stages = [Stage.of(0, weights)]
        for stage in data.stages:
            stages.append(Stage.of(stage.from_step, {name: exact(weight) for name, weight in stage.weights.items()}))
        return cls(readers, tuple(stages), epoch_packs)

    @property
    def first(self) -> ShardReader:
        """The one whose layout, seq_len and codec are compared with others: the first that holds audio."""
        return _with_audio([reader for reader in self.readers.values() if isinstance(reader, ShardReader)])[0]

    @property
    def checksums(self) -> dict[str, str | None]:
        """By which machines tell whether they have the same sources."""
        return {name: reader.checksum for name, reader in self.readers.items()}

    def require_files(self, check: Check) -> None:
        """Raise UserError naming a file of a shard that is missing or has another size."""
        for reader in self.readers.values():
            reader.require_files(check)

    def require_same(self, checksums: Mapping[str, str | None]) -> None:
        """Raise UserError where another process has other shards, by its `checksums`."""
        for name, mine in self.checksums.items():
            if mine != checksums[name]:
                raise UserError(
                    f"{self.readers[name].prefix}: has checksum {str(mine)[:12]} on {gethostname()}, "
                    f"{str(checksums[name])[:12]} where rank 0 is; give all machines the same shards"
                )

    def order(self, seed: int, sizes: StepSizes) -> Order:
        """Which source and pack is read at (step, slot)."""
        num_packs = {name: len(reader) for name, reader in self.readers.items()}
        if self.stages:
            return BlendOrder(num_packs, self.stages, seed, sizes)
        [(name, number)] = num_packs.items()
        return SingleSource(name, number, seed, sizes)

    def epoch_steps(self, sizes: StepSizes) -> int | None:
        """Steps after which every source has been read as often as data.blend's epochs say; None where it gives weights."""
        return None if self.epoch_packs is None else sizes.step_at(math.ceil(self.epoch_packs))


def first_weights(data: DataConfig, num_packs: Mapping[str, int]) -> tuple[dict[str, Fraction], Fraction | None]:
    """The blend's weights at step 0, and the packs that its epochs are: a weight of epochs x packs uses all up together."""
    weights: dict[str, Fraction] = {}
    by_epochs = False
    for name, source in data.blend.items():
        if source.epochs is not None:
            weights[name], by_epochs = exact(source.epochs) * num_packs[name], True
        elif source.weight is not None:
            weights[name] = exact(source.weight)
    return weights, Fraction(sum(weights.values())) if by_epochs else None


def require_alike(readers: Sequence[ShardReader]) -> None:
    """Refuse to mix shards of different layouts, lengths, tokenizers or codecs, naming two of them. Raises UserError."""
    first = readers[0]
    for reader in readers[1:]:
        first.layout.require_same(reader.layout, f"{reader.prefix}.json (there), {first.prefix}.json (here)")
        if reader.seq_len != first.seq_len:
            raise UserError(
                f"{reader.prefix}: packed at seq_len {reader.seq_len}, {first.prefix} at {first.seq_len}; "
                "pack the sources of a blend alike"
            )
        mine, theirs = (shard.meta.get("beside", {}).get("tokenizer") for shard in (reader, first))
        if mine != theirs:
            raise UserError(
                f"{reader.prefix}: its tokenizer has hash {str(mine)[:12]}, that of {first.prefix} {str(theirs)[:12]}; "
                "compose both with one tokenizer"
            )
    with_audio = _with_audio(readers)
    for reader in with_audio[1:]:
        reader.require_same_codec(with_audio[0])


def _with_audio(readers: Sequence[ShardReader]) -> Sequence[ShardReader]:
    """Those that hold codes: text alone fits any codec. All of them where none does."""
    return [reader for reader in readers if reader.counts["audio_tokens"]] or readers


def open_text_set(prefix: str, like: ShardReader, tokenizer: str | None, key: str) -> TextSet:
    """A plain text set as rows that go with the packs of `like`. Raises UserError where `tokenizer`, the value of `key`, is
    another than that of `like`; without one, warns that nobody can tell."""
    from ttt_dist.sequence.text_tokenizer import load_tokenizer  # its packages take a moment to import

    if like.seq_len is None or like.seq_len < 2:
        raise UserError(
            f"{like.prefix}: has no packs, as long as which rows of {prefix} would be; run data_prep pack first"
        )
    wanted = like.layout.tokenizer_hash
    if tokenizer is None:
        warn(
            f"{prefix}.idx: does not say which tokenizer made its ids; if it is another than {like.layout.tokenizer} of {like.prefix}, "
            f"training learns nonsense: set {key} to its folder, to have the two compared"
        )
    elif wanted and (found := load_tokenizer(tokenizer).hash) != wanted:
        raise UserError(
            f"{key}={tokenizer}: has hash {found[:12]}, the tokenizer of {like.prefix} {wanted[:12]}; "
            f"make {prefix} with that tokenizer"
        )
    return TextSet(prefix, like.layout, like.seq_len)
