"""Forecasts of the next break: on saws that can be forecast, and on ones that cannot."""

import numpy as np
import pandas as pd
import pytest

from periodic_lib import forecasts


def teeth(lengths, restart=1.0, rate=0.01):
    """Return steps, ELR and passages of free decay from `restart` for these lengths."""
    begin = np.r_[0, np.cumsum(lengths)[:-1]]
    ends = pd.DataFrame({"begin": begin, "finish": begin + lengths, "restart": restart})
    ends["break"] = restart * np.exp(rate * np.asarray(lengths))
    steps = np.arange(sum(lengths) + 1.0)
    last = np.searchsorted(begin, steps, side="right") - 1
    return steps, restart * np.exp(rate * (steps - begin[last])), ends


def test_level_is_exact_when_levels_are_constant_and_restarts_are_not():
    """The clock is wrong then: passages from different restarts have different lengths."""
    lengths = np.array([100, 60, 140, 100, 80, 120])
    steps, elr, ends = teeth(lengths)
    scale = np.exp(-0.01 * lengths)  # every passage ends at 1
    last = np.searchsorted(ends.begin, steps, side="right") - 1
    ends = ends.assign(restart=ends.restart * scale, **{"break": ends["break"] * scale})
    found = forecasts.back_test(steps, elr * scale[last], ends, 0.01)
    wrong = forecasts.errors(found[found.fraction < 1], ["fraction"])
    assert (wrong.level < 0.02).all()
    assert wrong.clock[0.0] > 0.1
    assert (wrong.not_before == 1).all()


def test_only_the_past_enters():
    steps, elr, ends = teeth([100, 110, 90, 100, 105])
    whole = forecasts.back_test(steps, elr, ends, 0.01)
    future = ends.copy()
    future.loc[4, ["finish", "break"]] = 10_000, 50.0
    changed = forecasts.back_test(steps, elr, future, 0.01)
    first = whole.number == 3
    columns = list(forecasts.METHODS)
    assert np.array_equal(whole[first][columns], changed[changed.number == 3][columns])
    at_restart = changed[(changed.number == 4) & (changed.fraction == 0)]
    assert at_restart.clock.item() == 100  # of 100, 110, 90, 100


def test_no_forecast_lies_in_the_past():
    steps, elr, ends = teeth([10, 10, 10, 1000])
    late = forecasts.back_test(steps, elr, ends, 0.01, fractions=[0.75])
    assert late[list(forecasts.METHODS)].to_numpy().ravel().tolist() == pytest.approx([750] * 4)


def test_too_few_passages_give_no_forecast():
    found = forecasts.back_test(*teeth([10, 10, 10]), 0.01)
    assert found.empty
    assert list(found) == forecasts.COLUMNS
