"""From corpora to shards: the section `corpora` of a recipe, read by `python -m data_prep run`. train.py reads none of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ttt_dist.config.section import Section, require

Flags = dict[str, Any]
"""Flags of a step's command without their dashes: `seq_len: 2048`, `retry: true`, `min: [duration=1, snr=10]`."""


@dataclass(kw_only=True)
class CorporaConfig(Section):
    """What is made of which corpus, step by step."""

    out: str = "data"
    """Folder of all that is made: manifests, codes, samples, and the shards that training reads."""
    folders: dict[str, str] = field(default_factory=dict)
    """What lies elsewhere on each machine, by name: `{name}` in a flag, in codec and in tokenizer stands for it."""
    codec: str = "melvq"
    """NAME:FOLDER, as for encode; melvq alone is learnt from the first set that is encoded."""
    tokenizer: str | None = None
    """Folder or model, as for compose; null: one is learnt from the first set that is composed."""
    every: dict[str, Flags] = field(default_factory=dict)
    """By step: flags that it has in every set."""
    sets: dict[str, dict[str, Flags | str]] = field(default_factory=dict)
    """By name, in the order in which they are made: the steps of a set, and `from`, the set or manifest that it goes on from."""

    def check(self, key: str) -> None:
        """Raise UserError where a set holds what is no step, or its `from` no name."""
        for name, steps in self.sets.items():
            for step, flags in steps.items():
                told = f"{key}.sets.{name}.{step}"
                require(isinstance(flags, str) == (step == "from"), f"{told}: steps have flags, `from` a name")
