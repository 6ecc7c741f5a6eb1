"""Plasticity: how many steps a network that has been trained needs to learn new labels.

A task is a stretch of `Setup.reshuffle_every` steps with one order of the labels. Lyle et al. 2024
(arXiv 2407.01800): where the norm only grows, the effective learning rate falls, and new tasks take
longer. NumPy and pandas only.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib.analysis.breaks import moved
from periodic_lib.analysis.periods import as_table, find_destabilizations
from periodic_lib.project import ConfigError
from periodic_lib.results import setup_of

LEARNED = 0.1  # training error: 90 % of the labels known
TASK_COLUMNS = ["run", "task", "start", "steps", "elr", "since"]


def task_table(
    results: xr.Dataset, error: float = LEARNED, breaks: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return one row per task after the labels were first reshuffled.

    Parameters
    ----------
    results : of a setup with `reshuffle_every`, with evaluations (`Record.evaluate_every`).
    error : the training error at or below which a task counts as learned.
    breaks : as `find_destabilizations` returns; None: those of `results`.

    Returns
    -------
    table with `run`; `task` from 1; its `start` (step); `steps` until the first evaluation in it
    with at most this error, nan if there is none; `elr` at its start; `since`, the steps from the
    end of the last break before it, nan if there is none.

    Raises
    ------
    ConfigError : if the labels were never reshuffled, or nothing was evaluated.
    """
    length = setup_of(results).reshuffle_every
    if length is None or "eval_step" not in results.dims:
        raise ConfigError(
            "`results` must have reshuffled labels and evaluations; train with "
            "Setup(reshuffle_every=...) and Record(evaluate_every=...)."
        )
    breaks = find_destabilizations(results) if breaks is None else breaks
    rows = []
    for run in results.run.values:
        one, ends = results.sel(run=run), breaks["end"][breaks["run"] == run].to_numpy()
        for start in np.arange(length, int(results.step[-1]) + 1, length):
            steps = _steps_to(one.train_error, start, length, error)
            elr = float(one.elr.sel(step=start, method="nearest"))
            before = ends[ends <= start]
            since = float(start - before.max()) if len(before) else np.nan
            rows.append((run, start // length, start, steps, elr, since))
    return as_table(rows, TASK_COLUMNS)


def _steps_to(errors: xr.DataArray, start: int, length: int, error: float) -> float:
    """Return steps from `start` to the first of `errors` (eval_step) in the task at most `error`.

    The evaluation at the task's first step is of the labels before it, so it does not count.
    """
    mine = errors.sel(eval_step=slice(start + 1, start + length))
    met = mine.eval_step.values[mine.values <= error]
    return float(met[0] - start) if len(met) else np.nan


def last_over_first(tasks: pd.DataFrame) -> pd.Series:
    """Return, of every run, the steps of its last task over those of its first; nan if unlearned.

    >>> rows = {"run": [3, 3, 3], "task": [1, 2, 3], "steps": [20.0, 90.0, 30.0]}
    >>> last_over_first(pd.DataFrame(rows)).to_dict()
    {3: 1.5}
    """
    by_task = tasks.pivot_table("steps", "run", "task", dropna=False)
    return by_task.iloc[:, -1] / by_task.iloc[:, 0]


def split_by_break(tasks: pd.DataFrame, soon: float, after: float) -> pd.DataFrame:
    """Return mean steps and `elr` of the tasks of every run that begin `soon` after a break or long
    `after` it.

    Parameters
    ----------
    soon, after : shares of the tasks, by `since`: the first `soon` and the last 1 - `after` of
        all runs together.

    Returns
    -------
    table indexed by `run` with columns (`steps` or `elr`, "soon" or "late"); only runs with both.

    >>> rows = {"run": [0, 0], "steps": [50.0, 80.0], "elr": [0.1, 0.4], "since": [1.0, 99.0]}
    >>> split_by_break(pd.DataFrame(rows), 0.5, 0.5)["steps"].to_dict("records")
    [{'late': 80.0, 'soon': 50.0}]
    """
    low, high = tasks["since"].quantile([soon, after])
    when = np.select([tasks["since"] <= low, tasks["since"] >= high], ["soon", "late"], "between")
    groups = tasks.assign(when=when).pivot_table(["steps", "elr"], "run", "when")
    wanted = pd.MultiIndex.from_product([["elr", "steps"], ["late", "soon"]])
    return groups.reindex(columns=wanted).dropna()


def moved_gains(
    results: xr.Dataset, tries: int, soon: float = 0.5, after: float = 0.5
) -> pd.Series:
    """Return what `split_by_break` finds with the breaks of every run moved to other times.

    The null of "long after minus soon after": mean steps of the late tasks minus those of the soon
    ones, of every run, indexed by (try, run); `breaks.moved` with the seeds 0 to `tries` - 1.
    """
    breaks, found = find_destabilizations(results), {}
    for seed in range(tries):
        tasks = task_table(results, breaks=moved(breaks, results, seed))
        halves = split_by_break(tasks, soon, after)["steps"]
        found[seed] = halves["late"] - halves["soon"]
    return pd.concat(found, names=["try"])
