"""The settings of what training reads: one shard, or a blend of sources with stages (the section `data` of a run)."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from ttt_dist.config.section import NonNegativeFloat, NonNegativeInt, Section, brief, require


@dataclass
class SourceConfig(Section):
    """One source of a blend: a packed shard or a plain text set of Megatron's, and how much of the training it is."""

    shard: str = ""
    """Prefix of the source's shard, or of a text set (PREFIX.bin and PREFIX.idx without a PREFIX.json)."""
    weight: NonNegativeFloat | None = None
    """Share of the packs, relative to the weights of the other sources; 0: only stages read it."""
    epochs: NonNegativeFloat | None = None
    """How often the source is read, relative to its size: in place of weight, for all sources of a blend or for none."""
    tokenizer: str | None = None
    """Of a text set: the tokenizer that made its ids, which is compared with the other sources' one; null: a warning."""

    def check(self, key: str) -> None:
        """Raise UserError naming what is wrong below `key`."""
        require(bool(self.shard), f"{key}.shard names no shard; give its prefix, e.g. {key}.shard=shards/train")
        given = (self.weight is not None) + (self.epochs is not None)
        remedy = f"both; {key}.weight=null takes one away" if given else "none"
        require(given == 1, f"{key}: give one of {key}.weight and {key}.epochs, not {remedy}")


@dataclass
class StageConfig(Section):
    """Other weights from a step on, until the next stage."""

    from_step: NonNegativeInt = 0
    """The first step of the stage, from 1 on."""
    weights: dict[str, NonNegativeFloat] = field(default_factory=dict)
    """Weight of each source by name; those left out are not read."""

    def check_after(self, key: str, earlier: int, sources: Collection[str]) -> None:
        """Raise UserError naming what is wrong below `key`, for a stage that follows one at step `earlier`."""
        after = f"the stage before it begins at {earlier}" if earlier else "data.blend holds from step 0"
        require(self.from_step > earlier, f"{key}.from_step={self.from_step} must be above {earlier}: {after}")
        for name in self.weights:
            require(name in sources, f"{key}.weights.{name}: no such source; data.blend names {', '.join(sources)}")
        require(any(self.weights.values()), f"{key}.weights: all are zero; give a source a weight above 0")


@dataclass(kw_only=True)
class DataConfig(Section):
    """Where the packed shards are, and which of them training reads when."""

    train: str = ""
    """Prefix of the training shard (PREFIX.bin, PREFIX.idx, PREFIX.json); several shards: blend, in place of it."""
    blend: dict[str, SourceConfig] = field(default_factory=dict)
    """Sources by name, each with a shard and a weight (or epochs)."""
    stages: list[StageConfig] = field(default_factory=list)
    """Changes of the blend's weights, in order of their steps."""
    valid: str | dict[str, str] | None = None
    """Prefix of the held-out shard or text set, or several by name, each evaluated by itself; null: no evaluation loss."""
    skip: list[tuple[NonNegativeInt, NonNegativeInt]] = field(default_factory=list)
    """[[a, b], ...]: at step a, the packs that steps a to b - 1 would have read are passed over, and what follows moves up."""
    prefetch: NonNegativeInt = 1
    """Steps whose batches a background thread prepares ahead; 0: prepared when the step begins."""

    def prefixes(self) -> dict[str, str]:
        """Prefix of each training shard by the name of its source, in order of the names; `train` where there is no blend."""
        return {name: self.blend[name].shard for name in sorted(self.blend)} or {"train": self.train}

    @property
    def held_out(self) -> dict[str, str]:
        """Prefix of each held-out shard by name; `` is that of a single one."""
        return self.valid if isinstance(self.valid, dict) else {"": self.valid} if self.valid else {}

    def check(self, key: str) -> None:
        """Raise UserError for a blend that says nothing or two things."""
        for name in self.held_out if isinstance(self.valid, dict) else ():
            require(
                re.fullmatch(r"[a-zA-Z0-9_-]{1,100}", name) is not None and self.held_out[name] != "",
                f"data.valid.{brief(name)}: give a name of letters, digits, - and _, and a prefix",
            )
        for name, source in self.blend.items():
            require(
                re.fullmatch(r"[\w-]{1,100}", name) is not None,
                f"data.blend: the name {brief(name)} of a source must be of letters, digits, - and _, at most 100",
            )
            source.check(f"data.blend.{name}")
        last = -1
        for number, (first, end) in enumerate(self.skip):
            require(last <= first < end, f"data.skip.{number}=[{first}, {end}]: give [a, b] with a < b, in order of a")
            last = first
        self._check_shards()
        self._check_amounts()
        require(
            bool(self.blend) or not self.stages,
            "data.stages are changes of data.blend, which names no source; name one, or set data.stages=[]",
        )
        for number, (stage, before) in enumerate(zip(self.stages, [StageConfig(), *self.stages], strict=False)):
            stage.check_after(f"data.stages.{number}", before.from_step, self.blend)

    def _check_shards(self) -> None:
        """No shard is two sources: each would be read in an order of its own, and its packs twice."""
        names: dict[str, str] = {}
        for name, source in self.blend.items():
            other = names.setdefault(source.shard, name)
            require(
                other == name,
                f"data.blend.{other}.shard and data.blend.{name}.shard are both {brief(source.shard)}; keep one and raise its weight",
            )

    def _check_amounts(self) -> None:
        """All sources of a blend have weights, or all have epochs."""
        with_epochs = [name for name, source in self.blend.items() if source.epochs is not None]
        weighted = [name for name in self.blend if name not in with_epochs]
        require(
            not (with_epochs and weighted),
            f"data.blend.{(with_epochs or [''])[0]}.epochs and data.blend.{(weighted or [''])[0]}.weight do not mix; "
            "give all sources epochs, or all of them weights",
        )
        require(
            not (with_epochs and self.stages),
            "data.stages change weights, but data.blend counts in epochs; give its sources weights, or set data.stages=[]",
        )
        amounts = [source.epochs or source.weight for source in self.blend.values()]
        require(any(amounts) or not amounts, "data.blend: all weights are zero; give a source one above 0")
