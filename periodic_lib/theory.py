r"""Closed forms for the norm and direction of scale-invariant weights under SGD with coupled weight decay.

Assumption: the loss does not change when the scale-invariant weights w are scaled, L(c w) = L(w) for c > 0.
Then the gradient is orthogonal to w and grows as 1/|w|, and one step

    w' = a w - eta grad L(w),    a = 1 - eta lambda,

splits exactly into a motion of the norm rho = |w| and a motion of the direction u = w / rho. Everything below
follows from these two facts. Notation: eta `lr`, lambda `weight_decay`, g~ = rho |grad L| `eff_grad_norm`,
eta/rho^2 `elr`. Momentum is zero. All functions take numbers or arrays, which broadcast; NumPy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64] | np.float64


def effective_lr(lr: ArrayLike, weight_norm: ArrayLike) -> Array:
    r"""Return the effective learning rate eta / rho^2: the step size that the direction of the weights feels.

    Source: van Laarhoven, arXiv 1706.05350.

    >>> float(effective_lr(lr=0.5, weight_norm=10.0))
    0.005
    """
    return np.asarray(lr, float) / np.square(np.asarray(weight_norm, float))


def sphere_step(lr: ArrayLike, weight_decay: ArrayLike, weight_norm: ArrayLike) -> Array:
    r"""Return Phi = eta / (a rho^2), the exact step size on the unit sphere: u' is parallel to u - Phi g~.

    It differs from `effective_lr` by 1 / (1 - eta lambda) only.

    >>> round(float(sphere_step(lr=0.5, weight_decay=0.02, weight_norm=10.0)), 6)
    0.005051
    """
    return effective_lr(lr, weight_norm) / (1 - np.asarray(lr, float) * np.asarray(weight_decay, float))


def angular_update(lr: ArrayLike, weight_decay: ArrayLike, weight_norm: ArrayLike, eff_grad_norm: ArrayLike) -> Array:
    r"""Return the angle between w and w' in radians: tan(alpha) = Phi g~.

    >>> round(float(angular_update(lr=0.5, weight_decay=0.02, weight_norm=10.0, eff_grad_norm=20.0)), 6)
    0.100669
    """
    return np.arctan(sphere_step(lr, weight_decay, weight_norm) * np.asarray(eff_grad_norm, float))


def next_norm(lr: ArrayLike, weight_decay: ArrayLike, weight_norm: ArrayLike, eff_grad_norm: ArrayLike) -> Array:
    r"""Return the norm after one step: rho'^2 = a^2 rho^2 + eta^2 g~^2 / rho^2.

    The first term is the pull of weight decay toward zero, the second the push outwards of a gradient that is
    orthogonal to the weights. Exact, for stochastic gradients too.

    >>> round(float(next_norm(lr=0.5, weight_decay=0.02, weight_norm=10.0, eff_grad_norm=20.0)), 6)
    9.950377
    """
    rho, g = np.asarray(weight_norm, float), np.asarray(eff_grad_norm, float)
    a = 1 - np.asarray(lr, float) * np.asarray(weight_decay, float)
    return np.hypot(a * rho, np.asarray(lr, float) * g / rho)


def equilibrium_norm(lr: ArrayLike, weight_decay: ArrayLike, eff_grad_norm: ArrayLike) -> Array:
    r"""Return the norm at which the two terms of `next_norm` balance for a constant effective gradient norm.

    rho*^4 = eta^2 g~^2 / (1 - a^2) = eta g~^2 / (lambda (2 - eta lambda)); it needs lambda > 0 (else inf).

    >>> rho = equilibrium_norm(lr=1.0, weight_decay=1e-3, eff_grad_norm=48.0)
    >>> round(float(rho), 2), bool(np.isclose(next_norm(1.0, 1e-3, rho, 48.0), rho))
    (32.77, True)
    """
    lr, wd, g = (np.asarray(value, float) for value in (lr, weight_decay, eff_grad_norm))
    with np.errstate(divide="ignore"):
        return (lr * np.square(g) / (wd * (2 - lr * wd))) ** 0.25


def equilibrium_elr(lr: ArrayLike, weight_decay: ArrayLike, eff_grad_norm: ArrayLike) -> Array:
    r"""Return the effective learning rate at the equilibrium norm, about sqrt(2 eta lambda) / g~.

    >>> round(float(equilibrium_elr(lr=1.0, weight_decay=1e-3, eff_grad_norm=48.0)), 6)
    0.000931
    """
    return effective_lr(lr, equilibrium_norm(lr, weight_decay, eff_grad_norm))


def equilibrium_angle(lr: ArrayLike, weight_decay: ArrayLike) -> Array:
    r"""Return the angular update at equilibrium, whatever the gradient: cos(alpha) = a, about sqrt(2 eta lambda).

    >>> round(float(equilibrium_angle(lr=1.0, weight_decay=1e-3)), 6)
    0.044725
    """
    return np.arccos(1 - np.asarray(lr, float) * np.asarray(weight_decay, float))


def free_decay_steps(lr: ArrayLike, weight_decay: ArrayLike, elr_start: ArrayLike, elr_end: ArrayLike) -> Array:
    r"""Return the steps in which weight decay alone carries the effective learning rate from start to end.

    With no gradient rho^2 shrinks by a^2 a step, so T = ln(elr_end / elr_start) / (2 |ln a|). A gradient pushes the
    norm out and makes the passage longer: T is a lower bound.

    >>> round(float(free_decay_steps(lr=0.1, weight_decay=1e-2, elr_start=0.01, elr_end=0.05)))
    804
    """
    a = 1 - np.asarray(lr, float) * np.asarray(weight_decay, float)
    return np.log(np.asarray(elr_end, float) / np.asarray(elr_start, float)) / (-2 * np.log(a))


def norm_budget(lr: ArrayLike, weight_decay: ArrayLike, angular_updates: ArrayLike) -> tuple[Array, Array]:
    r"""Return (decay, growth), the two sides of the log-norm budget over the last axis of `angular_updates`.

    ln(rho_T^2 / rho_0^2) = growth - decay,  decay = 2 T |ln a|,  growth = sum_t ln(1 + tan^2 alpha_t).

    growth / decay is 1 over a closed period and at equilibrium, and near 0 while the norm decays freely. Exact for
    momentum zero. `lr` and `weight_decay` have the shape of the leading axes.

    >>> decay, growth = norm_budget(1.0, 1e-3, np.full(100, equilibrium_angle(1.0, 1e-3)))
    >>> round(float(growth / decay), 12)
    1.0
    """
    alpha = np.asarray(angular_updates, float)
    a = 1 - np.asarray(lr, float) * np.asarray(weight_decay, float)
    growth = np.log1p(np.square(np.tan(alpha))).sum(axis=-1)
    return -2 * alpha.shape[-1] * np.log(a), growth
