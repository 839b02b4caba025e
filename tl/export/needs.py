"""Libraries of other programs, imported when they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from tl.errors import UserError

_EXTRA = "pip install -e '.[export]'"


def needs(name: str, what: str) -> ModuleType:
    """Import a library that is in the extra `export`; UserError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{what} needs {name}, which cannot be imported ({error}): {_EXTRA}"
        ) from error
