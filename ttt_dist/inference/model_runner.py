"""One forward over requests in different phases: what is final stays in a cache, only what may still change is computed.

Choices are made on the device, for all requests of a phase at once, and copied to the host together.
"""

from collections.abc import Sequence as Ordered
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from ttt_dist.config.decode import DecodeSettings
from ttt_dist.inference.batch import Row
from ttt_dist.inference.cuda_graphs import ForwardRunner
from ttt_dist.inference.sampling import COLD, MEASURES, choose_codes, choose_text, guided
from ttt_dist.inference.sequence_state import Choice, DecodeContext, Phase, SequenceState, allowed_ids, uniforms
from ttt_dist.model.attention.kv_cache import SequenceCache
from ttt_dist.model.layers import Head
from ttt_dist.model.screen import Screen
from ttt_dist.model.tiles import TiledHead
from ttt_dist.model.transformer import Transformer
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.sequence.visibility import visible_end_of_spans

AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 26}  # logits: on the CPU they stay in its caches, and in memory that is reused
FEWEST_ROWS = 64  # at once: the head is read once for them


@dataclass
class Asked:
    """A request whose next choices are wanted, and its places in the cache."""

    state: SequenceState
    context: DecodeContext
    own: SequenceCache
    guide: SequenceCache | None
    """Of the same with all context masked, for guidance."""

    @property
    def is_guided(self) -> bool:
        """Whether the next forward takes a second one: over a block of masks."""
        return self.guide is not None and self.state.is_denoised

    @property
    def is_sampled(self) -> bool:
        """Whether the next forward draws tokens."""
        settings = self.context.settings
        if self.context.phase(self.state) == "text":
            return settings.temperature > 0
        return settings.code_temperature > 0 or settings.repeats == "drawn"


@dataclass
class Wanted:
    """Places that a choice is wanted for, in one phase; arrays [n]."""

    asked: Ordered[Asked]
    owners: np.ndarray
    """Which of `asked` each belongs to."""
    places: np.ndarray
    """Index into the owner's sequence."""
    uniforms: np.ndarray
    """A random number for each whose owner samples."""
    drafts: np.ndarray
    """The token that was drafted for what is written there; -1 where none was."""
    before: np.ndarray
    """The code, then its column, that what is written there repeats with its probability only; -1 where none."""

    @classmethod
    def of(cls, asked: Ordered[Asked]) -> "Wanted":
        """All that some requests need, which are in one phase."""
        places = [one.context.needed(one.state) for one in asked]
        owners = np.repeat(np.arange(len(asked)), [len(part) for part in places])
        numbers = [
            uniforms(one.state, part, one.context) if one.is_sampled else np.zeros(len(part))
            for one, part in zip(asked, places, strict=True)
        ]
        drafts = np.concatenate([one.context.draft(one.state) for one in asked])
        before = np.concatenate(
            [one.context.may_repeat(one.state, part) for one, part in zip(asked, places, strict=True)]
        )
        return cls(asked, owners, np.concatenate(places), np.concatenate(numbers), drafts, before)

    def part(self, which: slice | np.ndarray) -> "Wanted":
        """Some of the places."""
        arrays = (self.owners, self.places, self.uniforms, self.drafts, self.before)
        return Wanted(self.asked, *(array[which] for array in arrays))

    def of_owners(self, values: Ordered[float] | np.ndarray) -> np.ndarray:
        """A value for each place, from one for each of `asked`."""
        return np.asarray(values)[self.owners]


