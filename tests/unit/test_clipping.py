"""Clipped gradients: the balance against the recursion, the table against records with known answers."""

import numpy as np
import pytest
import xarray as xr

from periodic_lib import Record, Run, Setup, train
from periodic_lib.analysis.clipping import adaptive_limits, clipped_norm, guard_table


@pytest.mark.parametrize(("lr", "wd", "limit"), [(0.1, 0.2, 1.0), (0.3, 1e-2, 0.05), (2.0, 0.1, 7.0)])
def test_the_recursion_settles_where_the_balance_says(lr, wd, limit):
    square = 5.0**2
    for _ in range(20_000):
        square = (1 - lr * wd) ** 2 * square + lr**2 * limit**2
    assert clipped_norm(lr, wd, limit) == pytest.approx(np.sqrt(square))
    assert clipped_norm(lr, wd, limit) == pytest.approx(limit * np.sqrt(lr / (2 * wd)), rel=0.06)


def test_training_with_every_step_clipped_settles_there():
    setup = Setup(width=16, depth=2, steps=400, dtype="float64", bn_eps=0.0, batch_size=32, train_size=320)
    runs = [Run(lr=0.1, weight_decay=0.5, clip_norm=limit, init_seed=3) for limit in (0.1, 0.2)]
    table = guard_table(train(setup, runs, Record(evaluate_every=None), progress=False))
    assert (table.clipped == 1).all()
    assert table.norm.tolist() == pytest.approx([clipped_norm(0.1, 0.5, c) for c in (0.1, 0.2)], rel=1e-3)
    assert table.turn.tolist() == pytest.approx([np.sqrt(2 * 0.1 * 0.5)] * 2, rel=0.05)
    assert table.grown.tolist() == pytest.approx([1, 1], rel=0.01)
    assert table.breaks.tolist() == [0, 0]


def saw():
    """A run that breaks at steps 99 and 199, and one whose norm shrinks by a thousandth a step."""
    step = np.arange(300)
    norm = np.stack([np.exp(-0.01 * (step % 100)), np.exp(-0.001 * step)])
    loss = np.ones((2, 300))
    loss[0, [100, 200]] = 4.0, 6.0
    gradient = np.stack([np.where(step % 10, 1.0, 3.0), np.ones(300)])
    dims, places = ("run", "step"), {"run": [5, 6], "step": step}
    data = {"weight_norm": norm, "train_loss": loss, "grad_norm": gradient}
    data |= {"elr": 0.1 / norm**2, "angular_update": np.full((2, 300), 0.2)}
    places |= {"init_seed": ("run", [0, 1]), "clip_norm": ("run", [2.0, np.nan])}
    places |= {name: ("run", [np.nan, np.nan]) for name in ("clip_above", "skip_above")}
    return xr.Dataset({name: (dims, values) for name, values in data.items()}, places)


def test_the_table_counts_breaks_and_clipped_steps():
    broken, quiet = guard_table(saw()).itertuples()
    assert (broken.breaks, broken.late_breaks, quiet.breaks, quiet.late_breaks) == (2, 1, 0, 0)
    assert broken.peak_loss == 5  # the median of 4 and 6
    assert broken.elr_break == pytest.approx(0.1 * np.exp(2 * 0.99))
    assert np.isnan(quiet.peak_loss)
    assert (broken.worst, quiet.worst) == (6, 1)
    assert (broken.clipped, quiet.clipped) == (pytest.approx(0.1), 0)
    assert quiet.turn == pytest.approx(0.2)
    assert (broken.seed, quiet.seed) == (0, 1)


def test_growth_is_from_one_tenth_to_the_last():
    quiet = guard_table(saw(), from_share=0.6).set_index("run").loc[6]
    assert quiet.grown == pytest.approx(np.exp(2 * 0.001 * 120))  # 0.4 of 300 steps
    assert quiet.norm_end == pytest.approx(np.exp(-0.001 * 284.5))  # the middle of the last tenth


def test_the_limits_that_follow_are_those_that_the_steps_had():
    setup = Setup(width=8, depth=1, steps=200, dtype="float64", bn_eps=0.0)
    runs = [Run(lr=0.3, weight_decay=1e-2, clip_above=above) for above in (None, 0.5)]
    data = train(setup, runs, Record(evaluate_every=None), progress=False)
    limits = adaptive_limits(data)
    assert np.isinf(limits[0]).all()
    assert np.isinf(limits[1, :25]).all()
    steps = (np.tan(data.angular_update) * data.weight_norm * (1 - 0.3e-2) / 0.3)[1]  # lengths of the gradients used
    expected = np.minimum(limits, data.grad_norm)[1]
    np.testing.assert_allclose(steps, expected, rtol=1e-4)
    table = guard_table(data)
    assert table.clipped.tolist() == [0, pytest.approx(float(np.isfinite(limits[1, 100:]).mean()))]
    assert 0 < table.clipped[1] < 1
