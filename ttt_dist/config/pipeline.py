"""What a recipe says beyond the training: `corpora`, and the sections `prep` and `evaluation` of tools/pipeline.py and its kin."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ttt_dist.config.corpora import CorporaConfig
from ttt_dist.config.decode import DecodeSettings
from ttt_dist.config.run import Config
from ttt_dist.config.section import PositiveFloat, PositiveInt, Section, brief, require


@dataclass(kw_only=True)
class PrepConfig(Section):
    """From recordings of words to shards: what tools/pipeline.py does before training. train.py reads none of it."""

    pattern: str = "{text}_{speaker}_{index}.wav"
    """File names of the recordings; {text}, {speaker} and {index} are needed."""
    holdout_every: PositiveInt = 10
    """Every n-th recording index is kept for held-out utterances."""
    train_utterances: PositiveInt = 20000
    """Random strings of words built for training."""
    valid_utterances: PositiveInt = 400
    """... from held-out recordings, for the evaluation loss."""
    test_utterances: PositiveInt = 400
    """... from held-out recordings, for the scores."""
    min_words: PositiveInt = 1
    """Fewest words of an utterance."""
    max_words: PositiveInt = 5
    """Most words of an utterance."""
    gap: str = "0.0:0.15"
    """Silence before each word, drawn between two bounds in seconds."""
    tail: str = "0.0:0.3"
    """Silence after the last word."""
    sample_rate: PositiveInt = 16000
    """Hz, of the codec."""
    frame_rate: PositiveFloat = 12.5
    """Codes per second."""
    codebook_size: PositiveInt = 512
    """Codes of the codec."""
    text_vocab_size: PositiveInt = 400
    """Entries of the text tokenizer that is trained, at most."""
    templates: str = "asr,tts"
    """What samples are made of each utterance."""
    text_ratio: PositiveInt = 13
    """Text tokens between spans of speech."""
    audio_ratio: PositiveInt = 26
    """Codes of every span but the last."""
    name_speaker: bool = True
    """Name the speaker in text-to-speech prompts."""
    seq_len: PositiveInt = 1024
    """Tokens of a pack."""

    def check(self, key: str) -> None:
        """Raise UserError for file names without what is needed of them, and bounds that are none."""
        lacking = next((name for name in ("{text}", "{speaker}", "{index}") if name not in self.pattern), None)
        require(
            lacking is None, f"{key}.pattern={brief(self.pattern)} lacks {lacking}; write it where file names have it"
        )
        require(
            self.min_words <= self.max_words,
            f"{key}.min_words={self.min_words} is above {key}.max_words={self.max_words}; swap them",
        )
        for name in ("gap", "tail"):
            value = getattr(self, name)
            found = re.fullmatch(r"(\d*\.?\d+):(\d*\.?\d+)", value)
            require(
                found is not None and float(found[1]) <= float(found[2]),
                f"{key}.{name}={brief(value)} is no pair of seconds, the lower first; write e.g. 0.0:0.3",
            )


@dataclass
class EvaluationConfig(Section):
    """Scores that tools/pipeline.py takes after training. train.py reads none of it."""

    asr_utterances: PositiveInt = 300
    """Held-out utterances transcribed."""
    tts_utterances: PositiveInt = 100
    """Held-out texts spoken."""
    normaliser: str | None = None
    """Of texts before they are compared (docs/evaluation.md), spelt-en where they are English without digits; by default each
    text's language decides."""
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    """How: as the flags of evaluate.py."""

    def check(self, key: str) -> None:
        """Raise UserError for what tasks decide."""
        require(
            not self.decode.stop_at_last_span,
            f"{key}.decode.stop_at_last_span=true: transcribing stops there, speaking does not; take it away",
        )


@dataclass
class Recipe(Config):
    """A run, and what is done before and after it. How exports are decoded is said in `evaluation`."""

    corpora: CorporaConfig = field(default_factory=CorporaConfig)
    prep: PrepConfig = field(default_factory=PrepConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
