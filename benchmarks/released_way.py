"""The released way to make token ids of speech: ChatML strings with `<|audio_N|>` per code, through the text tokenizer."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

PROMPT = "Transcribe the speech."
TEXT_RATIO, AUDIO_RATIO = 13, 26


class ReleasedWay:
    """A JSONL of messages, and a Hugging Face tokenizer to which the codes were added as special tokens."""

    def __init__(self, folder: Path, utterances: Sequence[tuple[np.ndarray, str]], num_codes: int) -> None:
        self.tokenizer_folder = folder / "text"
        self._folder = folder / "with-codes"
        train_tokenizer(self.tokenizer_folder, [text for _, text in utterances])
        add_codes(self.tokenizer_folder, self._folder, num_codes)
        self._data = folder / "train.jsonl"
        with open(self._data, "w", encoding="utf-8") as file:
            for codes, text in utterances:
                file.write(json.dumps({"messages": messages(codes, text)}) + "\n")

    def run(self) -> int:
        """Every record to ids; returns how many tokens there are."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self._folder)
        num_tokens = 0
        with open(self._data, encoding="utf-8") as file:
            for line in file:
                turns = json.loads(line)["messages"]
                text = "\n".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>" for turn in turns)
                num_tokens += len(tokenizer(text, add_special_tokens=False)["input_ids"])
        return num_tokens


def messages(codes: np.ndarray, text: str) -> list[dict[str, str]]:
    """An ASR sample as the release writes it: speech, then the transcript interleaved with the same codes."""
    sound = [f"<|audio_{code}|>" for code in codes.tolist()]
    words, response = text.split(), ""
    while len(words) > TEXT_RATIO and len(sound) > AUDIO_RATIO:
        response += (
            " ".join(words[:TEXT_RATIO]) + f"<|begin_of_audio|>{''.join(sound[:AUDIO_RATIO])}<|end_of_audio_new|> "
        )
        words, sound = words[TEXT_RATIO:], sound[AUDIO_RATIO:]
    response += " ".join(words) + f"<|begin_of_quad|>{''.join(sound)}<|end_of_audio_span_last|>"
    heard = "".join(f"<|audio_{code}|>" for code in codes.tolist())
    return [
        {"role": "system", "content": PROMPT},
        {"role": "user", "content": f"<|begin_of_audio|>{heard}<|end_of_audio|>"},
        {"role": "assistant", "content": response},
    ]


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
