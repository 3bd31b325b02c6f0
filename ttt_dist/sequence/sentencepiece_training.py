"""Training a sentencepiece model on the texts of a corpus, all of them."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from ttt_dist.sequence.sentencepiece_tokenizer import SentencePieceTokenizer
from ttt_dist.util.atomic_files import atomic_write

LONGEST = 4192
"""Bytes of a line that sentencepiece trains on; a longer one it passes over."""
RESERVED = "\u2585"
"""Stands for the unknown inside its trainer, which passes over a line that has one."""


def train_sentencepiece(
    texts: Iterable[str], folder: str | Path, vocab_size: int = 400, byte_fallback: bool = True
) -> SentencePieceTokenizer:
    """Train a BPE model on `texts` and save it as folder/tokenizer.model.

    `vocab_size` is an upper bound: a small corpus may have fewer pieces. With byte fallback any text can be encoded.
    """
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in training_lines(text)),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=byte_fallback,
        character_coverage=1.0,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["\n"],
        bos_id=-1,
        eos_id=-1,
        num_threads=1,  # the result depends on the number of threads
        max_sentence_length=LONGEST,
        minloglevel=2,
    )
    path = Path(folder) / "tokenizer.model"
    with atomic_write(path, "wb") as file:
        file.write(model.getvalue())
    return SentencePieceTokenizer(path)


def training_lines(text: str) -> Iterator[str]:
    """A text in pieces that the trainer takes: at most LONGEST bytes, cut at a space, a line's end or, at worst, anywhere.

    The space at a cut is left out, as the trainer puts one before each line.
    """
    whole = text.encode("utf-8", "ignore")  # halves of surrogate pairs are nothing to learn
    for part in whole.split(RESERVED.encode()):
        while len(part) > LONGEST:
            space = max(part.rfind(b" ", 1, LONGEST + 1), part.rfind(b"\n", 1, LONGEST + 1))
            end = space if space > 0 else LONGEST
            while part[end] & 0xC0 == 0x80:  # within a character
                end -= 1
            yield part[:end].decode()
            part = part[end:].removeprefix(b" ")
        if part:
            yield part.decode()
