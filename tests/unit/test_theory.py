import numpy as np
import pytest

from periodic_lib import theory
from periodic_lib.project import ConfigError
from periodic_lib.theory import toys

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
def test_at_equilibrium_the_angle_has_cosine_a(lr, wd, g):
    rho = theory.equilibrium_norm(lr, wd, g)
    angle = theory.angular_update(lr, wd, rho, g)
    assert np.cos(angle) == pytest.approx(1 - lr * wd, rel=1e-12)
    assert angle == pytest.approx(theory.equilibrium_angle(lr, wd), rel=1e-9)
    assert theory.balance_ratio(angle, lr, wd) == pytest.approx(1, rel=1e-9)
    assert theory.balance_line(theory.effective_lr(lr, rho), lr, wd) == pytest.approx(g, rel=1e-9)


def test_the_square_of_the_balance_ratio_is_growth_over_decay():
    lr, wd, g = 0.3, 1e-2, np.array([0.1, 1.0, 20.0])
    rho = 2.0
    ratio = theory.balance_ratio(theory.angular_update(lr, wd, rho, g), lr, wd)
    growth = theory.next_norm(lr, wd, rho, g) ** 2 - ((1 - lr * wd) * rho) ** 2
    decay = rho**2 * (1 - (1 - lr * wd) ** 2)
    np.testing.assert_allclose(ratio**2, growth / decay, rtol=1e-9)
    assert np.isinf(theory.balance_ratio(0.1, 1.0, 0.0))
    assert np.isnan(theory.balance_ratio(0.0, 1.0, 0.0))


def test_above_the_balance_line_the_norm_grows():
    lr, wd, rho = 0.3, 1e-2, np.array([0.5, 5.0, 50.0])
    line = theory.balance_line(lr / rho**2, lr, wd)
    np.testing.assert_allclose(theory.next_norm(lr, wd, rho, line), rho, rtol=1e-12)
    assert (theory.next_norm(lr, wd, rho, 1.01 * line) > rho).all()
    assert (theory.next_norm(lr, wd, rho, 0.99 * line) < rho).all()


def test_the_published_equilibrium_is_met():
    # learning rate 1, weight decay 1e-3: the published figure shows a norm of 33 at effective gradient norm about 48
    assert theory.equilibrium_norm(1.0, 1e-3, 48.0) == pytest.approx(33, rel=0.05)


def test_slope_at_the_fixed_point():
    lr, wd, g = 0.1, 0.1, 2.0
    square = float(theory.equilibrium_norm(lr, wd, g)) ** 2
    h = 1e-6 * square
    up, down = (float(theory.next_norm(lr, wd, np.sqrt(square + s), g)) ** 2 for s in (h, -h))
    assert (up - down) / (2 * h) == pytest.approx(2 * (1 - lr * wd) ** 2 - 1, rel=1e-6)


def test_fourth_power_relaxes_at_four_lr_wd():
    lr, wd, g = 0.1, 1e-3, 20.0
    balance = float(theory.equilibrium_norm(lr, wd, g))
    norms = iterate(lr, wd, 2 * balance, [g] * 5000)
    law = balance**4 + (1 - lr * wd) ** (4 * np.arange(5001)) * (norms[0] ** 4 - balance**4)
    assert np.max(np.abs(norms**4 / law - 1)) < lr * wd  # the law holds up to O(lr_wd)


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
    # std(rho^2) / mean = sqrt(lr_wd Var(g^2) / (2 G^4)); relative standard error of a std over N values: 1 / sqrt(2 N)
    lr, wd = 0.1, 1e-2
    lr_wd = lr * wd
    squares = np.random.default_rng(2).exponential(1.0, 400_000)  # Var(g^2) = G^4
    norms = iterate(lr, wd, float(theory.equilibrium_norm(lr, wd, 1.0)), np.sqrt(squares))
    rho2 = norms[20_000:] ** 2
    independent = len(rho2) * 2 * lr_wd  # correlation time 1 / (4 lr_wd), both sides
    assert rho2.std() / rho2.mean() == pytest.approx(np.sqrt(lr_wd / 2), rel=5 / np.sqrt(2 * independent))


def test_free_decay_takes_the_stated_time():
    lr, wd = 0.1, 1e-2
    steps = round(float(theory.free_decay_steps(lr, wd, 0.01, 0.05)))
    norms = iterate(lr, wd, np.sqrt(lr / 0.01), [0.0] * steps)
    assert theory.effective_lr(lr, norms[-1]) == pytest.approx(0.05, rel=2 * lr * wd)


