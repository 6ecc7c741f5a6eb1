"""The monitor of a PyTorch training: what it watches, what it says, where it writes."""

from periodic_lib.project import lazily

_LAZY = {"Monitor": "watching"}  # public name -> module that defines it
__all__ = ["Monitor"]

__getattr__ = lazily(__name__, _LAZY)
