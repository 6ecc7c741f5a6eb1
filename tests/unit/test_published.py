"""The values read off the published figure: is the file what data/README.md says?"""

import numpy as np
import pandas as pd
import pytest

from periodic_lib import theory
from periodic_lib.anchors import beside, published
from periodic_lib.project import ConfigError

FIGURE = published("lobacheva2021_figure2")
JUMPS = published("lobacheva2021_jumps")
NORM = FIGURE[FIGURE.quantity == "si_weight_norm"]


def test_every_learning_rate_has_both_curves_within_the_axes():
    assert set(FIGURE.learning_rate) == {1.0, 0.03, 0.01, 0.001}
    assert set(FIGURE.quantity) == {"train_loss", "si_weight_norm"}
    assert not FIGURE.isna().any().any()
    assert (FIGURE.column_low <= FIGURE.column_high).all()
    assert FIGURE.epoch.between(0, 1000).all()
    assert NORM.column_low.between(1, 40).all()
    assert FIGURE[FIGURE.quantity == "train_loss"].column_low.between(1e-4, 10).all()
    for _, curve in FIGURE.groupby(["learning_rate", "quantity"]):
        assert (curve.epoch.diff().dropna() > 0).all()
        assert len(curve) >= 130


def test_the_jumps_are_where_the_norm_jumps():
    assert JUMPS.groupby("learning_rate").size().to_dict() == {0.01: 4, 0.03: 15}
    for lr, epochs in JUMPS.groupby("learning_rate").epoch:
        curve = NORM[NORM.learning_rate == lr]
        for epoch in epochs:
            before = curve[curve.epoch.between(epoch - 16, epoch + 3)].column_low.min()
            after = curve[curve.epoch.between(epoch - 3, epoch + 24)].column_high.max()
            assert after > 1.1 * before, (lr, epoch)


@pytest.mark.parametrize(
    ("lr", "first", "last"), [(0.01, 100, 190), (0.01, 300, 380), (0.01, 600, 850), (0.03, 90, 130)]
)
def test_between_jumps_the_norm_falls_about_as_weight_decay_says(lr, first, last):
    curve = NORM[(NORM.learning_rate == lr) & NORM.epoch.between(first, last)]
    slope = np.polyfit(curve.epoch, np.log(np.sqrt(curve.column_low * curve.column_high)), 1)[0]
    assert slope == pytest.approx(391 * np.log1p(-lr * 1e-3), rel=0.1)


def test_the_flat_norm_is_the_equilibrium():
    flat = NORM[(NORM.learning_rate == 1.0) & (NORM.epoch > 500)].column_low.median()
    assert flat == pytest.approx(float(theory.equilibrium_norm(1.0, 1e-3, 48.0)), rel=0.05)


def test_reading_is_plain():
    assert isinstance(JUMPS, pd.DataFrame)
    with pytest.raises(FileNotFoundError):
        published("lobacheva2022")


def test_ours_stands_beside_what_was_published_and_agrees_within_a_tenth():
    anchors = published("anchors").query("chapter == '15_on_the_sphere'").set_index("quantity")
    ours = {name: row.high * 1.09 for name, row in anchors.iterrows()}
    ours |= {"border": anchors.low["border"] * 0.89, "upper": np.nan, "loss_rank": -0.95}
    table = beside("15_on_the_sphere", ours).set_index("finding")
    assert table.agrees.tolist() == ["no", "–", "yes", "yes", "yes", "yes"]
    assert table.published.tolist()[:2] == ["0.0001 to 0.0005", "0.02 to 0.1"]
    with pytest.raises(ConfigError, match=r"unknown quantity in `ours`.*elr"):
        beside("15_on_the_sphere", ours | {"elr": 1.0})
    ours.pop("fold_share")
    with pytest.raises(ConfigError, match="fold_share is missing"):
        beside("15_on_the_sphere", ours)


def test_anchors_are_ranges_of_chapters_and_come_from_what_is_kept():
    anchors = published("anchors")
    assert (anchors.low <= anchors.high).all()
    assert not anchors.duplicated(["chapter", "quantity"]).any()
    borders = published("sadrtdinov2024_borders")
    decades = np.log10(borders.chaos_to_divergence / borders.convergence_to_chaos)
    kept = anchors.set_index("quantity")
    for name, values in (("border", borders.convergence_to_chaos), ("upper", borders.chaos_to_divergence)):
        assert (kept.low[name], kept.high[name]) == (values.min(), values.max())
    assert (kept.low["decades"], kept.high["decades"]) == pytest.approx((decades.min(), decades.max()), abs=0.01)
