import numpy as np
import pytest

from periodic_lib.spreads import interval, spread


def test_a_spread_is_median_lowest_and_highest():
    assert spread([0.5, 0.1, 0.2, 0.4], ".2f") == "0.30 (0.10 to 0.50)"
    assert spread(np.array([3])) == "3 (3 to 3)"
    assert spread(value for value in ()) == "–"


def test_the_interval_of_a_mean_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [interval(rng.normal(1, 2, 5), level=0.8) for _ in range(2000)]
    assert np.mean([low < 1 < high for _, low, high in intervals]) == pytest.approx(0.8, abs=0.03)


def test_the_interval_of_one_value_or_none_is_unknown():
    mean, low, high = interval([3])
    assert mean == 3
    assert np.isnan([low, high, *interval([])]).all()


def test_the_interval_of_equal_values_is_that_value():
    assert interval([2, 2, 2]) == (2, 2, 2)
