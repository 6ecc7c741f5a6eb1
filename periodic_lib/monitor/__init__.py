"""The monitor of a PyTorch training: what it watches, what it says, where it writes."""

import importlib

_LAZY = {"Monitor": "watching"}  # public name -> module that defines it
__all__ = ["Monitor"]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
