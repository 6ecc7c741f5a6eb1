"""Checks of single values: each names the parameter, its legal values, and what came."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Callable, Iterable, Sequence

from periodic_lib.project import ConfigError

SMALLEST, LARGEST = 1.1754944e-38, 3.4028234e38  # that float32 holds with all digits
HIGHEST = 10**9  # of every whole number: steps, seeds, widths


def known_names(kind: str, given: Iterable[str], legal: Sequence[str]) -> None:
    """Raise `ConfigError` for the first name in `given` that is not in `legal`, with the closest
    legal one.
    """
    for name in given:
        if name not in legal:
            close = difflib.get_close_matches(str(name), legal, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"unknown {kind} {shown(name)}; known: {', '.join(legal)}.{hint}")


def one_of(name: str, value: object, legal: Sequence[str]) -> str:
    """Return `value` if it is one of the `legal` words.

    Raises
    ------
    ConfigError : if it is not.
    """
    if not isinstance(value, str) or value not in legal:
        words = ", ".join(repr(word) for word in legal)
        raise ConfigError(f"`{name}` must be one of {words}; got {shown(value)}.")
    return str(value)


def number(
    name: str, value: object, meaning: str, low: float, high: float, low_open: bool = False
) -> float:
    """Return `value` as a float in [low, high) (or (low, high)); text such as ``"1e-3"`` is read as
    a number.

    Raises
    ------
    ConfigError : if it is none, or outside.
    """
    try:
        if isinstance(value, bool):
            raise ValueError
        result = float(value)  # also NumPy scalars and text, which is what YAML makes of 1e-3
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"`{name}` must be {meaning}; got {shown(value)}.") from None
    if not (low < result if low_open else low <= result) or not result < high:  # also refuses nan
        raise ConfigError(f"`{name}` must be {meaning}; got {shown(value)}.")
    if result and not SMALLEST <= abs(result) <= LARGEST:
        raise ConfigError(
            f"`{name}` must be {meaning}, of at least {SMALLEST:g} and at most {LARGEST:g}, which "
            f"32 bits can hold; got {shown(value)}."
        )
    return result


def shown(value: object) -> str:
    """Return `value` as an error message shows it: at most 60 characters."""
    return (
        textwrap.shorten(repr(value), 60, placeholder=" ...")
        if isinstance(value, str)
        else repr(value)[:60]
    )


def flag(name: str, value: object) -> bool:
    """Return `value` if it is True or False.

    Raises
    ------
    ConfigError : if it is neither.
    """
    if not isinstance(value, int) or value not in (True, False):
        raise ConfigError(f"`{name}` must be true or false; got {shown(value)}.")
    return bool(value)


def integer(name: str, value: object, meaning: str, low: int, high: int = HIGHEST) -> int:
    """Return `value` as an int from `low` to `high`; ``2e4`` and ``"20000"`` are read as whole
    numbers.

    Raises
    ------
    ConfigError : if it is no such number.
    """
    result = number(name, value, meaning, low=low, high=float("inf"))
    if result != int(result) or result > high:
        limit = f", and at most {HIGHEST:,}" if result > high == HIGHEST else ""
        raise ConfigError(f"`{name}` must be {meaning}{limit}; got {shown(value)}.")
    return int(result)


def optional(name: str, value: object, check: Callable, *arguments: object) -> object:
    """Return None if `value` is None, else what `check` makes of it."""
    return None if value is None else check(name, value, *arguments)
