"""Which weights of a network are scale-invariant, found by experiment."""

import importlib

_LAZY = {
    "Group": "search",
    "Rescaling": "search",
    "Symmetries": "search",
    "find_groups": "search",
}  # public name -> module that defines it
__all__ = ["Group", "Rescaling", "Symmetries", "find_groups"]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
