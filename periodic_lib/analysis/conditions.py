"""What decides between periods and equilibrium: how far the gradient falls, and thresholds on it.

NumPy and pandas only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike

from periodic_lib import theory
from periodic_lib.analysis import words
from periodic_lib.analysis.periods import find_destabilizations
from periodic_lib.analysis.regimes import UNDECIDED, summarize

WINDOW = 20  # steps of a running geometric mean: gradients of single batches scatter
LETTERS = {
    **{"divergence": "D", "equilibrium": "E", "periodic": "P", "irregular breaks": "I"},
    **{"two breaks": "T", "one break": "O", "convergence": "C", "–": "–"},
}  # of a regime; a small one: undecided


# ---------------------------------------------------------------- the fall of a gradient


def running_level(values: ArrayLike, until: float, window: int = WINDOW) -> pd.Series:
    """Return ln of the geometric means of positive values over windows that end before `until`.

    At least one window is there. The index is the place of a window's last value.

    >>> level = running_level(np.exp([0.0, 2.0, 4.0, 0.0]), until=3, window=2)
    >>> level.index.tolist(), level.round(12).tolist()
    ([1, 2], [1.0, 3.0])
    """
    level = pd.Series(np.log(values)).rolling(window).mean()
    return level[window - 1 : max(round(until), window)]


def deepest_fall(values: ArrayLike, until: float, window: int = WINDOW) -> tuple[int, float, float]:
    """Return where values are lowest below their earlier maximum: place, that maximum, the value.

    Of the geometric means of `running_level`. Their ratio is the fall, at least 1.

    >>> place, top, bottom = deepest_fall([1.0, 8.0, 2.0, 16.0, 8.0], until=5, window=1)
    >>> place, round(top, 9), round(bottom, 9)
    (2, 8.0, 2.0)
    """
    level = running_level(values, until, window)
    place = int((level.cummax() - level).idxmax())
    return place, float(np.exp(level.loc[:place].max())), float(np.exp(level.loc[place]))


def falls(values: Iterable[ArrayLike], ends: Iterable[float], window: int = WINDOW) -> np.ndarray:
    """Return the fall (`deepest_fall`) of each row of values up to its end."""
    found = [deepest_fall(row, end, window) for row, end in zip(values, ends, strict=True)]
    return np.array([top / bottom for _, top, bottom in found])


def first_breaks(results: xr.Dataset) -> pd.Series:
    """Return the step at which each run first breaks; of a run that never does, its last + 1."""
    first = find_destabilizations(results).groupby("run")["start"].min()
    runs = pd.Index(results.run.values, name="run")
    return first.reindex(runs).fillna(results.step.values[-1] + 1)


def measure(results: xr.Dataset) -> pd.DataFrame:
    """Return the run table (`regimes.summarize`) with what the fall of the gradient has to explain.

    Further columns, with t_1 the step of the first break (or the end of the record) and g~ the
    effective gradient norm, of records of every step:

    - `balance`: the median balance ratio of the second half (not its square);
    - `fall`, `loss_fall`: the fall of g~, and of the training loss, up to t_1 (`falls`);
    - `reach`: fall x tan(equilibrium angle), about fall x sqrt(2 eta lambda); a step as long as the
      weights needs at least 1, by the bound on a turn;
    - `early_reach`: the same in the first 1 / (2 eta lambda) steps, or up to t_1 if that is sooner;
    - `rise`: the median rise of ln rho^2 in a break (nan without any).
    """
    ends = first_breaks(results)
    table = summarize(results)
    soon = np.minimum(ends, 1 / (2 * table["lr_wd"]))
    tangent = np.tan(theory.equilibrium_angle(table["lr"], table["weight_decay"]))
    breaks = find_destabilizations(results)
    rises = 2 * np.log(breaks["norm_after"] / breaks["norm_before"])
    table["balance"] = np.sqrt(table["balance"])
    table["fall"] = falls(results.eff_grad_norm.values, ends)
    table["loss_fall"] = falls(results.train_loss.values, ends)
    table["reach"] = table["fall"] * tangent
    table["early_reach"] = falls(results.eff_grad_norm.values, soon) * tangent
    table["rise"] = rises.groupby(breaks["run"]).median()
    return table


# ---------------------------------------------------------------- setups side by side


def side_by_side(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return a column of run tables, one column per `setup`, one row per `lr` and `init_seed`.

    >>> rows = {"setup": ["a", "b"], "lr": 0.1, "init_seed": 0, "balance": [0.5, 0.25]}
    >>> side_by_side(pd.DataFrame(rows), "balance").loc[(0.1, 0)].to_dict()
    {'a': 0.5, 'b': 0.25}
    """
    return runs.set_index(["lr", "init_seed", "setup"])[column].unstack("setup")  # noqa: PD010


def falling(table: pd.DataFrame, setups: Sequence[str]) -> pd.Series:
    """Return, per row of `side_by_side`, whether values fall from each of the setups to the next.

    >>> falling(pd.DataFrame({"a": [3.0, 1.0], "b": [2.0, 2.0]}), ["a", "b"]).tolist()
    [True, False]
    """
    return (table[list(setups)].diff(axis=1).iloc[:, 1:] < 0).all(axis=1)


def outcomes(met: pd.Series, rates: Iterable[float] | None = None) -> dict[str, bool]:
    """Return the outcomes of a claim, by learning rate and seed; `rates`: of these alone.

    >>> index = pd.MultiIndex.from_tuples([(0.1, 0), (1.0, 0)])
    >>> outcomes(pd.Series([True, False], index), rates=[0.1])
    {'lr 0.1, seed 0': True}
    """
    if rates is not None:
        met = met[met.index.get_level_values(0).isin(list(rates))]
    return words.outcomes(met, "lr {:g}, seed {}")


