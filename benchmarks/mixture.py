"""A mixture of training samples with realistic lengths and structure; their ids are random.

Of every ten samples three are ASR, two TTS, two audio chat, one text chat, one an audio caption, one interleaved
text and speech: the tasks of the paper's data. Speech has 12.5 codes and about 3.5 text tokens a second. Lengths are
uniform within the ranges below; padded to 2,048 the mixture fills about 22 % of its rows (the released data: 13 to 40 %).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from data_prep.packing.binpack import num_windows, pack_window
from ttt_dist.sequence.sample import Sample, Segment
from ttt_dist.sequence.templates import TemplateSettings
from ttt_dist.sequence.tokens import TokenLayout

CODES_PER_SECOND = 12.5
CODES_PER_WORD = CODES_PER_SECOND / 3.5  # a "word" is one text token
SYSTEM_WORDS = 45  # the released ASR prompt
LONGEST = 2048  # tokens, as in the paper


class Writer:
    """Draws samples of each kind."""

    def __init__(self, layout: TokenLayout, seed: int) -> None:
        self.layout = layout
        self.rng = np.random.default_rng(seed)
        self.settings = TemplateSettings()

    def asr(self) -> Sample:
        """2 to 16 seconds of speech; its transcript with the same codes."""
        codes = self.codes(self.seconds(2, 16))
        return self.exchange(self.heard(codes), self.spoken(self.words(len(codes) / CODES_PER_WORD), codes))

    def tts(self) -> Sample:
        """8 to 60 words; the same with their speech."""
        words = self.words(self.between(8, 60))
        return self.exchange(words, self.spoken(words, self.codes(len(words) * CODES_PER_WORD)))

    def audio_chat(self) -> Sample:
        """A question of 2 to 10 seconds; an answer of 30 to 150 words with its speech."""
        words = self.words(self.between(30, 150))
        answer = self.spoken(words, self.codes(len(words) * CODES_PER_WORD))
        return self.exchange(self.heard(self.codes(self.seconds(2, 10))), answer)

    def text_chat(self) -> Sample:
        """10 to 80 words; an answer of 50 to 500."""
        return self.exchange(self.words(self.between(10, 80)), self.words(self.between(50, 500)))

    def caption(self) -> Sample:
        """8 to 30 seconds of sound; a caption of 8 to 20 words with its speech."""
        words = self.words(self.between(8, 20))
        answer = self.spoken(words, self.codes(len(words) * CODES_PER_WORD))
        return self.exchange(self.heard(self.codes(self.seconds(8, 30))), answer)

    def interleaved(self) -> Sample:
        """150 to 400 words in sentences of 8 to 30, each followed by its speech; all of it is target."""
        left = self.between(150, 400)
        parts: list[Any] = []
        while left > 0:
            words = self.words(min(self.between(8, 30), left))
            left -= len(words)
            codes = self.layout.code_ids(self.codes(len(words) * CODES_PER_WORD))
            parts += [words, [self.layout.begin_of_audio], codes, [self.layout.end_of_audio_new]]
        return Sample.of([Segment(np.concatenate([*parts, [self.layout.im_end]])[:LONGEST], True)])

    def seconds(self, low: float, high: float) -> float:
        """Codes of a recording whose length lies between."""
        return float(self.rng.uniform(low, high)) * CODES_PER_SECOND

    def between(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def words(self, number: float) -> np.ndarray:
        return self.rng.integers(0, self.layout.pad, max(round(number), 1)).astype(np.int32)

    def codes(self, number: float) -> np.ndarray:
        return self.rng.integers(0, self.layout.num_codes, max(round(number), 1))

    def heard(self, codes: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [[self.layout.begin_of_audio], self.layout.code_ids(codes), [self.layout.end_of_audio]]
        ).astype(np.int32)

    def spoken(self, words: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """13 words and 26 codes in turn; the last span, often a long one, carries what is left."""
        layout = self.layout
        parts: list[Any] = []
        text_ratio, audio_ratio, codes = self.settings.text_ratio, self.settings.audio_ratio, layout.code_ids(codes)
        while len(words) > text_ratio and len(codes) > audio_ratio:
            parts += [words[:text_ratio], [layout.begin_of_audio], codes[:audio_ratio], [layout.end_of_audio_new]]
            words, codes = words[text_ratio:], codes[audio_ratio:]
        parts += [words, [layout.begin_of_quad], codes, [layout.end_of_audio_span_last]]
        return np.concatenate(parts).astype(np.int32)

    def exchange(self, prompt: np.ndarray, answer: np.ndarray) -> Sample:
        """System, user and assistant in ChatML; a header is three tokens."""
        start, end = [self.layout.im_start], [self.layout.im_end]
        turns: list[Any] = [
            start,
            self.words(SYSTEM_WORDS + 2),
            end,
            start,
            self.words(2),
            prompt,
            end,
            start,
            self.words(2),
        ]
        segments = Segment(np.concatenate(turns), False), Segment(np.concatenate([answer, end]), True)
        return Sample.of(list(segments))


def draw_samples(layout: TokenLayout, number: int, seed: int) -> list[Sample]:
    """`number` samples, the mixture exact in every ten and the same for the same seed."""
    writer = Writer(layout, seed)
    ten: list[Callable[[], Sample]] = [writer.asr, writer.audio_chat, writer.tts, writer.interleaved, writer.asr]
    ten += [writer.text_chat, writer.caption, writer.asr, writer.audio_chat, writer.tts]
    return [ten[index % len(ten)]() for index in range(number)]


def pack_samples(samples: list[Sample], seq_len: int, seed: int) -> list[list[Sample]]:
    """Packs as `data_prep pack` makes them."""
    lengths = np.array([len(sample) for sample in samples])
    windows = (pack_window(lengths, number, seq_len, seed)[1] for number in range(num_windows(len(lengths))))
    return [[samples[index] for index in pack] for window in windows for pack in window]
