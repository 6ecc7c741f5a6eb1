import numpy as np
import pytest

from periodic_lib import theory
from periodic_lib.analysis.periods import find_destabilizations
from periodic_lib.analysis.regimes import classify_regime
from periodic_lib.project import ConfigError
from periodic_lib.theory import toys
from periodic_lib.theory.toys import SphereToy, circle_orbit, random_numbers


def test_random_numbers_are_the_finalizer_of_murmurhash3():
    def finalizer(h):  # by the definition, on Python's integers
        h ^= h >> 16
        h = h * 0x85EBCA6B & 0xFFFFFFFF
        h ^= h >> 13
        h = h * 0xC2B2AE35 & 0xFFFFFFFF
        return h ^ h >> 16

    assert finalizer(1) == 0x514E28B7  # published
    for seed, stream, counter in ((0, 1, 0), (7, 2, 12345), (4_000_000_000, 3, 2**32 - 1)):
        start = finalizer((seed + stream * 0x9E3779B9) & 0xFFFFFFFF)
        expected = finalizer((start + counter * 0x9E3779B9) & 0xFFFFFFFF) / 2**32
        assert random_numbers(seed, stream, counter) == expected


def test_random_numbers_are_uniform():
    drawn = random_numbers(3, 1, np.arange(100_000))
    counts = np.histogram(drawn, 20, (0, 1))[0]
    assert ((counts - 5000) ** 2 / 5000).sum() < 43.8  # chi squared, 19 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 4 / np.sqrt(100_000)


def test_toy_a_is_gradient_descent_with_weight_decay_in_the_plane():
    lr_wd, lam, k = 1e-2, 0.5, 3.0
    eta = lr_wd / lam
    w = np.sqrt(eta / (1 - lr_wd) / 0.4) * np.array([np.cos(0.7), np.sin(0.7)])  # sphere_step 0.4
    orbit = circle_orbit(lr_wd, 50, frequency=k, phi=0.7, sphere_step=0.4)
    for phi in orbit.phi.values:
        assert np.arctan2(w[1], w[0]) == pytest.approx(phi, abs=1e-12)
        size = np.hypot(*w)
        gradient = np.sin(k * phi) / size * np.array([-np.sin(phi), np.cos(phi)])
        w = (1 - lr_wd) * w - eta * gradient


def test_toy_b_moves_as_torch_says():
    torch = pytest.importorskip("torch")
    toy = SphereToy(lr_wd=1e-2, eps=0.3, flipped=0.25, seed=5, batch=8)
    orbit = toy.run(30)
    x = torch.tensor(toy.x[0])
    w = torch.tensor(toy.start[0], requires_grad=True)
    for t in range(30):
        assert float(w.detach().norm()) == pytest.approx(orbit.weight_norm.values[0, t], rel=1e-9)
        score = 30.0 * x[toy._batches(t, 1)[0, 0]] @ w / (w @ w + 0.3).sqrt()
        (gradient,) = torch.autograd.grad(torch.nn.functional.softplus(-score).mean(), w)
        assert float(gradient.norm()) == pytest.approx(orbit.grad_norm.values[0, t], rel=1e-9)
        with torch.no_grad():
            w = (0.99 * w - 0.1 * gradient).requires_grad_()


def test_toy_b_keeps_the_exact_laws():
    orbit = SphereToy(lr_wd=1e-2, seed=np.arange(3)).run(500)
    lr, wd = orbit.lr.values[:, None], orbit.weight_decay.values[:, None]
    norm, gradient = orbit.weight_norm.values, orbit.eff_grad_norm.values
    np.testing.assert_allclose(theory.next_norm(lr, wd, norm, gradient)[:, :-1], norm[:, 1:], rtol=1e-12)
    angle = theory.angular_update(lr, wd, norm, gradient)
    np.testing.assert_allclose(angle, orbit.angular_update, rtol=1e-9, atol=1e-14)  # a turn below rounding is lost


