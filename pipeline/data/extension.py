"""The optional extension of C, pipeline.data._native: there, or None."""

import importlib
from types import ModuleType


def load_extension() -> ModuleType | None:
    """Return the extension; None where it was not built."""
    try:
        return importlib.import_module("pipeline.data._native")
    except ImportError:
        return None
