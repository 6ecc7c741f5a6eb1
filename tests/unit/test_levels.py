"""Levels of periods: against saws and motions whose levels are known."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from periodic_lib import theory
from periodic_lib.analysis import levels


def saw(lr=0.5, weight_decay=0.02, teeth=6, steps=40, kick=1.5):
    """Return a run that decays freely for `steps` and is kicked out by a factor, `teeth` times."""
    a, norm, path = 1 - lr * weight_decay, 3.0, []
    for t in range(teeth * steps):
        path.append(norm)
        norm *= kick if t % steps == steps - 1 else a
    loss = np.ones(len(path))
    variables = {"weight_norm": path, "train_loss": loss, "elr": lr / np.square(path)}
    names = {"lr": lr, "weight_decay": weight_decay, "init_seed": 0, "momentum": 0.0}
    coords = {name: ("run", [value]) for name, value in names.items()}
    data = {name: (("run", "step"), [values]) for name, values in variables.items()}
    data["angular_update"] = data["eff_grad_norm"] = (("run", "step"), [np.zeros(len(path))])
    return xr.Dataset(data, coords | {"run": [0], "step": np.arange(len(path))}, {"classes": 2})


def test_free_decay_accounts_for_the_whole_passage():
    found = levels.passages(saw()).dropna()
    assert len(found) == 4
    assert found.law.to_numpy() == pytest.approx(found.steps.to_numpy())
    assert found.span.to_numpy() == pytest.approx(2 * -np.log(0.99) * found.steps.to_numpy())


def test_level_table_has_the_period_in_foldings():
    row = levels.level_table(saw(), network="saw").iloc[0]
    assert (row.breaks, row.periodic, row.period, row.network) == (5, 1, 40, "saw")
    assert row.folds == pytest.approx(2 * 0.01 * 40)


def test_overshoot_closes_without_decay_whatever_the_gradients():
    rng = np.random.default_rng(0)
    g, norms = np.exp(rng.normal(0, 2, 30)), [2.0]
    for one in g:
        norms.append(float(theory.next_norm(0.5, 0.0, norms[-1], one)))
    norms = np.array(norms)
    values = {"weight_norm": norms, "eff_grad_norm": [*g, 0], "train_loss": norms, "elr": 0.5 / norms**2}
    data = xr.Dataset({name: (("run", "step"), [value]) for name, value in values.items()})
    data = data.assign_coords(run=[0], step=np.arange(31))
    ends = {"run": [0], "start": [0], "end": [30], "break": [0.5 / 4], "restart": [0.5 / norms[-1] ** 2]}
    row = levels.overshoot(data, pd.DataFrame(ends)).iloc[0]
    assert row.closed == pytest.approx(1)
    assert row.ratio > 1.1  # the fourth power counts


@pytest.mark.parametrize(("holds", "expected"), [([1, 1, 0, 1], 0.02), ([0, 1, 1, 1], 0.01), ([1, 1, 1, 1], 0.08)])
def test_border_is_where_holding_first_ends(holds, expected):
    at = levels.border([0.01, 0.02, 0.04, 0.08], holds)
    assert at == pytest.approx(expected * (np.sqrt(2) if expected == 0.02 else 1))


def test_effect_finds_a_planted_slope_and_no_other():
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"lr": 10 ** rng.uniform(-2, 2, 400), "group": rng.integers(0, 4, 400)})
    noise = np.exp(rng.normal(0, 0.1, 400)) * 3.0**table.group
    middle, low, high = levels.effect_within(table.assign(y=noise * table.lr**0.1), "lr", "y", "group")
    assert low < 100**0.1 - 1 < high
    assert middle == pytest.approx(100**0.1 - 1, abs=0.1)
    _, low, high = levels.effect_within(table.assign(y=noise), "lr", "y", "group")
    assert low < 0 < high


def test_ramp_breaks_after_it_has_converged():
    loss = np.r_[np.full(10, 2.0), np.full(20, 0.01), np.full(10, 1.0)]
    elr = np.linspace(0, 0.39, 40)
    data = xr.Dataset({"train_loss": (("run", "step"), [loss, loss]), "elr": (("run", "step"), [elr, elr])})
    data = data.assign_coords(run=[0, 1], warmup=("run", [10, 40]), init_seed=("run", [5, 5]))
    found = levels.ramp_breaks(data, low=0.03, high=0.3, window=2)
    assert found.to_dict() == {5: pytest.approx(elr[30])}


def test_breaks_of_one_time_and_gradient_end_where_the_law_says():
    """Both setups last 0.5; the second spends twice the squared gradient, and ends lower, as the law says."""

    def breaks(square, lasted):
        end = 1 / (1 / 0.1 + square * lasted)
        rows = {"break": 0.1, "spent": 2 * square * 4, "start": 10, "end": 14, "lasted": lasted, "restart": end}
        return pd.DataFrame(rows, index=range(3))

    setups = {"first": breaks(20, 0.5), "second": breaks(40, 0.5), "slow": breaks(20, 2.0), "few": breaks(20, 1.0)[:2]}
    table = levels.arrest_table(setups, least=3, factor=1.5)
    assert table.index.tolist() == ["first", "second", "slow"]  # "few" has too few
    assert np.allclose(table.law, [1 / 20, 1 / 30, 1 / 20])
    assert table.near.tolist() == [1, 1, 0]
    assert np.allclose(table.error, [0, 0, np.log(50 / 20)])
    assert np.allclose(table.constant, [0, np.log(30 / 20), np.log(50 / 20)])
    assert np.allclose(table.before, [np.log(20 / 10), np.log(30 / 10), np.log(50 / 10)])
    by_steps = np.array([(100 + 2 * square * 4) ** -0.5 for square in (20, 40, 20)])
    assert np.allclose(table.steps, np.abs(np.log(by_steps / [1 / 20, 1 / 30, 1 / 50])))
