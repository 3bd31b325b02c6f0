"""One forward over requests in different phases: what is final stays in a cache, only what may still change is computed.

The new tokens of all requests lie end to end in one row, so no token is padding; each sequence attends to itself alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ttt_dist.inference.phases import Phase, Rules, State, allowed_ids
from ttt_dist.inference.sampling import guided
from ttt_dist.model.cache import CachePlan, KeyValueCache, NewTokens
from ttt_dist.model.layers import linear
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.sequence.visibility import visible_end


class Sequences:
    """The caches of one request: of what it says, and, for guidance, of the same with all context masked."""

    def __init__(self, has_guide: bool) -> None:
        self.cache = KeyValueCache()
        self.guide = KeyValueCache() if has_guide else None

    def is_guided(self, state: State) -> bool:
        """Whether the next forward takes a second one: over a block of masks."""
        return self.guide is not None and state.block_start is not None


class _Row(NamedTuple):
    """New tokens of one sequence."""

    ids: np.ndarray
    ends: Tensor
    cache: KeyValueCache
    needed: np.ndarray
    """Places among the new tokens whose logits are asked for."""
    phase: Phase
    final: int


class Forwards:
    """Computes the logits that decoding needs next, for one model."""

    def __init__(self, model: Transformer, layout: TokenLayout) -> None:
        self.model = model
        self.layout = layout
        self.device = next(model.parameters()).device
        self._stretches: dict[Phase, tuple[slice, Tensor]] = {}

    @torch.inference_mode()
    def __call__(self, requests: Sequence[tuple[State, Rules, Sequences]]) -> list[Tensor]:
        """Logits [n, allowed] at the n positions that each state needs; caches take in what has become final."""
        if not requests:
            return []
        rows, is_guided = [], []
        for state, rules, sequences in requests:
            rows.append(_row(state, rules, sequences.cache, state.ids, rules.final(state)))
            is_guided.append(sequences.is_guided(state))
        for (state, rules, sequences), guide in zip(requests, is_guided, strict=True):
            if guide and sequences.guide is not None:
                masked = np.where(np.arange(len(state.ids)) < state.settled, self.layout.mask, state.ids)
                rows.append(_row(state, rules, sequences.guide, masked, state.settled))
        logits = self._logits(rows)
        guides = iter(logits[len(requests) :])
        return [
            guided(own, next(guides), rules.settings.cfg) if guide else own
            for own, guide, (_, rules, _) in zip(logits, is_guided, requests, strict=False)
        ]

    def _logits(self, rows: list[_Row]) -> list[Tensor]:
        ids = np.concatenate([row.ids for row in rows])
        places = np.concatenate([np.arange(row.cache.length, row.cache.length + len(row.ids)) for row in rows])
        dtype = self.model.dtype
        plan = CachePlan([NewTokens.of(row.cache, row.ends, dtype, self.device) for row in rows])
        hidden = self.model.hidden(self._tensor(ids), self._tensor(places), plan)
        for row in rows:
            row.cache.length = row.final
        starts = np.cumsum([0, *(len(row.ids) for row in rows[:-1])])
        found: dict[int, Tensor] = {}
        for phase in dict.fromkeys(row.phase for row in rows):  # one product for all that choose among the same ids
            chosen = [number for number, row in enumerate(rows) if row.phase == phase]
            needed = [starts[number] + rows[number].needed for number in chosen]
            logits = self._choices(hidden[self._tensor(np.concatenate(needed))], phase)
            found.update(zip(chosen, logits.split([len(part) for part in needed]), strict=True))
        return [found[number] for number in range(len(rows))]

    def _choices(self, hidden: Tensor, phase: Phase) -> Tensor:
        """Logits of `allowed_ids` alone, at least fp32: only the stretch of the vocabulary that they span is computed."""
        if phase not in self._stretches:
            allowed = allowed_ids(self.layout, phase)
            rows = slice(int(allowed[0]), int(allowed[-1]) + 1)
            self._stretches[phase] = rows, self._tensor(allowed - rows.start)
        rows, columns = self._stretches[phase]
        weight = self.model.head.weight
        assert isinstance(weight, Tensor)
        logits = linear(hidden, weight[rows])[:, columns]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(self.device)


def _row(state: State, rules: Rules, cache: KeyValueCache, ids: np.ndarray, final: int) -> _Row:
    start = cache.length
    span_ids = torch.from_numpy(state.span_ids[start:].astype(np.int64))
    ends = start + visible_end(torch.ones_like(span_ids), span_ids)
    return _Row(ids[start:], ends, cache, rules.needed(state) - start, rules.phase(state), final)
