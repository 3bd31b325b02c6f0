"""Random layouts and samples for property tests, and shared paths."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from ttt_dist.sequence.sample import Sample, Segment
from ttt_dist.sequence.tokens import AUDIO_SPECIALS, TEXT_SPECIALS, TokenLayout

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real recordings and samples are not beside this checkout"
)

NUM_TEXT, NUM_CODES = 20, 12


def tiny_layout(shuffle_seed: int | None = None) -> TokenLayout:
    """A small vocabulary; with a seed, the special tokens lie in another order (classes are no ranges of ids)."""
    names = [*TEXT_SPECIALS, *AUDIO_SPECIALS]
    slots = [*range(NUM_TEXT, NUM_TEXT + 6), *range(NUM_TEXT + 6 + NUM_CODES, NUM_TEXT + 9 + NUM_CODES)]
    if shuffle_seed is not None:
        slots = list(np.random.default_rng(shuffle_seed).permutation(slots))
    special_ids = {name: int(slot) for name, slot in zip(names, slots, strict=True)}
    total = NUM_TEXT + 9 + NUM_CODES
    return TokenLayout(
        tokenizer="tiny",
        tokenizer_hash="0" * 64,
        num_text_tokens=NUM_TEXT,
        special_ids=special_ids,
        first_code=NUM_TEXT + 6,
        num_codes=NUM_CODES,
        vocab_size=total,
        padded_vocab_size=64,
    )


@st.composite
def turns(draw: st.DrawFn, layout: TokenLayout, is_target: bool) -> Segment:
    """A prompt or response: text and audio pieces in any order."""
    ids: list[int] = []
    for _ in range(draw(st.integers(1, 3))):
        ids += draw(st.lists(st.integers(0, NUM_TEXT - 1), min_size=0, max_size=4))
        if draw(st.booleans()):
            codes = draw(st.lists(st.integers(0, NUM_CODES - 1), min_size=1, max_size=24))
            ids += [layout.begin_of_audio, *(layout.first_code + c for c in codes)]
            ids += [layout.end_of_audio_new if is_target else layout.end_of_audio]
    return Segment(np.array([*ids, layout.im_end], dtype=np.int32), is_target)


@st.composite
def samples(draw: st.DrawFn, layout: TokenLayout) -> Sample:
    """A prompt and a response, sometimes twice, sometimes text or audio alone."""
    segments = []
    for _ in range(draw(st.integers(1, 2))):
        segments += [draw(turns(layout, False)), draw(turns(layout, True))]
    return Sample.of(segments[draw(st.integers(0, 1)) :])


def packs(layout: TokenLayout) -> st.SearchStrategy[list[list[Sample]]]:
    """One to three packs of up to four samples; packs may be empty."""
    return st.lists(st.lists(samples(layout), max_size=4), min_size=1, max_size=3)
