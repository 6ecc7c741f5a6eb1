import numpy as np
import pytest
import xarray as xr

from periodic_lib.analysis.invariance import decade, parted, relative_error


def test_a_relative_error_has_no_scale():
    left, right = np.array([1.0, 2.0, 2.0]), np.array([1.0, 2.0, 2.3])
    assert relative_error(left, right) == pytest.approx(0.3 / np.sqrt(5 + 2.3**2))
    assert relative_error(1e6 * left, 1e6 * right) == pytest.approx(relative_error(left, right))
    assert relative_error(2.0, 1.0) == 1


def test_a_decade_is_never_below_the_error():
    for error in np.random.default_rng(0).uniform(0, 1, 100) ** 20:
        assert float(decade(error)) >= error
        assert float(decade(error)) <= max(10 * error, 1e-16)


def test_runs_that_part_do_not_come_together_again():
    losses = np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 1.1, 1.0, 0.8]])
    data = xr.Dataset({"train_loss": (("run", "step"), losses)})
    assert parted(data, 1).tolist() == pytest.approx([0, 0.1, 0.1, 0.2])
    assert parted(data, 0).max() == 0
