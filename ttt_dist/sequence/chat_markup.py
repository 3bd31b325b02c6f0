"""Chat markup: the tokens around the turns of a conversation, by ChatML or by the tokenizer's own chat template.

What stands around the contents depends on the roles alone. A `Frame` holds it as ids, made once per succession of roles
(`ChatTemplate` keeps them): rendering a template and tokenising its markup for every sample would be slow.
"""

import re
from typing import NamedTuple

from ttt_dist.sequence.id_bytes import WIDTH, to_array, to_bytes
from ttt_dist.sequence.template_form import ASSISTANT, USER
from ttt_dist.sequence.text_tokenizer import TextTokenizer
from ttt_dist.sequence.tokens import TokenLayout
from ttt_dist.util.errors import UserError

_MARK = re.compile("\ue0f0([0-9]+)\ue0f1")  # private use: no template writes or trims it


class Frame(NamedTuple):
    """The markup of a conversation of n turns."""

    start: bytes
    """Ids before the first content."""
    steps: tuple[tuple[int, bytes], ...]
    """Which turn's content comes next (0..n-1, but a template may move a turn), and the ids after it."""


class ChatML:
    """`<|im_start|>ROLE`, a newline, the content, `<|im_end|>`, and a newline before the next turn."""

    def __init__(self, tokenizer: TextTokenizer, layout: TokenLayout) -> None:
        self.tokenizer, self.layout = tokenizer, layout

    def frame(self, roles: tuple[str, ...]) -> Frame:
        """The markup of turns with these roles."""
        start, end = [self.layout.im_start], [self.layout.im_end]
        headers = [start + self.tokenizer.encode(role + "\n") for role in roles]
        between = end + self.tokenizer.encode("\n")
        runs = [headers[0], *(between + header for header in headers[1:]), end]
        return Frame(to_bytes(runs[0]), tuple(enumerate(map(to_bytes, runs[1:]))))


class OwnTemplate:
    """The tokenizer's own chat template: its markup with special tokens recognised, for the template is trusted.

    Contents are put in as ids, so plain text in them never becomes a special token. Raises UserError where the template
    refuses the roles, or ends a turn of the assistant with another token than the layout's `im_end`.
    """

    def __init__(self, tokenizer: TextTokenizer, layout: TokenLayout) -> None:
        self.tokenizer, self.layout = tokenizer, layout
        found = end_of_turn(tokenizer)
        if found != layout.im_end:
            raise UserError(
                f"tokenizer {tokenizer.name}: its chat template ends a turn with token {found}, the token layout with "
                f"{layout.im_end}; compose again with chat_template tokenizer, or set chatml"
            )

    def frame(self, roles: tuple[str, ...]) -> Frame:
        """The markup of turns with these roles."""
        frame = _own_frame(self.tokenizer, roles)
        for index, after in frame.steps:
            if roles[index] == ASSISTANT and after[:WIDTH] != to_bytes([self.layout.im_end]):
                raise UserError(
                    f"tokenizer {self.tokenizer.name}: its chat template ends the assistant's turn {index + 1} of "
                    f"{', '.join(roles)} with other tokens than a last one; set chat_template chatml"
                )
        return frame


def end_of_turn(tokenizer: TextTokenizer) -> int:
    """The special token with which the tokenizer's own chat template ends the assistant's turn.

    Raises UserError where it has no template, or ends the turn otherwise.
    """
    after = to_array(_own_frame(tokenizer, (USER, ASSISTANT)).steps[-1][1]).tolist()
    if after and tokenizer.special_id(tokenizer.decode(after[:1]).strip()) == after[0]:
        return int(after[0])
    raise UserError(
        f"tokenizer {tokenizer.name}: its chat template ends the assistant's turn with no special token, so decoding could "
        "not stop there; set chat_template chatml"
    )


def _own_frame(tokenizer: TextTokenizer, roles: tuple[str, ...]) -> Frame:
    """The chat template rendered with marks in place of the contents, and cut at them."""
    messages = [{"role": role, "content": f"\ue0f0{index}\ue0f1"} for index, role in enumerate(roles)]
    pieces = _MARK.split(tokenizer.render_chat(messages))
    order = tuple(int(index) for index in pieces[1::2])
    if sorted(order) != list(range(len(roles))) or (roles[-1] == ASSISTANT and order[-1] != len(roles) - 1):
        raise UserError(
            f"tokenizer {tokenizer.name}: its chat template does not write each of the turns {', '.join(roles)} once, "
            "the last one last; set chat_template chatml"
        )
    literals = [to_bytes(tokenizer.encode_markup(text)) for text in pieces[::2]]
    return Frame(literals[0], tuple(zip(order, literals[1:], strict=True)))
