r"""Destabilizations, periods and phases of a run. NumPy and pandas only.

Definitions
-----------
*Destabilization*, or break: the weight norm, which decay had been shrinking, is pushed out: the
squared norm rises by a tenth and more after such a fall.
Operationally, on ln rho^2: a rise of at least `min_rise` after a fall of at least `min_rise`. It is
dated at the minimum of the norm, where the rise begins; rises that are not separated by a fall
of `min_rise` are one. The loss has no part in it: how far it rises depends on how low the network
could bring it.

*Period*: from one destabilization to the next.
Stretches that the record cuts off (before the first, after the last) have no known length and are
no periods.

*Phases* of a period:

- C, the destabilization: the loss shoots up and the norm grows: from the minimum of the norm to the
  maximum after it.
- A, the loss and the effective gradient fall, the norm decays: from there to the minimum of the
  effective gradient norm, smoothed.
- B, the effective learning rate has become so large that the gradient stops falling and rises: from
  there to the next minimum of the norm.

Stretches before the first and after the last destabilization are labelled the same way; the last is
all A as long as its gradient has not clearly risen again. Without a destabilization there are no
periods, and so no phases.

*Balance ratio*: the tangent of the angular update over that of the equilibrium angle; its mean
square is 1 whenever the norm returns to where it was.
Its median tells how that mean comes about: near 1 if every step contributes (equilibrium), far
below 1 if a few violent steps pay for many quiet ones (periods).

*Excursion*: the loss leaves its recent level, whatever the norm does; for runs whose norm cannot
move.
Operationally, the loss, averaged over the last `smoothing` steps (an epoch), exceeds `ratio` times
the median of the `window` steps before; it is over when that average has fallen to half of this
bound.

*Late*: the second half of the record (`late`), here, in the run table and in the book.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib import theory
from periodic_lib.project import ConfigError

MIN_RISE = 0.1  # of ln rho^2: 5 % of the norm
EXCURSION_RATIO = 10.0  # of the recent loss
NOISE_FACTOR = 8.0  # white noise of N = 1e5 samples spans 6 standard deviations of its differences
SMOOTHING = 1 / 20  # of a stretch between destabilizations: window of the mean of ln(gradient norm)

PHASES = ("A", "B", "C")
DESTABILIZATION_COLUMNS = ["start", "end", "norm_before", "norm_after", "peak_loss"]
PERIOD_COLUMNS = ["start", "end", "length", "norm_start", "norm_end", "min_loss"]
EXCURSION_COLUMNS = ["start", "end", "peak_loss"]


# ---------------------------------------------------------------- one run, or all runs of a result


def per_run(find: Callable) -> Callable:
    """Let a function of one run's arrays take a results data set too: it then sees run after run.

    The arrays are the data set's variables that have the names of the function's arguments, unless
    one is given; `steps` are its steps. Tables get a column `run`; arrays become one (run, step).
    """
    first, *others = inspect.signature(find).parameters

    @functools.wraps(find)
    def find_in_one_or_all(values, *arguments, **options):
        if not isinstance(values, xr.Dataset):
            return find(values, *arguments, **options)
        results = values if "run" in values.dims else values.expand_dims("run")
        names = [name for name in others if name in results.data_vars and name not in options]
        found = []
        for one in (results.isel(run=i) for i in range(results.sizes["run"])):
            arrays = {"steps": one.step.values} | {name: one[name].values for name in names}
            found.append(find(one[first].values, *arguments, **arrays | options))
        nothing = {name: np.empty(0) for name in names}  # without runs: no rows, the same columns
        return _joined(found or [find(np.empty(0), *arguments, **nothing)], results)

    return find_in_one_or_all


def _joined(found: list[pd.DataFrame] | list[np.ndarray], results: xr.Dataset):
    """Return what was found run by run as one table, or as one array (run, step)."""
    if isinstance(found[0], np.ndarray):
        like = results.weight_norm
        return xr.DataArray(np.reshape(found, like.shape), like.coords, like.dims, name="phase")
    runs = results.run.values if results.sizes["run"] else [0]
    tables = [table.assign(run=run) for table, run in zip(found, runs, strict=True)]
    filled = [table for table in tables if len(table)]  # columns of empty ones have no type
    return pd.concat(filled or tables[:1], ignore_index=True)


def late(results: xr.Dataset) -> xr.Dataset:
    """Return the second half of the record: of the steps, and of what was measured from there on.

    >>> steps = {"step": np.arange(4), "eval_step": [0, 2, 4]}
    >>> half = late(xr.Dataset(coords=steps))
    >>> half.step.values.tolist(), half.eval_step.values.tolist()
    ([2, 3], [2, 4])
    """
    half = results.sizes["step"] // 2
    begin = results.step.values[half]
    looked_at = [name for name in results.dims if str(name).endswith("_step")]
    second = results.isel(step=slice(half, None))
    return second.sel({name: slice(begin, None) for name in looked_at})


def count_by_run(table: pd.DataFrame, results: xr.Dataset | xr.DataArray) -> pd.Series:
    """Return the number of rows that every run of `results` has in `table`, 0 where it has none.

    >>> found = find_destabilizations(np.exp(-0.01 * (np.arange(300) % 100))).assign(run=7)
    >>> count_by_run(found, xr.Dataset(coords={"run": [7, 8]})).to_dict()
    {7: 2, 8: 0}
    """
    runs = pd.Index(results.run.values, name="run")
    return table.groupby("run").size().reindex(runs, fill_value=0)


# ---------------------------------------------------------------- destabilizations, periods, phases


@per_run
def find_destabilizations(
    weight_norm: np.ndarray | xr.Dataset,
    *,
    train_loss: np.ndarray | None = None,
    steps: np.ndarray | None = None,
    min_rise: float = MIN_RISE,
) -> pd.DataFrame:
    """Return one row per destabilization (definition above).

    Parameters
    ----------
    weight_norm : values of one run at successive steps or epochs; or a results data set, for all of
        its runs, with their losses and steps.
    train_loss : training loss at the same steps, for its peak; or None.
    steps : the steps of the values; None: 0, 1, 2, ...
    min_rise : smallest rise of ln rho^2. It is raised to 8 robust standard deviations of the
        differences of ln rho^2 where those are larger, so that measurement noise does not count.

    Returns
    -------
    table with `start` and `end` (steps of the norm's minimum and of the maximum after it),
    `norm_before`, `norm_after`, `peak_loss` (nan without losses); for a data set also `run`.

    Raises
    ------
    ConfigError : if a norm is not positive and finite, or the arrays differ in shape.

    >>> saw = np.exp(-0.01 * (np.arange(300) % 100))
    >>> find_destabilizations(saw)["start"].tolist()
    [99, 199]
    """
    norm, loss, steps = _checked(weight_norm, train_loss, steps)
    level = 2 * np.log(norm)
    rows = []
    for low, high in _rises(level, max(min_rise, NOISE_FACTOR * _noise(level))):
        peak = np.nan if loss is None else loss[low : high + 1].max()
        rows.append((steps[low], steps[high], norm[low], norm[high], peak))
    return as_table(rows, DESTABILIZATION_COLUMNS)


@per_run
def find_periods(
    weight_norm: np.ndarray | xr.Dataset,
    *,
    train_loss: np.ndarray | None = None,
    eff_grad_norm: np.ndarray | None = None,
    steps: np.ndarray | None = None,
    **thresholds: float,
) -> pd.DataFrame:
    """Return one row per complete period, from a destabilization to the next.

    Parameters
    ----------
    weight_norm, train_loss, steps, thresholds : as `find_destabilizations`.
    eff_grad_norm : effective gradient norm at the same steps, for the time spent in each phase.

    Returns
    -------
    table with `start`, `end`, `length` (steps), `norm_start` (after the first destabilization),
    `norm_end` (before the second), `min_loss` (nan without losses); with `eff_grad_norm`, also the
    steps spent in each phase, `A`, `B` and `C`, which add up to `length`; for a data set also
    `run`. It is empty where no period is complete.

    Raises
    ------
    ConfigError : if a norm is not positive and finite, or the arrays differ in shape.

    >>> find_periods(np.exp(-0.01 * (np.arange(400) % 100)))["length"].tolist()
    [100, 100]
    """
    norm, loss, steps = _checked(weight_norm, train_loss, steps)
    breaks = find_destabilizations(norm, train_loss=loss, steps=steps, **thresholds)
    rows = []
    for first, second in zip(breaks.itertuples(), breaks.iloc[1:].itertuples(), strict=False):
        inside = (steps >= first.start) & (steps < second.start)
        lowest = np.nan if loss is None else loss[inside].min()
        length = second.start - first.start
        norms = first.norm_after, second.norm_before
        rows.append((first.start, second.start, length, *norms, lowest))
    table = as_table(rows, PERIOD_COLUMNS)
    if eff_grad_norm is None:
        return table
    phases = _phases(breaks, steps, _logarithm(eff_grad_norm, norm.shape), SMOOTHING)
    return table.assign(**_steps_per_phase(table, steps, phases))


@per_run
def label_phases(
    weight_norm: np.ndarray | xr.Dataset,
    *,
    eff_grad_norm: np.ndarray | None = None,
    train_loss: np.ndarray | None = None,
    steps: np.ndarray | None = None,
    smoothing: float = SMOOTHING,
    **thresholds: float,
) -> np.ndarray | xr.DataArray:
    """Return the phase of every step: "A", "B", "C" (definition above), "" if nothing destabilizes.

    Parameters
    ----------
    weight_norm, train_loss, steps, thresholds : as `find_destabilizations`.
    eff_grad_norm : effective gradient norm at the same steps; needed.
    smoothing : window over which ln(eff_grad_norm) is averaged, as a fraction of the stretch
        between destabilizations.

    Returns
    -------
    array of the shape of `weight_norm`; for a data set a DataArray (run, step).

    Raises
    ------
    ConfigError : if `eff_grad_norm` is missing or has a negative value, a norm is not positive and
        finite, or the arrays differ in shape.

    >>> t = np.arange(300) % 100
    >>> norm, gradient = np.exp(-0.01 * t), np.exp(0.1 * np.abs(t - 60))
    >>> phases = label_phases(norm, eff_grad_norm=gradient)
    >>> "".join(phases[[10, 80, 99, 110, 180]])
    'ABCAB'
    """
    norm, loss, steps = _checked(weight_norm, train_loss, steps)
    if eff_grad_norm is None:
        raise ConfigError("`eff_grad_norm` must be given: phase A ends where that norm is lowest.")
    breaks = find_destabilizations(norm, train_loss=loss, steps=steps, **thresholds)
    return _phases(breaks, steps, _logarithm(eff_grad_norm, norm.shape), smoothing)


@per_run
def find_excursions(
    train_loss: np.ndarray | xr.Dataset,
    window: int,
    *,
    steps: np.ndarray | None = None,
    smoothing: int = 1,
    ratio: float = EXCURSION_RATIO,
) -> pd.DataFrame:
    """Return one row per excursion of the loss (definition above); the weight norm plays no part.

    Parameters
    ----------
    train_loss : values of one run at successive steps; or a results data set, for all of its runs.
    window : number of values whose median is the recent level; before there are as many, there is
        no verdict.
    steps : the steps of the values; None: 0, 1, 2, ...
    smoothing : number of values averaged, so that one hard mini-batch is not taken for an
        excursion.
    ratio : smallest loss of an excursion, in units of the recent level.

    Returns
    -------
    table with `start`, `end` (the first step after it, or the last step) and `peak_loss` (of single
    steps); for a data set also `run`.

    >>> loss = np.where(np.arange(300) % 100 == 99, 1.0, 1e-3)
    >>> find_excursions(loss, window=50)["start"].tolist()
    [99, 199, 299]
    """
    loss = pd.Series(np.asarray(train_loss, float))
    steps = np.arange(len(loss)) if steps is None else np.asarray(steps)
    level = loss.rolling(window).median().shift(1)  # nan at first
    recent = (loss.rolling(smoothing, min_periods=1).mean() / level).to_numpy()
    stretches = _stretches(begins=recent >= ratio, ends=recent < ratio / 2)
    rows = [(steps[low], steps[high], loss[low : high + 1].max()) for low, high in stretches]
    return as_table(rows, EXCURSION_COLUMNS)


def balance_ratio(results: xr.Dataset) -> xr.DataArray:
    """Return the balance ratio of every step, tan(angular update) / tan(equilibrium angle).

    Shape (run, step). Momentum must be 0. Undefined (inf or nan) without weight decay.
    """
    parts = results.angular_update, results.lr, results.weight_decay
    return xr.apply_ufunc(theory.balance_ratio, *parts).rename("balance_ratio")


# ---------------------------------------------------------------- helpers


def as_table(rows: list[tuple], columns: list[str]) -> pd.DataFrame:
    """Return rows as a table whose columns are numbers even if there are none."""
    return pd.DataFrame(rows, columns=columns, dtype=None if rows else float)


def _checked(weight_norm, train_loss, steps) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    norm = np.asarray(weight_norm, float)
    if norm.ndim != 1 or not (np.isfinite(norm) & (norm > 0)).all():
        raise ConfigError(
            "`weight_norm` must be one run's positive, finite values (one axis); got shape "
            f"{norm.shape}, {int((~(norm > 0)).sum())} of them not positive. "
            "Leave out runs that diverged."
        )
    loss = None if train_loss is None else np.asarray(train_loss, float)
    steps = np.arange(len(norm)) if steps is None else np.asarray(steps)
    for name, values in (("train_loss", loss), ("steps", steps)):
        if values is not None and values.shape != norm.shape:
            raise ConfigError(
                f"`{name}` must have the shape of `weight_norm`, {norm.shape}; got {values.shape}."
            )
    return norm, loss, steps


def _logarithm(eff_grad_norm, shape: tuple) -> np.ndarray:
    gradient = np.asarray(eff_grad_norm, float)
    if gradient.shape != shape or not (gradient >= 0).all():
        raise ConfigError(
            f"`eff_grad_norm` must have the shape of `weight_norm`, {shape}, and no negative "
            f"value; got shape {gradient.shape}."
        )
    return np.log(np.maximum(gradient, np.finfo(float).tiny))


def _phases(
    breaks: pd.DataFrame, steps: np.ndarray, log_gradient: np.ndarray, smoothing: float
) -> np.ndarray:
    phases = np.full(len(steps), "", dtype="<U1")
    if breaks.empty:
        return phases
    lows, highs = np.searchsorted(steps, breaks.start), np.searchsorted(steps, breaks.end)
    for low, high in zip(lows, highs, strict=True):
        phases[low:high] = "C"
    for first, last in zip([0, *highs], [*lows, len(steps)], strict=True):
        if first < last:
            length = _end_of_a(log_gradient[first:last], smoothing, cut_off=last == len(steps))
            phases[first : first + length], phases[first + length : last] = "A", "B"
    return phases


def _end_of_a(log_gradient: np.ndarray, smoothing: float, cut_off: bool) -> int:
    """Return where phase A of a stretch ends.

    A stretch that the record cuts off is all A unless its gradient has e-folded since its minimum.
    """
    window = max(1, round(smoothing * len(log_gradient)))
    smooth = pd.Series(log_gradient).rolling(window, center=True, min_periods=1).mean().to_numpy()
    lowest = int(smooth.argmin())
    return len(smooth) if cut_off and smooth[lowest:].max() - smooth[lowest] < 1 else lowest


def _steps_per_phase(
    table: pd.DataFrame, steps: np.ndarray, phases: np.ndarray
) -> dict[str, list[float]]:
    """Return the steps between records spent in each phase of each period."""
    spent = np.diff(steps, append=steps[-1:])
    inside = [(steps >= row.start) & (steps < row.end) for row in table.itertuples()]
    return {phase: [spent[mask & (phases == phase)].sum() for mask in inside] for phase in PHASES}


def _noise(level: np.ndarray) -> float:
    """Return a robust standard deviation of the differences.

    Destabilizations are too few to count, a steady decay cancels.
    """
    differences = np.diff(level)
    if not len(differences):
        return 0.0
    return 1.4826 * float(np.median(np.abs(differences - np.median(differences))))


def _rises(level: np.ndarray, least: float) -> list[tuple[int, int]]:
    """Return (minimum, maximum) indices of the rises by `least` that follow a fall by `least`."""
    # As scipy.signal.find_peaks(-level, prominence=least) and the maxima between those; but it
    # looks back as far as a level fell: 14 s for 400,000 noisy steps of free decay, not 0.05.
    level = level.tolist()  # Python's floats compare twice as quickly as NumPy's
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


def _stretches(begins: np.ndarray, ends: np.ndarray) -> list[tuple[int, int]]:
    """Return (first, last) of each stretch from a begin to the next end, or to the end of all."""
    found, start = [], None
    for i in np.flatnonzero(begins | ends):
        if start is None and begins[i]:
            start = i
        elif start is not None and ends[i]:
            found.append((start, i))
            start = None
    return found if start is None else [*found, (start, len(begins) - 1)]
