"""Approaches to breaks and what follows: saw-tooth runs whose answer is known."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from periodic_lib.analysis import approaches

LR, WD, PERIOD = 0.1, 0.05, 400
RATE = -2 * np.log1p(-LR * WD)


def saw(periods=6, slope=1.0, lr=LR, seed=0):
    """Return a run whose norm falls at `slope` of the free rate and is pushed out at once, its loss
    high for the 20 steps from there on."""
    step = np.arange(periods * PERIOD)
    norm = 3 * np.exp(-slope * RATE / 2 * (step % PERIOD))
    loss = np.where((step % PERIOD < 20) & (step >= PERIOD), 1.0, 0.01)
    rows = {"weight_norm": [norm], "train_loss": [loss], "elr": [lr / norm**2]}
    data = xr.Dataset({name: (("run", "step"), values) for name, values in rows.items()}, {"run": [0], "step": step})
    at = {"lr": lr, "weight_decay": WD, "init_seed": seed}
    return data.assign_coords({name: ("run", [value]) for name, value in at.items()}).assign_attrs(steps_per_epoch=10)


@pytest.mark.parametrize("slope", [1.0, 0.8])
def test_slope_and_law(slope):
    row = approaches.approaches(saw(slope=slope)).iloc[0]
    assert row.slope == pytest.approx(slope)
    assert row["first"] == PERIOD - 1
    assert row.law == pytest.approx(slope * (PERIOD - 1))
    assert np.log(row.level / row.start) == pytest.approx(slope * RATE * (PERIOD - 1))


def test_without_a_break_the_slope_is_that_of_all_and_no_law():
    row = approaches.approaches(saw(periods=1)).iloc[0]
    assert row.slope == pytest.approx(1)
    assert np.isnan(row.law)


def test_forecast_is_exact_where_all_runs_break_at_one_level():
    table = pd.DataFrame({"lr": [1, 2, 3], "init_seed": [0, 1, 2], "level": 0.2, "start": [0.1, 0.05, 0.01]})
    table["lr_wd"] = [0.001, 0.002, 0.003]
    expected = np.log(0.2 / table.start) / (-2 * np.log1p(-table.lr_wd))
    assert approaches.cross_forecast(table).to_numpy() == pytest.approx(expected.to_numpy())


def test_a_run_is_not_forecast_from_its_own_seed_or_rate():
    table = pd.DataFrame({"lr": [1, 1, 2], "init_seed": [0, 1, 0], "level": [9.0, 9, 9], "start": 1.0, "lr_wd": 0.1})
    assert np.isnan(approaches.cross_forecast(table)[0])


def test_recoveries():
    table = approaches.recoveries(saw())
    assert table.start.tolist() == [PERIOD * k - 1 for k in range(1, 6)]
    short = approaches.recoveries(saw().isel(step=slice(5 * PERIOD + 100)))
    assert len(short) == 4  # less than two decay times are left after the last
    assert table.peak.tolist() == pytest.approx([100] * 5)
    assert table.rise.tolist() == pytest.approx([np.exp(RATE * (PERIOD - 1))] * 5)
    window = int(1 / RATE)
    assert table.wait.tolist() == pytest.approx([29 / window] * 5)  # 20 steps, and an epoch's mean


def test_aligned_rows_start_at_their_level():
    time, rows = approaches.aligned(saw(), "weight_norm", before=0.5, after=1, points=31)
    assert rows.shape == (5, 31)
    assert np.median(rows[:, time < 0]) == pytest.approx(np.exp(-1 / 4 + 0.25), rel=0.2)
    assert (rows[:, -1] > rows[:, 0]).all()


def test_drifts_compare_halves():
    data = saw()
    assert list(approaches.drifts(data)) == pytest.approx([1])
    assert list(approaches.drifts(saw(periods=3))) == []
