"""Which ids samples are written with: the text tokenizer's, extended by the codes, or those of the released checkpoints."""

import argparse
from pathlib import Path

from ttt_dist.sequence.templates import ChatTemplate, TemplateSettings
from ttt_dist.sequence.text_tokenizer import TextTokenizer, load_tokenizer
from ttt_dist.sequence.tokens import PIECES, TokenLayout, released, require_room
from ttt_dist.util.errors import UserError


def add_layout_argument(parser: argparse.ArgumentParser) -> None:
    """`--layout own|released`."""
    parser.add_argument(
        "--layout",
        choices=("own", "released"),
        default="own",
        help="ids: the tokenizer's, extended by the codes; or those of the authors' checkpoints (default own)",
    )


def open_template(tokenizer_path: Path, num_codes: int, layout: str, settings: TemplateSettings) -> ChatTemplate:
    """The templates with a tokenizer and a layout for so many codes. Raises UserError where they do not fit."""
    tokenizer = load_tokenizer(tokenizer_path)
    if layout == "own":
        return ChatTemplate.for_codes(tokenizer, num_codes, settings)
    template = ChatTemplate(tokenizer, released_for(tokenizer), settings)
    if template.layout.num_codes != num_codes:
        raise UserError(
            f"--layout released has {template.layout.num_codes:,} audio codes, the codec {num_codes:,}; "
            "name GLM-4-Voice's tokenizer, or leave --layout out"
        )
    return template


def released_for(tokenizer: TextTokenizer) -> TokenLayout:
    """The released vocabulary with this text tokenizer.

    Raises UserError where the tokenizer is too large, or has other text at the ids of the release's special tokens.
    """
    layout = released(tokenizer.name, tokenizer.hash)
    require_room(tokenizer, layout)
    for name, token_id in layout.special_ids.items():
        if token_id < tokenizer.size and tokenizer.special_id(PIECES[name]) != token_id:
            raise UserError(
                f"tokenizer {tokenizer.name}: id {token_id} is not {PIECES[name]} as in the released vocabulary; take "
                "Qwen2.5's, or compose with a layout of the tokenizer's own"
            )
    return layout
