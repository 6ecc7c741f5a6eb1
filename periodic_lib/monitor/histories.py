"""A record that stays small: the newest rows as they are, older ones averaged in longer blocks.

NumPy and xarray only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray


class History:
    """Rows of numbers at successive steps, in levels: level k holds means over 2^k steps.

    A level that is full hands the older half of its rows to the next, two by two. So T steps take
    about `capacity` log2(T / capacity) rows.

    Parameters
    ----------
    columns : numbers of a row.
    capacity : rows of a level, an even number.
    squared : columns averaged as the root of the mean square; largest : columns of which the
        largest is kept. nan counts as missing.

    >>> history = History(1, capacity=4)
    >>> history.add(np.arange(9.0).reshape(-1, 1))
    >>> steps, covers, values = history.rows()
    >>> steps.tolist(), covers.tolist(), values[:, 0].tolist()
    ([0, 2, 4, 6, 7, 8], [2, 2, 2, 1, 1, 1], [0.5, 2.5, 4.5, 6.0, 7.0, 8.0])
    """

    def __init__(
        self,
        columns: int,
        capacity: int = 4096,
        squared: Sequence[int] = (),
        largest: Sequence[int] = (),
        first: int = 0,
    ):
        self.capacity, self.first = capacity, first
        self.squared, self.largest = list(squared), list(largest)
        self.levels: list[NDArray] = [np.empty((0, columns), np.float32)]

    def add(self, rows: NDArray) -> None:
        """Append rows (steps, columns)."""
        self._append(0, np.asarray(rows, np.float32))

    def __len__(self) -> int:
        """Return the number of steps that were added."""
        return sum(len(rows) << level for level, rows in enumerate(self.levels))

    def rows(self) -> tuple[NDArray, NDArray, NDArray]:
        """Return the first step of every row, how many it covers, and the rows, oldest first."""
        covers = np.concatenate(
            [np.full(len(rows), 1 << level) for level, rows in enumerate(self.levels)][::-1]
        )
        steps = self.first + np.cumsum(covers) - covers
        return steps, covers, np.concatenate(self.levels[::-1])

    @property
    def whole_from(self) -> int:
        """The first step from which every step has a row of its own."""
        return self.first + len(self) - len(self.levels[0])

    def _append(self, level: int, rows: NDArray) -> None:
        if level == len(self.levels):
            self.levels.append(rows[:0])
        kept = np.concatenate([self.levels[level], rows])
        over = len(kept) - self.capacity
        if over > 0:
            move = max(self.capacity // 2, over)
            move += move % 2
            self._append(level + 1, self._merged(kept[:move]))
            kept = kept[move:]
        self.levels[level] = kept

    def _merged(self, rows: NDArray) -> NDArray:
        """Return one row for two."""
        pairs = rows.reshape(-1, 2, rows.shape[1]).astype(float)
        squared, largest = self.squared, self.largest
        pairs[:, :, squared] **= 2
        missing = np.isnan(pairs)
        known = (~missing).sum(1)
        with np.errstate(invalid="ignore"):
            means = np.where(missing, 0, pairs).sum(1) / np.where(known, known, np.nan)
        means[:, squared] = np.sqrt(means[:, squared])
        means[:, largest] = np.fmax(pairs[:, 0, largest], pairs[:, 1, largest])
        return means.astype(np.float32)

    def state(self) -> dict[str, object]:
        """Return what `load` takes back."""
        return {"first": self.first, "levels": [rows.copy() for rows in self.levels]}

    def load(self, state: Mapping[str, object]) -> None:
        """Take back what `state` returned."""
        self.first = state["first"]
        self.levels = [np.asarray(rows, np.float32) for rows in state["levels"]]


def as_dataset(
    history: History, measures: Sequence[str], groups: Sequence[str]
) -> tuple[xr.Dataset, dict[str, float]]:
    """Return a monitor's record as a data set of one run, and its last rates.

    Parameters
    ----------
    history : rows of the loss, the largest loss, and `measures` of all invariant weights together
        and of every group, measure after measure.
    groups : names of the groups.

    Returns
    -------
    data set (run, step) of all together, `group_...` (run, step, group), with `covers` (step), and
    the last `lr` and `weight_decay`.
    """
    steps, covers, rows = history.rows()
    table = rows[:, 2:].astype(float).reshape(len(rows), len(measures), len(groups) + 1)
    by = {name: table[:, i] for i, name in enumerate(measures)}
    by["elr"] = by["lr"] / by["weight_norm"] ** 2
    by["eff_grad_norm"] = by["grad_norm"] * by["weight_norm"]
    loss = {"train_loss": rows[:, 0], "train_loss_largest": rows[:, 1]}
    found = {name: (("run", "step"), values[None].astype(float)) for name, values in loss.items()}
    for name, values in by.items():
        word = {"lr": "learning_rate", "weight_decay": "decay"}.get(name, name)
        found[word] = (("run", "step"), values[None, :, 0])
        found[f"group_{word}"] = (("run", "step", "group"), values[None, :, 1:])
    places = {"run": [0], "step": steps, "group": list(groups)}
    data = xr.Dataset(found, places).assign(covers=("step", covers))
    names = ("lr", "weight_decay")
    return data, {name: float(by[name][-1, 0]) if len(rows) else np.nan for name in names}
