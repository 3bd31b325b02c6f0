"""The released way to make token ids of speech: ChatML strings with `<|audio_N|>` per code, through the text tokenizer.

That tokenizer is trained by `tokenizers`, of the extra `test`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

TEXT_RATIO, AUDIO_RATIO = 13, 26


class ReleasedWay:
    """A Hugging Face tokenizer to which the codes were added as special tokens."""

    def __init__(self, folder: Path, texts: Sequence[str], num_codes: int) -> None:
        self.tokenizer_folder = folder / "text"
        self._folder = folder / "with-codes"
        train_tokenizer(self.tokenizer_folder, texts)
        add_codes(self.tokenizer_folder, self._folder, num_codes)

    def load(self) -> None:
        """Open the tokenizer, which is no part of the rate."""
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(self._folder)

    def run(self, utterances: Sequence[tuple[np.ndarray, str]]) -> int:
        """ASR and TTS samples of codes and texts, as ids; returns how many tokens there are."""
        num_tokens = 0
        for codes, text in utterances:
            for turns in (asr(codes, text), tts(codes, text)):
                chat = "\n".join(f"<|im_start|>{role}\n{content}<|im_end|>" for role, content in turns)
                num_tokens += len(self._tokenizer(chat, add_special_tokens=False)["input_ids"])
        return num_tokens


def asr(codes: np.ndarray, text: str) -> list[tuple[str, str]]:
    """Turns of an ASR sample as the release writes it: speech, then the transcript interleaved with the same codes."""
    heard = "".join(f"<|audio_{code}|>" for code in codes.tolist())
    user = f"<|begin_of_audio|>{heard}<|end_of_audio|>"
    return [("system", "Transcribe the speech."), ("user", user), ("assistant", interleaved(codes, text))]


def tts(codes: np.ndarray, text: str) -> list[tuple[str, str]]:
    """Turns of a TTS sample: the text, then the text interleaved with its speech."""
    return [("system", "Speak the text."), ("user", text), ("assistant", interleaved(codes, text))]


def interleaved(codes: np.ndarray, text: str) -> str:
    """Text and speech in turn; the release counts text in tokens, here words stand for them."""
    sound = [f"<|audio_{code}|>" for code in codes.tolist()]
    words, response = text.split(), ""
    while len(words) > TEXT_RATIO and len(sound) > AUDIO_RATIO:
        response += (
            " ".join(words[:TEXT_RATIO]) + f"<|begin_of_audio|>{''.join(sound[:AUDIO_RATIO])}<|end_of_audio_new|> "
        )
        words, sound = words[TEXT_RATIO:], sound[AUDIO_RATIO:]
    return response + " ".join(words) + f"<|begin_of_quad|>{''.join(sound)}<|end_of_audio_span_last|>"


def train_tokenizer(folder: Path, texts: Sequence[str]) -> None:
    """A byte-level BPE as Qwen2.5's, small, with ChatML's specials."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=1000, special_tokens=specials, initial_alphabet=alphabet)
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=specials[0]).save_pretrained(folder)


def add_codes(source: Path, target: Path, num_codes: int) -> None:
    """The tokenizer with the release's delimiters and one special token per code."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    delimiters = (
        "begin_of_audio",
        "end_of_audio",
        "begin_of_quad",
        "mask_token",
        "end_of_audio_new",
        "end_of_audio_span_last",
    )
    pieces = [f"<|{name}|>" for name in delimiters] + [f"<|audio_{code}|>" for code in range(num_codes)]
    tokenizer.add_tokens(pieces, special_tokens=True)
    tokenizer.save_pretrained(target)
