"""Networks of one run put together, against plain arithmetic."""

import numpy as np
import pandas as pd
import pytest

from periodic_lib import Record, Run, Setup, train
from periodic_lib.successive import equally_spaced, last_minima, put_together, shuffled_within


@pytest.fixture(scope="module")
def trained():
    setup = Setup(width=8, depth=2, steps=40, train_size=200, batch_size=50, test_on_rest=True)
    runs = [Run(lr=0.1, weight_decay=0.0, init_seed=s, data_seed=s) for s in (0, 1)]
    record = Record(evaluate_every=10, snapshot_every=10)
    return train(setup, runs, record, progress=False)


def test_a_network_put_together_with_itself_is_that_network(trained):
    table = put_together(trained, {0: [4, 4, 4], 1: [9]})
    last = trained.test_error.isel(eval_step=-1).values
    for name in ("single", "ensemble", "average"):
        assert table[name].to_numpy() == pytest.approx(last, abs=2e-3)
    assert table.average_train.to_numpy() == pytest.approx(trained.train_error.isel(eval_step=-1).values, abs=0.03)


def test_single_is_the_mean_and_the_ensemble_averages_chances(trained):
    table = put_together(trained, {0: [2, 4]}).iloc[0]
    logits = trained.test_logits.isel(run=0, snapshot_step=[2, 4]).values
    chances = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    truth = trained.label.values
    assert table.single == pytest.approx((logits.argmax(-1) != truth).mean())
    assert table.ensemble == pytest.approx((chances.mean(0).argmax(-1) != truth).mean())


def test_spaced_networks_end_with_the_last_one(trained):
    places = equally_spaced(trained, 2)
    assert places[0].tolist() == [2, 4]
    assert places[1].tolist() == [7, 9]


def test_runs_with_too_few_minima_are_left_out():
    kept = pd.DataFrame({"run": [3, 3, 3, 8], "number": [2, 1, 3, 1], "place": [20.0, 10.0, 30.0, 5.0]})
    places = last_minima(kept, 2)
    assert list(places) == [3]
    assert places[3].tolist() == [20, 30]


def test_shuffling_stays_inside_the_groups_and_destroys_the_order():
    table = pd.DataFrame({"run": np.repeat([0, 1], 500), "x": np.arange(1000), "y": np.arange(1000)})
    mixed = shuffled_within(table, "x", "run")
    assert sorted(mixed.x[mixed.run == 0]) == list(range(500))
    assert abs(mixed[mixed.run == 1][["x", "y"]].corr().iloc[0, 1]) < 0.15
