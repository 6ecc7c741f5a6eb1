"""The plane and its border: runs, fields and thresholds whose answer is known."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from periodic_lib import theory
from periodic_lib.analysis import periods, plane
from periodic_lib.theory.toys import SphereToy


def test_far_gradient_is_the_mean_over_random_directions_and_batches():
    toy = SphereToy(flipped=[0, 0.25], seed=[1, 2], batch=4)
    random = np.random.default_rng(0)
    directions = random.normal(size=(3000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for run, found in enumerate(plane.far_gradient(toy, 2000)):
        squares = []
        for u in directions:
            points = toy.x[run][random.integers(0, 16, 4)]
            across = points - np.outer(points @ u, u)
            gradient = -(30 / (1 + np.exp(30 * points @ u))[:, None] * across).mean(0)
            squares.append(gradient @ gradient)
        assert found == pytest.approx(np.sqrt(np.mean(squares)), rel=0.05)


def test_toy_plane_has_a_row_for_every_run_and_chi_of_the_definition():
    table = plane.toy_plane((1e-2, 1e-1), (0, 0.25), (3, 4), horizon=200)
    assert table.groupby(["noise", "lr_wd", "seed"]).size().eq(1).all()
    minimum = SphereToy(flipped=0.25, seed=4).minimum()
    row = table[(table.noise == 0.25) & (table.seed == 4) & (table.lr_wd == 1e-2)].iloc[0]
    quiet, sharpness = (float(minimum[name][0]) for name in ("eff_grad_norm", "sharpness"))
    assert row.cold == pytest.approx(np.sqrt(2e-2) * sharpness / 2 / quiet)
    assert row.hot == pytest.approx(row.cold * quiet / plane.far_gradient(SphereToy(flipped=0.25, seed=4))[0])


def table(budgets, gradient=lambda noise, lr_wd: noise):
    """Return judged runs of two noises and four products, with these budgets."""
    rows = [(n, p) for n in (0.1, 0.2) for p in (1e-3, 1e-2, 1e-1, 1.0)]
    found = pd.DataFrame(rows, columns=["noise", "lr_wd"]).assign(budget=budgets, seed=0)
    return found.assign(gradient=[gradient(*row) for row in rows])


def test_chi_of_a_network_is_from_its_ends():
    judged = table(0.0, gradient=lambda noise, lr_wd: noise * (100 if lr_wd == 1 else 1))
    inner = plane.with_chi(judged, pd.Series({0.1: 2.0, 0.2: 8.0}))
    assert sorted(set(inner.lr_wd)) == [1e-2, 1e-1]
    expected = [
        theory.balance_to_edge(1, p, n, {0.1: 2.0, 0.2: 8.0}[n]) for n, p in inner[["noise", "lr_wd"]].to_numpy()
    ]
    assert inner.cold.to_numpy() == pytest.approx(expected)
    assert (inner.hot * 100).to_numpy() == pytest.approx(expected)


def test_fields_say_cold_below_and_hot_above_the_edge():
    runs = table([0.9, 0.1, 0.1, 0.55, 0.9, 0.9, 0.1, 0.9])
    runs["cold"], runs["hot"] = [0.1, 0.2, 2, 3] * 2, [0.01, 0.02, 0.2, 0.4] * 2
    rows = plane.fields(runs, edge=0.3)
    assert rows.said.tolist() == [True, True, False, True] * 2
    assert rows.held.tolist() == [True, False, False, True, True, True, False, True]
    assert rows.decided.tolist() == [True, True, True, False] + [True] * 4  # 0.55 is within a tenth of 0.53
    score = plane.border_scores(rows)
    assert score["fields"] == 7
    assert score["right"] == 6
    assert score["always"] == 4
    met, words = plane.border_outcomes(score, share=0.8)
    assert words.startswith("6 of 7")
    assert met["at least 80% of the fields"]


@pytest.mark.parametrize("seed", range(20))
def test_best_constant_is_the_best_of_all_thresholds(seed):
    random = np.random.default_rng(seed)
    values, held = random.integers(0, 5, 12), random.random(12) < 0.5
    tried = [(side * (values - cut) > 0) == held for cut in np.arange(-0.5, 6) for side in (1, -1)]
    assert plane.best_constant(values, held) == max(one.sum() for one in tried)


def test_the_border_is_where_chi_is_the_edge():
    noise, product = np.repeat([0.1, 0.2], 3), np.tile([1e-3, 1e-2, 1e-1], 2)
    rows = pd.DataFrame({"noise": noise, "lr_wd": product})
    rows["cold"] = theory.balance_to_edge(1, product, noise, 4.0)
    for level, at in plane.border(rows, edge=0.3).items():
        assert theory.balance_to_edge(1, at, level, 4.0) == pytest.approx(0.3)


def test_about_the_line_counts_shares_and_payers():
    turns = np.full((1, 400), 1e-4)
    turns[:, 200:202] = 0.5  # 2 of the late 200 steps pay nearly all
    data = xr.Dataset({"angular_update": (("run", "step"), turns)}, {"run": [7], "step": np.arange(400)})
    data = data.assign_coords(lr=("run", [0.1]), weight_decay=("run", [0.1]))
    row = plane.about_the_line(data).loc[7]
    assert (row.below, row.on, row.above) == pytest.approx((0.99, 0, 0.01))
    assert row.top == pytest.approx(1, abs=1e-3)


def test_the_rate_moves_as_it_must_and_a_false_one_does_not():
    orbit = SphereToy(lr_wd=1e-2).run(300)
    assert plane.moves_as_it_must(orbit, 0.01).all()
    assert not plane.moves_as_it_must(orbit.assign(elr=1 / orbit.elr), 0.01).any()


def test_a_change_of_the_rate_that_32_bits_do_not_resolve_says_nothing():
    orbit = SphereToy(lr_wd=1e-6).run(300)
    still = orbit.assign(elr=orbit.elr * 0 + 1, weight_norm=orbit.weight_norm.astype("float32"))
    ratio = periods.balance_ratio(still).values[:, :-1]
    judged, told = plane.moves_as_it_must(still, 0.01).size, (np.abs(ratio - 1) > 0.01).sum()
    assert judged == (np.abs(ratio - 1) > 16 * 2**-23 / 4e-6).sum() < told
    assert plane.moves_as_it_must(still.astype(float), 0.01).size == told