def test_no_weight_decay_has_no_equilibrium():
    assert np.isinf(theory.equilibrium_norm(0.1, 0.0, 1.0))


def test_functions_broadcast():
    assert theory.equilibrium_norm([[0.1], [1.0]], 1e-3, [1.0, 2.0, 3.0]).shape == (2, 3)


# ---------------------------------------------------------------- jumps: every bound on the norm recursion


def settings(number=100, seed=3):
    """Random lr, weight decay (lr * weight decay from 2e-3 to 1e-2), delta, smallest gradient and starting norm."""
    rng = np.random.default_rng(seed)
    lr, lr_wd = 10 ** rng.uniform(-2, 1, number), 10 ** rng.uniform(-2.7, -2, number)
    return lr, lr_wd / lr, rng.uniform(0.03, 0.3, number), rng.uniform(0.1, 10, number), rng


def first_jumps(lr, wd, delta, start, choose, steps):
    """Return the step of the first delta-jump of every setting (inf: none), for gradients `choose(norm)`."""
    norm, first = np.array(start), np.full(len(lr), np.inf)
    for t in range(steps):
        g = choose(norm)
        jumps = 1 - np.cos(theory.angular_update(lr, wd, norm, g)) > delta * (1 + 1e-12)
        first = np.where(jumps & np.isinf(first), t, first)
        norm = theory.next_norm(lr, wd, norm, g)
    return first


def as_early_as_possible(lr, wd, delta, low, high):
    limit = theory.jump_norm(lr, wd, high, delta)
    return lambda norm: np.where(norm < limit, high, low)


def test_a_delta_jump_is_a_step_beyond_the_jump_norm():
    lr, wd, delta, g, _ = settings()
    limit = theory.jump_norm(lr, wd, g, delta)
    for factor, jumps in ((0.999, True), (1.001, False)):
        angle = theory.angular_update(lr, wd, factor * limit, g)
        assert ((1 - np.cos(angle) > delta) == jumps).all()
    assert np.allclose(1 - np.cos(np.arctan(theory.jump_tangent(delta))), delta, rtol=1e-12)
    with pytest.raises(ConfigError, match="`delta` must be a cosine distance above 0 and below 1; got 1"):
        theory.jump_tangent(1.0)


def test_the_adversary_attains_the_lower_bound():
    lr, wd, delta, low, rng = settings()
    high = low * theory.never_jump_ratio(lr, wd, delta) * rng.uniform(1.5, 20, len(lr))
    start = theory.jump_norm(lr, wd, high, delta) * rng.uniform(1.2, 5, len(lr))
    bound = theory.jump_not_before(lr, wd, start, low, high, delta)
    first = first_jumps(lr, wd, delta, start, as_early_as_possible(lr, wd, delta, low, high), 2000)
    assert (first >= bound - 1e-6).all()
    assert (first <= 1.01 * bound + 2).all()  # the bound leaves out a term of relative order lr_wd


def test_no_gradients_between_low_and_high_jump_before_the_lower_bound():
    lr, wd, delta, low, rng = settings(seed=4)
    high = low * theory.never_jump_ratio(lr, wd, delta) * rng.uniform(1.1, 20, len(lr))
    start = theory.jump_norm(lr, wd, high, delta) * rng.uniform(1.01, 5, len(lr))
    bound = theory.jump_not_before(lr, wd, start, low, high, delta)
    random = first_jumps(lr, wd, delta, start, lambda norm: low * (high / low) ** rng.beta(0.2, 2, len(lr)), 2000)
    assert (random >= bound - 1e-6).all()


def test_up_to_the_critical_ratio_nothing_jumps():
    lr, wd, delta, low, _ = settings()
    for factor, jumps in ((0.99, False), (1.02, True)):
        high = factor * low * theory.never_jump_ratio(lr, wd, delta)
        start = theory.jump_norm(lr, wd, high, delta)
        first = first_jumps(lr, wd, delta, start, as_early_as_possible(lr, wd, delta, low, high), 10_000)
        assert (np.isfinite(first) == jumps).all()
        assert (np.isfinite(theory.jump_not_before(lr, wd, 1.001 * start, low, high, delta)) == jumps).all()
    assert theory.never_jump_ratio(1.0, 1e-4, 0.01) == pytest.approx(np.sqrt(0.01 / 1e-4), rel=0.02)


