"""Changes on the way: what becomes different at a step of a run, as a line of text.

`Run.changes` is "STEP: WHAT VALUE", and more of them after commas, in the order of their steps:

- "2500: weight_decay 0": from step 2500 on there is no weight decay;
- "2500: lr 0.05": another learning rate;
- "900: elr 0.15": the scale-invariant weights get the norm at which the effective learning rate is
  0.15, and are held there after every step. Their direction is kept, so that only the effective
  learning rate changes;
- "2500: hold": the norm is held as it is; "3000: free": it is held no longer.

Up to the first of these steps a run is the run without them, bit for bit: what follows starts from
its state, as from a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

from periodic_lib.checks import integer, number
from periodic_lib.project import ConfigError

NUMBERS = {  # what takes a number -> its legal values, and whether zero is one
    "lr": ("a positive number", False),
    "weight_decay": ("a number from 0", True),
    "elr": ("a positive number", False),
}
WORDS = ("hold", "free")
FORM = 'must be like "2500: weight_decay 0, 3000: hold"'


@dataclass(frozen=True)
class Change:
    """From `step` on, `what` is `value` (None: of "hold" and "free")."""

    step: int
    what: str
    value: float | None = None


def parse_changes(text: str | None) -> list[Change]:
    """Return the changes that a text names, in the order of their steps.

    Raises
    ------
    ConfigError : naming what is not as it must be.

    >>> parse_changes("900: elr 0.15, 915: free")
    [Change(step=900, what='elr', value=0.15), Change(step=915, what='free', value=None)]
    """
    found = [_parse(piece) for piece in text.split(",")] if text else []
    steps = [change.step for change in found]
    if steps != sorted(steps):
        raise ConfigError(f"`changes` must be in the order of their steps; got {steps}.")
    return found


def checked_changes(name: str, value: object) -> str:
    """Return the text if it can be read: a check for `config`."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"`{name}` {FORM}, or None; got {value!r}.")
    parse_changes(value)
    return value


def _parse(piece: str) -> Change:
    """Return one change, "STEP: WHAT VALUE" or "STEP: WHAT"."""
    step, _, rest = piece.partition(":")
    what, *values = rest.split() or [""]
    if what in WORDS and not values:
        return Change(_step(step), what)
    if what in NUMBERS and len(values) == 1:
        meaning, zero = NUMBERS[what]
        high = float("inf")
        return Change(
            _step(step), what, number(f"changes: {what}", values[0], meaning, 0, high, not zero)
        )
    known = ", ".join((*NUMBERS, *WORDS))
    raise ConfigError(f"`changes` {FORM}, of {known}; got {piece.strip()!r}.")


def _step(text: str) -> int:
    return integer("changes: step", text.strip(), "a whole number from 0", 0)
