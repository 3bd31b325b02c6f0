"""The shards that training reads: opened, fit to be mixed, and with the weights that the settings give them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from socket import gethostname

from ttt_dist.config.data import DataConfig
from ttt_dist.data.blend import BlendOrder, Order, SingleSource, Stage, exact
from ttt_dist.data.set_index import Check
from ttt_dist.data.shards import ShardReader
from ttt_dist.data.step_sizes import StepSizes
from ttt_dist.util.errors import UserError


@dataclass(frozen=True)
class Sources:
    """What training reads."""

    readers: dict[str, ShardReader]
    """By name, in order of the names."""
    stages: tuple[Stage, ...] = ()
    """When which source has which weight; empty for the one shard of data.train."""
    epoch_packs: Fraction | None = None
    """Packs in the epochs that data.blend asks for, over all sources; None where it gives weights."""

    @classmethod
    def open(cls, data: DataConfig, check: Check = "sizes") -> "Sources":
        """Open what the settings name. Raises UserError where a shard is missing or broken, or two cannot be mixed."""
        readers = {name: ShardReader(prefix, check) for name, prefix in data.prefixes().items()}
        require_alike(list(readers.values()))
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
        return _with_audio(list(self.readers.values()))[0]

    @property
    def checksums(self) -> dict[str, str | None]:
        """Of each source that of its JSON, which holds those of all its files."""
        return {name: reader.meta.get("checksum") for name, reader in self.readers.items()}

    def require_files(self, check: Check) -> None:
        """Raise UserError naming a file of a shard that is missing or has another size."""
        for reader in self.readers.values():
            reader.require_files(check)

    def require_same(self, checksums: Mapping[str, str | None]) -> None:
        """Raise UserError where another process has other shards, by its `checksums`."""
        for name, mine in self.checksums.items():
            if mine != checksums[name]:
                raise UserError(
                    f"{self.readers[name].prefix}.json: has checksum {str(mine)[:12]} on {gethostname()}, "
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
        return None if self.epoch_packs is None else sizes.steps_of(math.ceil(self.epoch_packs))


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
    return [reader for reader in readers if reader.meta["counts"]["audio_tokens"]] or readers
