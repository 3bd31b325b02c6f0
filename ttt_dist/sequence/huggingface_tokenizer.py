"""A tokenizer.json folder as `transformers` saves it, its ids by the file alone (`tokenizer_json`)."""

import json
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from ttt_dist.sequence import tokenizer_json
from ttt_dist.sequence.id_bytes import to_array, to_bytes
from ttt_dist.sequence.tokenizer_interface import TextTokenizer, in_one_line, require_ids, untaken
from ttt_dist.sequence.word_cache import WordCache, is_exact_for
from ttt_dist.util.errors import UserError

CHAT_DATE = "26 Jul 2024"
"""Given to chat templates that write the day, so that a prompt reads as the samples did; Llama's default without a clock."""
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


class HuggingFaceTokenizer(TextTokenizer):
    """A local folder with tokenizer.json."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        values, self._whole = tokenizer_json.read_tokenizer(path)
        entries = self._whole.get_vocab(with_added_tokens=True)
        self._special = tokenizer_json.special_tokens(values, entries)
        _require_declared(folder, entries)
        self.name = folder.resolve().name
        self.hash = sha256(path.read_bytes()).hexdigest()
        self.size = require_ids(path, max(entries.values(), default=-1) + 1)
        self._text_size = (
            max((number for piece, number in entries.items() if piece not in self._special), default=-1) + 1
        )
        with tokenizer_json.refusing(path):
            plain = tokenizer_json.for_plain_text(values, self._special)
            self._plain = tokenizer_json.build(
                plain
            )  # text and markup are kept apart: flags of a shared one would race
        self._plain.encode_special_tokens = True
        form = json.dumps(
            plain | {"model": {"type": type(self._plain.model).__name__}}
        )  # old files do not say the type
        self._encode = WordCache(self._encode_whole).encode if is_exact_for(form) else self._encode_whole
        self.files = [folder / name for name in FILES if (folder / name).is_file()]

    @property
    def text_size(self) -> int:
        return self._text_size

    def encode(self, text: str) -> list[int]:
        return list(to_array(self.encode_to_bytes(text)).tolist())

    def encode_to_bytes(self, text: str) -> bytes:
        try:
            return self._encode(text)
        except Exception as error:  # the library has no class of its own for what it cannot encode
            raise untaken(self.name, text, error) from error

    def _encode_whole(self, text: str) -> bytes:
        return to_bytes(self._plain.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def encode_markup(self, text: str) -> list[int]:
        return list(self._whole.encode(text, add_special_tokens=False).ids)

    @cached_property
    def _tokenizer(self) -> Any:
        """What `transformers` makes of the folder: its chat template is wanted, and the tokens named in it."""
        from transformers import AutoTokenizer

        folder = self.files[0].parent
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # anything may be in a folder of others, and anything is raised
            told = in_one_line(error)
            raise UserError(f"{folder}: transformers cannot read it ({told}); set chat_template chatml") from error

    def render_chat(self, messages: Sequence[dict[str, str]]) -> str:
        from jinja2 import TemplateError

        if not self._tokenizer.chat_template:
            return super().render_chat(messages)
        try:
            return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, date_string=CHAT_DATE))
        except (TemplateError, ValueError, TypeError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"tokenizer {self.name}: its chat template refuses the turns {roles} ({error}); give templates with other "
                "turns, e.g. without a system turn, or set chat_template chatml"
            ) from error

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._whole.decode([int(token) for token in ids], skip_special_tokens=False))

    def special_id(self, piece: str) -> int | None:
        return self._special.get(piece)

    def to_tokenizer_json(self) -> dict[str, Any]:
        return tokenizer_json.read_tokenizer(self.files[0])[0]


def _require_declared(folder: Path, entries: Collection[str]) -> None:
    """Raise UserError where tokenizer_config.json states a token that tokenizer.json lacks: the model knows it."""
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return
    declared = tokenizer_json.read_object(path).get("added_tokens_decoder") or {}
    if not isinstance(declared, dict):
        raise UserError(f"{path}: added_tokens_decoder is no object; copy the file again")
    for number, token in declared.items():
        content = token.get("content") if isinstance(token, dict) else token
        if not isinstance(content, str) or content not in entries:
            raise UserError(
                f"{path}: states {content!r} as id {number}, which tokenizer.json lacks; load the folder with AutoTokenizer "
                "and save it with save_pretrained"
            )
