import numpy as np
import pytest

from periodic_lib.analysis.spreads import (
    disagreement_error,
    interval,
    regular_by_chance,
    resolvable,
    spread,
    variation,
)


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


def test_variation_is_zero_for_a_clock_and_one_for_random_times():
    assert variation([5, 5, 5]) == 0
    assert variation(np.random.default_rng(0).exponential(size=100_000)) == pytest.approx(1, abs=0.01)
    assert variation([1, 3], [10, 30], [100, 300]) == pytest.approx(variation([1, 3]))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_two_random_waits_are_as_regular_as_c_with_probability_c(share):
    """For a, b exponential a / (a + b) is uniform, and the variation is |a - b| / (a + b)."""
    assert regular_by_chance([1 + share, 1 - share], draws=40_000) == pytest.approx(share, abs=0.01)


def test_groups_lose_their_means_in_the_null_too():
    groups = np.random.default_rng(1).exponential(size=(200, 3))
    each = [regular_by_chance(*groups[i : i + 2], draws=300) for i in range(0, 200, 2)]
    assert np.mean(each) == pytest.approx(0.5, abs=0.1)  # a p under its own null is uniform


@pytest.mark.parametrize("n", [5, 10, 40])
def test_a_difference_at_the_resolution_is_seen_four_times_in_five(n):
    rng = np.random.default_rng(n)
    noise = rng.normal(0, 2, (2000, n))
    shift = np.mean([resolvable(row) for row in noise[:500]])
    seen = np.mean([interval(row + shift)[1] > 0 for row in noise])
    assert seen == pytest.approx(0.8, abs=0.06)  # the t quantiles approximate the noncentral t


def test_the_resolution_of_one_value_is_unknown():
    assert np.isnan(resolvable([1.0]))


def test_the_error_of_a_difference_on_one_test_set():
    rng = np.random.default_rng(0)
    either = rng.random((4000, 500)) < 0.1  # they disagree there; each is right on half of these
    sign = rng.choice([-1, 1], either.shape)
    assert (either * sign).mean(axis=1).std() == pytest.approx(disagreement_error(0.1, 500), rel=0.05)
