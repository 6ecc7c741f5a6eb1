"""Training at a fixed effective learning rate, on the sphere: regimes, waiting times, borders.

With the norm of the scale-invariant weights projected back after every step, ELR = lr / norm^2 is a
setting, not a state. Kodryan et al. 2022 (arXiv 2209.03695) tell three regimes by it: convergence,
a chaotic equilibrium, divergence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib.analysis.periods import late
from periodic_lib.analysis.regimes import GUESSING_SHARE

LOW_LOSS = 0.03  # nats, of digits: a chaotic state of the perceptron lies above 0.2
SPHERE_REGIMES = ("convergence", "chaotic equilibrium", "divergence")


def waiting_steps(results: xr.Dataset, level: float = LOW_LOSS, window: int = 1) -> xr.DataArray:
    """Return the step at which each run has converged, (run,); nan where it has not.

    The first recorded step at which the median of the last `window` recorded losses is below
    `level`: an epoch of steps keeps one easy mini-batch from counting.

    >>> loss = ("run", "step"), [[3.0, 0.01, 2.0, 0.02, 0.01], [3.0, 3.0, 3.0, 3.0, 3.0]]
    >>> data = xr.Dataset({"train_loss": loss}, {"step": [0, 10, 20, 30, 40]})
    >>> waiting_steps(data, window=3).values.tolist()
    [30.0, nan]
    """
    low = results.train_loss.rolling(step=window).median() < level  # nan at first: False
    first = results.step[low.argmax("step")].drop_vars("step")
    return first.where(low.any("step")).rename("waiting_steps")


def sphere_regimes(results: xr.Dataset, level: float = LOW_LOSS, window: int = 1) -> xr.DataArray:
    """Return the regime of every run at a fixed effective learning rate, a word of
    `SPHERE_REGIMES`.

    "divergence": training is no better than guessing, its median late error at least 9/10 of
    1 - 1 / classes, or a loss is not finite; "convergence": it has converged (`waiting_steps`) and
    its median late loss is below `level`; else "chaotic equilibrium".
    """
    second = late(results)
    guessing = GUESSING_SHARE * (1 - 1 / results.attrs["classes"])
    guesses = second.train_error.median("eval_step") >= guessing
    guesses = guesses | ~np.isfinite(results.train_loss).all("step")
    settled = np.isfinite(waiting_steps(results, level, window))
    settled = settled & (second.train_loss.median("step") < level)
    words = np.select([guesses, settled], ["divergence", "convergence"], "chaotic equilibrium")
    return guesses.copy(data=words).rename("regime")


def in_order(words: Sequence[str], order: Sequence[str] = SPHERE_REGIMES) -> bool:
    """Whether every word of `order` occurs, and none after a later one.

    >>> in_order(["a", "a", "b"], "ab"), in_order(["a", "b", "a"], "ab"), in_order(["a"], "ab")
    (True, False, False)
    """
    places = [list(order).index(word) for word in words]
    return places == sorted(places) and set(words) == set(order)


def border(table: pd.DataFrame, below: str | Sequence[str]) -> float:
    """Return the effective learning rate up to which at least half of the runs are in `below`.

    The geometric mean of the largest rate where they are and the next one; `table` has a row for
    each run, `elr` and `regime`. nan where no rate, or every rate, is below.

    >>> table = pd.DataFrame({"elr": [1.0, 4.0, 4.0, 16.0], "regime": ["a", "a", "b", "b"]})
    >>> border(table, "a"), border(table, "b")
    (8.0, nan)
    """
    names = [below] if isinstance(below, str) else list(below)
    share = table.regime.isin(names).groupby(table.elr).mean().sort_index()
    inside = np.flatnonzero(share.to_numpy() >= 0.5)
    if not len(inside) or inside[-1] + 1 == len(share):
        return float("nan")
    return float(np.sqrt(share.index[inside[-1]] * share.index[inside[-1] + 1]))


def across(passed: pd.DataFrame, border: float) -> pd.DataFrame:
    """Return for each run that breaks how it walks across a border, an effective learning rate.

    Parameters
    ----------
    passed : breaks (`levels.passages`), of one result or of several with other learning rates.
    border : the effective learning rate.

    Returns
    -------
    table by `lr` and `init_seed`: `below`, the share of restarts below the border, and `over`, the
    median effective learning rate at which breaks begin, over the border.

    >>> rows = {"lr": 1.0, "init_seed": 0, "break": [0.3, 0.2, 0.2], "restart": [0.1, 0.1, 0.3]}
    >>> across(pd.DataFrame(rows), 0.2).round(2).values.tolist()
    [[0.67, 1.0]]
    """
    runs = passed.assign(below=passed.restart < border).groupby(["lr", "init_seed"])
    return pd.DataFrame({"below": runs.below.mean(), "over": runs["break"].median() / border})


def e_fold(elr: Sequence[float], waiting: Sequence[float]) -> tuple[float, float]:
    """Return how much more ELR multiplies the waiting time by e, and how well a line fits.

    Least squares of ln(waiting) by ELR: 1 / slope, and the correlation of the two. Runs that did
    not converge are left out: both are of those that did, and nan if these have no two rates.

    >>> [round(value, 6) for value in e_fold([0.01, 0.02, 0.03], np.exp([1.0, 3.0, 5.0]))]
    [0.005, 1.0]
    """
    from scipy import stats

    elr, waiting = np.asarray(elr, float), np.asarray(waiting, float)
    found = np.isfinite(waiting)
    if len(np.unique(elr[found])) < 2:
        return float("nan"), float("nan")
    line = stats.linregress(elr[found], np.log(waiting[found]))
    return float(1 / line.slope), float(line.rvalue)
