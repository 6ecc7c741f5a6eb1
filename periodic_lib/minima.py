"""Minima: where the loss of each stretch between destabilizations is lowest."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib.periods import as_table, find_destabilizations
from periodic_lib.project import ConfigError

MINIMUM_COLUMNS = [
    *("run", "number", "start", "end", "step", "snapshot"),
    *("train_loss", "test_error", "elr_start", "elr"),
]


def find_minima(results: xr.Dataset, **thresholds: float) -> pd.DataFrame:
    """Return one row per stretch between destabilizations: the lowest loss of the training set.

    Stretch 1 is from the start of training to the first destabilization; every other one is a
    period without its phase C. What the record cuts off, after the last destabilization, is left
    out.

    Parameters
    ----------
    results : data set with evaluations (`Record.evaluate_every`).
    thresholds : as `find_destabilizations`.

    Returns
    -------
    table with `run`; `number` of the stretch from 1; its `start` and `end` (steps); the evaluated
    `step` of the minimum, with `train_loss` (full training set) and `test_error`; `elr_start` and
    `elr`, the effective learning rates at the start of the stretch and at the minimum; `snapshot`,
    the snapshot step nearest to the minimum in the second half of the stretch, or nan if none is
    there.

    Raises
    ------
    ConfigError : if the results have no evaluations.
    """
    if "eval_step" not in results.dims:
        raise ConfigError("`results` must have evaluations; train with Record(evaluate_every=...).")
    breaks = find_destabilizations(results, **thresholds)
    rows = []
    for run in results.run.values:
        one, mine = results.sel(run=run), breaks[breaks["run"] == run]
        begins = [results.step.values[0], *mine["end"]]
        pairs = zip(begins, mine["start"], strict=False)
        for number, (start, end) in enumerate(pairs, start=1):
            evaluated = one.sel(eval_step=slice(start, end))
            if evaluated.sizes["eval_step"]:
                best = evaluated.isel(eval_step=int(evaluated.train_loss_full.values.argmin()))
                rows.append((run, number, start, end, *_minimum(one, start, end, best)))
    return as_table(rows, MINIMUM_COLUMNS)


def _minimum(one: xr.Dataset, start: float, end: float, best: xr.Dataset) -> tuple:
    """Return the last six entries of a row of `find_minima`."""
    step = int(best.eval_step)
    kept = one["snapshot_step"].values if "snapshot_step" in one.dims else np.empty(0)
    kept = kept[(kept >= (start + end) / 2) & (kept <= end)]
    snapshot = kept[np.abs(kept - step).argmin()] if len(kept) else np.nan
    elr_start, elr = (float(one.elr.sel(step=at, method="nearest")) for at in (start, step))
    return step, snapshot, float(best.train_loss_full), float(best.test_error), elr_start, elr
