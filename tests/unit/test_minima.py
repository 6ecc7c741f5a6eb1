"""Minima compared and combined, against brute force on small arrays; networks rebuilt from directions."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from periodic_lib import Record, Setup, grid, train
from periodic_lib.analysis import minima


@pytest.fixture(scope="module")
def small():
    setup = Setup(width=8, train_size=100, steps=40, drop_last=True, batch_size=50)
    record = Record(evaluate_every=10, snapshot_every=10)
    return train(setup, grid(lr=0.1, weight_decay=0.01, seed=[3, 4]), record, progress=False)


def test_a_kept_direction_becomes_its_network_again(small):
    run, w = small.run.values[1], small.direction.values[1]
    stack = minima.as_networks(small, run, w, 7.0)
    guess = stack.predict().argmax(dim=2).numpy()
    kept = small.test_logits.values[1].argmax(axis=-1)
    assert (guess != kept).mean() < 0.01  # the scale is free but for epsilon
    assert np.linalg.norm(stack.invariant.numpy(), axis=1) == pytest.approx(7.0, rel=1e-5)


def test_similarity_is_that_of_every_pair(small):
    cosine, disagreement = minima.similarity(small)
    steps = small.sizes["snapshot_step"]
    one, other = small.isel(run=0, snapshot_step=2), small.isel(run=1, snapshot_step=1)
    assert cosine[2, steps + 1] == pytest.approx(float(one.direction @ other.direction), abs=1e-6)
    differ = one.test_logits.values.argmax(1) != other.test_logits.values.argmax(1)
    assert disagreement[2, steps + 1] == pytest.approx(differ.mean())
    assert np.diag(disagreement).max() == 0


def found():
    """Three minima of run 0, one of run 1; networks kept at 10, 20, ..., 100."""
    rows = {"run": [0, 0, 0, 1], "number": [1, 2, 3, 1], "start": [0, 32, 62, 0], "end": [29, 59, 95, 50]}
    return pd.DataFrame(rows | {"snapshot": [20, 50, 90, 40]})


def kept_steps():
    return xr.Dataset(coords={"run": [0, 1], "snapshot_step": np.arange(10, 101, 10)})


def test_places_middles_and_pairs():
    kept = minima.with_places(found(), kept_steps())
    assert kept.place.tolist() == [1, 4, 8, 13]
    assert kept.middle.tolist() == [0, 3, 7, 11]  # at 10, 40 (not that of the minimum, 50), 80, and 20
    table = np.arange(400.0).reshape(20, 20)
    pairs = minima.pair_up(kept, {"value": table}, most=2, others=1)
    assert pairs.breaks.value_counts().to_dict() == {0: 4, "independent": 4, 1: 2, 2: 1}
    within = pairs[pairs.breaks == 2].iloc[0]
    assert within.value == table[1, 8]
    other = pairs[(pairs.breaks == "independent") & (pairs.run == 0)]
    assert set(other.other) == {13}


def test_ensembles_are_judged_by_their_mean_chances():
    rng = np.random.default_rng(0)
    chances = rng.dirichlet(np.ones(3), size=(20, 30))
    truth = rng.integers(0, 3, 30)
    mean = (chances[1] + chances[4] + chances[8]) / 3
    table = minima.judge_ensembles(chances, truth, {0: [1, 4, 8], 1: [13]}, sizes=(1, 3), draws=2)
    own = table[(table.n == 3) & (table.members == "one run")]
    assert own.run.tolist() == [0, 0]
    assert own.error.to_numpy() == pytest.approx((mean.argmax(1) != truth).mean())
    assert own.loss.to_numpy() == pytest.approx(-np.log(mean[np.arange(30), truth]).mean())
    assert len(table[(table.n == 1) & (table.members == "one run")]) == 4
    assert table[table.n == 3].members.unique().tolist() == ["one run"]  # two runs make no three
    periods = minima.judge_periods(chances, truth, found(), kept_steps(), most=3)
    assert set(periods.run) == {1}  # no stretch of run 0 has four networks
    alone = periods[(periods.run == 1) & (periods.n == 1)].error.item()
    assert alone == pytest.approx((chances[14].argmax(1) != truth).mean())


def test_mean_directions_of_equal_networks_are_that_network(small):
    steps = small.snapshot_step.values
    rows = {"run": [0, 0], "place": [2, 2], "middle": [2.0, 2.0], "snapshot": steps[2], "number": [1, 2]}
    table = minima.judge_mean_directions(pd.DataFrame(rows), small)
    assert table["mean direction"].tolist()[0] == "a minimum"
    assert table["test error"].nunique() == 1