def test_a_jump_is_forced_only_below_lr_wd():
    lr, wd, _, g, rng = settings()
    lr_wd = lr * wd
    start = 2 * theory.equilibrium_norm(lr, wd, g)
    constant = first_jumps(lr, wd, 1.1 * lr_wd, start, lambda norm: g, 5000)
    assert np.isinf(constant).all()
    forced = first_jumps(lr, wd, 0.5 * lr_wd, start, lambda norm: g * 3 ** rng.uniform(0, 1, len(lr)), 5000)
    assert np.isfinite(forced).all()


def test_quiet_gradients_reach_the_edge_in_time():
    lr, wd, delta, q, rng = settings(seed=5)
    edge = rng.uniform(0.2, 0.7, len(lr)) * np.sqrt(2 * lr * wd) / q
    start = np.sqrt(lr / edge) * rng.uniform(1.5, 4, len(lr))
    bound = theory.unstable_by(lr, wd, start, q, edge, delta)
    assert np.isfinite(bound).all()
    assert np.isinf(theory.unstable_by(lr, wd, start, q, 1.2 * np.sqrt(2 * lr * wd) / q, delta)).all()
    for gradient in (lambda: q, lambda: q * rng.uniform(0, 1, len(lr))):
        norm, arrived = start, np.full(len(lr), np.inf)
        for t in range(int(bound.max()) + 2):
            arrived = np.where((theory.sphere_step(lr, wd, norm) >= edge) & np.isinf(arrived), t, arrived)
            g = np.minimum(gradient(), theory.jump_tangent(delta) / theory.sphere_step(lr, wd, norm))  # no jump
            norm = theory.next_norm(lr, wd, norm, g)
        assert (arrived <= np.ceil(bound)).all()


def test_the_norm_returns_no_earlier_than_stated_and_no_later_without_gradients():
    lr, wd, delta, _, rng = settings(seed=6)
    old = rng.uniform(0.5, 5, len(lr))
    jump = theory.jump_tangent(delta) / theory.sphere_step(lr, wd, old)  # the gradient of a jump by exactly delta
    norm, back = theory.next_norm(lr, wd, old, jump), np.full(len(lr), np.inf)
    bound = theory.return_not_before(lr, wd, delta)
    for t in range(int(bound.max()) + 3):
        back = np.where((norm <= old) & np.isinf(back), t, back)
        norm = theory.next_norm(lr, wd, norm, 0.0)
    assert (back >= bound - 1e-6).all()
    assert (back <= bound + 1).all()


# ---------------------------------------------------------------- other optimizers, other schedules


DIMENSION, STEPS, LR_WD = 400, 40_000, 1e-2


def sampling_error(correlation_steps):
    """Relative standard error of the mean of |w|^2: d independent Gaussian weights, averaged over the steps."""
    return np.sqrt(2 / DIMENSION) * np.sqrt(2 * correlation_steps / STEPS)


def stationary(step, skip=4000):
    """Return root mean square norm, and the angle whose cosine is the correlation of successive weights."""
    square = product = 0.0
    previous = None
    for t in range(STEPS + skip):
        w = step()
        if t >= skip:
            square, product = square + w @ w, product + w @ previous
        previous = w
    return np.sqrt(square / STEPS), np.arccos(product / square)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_equilibrium_with_momentum(momentum):
    lr, wd, g = 0.1, LR_WD / 0.1, 3.0
    norm = float(theory.equilibrium_norm(lr, wd, g, momentum))
    rng, size = np.random.default_rng(7), g / norm / np.sqrt(DIMENSION)
    w, velocity = np.zeros(DIMENSION), np.zeros(DIMENSION)

    def step():  # as torch.optim.SGD
        nonlocal w, velocity
        velocity = momentum * velocity + size * rng.normal(size=DIMENSION) + wd * w
        w = w - lr * velocity
        return w

    measured, angle = stationary(step)
    error = sampling_error((1 - momentum) / (2 * LR_WD))  # of |w|^2: the norm and the angle have half of it
    assert measured == pytest.approx(norm, rel=2.5 * error)
    assert angle == pytest.approx(float(theory.equilibrium_angle(lr, wd, momentum)), rel=2.5 * error)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_equilibrium_of_adamw(beta1):
    lr, wd, beta2 = 0.1, LR_WD / 0.1, 0.999
    rng = np.random.default_rng(8)
    w, first, second = np.zeros(DIMENSION), np.zeros(DIMENSION), np.ones(DIMENSION)

    def step():
        nonlocal w, first, second
        gradient = rng.normal(size=DIMENSION)
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        w = (1 - lr * wd) * w - lr * first / np.sqrt(second)
        return w

    measured, angle = stationary(step)
    error = 2.5 * sampling_error(1 / (2 * LR_WD)) + (1 - beta2)  # the second moment fluctuates by (1 - beta2) squared
    assert measured == pytest.approx(float(theory.equilibrium_norm_adamw(lr, wd, DIMENSION, beta1)), rel=error)
    assert angle == pytest.approx(float(theory.equilibrium_angle_adamw(lr, wd, beta1)), rel=error)


