"""`--where`: one expression over the fields of an entry, such as `duration < 20 and lang in ("en", "de")`.

Python's own parser reads it, and each node of a short list becomes a function of the entry: nothing is evaluated that
is not on the list. A field that is missing is None. A comparison of values that have no order (None and 3, "a" and 3) is
false, and arithmetic on them None, as with SQL's NULL: an entry that does not say is not selected.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from data_prep.selection.measures import Measure, measure
from ttt_dist.manifest.entry import Entry
from ttt_dist.util.errors import UserError

FLAG = "--where"
MAX_LENGTH, MAX_DEPTH = 10_000, 50
ALLOWED = "comparisons, and, or, not, in, + - * /, numbers, strings, lists, None, True, False, fields, len()"

Operation = Callable[[Any, Any], Any]

_OPERATIONS: dict[type[ast.AST], Operation] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, among: value in among,
    ast.NotIn: lambda value, among: value not in among,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_ARITHMETIC: dict[type[ast.AST], Operation] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def parse_expression(text: str) -> Measure:
    """The function of an entry that an expression stands for. Raises UserError where it holds what is not allowed."""
    if len(text) > MAX_LENGTH:
        raise UserError(f"{FLAG}: {len(text):,} characters, more than {MAX_LENGTH:,}; split it into several {FLAG}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{FLAG} {text!r}: is no expression ({error}); write e.g. 'duration < 20'") from None
    return _Compiler(text).function(tree.body, 0)


def fields_of(text: str) -> list[str]:
    """The fields that an expression looks at, without those inside of them."""
    return sorted(
        {node.id for node in ast.walk(ast.parse(text.strip(), mode="eval")) if isinstance(node, ast.Name)} - {"len"}
    )


class _Compiler:
    """Turns nodes into functions; what is refused is named by its own words."""

    def __init__(self, text: str) -> None:
        self._text = text.strip()

    def function(self, node: ast.expr, depth: int) -> Measure:
        if depth > MAX_DEPTH:
            raise UserError(f"{FLAG}: is nested more than {MAX_DEPTH} deep; split it into several {FLAG}")
        make = _NODES.get(type(node))
        if make is None:
            raise self.refused(node)
        return make(self, node, depth + 1)

    def refused(self, node: ast.AST) -> UserError:
        part = ast.get_source_segment(self._text, node) or type(node).__name__
        return UserError(f"{FLAG} {self._text!r}: {part!r} is not allowed; there are {ALLOWED}")

    def constant(self, node: ast.Constant, depth: int) -> Measure:
        value = node.value
        if value is not None and not isinstance(value, str | int | float):
            raise self.refused(node)
        return lambda entry: value

    def items(self, node: ast.List | ast.Tuple | ast.Set, depth: int) -> Measure:
        functions = [self.function(item, depth) for item in node.elts]
        if all(isinstance(item, ast.Constant) for item in node.elts):
            fixed = tuple(function({}) for function in functions)
            return lambda entry: fixed
        return lambda entry: tuple(function(entry) for function in functions)

    def field(self, node: ast.Name | ast.Attribute, depth: int) -> Measure:
        value: ast.expr = node
        while isinstance(value, ast.Attribute):
            value = value.value
        if not isinstance(value, ast.Name):
            raise self.refused(node)
        return measure(ast.unparse(node))

    def both(self, node: ast.BoolOp, depth: int) -> Measure:
        functions = [self.function(value, depth) for value in node.values]
        decide = all if isinstance(node.op, ast.And) else any
        return lambda entry: decide(function(entry) for function in functions)

    def unary(self, node: ast.UnaryOp, depth: int) -> Measure:
        inner = self.function(node.operand, depth)
        if isinstance(node.op, ast.Not):
            return lambda entry: not inner(entry)
        if isinstance(node.op, ast.USub):
            return lambda entry: _arithmetic(operator.sub, 0, inner(entry))
        raise self.refused(node)

    def arithmetic(self, node: ast.BinOp, depth: int) -> Measure:
        left, right = self.function(node.left, depth), self.function(node.right, depth)
        apply = _ARITHMETIC.get(type(node.op))
        if apply is None:
            raise self.refused(node)
        return lambda entry: _arithmetic(apply, left(entry), right(entry))

    def compare(self, node: ast.Compare, depth: int) -> Measure:
        """`1 < duration < 20` as Python reads it: each pair of neighbours."""
        values = [self.function(value, depth) for value in (node.left, *node.comparators)]
        pairs = list(zip(values, [_OPERATIONS[type(op)] for op in node.ops], values[1:], strict=False))
        if len(pairs) == 1:
            left, apply, right = pairs[0]
            return lambda entry: _holds(apply, left(entry), right(entry))
        return lambda entry: all(_holds(apply, left(entry), right(entry)) for left, apply, right in pairs)

    def length(self, node: ast.Call, depth: int) -> Measure:
        if not isinstance(node.func, ast.Name) or node.func.id != "len" or len(node.args) != 1 or node.keywords:
            raise self.refused(node)
        inner = self.function(node.args[0], depth)

        def count(entry: Entry) -> int | None:
            value = inner(entry)
            return len(value) if isinstance(value, str | list | dict | tuple) else None

        return count


def _holds(apply: Operation, left: Any, right: Any) -> bool:
    try:
        return bool(apply(left, right))
    except TypeError:
        return False


def _arithmetic(apply: Operation, left: Any, right: Any) -> Any:
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        return None  # strings and lists too: "a" * 10**9 is no value of a field
    try:
        return apply(left, right)
    except (ZeroDivisionError, OverflowError):
        return None


_NODES: dict[type[ast.expr], Callable[[_Compiler, Any, int], Measure]] = {
    ast.Constant: _Compiler.constant,
    ast.Name: _Compiler.field,
    ast.Attribute: _Compiler.field,
    ast.List: _Compiler.items,
    ast.Tuple: _Compiler.items,
    ast.Set: _Compiler.items,
    ast.BoolOp: _Compiler.both,
    ast.UnaryOp: _Compiler.unary,
    ast.BinOp: _Compiler.arithmetic,
    ast.Compare: _Compiler.compare,
    ast.Call: _Compiler.length,
}
