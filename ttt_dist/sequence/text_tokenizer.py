"""Text tokenizers behind one interface: a Hugging Face `tokenizer.json` folder, or a sentencepiece model.

Plain text never becomes a special token here, whatever it contains: specials are put in by the token layout alone.
"""

import io
import shutil
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

from ttt_dist.sequence.id_bytes import to_array, to_bytes
from ttt_dist.sequence.word_cache import WordCache, is_exact_for
from ttt_dist.util.atomic_files import atomic_write
from ttt_dist.util.errors import UserError

CHAT_DATE = "26 Jul 2024"
"""Given to chat templates that write the day, so that a prompt reads as the samples did; Llama's default without a clock."""


class TextTokenizer(ABC):
    """`name` for people, `hash` (sha256 of the defining file) for machines, `size` in entries."""

    name: str
    hash: str
    size: int
    files: list[Path]

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of plain text, no special token added or recognised."""

    def encode_to_bytes(self, text: str) -> bytes:
        """`encode`, as bytes (`id_bytes`)."""
        return array("i", self.encode(text)).tobytes()

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids below `size`."""

    @abstractmethod
    def special_id(self, piece: str) -> int | None:
        """Id of a special token that the tokenizer already has, or None."""

    def encode_markup(self, text: str) -> list[int]:
        """Ids of text that is trusted: special tokens in it are recognised."""
        return self.encode(text)

    def render_chat(self, messages: Sequence[dict[str, str]]) -> str:
        """The {"role", "content"} messages as the tokenizer's own chat template writes them.

        Raises UserError where it has none, or it refuses the roles.
        """
        raise UserError(f"tokenizer {self.name}: has no chat template of its own; set chat_template chatml")

    def save(self, folder: str | Path) -> None:
        """Copy the tokenizer's files, byte for byte."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for file in self.files:
            if file.parent.resolve() != Path(folder).resolve():
                shutil.copy2(file, folder)


class HuggingFaceTokenizer(TextTokenizer):
    """A local folder with tokenizer.json, as `transformers` saves it."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.name = folder.resolve().name
        self.hash = sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
        self.size = len(self._tokenizer)
        self._backend = self._tokenizer.backend_tokenizer  # the wrapper takes twice as long
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        by_word = is_exact_for(self._backend.to_str())
        self._encode = WordCache(self._encode_whole).encode if by_word else self._encode_whole
        names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
        self.files = [folder / name for name in names if (folder / name).is_file()]

    def encode(self, text: str) -> list[int]:
        return list(to_array(self.encode_to_bytes(text)).tolist())

    def encode_to_bytes(self, text: str) -> bytes:
        try:
            return self._encode(text)
        except (TypeError, AttributeError, UnicodeEncodeError) as error:
            raise _not_unicode(text, error) from error

    def _encode_whole(self, text: str) -> bytes:
        return to_bytes(self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def encode_markup(self, text: str) -> list[int]:
        self._backend.encode_special_tokens = False
        try:
            return list(self._backend.encode(text, add_special_tokens=False).ids)
        finally:
            self._backend.encode_special_tokens = True

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
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def special_id(self, piece: str) -> int | None:
        return self._tokenizer.get_added_vocab().get(piece)


class SentencePieceTokenizer(TextTokenizer):
    """A sentencepiece model file."""

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self._model = SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path}: not a sentencepiece model ({error}): train or copy it again") from error
        self.name = path.resolve().parent.name
        self.hash = sha256(path.read_bytes()).hexdigest()
        self.size = self._model.vocab_size()
        self.files = [path]

    def encode(self, text: str) -> list[int]:
        try:
            return list(self._model.encode(text))
        except (RuntimeError, UnicodeEncodeError) as error:
            raise _not_unicode(text, error) from error

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._model.decode([int(i) for i in ids]))

    def special_id(self, piece: str) -> int | None:
        known = self._model.piece_to_id(piece)
        return None if known == self._model.unk_id() else known


def _not_unicode(text: str, error: Exception) -> Exception:
    """What to tell of a text that a tokenizer cannot take; JSON may hold halves of surrogate pairs."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        return UserError("the text holds half of a surrogate pair: write it in valid Unicode")
    return error


def load_tokenizer(path: str | Path) -> TextTokenizer:
    """Open a folder with tokenizer.json or tokenizer.model, or a sentencepiece model file."""
    path = Path(path)
    if path.is_file():
        return SentencePieceTokenizer(path)
    if (path / "tokenizer.model").is_file() and not (path / "tokenizer.json").is_file():
        return SentencePieceTokenizer(path / "tokenizer.model")
    if (path / "tokenizer.json").is_file():
        return HuggingFaceTokenizer(path)
    raise UserError(f"{path}: no text tokenizer here: name a folder with tokenizer.json or tokenizer.model")


def train_sentencepiece(
    texts: Iterable[str], folder: str | Path, vocab_size: int = 400, byte_fallback: bool = True
) -> TextTokenizer:
    """Train a BPE model on `texts` and save it as folder/tokenizer.model.

    `vocab_size` is an upper bound: a small corpus may have fewer pieces. With byte fallback any text can be encoded.
    """
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
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
        minloglevel=2,
    )
    path = Path(folder) / "tokenizer.model"
    with atomic_write(path, "wb") as file:
        file.write(model.getvalue())
    return SentencePieceTokenizer(path)
