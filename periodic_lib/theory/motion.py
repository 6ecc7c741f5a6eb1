r"""One step of SGD with weight decay: how norm and direction move; schedules."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64] | np.float64


def shrinkage(lr: ArrayLike, weightdecay_factor: ArrayLike) -> Array:
    """Return a = 1 - eta lambda, the factor by which weight decay shrinks the weights in a step."""
    return 1 - np.asarray(lr, float) * np.asarray(weightdecay_factor, float)


def effective_lr(lr: ArrayLike, weight_norm: ArrayLike) -> Array:
    r"""Return eta / rho^2, the effective learning rate: the step that the direction feels.

    Source: van Laarhoven, arXiv 1706.05350.

    >>> float(effective_lr(lr=0.5, weight_norm=10.0))
    0.005
    """
    return np.asarray(lr, float) / np.square(np.asarray(weight_norm, float))


def sphere_step(lr: ArrayLike, weight_decay: ArrayLike, weight_norm: ArrayLike) -> Array:
    r"""Return Phi = eta / (a rho^2), the exact step size on the unit sphere.

    u' is parallel to u - Phi g~. It differs from `effective_lr` by 1 / (1 - eta lambda) only.

    >>> round(float(sphere_step(lr=0.5, weight_decay=0.02, weight_norm=10.0)), 6)
    0.005051
    """
    return effective_lr(lr, weight_norm) / shrinkage(lr, weight_decay)


def angular_update(
    lr: ArrayLike, weight_decay: ArrayLike, weight_norm: ArrayLike, eff_grad_norm: ArrayLike
) -> Array:
    r"""Return the angle between w and w' in radians: tan(alpha) = Phi g~.

    >>> round(float(angular_update(0.5, 0.02, weight_norm=10.0, eff_grad_norm=20.0)), 6)
    0.100669
    """
    return np.arctan(sphere_step(lr, weight_decay, weight_norm) * np.asarray(eff_grad_norm, float))


def next_norm(
    lr: ArrayLike, weight_decay: ArrayLike, weight_norm: ArrayLike, eff_grad_norm: ArrayLike
) -> Array:
    r"""Return the norm after one step: rho'^2 = a^2 rho^2 + eta^2 g~^2 / rho^2.

    The first term is the pull of weight decay toward zero, the second the push outwards of a
    gradient that is orthogonal to the weights. Exact, for stochastic gradients too.

    >>> round(float(next_norm(lr=0.5, weight_decay=0.02, weight_norm=10.0, eff_grad_norm=20.0)), 6)
    9.950377
    """
    rho, g = np.asarray(weight_norm, float), np.asarray(eff_grad_norm, float)
    return np.hypot(shrinkage(lr, weight_decay) * rho, np.asarray(lr, float) * g / rho)


def rescaled(lr: ArrayLike, weight_decay: ArrayLike, scale: ArrayLike) -> tuple[Array, Array]:
    r"""Return (c^2 eta, lambda / c^2): with these, weights c w follow c times the path of w. Exact.

    So only eta lambda and eta / rho_0^2 decide how directions and losses go. With momentum too.
    Source: Li and Arora, arXiv 1910.07454.

    >>> [float(value) for value in rescaled(lr=0.1, weight_decay=0.5, scale=2.0)]
    [0.4, 0.125]
    """
    square = np.square(np.asarray(scale, float))
    return np.asarray(lr, float) * square, np.asarray(weight_decay, float) / square


def exponential_lr(lr: ArrayLike, weight_decay: ArrayLike, step: ArrayLike) -> Array:
    r"""Return eta_t = eta a^(-2t-1), which without decay moves the direction as (eta, lambda) does.

    Exact. Source: Li and Arora, arXiv 1910.07454; here for momentum zero.

    >>> round(float(exponential_lr(lr=0.1, weight_decay=1e-2, step=1000)), 5)
    0.74039
    """
    exponent = -2 * np.asarray(step, float) - 1
    return np.asarray(lr, float) * shrinkage(lr, weight_decay) ** exponent


def decay_clock(lr: ArrayLike, weight_decay: ArrayLike, momentum: ArrayLike = 0.0) -> Array:
    r"""Return ln(ELR) that free decay and the schedule have added after each step.

    C_t = 2 lambda (eta_0 + ... + eta_t) / (1 - mu) + ln(eta_t / max eta), steps along the last axis
    of `lr`. While no gradient holds the norm up, the effective learning rate eta / rho^2 grows as
    exp(C_t): by decay, which shrinks rho^2, and by the schedule itself. A drop of the learning rate
    by f sets the clock back by ln(f), and decay has to make that up before anything can break. So
    what a schedule leads to is told by its largest C_t, not by the sum alone. Leading axes
    broadcast with `weight_decay` and `momentum`; to first order in eta lambda.

    >>> decay_clock([0.1, 0.1, 0.05], weight_decay=1.0).round(3).tolist()
    [0.2, 0.4, -0.193]
    """
    lr = np.asarray(lr, float)
    rate = 2 * np.asarray(weight_decay, float) / (1 - np.asarray(momentum, float))
    with np.errstate(divide="ignore"):
        fallen = np.log(lr / lr.max(axis=-1, keepdims=True))
    return rate[..., None] * np.cumsum(lr, axis=-1) + fallen
