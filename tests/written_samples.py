"""What templates are to write, told in another way: as text of the released format, one piece at a time."""

from collections.abc import Iterable

import numpy as np
from hypothesis import strategies as st

from ttt_dist.sequence.templates import TemplateSettings
from ttt_dist.sequence.text_tokenizer import TextTokenizer
from ttt_dist.sequence.tokens import AUDIO_SPECIALS, PIECES, TEXT_SPECIALS, TokenLayout

NUM_CODES = 12


class Characters(TextTokenizer):
    """One entry per character of ASCII: what was encoded can be read back exactly."""

    def __init__(self) -> None:
        self.name, self.hash, self.size, self.files = "characters", "0" * 64, 128, []

    def encode(self, text: str) -> list[int]:
        return list(text.encode("ascii"))

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(ids).decode("ascii")

    def special_id(self, piece: str) -> int | None:
        return None


def layout_of(seed: int) -> TokenLayout:
    """Special tokens in any order on both sides of the codes."""
    slots = np.random.default_rng(seed).permutation([*range(128, 134), *range(134 + NUM_CODES, 137 + NUM_CODES)])
    names = [*TEXT_SPECIALS, *AUDIO_SPECIALS]
    special_ids = {name: int(slot) for name, slot in zip(names, slots, strict=True)}
    return TokenLayout(
        tokenizer="characters",
        tokenizer_hash="0" * 64,
        num_text_tokens=128,
        special_ids=special_ids,
        first_code=134,
        num_codes=NUM_CODES,
        vocab_size=137 + NUM_CODES,
        padded_vocab_size=256,
    )


layouts = st.integers(0, 5).map(layout_of)
words = st.text("abc d.", min_size=1, max_size=30).filter(str.strip)
codes_of_clip = st.lists(st.integers(0, NUM_CODES - 1), min_size=1, max_size=40).map(np.array)
all_settings = st.builds(
    TemplateSettings,
    text_ratio=st.integers(1, 8),
    audio_ratio=st.integers(1, 9),
    last_span=st.sampled_from(["rest", "chunks"]),
    name_speaker=st.booleans(),
)


def written(ids: Iterable[int], layout: TokenLayout) -> str:
    """Ids as a string of the released format."""
    names = {token: PIECES[name] for name, token in layout.special_ids.items()}
    return "".join(
        names.get(i) or (chr(i) if i < 128 else f"<|audio_{i - layout.first_code}|>") for i in np.asarray(ids).tolist()
    )


def spoken(text: str, codes: Iterable[int], settings: TemplateSettings) -> str:
    """The interleaving of docs/method.md#tokens-and-layouts, one piece at a time."""
    out, text, codes = "", text.strip(), list(codes)
    while len(text) > settings.text_ratio and len(codes) > settings.audio_ratio:
        out += text[: settings.text_ratio] + inner(codes[: settings.audio_ratio])
        text, codes = text[settings.text_ratio :], codes[settings.audio_ratio :]
    out += text
    while settings.last_span == "chunks" and len(codes) > settings.audio_ratio:
        out += inner(codes[: settings.audio_ratio])
        codes = codes[settings.audio_ratio :]
    return out + last(codes)


def named(codes: Iterable[int]) -> str:
    return "".join(f"<|audio_{code}|>" for code in codes)


def inner(codes: Iterable[int]) -> str:
    return f"<|begin_of_audio|>{named(codes)}<|end_of_audio_new|>"


def last(codes: Iterable[int]) -> str:
    return f"<|begin_of_quad|>{named(codes)}<|end_of_audio_span_last|>"


def heard(codes: Iterable[int]) -> str:
    return f"<|begin_of_audio|>{named(codes)}<|end_of_audio|>"


def conversation(*turns: tuple[str, str]) -> tuple[str, str]:
    """ChatML, and the targets alone."""
    whole = "\n".join(f"<|im_start|>{role}\n{content}<|im_end|>" for role, content in turns)
    return whole, "".join(content + "<|im_end|>" for role, content in turns if role == "assistant")
