"""Who sees whom: the one definition of the modality-aware mask, and the forms that attention backends use.

A token is described by three integers: its sample in the pack (0 = padding), its position in the sample, and its span
(0 = causal, otherwise a number unique within the pack). A later objective with a second, noised stream of a span at the
same positions adds one integer here and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def visible(sample_q: Any, position_q: Any, span_q: Any, sample_k: Any, position_k: Any, span_k: Any) -> Any:
    """Whether query q sees key k (docs/method.md#who-sees-whom). Works on integers and on tensors that broadcast.

    Same sample, not padding, and k not later than q or both in one audio span.
    """
    return (
        (sample_q == sample_k) & (sample_q != 0) & ((position_k <= position_q) | ((span_q == span_k) & (span_q != 0)))
    )


def dense_mask(sample_ids: Tensor, position_ids: Tensor, span_ids: Tensor) -> Tensor:
    """Visibility as bool [..., S, S] (query, key) from ids [..., S]: the reference for backends, and what `show` draws."""
    q = (sample_ids.unsqueeze(-1), position_ids.unsqueeze(-1), span_ids.unsqueeze(-1))
    k = (sample_ids.unsqueeze(-2), position_ids.unsqueeze(-2), span_ids.unsqueeze(-2))
    return visible(*q, *k)


def visible_end(sample_ids: Tensor, span_ids: Tensor) -> Tensor:
    """Exclusive end of what each query sees, int64 [..., S], as an index into the row.

    Samples and spans are contiguous in a row, so a query sees one interval: from its sample's start to this end.
    Padding sees nothing: its end is 0.
    """
    import torch

    num_tokens = sample_ids.shape[-1]
    index = torch.arange(num_tokens, device=sample_ids.device).expand(sample_ids.shape)
    last = torch.ones_like(sample_ids, dtype=torch.bool)  # last token of its span, or a causal token
    last[..., :-1] = (span_ids[..., 1:] != span_ids[..., :-1]) | (span_ids[..., :-1] == 0)
    ends = torch.where(last, index + 1, num_tokens + 1)
    ends = ends.flip(-1).cummin(-1).values.flip(-1)  # nearest end at or after each token
    return torch.where(sample_ids != 0, ends, 0)


def visible_end_of_spans(span_ids: np.ndarray) -> np.ndarray:
    """`visible_end` of one sample [n] in numpy, for decoding: a tenth of the time for a few tokens."""
    last = np.ones(len(span_ids), dtype=bool)
    last[:-1] = (span_ids[1:] != span_ids[:-1]) | (span_ids[:-1] == 0)
    ends = np.flatnonzero(last) + 1
    return ends[np.searchsorted(ends, np.arange(len(span_ids)), side="right")]
