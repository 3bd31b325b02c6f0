"""What `AutoTokenizer` finds in an exported folder: the ids of training, special tokens and codes among them, or nothing.

Without these files it would make up a tokenizer of one entry, by the `model_type` of config.json. With a tokenizer.json alone
it takes that file's vocabulary into a class of the same choice, which for Qwen2 has a pre-tokenizer of its own; only where the
folder names a class by `auto_map` does it go by `tokenizer_class`. CLASS is that class, for those who trust remote code.
"""

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt_dist.model.hf.chat_template import chat_template
from ttt_dist.sequence import tokenizer_json
from ttt_dist.sequence.templates import ChatTemplate, TemplateSettings
from ttt_dist.sequence.text_tokenizer import TextTokenizer
from ttt_dist.sequence.tokens import TokenLayout

if TYPE_CHECKING:  # commands begin without it
    from tokenizers import Tokenizer

Json = dict[str, Any]

MODULE = "tokenization_ttt"
CLASS = '''"""The tokenizer of tokenizer.json as it stands there."""

from transformers import PreTrainedTokenizerFast


class TextToTalkTokenizer(PreTrainedTokenizerFast):
    pass
'''
KEPT = ("chat_template", "model_max_length", "bos_token", "unk_token")
"""Keys of the text tokenizer's own tokenizer_config.json; `bos_token` is for its chat template."""
SAMPLES = (
    "", " ", "  a  b ", "\n", "a\n\nb\n", "\t", "The year 2026, at 12:30: don't!", "naïve café e\u0301", "中文，漢字。", "日本語カナ",
    "हिन्दी தமிழ்", "עִבְרִית العربية", "🙂👩‍👩‍👧 ☃", "\u2581\u2581x", "\x00\x7f\u2028\ufeff",
    "aaaaaaa ......... 哈哈哈哈哈", "<0x41> <unk> </s>",
)  # fmt: skip
NUM_RANDOM = 400  # texts of random entries and characters that are compared, besides


def write_auto_tokenizer(
    place: Path, tokenizer: TextTokenizer, layout: TokenLayout, settings: TemplateSettings | None = None
) -> bool:
    """Write the files into an exported folder; whether they hold a tokenizer. Else `AutoTokenizer` refuses the folder.

    What is written has been compared: texts at random, every special token and code, both ways, and the prompts of
    `settings`, whose chat template takes the place of the text tokenizer's own.
    """
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "auto_map": {"AutoTokenizer": [None, f"{MODULE}.TextToTalkTokenizer"]},
        "clean_up_tokenization_spaces": False,
    }
    values = tokenizer.to_tokenizer_json()
    found = None if values is None else _with_pieces(values, layout)
    backend = None if found is None else _same(found, tokenizer, layout)
    if found is not None and backend is not None:
        names = {token["id"]: token["content"] for token in found["added_tokens"]}
        config |= _kept(tokenizer, set(names.values()))
        if settings is not None:
            writer = ChatTemplate(tokenizer, layout, settings)
            own = chat_template(backend, names, writer)
            config |= {"chat_template": own} if own else {}
        config |= {"eos_token": names[layout.im_end], "pad_token": names[layout.pad]}
        _write(place / "tokenizer.json", found)
        (place / f"{MODULE}.py").write_text(CLASS, encoding="utf8")
    _write(place / "tokenizer_config.json", config)
    return backend is not None


def _with_pieces(values: Json, layout: TokenLayout) -> Json:
    """The text's tokenizer with every special token and code as an added token at its id."""
    added = {token["content"]: token for token in values.get("added_tokens") or []}
    vocabulary = values["model"]["vocab"]
    entries = {content: token["id"] for content, token in added.items()}
    entries |= vocabulary if isinstance(vocabulary, dict) else {item[0]: i for i, item in enumerate(vocabulary)}
    by_id = {number: content for content, number in entries.items()}
    for number, piece in layout.pieces.items():
        while number not in by_id:  # the text's tokenizer may have the piece for something else
            if piece not in entries:
                by_id[number], entries[piece] = piece, number
            piece = f"<|ttt|{piece[2:]}"
        content = by_id[number]
        usual = {"single_word": False, "lstrip": False, "rstrip": False}
        stated = {"id": number, "content": content, "special": True, "normalized": False}
        added[content] = usual | added.get(content, {}) | stated
    tokenizer_json.place(values, {content: number for content, number in entries.items() if content in added})
    # Training puts nothing before or after a text, as a post-processor might.
    model = values["model"] | ({"dropout": None} if "dropout" in values["model"] else {})
    tokens = sorted(added.values(), key=lambda token: int(token["id"]))
    return values | {
        "added_tokens": tokens,
        "model": model,
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }


def _same(values: Json, tokenizer: TextTokenizer, layout: TokenLayout) -> "Tokenizer | None":
    """The tokenizer of a tokenizer.json, if it gives the ids of `tokenizer`."""
    try:
        backend = tokenizer_json.build(values)
    except ValueError:
        return None
    names = {token["id"]: token["content"] for token in values["added_tokens"]}
    numbers = [*layout.pieces]
    alone = backend.encode_batch([names[number] for number in numbers], add_special_tokens=False)
    if [found.ids for found in alone] != [[number] for number in numbers]:
        return None
    if backend.decode_batch([[number] for number in numbers], skip_special_tokens=False) != [names[n] for n in numbers]:
        return None
    texts = [*_texts(backend)]
    is_same = all(
        list(found.ids) == tokenizer.encode(text) or _has_name(text, found.ids, names)
        for text, found in zip(texts, backend.encode_batch(texts, add_special_tokens=False), strict=True)
    )
    return backend if is_same else None


def _has_name(text: str, ids: Iterable[int], names: Mapping[int, str]) -> bool:
    """Whether a text has a special token written out, which training takes for text."""
    return any(names[number] in text for number in ids if number in names)


def _texts(backend: "Tokenizer") -> Iterator[str]:
    """What to compare: scripts, white space, and random runs of entries and of characters."""
    yield from SAMPLES
    generator = random.Random(0)
    size = backend.get_vocab_size(with_added_tokens=False)
    blocks = (
        (32, 127),
        (0xA0, 0x24F),
        (0x370, 0x5FF),
        (0x900, 0xDFF),
        (0x3040, 0x30FF),
        (0x4E00, 0x9FFF),
        (0x1F300, 0x1F6FF),
    )
    for number in range(NUM_RANDOM):
        if number % 2:
            ids = [generator.randrange(size) for _ in range(generator.randint(1, 30))]
            yield backend.decode(ids, skip_special_tokens=True)
        else:
            low, high = generator.choice(blocks)
            yield "".join(generator.choice((chr(generator.randint(low, high)), " ", "a\n")) for _ in range(40))


def _kept(tokenizer: TextTokenizer, names: set[str]) -> Json:
    """Keys of the text tokenizer's own settings that go on being true; a token that it lacks would be put in anew."""
    folder = tokenizer.files[0].parent
    path, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    values = tokenizer_json.read_object(path) if path.is_file() else {}
    kept = {key: values[key] for key in KEPT if values.get(key) is not None}
    for key in ("bos_token", "unk_token"):
        token = kept.get(key)
        if key in kept and (token.get("content") if isinstance(token, dict) else token) not in names:
            del kept[key]
    return kept | ({"chat_template": template.read_text(encoding="utf8")} if template.is_file() else {})


def _write(path: Path, values: Json) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False) + "\n", encoding="utf8")