def letters(rows: pd.DataFrame) -> str:
    """Return the regimes of runs as letters, the most frequent first; small: undecided.

    >>> rows = {"regime": ["convergence", "periodic", "periodic"], "margin": [0.5, 0.5, 0.02]}
    >>> letters(pd.DataFrame(rows))
    'CPp'
    """
    letter, sure = rows["regime"].map(LETTERS), rows["margin"] >= UNDECIDED
    found = letter.where(sure, letter.str.lower()).tolist()
    return "".join(sorted(found, key=lambda x: (-found.count(x), x)))


def undecided(rows: pd.DataFrame) -> str:
    """Return how many runs' regimes are undecided, as text: "1 of 3 undecided".

    >>> undecided(pd.DataFrame({"margin": [0.5, 0.02]}))
    '1 of 2 undecided'
    """
    return f"{int((rows['margin'] < UNDECIDED).sum())} of {len(rows)} undecided"


# ---------------------------------------------------------------- thresholds, and how good they are


def balanced_accuracy(told: ArrayLike, truth: ArrayLike) -> float:
    """Return the mean of two shares: of the true that are told true, of the false told false.

    0.5 is a coin's; so is the value where the truth has one side only, and nothing is to be told.

    >>> balanced_accuracy([True, True, False, False], [True, False, False, False])
    0.8333333333333333
    """
    told, truth = np.asarray(told, bool), np.asarray(truth, bool)
    if truth.all() or not truth.any():
        return 0.5
    return float((told[truth].mean() + (~told[~truth]).mean()) / 2)


def fit_threshold(values: ArrayLike, truth: ArrayLike) -> float:
    """Return the threshold below which values tell the truth best (`balanced_accuracy`).

    Of the geometric means between neighbouring values; the lowest of the best.

    >>> round(fit_threshold([1.0, 4.0, 16.0, 64.0], [True, True, False, False]), 9)
    8.0
    """
    values, distinct = np.asarray(values, float), np.unique(values)
    between = np.sqrt(distinct[1:] * distinct[:-1])
    return float(max(between, key=lambda t: balanced_accuracy(values < t, truth)))


def accuracy_interval(
    told: ArrayLike, truth: ArrayLike, groups: pd.Series, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return a 95 % interval of `balanced_accuracy`, by drawing groups of rows with replacement.

    Rows of a group (the seeds of a setup) agree: they are drawn together. A draw with one side only
    is left out.
    """
    told, truth = np.asarray(told, bool), np.asarray(truth, bool)
    counts = np.stack([told & truth, truth, ~told & ~truth, ~truth], axis=1)
    each = pd.DataFrame(counts).groupby(np.asarray(groups)).sum().to_numpy()
    rng = np.random.default_rng(seed)
    some = each[rng.integers(len(each), size=(draws, len(each)))].sum(axis=1)
    hits, positive, misses, negative = some[(some[:, [1, 3]] > 0).all(axis=1)].T
    low, high = np.quantile((hits / positive + misses / negative) / 2, [0.025, 0.975])
    return float(low), float(high)


def transfer(
    fit: pd.DataFrame, test: pd.DataFrame, column: str, threshold: float | None = None
) -> tuple[float, str]:
    """Return how well a threshold that was fixed on some runs tells equilibrium in others.

    Parameters
    ----------
    fit, test : run tables with `column`, `regime` and, to draw intervals by, `setup` and `lr`.
    threshold : fitted to nothing, if given; else on `fit` (`fit_threshold`).

    Returns
    -------
    `balanced_accuracy` on `test`; the same as text with its interval ("–" with one regime only).
    """
    if threshold is None:
        threshold = fit_threshold(fit[column], fit["regime"] == "equilibrium")
    told, truth = test[column] < threshold, test["regime"] == "equilibrium"
    score = balanced_accuracy(told, truth)
    if truth.nunique() < 2:
        return score, "–"
    groups = test["setup"] + test["lr"].astype(str)
    low, high = accuracy_interval(told, truth, groups)
    return score, f"{score:.0%} ({low:.0%} to {high:.0%})"


def rank_correlation(table: pd.DataFrame, one: str, other: str, given: str | None = None) -> float:
    """Return Spearman's rank correlation of two columns; `given`: the partial one, given a third.

    Partial: (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2)(1 - r_yz^2)), of the rank correlations; nan
    where one of them is exact.

    >>> rows = pd.DataFrame({"x": [1, 2, 3, 4], "y": [1, 4, 9, 16], "z": [2, 1, 2, 3]})
    >>> rank_correlation(rows, "x", "y")
    1.0
    """
    names = [one, other] if given is None else [one, other, given]
    r = table[names].rank().corr().to_numpy()
    if given is None:
        return float(r[0, 1])
    rest = (1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2)
    return float((r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt(rest)) if rest > 0 else float("nan")


def tabulated(
    runs: pd.DataFrame, setups: Sequence[str], names: Callable[[str], str] = str
) -> pd.DataFrame:
    """Return one row per setup: for each learning rate "window budget, regimes, breaks".

    Medians over the seeds (a budget is below 0 by rounding only), regimes as `letters`. The last
    column is the training error at the end, the median at the middle learning rate.
    """
    rows, rates = [], np.unique(runs["lr"])
    for setup in setups:
        parts = dict(list(runs[runs["setup"] == setup].groupby("lr")))
        cells = {
            f"lr {lr:g}": f"{abs(part['window_budget'].median()):.2f} {letters(part)} "
            f"{part['destabilizations'].median():.0f}"
            for lr, part in parts.items()
        }
        error = parts[rates[len(rates) // 2]]["train_error"].median()
        rows.append({"setup": names(setup)} | cells | {"training error": f"{error:.1%}"})
    return pd.DataFrame(rows)
