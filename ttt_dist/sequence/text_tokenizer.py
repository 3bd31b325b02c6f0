"""Text tokenizers behind one interface: a Hugging Face `tokenizer.json` folder, or a sentencepiece model.

Plain text never becomes a special token here, whatever it contains: specials are put in by the token layout alone.
"""

from pathlib import Path

from ttt_dist.sequence.huggingface_tokenizer import HuggingFaceTokenizer
from ttt_dist.sequence.sentencepiece_tokenizer import SentencePieceTokenizer
from ttt_dist.sequence.sentencepiece_training import train_sentencepiece
from ttt_dist.sequence.tokenizer_interface import TextTokenizer
from ttt_dist.util.errors import UserError
from ttt_dist.util.hub_names import require_folder

__all__ = ["HuggingFaceTokenizer", "SentencePieceTokenizer", "TextTokenizer", "load_tokenizer", "train_sentencepiece"]


def load_tokenizer(path: str | Path) -> TextTokenizer:
    """Open a folder with tokenizer.json or tokenizer.model, one of an exported model, or such a file.

    An exported model has beside its own tokenizer, in tokenizer/, the one of its text alone: that is opened.
    """
    path = Path(path)
    if path.is_file() and path.name != "tokenizer.json":
        return SentencePieceTokenizer(path)
    folder = path.parent if path.is_file() else require_folder(f"tokenizer {path}", path, "name DIR")
    for place in (folder / "tokenizer", folder):
        if (place / "tokenizer.json").exists():
            return HuggingFaceTokenizer(place)
        if (place / "tokenizer.model").exists():
            return SentencePieceTokenizer(place / "tokenizer.model")
    raise UserError(
        f"{path}: no text tokenizer here: name a folder with tokenizer.json or tokenizer.model "
        "(of vocab.json and merges.txt, AutoTokenizer.from_pretrained and save_pretrained make a tokenizer.json)"
    )
