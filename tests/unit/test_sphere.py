"""Regimes at a fixed effective learning rate, on synthetic losses with known answers and in a short training."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from periodic_lib import Record, Setup, grid, train
from periodic_lib.analysis.sphere import border, e_fold, in_order, sphere_regimes, waiting_steps

STEP = np.arange(400)
LOSSES = {
    "convergence": np.where(STEP < 100, 1.0, 1e-3),
    "chaotic equilibrium": np.where(STEP % 50 < 10, 1e-3, 0.8),
    "divergence": np.full(400, 4.0),
}
ERRORS = {"convergence": 0.0, "chaotic equilibrium": 0.3, "divergence": 0.9}


def runs(classes=10):
    losses, errors = np.stack(list(LOSSES.values())), np.array(list(ERRORS.values()))
    evaluated = np.repeat(errors[:, None], 3, axis=1)
    data = {"train_loss": (("run", "step"), losses), "train_error": (("run", "eval_step"), evaluated)}
    places = {"step": STEP, "eval_step": [0, 200, 400], "run": [0, 1, 2]}
    return xr.Dataset(data, places, {"classes": classes})


def test_each_synthetic_run_has_its_regime():
    assert sphere_regimes(runs(), window=21).values.tolist() == list(LOSSES)


def test_a_run_that_was_low_for_moments_only_has_not_converged():
    waited = waiting_steps(runs(), window=21)
    assert waited.values[0] == 110  # the median of 21 losses is low from the eleventh low one on
    assert np.isnan(waited.values[1:]).all()
    assert waiting_steps(runs()).values[1] == 0  # of single steps it would have


def test_a_loss_that_is_not_finite_is_divergence():
    data = runs()
    data.train_loss[0, 300] = np.nan
    assert sphere_regimes(data, window=21).values[0] == "divergence"
    assert sphere_regimes(runs(classes=2), window=21).values[1] == "chaotic equilibrium"


def test_order_border_and_line():
    assert in_order(["convergence", "convergence", "chaotic equilibrium", "divergence"])
    assert not in_order(["convergence", "divergence", "chaotic equilibrium"])
    assert not in_order(["convergence", "divergence"])
    words = ["convergence"] * 5 + ["divergence"]
    table = pd.DataFrame({"elr": [1, 1, 2, 2, 8, 8], "regime": words})
    assert np.isnan(border(table, "convergence"))  # at the largest rate half of them still converge
    assert border(table.query("elr < 8 or regime == 'divergence'"), "convergence") == pytest.approx(4.0)
    assert e_fold([1, 2, 3, 4], [np.e, np.e**3, np.nan, np.e**7]) == pytest.approx((0.5, 1.0))
    assert np.isnan(e_fold([1, 1, 2], [5.0, 6.0, np.nan])).all()


def test_a_short_training_converges_below_and_not_above():
    setup = Setup(width=16, fixed_norm=1.0, steps=250, drop_last=True)
    found = train(setup, grid(lr=[0.01, 3.0], weight_decay=0, seed=0), Record(evaluate_every=50), progress=False)
    assert sphere_regimes(found, level=0.3, window=11).values.tolist() == ["convergence", "divergence"]
    np.testing.assert_allclose(found.elr.values[:, -1], [0.01, 3.0], rtol=1e-5)
