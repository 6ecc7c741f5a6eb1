r"""Jumps, and how long a period lasts: bounds from how much the effective gradient varies.

A delta-jump is a step with 1 - cos(alpha) > delta. The bounds hold for every sequence of effective
gradient norms between `low` (l) and `high` (L), l <= g~ <= L.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from periodic_lib.project import ConfigError
from periodic_lib.theory.motion import Array, shrinkage


def jump_tangent(delta: ArrayLike) -> Array:
    r"""Return kappa = sqrt(delta (2 - delta)) / (1 - delta).

    A delta-jump happens if and only if Phi g~ > kappa: it is tan(alpha) at cos(alpha) = 1 - delta;
    about sqrt(2 delta).

    Raises
    ------
    ConfigError : unless 0 < delta < 1.

    >>> round(float(jump_tangent(0.5)), 6)
    1.732051
    """
    delta = np.asarray(delta, float)
    if ((delta <= 0) | (delta >= 1)).any():
        raise ConfigError(f"`delta` must be a cosine distance above 0 and below 1; got {delta}.")
    return np.sqrt(delta * (2 - delta)) / (1 - delta)


def jump_norm(
    lr: ArrayLike, weight_decay: ArrayLike, eff_grad_norm: ArrayLike, delta: ArrayLike
) -> Array:
    r"""Return the norm below which a step is a delta-jump: rho^2 = eta g~ / (a kappa).

    With the largest gradient: above it no jump is possible. With the smallest: below it a jump is
    forced.

    >>> round(float(jump_norm(lr=0.1, weight_decay=1e-3, eff_grad_norm=10.0, delta=0.1)), 4)
    1.437
    """
    size = np.asarray(lr, float) * np.asarray(eff_grad_norm, float)
    return np.sqrt(size / (shrinkage(lr, weight_decay) * jump_tangent(delta)))


def jump_not_before(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    weight_norm: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    delta: ArrayLike,
) -> Array:
    r"""Return T_min: from `weight_norm` no delta-jump comes before this many steps (inf: never).

    T = ln((rho_0^4 - w_l) / (z^2 - w_l)) / (4 |ln a|),
    z = `jump_norm`(L)^2,  w_l = 2 a^2 eta^2 l^2 / (1 - a^4).
    Because rho'^4 >= a^4 rho^4 + 2 a^2 eta^2 l^2, the norm cannot fall faster.
    Attained by gradients that stay at l until a jump is possible and then take L.

    >>> round(float(jump_not_before(0.1, 1e-3, weight_norm=5.0, low=0.0, high=10.0, delta=0.1)))
    12468
    >>> float(jump_not_before(0.1, 1e-3, weight_norm=5.0, low=5.0, high=10.0, delta=0.1))
    inf
    """
    a, lr, low = shrinkage(lr, weight_decay), np.asarray(lr, float), np.asarray(low, float)
    start = np.asarray(weight_norm, float) ** 4
    possible = jump_norm(lr, weight_decay, high, delta) ** 4
    return _passage_steps(a, start, possible, floor=2 * np.square(a * lr * low) / (1 - a**4))


def never_jump_ratio(lr: ArrayLike, weight_decay: ArrayLike, delta: ArrayLike) -> Array:
    r"""Return the ratio L / l of gradient norms up to which no delta-jump comes.

    About sqrt(delta / (eta lambda)): kappa a^2 sqrt(2 / (1 - a^4)), from the starting norm
    `jump_norm`(L) or above. This is the equilibrium presumption as a theorem: if the effective
    gradient varies little enough, nothing ever breaks.

    >>> round(float(never_jump_ratio(lr=1.0, weight_decay=1e-3, delta=0.1)), 2)
    10.82
    """
    a = shrinkage(lr, weight_decay)
    return jump_tangent(delta) * a**2 * np.sqrt(2 / (1 - a**4))


def unstable_by(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    weight_norm: ArrayLike,
    quiet_gradient: ArrayLike,
    edge: ArrayLike,
    delta: ArrayLike = 0.1,
) -> Array:
    r"""Return T_1: while no delta-jump happens, Phi reaches `edge` within this many steps.

    T = ln((rho_0^4 - w_q) / (w_c - w_q)) / (4 |ln a|),
    w_c = (eta / (a edge))^2,  w_q = (2 + kappa^2) a^2 eta^2 q^2 / (1 - a^4),
    if the effective gradient norm stays at or below q `quiet_gradient`; finite if q edge < about
    sqrt(2 eta lambda), else inf: it need not. This is the instability presumption as a theorem: a
    small gradient cannot hold the norm up.

    >>> round(float(unstable_by(0.1, 1e-3, weight_norm=5.0, quiet_gradient=0.01, edge=0.1)))
    16107
    """
    a, lr = shrinkage(lr, weight_decay), np.asarray(lr, float)
    start = np.asarray(weight_norm, float) ** 4
    target = np.square(lr / (a * np.asarray(edge, float)))
    quiet = np.square(a * lr * np.asarray(quiet_gradient, float))
    floor = (2 + jump_tangent(delta) ** 2) * quiet / (1 - a**4)
    return _passage_steps(a, start, target, floor)


def _passage_steps(a: Array, start: Array, target: Array, floor: Array) -> Array:
    """Return the steps in which rho^4, relaxing by a^4 a step to `floor`, falls to `target`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.log((start - floor) / (target - floor)) / (-4 * np.log(a))
    return np.where(start <= target, 0.0, np.where(target <= floor, np.inf, steps))[()]


def return_not_before(lr: ArrayLike, weight_decay: ArrayLike, delta: ArrayLike) -> Array:
    r"""Return -ln(1 - delta) / |ln a| - 1: until then the norm is not back after a delta-jump.

    A jump multiplies rho^2 by at least a^2 / (1 - delta)^2, and weight decay takes it back by a^2 a
    step.

    >>> round(float(return_not_before(lr=0.1, weight_decay=1e-3, delta=0.3)))
    3566
    """
    return np.log1p(-np.asarray(delta, float)) / np.log(shrinkage(lr, weight_decay)) - 1


def free_decay_steps(
    lr: ArrayLike, weight_decay: ArrayLike, elr_start: ArrayLike, elr_end: ArrayLike
) -> Array:
    r"""Return the steps in which decay alone carries the effective learning rate from start to end.

    With no gradient rho^2 shrinks by a^2 a step, so T = ln(elr_end / elr_start) / (2 |ln a|). A
    gradient pushes the norm out and makes the passage longer: T is a lower bound.

    >>> round(float(free_decay_steps(lr=0.1, weight_decay=1e-2, elr_start=0.01, elr_end=0.05)))
    804
    """
    growth = np.log(np.asarray(elr_end, float) / np.asarray(elr_start, float))
    return growth / (-2 * np.log(shrinkage(lr, weight_decay)))


def intrinsic_time(elr: ArrayLike) -> Array:
    r"""Return tau_t = elr_0 + ... + elr_t along the last axis: time of gradient flow on the sphere.

    In the quiet part of a period the cross-entropy of a network that fits its data falls
    about as 1 / tau.

    >>> intrinsic_time([0.5, 0.25, 0.25]).tolist()
    [0.5, 0.75, 1.0]
    """
    return np.cumsum(np.asarray(elr, float), axis=-1)