class ModelRunner:
    """Makes the choices that decoding needs next, for one session."""

    def __init__(self, model: Transformer, layout: TokenLayout) -> None:
        self.runner = ForwardRunner(model)
        self.cache = self.runner.cache
        self.layout = layout
        self._stretches: dict[Phase, tuple[slice, Tensor]] = {}

    @torch.inference_mode()
    def __call__(self, asked: Ordered[Asked]) -> list[list[Choice]]:
        """What the model would write where each needs it, then where its `openings` do; the cache takes in what has become final."""
        if not asked:
            return []
        openings = [one.context.openings(one.state) for one in asked]
        rows = [_row(one, opened, self.layout.mask) for one, opened in zip(asked, openings, strict=True)]
        parts: list[Asked] = []
        for one, opened in zip(asked, openings, strict=True):
            parts += [one, *(Asked(state, one.context, one.own, None) for state in opened)]
        guides: dict[int, int] = {}
        for index, one in enumerate(parts):
            if one.is_guided and one.guide is not None:
                guides[index] = len(parts) + len(guides)
                rows.append(self._guide_row(one, one.guide))
        hidden = self.runner(rows)
        counts = [len(one.context.needed(one.state)) for one in parts] + [len(row.needed) for row in rows[len(asked) :]]
        starts = np.cumsum([0, *counts])
        places: list[np.ndarray] = []
        found: list[Tensor] = []
        for phase in dict.fromkeys(one.context.phase(one.state) for one in parts):
            members = [index for index, one in enumerate(parts) if one.context.phase(one.state) == phase]
            places.append(np.concatenate([np.arange(*starts[index : index + 2]) for index in members]))
            shifts = np.array([starts[guides[index]] - starts[index] if index in guides else 0 for index in members])
            found += self._choose(phase, hidden, places[-1], shifts, Wanted.of([parts[index] for index in members]))
        table = np.empty((3, starts[len(parts)]))
        table[:, np.concatenate(places)] = torch.cat(found, dim=1).cpu().numpy()  # the one copy of a forward
        columns = iter(np.split(table, starts[1 : len(parts)], axis=1))
        chosen = (Choice(ids.astype(np.int64), *sureness) for ids, *sureness in columns)
        return [list(islice(chosen, 1 + len(opened))) for opened in openings]

    def _choose(
        self, phase: Phase, hidden: Tensor, own: np.ndarray, shifts: np.ndarray, wanted: Wanted
    ) -> list[Tensor]:
        """Ids, probability and confidence [3, n] of one phase, whose hidden states are rows `own` [n], in parts.

        `shifts` leads from the rows of each owner to those of its guide; 0 where it has none.
        """
        columns, _ = self._stretch(phase)
        wanted = replace(wanted, before=np.where(wanted.before < 0, -1, wanted.before - columns.start))
        size = max(AT_ONCE[hidden.device.type] // (columns.stop - columns.start), FEWEST_ROWS)
        head, found = self.runner.model.head, []
        for start in range(0, len(own), size):
            rows, part = own[start : start + size], wanted.part(slice(start, start + size))
            # A head makes its screen when it is asked for it: only where somebody is greedy.
            if phase == "text" and isinstance(head, TiledHead) and is_greedy(part).any() and head.screen is not None:
                found.append(self._by_screen(head.screen, hidden, rows, shifts, part))
            else:
                found.append(self._by_logits(phase, hidden, rows, shifts, part))
        return found

    def _by_screen(
        self, screen: Screen, hidden: Tensor, rows: np.ndarray, shifts: np.ndarray, wanted: Wanted
    ) -> Tensor:
        """`_choose` of text: greedy choices by screening, and what that leaves by logits."""
        columns, others = self._stretch("text")
        screened, found = is_greedy(wanted), torch.zeros(3, len(rows), dtype=torch.float64)
        ids = likeliest(screen, hidden[rows[screened]], columns, others, wanted.part(screened))
        found[0, screened] = (ids + columns.start).double()
        left = ~screened
        left[screened] = (ids < 0).numpy()
        if left.any():
            found[:, left] = self._by_logits("text", hidden, rows[left], shifts, wanted.part(left))
        return found

    def _by_logits(self, phase: Phase, hidden: Tensor, rows: np.ndarray, shifts: np.ndarray, wanted: Wanted) -> Tensor:
        columns, others = self._stretch(phase)
        logits = self._logits(phase, hidden[self.runner.tensor(rows)])
        is_guided = np.flatnonzero(wanted.of_owners(shifts))
        if len(is_guided):
            scales = wanted.of_owners([one.context.settings.cfg for one in wanted.asked])[is_guided].astype(np.float32)
            sources = self.runner.tensor((rows + wanted.of_owners(shifts))[is_guided])
            targets, scale = self.runner.tensor(is_guided), self.runner.tensor(scales).unsqueeze(-1)
            logits[targets] = guided(logits[targets], self._logits(phase, hidden[sources]), scale)
        logits[:, others] = float("-inf")
        ids, *sureness = choices(phase, logits, wanted)
        ids = self._with_drafts(ids, logits, wanted, columns.start)
        return torch.stack([(ids + columns.start).double(), *(one.double() for one in sureness)])

    def _with_drafts(self, ids: Tensor, weights: Tensor, wanted: Wanted, first: int) -> Tensor:
        """Choices [n], or what was drafted where its weight of [n, V] comes near enough to the greatest, which is 1."""
        ratios = wanted.of_owners([one.context.settings.accept_ratio for one in wanted.asked])
        rows = np.flatnonzero((wanted.drafts >= 0) & (ratios < 1) & (wanted.drafts - first != wanted.before))
        if not len(rows):
            return ids
        where, drafts = self.runner.tensor(rows), self.runner.tensor(wanted.drafts[rows] - first)
        chosen = ids[where]
        is_near = weights[where, drafts] >= self.runner.tensor(ratios[rows])
        is_end = torch.isin(chosen + first, self.runner.tensor(np.array(wanted.asked[0].context.ends)))
        return ids.index_copy(0, where, torch.where(is_near & ~is_end, drafts, chosen))

    def _logits(self, phase: Phase, hidden: Tensor) -> Tensor:
        """Logits [n, stretch] of hidden states [n, H], at least fp32."""
        head = self.runner.model.head
        assert isinstance(head, Head)
        logits = head.product(hidden, self._stretch(phase)[0])
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _stretch(self, phase: Phase) -> tuple[slice, Tensor]:
        """The part of the vocabulary that the allowed ids of a phase span, and which of its columns are not allowed."""
        if phase not in self._stretches:
            allowed = allowed_ids(self.layout, phase)
            columns = slice(int(allowed[0]), int(allowed[-1]) + 1)
            is_other = np.ones(columns.stop - columns.start, dtype=bool)
            is_other[allowed - columns.start] = False
            self._stretches[phase] = columns, self.runner.tensor(np.flatnonzero(is_other))
        return self._stretches[phase]

    def _guide_row(self, one: Asked, guide: SequenceCache) -> Row:
        state = one.state
        masked = np.where(np.arange(len(state.ids)) < state.num_committed, self.layout.mask, state.ids)
        return _own_row(state, one.context, guide, masked, state.num_committed)


def is_greedy(wanted: Wanted) -> np.ndarray:
    """Which of the wanted places [n] take the likeliest text."""
    return wanted.of_owners([one.context.settings.temperature < COLD for one in wanted.asked])


def likeliest(screen: Screen, hidden: Tensor, columns: slice, others: Tensor, wanted: Wanted) -> Tensor:
    """Columns [n] that are likeliest at hidden states [n, H], where `wanted` are, without logits; -1 where those are needed."""
    return screen.likeliest(hidden, columns, others)


def choices(phase: Phase, logits: Tensor, wanted: Wanted) -> tuple[Tensor, Tensor, Tensor]:
    """Chosen columns of logits [n, V], the model's probability of them and its confidence by the rule of their owners.

    The last two are zeros in text. The logits are used up.
    """
    numbers = torch.from_numpy(wanted.uniforms)
    if phase != "text":
        heats = wanted.of_owners([one.context.settings.code_temperature for one in wanted.asked])
        rules = np.array([one.context.settings.remasking for one in wanted.asked])
        others = {rule: np.flatnonzero(wanted.of_owners(rules == rule)) for rule in MEASURES if rule in rules}
        before = wanted.before if (wanted.before >= 0).any() else None
        return choose_codes(logits, torch.from_numpy(heats), numbers, others, before)
    ids = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for settings, rows in _by_settings(wanted).items():
        where = torch.tensor(rows, device=logits.device)
        some = logits if len(rows) == len(logits) else logits[where]
        ids[where] = choose_text(some, settings, numbers[rows].to(logits.device))
    nothing = torch.zeros_like(ids, dtype=logits.dtype)
    return ids, nothing, nothing


def _by_settings(wanted: Wanted) -> dict[DecodeSettings, list[int]]:
    found: dict[DecodeSettings, list[int]] = {}
    for row, owner in enumerate(wanted.owners.tolist()):
        found.setdefault(wanted.asked[owner].context.settings, []).append(row)
    return found


def _row(one: Asked, openings: Ordered[SequenceState], mask: int) -> Row:
    """The new tokens of a request, and behind them what is read ahead: drafts, and the openers that may come, with a draft each."""
    state, context = one.state, one.context
    row = _own_row(state, context, one.own, state.ids, context.num_cacheable(state))
    row = _with_blocks_ahead(row, context.blocks_ahead(state), mask)
    for opened in openings:
        (draft,) = context.blocks_ahead(opened)
        row = _with_opening(row, opened, draft, mask)
    return row


def _own_row(state: SequenceState, context: DecodeContext, sequence: SequenceCache, ids: np.ndarray, final: int) -> Row:
    start = sequence.length
    sees = np.zeros((3, len(ids) - start), dtype=np.int64)
    sees[0] = start + visible_end_of_spans(state.span_ids[start:])
    return Row(ids[start:], np.arange(start, len(ids)), sees, sequence, context.needed(state) - start, final)


def _with_opening(row: Row, opened: SequenceState, draft: range, mask: int) -> Row:
    """A row and, behind it, an opener and the masks of its draft, which see all before the opener, it and each other."""
    place, size = len(opened.ids) - 1, 1 + len(draft)
    ends = np.full(size, row.end + size)
    ends[0] = row.end + 1
    is_read = np.ones(size, dtype=bool)
    is_read[1:2] = False  # what stands at the first mask the opener tells
    return row._replace(
        ids=np.concatenate([row.ids, opened.ids[-1:], np.full(len(draft), mask, row.ids.dtype)]),
        positions=np.append(row.positions, np.arange(place, place + size)),
        sees=np.append(row.sees, np.stack([np.full(size, place), np.full(size, row.end), ends]), axis=1),
        needed=np.append(row.needed, len(row.ids) + np.flatnonzero(is_read)),
    )


def _with_blocks_ahead(row: Row, blocks: Ordered[range], mask: int) -> Row:
    """A row and blocks of masks behind it, each of which sees the sequence up to its own place, and itself."""
    sizes = np.array([len(block) for block in blocks], dtype=np.int64)
    if not sizes.sum():
        return row
    starts = row.end + np.cumsum(sizes) - sizes
    firsts = np.array([block.start for block in blocks])
    sees = np.repeat(np.stack([firsts, starts, starts + sizes]), sizes, axis=1)
    positions = np.concatenate([np.asarray(block, dtype=np.int64) for block in blocks])
    is_read = np.ones(sizes.sum(), dtype=bool)
    is_read[(starts - row.end)[sizes > 0]] = False  # what stands at the first mask of a block the draft's reading tells
    num_own = len(row.needed) - is_read.sum()
    return row._replace(
        ids=np.append(row.ids, np.full(sizes.sum(), mask, row.ids.dtype)),
        positions=np.append(row.positions, positions),
        sees=np.concatenate([row.sees, sees], axis=1),
        needed=np.append(row.needed[:num_own], len(row.ids) + np.flatnonzero(is_read)),
    )
