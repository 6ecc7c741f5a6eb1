"""Runs of practical settings on one clock: decay time, free decay, breaks that a schedule allows.

NumPy and pandas only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike

from periodic_lib import theory
from periodic_lib.periods import find_destabilizations, find_periods, late
from periodic_lib.regimes import summarize


def decay_rates(results: xr.Dataset) -> pd.Series:
    """Return what decay adds to ln(ELR) per step, by run: 2 eta lambda / (1 - mu), first order.

    >>> places = {"lr": ("run", [0.01]), "weight_decay": ("run", [0.01]), "run": [0]}
    >>> data = xr.Dataset(coords=places | {"momentum": ("run", [0.9])})
    >>> round(decay_rates(data)[0], 12)
    0.002
    """
    rates = 2 * results.lr * results.weight_decay / (1 - results.momentum)
    return pd.Series(rates.values, pd.Index(results.run.values, name="run"))


def on_the_clock(results: xr.Dataset, rung: str) -> pd.DataFrame:
    """Return the run table (`regimes.summarize`) on the clock of decay, with a column `rung`.

    Further columns: `seed`; `decay_time`, the median period times `decay_rates`; `free_decay`, the
    median over periods of 2 ln(norm_start / norm_end) / (decay_rates x length): the share of a
    period that the norm would have needed with no gradient; `shortest`, the smallest
    2 ln(norm_start / norm_end) of a period; `late_gradient`, the median effective gradient norm of
    the second half.
    """
    table, periods, rates = summarize(results), find_periods(results), decay_rates(results)
    fallen = 2 * np.log(periods["norm_start"] / periods["norm_end"])
    free = fallen / periods["length"] / periods["run"].map(rates)
    table["decay_time"] = table["median_period"] * rates
    table["free_decay"] = free.groupby(periods["run"]).median()
    table["shortest"] = fallen.groupby(periods["run"]).min()
    table["late_gradient"] = late(results)["eff_grad_norm"].median("step").values
    return table.assign(rung=rung).rename(columns={"init_seed": "seed"})


def breaks_by_clock(results: xr.Dataset, until: Mapping[str, float]) -> pd.DataFrame:
    """Return how many breaks each run has had when its clock 2 eta lambda t shows given values.

    Rows `rung`, `seed`, `count`: for every name in `until` and every run of `results`, which keep
    their learning rate.
    """
    breaks, rates = find_destabilizations(results), decay_rates(results)
    clock = breaks["start"] * breaks["run"].map(rates)
    rows = [
        (name, int(results.init_seed.sel(run=run)), int((clock[breaks["run"] == run] <= end).sum()))
        for name, end in until.items()
        for run in results.run.values
    ]
    return pd.DataFrame(rows, columns=["rung", "seed", "count"])


def cosine(lr: float, steps: int) -> np.ndarray:
    """Return the learning rates of a cosine schedule, step by step: lr (1 + cos(pi t / T)) / 2.

    >>> cosine(1.0, 4).round(3).tolist()
    [1.0, 0.854, 0.5, 0.146]
    """
    return lr * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2


def periods_allowed(
    setting: str, rates: ArrayLike, weight_decay: float, momentum: float, span: Iterable[float]
) -> dict[str, object]:
    """Return what the clock says of a schedule before it is trained, as a row of a table.

    `decay_time`, the sum of 2 eta lambda / (1 - mu); `largest_clock`, the largest
    `theory.decay_clock`; `fewest` and `most` periods: that over the most and the least that one
    period has taken elsewhere (`span`, in the same units).

    >>> row = periods_allowed("constant", np.full(100, 0.1), 0.1, 0.0, span=(1.0, 0.5))
    >>> round(row["fewest"], 9), round(row["most"], 9)
    (2.0, 4.0)
    """
    largest = float(theory.decay_clock(rates, weight_decay, momentum).max())
    low, high = min(span), max(span)
    time = 2 * weight_decay * np.sum(rates) / (1 - momentum)
    found = {"decay_time": time, "largest_clock": largest}
    return {"setting": setting} | found | {"fewest": largest / high, "most": largest / low}


# ---------------------------------------------------------------- in words


def span_of(table: pd.DataFrame, column: str = "destabilizations") -> str:
    """Return the lowest to the highest whole number of a column: "2 to 5", or "2".

    >>> span_of(pd.DataFrame({"destabilizations": [5, 2, 3]}))
    '2 to 5'
    """
    return " to ".join(dict.fromkeys([str(table[column].min()), str(table[column].max())]))


def at_least(
    table: pd.DataFrame, least: float, column: str = "destabilizations"
) -> dict[str, bool]:
    """Return the outcomes of a claim: is a column at least so large, by rung and seed?

    >>> at_least(pd.DataFrame({"rung": ["Adam"], "seed": [0], "destabilizations": [3]}), 2)
    {'Adam, seed 0': True}
    """
    rows = table[["rung", "seed", column]].itertuples(index=False)
    return {f"{rung}, seed {seed}": bool(value >= least) for rung, seed, value in rows}
