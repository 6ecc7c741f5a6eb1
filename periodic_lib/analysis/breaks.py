r"""Around a break: what a quantity does at its start, and whether it announced it.

A quantity is a DataArray (run, step), recorded at every step; breaks are a table as
`periods.find_destabilizations` returns it, with `run`, `start` and `end`. Three questions:

- *When?* `around` lines a quantity up at the starts of the breaks, `first_above` finds the step at
  which it passes a level. The same at steps where nothing happens (`quiet_steps`) is the null.
- *Was it announced?* The hazard: does a step that has a break within the next `ahead` steps rank
  higher than one that has not? `hazard` makes the rows, `rank` the area under the ROC curve,

      AUC = P(score before a break > score of another step), ties counting one half,

  with an interval by a bootstrap over the stretches between breaks, since successive steps are no
  independent cases. `moved` gives breaks at wrong times, for the null.

What is in a period and in a break: `periodic_lib.analysis.anatomy`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib.analysis.spreads import area_under_curve

QUIET = range(-60, -10)  # steps before a break, where nothing has begun
NULLS = 20  # times that breaks are moved to wrong times


# ---------------------------------------------------------------- the two edges


def batch_edge_share(results: xr.Dataset) -> xr.DataArray:
    r"""Return kappa, (run, step): the effective learning rate over the edge of the step's batch.

    kappa = (eta / rho^2) h_B / 2, with the batch sharpness h_B (`Record.batch_sharpness`): above 1
    a step along the batch's gradient goes too far for a quadratic of that curvature.
    """
    return (results.elr * results.batch_sharpness / 2).rename("kappa")


def full_edge_share(results: xr.Dataset) -> xr.DataArray:
    """Return the same for the largest curvature of the whole training set's loss.

    (run, curvature_step); the measurement after the last step is left out: its step has no row.
    """
    inside = results.curvature_step.isin(results.step.values)
    h = results.sharpness.isel(curvature_step=inside.values)
    rate = results.elr.sel(step=h.curvature_step.values).rename(step="curvature_step")
    return (rate * h / 2).rename("full")


# ---------------------------------------------------------------- when


def around(values: xr.DataArray, breaks: pd.DataFrame, shifts: Iterable[int]) -> xr.DataArray:
    """Return values (run, step, ...) at `shifts` steps from the start of every break.

    Shape (event, shift, ...); nan where the record does not reach.

    >>> values = xr.DataArray([[3.0, 1.0, 4.0]], {"run": [0], "step": [0, 1, 2]}, ("run", "step"))
    >>> around(values, pd.DataFrame({"run": [0], "start": [2]}), [-1, 0, 1]).values.tolist()
    [[1.0, 4.0, nan]]
    """
    shifts = xr.DataArray(list(shifts), dims="shift", coords={"shift": list(shifts)})
    start = xr.DataArray(breaks["start"].to_numpy(int), dims="event")
    run = xr.DataArray(breaks["run"].to_numpy(int), dims="event")
    wanted = start + shifts
    steps = values.step.values
    inside = (wanted >= steps[0]) & (wanted <= steps[-1])
    found = values.sel(run=run, step=wanted.clip(steps[0], steps[-1]))
    return found.drop_vars(["run", "step"], errors="ignore").where(inside)


def band(aligned: xr.DataArray, shares: Iterable[float] = (0.1, 0.5, 0.9)) -> np.ndarray:
    """Return quantiles over the events of `around`, (share, shift); nan without an event.

    >>> band(xr.DataArray([[0.0, 1.0], [2.0, 5.0]], dims=("event", "shift")), [0.5]).tolist()
    [[1.0, 3.0]]
    """
    shares, values = list(shares), aligned.transpose("event", "shift").values
    if not len(values):
        return np.full((len(shares), values.shape[1]), np.nan)
    return np.nanquantile(values, shares, axis=0)


def first_above(aligned: xr.DataArray, level: float | xr.DataArray, stay: int = 1) -> xr.DataArray:
    """Return, per event, the first shift from which `stay` values in a row are above `level`.

    `aligned`: (event, shift), at shifts one step apart. nan where there is none.

    >>> values = xr.DataArray([[0, 2, 0, 2, 2]], {"shift": [-2, -1, 0, 1, 2]}, ("event", "shift"))
    >>> first_above(values, 1).values.tolist(), first_above(values, 1, stay=2).values.tolist()
    ([-1.0], [1.0])
    """
    above = aligned > level
    for more in range(1, stay):
        above = above & (aligned.shift(shift=-more) > level)
    return aligned["shift"][above.argmax("shift")].drop_vars("shift").where(above.any("shift"))


def take_off(values: xr.DataArray, breaks: pd.DataFrame, shifts: Iterable[int]) -> xr.DataArray:
    """Return, per break, the first shift at which a quantity is beyond all of its quiet 50 steps.

    The quiet steps are those from 60 to 11 before the start.
    """
    quiet = around(values, breaks, QUIET).max("shift")
    return first_above(around(values, breaks, shifts), quiet)


def share_above(
    values: xr.DataArray, events: pd.DataFrame, level: float, within: int, stay: int
) -> pd.Series:
    """Return, per run, at which share of its events a quantity passes a level and stays there.

    `stay` values in a row above `level`, the first of them at most `within` steps before or after
    the event; `events`: breaks, or `quiet_steps`. Index: `run`.

    >>> values = xr.DataArray([[0, 0, 9, 9]], {"run": [3], "step": range(4)}, ("run", "step"))
    >>> events = pd.DataFrame({"run": [3, 3], "start": [0, 3]})
    >>> share_above(values, events, level=1, within=1, stay=2).to_dict()
    {3: 0.5}
    """
    aligned = around(values, events, range(-within, within + stay))
    passed = ~np.isnan(first_above(aligned, level, stay).values)
    return pd.Series(passed, name="share").groupby(events["run"].to_numpy()).mean()


def last_before(values: xr.DataArray, breaks: pd.DataFrame) -> np.ndarray:
    """Return, per break, the last value before its start of what is measured now and then.

    `values`: (run, curvature_step), with a measurement at step 0.
    """
    start = xr.DataArray(breaks["start"].to_numpy(int) - 1, dims="event")
    run = xr.DataArray(breaks["run"].to_numpy(int), dims="event")
    return values.sel(run=run).sel(curvature_step=start, method="ffill").values


def marks(values: xr.DataArray, breaks: pd.DataFrame, margin: int, **rule: float) -> pd.DataFrame:
    """Return, per run, at which share of its breaks and of its quiet steps a quantity meets a rule.

    `rule`: `level`, `within`, `stay` of `share_above`; `margin`: of `quiet_steps`. Columns `breaks`
    and `quiet`, 0 where there is none.
    """
    quiet = quiet_steps(values, breaks, margin)
    shares = {
        name: share_above(values, of, **rule) for name, of in (("breaks", breaks), ("quiet", quiet))
    }
    return pd.DataFrame(shares, index=values.run.values).fillna(0)


def quiet_steps(
    results: xr.Dataset | xr.DataArray, breaks: pd.DataFrame, margin: int
) -> pd.DataFrame:
    """Return all steps at least `margin` away from every break, as a table with `run`, `start`.

    It takes the place of a table of breaks, for the null.
    """
    near = _from_to(results, breaks, breaks["start"] - margin, breaks["end"] + margin)
    rows = np.argwhere(~near.transpose("run", "step").values)
    return pd.DataFrame(
        {"run": results.run.values[rows[:, 0]], "start": results.step.values[rows[:, 1]]}
    )


def _from_to(results: xr.Dataset | xr.DataArray, breaks: pd.DataFrame, first, last) -> xr.DataArray:
    """Return which steps (run, step) are from `first` to before `last` of some break of the run."""
    steps = results.step.values
    inside = np.zeros((results.sizes["run"], len(steps)), bool)
    place = {run: row for row, run in enumerate(results.run.values)}
    for run, low, high in zip(breaks["run"], first, last, strict=True):
        inside[place[run]] |= (steps >= low) & (steps < high)
    return xr.DataArray(inside, {"run": results.run.values, "step": steps}, ("run", "step"))


# ---------------------------------------------------------------- announced?


def largest(values: xr.DataArray, window: int) -> xr.DataArray:
    """Return the largest of the last `window` values (run, step), of those that there are."""
    return values.rolling(step=window, min_periods=1).max()


def hazard(
    scores: Mapping[str, xr.DataArray],
    breaks: pd.DataFrame,
    ahead: int,
    begin: int = 0,
    steps: Iterable[int] | None = None,
) -> pd.DataFrame:
    """Return one row per step that counts, with its scores and whether a break comes.

    Steps count outside phase C, from `begin` on, and only if the record goes on for `ahead` steps.

    Parameters
    ----------
    scores : name -> (run, step), what is known at a step.
    breaks : with `run`, `start`, `end`.
    ahead : the break starts in the next 1 to `ahead` steps.
    steps : only these; None: all.

    Returns
    -------
    table with a column for each score, `comes`, and `stretch`, a number for every stretch between
    breaks of every run.

    >>> from periodic_lib import find_destabilizations
    >>> norm = 0.99 ** (np.arange(300) % 100)
    >>> rows = {"run": [0], "step": np.arange(300)}
    >>> values = xr.DataArray([norm], rows, ("run", "step"))
    >>> breaks = find_destabilizations(norm).assign(run=0)
    >>> int(hazard({"norm": values}, breaks, ahead=20).comes.sum())
    40
    """
    data = xr.Dataset(dict(scores))
    if steps is not None:
        data = data.sel(step=list(steps))
    comes = _from_to(data, breaks, breaks["start"] - ahead, breaks["start"])
    broken = _from_to(data, breaks, breaks["start"], breaks["end"])
    last = max(int(values.step[-1]) for values in scores.values()) - ahead
    counts = ~broken & (data.step >= begin) & (data.step <= last)
    stretch = [
        own * (len(breaks) + 1) + np.searchsorted(np.sort(mine), data.step.values, "right")
        for own, mine in enumerate(breaks["start"][breaks["run"] == run] for run in data.run.values)
    ]
    stretch = comes.copy(data=np.array(stretch, int))
    frame = data.reset_coords(drop=True).assign(comes=comes, stretch=stretch, counts=counts)
    frame = frame.to_dataframe()
    return frame[frame.pop("counts").to_numpy(bool)].reset_index(drop=True)


def rank(
    rows: pd.DataFrame, names: Iterable[str], level: float = 0.95, draws: int = 300, seed: int = 0
) -> pd.DataFrame:
    """Return the AUC of each score for `comes`, and how far the first one is above the others.

    Parameters
    ----------
    rows : as `hazard` returns them.
    names : of scores; the first is compared with the others.
    level, draws, seed : of the interval, by a bootstrap over `stretch`.

    Returns
    -------
    table with one row a score and the columns `auc`, `low`, `high`, `ahead`, `ahead_low`,
    `ahead_high` (AUC of the first score minus this one's); nan if only one outcome is there.

    >>> rows = pd.DataFrame({"comes": [False, True] * 20, "stretch": range(40)})
    >>> found = rank(rows.assign(good=rows.comes, bad=0), ["good", "bad"])
    >>> found.auc.tolist(), found.ahead_low.tolist()
    ([1.0, 0.5], [0.0, 0.5])
    """
    names = list(names)
    found, drawn = _areas(rows, names), np.random.default_rng(seed)
    groups = [part for _, part in rows.groupby("stretch")]
    again = [
        _areas(pd.concat([groups[i] for i in drawn.integers(len(groups), size=len(groups))]), names)
        for _ in range(0 if np.isnan(found).any() else draws)
    ]
    again = np.array(again or [found])
    again = again[~np.isnan(again).any(axis=1)] if len(again) > 1 else again
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(again, ends, axis=0)
    behind = np.quantile(again[:, :1] - again, ends, axis=0)
    columns = {"auc": found, "low": low, "high": high, "ahead": found[0] - found}
    return pd.DataFrame(columns | {"ahead_low": behind[0], "ahead_high": behind[1]}, index=names)


def _areas(rows: pd.DataFrame, names: list[str]) -> np.ndarray:
    return area_under_curve(rows["comes"], rows[names])


def moved(breaks: pd.DataFrame, results: xr.Dataset | xr.DataArray, seed: int = 0) -> pd.DataFrame:
    """Return breaks at wrong times: those of each run shifted together, around the record's end.

    Their number, their spacings and their lengths stay as they are; the shift is random, one a run.
    """
    length, drawn = int(results.step[-1]) + 1, np.random.default_rng(seed)
    shift = dict(
        zip(results.run.values, drawn.integers(length, size=results.sizes["run"]), strict=True)
    )
    start = (breaks["start"] + breaks["run"].map(shift)) % length
    return breaks.assign(start=start, end=start + breaks["end"] - breaks["start"])


def warning(
    scores: Mapping[str, xr.DataArray],
    breaks: pd.DataFrame,
    ahead: int,
    begin: int,
    level: float = 0.95,
    steps: Iterable[int] | None = None,
) -> pd.DataFrame:
    """Return `rank` of the `hazard`, with the column `null`: the median AUC at wrong times.

    Parameters are those of `hazard` and `rank`; the wrong times are `moved`, 20 times.
    """
    names, like = list(scores), next(iter(scores.values()))
    wrong = [hazard(scores, moved(breaks, like, s), ahead, begin, steps) for s in range(NULLS)]
    found = rank(hazard(scores, breaks, ahead, begin, steps), names, level)
    return found.assign(null=np.median([_areas(rows, names) for rows in wrong], axis=0))
