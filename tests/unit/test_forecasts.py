"""Forecasts of the next break: on saws that can be forecast, and on ones that cannot."""

import numpy as np
import pandas as pd
import pytest

from periodic_lib.analysis import forecasts


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


def test_published_saws_of_equal_teeth_are_forecast_exactly():
    """Teeth of pure decay from one level to one level: law, clock and levels are all the length."""
    epoch, wd, per_epoch = np.arange(0.0, 301), 1e-2, 10
    parts, breaks = [], []
    for lr, tooth in ((0.1, 50), (0.2, 60)):
        norm = 5 * np.exp(np.log1p(-lr * wd) * per_epoch * (epoch % tooth))
        parts.append(pd.DataFrame({"epoch": epoch, "learning_rate": lr, "quantity": "si_weight_norm"}))
        parts[-1][["column_low", "column_high"]] = np.column_stack([0.98 * norm, norm / 0.98])
        at = np.arange(tooth, 301, tooth) - 1.0
        breaks.append(pd.DataFrame({"learning_rate": lr, "epoch": at}))
    setting = pd.Series({"weight_decay": wd, "steps_per_epoch": per_epoch})
    tables = pd.concat(parts), pd.concat(breaks)
    read, made = forecasts.back_test_published(*tables, setting, (0.1, 0.2))
    assert read.groupby("lr").size().to_dict() == {0.1: 6, 0.2: 5}
    assert read[read.lr == 0.2].epochs.tolist() == [59.0] * 5
    slow, fast = (read[read.lr == lr] for lr in (0.1, 0.2))
    band = 2 * np.log(0.98) / np.log1p(-np.array([0.1, 0.2]) * wd) / per_epoch  # of the band's width
    np.testing.assert_allclose(slow.law, 49 + band[0], rtol=1e-3)
    np.testing.assert_allclose(fast.law, 59 + band[1], rtol=1e-3)
    assert sorted(made.number.unique()) == [3, 4, 5]
    start = made[made.fraction == 0]
    assert start.clock.tolist() == start.length.tolist() == [49.0] * 3 + [59.0] * 2
    np.testing.assert_allclose(start.level, [49 + band[0]] * 3 + [59 + band[1]] * 2, rtol=1e-3)
    alone = forecasts.back_test_published(*tables, setting, [0.2])[1]
    pd.testing.assert_frame_equal(alone, made[made.length == 59])