def test_on_the_sphere_the_effective_learning_rate_stays_and_the_direction_moves_as_torch_says():
    torch = pytest.importorskip("torch")
    toy = SphereToy(elr=[0.05, 0.4], seed=3)
    orbit = toy.run(600)
    np.testing.assert_allclose(orbit.elr, np.broadcast_to([[0.05], [0.4]], (2, 600)), rtol=1e-12)
    x = torch.tensor(toy.x[1])
    for t in range(20):  # on the unit sphere, with the effective learning rate as the learning rate
        u = torch.tensor(orbit.direction.values[1, t], requires_grad=True)
        score = 30.0 * x[toy._batches(t, 1)[1, 0]] @ u / u.norm()
        (gradient,) = torch.autograd.grad(torch.nn.functional.softplus(-score).mean(), u)
        new = (u - 0.4 * gradient).detach()
        np.testing.assert_allclose(orbit.direction[1, t + 1], new / new.norm(), atol=1e-12)
    with pytest.raises(ConfigError, match="`elr` must be a positive number"):
        SphereToy(elr=0.0)


def test_toy_b_has_all_three_regimes_and_none_without_weight_decay():
    toys_ = {"convergence": SphereToy(lr_wd=1e-5), "periodic": SphereToy(lr_wd=1e-2, seed=3)}
    toys_["equilibrium"] = SphereToy(lr_wd=1e-2, flipped=0.25)
    for regime, toy in toys_.items():
        assert classify_regime(toy.run(3000)).item() == regime
    free = SphereToy(lr=0.1, seed=3).run(3000)
    assert find_destabilizations(free).empty
    assert (np.diff(free.weight_norm) >= -1e-12).all()
    assert free.weight_decay.item() == 0


def test_the_minimum_of_toy_b_is_one():
    toy = SphereToy(gain=[5.0, 20.0], flipped=[0.0, 0.25], seed=1, batch=[2, 16])
    best = toy.minimum()
    for run, gain in enumerate((5.0, 20.0)):
        points = np.random.default_rng(0).normal(size=(4000, 3))
        score = gain * (points / np.linalg.norm(points, axis=1, keepdims=True)) @ toy.x[run].T
        assert best.train_loss[run] <= np.logaddexp(0, -score).mean(axis=1).min() + 1e-9
    assert best.sharpness.min() > 0
    assert best.eff_grad_norm.values[1] == 0  # the full batch has no noise


def test_the_sharpness_of_toy_b_is_the_second_derivative():
    toy = SphereToy(gain=10.0, flipped=0.25, seed=2)
    x, gain = toy.x[0], 10.0
    found = [toys.minimize(toys._log_loss, start, (x, gain), jac=True) for start in (*np.eye(3), -np.eye(3)[0])]
    best = min(found, key=lambda one: one.fun)
    u = best.x / np.linalg.norm(best.x)
    first = np.cross(u, [0, 0, 1.0])
    first /= np.linalg.norm(first)
    second, h = np.cross(u, first), 1e-3
    curvature = []
    for angle in np.linspace(0, np.pi, 181):
        side = np.cos(angle) * first + np.sin(angle) * second
        near = [np.cos(s) * u + np.sin(s) * side for s in (-h, 0, h)]
        left, middle, right = (np.exp(toys._log_loss(w, x, gain)[0]) for w in near)
        curvature.append((left - 2 * middle + right) / h**2)
    assert max(curvature) == pytest.approx(float(toy.minimum().sharpness[0]), rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"lr_wd": 0}, "`lr_wd`"),
        ({"lr_wd": [1e-3, 2]}, "`lr_wd`"),
        ({"margin": 1}, "`margin`"),
        ({"flipped": -0.1}, "`flipped`"),
        ({"batch": 17}, "`batch`"),
        ({"points": 0}, "`points`"),
    ],
)
def test_bad_input_is_refused(arguments, word):
    with pytest.raises(ConfigError, match=word):
        SphereToy(**arguments)


def test_circle_refuses_bad_input():
    with pytest.raises(ConfigError, match="`lr_wd`"):
        circle_orbit(lr_wd=1.5, steps=3)
    with pytest.raises(ConfigError, match="`steps`"):
        circle_orbit(lr_wd=0.1, steps=0)
