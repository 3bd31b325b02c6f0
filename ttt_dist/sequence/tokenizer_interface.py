"""What every text tokenizer does (`TextTokenizer`), which of its entries plain text may become, and reading its files."""

import shutil
import unicodedata
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ttt_dist.util.errors import UserError

MAX_BYTES = 1 << 28
"""Of a file of a tokenizer: the largest published ones have an eighth of it."""
MAX_IDS = 1 << 24
"""The embedding has a row for each id, used or not."""
_PUNCTUATION = ("P", "Sm", "Sc")  # categories of Unicode that markup has among its characters, and words have not


class TextTokenizer(ABC):
    """`name` for people, `hash` (sha256 of the file that decides the ids) for machines, `size`: the largest id, and one."""

    name: str
    hash: str
    size: int
    files: list[Path]

    @property
    def text_size(self) -> int:
        """The largest id that plain text may become, and one."""
        return self.size

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

    def to_tokenizer_json(self) -> dict[str, Any] | None:
        """The contents of a tokenizer.json that is to give the same ids; None where there is no such file."""
        return None

    def save(self, folder: str | Path) -> None:
        """Copy the tokenizer's files, byte for byte."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for file in self.files:
            if file.parent.resolve() != Path(folder).resolve():
                shutil.copy2(file, folder)


def is_plain(piece: str) -> bool:
    """Whether an entry that somebody added by hand is text, such as a word or a run of spaces, and not markup.

    Files do not say it: `<|im_end|>` is as often flagged `special: false`, or user-defined, as a word of medicine is.
    """
    return not any(unicodedata.category(character).startswith(_PUNCTUATION) for character in piece)


def read_file(path: Path) -> bytes:
    """The bytes of a tokenizer's file. Raises UserError where it cannot be read or is too large to be one."""
    try:
        size = path.stat().st_size
        if not path.is_file() or not 0 < size <= MAX_BYTES:
            raise UserError(f"{path}: is no file of a tokenizer ({size:,} bytes); copy it again")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); copy it again") from None


def require_ids(path: Path, size: int) -> int:
    """`size`, the number of ids. Raises UserError where no model could have a row for each."""
    if not 0 < size <= MAX_IDS:
        raise UserError(f"{path}: has ids up to {size - 1:,}, but 0 to {MAX_IDS - 1:,} are possible; copy it again")
    return size


def in_one_line(error: BaseException) -> str:
    """What a library says, which may quote pieces of a file."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def untaken(name: str, text: str, error: Exception) -> Exception:
    """What to tell of a text that a tokenizer cannot take; JSON may hold halves of surrogate pairs."""
    if not isinstance(text, str):
        return error
    if any("\ud800" <= character <= "\udfff" for character in text):
        return UserError("the text holds half of a surrogate pair: write it in valid Unicode")
    return UserError(f"tokenizer {name}: cannot take the text ({in_one_line(error)}); copy the tokenizer again")
