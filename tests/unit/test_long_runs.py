import numpy as np
import pytest
import xarray as xr

from periodic_lib import long_runs


def test_loss_times_start_anew_at_every_break():
    """Two stretches, L = c / tau with another constant in each; the second is counted from the break."""
    covers, elr = np.full(60, 391), np.geomspace(1e-4, 1e-3, 60)
    step = 391 * np.arange(60)
    tau = np.cumsum(elr * covers)
    second = step >= 391 * 36
    loss = np.where(second, 0.04, 0.02) / np.where(second, tau - tau[35], tau)
    rows = {"train_loss_median": ("step", loss), "elr": ("step", elr), "covers": ("step", covers)}
    found = long_runs.loss_times(xr.Dataset(rows, {"step": step}), [391 * 36, 391 * 60])
    assert found == pytest.approx([0.02, 0.04], rel=1e-9)
    assert long_runs.loss_times(xr.Dataset(rows, {"step": step}), []) == []


def test_excess_sees_a_trigger_and_not_chance():
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 11_000, 60)
    assert long_runs.excess(long_runs.steps_after(starts, 10, 11) <= 1, 2 / 11).p > 0.01
    triggered = np.where(np.arange(60) % 2, starts, starts // 11 * 11 + 10)
    assert long_runs.excess(long_runs.steps_after(triggered, 10, 11) <= 1, 2 / 11).p < 1e-6
    assert long_runs.excess([], 0.5).p == 1
