"""Networks of one run put together, against plain arithmetic."""

import numpy as np
import pandas as pd
import pytest

from periodic_lib import Record, Run, Setup, results, train
from periodic_lib.analysis import minima as mn
from periodic_lib.analysis.successive import (
    condensed,
    equally_spaced,
    last_minima,
    minima_of,
    put_together,
    shuffled_within,
    with_disagreement,
)


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


@pytest.fixture(scope="module", params=[None, 1.0])
def both(request):
    """Runs that break, and runs on the sphere: of each the whole result and the condensed one."""
    setup = Setup(width=32, steps=300, train_size=200, batch_size=100, fixed_norm=request.param)
    runs = [Run(lr=0.1, weight_decay=0.2, init_seed=s, data_seed=s) for s in (0, 1)]
    whole = train(setup, runs, Record(evaluate_every=10, snapshot_every=10), progress=False)
    return whole, condensed(whole, number=2, every=20)


def test_what_networks_are_worth_outlives_them(both, tmp_path):
    whole, small = both
    assert not {"snapshot_step", "weight", "example"} & set(small.dims)
    assert small.step.values.tolist() == list(range(0, 300, 20))
    assert (small.test_error == whole.test_error).all()
    results.save(small, tmp_path / "small.nc")
    small = results.load(tmp_path / "small.nc")
    if "number" in small.dims:
        minima = mn.find_minima(whole)
        kept = mn.with_places(mn.with_sharpness(minima, whole), whole)
        table, places = minima_of(small), last_minima(kept, 2)
        pd.testing.assert_frame_equal(table[minima.columns], minima, check_dtype=False)
        assert table.sharpness.dropna().to_numpy() == pytest.approx(kept.sharpness.to_numpy())
    else:
        places = equally_spaced(whole, 2)
    for row in put_together(whole, places).itertuples():
        for name in ("single", "ensemble", "average", "average_train"):
            assert float(small[name].sel(run=row.run)) == pytest.approx(getattr(row, name))


def test_disagreement_is_with_the_minimum_before(trained):
    kept = pd.DataFrame({"run": [1, 0, 1, 0], "number": [2, 1, 1, 3], "place": [9, 0, 6, 2]})
    found = with_disagreement(kept, trained).sort_index().disagreement
    guess = trained.test_logits.values.argmax(-1)
    assert found.isna().tolist() == [False, True, True, False]
    assert found[0] == (guess[1, 4] != guess[1, 1]).mean() > 0
    assert found[3] == (guess[0, 2] != guess[0, 0]).mean()
