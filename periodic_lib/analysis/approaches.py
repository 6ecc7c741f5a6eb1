r"""The way to a break and back: what free decay accounts for, and how soon the loss is back.

In the words of `periods`; the clock is free decay's, in which ln(norm^2) falls by D = 2 |ln a| a
step and the effective learning rate grows by as much.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib import theory
from periodic_lib.analysis.budgets import decay
from periodic_lib.analysis.periods import find_destabilizations

BREAK_COLUMNS = ["lr", "init_seed", "start", "peak", "rise", "wait"]


def runs_with_breaks(results: xr.Dataset) -> Iterator[tuple[xr.Dataset, pd.DataFrame]]:
    """Yield every run of a result, with its destabilizations."""
    breaks = find_destabilizations(results)
    for run in results.run.values:
        yield results.sel(run=run), breaks[breaks["run"] == run]


def approaches(results: xr.Dataset) -> pd.DataFrame:
    r"""Return how every run went to its breaks.

    Returns
    -------
    table, one row a run in their order, with `lr`, `init_seed`, `lr_wd` and

    - `slope`: of ln(norm^2) over the middle half of a passage, in units of D, the median over
      passages. A passage is from a maximum of the norm to the next break, or to the end if none
      came. At most 1, exactly: growth is never negative;
    - `first`: steps from the first maximum of the norm to the first break; `level`, the effective
      learning rate there; `start`, that at the maximum; `law` = ln(level / start) / D, the steps
      that free decay would have taken, at most `first`, exactly. nan without a break.
    """
    return pd.DataFrame([_approach(one, breaks) for one, breaks in runs_with_breaks(results)])


def _approach(one: xr.Dataset, breaks: pd.DataFrame) -> dict:
    norm, rate, lr = one.weight_norm.values.astype(float), float(decay(one)), float(one.lr)
    row = {"lr": lr, "init_seed": int(one.init_seed)}
    row["lr_wd"] = round(lr * float(one.weight_decay), 12)
    slopes = list(_slopes(2 * np.log(norm), breaks, rate))
    row["slope"] = np.median(slopes) if slopes else np.nan
    row |= dict.fromkeys(("first", "level", "start", "law"), np.nan)
    if len(breaks):
        first = int(breaks["start"].iloc[0])
        top = int(norm[:first].argmax())
        level, start = theory.effective_lr(lr, norm[[first, top]])
        law = np.log(level / start) / rate
        row |= {"first": first - top, "level": level, "start": start, "law": law}
    return row


def _slopes(level: np.ndarray, breaks: pd.DataFrame, rate: float) -> Iterator[float]:
    """Yield the slope of each passage, over `rate`."""
    starts = breaks["start"].astype(int).tolist()
    top = level[: starts[0] if starts else None].argmax()
    begins = [top, *breaks["end"].astype(int)]
    for first, last in zip(begins, starts or [len(level) - 1], strict=False):
        quarter = (last - first) // 4
        low, high = first + quarter, last - quarter
        if high > low:
            yield (level[low] - level[high]) / (high - low) / rate


def cross_forecast(table: pd.DataFrame) -> pd.Series:
    """Return the steps to the first break of every run that the level of other runs forecasts.

    Free decay from the run's first maximum of the norm to the median of the levels at which runs
    of other learning rates *and* other seeds first broke. `table`: as `approaches`.

    >>> rows = {"lr": [1, 2], "init_seed": [0, 1], "level": [8, 4], "start": [1, 1], "lr_wd": 0.5}
    >>> cross_forecast(pd.DataFrame(rows)).round(3).tolist()
    [1.0, 1.5]
    """
    found = []
    for row in table.itertuples():
        others = table[(table.lr != row.lr) & (table.init_seed != row.init_seed)]
        rate = -2 * np.log1p(-row.lr_wd)
        found.append(np.log(others.level.median() / row.start) / rate)
    return pd.Series(found, table.index)


def recoveries(results: xr.Dataset) -> pd.DataFrame:
    """Return what came after each break: one row each.

    Breaks with less than 2 / D steps of record after them are left out.

    Returns
    -------
    table with `lr`, `init_seed`, `start` of the break, `peak`, its highest loss over the level
    before it (median of the 1 / D steps before), `rise`, the factor on the squared norm, and
    `wait`: steps from its end until the loss, as the mean of an epoch, is back at that level, times
    D; inf if it never is.
    """
    epoch, rows = results.attrs["steps_per_epoch"], []
    for one, breaks in runs_with_breaks(results):
        loss, window = one.train_loss.values.astype(float), int(1 / float(decay(one)))
        mean = pd.Series(loss).rolling(epoch).mean().values
        for row in breaks[breaks["end"] + 2 * window <= len(loss)].itertuples():
            start, end = int(row.start), int(row.end)
            level = np.median(loss[max(0, start - window) : start])
            back = np.flatnonzero(mean[end + epoch - 1 :] <= level)
            wait = back[0] + epoch - 1 if len(back) else np.inf
            rise = (row.norm_after / row.norm_before) ** 2
            known = float(one.lr), int(one.init_seed), start
            rows.append((*known, row.peak_loss / level, rise, wait / window))
    return pd.DataFrame(rows, columns=BREAK_COLUMNS, dtype=float)


def drifts(results: xr.Dataset) -> Iterator[float]:
    """Yield, of every run with four breaks or more, the median norm at those of the second half
    over that at those of the first.
    """
    for _, breaks in runs_with_breaks(results):
        norms, half = breaks["norm_before"].to_numpy(float), len(breaks) // 2
        if half >= 2:
            yield float(np.median(norms[half:]) / np.median(norms[:half]))


def aligned(
    results: xr.Dataset, name: str, before: float = 0.5, after: float = 2.0, points: int = 200
) -> tuple[np.ndarray, np.ndarray]:
    """Return times around a break, times D, and one row per break: `name` over its level before.

    The level is the median over the 1 / D steps before the break. Breaks whose surroundings the
    record cuts off are left out. The shape of the rows is (breaks, points).
    """
    grid, rows = np.linspace(-before, after, points), []
    for one, breaks in runs_with_breaks(results):
        values, window = one[name].values.astype(float), 1 / float(decay(one))
        for start in breaks["start"].astype(int):
            at = (start + grid * window).astype(int)
            if at[0] >= 0 and at[-1] < len(values):
                level = np.median(values[max(0, int(start - window)) : start])
                rows.append(values[at] / level)
    return grid, np.reshape(rows, (-1, points))
