"""Early signs and how they are scored: tables whose answer is known."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from periodic_lib import theory
from periodic_lib.analysis import early_signs
from periodic_lib.analysis.spreads import area_under_curve
from periodic_lib.theory.toys import SphereToy


def scored(gap, settings=30, seeds=2, seed=0):
    """Return a table of runs, half of them held, with a score that is `gap` higher for these."""
    random = np.random.default_rng(seed)
    setting = np.repeat(np.arange(settings), seeds)
    held = setting % 2 == 0
    noise = np.repeat(random.normal(size=settings), seeds)
    table = pd.DataFrame({"setting": setting.astype(str), "held": held, "score": noise + gap * held})
    return table.assign(other=table.score, blind=random.normal(size=len(table)))


def test_area_is_the_share_of_ordered_pairs():
    table = scored(1.0)
    yes, no = table.score[table.held].to_numpy(), table.score[~table.held].to_numpy()
    assert area_under_curve(table.held, table.score) == pytest.approx((yes[:, None] > no).mean())
    assert area_under_curve(table.held, table.score) == pytest.approx(roc_auc_score(table.held, table.score))
    assert np.isnan(area_under_curve([True, True], [0, 1]))


def test_a_score_differs_from_itself_by_nothing_and_from_chance_by_much():
    rows = early_signs.areas(scored(3.0), ["score", "other", "blind"], ["other", "blind"], draws=200)
    assert (rows.low <= rows.area).all()
    assert (rows.area <= rows.high).all()
    same = rows.loc["score", ["minus other", "minus other, low", "minus other, high"]]
    assert same.tolist() == [0, 0, 0]  # the same draws, whatever the intervals
    assert rows.loc["score", "minus blind, low"] > 0.2


def test_intervals_draw_settings():
    """With twice the runs of every setting nothing is known better."""
    once, twice = (early_signs.areas(scored(1.0, seeds=n), ["score"], draws=400).iloc[0] for n in (1, 4))
    assert twice.high - twice.low == pytest.approx(once.high - once.low, rel=0.1)


def test_outcomes_that_are_all_alike_have_no_area():
    rows = early_signs.areas(scored(1.0).assign(held=True), ["score"], draws=5)
    assert rows.isna().all(axis=None)


def test_together_learns_which_sign_counts():
    random = np.random.default_rng(0)
    fit, test = (pd.DataFrame(np.exp(random.normal(size=(300, len(early_signs.SIGNS))))) for _ in range(2))
    for table in (fit, test):
        table.columns = [*early_signs.SIGNS]
        table["held"] = table["loss"] > 1
    assert area_under_curve(test.held, early_signs.together(fit, test)) > 0.98
    assert not early_signs.together(fit.assign(held=True), test).any()


@pytest.fixture(scope="module")
def orbits():
    return SphereToy(lr_wd=[1e-3, 1e-2], flipped=[0, 0.25], seed=[1, 1]).run(2000).assign_attrs(steps_per_epoch=4)


def test_signs_are_of_the_first_steps_only(orbits):
    table = early_signs.signs(orbits, 80)
    assert [*table] == [*early_signs.SIGNS, early_signs.HELD]
    changed = orbits.copy(deep=True)
    for name in ("eff_grad_norm", "train_loss", "weight_norm", "angular_update"):
        changed[name][:, 80:] = 1.0
    pd.testing.assert_frame_equal(table, early_signs.signs(changed, 80))
    assert table["lr × wd"].tolist() == pytest.approx([1e-3, 1e-2])
    assert (table[[*early_signs.SIGNS]] > 0).all(axis=None)


def test_the_race_is_won_by_a_gradient_that_falls_slowly(orbits):
    fall = np.exp(-0.004 * np.arange(orbits.sizes["step"]))
    steady = orbits.assign(eff_grad_norm=orbits.eff_grad_norm * 0 + fall)
    assert early_signs.signs(steady, 80)["race"].tolist() == pytest.approx([0.5, 5])


def test_chi_takes_the_root_mean_square(orbits):
    short = orbits.isel(step=slice(80)).assign(sharpness=(("run", "curvature_step"), [[9.0, 40.0]] * 2))
    found = early_signs.early_chi(short, 80)
    gradient = np.sqrt(np.square(short.eff_grad_norm.values[:, 40:]).mean(1))
    chi = theory.balance_to_edge(1.0, [1e-3, 1e-2], gradient, 40.0)
    assert (1 / found["1 / χ"]).to_numpy() == pytest.approx(chi)


def test_outcomes_and_collect(orbits):
    table = early_signs.outcomes("toy", orbits)
    assert table.held.tolist() == (table.regime == "equilibrium").tolist()
    assert table.setting[0].startswith("toy 0.01 ")
    assert len(early_signs.collect({"toy": orbits}, 80)) <= 2


def test_words():
    rows = early_signs.areas(scored(3.0), ["score", "other"], ["other"], draws=50)
    text = early_signs.in_words(rows, ["other"])
    assert text["minus other"][0] == "+0.00 (+0.00 to +0.00)"
    assert text["minus other"].isna().tolist() == [False, True]
    assert early_signs.said(rows.iloc[0], "other") == "minus other +0.00 (+0.00 to +0.00)"
