"""What a name on the command line stands for: a registered row, or something of one's own as `package.module:Name`."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from ttt_dist.util.errors import UserError


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
