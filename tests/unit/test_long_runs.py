from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from periodic_lib.analysis import long_runs


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


def test_excesses_are_those_of_every_size_in_order():
    places = {8: np.zeros(20, int), 128: np.arange(20) % 10}
    found = long_runs.excesses(places, after=1, steps_per_epoch=10)
    assert found["size"].tolist() == [8, 128]
    assert found.found.tolist() == [20, 4]
    assert found.expected.tolist() == pytest.approx([4, 4])
    assert found.p.iloc[0] == pytest.approx(0.2**20)
    assert found.p.iloc[1] > 0.5


def test_a_row_says_how_far_a_run_is_and_how_fast():
    data = xr.Dataset(attrs={"steps_done": 391 * 3, "seconds": 391.0, "instructions": "AVX2"})
    runs = [SimpleNamespace(lr=0.03), SimpleNamespace(lr=1.0)]
    plan = SimpleNamespace(name="x", runs=runs, setup=SimpleNamespace(steps=391 * 12))
    row = long_runs.run_row(plan, data, epoch=391)
    assert row["epochs"] == "3"
    assert row["of"] == 12
    assert row["learning rate"] == "0.03, 1"
    assert row["ms a step"] == pytest.approx(1000 / 3)


def test_the_laboratory_table_has_a_row_for_every_run_also_for_one_that_never_breaks():
    saw, flat = 3 * np.exp(-0.01 * (np.arange(350) % 100)), np.full(350, 3.0)
    norm = ("run", "step"), [saw, flat]
    runs = {"lr": ("run", [0.5, 0.5]), "weight_decay": ("run", [0.02, 0.02]), "init_seed": ("run", [4, 5])}
    runs |= {"run": [0, 1], "step": np.arange(350)}
    table = long_runs.laboratory_table([xr.Dataset({"weight_norm": norm, "train_loss": norm}, runs)])
    assert table.seed.tolist() == [4, 5]
    assert table.breaks.tolist() == [3, 0]
    assert table.span[0] == pytest.approx(2 * 0.99, rel=0.01)
    np.testing.assert_allclose(table[["restart", "break"]].loc[0], [0.5 / 9, 0.5 / 9 * np.exp(2 * 0.99)], rtol=0.01)
    assert table.loc[1, ["wait", "variation", "span", "break", "restart"]].isna().all()
