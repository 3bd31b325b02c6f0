"""An exported folder through `AutoTokenizer`: the ids of training, special tokens and codes both ways; or nothing at all."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceTrainer
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from tests.structures import SHARED, needs_shared
from tests.unit.test_text_tokenizer import TEXT, bpe, write
from ttt_dist.model.hf.auto_tokenizer import write_auto_tokenizer
from ttt_dist.sequence.text_tokenizer import TextTokenizer, load_tokenizer, train_sentencepiece
from ttt_dist.sequence.tokens import TokenLayout, extend, released

FAMILIES = ("qwen2", "qwen3", "llama", "mistral")
CORPUS = [
    "three one four",
    "naïve cafés, don't: 12345",
    "今天天气很好。哈哈哈哈",
    "a\n\nb  c",
    "यह हिन्दी है",
    "🙂 👩‍👧",
    TEXT,
]


def export(folder: Path, family: str, tokenizer: TextTokenizer, layout: TokenLayout) -> bool:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": family, "vocab_size": layout.vocab_size}))
    return write_auto_tokenizer(folder, tokenizer, layout)


def require_equal(folder: Path, tokenizer: TextTokenizer, layout: TokenLayout, texts: list[str], **how: Any) -> None:
    found = AutoTokenizer.from_pretrained(folder, **how)
    for text in texts:
        assert found(text)["input_ids"] == tokenizer.encode(text), text
        assert found.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    for number, piece in layout.pieces.items():
        named = found.convert_ids_to_tokens(number)
        assert found(named)["input_ids"] == [number] and found.decode([number]) == named
        assert named == piece or tokenizer.special_id(named) == number
    for code in (0, layout.num_codes - 1):
        assert found(f"<|audio_{code}|>")["input_ids"] == [layout.first_code + code]
    assert found("<|begin_of_audio|>")["input_ids"] == [layout.begin_of_audio]
    assert (found.eos_token_id, found.pad_token_id) == (layout.im_end, layout.pad)


def random_texts(number: int) -> list[str]:
    generator = random.Random(1)
    parts = [
        *"abc \n\t",
        "  ",
        "three",
        "one",
        "今",
        "天气",
        "哈",
        "हि",
        "न्",
        "🙂",
        "\u200d",
        "\u2581",
        "é",
        "e\u0301",
        "\x00",
        "<",
        "|>",
    ]
    return ["".join(generator.choices(parts, k=generator.randint(0, 40))) for _ in range(number)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["extend", "released"])
def test_a_trained_tokenizer(way: str, family: str, tmp_path: Path) -> None:
    tokenizer = train_sentencepiece(CORPUS * 20, tmp_path / "tokenizer", 420)
    layout = extend(tokenizer, 64) if way == "extend" else released(tokenizer.name, tokenizer.hash)
    assert export(tmp_path / "out", family, tokenizer, layout)
    texts = [*CORPUS, *random_texts(300)]
    if way == "released":
        layout = TokenLayout(**layout.to_dict() | {"num_codes": 40})  # enough of them
    require_equal(tmp_path / "out", tokenizer, layout, texts)
    require_equal(tmp_path / "out", tokenizer, layout, texts[:50], trust_remote_code=True)


@needs_shared
@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_tokenizer_of_another_family(family: str, tmp_path: Path) -> None:
    """GPT-2's splitting is not Qwen2's, which `transformers` gives to every tokenizer beside a qwen2."""
    tokenizer = load_tokenizer(SHARED / "gpt2-bpe")
    layout = extend(tokenizer, 32)
    assert export(tmp_path / "out", family, tokenizer, layout)
    require_equal(tmp_path / "out", tokenizer, layout, [*CORPUS, *random_texts(100)])


@pytest.mark.parametrize("kind", ["holes", "template", "own end", "unigram"])
def test_tokenizers_with_more_to_them(kind: str, tmp_path: Path) -> None:
    values = json.loads(bpe().to_str())
    if kind == "holes":
        values["added_tokens"].append(
            values["added_tokens"][0] | {"id": 499, "content": "<|im_end|>", "special": False}
        )
    if kind == "template":  # training puts no such token before a text
        bos = {"SpecialToken": {"id": "<unk>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
        known = {"<unk>": {"id": "<unk>", "ids": [0], "tokens": ["<unk>"]}}
        values["post_processor"] = {
            "type": "TemplateProcessing",
            "single": list(bos),
            "pair": list(bos),
            "special_tokens": known,
        }
    if kind == "unigram":
        pieces = [("<unk>", 0.0), ("▁", -3.0), *((chr(n), -9.0) for n in range(33, 127)), ("the", -2.0)]
        unigram = Tokenizer(models.Unigram(pieces, unk_id=0))
        unigram.pre_tokenizer = pre_tokenizers.Metaspace()
        values = json.loads(unigram.to_str())
    write(
        tmp_path / "tokenizer", bpe(), {"bos_token": "<unk>", "add_bos_token": True, "chat_template": "{{ messages }}"}
    )
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(values))
    tokenizer = load_tokenizer(tmp_path)
    layout = extend(tokenizer, 16, end_of_turn=0 if kind == "own end" else None)
    assert export(tmp_path / "out", "qwen2", tokenizer, layout)
    require_equal(tmp_path / "out", tokenizer, layout, ["the year", "12345 don't", ""])
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == "{{ messages }}"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["unigram", "scores", "normalised"])
def test_what_cannot_be_written_exactly_is_refused(kind: str, family: str, tmp_path: Path) -> None:
    tokenizer = train_sentencepiece(CORPUS * 20, tmp_path / "tokenizer", 420)
    proto = ModelProto.FromString(tokenizer.files[0].read_bytes())
    if kind == "scores":  # no merge of two entries leads to the first one of this
        for number, piece in enumerate(reversed(proto.pieces)):
            piece.score = 0.0 if number % 2 else piece.score
    elif kind == "normalised":
        proto.normalizer_spec.remove_extra_whitespaces = True
    else:
        (tmp_path / "c.txt").write_text("\n".join(CORPUS * 40))
        SentencePieceTrainer.train(
            input=str(tmp_path / "c.txt"),
            model_prefix=str(tmp_path / "m"),
            vocab_size=100,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        proto = ModelProto.FromString((tmp_path / "m.model").read_bytes())
    tokenizer.files[0].write_bytes(proto.SerializeToString())
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    if export(tmp_path / "out", family, tokenizer, layout := extend(tokenizer, 16)):
        require_equal(tmp_path / "out", tokenizer, layout, [*CORPUS, *random_texts(300)])
        assert kind == "scores"
        return
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "tokenizer_config.json"]
    for how in ({}, {"trust_remote_code": True}, {"use_fast": False}):
        with pytest.raises((ValueError, OSError)):
            AutoTokenizer.from_pretrained(tmp_path / "out", **how)