@pytest.mark.parametrize("start", [0.7, 2.0])  # in units of the balance
def test_relaxed_norm_follows_the_recursion(start):
    lr, wd, g = 0.1, 1e-3, 2.0
    norms = iterate(lr, wd, start * float(theory.equilibrium_norm(lr, wd, g)), [g] * 4000)
    law = theory.relaxed_norm(lr, wd, norms[0], g, np.arange(4001))
    assert np.max(np.abs(law / norms - 1)) < 5 * lr * wd


def rayleigh_gradient(w, matrix):
    """Gradient of <w, A w> / <w, w>, which is scale-invariant."""
    square = w @ w
    return 2 * (matrix @ w - (w @ matrix @ w) / square * w) / square


def test_a_growing_lr_without_weight_decay_moves_the_direction_as_weight_decay_does():
    lr, wd = 0.2, 0.1
    matrix = np.diag([1.0, 2.0, 5.0]) + 0.3
    decayed = free = np.array([1.0, 2.0, 3.0])
    for t in range(60):  # before rounding has grown
        decayed = (1 - lr * wd) * decayed - lr * rayleigh_gradient(decayed, matrix)
        free = free - theory.exponential_lr(lr, wd, t) * rayleigh_gradient(free, matrix)
    assert decayed / np.linalg.norm(decayed) == pytest.approx(free / np.linalg.norm(free), abs=1e-9)
    assert np.linalg.norm(free) > np.linalg.norm(decayed)


# ---------------------------------------------------------------- the stability edge


def half_map(phi, step, slope, lr_wd):
    """One step of gradient descent with weight decay on a circle, then a reflection; the flip orbit is at rest."""
    turn = step * slope(phi)
    return np.array([-(phi - np.arctan(turn)), step / ((1 - lr_wd) ** 2 * (1 + turn**2))])


def modulus(slope, lr_wd):
    """Return |eigenvalue|^2 of the flip orbit, by a numerical Jacobian."""
    angle = np.arccos(1 - lr_wd) / 2  # at rest cos(2 A) = a
    point = np.array([angle, np.tan(2 * angle) / slope(angle)])
    assert half_map(*point, slope, lr_wd) == pytest.approx(point, rel=1e-9)
    columns = []
    for i in range(2):
        h = np.zeros(2)
        h[i] = 1e-5 * point[i]
        columns.append((half_map(*(point + h), slope, lr_wd) - half_map(*(point - h), slope, lr_wd)) / (2 * h[i]))
    eigenvalues = np.linalg.eigvals(np.column_stack(columns))
    angle = np.sqrt(8 * lr_wd)  # small oscillations last 2 pi / sqrt(8 lr wd) steps
    assert np.abs(np.angle(eigenvalues)).max() == pytest.approx(angle, rel=0.02)
    return abs(np.prod(eigenvalues))


@pytest.mark.parametrize("k", [1, 1.5, 2, 2.5, 4])
def test_modulus_at_the_edge_of_sines(k):
    lr_wd = 1e-4
    law = 4 - theory.edge_constant(k**3 / 6, k)
    assert (modulus(lambda phi: np.sin(k * phi), lr_wd) - 1) / lr_wd == pytest.approx(law, abs=0.002)


@pytest.mark.parametrize("gamma", [1, 2, 3, 5])
def test_modulus_at_the_edge_of_cross_entropy(gamma):
    lr_wd, s = 1e-4, 1 / (1 + np.exp(gamma))  # F = ln(1 + exp(-gamma cos phi)): b/h = 1/6 - gamma (1 - s) / 2
    law = 4 - theory.edge_constant(1 / 6 - gamma * (1 - s) / 2, 1.0)

    def slope(phi):
        return gamma * np.sin(phi) / (1 + np.exp(gamma * np.cos(phi)))

    assert (modulus(slope, lr_wd) - 1) / lr_wd == pytest.approx(law, abs=0.002)
    assert law > 0  # cross-entropy leaves the edge in growing oscillations


@pytest.mark.parametrize("lr_wd", [1e-2, 3e-3, 1e-3])
def test_exit_without_noise(lr_wd):
    orbit = toys.circle_orbit(lr_wd, steps=int(1.2 / lr_wd), phi=1e-9, sphere_step=0.9)
    left = np.flatnonzero(np.abs(orbit.phi.values[5:]) >= 1e-9)[0] + 5
    assert float(orbit.x[left]) == pytest.approx(theory.exit_without_noise(0.9), rel=5 * lr_wd)


