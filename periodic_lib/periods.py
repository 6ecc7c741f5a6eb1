r"""Destabilizations, periods and the regime of a run. NumPy and pandas only.

Definitions
-----------
*Destabilization*: the weight norm, which weight decay had been shrinking, is kicked out while the training loss leaves
its low level. Operationally, on ln rho^2: a rise of at least `min_rise`, after a fall of at least `min_rise`; where
the training loss is given, it must also peak, during the rise, at `min_loss_ratio` times its median since the rise
before. The destabilization is dated at the minimum of the norm, where the kick begins; kicks that are not separated
by a fall of `min_rise` are one.
*Period*: from one destabilization to the next. Stretches that the record cuts off (before the first, after the last)
have no known length and are no periods.
*Balance ratio*: tan(angular update) / tan(equilibrium angle). Its mean square is 1 whenever the norm returns to where
it was (the budget identity of `theory.norm_budget`). Its median tells how that mean comes about: near 1 if every step
contributes (equilibrium), far below 1 if a few violent steps pay for many quiet ones (periods).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib import theory
from periodic_lib.config import ConfigError

MIN_RISE = 0.1  # of ln rho^2: 5 % of the norm
MIN_LOSS_RATIO = 10.0
EQUILIBRIUM_RATIO = 1 / 3  # between the medians of periodic (below 0.2) and equilibrium (above 0.5) runs on digits
NOISE_FACTOR = 8.0  # white noise of N = 1e5 samples spans 6 standard deviations of its differences

DESTABILIZATION_COLUMNS = ["start", "end", "norm_before", "norm_after", "peak_loss"]
PERIOD_COLUMNS = ["start", "end", "length", "norm_start", "norm_end", "min_loss"]


def find_destabilizations(
    weight_norm: np.ndarray | xr.Dataset,
    train_loss: np.ndarray | None = None,
    steps: np.ndarray | None = None,
    *,
    min_rise: float = MIN_RISE,
    min_loss_ratio: float = MIN_LOSS_RATIO,
) -> pd.DataFrame:
    """Return one row per destabilization (definition above).

    Parameters
    ----------
    weight_norm : values of one run at successive steps or epochs; or a results data set, for all of its runs.
    train_loss : training loss at the same steps, or None to judge by the norm alone.
    steps : the steps of the values; None: 0, 1, 2, ...
    min_rise : smallest rise of ln rho^2. It is raised to 8 robust standard deviations of the differences of
        ln rho^2 where those are larger, so that measurement noise is not mistaken for a kick.
    min_loss_ratio : smallest peak of the loss, in units of its median since the rise before.

    Returns
    -------
    table with `start` and `end` (steps of the norm's minimum and of the maximum after it), `norm_before`,
    `norm_after`, `peak_loss` (nan without losses); for a data set also `run`.

    >>> saw = np.exp(-0.01 * (np.arange(300) % 100))
    >>> find_destabilizations(saw)["start"].tolist()
    [99, 199]
    """
    if isinstance(weight_norm, xr.Dataset):
        return _per_run(weight_norm, find_destabilizations, min_rise=min_rise, min_loss_ratio=min_loss_ratio)
    norm, loss, steps = _checked(weight_norm, train_loss, steps)
    level = 2 * np.log(norm)
    rows, previous = [], 0
    for low, high in _rises(level, max(min_rise, NOISE_FACTOR * _noise(level))):
        peak = np.nan if loss is None else loss[low : high + 1].max()
        if loss is None or peak >= min_loss_ratio * np.median(loss[previous : low + 1]):
            rows.append((steps[low], steps[high], norm[low], norm[high], peak))
        previous = high
    return pd.DataFrame(rows, columns=DESTABILIZATION_COLUMNS)


def find_periods(
    weight_norm: np.ndarray | xr.Dataset,
    train_loss: np.ndarray | None = None,
    steps: np.ndarray | None = None,
    **thresholds: float,
) -> pd.DataFrame:
    """Return one row per complete period, from a destabilization to the next; parameters as `find_destabilizations`.

    Returns
    -------
    table with `start`, `end`, `length` (steps), `norm_start` (after the first kick), `norm_end` (before the second),
    `min_loss` (nan without losses); for a data set also `run`. It is empty where no period is complete.

    >>> find_periods(np.exp(-0.01 * (np.arange(400) % 100)))["length"].tolist()
    [100, 100]
    """
    if isinstance(weight_norm, xr.Dataset):
        return _per_run(weight_norm, find_periods, **thresholds)
    norm, loss, steps = _checked(weight_norm, train_loss, steps)
    kicks = find_destabilizations(norm, loss, steps, **thresholds)
    rows = []
    for first, second in zip(kicks.itertuples(), kicks.iloc[1:].itertuples(), strict=False):
        inside = (steps >= first.start) & (steps < second.start)
        lowest = np.nan if loss is None else loss[inside].min()
        length = second.start - first.start
        rows.append((first.start, second.start, length, first.norm_after, second.norm_before, lowest))
    return pd.DataFrame(rows, columns=PERIOD_COLUMNS)


def balance_ratio(results: xr.Dataset) -> xr.DataArray:
    """Return the balance ratio tan(angular update) / tan(equilibrium angle), shape (run, step); momentum must be 0.

    Undefined (inf) without weight decay.
    """
    equilibrium = np.tan(theory.equilibrium_angle(results.lr, results.weight_decay))
    with np.errstate(divide="ignore"):
        return np.tan(results.angular_update) / xr.DataArray(equilibrium, dims="run")


def classify_regime(results: xr.Dataset, *, chance_loss: float = np.log(10)) -> xr.DataArray:
    """Return the regime of every run: "convergence", "periodic", "equilibrium" or "divergence".

    Judged on the second half of the record, in this order:
    "divergence": the loss is not finite, or its median is at or above `chance_loss` (guessing among 10 classes);
    "equilibrium": the median balance ratio is at least 1/3: the typical step rotates the weights nearly as far as
    the balance of norm growth and weight decay demands;
    "periodic": the whole record has a destabilization (a new period began);
    "convergence": none of these; the norm shrinks (or stands still, without weight decay) and the loss falls, so far.
    """
    second_half = results.isel(step=slice(results.sizes["step"] // 2, None))
    loss = second_half.train_loss
    diverged = ~np.isfinite(results.train_loss).all("step") | (loss.median("step") >= chance_loss)
    decays = results.weight_decay > 0
    balanced = (balance_ratio(second_half).median("step") >= EQUILIBRIUM_RATIO) & decays
    kicked = set(find_destabilizations(results.isel(run=~diverged.values))["run"])
    periodic = results.run.isin(list(kicked))
    names = np.select([diverged, balanced, periodic], ["divergence", "equilibrium", "periodic"], default="convergence")
    return xr.DataArray(names, coords=results.train_loss.isel(step=0, drop=True).coords, name="regime")


# ---------------------------------------------------------------- helpers


def _per_run(results: xr.Dataset, find, **thresholds) -> pd.DataFrame:
    tables = []
    for run in results.run.values:
        one = results.sel(run=run)
        table = find(one.weight_norm.values, one.train_loss.values, one.step.values, **thresholds)
        tables.append(table.assign(run=run))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["run"])


def _checked(weight_norm, train_loss, steps) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    norm = np.asarray(weight_norm, float)
    if norm.ndim != 1 or not (np.isfinite(norm) & (norm > 0)).all():
        raise ConfigError(
            f"`weight_norm` must be one run's positive, finite values (one axis); got shape {norm.shape}, "
            f"{int((~(norm > 0)).sum())} of them not positive."
        )
    loss = None if train_loss is None else np.asarray(train_loss, float)
    steps = np.arange(len(norm)) if steps is None else np.asarray(steps)
    for name, values in (("train_loss", loss), ("steps", steps)):
        if values is not None and values.shape != norm.shape:
            raise ConfigError(f"`{name}` must have the shape of `weight_norm`, {norm.shape}; got {values.shape}.")
    return norm, loss, steps


def _noise(level: np.ndarray) -> float:
    """Return a robust standard deviation of the differences: kicks are too few to count, a steady decay cancels."""
    differences = np.diff(level)
    return 1.4826 * float(np.median(np.abs(differences - np.median(differences)))) if len(differences) else 0.0


def _rises(level: np.ndarray, least: float) -> list[tuple[int, int]]:
    """Return (minimum, maximum) indices of the rises by at least `least` that follow a fall by at least `least`."""
    rises: list[tuple[int, int]] = []
    falling, low, high = False, 0, 0
    for i, value in enumerate(level):
        if falling:
            if value < level[low]:
                low = i
            elif value - level[low] >= least:
                falling, high = False, i
                rises.append((low, i))
        elif value > level[high]:
            high = i
            if rises:
                rises[-1] = (rises[-1][0], i)
        elif level[high] - value >= least:
            falling, low = True, i
    return rises
