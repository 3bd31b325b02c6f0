"""Packages of extras that tests need: where they are not installed the test is skipped with the reason; in CI, which has them, it fails."""

import importlib
import os
from typing import Any

import pytest


def need_package(name: str, extra: str) -> Any:
    """The module `name`, which the extra brings."""
    try:
        return importlib.import_module(name)
    except ImportError:
        reason = f"{name} is not installed (the extra `{extra}`)"
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
