import numpy as np
import pytest

from periodic_lib import theory

SETTINGS = [(0.1, 1e-3, 20.0), (1.0, 1e-3, 48.0), (0.03, 1e-2, 0.5), (5.0, 1e-1, 3.0)]


def iterate(lr, wd, start, gradients):
    norms = [start]
    for g in gradients:
        norms.append(float(theory.next_norm(lr, wd, norms[-1], g)))
    return np.array(norms)


@pytest.mark.parametrize(("lr", "wd", "g"), SETTINGS)
def test_the_recursion_converges_to_the_equilibrium_norm(lr, wd, g):
    norms = iterate(lr, wd, 3.0, [g] * int(20 / (lr * wd)))
    assert norms[-1] == pytest.approx(theory.equilibrium_norm(lr, wd, g), rel=1e-12)


@pytest.mark.parametrize(("lr", "wd", "g"), SETTINGS)
def test_at_equilibrium_the_angle_has_cosine_a_and_the_elr_is_as_stated(lr, wd, g):
    rho = theory.equilibrium_norm(lr, wd, g)
    angle = theory.angular_update(lr, wd, rho, g)
    assert np.cos(angle) == pytest.approx(1 - lr * wd, rel=1e-12)
    assert angle == pytest.approx(theory.equilibrium_angle(lr, wd), rel=1e-9)
    assert theory.equilibrium_elr(lr, wd, g) == pytest.approx(lr / rho**2, rel=1e-12)


def test_the_published_equilibrium_is_met():
    # learning rate 1, weight decay 1e-3: the published figure shows a norm of 33 at effective gradient norm about 48
    assert theory.equilibrium_norm(1.0, 1e-3, 48.0) == pytest.approx(33, rel=0.05)


def test_slope_at_the_fixed_point():
    lr, wd, g = 0.1, 0.1, 2.0
    square = float(theory.equilibrium_norm(lr, wd, g)) ** 2
    h = 1e-6 * square
    up, down = (float(theory.next_norm(lr, wd, np.sqrt(square + s), g)) ** 2 for s in (h, -h))
    assert (up - down) / (2 * h) == pytest.approx(2 * (1 - lr * wd) ** 2 - 1, rel=1e-6)


def test_fourth_power_relaxes_at_four_el():
    lr, wd, g = 0.1, 1e-3, 20.0
    balance = float(theory.equilibrium_norm(lr, wd, g))
    norms = iterate(lr, wd, 2 * balance, [g] * 5000)
    law = balance**4 + (1 - lr * wd) ** (4 * np.arange(5001)) * (norms[0] ** 4 - balance**4)
    assert np.max(np.abs(norms**4 / law - 1)) < lr * wd  # the law holds up to O(el)


def test_budget_closes_for_random_gradients():
    lr, wd = 0.3, 1e-2
    gradients = np.random.default_rng(0).lognormal(0, 1.5, 400)
    norms = iterate(lr, wd, 1.0, gradients)
    decay, growth = theory.norm_budget(lr, wd, theory.angular_update(lr, wd, norms[:-1], gradients))
    assert growth - decay == pytest.approx(2 * np.log(norms[-1] / norms[0]), rel=1e-12)


def test_random_gradients_balance_on_average():
    # over a stationary run <-ln cos(angle)> = -ln a exactly, up to the change of the norm between the ends
    lr, wd = 0.5, 1e-2
    gradients = np.random.default_rng(1).lognormal(0, 1, 20_000)
    norms = iterate(lr, wd, float(theory.equilibrium_norm(lr, wd, 2.0)), gradients)
    angles = theory.angular_update(lr, wd, norms[:-1], gradients)
    drift = np.log(norms[-1] / norms[0]) / len(gradients)
    assert np.mean(-np.log(np.cos(angles))) == pytest.approx(-np.log(1 - lr * wd) + drift, rel=1e-9)


def test_spread_of_the_squared_norm_at_equilibrium():
    # std(rho^2) / mean = sqrt(el Var(g^2) / (2 G^4)); relative standard error of a std over N values: 1 / sqrt(2 N)
    lr, wd = 0.1, 1e-2
    el = lr * wd
    squares = np.random.default_rng(2).exponential(1.0, 400_000)  # Var(g^2) = G^4
    norms = iterate(lr, wd, float(theory.equilibrium_norm(lr, wd, 1.0)), np.sqrt(squares))
    rho2 = norms[20_000:] ** 2
    independent = len(rho2) * 2 * el  # correlation time 1 / (4 el), both sides
    assert rho2.std() / rho2.mean() == pytest.approx(np.sqrt(el / 2), rel=5 / np.sqrt(2 * independent))


def test_free_decay_takes_the_stated_time():
    lr, wd = 0.1, 1e-2
    steps = round(float(theory.free_decay_steps(lr, wd, 0.01, 0.05)))
    norms = iterate(lr, wd, np.sqrt(lr / 0.01), [0.0] * steps)
    assert theory.effective_lr(lr, norms[-1]) == pytest.approx(0.05, rel=2 * lr * wd)


def test_no_weight_decay_has_no_equilibrium():
    assert np.isinf(theory.equilibrium_norm(0.1, 0.0, 1.0))


def test_functions_broadcast():
    assert theory.equilibrium_norm([[0.1], [1.0]], 1e-3, [1.0, 2.0, 3.0]).shape == (2, 3)


def test_the_clock_of_a_schedule_is_the_free_growth_of_the_effective_learning_rate():
    # iterate the norm without any gradient; the effective learning rate before step t + 1 has seen t decays
    lr, wd = 0.1 * np.array([1, 1, 1, 0.1, 0.1, 0.01]), 1e-3
    norm = 2.0 * np.cumprod(np.append(1.0, 1 - lr * wd))
    grown = np.log(lr / norm[1:] ** 2) - np.log(lr[0] / norm[0] ** 2)
    assert theory.decay_clock(lr, wd) == pytest.approx(grown, abs=1e-6)


def test_the_clock_with_momentum_runs_as_the_recursion_does():
    lr, wd, mu, steps = 0.01, 1e-3, 0.9, 2000
    weight, velocity, logs = 1.0, 0.0, []
    for _ in range(steps):
        velocity = mu * velocity + wd * weight
        weight -= lr * velocity
        logs.append(-2 * np.log(weight))
    clock = theory.decay_clock(np.full(steps, lr), wd, mu)
    assert logs[-1] - logs[500] == pytest.approx(clock[-1] - clock[500], rel=2e-3)


def test_the_clock_of_a_constant_learning_rate_ends_at_the_number_of_expected_periods():
    rates = np.full((2, 300), [[0.1], [0.3]])
    clock = theory.decay_clock(rates, np.array([1e-2, 1e-3]))
    assert clock[:, -1] == pytest.approx(theory.expected_periods(rates, np.array([1e-2, 1e-3]), np.e))
