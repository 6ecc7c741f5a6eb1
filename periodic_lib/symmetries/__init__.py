"""Which weights of a network are scale-invariant, found by experiment."""

from periodic_lib.project import lazily

_LAZY = {
    "Group": "search",
    "Rescaling": "search",
    "Symmetries": "search",
    "find_groups": "search",
}  # public name -> module that defines it
__all__ = ["Group", "Rescaling", "Symmetries", "find_groups"]

__getattr__ = lazily(__name__, _LAZY)
