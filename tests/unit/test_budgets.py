import numpy as np
import pytest
import xarray as xr

from periodic_lib import theory
from periodic_lib.analysis.budgets import norm_budgets


def simulated(gradients, lr=0.1, weight_decay=0.1):
    """Two runs by the exact recursion of norm and angle, from a list of effective gradient norms."""
    norms, angles = [3.0], []
    for g in gradients:
        angles.append(float(theory.angular_update(lr, weight_decay, norms[-1], g)))
        norms.append(float(theory.next_norm(lr, weight_decay, norms[-1], g)))
    of_run = {"lr": ("run", [lr] * 2), "weight_decay": ("run", [weight_decay] * 2)}
    data = {"angular_update": (("run", "step"), [angles] * 2), "weight_norm": (("run", "step"), [norms[:-1]] * 2)}
    return xr.Dataset(data, {"run": [0, 1], "step": np.arange(len(angles)), **of_run}), np.array(norms)


def test_growth_less_decay_is_the_change_of_the_norm():
    results, norms = simulated(np.random.default_rng(0).exponential(size=50))
    due = -2 * 50 * np.log(0.99)
    expected = 1 + 2 * np.log(norms[-1] / norms[0]) / due
    assert norm_budgets(results).ratio.tolist() == pytest.approx([expected] * 2)


def test_from_break_to_break_a_saw_tooth_is_paid_in_full_by_a_few():
    results, _ = simulated(np.where(np.arange(600) % 50 == 49, 60.0, 1e-3))
    found = norm_budgets(results, first=100, closed=(0.1,))
    assert found.ratio.tolist() == pytest.approx([1, 1], abs=0.01)
    assert found.paying.tolist() == pytest.approx([0.02, 0.02], abs=1e-3)
    assert norm_budgets(results, first=551).ratio.max() < 1.1
