"""The values read off the published figure: is the file what data/README.md says?"""

import numpy as np
import pandas as pd
import pytest

from periodic_lib import results, theory

FIGURE = results.published("lobacheva2021_figure2")
JUMPS = results.published("lobacheva2021_jumps")
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
        results.published("lobacheva2022")
