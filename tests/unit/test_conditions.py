"""Falls, thresholds and tables of chapter 08, on series and tables whose answers are known."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from periodic_lib import theory
from periodic_lib.analysis import conditions

EVERY = np.arange(1000)


def saw(seeds=2):
    """Runs whose norm decays freely and whose gradient falls by 1000 before breaks at 400 and 800."""
    t, lr, wd = EVERY % 400, 0.1, 0.02
    norm = np.tile(0.998**t, (seeds, 1))
    gradient = np.tile(1000 ** (-t / 400), (seeds, 1))
    of_steps = {"weight_norm": norm, "eff_grad_norm": gradient, "train_loss": gradient**2}
    of_steps |= {"elr": lr / norm**2, "angular_update": np.full(norm.shape, 1e-3)}
    places = {"lr": np.full(seeds, lr), "weight_decay": np.full(seeds, wd), "init_seed": np.arange(seeds)}
    variables = {name: (("run", "step"), values) for name, values in of_steps.items()}
    coordinates = {name: ("run", values) for name, values in places.items()}
    return xr.Dataset(variables, {"run": np.arange(seeds), "step": EVERY} | coordinates)


def test_measure_finds_the_fall_up_to_the_first_break():
    table = conditions.measure(saw())
    window = conditions.WINDOW
    expected = 1000 ** ((400 - window) / 400)  # from the first window of a stretch to the last
    assert table.fall.to_numpy() == pytest.approx(expected, rel=0.02)
    assert table.loss_fall.to_numpy() == pytest.approx(expected**2, rel=0.04)
    assert table.reach.to_numpy() == pytest.approx(expected * np.tan(theory.equilibrium_angle(0.1, 0.02)), rel=0.02)
    assert table.rise.to_numpy() == pytest.approx(-2 * 399 * np.log(0.998))
    soon = 1000 ** ((1 / (2 * 0.002) - window) / 400)
    assert table.early_reach.to_numpy() == pytest.approx(table.reach * soon / expected, rel=0.02)


def test_a_run_that_never_breaks_is_watched_to_its_end():
    assert conditions.first_breaks(saw().isel(step=slice(399))).tolist() == [399, 399]
    assert conditions.first_breaks(saw()).tolist() == [399, 399]


def test_falls_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    values = np.exp(np.cumsum(rng.normal(size=60)))
    pairs = [values[i] / values[j] for j in range(60) for i in range(j + 1)]
    place, top, bottom = conditions.deepest_fall(values, 60, window=1)
    assert top / bottom == pytest.approx(max(pairs))
    assert values[place] == pytest.approx(bottom)


def test_the_fitted_threshold_is_the_best_of_all():
    rng = np.random.default_rng(1)
    values = np.exp(rng.normal(size=30))
    truth = values * np.exp(rng.normal(size=30)) < 1
    best = conditions.balanced_accuracy(values < conditions.fit_threshold(values, truth), truth)
    tried = [conditions.balanced_accuracy(values < t, truth) for t in np.geomspace(1e-3, 1e3, 20_000)]
    assert best == pytest.approx(max(tried))


def test_the_interval_is_wide_for_few_groups_and_holds_the_score():
    truth = np.tile([True, False], 50)
    told = np.where(np.arange(100) % 10 == 0, ~truth, truth)
    score = conditions.balanced_accuracy(told, truth)
    many = conditions.accuracy_interval(told, truth, pd.Series(np.arange(100)))
    few = conditions.accuracy_interval(told, truth, pd.Series(np.arange(100) // 10))
    assert many[0] < score < many[1]
    assert few[0] <= score <= few[1]
    assert conditions.transfer(
        frame := pd.DataFrame({"x": [1.0, 2.0], "regime": "equilibrium", "setup": "a", "lr": 1.0}), frame, "x"
    ) == (0.5, "–")


def test_a_partial_correlation_removes_what_a_third_explains():
    rng = np.random.default_rng(2)
    cause, own = rng.normal(size=(2, 4000))
    table = pd.DataFrame({"z": cause, "x": cause + rng.normal(size=4000), "y": cause + own})
    assert conditions.rank_correlation(table, "x", "y") > 0.4
    assert abs(conditions.rank_correlation(table, "x", "y", "z")) < 0.05
    assert conditions.rank_correlation(table.assign(x=cause + own), "x", "y", "z") == pytest.approx(1)


def test_tables_and_letters():
    runs = conditions.measure(saw()).assign(setup="a", train_error=0.1)
    assert conditions.tabulated(runs, ["a"]).to_dict("records") == [
        {"setup": "a", "lr 0.1": "0.00 TT 2", "training error": "10.0%"}
    ]
    assert conditions.undecided(runs) == "0 of 2 undecided"
    assert conditions.side_by_side(runs, "destabilizations")["a"].tolist() == [2, 2]
