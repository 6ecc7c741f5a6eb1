"""Where an orbit sits against the edge, and the shape of a loss, on functions with known answers."""

import numpy as np
import pytest
import torch
import xarray as xr

from periodic_lib import ConfigError, Record, Setup, grid, theory, train
from periodic_lib.analysis import stability
from periodic_lib.engine import metrics

SIZE = 6


def invariant(function):
    """A scale-invariant loss of a vector: `function` of its direction's coordinates."""
    return lambda v: function(v / v.norm())


def valley(v):
    """Around e_0: curvature 8 along e_1, which grows by 3 per unit of e_2; 1 along all others."""
    return (8 + 3 * v[2]) * v[1] ** 2 / 2 + v[2:].square().sum() / 2


def at(function=valley):
    point = torch.zeros(SIZE, dtype=torch.float64)
    point[0] = 1.0
    return stability.place(invariant(function), point)


def test_the_sharpest_direction_of_a_known_hessian_and_as_metrics_has_it():
    found = at()
    assert found.sharpness == pytest.approx(8, rel=1e-6)
    assert abs(float(found.direction[1])) == pytest.approx(1, abs=1e-6)
    assert metrics.sharpness(found.loss, 3 * found.point) == pytest.approx(8, rel=1e-2)


def test_the_flips_drift_is_half_the_square_times_the_gradient_of_the_sharpness():
    angle, found = 1e-3, at()
    drift = stability.flip_drift(found, angle)
    expected = torch.zeros(SIZE, dtype=torch.float64)
    expected[2] = 3 * angle**2 / 2
    torch.testing.assert_close(drift, expected, rtol=1e-3, atol=1e-11)
    assert stability.brake(found, angle) == pytest.approx((3 / 8) ** 2, rel=1e-3)


def test_moving_against_the_drift_lowers_the_sharpness_as_its_gradient_says():
    found, length = at(), 0.01
    drift = stability.flip_drift(found, 1e-3)
    fell = -stability.sharpness_along(found, -drift, length)
    assert fell == pytest.approx(length * 3 / 8, rel=0.1)
    assert stability.sharpness_along(found, drift, length) > 0


def test_the_norms_brake_is_four_flips_squared():
    phi, h = 1e-3, 40.0
    step = float(theory.edge_elr(h))  # lr at norm 1; the effective gradient of a flip is h phi
    grown = float(theory.next_norm(step, 0.0, 1.0, h * phi))
    assert 2 * np.log(grown) == pytest.approx(4 * phi**2, rel=1e-4)


def test_the_asymmetric_quartic_decides_whether_a_flip_stays_small():
    """The map phi - Phi F'(phi) just beyond its edge: at rest near zero if b + k^2/(2h) > 0, else away."""
    for cubic, quartic, rests in ((0.0, 1.0, True), (0.0, -1.0, False), (3.0, -1.0, True), (1.0, -1.0, False)):
        shape, phi = stability.Shape(0.0, 1.0, cubic, quartic, 0.0), 0.01
        assert (shape.effective_quartic > 0) == rests
        for _ in range(2000):
            phi -= 2.01 * (phi + cubic * phi**2 / 2 - quartic * phi**3)
            if abs(phi) > 0.4:
                break
        assert (abs(phi) < 0.4) == rests, (cubic, quartic)


def test_the_edge_constant_is_the_theorys_and_walls_are_found_by_a_nearer_scan():
    assert stability.Shape(0.0, 3.0, 0.0, 2.0, 0.0).edge_constant == pytest.approx(4.0)
    found, reach = stability.shape(at(lambda v: torch.cosh(60 * v[1]) / 3600 + v[2:].square().sum() / 4), 0.2)
    assert reach < 0.2
    assert found.residual < stability.MISFIT
    assert found.quartic / found.sharpness == pytest.approx(-(60**2) / 6, rel=0.15)
    softer, _ = stability.shape(at(lambda v: 4 * torch.sin(v[1]) ** 2 + v[2:].square().sum() / 4), 0.05)
    assert softer.quartic > 0


def record(elr, sharpness):
    steps = np.arange(80)
    data = {"elr": (("run", "step"), elr), "sharpness": (("run", "curvature_step"), sharpness)}
    data |= {"weight_norm": (("run", "step"), np.sqrt(0.1 / elr)), "train_loss": (("run", "step"), np.ones_like(elr))}
    data["train_error"] = (("run", "eval_step"), np.zeros((len(elr), 1)))
    places = {"run": np.arange(len(elr)), "step": steps, "curvature_step": np.arange(0, 80, 10), "eval_step": [80]}
    places |= {"weight_decay": ("run", [0.01] * len(elr)), "init_seed": ("run", np.arange(len(elr)))}
    return xr.Dataset(data, places)


def test_residence_tells_a_level_line_from_a_saw():
    level = np.full(80, 0.04)
    saw = 0.04 * np.exp(0.1 * (np.arange(80) % 20))
    found = stability.residence(record(np.stack([level, saw]), np.full((2, 8), 60.0)))
    assert found["product"][0] == pytest.approx(1.2)
    assert found.swing.tolist() == pytest.approx([1.0, np.exp(1.9)])
    assert found.breaks.tolist() == [0, 1]  # of the breaks at 19, 39, 59, the one that starts after the middle
    assert found.sharpened.tolist() == [1.0, 1.0]


def test_places_of_a_short_training():
    setup = Setup(width=8, depth=1, batch_size=None, train_size=100, steps=20)
    runs = grid(lr=0.1, weight_decay=[0, 0.1], seed=[5])
    found = train(setup, runs, Record(curvature_every=10, snapshot_every=5, evaluate_every=10), progress=False)
    assert stability.late_places(found, 2) == [(1, 10), (1, 15)]
    assert stability.before_breaks(found, 1) == []
    here = stability.kept_place(found, 1, 10)
    h = float(found.sharpness.sel(run=1, curvature_step=10))
    assert here.sharpness == pytest.approx(h, rel=0.02)
    rate = float(found.elr.sel(run=1, step=10))
    assert stability.product_at(found, 1, here, 10) == pytest.approx(rate * h / 2 / 0.99, rel=0.02)
    assert stability.products(found, 1, 5, 10).index.tolist() == [5, 10]
    table = stability.shapes(found, [(1, 10)], reach=1, aim=0.01)
    assert table.init_seed.tolist() == [5]
    with pytest.raises(ConfigError, match=r"`step` must be one of `snapshot_step`; got 11. The nearest: 10"):
        stability.kept_place(found, 1, 11)
