"""Statistics over seeds: how far values of runs lie apart, and how sure their mean is."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from periodic_lib.glossary import MISSING


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
