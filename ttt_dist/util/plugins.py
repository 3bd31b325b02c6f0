"""What a name on the command line stands for: a registered row, or something of one's own as `package.module:Name`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ttt_dist.util.errors import UserError

_SPEC = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*)(?::(.*))?", re.DOTALL)


def split_spec(text: str) -> tuple[str, str | None] | None:
    """`package.module:Name[:ARGUMENT]` as (`package.module:Name`, ARGUMENT or None); None where the text is no such thing."""
    match = _SPEC.fullmatch(text)
    return (match[1], match[2]) if match else None


def is_there(spec: str) -> bool:
    """Whether the package of a spec can be found, so that it is no slip of the pen in a name of ours."""
    return importlib.util.find_spec(re.split("[.:]", spec)[0]) is not None


def load_named(spec: str, flag: str) -> Any:
    """What `package.module:Name` stands for. Raises UserError, which begins with `flag`, where there is no such thing."""
    module_name, _, name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{flag} {spec}: there is no module {error.name}; install its package, or put its folder on PYTHONPATH"
        ) from error
    except (ImportError, SyntaxError) as error:
        raise UserError(f"{flag} {spec}: {module_name} cannot be imported ({error}); correct it") from error
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, vars(module), n=1)
        remedy = f"did you mean {near[0]}?" if near else "correct the name"
        raise UserError(f"{flag} {spec}: module {module_name} has no {name}; {remedy}")
    return getattr(module, name)


def load_class(spec: str, flag: str, base: type) -> type[Any]:
    """The class that a spec names. Raises UserError unless it is a subclass of `base`, with nothing left to be written."""
    found = load_named(spec, flag)
    if not isinstance(found, type) or not issubclass(found, base):
        raise UserError(f"{flag} {spec}: is no subclass of {base.__module__}.{base.__qualname__}; derive it from that")
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise UserError(f"{flag} {spec}: lacks {', '.join(missing)}; write what {base.__qualname__} asks for")
    return found


def load_function(spec: str, flag: str, signature: str) -> Callable[..., Any]:
    """The function that a spec names; `signature` says what it should be. Raises UserError where it cannot be called."""
    found = load_named(spec, flag)
    if not callable(found) or isinstance(found, type):
        raise UserError(f"{flag} {spec}: is no function; write {signature}")
    return found


@dataclass(frozen=True)
class Lazy:
    """A function of the project that is imported when it is first called: a row names it without its imports' seconds."""

    spec: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.load()(*args, **kwargs)

    def load(self) -> Callable[..., Any]:
        """The function itself."""
        module, _, name = self.spec.partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found


def call_with(function: Callable[..., Any], told_as: str, *given: Any, **available: Any) -> Any:
    """What the function makes of `given` and of those of `available` that are parameters of its own.

    Raises UserError, which begins with `told_as`, where it asks for something else.
    """
    function = function.load() if isinstance(function, Lazy) else function
    signature = inspect.signature(function)
    named = {name: value for name, value in available.items() if name in signature.parameters}
    try:
        signature.bind(*given, **named)
    except TypeError as error:
        what = f"{len(given)} argument(s) and {', '.join(available)} by name"
        raise UserError(f"{told_as}: cannot be called so ({error}); it is given {what}") from error
    return function(*given, **named)
