"""Rows A4 to A7: what a tokenizer's file means."""

import json
from pathlib import Path
from typing import Any

from kit import main, module, row, write
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXT = "The year 2026: don't count 12345 words, naïve cafés"


def bpe(folder: Path, config: dict[str, Any] | None = None, model_type: str | None = None) -> Path:
    """A published folder: a byte-level BPE with lower case and digits by threes, as no class of transformers has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(r"\d{1,3}|\s+|[^\s\d]+"), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT.lower()] * 20, trainer)
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True)])
    tokenizer.add_tokens([AddedToken("<|im_end|>", special=False)])
    write(folder / "tokenizer.json", tokenizer.to_str())
    write(folder / "tokenizer_config.json", json.dumps(config or {}))
    if model_type:
        write(folder / "config.json", json.dumps({"model_type": model_type}))
    return folder


def load(path: Path) -> Any:
    return module("ttt_dist.sequence.text_tokenizer").load_tokenizer(path)


@row(
    "A4",
    "a qwen2 folder, its tokenizer.json, our copy: ids",
    "^(\\d+), \\1, \\1 ids",
    "text_tokenizer::a_copy_means_the_same",
)
def copied(folder: Path) -> str:
    source = bpe(folder / "source", {"tokenizer_class": "Qwen2Tokenizer"}, "qwen2")
    tokenizer = load(source)
    tokenizer.save(folder / "copy")
    file = Tokenizer.from_file(str(source / "tokenizer.json"))
    counts = len(file.encode(TEXT).ids), len(tokenizer.encode(TEXT)), len(load(folder / "copy").encode(TEXT))
    return f"{counts[0]}, {counts[1]}, {counts[2]} ids"


@row(
    "A5",
    "ids up to 499 in 402 entries: first code",
    "first code [5-9]\\d\\d",
    "text_tokenizer::a_vocabulary_with_holes",
)
def holes(folder: Path) -> str:
    values = json.loads((bpe(folder) / "tokenizer.json").read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary[next(reversed(vocabulary))] = 499
    values["added_tokens"] = []
    write(folder / "tokenizer.json", json.dumps(values))
    layout = module("ttt_dist.sequence.tokens").extend(load(folder), 32)
    return f"text ids up to 499, first code {layout.first_code}"


@row(
    "A6",
    "a text with <|im_end|>, added with special: false",
    "^plain",
    "text_tokenizer::no_text_becomes_a_special_token",
)
def added(folder: Path) -> str:
    tokenizer = load(bpe(folder))
    special, ids = tokenizer.special_id("<|im_end|>"), tokenizer.encode("say <|im_end|> now")
    return f"{'special' if special in ids else 'plain'}: {ids}"


@row(
    "A6",
    "the same with sentencepiece's user-defined <|im_end|>",
    "^plain",
    "text_tokenizer::no_text_becomes_a_special_token",
)
def user_defined(folder: Path) -> str:
    import sentencepiece

    lines = iter([TEXT, "say what now", "nothing else"] * 30)
    path = folder / "tokenizer.model"
    with path.open("wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=out, vocab_size=40, user_defined_symbols=["<|im_end|>"], minloglevel=2
        )
    tokenizer = load(path)
    special, ids = tokenizer.special_id("<|im_end|>"), tokenizer.encode("say <|im_end|> now")
    return f"{'special' if special in ids else 'plain'}: {ids}"


@row("A7", "a tokenizer learnt from texts of 9 kB: tokens of one", "^5 tokens", "text_tokenizer::every_text_teaches")
def long_texts(folder: Path) -> str:
    words = ["zebra", "quartz", "jukebox", "vixen", "gymnast"]
    texts = [" ".join(words * 300), "a short text"]
    train = module("ttt_dist.sequence.text_tokenizer").train_sentencepiece
    tokenizer = train(iter(texts), folder / "t", 400)
    tokenizer = tokenizer or load(folder / "t")
    return f"{len(tokenizer.encode(' '.join(words)))} tokens of {len(words)} words"


if __name__ == "__main__":
    main()
