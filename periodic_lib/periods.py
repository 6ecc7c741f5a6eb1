r"""Destabilizations, periods and the regime of a run. NumPy and pandas only.

Definitions
-----------
*Destabilization*: [[destabilization]].
Operationally, on ln rho^2: a rise of at least `min_rise`, after a fall of at least `min_rise`; where the training loss
is given, it must also peak, during the rise, at `min_loss_ratio` times its median since the rise before. The
destabilization is dated at the minimum of the norm, where the kick begins; kicks that are not separated by a fall of
`min_rise` are one.
*Period*: [[period]].
Stretches that the record cuts off (before the first, after the last) have no known length and are no periods.
*Phases* of a period. C, [[phase_c]]: from the minimum of the norm to the maximum after it.
A, [[phase_a]]: from there to the minimum of the effective gradient norm, smoothed.
B, [[phase_b]]: from there to the next minimum of the norm.
Stretches before the first and after the last destabilization are labelled the same way; the last is all A as long as
its gradient has not clearly risen again. Without a destabilization there are no periods, and so no phases.
*Balance ratio*: [[balance_ratio]].
Its median tells how that mean comes about: near 1 if every step contributes (equilibrium), far below 1 if a few
violent steps pay for many quiet ones (periods).
*Excursion*: [[excursion]].
Operationally, the loss, averaged over the last `smoothing` steps (an epoch), exceeds `ratio` times the median of the
`window` steps before; it is over when that average has fallen to half of this bound.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib import theory
from periodic_lib.config import ConfigError
from periodic_lib.glossary import define

__doc__ = define(__doc__)

MIN_RISE = 0.1  # of ln rho^2: 5 % of the norm
MIN_LOSS_RATIO = 10.0
EQUILIBRIUM_SHARE = 1 / 2  # of the growth that would balance weight decay
NOISE_FACTOR = 8.0  # white noise of N = 1e5 samples spans 6 standard deviations of its differences

DESTABILIZATION_COLUMNS = ["start", "end", "norm_before", "norm_after", "peak_loss"]
PERIOD_COLUMNS = ["start", "end", "length", "norm_start", "norm_end", "min_loss"]
EXCURSION_COLUMNS = ["start", "end", "peak_loss"]
MINIMUM_COLUMNS = ["run", "number", "start", "end", "step", "snapshot", "train_loss", "test_error", "elr_start", "elr"]
PHASES = ("A", "B", "C")
SMOOTHING = 1 / 20  # of a stretch between destabilizations: the window over which ln of the gradient norm is averaged


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
    eff_grad_norm: np.ndarray | None = None,
    **thresholds: float,
) -> pd.DataFrame:
    """Return one row per complete period, from a destabilization to the next; parameters as `find_destabilizations`.

    Returns
    -------
    table with `start`, `end`, `length` (steps), `norm_start` (after the first kick), `norm_end` (before the second),
    `min_loss` (nan without losses); with `eff_grad_norm`, also the steps spent in each phase, `A`, `B` and `C`, which
    add up to `length`; for a data set also `run`. It is empty where no period is complete.

    >>> find_periods(np.exp(-0.01 * (np.arange(400) % 100)))["length"].tolist()
    [100, 100]
    """
    if isinstance(weight_norm, xr.Dataset):
        return _per_run(weight_norm, find_periods, also=("eff_grad_norm",), **thresholds)
    norm, loss, steps = _checked(weight_norm, train_loss, steps)
    kicks = find_destabilizations(norm, loss, steps, **thresholds)
    rows = []
    for first, second in zip(kicks.itertuples(), kicks.iloc[1:].itertuples(), strict=False):
        inside = (steps >= first.start) & (steps < second.start)
        lowest = np.nan if loss is None else loss[inside].min()
        length = second.start - first.start
        rows.append((first.start, second.start, length, first.norm_after, second.norm_before, lowest))
    table = pd.DataFrame(rows, columns=PERIOD_COLUMNS)
    if eff_grad_norm is None:
        return table
    phases = _phases(kicks, steps, _logarithm(eff_grad_norm, norm.shape), SMOOTHING)
    return table.assign(**_steps_per_phase(table, steps, phases))


def label_phases(
    weight_norm: np.ndarray | xr.Dataset,
    eff_grad_norm: np.ndarray | None = None,
    train_loss: np.ndarray | None = None,
    steps: np.ndarray | None = None,
    *,
    smoothing: float = SMOOTHING,
    **thresholds: float,
) -> np.ndarray | xr.DataArray:
    """Return the phase of every step: "A", "B", "C" (definition above), or "" in a run without destabilizations.

    Parameters
    ----------
    weight_norm, train_loss, steps, thresholds : as `find_destabilizations`; a results data set gives all of them.
    eff_grad_norm : effective gradient norm at the same steps.
    smoothing : window over which ln(eff_grad_norm) is averaged, as a fraction of the stretch between destabilizations.

    Returns
    -------
    array of the shape of `weight_norm`; for a data set a DataArray (run, step).

    >>> t = np.arange(300) % 100
    >>> norm, gradient = np.exp(-0.01 * t), np.exp(0.1 * np.abs(t - 60))
    >>> phases = label_phases(norm, gradient)
    >>> "".join(phases[[10, 80, 99, 110, 180]])
    'ABCAB'
    """
    if isinstance(weight_norm, xr.Dataset):
        results = weight_norm
        rows = [
            label_phases(
                one.weight_norm.values,
                one.eff_grad_norm.values,
                one.train_loss.values,
                one.step.values,
                smoothing=smoothing,
                **thresholds,
            )
            for one in (results.sel(run=run) for run in results.run.values)
        ]
        return xr.DataArray(np.stack(rows), coords=results.weight_norm.coords, dims=("run", "step"), name="phase")
    norm, loss, steps = _checked(weight_norm, train_loss, steps)
    if eff_grad_norm is None:
        raise ConfigError("`eff_grad_norm` must be given: phase A ends where the effective gradient norm is smallest.")
    kicks = find_destabilizations(norm, loss, steps, **thresholds)
    return _phases(kicks, steps, _logarithm(eff_grad_norm, norm.shape), smoothing)


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
    "equilibrium": the typical step pays its share, that is, makes the norm grow by at least half of what weight decay
    takes from it: the median of the squared balance ratio is at least 1/2;
    "periodic": the whole record has a destabilization (a new period began);
    "equilibrium", too: without one, the norm holds all the same: growth, summed over the steps, made up for at least
    half of the decay;
    "convergence": none of these; the norm shrinks (or stands still, without weight decay) and the loss falls, so far.

    Periods become shorter and shallower as lr * weight_decay grows, without a gap before equilibrium: one half is
    where we cut. On runs labelled by eye it agrees with the eye (tests/labelled), except where a network cannot lower
    its loss far: then no break raises it by the factor that counts, and what the eye calls periods is "equilibrium".
    """
    second_half = results.isel(step=slice(results.sizes["step"] // 2, None))
    loss = second_half.train_loss
    diverged = ~np.isfinite(results.train_loss).all("step") | (loss.median("step") >= chance_loss)
    decays = results.weight_decay > 0
    balanced = (np.square(balance_ratio(second_half)).median("step") >= EQUILIBRIUM_SHARE) & decays
    kicked = set(find_destabilizations(results.isel(run=~diverged.values))["run"])
    periodic = results.run.isin(list(kicked))
    holds = (_paid(second_half) >= EQUILIBRIUM_SHARE) & decays
    conditions = [diverged, balanced, periodic, holds]
    names = np.select(conditions, ["divergence", "equilibrium", "periodic", "equilibrium"], default="convergence")
    return xr.DataArray(names, coords=results.train_loss.isel(step=0, drop=True).coords, name="regime")


def find_excursions(
    train_loss: np.ndarray | xr.Dataset,
    window: int,
    steps: np.ndarray | None = None,
    *,
    smoothing: int = 1,
    ratio: float = MIN_LOSS_RATIO,
) -> pd.DataFrame:
    """Return one row per excursion of the loss (definition above); the weight norm plays no part.

    Parameters
    ----------
    train_loss : values of one run at successive steps; or a results data set, for all of its runs.
    window : number of values whose median is the recent level; before there are as many, there is no verdict.
    steps : the steps of the values; None: 0, 1, 2, ...
    smoothing : number of values averaged, so that one hard mini-batch is not mistaken for an excursion.
    ratio : smallest loss of an excursion, in units of the recent level.

    Returns
    -------
    table with `start`, `end` (the first step after it, or the last step) and `peak_loss` (of single steps); for a
    data set also `run`.

    >>> loss = np.where(np.arange(300) % 100 == 99, 1.0, 1e-3)
    >>> find_excursions(loss, window=50)["start"].tolist()
    [99, 199, 299]
    """
    if isinstance(train_loss, xr.Dataset):
        runs = [
            find_excursions(row, window, train_loss.step.values, smoothing=smoothing, ratio=ratio).assign(run=run)
            for run, row in zip(train_loss.run.values, train_loss.train_loss.values, strict=True)
        ]
        return pd.concat(runs, ignore_index=True) if runs else pd.DataFrame(columns=[*EXCURSION_COLUMNS, "run"])
    loss = pd.Series(np.asarray(train_loss, float))
    steps = np.arange(len(loss)) if steps is None else np.asarray(steps)
    recent = loss.rolling(smoothing, min_periods=1).mean() / loss.rolling(window).median().shift(1)  # nan at first
    begins, ends = (recent >= ratio).to_numpy(), (recent < ratio / 2).to_numpy()
    rows, start = [], None
    for i in np.flatnonzero(begins | ends):
        if start is None and begins[i]:
            start = i
        elif start is not None and ends[i]:
            rows.append((start, i))
            start = None
    if start is not None:
        rows.append((start, len(loss) - 1))
    table = [(steps[low], steps[high], loss[low : high + 1].max()) for low, high in rows]
    return pd.DataFrame(table, columns=EXCURSION_COLUMNS)


def find_minima(results: xr.Dataset, **thresholds: float) -> pd.DataFrame:
    """Return one row per stretch between destabilizations: where the loss of the full training set was lowest.

    Stretch 1 is from the start of training to the first destabilization; every other one is a period without its
    phase C. What the record cuts off, after the last destabilization, is left out.

    Parameters
    ----------
    results : data set with evaluations (`Record.evaluate_every`).
    thresholds : as `find_destabilizations`.

    Returns
    -------
    table with `run`; `number` of the stretch from 1; its `start` and `end` (steps); the evaluated `step` of the
    minimum, with `train_loss` (full training set) and `test_error`; `elr_start` and `elr`, the effective learning
    rates at the start of the stretch and at the minimum; `snapshot`, the snapshot step nearest to the minimum in the
    second half of the stretch, or nan if none is there.

    Raises
    ------
    ConfigError : if the results have no evaluations.
    """
    if "eval_step" not in results.dims:
        raise ConfigError("`results` must have evaluations; train with Record(evaluate_every=...).")
    kicks = find_destabilizations(results, **thresholds)
    rows = []
    for run in results.run.values:
        one, mine = results.sel(run=run), kicks[kicks["run"] == run]
        begins = [results.step.values[0], *mine["end"]]
        for number, (start, end) in enumerate(zip(begins, mine["start"], strict=False), start=1):
            looks = one.sel(eval_step=slice(start, end))
            if looks.sizes["eval_step"]:
                best = looks.isel(eval_step=int(looks.train_loss_full.values.argmin()))
                rows.append((run, number, start, end, *_minimum(one, start, end, best)))
    return pd.DataFrame(rows, columns=MINIMUM_COLUMNS)


def _minimum(one: xr.Dataset, start: float, end: float, best: xr.Dataset) -> tuple:
    """Return the last six entries of a row of `find_minima`."""
    step = int(best.eval_step)
    kept = one["snapshot_step"].values if "snapshot_step" in one.dims else np.empty(0)
    kept = kept[(kept >= (start + end) / 2) & (kept <= end)]
    snapshot = kept[np.abs(kept - step).argmin()] if len(kept) else np.nan
    elr_start, elr = (float(one.elr.sel(step=at, method="nearest")) for at in (start, step))
    return step, snapshot, float(best.train_loss_full), float(best.test_error), elr_start, elr


# ---------------------------------------------------------------- helpers


def _paid(results: xr.Dataset) -> xr.DataArray:
    """Return growth over decay of the norm from the first record to the last: 1 + (change of ln rho^2) / decay."""
    norm, steps = results.weight_norm, float(results.step[-1] - results.step[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        decay = -2 * steps * np.log1p(-results.lr * results.weight_decay)
        return 1 + 2 * np.log(norm.isel(step=-1, drop=True) / norm.isel(step=0, drop=True)) / decay


def _per_run(results: xr.Dataset, find, also: tuple[str, ...] = (), **thresholds) -> pd.DataFrame:
    """Return what `find` finds in every run; `also` names variables that it takes by keyword where they are there."""
    tables = []
    for run in results.run.values:
        one = results.sel(run=run)
        more = {name: one[name].values for name in also if name in one}
        table = find(one.weight_norm.values, one.train_loss.values, one.step.values, **more, **thresholds)
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


def _logarithm(eff_grad_norm, shape: tuple) -> np.ndarray:
    gradient = np.asarray(eff_grad_norm, float)
    if gradient.shape != shape or not (gradient >= 0).all():
        raise ConfigError(
            f"`eff_grad_norm` must have the shape of `weight_norm`, {shape}, and no negative value; "
            f"got shape {gradient.shape}."
        )
    return np.log(np.maximum(gradient, np.finfo(float).tiny))


def _phases(kicks: pd.DataFrame, steps: np.ndarray, log_gradient: np.ndarray, smoothing: float) -> np.ndarray:
    phases = np.full(len(steps), "", dtype="<U1")
    if kicks.empty:
        return phases
    lows, highs = np.searchsorted(steps, kicks.start), np.searchsorted(steps, kicks.end)
    for low, high in zip(lows, highs, strict=True):
        phases[low:high] = "C"
    for first, last in zip([0, *highs], [*lows, len(steps)], strict=True):
        if first < last:
            turn = _turn(log_gradient[first:last], smoothing, ends=last == len(steps))
            phases[first : first + turn], phases[first + turn : last] = "A", "B"
    return phases


def _turn(log_gradient: np.ndarray, smoothing: float, ends: bool) -> int:
    """Return where phase A of a stretch ends; a stretch that the record ends is all A unless the gradient e-folded."""
    window = max(1, round(smoothing * len(log_gradient)))
    smooth = pd.Series(log_gradient).rolling(window, center=True, min_periods=1).mean().to_numpy()
    lowest = int(smooth.argmin())
    return len(smooth) if ends and smooth[lowest:].max() - smooth[lowest] < 1 else lowest


def _steps_per_phase(table: pd.DataFrame, steps: np.ndarray, phases: np.ndarray) -> dict[str, list[float]]:
    """Return the steps between records spent in each phase of each period."""
    spent = np.diff(steps, append=steps[-1])
    inside = [(steps >= row.start) & (steps < row.end) for row in table.itertuples()]
    return {phase: [spent[mask & (phases == phase)].sum() for mask in inside] for phase in PHASES}


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
