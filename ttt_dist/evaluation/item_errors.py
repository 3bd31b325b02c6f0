"""What happens while items are evaluated: those that could not be used, and how far it has come."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from ttt_dist.evaluation.items import Item
from ttt_dist.util.errors import UserError

T = TypeVar("T")


class ItemErrors:
    """Of a part of an evaluation."""

    def __init__(self, tick: Callable[[float], None] = lambda _: None) -> None:
        self.problems: list[str] = []
        self.num_done = 0.0
        self._tick = tick

    def each(self, rows: Iterable[tuple[Any, ...]], make: Callable[..., T]) -> list[tuple[Item, T]]:
        """(item, what `make(item, ...)` gives) for every row that begins with its item; a refusal names the item's line."""
        made = []
        for item, *values in rows:
            try:
                made.append((item, make(item, *values)))
            except UserError as error:
                self.problems.append(f"{item.where}: {error}")
        return made

    def done(self, share: float) -> Callable[[], None]:
        """To be called when so much of an item is done."""
        return lambda: self.advance(share)

    def advance(self, amount: float) -> None:
        """So much more of the items is done."""
        self.num_done += amount
        self._tick(amount)
