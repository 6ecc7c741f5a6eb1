"""The log-norm budget of runs: how much growth pays for decay, and in how many steps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib.analysis.periods import find_destabilizations


def growth(results: xr.Dataset) -> xr.DataArray:
    """Return what each step's gradient adds to ln rho^2, ln(1 + tan^2 alpha), (run, step)."""
    return np.log1p(np.tan(results.angular_update.astype(float)) ** 2)


def decay(results: xr.Dataset) -> xr.DataArray:
    """Return what weight decay takes from ln rho^2 in each step, 2 |ln(1 - eta lambda)|, (run,)."""
    return -2 * np.log1p(-results.lr * results.weight_decay)


def norm_budgets(
    results: xr.Dataset, first: int = 0, closed: tuple[float, ...] = ()
) -> pd.DataFrame:
    """Return one row per run, by a name such as "lr 0.1, run 7": `lr`, `run`, `ratio`, `paying`.

    `ratio` is growth over decay, which is 1 if the norm comes back (`theory.norm_budget`);
    `paying` the share of steps that grow more than they decay. Over the steps from `first` on; for
    learning rates `closed`, from the first break after `first` to the last one, if there are two.

    >>> alpha = ("run", "step"), np.full((1, 100), np.arccos(0.99))
    >>> norm = ("run", "step"), np.full((1, 100), 2.0)
    >>> places = {"run": [7], "step": np.arange(100), "lr": ("run", [0.1])}
    >>> held = xr.Dataset({"angular_update": alpha, "weight_norm": norm}, places)
    >>> held = held.assign_coords(weight_decay=("run", [0.1]))
    >>> norm_budgets(held).round(6).to_dict("records")[0]["ratio"]
    1.0
    """
    grown, taken, rows = growth(results), decay(results), []
    breaks = find_destabilizations(results).query("start >= @first").groupby("run")["start"]
    starts = breaks.agg(list)
    for run, lr in results.lr.to_series().items():
        begin, end = first, int(results.step[-1]) + 1
        if lr in closed and len(starts.get(run, ())) > 1:
            begin, end = starts[run][0], starts[run][-1]
        paid, due = grown.sel(run=run, step=slice(begin, end - 1)), float(taken.sel(run=run))
        rows.append((lr, run, float(paid.mean()) / due, float((paid > due).mean())))
    names = [f"lr {lr:g}, run {run}" for lr, run, *_ in rows]
    return pd.DataFrame(rows, names, ["lr", "run", "ratio", "paying"])
