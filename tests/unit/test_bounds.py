"""Bounds on jumps: made-up gradients attain them, training keeps them; orbits at the edge."""

import numpy as np
import pytest
import xarray as xr

from periodic_lib import theory
from periodic_lib.analysis import bounds, edges


def test_the_adversary_attains_the_bound_and_nobody_is_earlier():
    settings = bounds.random_settings(30, seed=3)
    first = bounds.first_jumps(settings, below=0.99, above=1.02, unforced=2, forced=0.5)
    assert (first.adversary >= settings.bound - 1e-6).all()
    assert (first.adversary <= 1.01 * settings.bound + 2).all()
    assert (first.random >= settings.bound - 1e-6).all()
    assert np.isinf(first[["never", "unforced"]]).all(axis=None)
    assert np.isfinite(first[["soon", "forced"]]).all(axis=None)


def test_every_motion_by_the_law_keeps_every_bound():
    rng, lr, wd, steps = np.random.default_rng(0), 1.0, 0.01, 3000
    g = 0.02 * np.exp(rng.normal(0, 0.5, steps)) + 1.0 * (rng.uniform(size=steps) < 0.01)
    norm, angle = np.empty(steps), np.empty(steps)
    rho = 3.0
    for t in range(steps):
        norm[t], angle[t] = rho, theory.angular_update(lr, wd, rho, g[t])
        rho = float(theory.next_norm(lr, wd, rho, g[t]))
    values = {"weight_norm": norm, "angular_update": angle, "eff_grad_norm": g}
    data = xr.Dataset({name: (("run", "step"), [value]) for name, value in values.items()})
    data = data.assign_coords(run=[0], step=np.arange(steps), lr=("run", [lr]), weight_decay=("run", [wd]))
    cases = bounds.bounds_in_training(data, delta=0.03)
    assert set(cases.kind) == {"early", "back", "quiet"}
    assert (bounds.violation(cases) <= 1).all()


def test_the_border_between_staying_at_the_edge_and_leaving_it():
    found = edges.laws([1.0, 2.0, 4.0], [], [], seeds=1)
    assert found.measured.to_numpy() == pytest.approx([1, 0, -4], abs=2e-3)
    assert np.sign(found.law).tolist() == [1, 0, -1]