@pytest.mark.parametrize("lr_wd", [1e-2, 1e-3])
@pytest.mark.parametrize("sigma", [1e-14, 1e-10, 1e-6])
def test_exit_with_a_noise_floor(lr_wd, sigma):
    jump = 0.1 * np.sqrt(lr_wd / 2)  # a tenth of the orbit at rest on the edge: growth is still linear
    exits = []
    for seed in range(12):
        orbit = toys.circle_orbit(lr_wd, int(0.9 / lr_wd), phi=1e-3, sphere_step=0.9, floor=sigma, seed=seed)
        exits.append(float(orbit.x[np.flatnonzero((np.abs(orbit.phi) >= jump) & (orbit.x > 2))[0]]))
    growth = jump / (0.6745 * theory.noise_floor(sigma, lr_wd))  # median of |phi|
    error = np.exp(2 * 1.17 / np.sqrt(len(exits)))  # two standard errors of the median of ln|normal|
    low, high = (theory.exit_with_floor(lr_wd, growth * factor) for factor in (1 / error, error))
    assert low * (1 - 5 * lr_wd) < np.median(exits) < high * (1 + 5 * lr_wd)


def test_noise_floor_is_the_root_mean_square():
    lr_wd, x, rng = 1e-3, 0.9, np.random.default_rng(9)
    phi = np.zeros(2000)
    while x < 2.2:
        phi = (1 - x) * phi + rng.normal(size=len(phi))
        x /= (1 - lr_wd) ** 2
    grown = np.exp((theory.dilogarithm(2.0) - theory.dilogarithm(x)) / (2 * lr_wd)) / np.sqrt(x - 1)  # last step: half
    assert phi.std() / grown == pytest.approx(theory.noise_floor(1.0, lr_wd), rel=5 / np.sqrt(2 * len(phi)))


def test_exit_with_floor_has_the_stated_leading_order():
    assert theory.exit_with_floor(1e-8, 1e6) - 2 == pytest.approx(np.sqrt(8e-8 * np.log(1e6)), rel=1e-3)


# ---------------------------------------------------------------- batch normalization's epsilon


def test_epsilon_shrinks_the_output_and_bounds_the_step_of_toy_b():
    eps, gain = 0.5, 20.0
    toy = toys.SphereToy(lr_wd=1e-3, gain=gain, batch=16, points=16, eps=eps, elr_start=0.02)
    orbit = toy.run(2).isel(run=0)
    rho, lr = float(orbit.weight_norm[0]), float(orbit.lr)
    shrunk = rho / np.sqrt(rho**2 + eps)
    without = toys.SphereToy(gain=gain * shrunk, batch=16, points=16)  # the same loss, epsilon in the gain
    before, after = orbit.direction.values
    assert float(orbit.train_loss[0]) == pytest.approx(float(without.losses(before)), rel=1e-12)

    basis = np.linalg.svd(before[None])[2][1:]  # two directions along the sphere
    h = 1e-6
    slope = [(without.losses(before + h * v) - without.losses(before - h * v)) / (2 * h) for v in basis]
    moved = basis @ after * float(orbit.weight_norm[1]) / np.sqrt(rho**2 + eps)  # in units of the normalized weights
    assert moved == pytest.approx(-lr / (rho**2 + eps) * np.array(slope) / shrunk, rel=1e-6)


# ---------------------------------------------------------------- toy B in 32 bits


def test_toy_b_in_32_bits_stays_close_at_first_and_rounds():
    wide, narrow = (toys.SphereToy(lr_wd=1e-2, seed=[0, 1], dtype=dtype).run(100) for dtype in ("float64", "float32"))
    assert np.allclose(wide.weight_norm, narrow.weight_norm, rtol=1e-4)
    assert not np.array_equal(wide.weight_norm, narrow.weight_norm)
    assert np.isfinite(narrow.train_loss).all()
    with pytest.raises(ConfigError, match="`dtype` must be one of 'float32', 'float64'; got 'half'"):
        toys.SphereToy(dtype="half")


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


def test_the_clock_of_a_constant_learning_rate_ends_at_the_decay_of_the_squared_norm():
    rates = np.full((2, 300), [[0.1], [0.3]])
    clock = theory.decay_clock(rates, np.array([1e-2, 1e-3]))
    assert clock[:, -1] == pytest.approx(2 * np.array([1e-2, 1e-3]) * rates.sum(axis=-1))
