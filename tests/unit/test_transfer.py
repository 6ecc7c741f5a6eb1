"""Where the loss is lowest, on made-up records whose optimum is known."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from periodic_lib.analysis.transfer import final_losses, highest_over_lowest, lowest, optima, shift_per_doubling

RATES = np.array([0.05, 0.12, 0.3, 0.8, 2.0])
STEPS = 80


def record(width, best, seeds=(0, 1)):
    """Loss is a parabola in ln lr with its vertex at `best` in the last 50 steps, and 9 before them."""
    lr, seed = (values.ravel() for values in np.meshgrid(RATES, seeds))
    loss = np.full((lr.size, STEPS), 9.0)
    loss[:, -50:] = (1 + 0.1 * seed + 0.3 * np.log(lr / best) ** 2)[:, None]
    turn = np.where(np.arange(STEPS) % 2, np.sqrt(2.0), 0.0) * np.sqrt(lr)[:, None]
    elr = np.broadcast_to((lr / width)[:, None], turn.shape)
    names = ("train_loss", "angular_update", "elr")
    data = {name: (("run", "step"), values) for name, values in zip(names, (loss, turn, elr), strict=True)}
    places = {"lr": ("run", lr), "init_seed": ("run", seed)}
    return xr.Dataset(data, places, {"setup": json.dumps({"width": width})})


def test_every_run_has_a_row_with_its_final_loss():
    table = final_losses([record(32, 0.3), record(64, 0.3)])
    assert len(table) == 20
    row = table.query("width == 64 and seed == 1 and lr == 0.3").iloc[0]
    assert row.loss == pytest.approx(1.1)
    assert row.elr == pytest.approx(0.3 / 64)
    assert row.turn == pytest.approx(np.sqrt(0.3))  # of 0 and √2: root of the mean square 1
    assert final_losses([record(32, 0.3)], last=80).loss.min() > 3


@pytest.mark.parametrize("power", [-1, 0, 0.5])
def test_a_known_optimum_is_found_in_each_unit_with_its_shift(power):
    widths = (32, 64, 128)
    best = optima(final_losses([record(width, 0.25 * (width / 64) ** power) for width in widths]))
    assert best.lr[64, 0] == pytest.approx(0.25)
    assert best.elr[64, 1] == pytest.approx(0.25 / 64)
    assert best.turn[64, 0] == pytest.approx(0.5)
    shift = shift_per_doubling(best)
    assert shift.index.tolist() == [0, 1]
    assert shift.lr.to_numpy() == pytest.approx(power * np.log(2))
    assert shift.elr.to_numpy() == pytest.approx((power - 1) * np.log(2))
    assert shift.turn.to_numpy() == pytest.approx(power / 2 * np.log(2))


def test_the_order_of_the_runs_does_not_matter():
    order = [3, 0, 4, 1, 2]
    assert lowest(RATES[order], np.log(RATES[order] / 0.4) ** 2) == pytest.approx(0.4)


@pytest.mark.parametrize(("best", "found"), [(0.06, 0.06), (1.9, 1.9), (0.03, np.nan), (3, np.nan)])
def test_an_optimum_beyond_the_grid_is_none(best, found):
    assert lowest(RATES, np.log(RATES / best) ** 2) == pytest.approx(found, nan_ok=True)


def test_a_hill_has_no_lowest_place():
    assert np.isnan(lowest([0.1, 0.2, 0.4], [1.0, 2.0, 1.0]))


def test_a_missing_optimum_leaves_no_shift():
    table = final_losses([record(32, 0.3), record(64, 9.0)])
    assert shift_per_doubling(optima(table)).isna().all(axis=None)


def test_highest_over_lowest_is_1_only_where_nothing_changes():
    table = final_losses([record(32, 0.3)])
    assert highest_over_lowest(table.assign(loss=2.0)).tolist() == [1.0, 1.0]
    found = highest_over_lowest(table)[32, 0]
    assert found == pytest.approx(1 + 0.3 * np.log(2 / 0.3) ** 2)
    assert isinstance(highest_over_lowest(table), pd.Series)
