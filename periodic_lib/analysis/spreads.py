"""Statistics over seeds: how far values of runs lie apart, and how sure their mean is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from periodic_lib.glossary import MISSING

if TYPE_CHECKING:
    import pandas as pd


def spread(values: Iterable[float], form: str = ".2g") -> str:
    """Return "median (lowest to highest)" of values over seeds; "–" if one of them is missing.

    >>> spread([3, 1, 2]), spread([1, float("nan")])
    ('2 (1 to 3)', '–')
    """
    found = np.array(list(values), float)
    if not found.size or np.isnan(found).any():
        return MISSING
    return f"{np.median(found):{form}} ({found.min():{form}} to {found.max():{form}})"


def interval(values: Iterable[float], level: float = 0.95) -> tuple[float, float, float]:
    """Return mean and confidence interval of the mean (Student's t) of values over seeds.

    mean ± t s / √n, with the standard deviation s of the n values; as (mean, low, high). For a
    comparison on the same seeds, pass the differences. The ends are nan for fewer than two values.

    >>> [round(end, 3) for end in interval([1, 2, 3])]
    [2.0, -0.484, 4.484]
    """
    from scipy import stats

    found = np.array(list(values), float)
    mean = float(found.mean()) if found.size else float("nan")
    if found.size < 2:
        return mean, float("nan"), float("nan")
    low, high = mean + stats.sem(found) * np.array(stats.t.interval(level, found.size - 1))
    return mean, float(low), float(high)


def variation(*groups: Iterable[float]) -> float:
    """Return the coefficient of variation of waits, standard deviation over mean.

    Of several groups, such as seeds: of all waits together, each in units of its group's mean. 0
    for waits as regular as a clock; near 1 if the events come at random times.

    >>> variation([2, 4])
    0.3333333333333333
    """
    found = [np.array(list(group), float) for group in groups]
    return float(np.concatenate([group / group.mean() for group in found]).std())


def regular_by_chance(*groups: Iterable[float], draws: int = 10_000, seed: int = 0) -> float:
    """Return how often events at random times are as regular as these waits, or more.

    The share of `draws` of as many groups of as many waits, exponentially distributed, as those of
    events that come at a constant rate without memory, whose `variation` is not above that of
    `groups`.

    >>> regular_by_chance([10, 11, 9, 10, 10]) < 1e-3
    True
    """
    groups, rng = [list(group) for group in groups], np.random.default_rng(seed)
    waits = [rng.exponential(size=(draws, len(group))) for group in groups]
    each = np.hstack([drawn / drawn.mean(axis=1, keepdims=True) for drawn in waits])
    return float(np.mean(each.std(axis=1) <= variation(*groups)))


def regularity(waits: Mapping[str, Iterable[Iterable[float]]]) -> pd.DataFrame:
    """Return how regular waits are, a row for each name that has any.

    `waits`: name -> groups, such as the seeds' waits. Columns `name`, `waits` (their number),
    `variation` and `by_chance` (`regular_by_chance`).

    >>> table = regularity({"clock": [[5, 5, 5], [6, 6]], "none": [[]]})
    >>> table[["name", "waits", "variation"]].to_numpy().tolist()
    [['clock', 5, 0.0]]
    """
    import pandas as pd

    rows = [
        (name, sum(map(len, groups)), variation(*groups), regular_by_chance(*groups))
        for name, groups in ((name, [list(g) for g in found]) for name, found in waits.items())
        if groups and all(groups)
    ]
    return pd.DataFrame(rows, columns=["name", "waits", "variation", "by_chance"])


def area_under_curve(happened: Iterable[bool], scores: np.ndarray | Iterable[float]) -> np.ndarray:
    """Return the area under the curve (AUC) of scores, one or a column each; nan if all outcomes
    are alike.

    The chance that a case that happened ranks above one that did not, ties counting one half:
    Mann-Whitney's U over the number of pairs.

    >>> float(area_under_curve([False, False, True], [1.0, 3.0, 2.0]))
    0.5
    """
    from scipy.stats import rankdata

    happened = np.asarray(happened, bool)
    yes, no = happened.sum(), (~happened).sum()
    ranks = rankdata(np.asarray(scores, float), axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ranks[happened].sum(0) - yes * (yes + 1) / 2) / (yes * no)


def resolvable(differences: Iterable[float], level: float = 0.95, power: float = 0.8) -> float:
    """Return the smallest true mean difference that such a sample would show.

    (t_{(1 + level) / 2} + t_power) s / √n, Student's t with n - 1 degrees of freedom: with the
    chance `power` the interval of the mean at this `level` would not contain zero. nan for fewer
    than two values. To plan runs, pass the differences of a pilot; for n others, multiply by
    √(pilot's n / n).

    >>> round(resolvable([-1, 0, 1, 0, -1, 1]), 2)
    1.27
    """
    from scipy import stats

    found = np.array(list(differences), float)
    if found.size < 2:
        return float("nan")
    quantiles = stats.t.ppf([(1 + level) / 2, power], found.size - 1)
    return float(stats.sem(found) * quantiles.sum())


def disagreement_error(disagreement: float, examples: int) -> float:
    """Return the standard error of the difference of two networks' test errors, on one test set.

    √(d / N) for a disagreement d on N examples, where the true difference is small: each example on
    which they differ counts plus or minus one (the variance of McNemar's test; an upper bound, for
    both may be wrong in different ways).

    >>> disagreement_error(0.04, 1600)
    0.005
    """
    return float(np.sqrt(disagreement / examples))
