r"""Where growth and decay balance: norm, angle, relaxation, fluctuation, and the budget."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from periodic_lib.theory.motion import Array, shrinkage


def equilibrium_norm(
    lr: ArrayLike, weight_decay: ArrayLike, eff_grad_norm: ArrayLike, momentum: ArrayLike = 0.0
) -> Array:
    r"""Return the norm at which weight decay and the outward push of the gradients balance.

    rho*^4 = eta g~^2 / (lambda (1 - mu) (2 - eta lambda / (1 + mu))); inf unless lambda > 0.
    Without momentum mu it is the fixed point of `next_norm` for a constant g~. With momentum it is
    the stationary norm of the second-order recursion

        w_{t+1} = (1 + mu - eta lambda) w_t - mu w_{t-1} - eta g_t

    with gradients that are independent from step to step, of root mean square g~ / rho*.

    >>> from periodic_lib.theory import next_norm
    >>> rho = equilibrium_norm(lr=1.0, weight_decay=1e-3, eff_grad_norm=48.0)
    >>> round(float(rho), 2), bool(np.isclose(next_norm(1.0, 1e-3, rho, 48.0), rho))
    (32.77, True)
    """
    lr, wd, g, mu = (
        np.asarray(value, float) for value in (lr, weight_decay, eff_grad_norm, momentum)
    )
    with np.errstate(divide="ignore"):
        return (lr * np.square(g) / (wd * (1 - mu) * (2 - lr * wd / (1 + mu)))) ** 0.25


def equilibrium_angle(lr: ArrayLike, weight_decay: ArrayLike, momentum: ArrayLike = 0.0) -> Array:
    r"""Return the angular update at equilibrium: cos(alpha) = 1 - eta lambda / (1 + mu).

    About sqrt(2 eta lambda / (1 + mu)), whatever the gradient. Exact without momentum; with it, for
    gradients independent from step to step (then cos is the correlation of successive weights).
    Source of the approximation: Wan et al., arXiv 2006.08419.

    >>> round(float(equilibrium_angle(lr=1.0, weight_decay=1e-3)), 6)
    0.044725
    """
    lr_wd = 1 - shrinkage(lr, weight_decay)
    return np.arccos(1 - lr_wd / (1 + np.asarray(momentum, float)))


def balance_ratio(angular_update: ArrayLike, lr: ArrayLike, weight_decay: ArrayLike) -> Array:
    r"""Return tan(alpha) / tan(alpha*): the angular update in units of the equilibrium angle.

    Its square is how much of what weight decay takes from rho^2 the step gives back: 1 where the
    norm stays. Exact without momentum; inf or nan without weight decay, where alpha* = 0.

    >>> at_rest = equilibrium_angle(lr=0.1, weight_decay=1e-2)
    >>> float(balance_ratio([at_rest, 0.0], lr=0.1, weight_decay=1e-2)[0])
    1.0
    """
    turned = np.tan(np.asarray(angular_update, float))
    with np.errstate(divide="ignore", invalid="ignore"):
        return turned / np.tan(equilibrium_angle(lr, weight_decay))


def balance_line(elr: ArrayLike, lr: ArrayLike, weight_decay: ArrayLike) -> Array:
    r"""Return the effective gradient norm at which the norm stays: a tan(alpha*) / elr.

    A straight line of slope -1 on logarithmic axes; above it the norm grows, below it the norm
    shrinks. Exact without momentum.

    >>> from periodic_lib.theory import effective_lr, next_norm
    >>> rho = 10.0
    >>> g = balance_line(effective_lr(0.5, rho), lr=0.5, weight_decay=0.02)
    >>> bool(np.isclose(next_norm(0.5, 0.02, rho, g), rho, rtol=1e-14))
    True
    """
    slope = shrinkage(lr, weight_decay) * np.tan(equilibrium_angle(lr, weight_decay))
    return slope / np.asarray(elr, float)


def equilibrium_norm_adamw(
    lr: ArrayLike, weight_decay: ArrayLike, weights: ArrayLike, beta1: ArrayLike = 0.9
) -> Array:
    r"""Return the equilibrium norm of d = `weights` weights under AdamW.

    rho*^2 = d eta^2 (1 - b) (1 + a b) / ((1 - a b) (1 - a^2) (1 + b)), b = beta1, or about
    eta d / (2 lambda), for gradients independent from step to step, whose size the second moment
    has averaged: each weight then follows an autoregression with roots a and b. Source of the
    approximation: Kosson et al., arXiv 2305.17212.

    >>> round(float(equilibrium_norm_adamw(lr=1e-3, weight_decay=0.1, weights=400, beta1=0.0)), 4)
    1.4142
    """
    a, b, lr = shrinkage(lr, weight_decay), np.asarray(beta1, float), np.asarray(lr, float)
    with np.errstate(divide="ignore"):
        square = np.square(lr) * (1 - b) * (1 + a * b) / ((1 - a * b) * (1 - a * a) * (1 + b))
    return np.sqrt(np.asarray(weights, float) * square)


def equilibrium_angle_adamw(
    lr: ArrayLike, weight_decay: ArrayLike, beta1: ArrayLike = 0.9
) -> Array:
    r"""Return the angular update under AdamW at equilibrium.

    1 - cos(alpha) = (1 - a) (1 - b) / (1 + a b); about sqrt(2 eta lambda (1 - b) / (1 + b)).
    Assumptions and source as `equilibrium_norm_adamw`.

    >>> round(float(equilibrium_angle_adamw(lr=1e-2, weight_decay=0.1, beta1=0.0)), 6)
    0.044725
    """
    a, b = shrinkage(lr, weight_decay), np.asarray(beta1, float)
    return np.arccos(1 - (1 - a) * (1 - b) / (1 + a * b))


def relaxation_steps(lr: ArrayLike, weight_decay: ArrayLike) -> Array:
    r"""Return the steps in which rho^2 comes closer to its equilibrium by a factor e.

    About 1 / (4 eta lambda). rho^2 -> a^2 rho^2 + eta^2 g~^2 / rho^2 has the slope 2 a^2 - 1 at its
    fixed point, always between -1 and 1: for a constant effective gradient the equilibrium is
    stable. T = -1 / ln|2 a^2 - 1|.

    >>> round(float(relaxation_steps(lr=1.0, weight_decay=1e-3)), 1)
    249.6
    """
    return -1 / np.log(np.abs(2 * shrinkage(lr, weight_decay) ** 2 - 1))


def relaxed_norm(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    weight_norm: ArrayLike,
    eff_grad_norm: ArrayLike,
    steps: ArrayLike,
) -> Array:
    r"""Return the norm after `steps` steps at a constant effective gradient norm.

    To relative order eta lambda: rho_t^4 = rho*^4 + a^(4t) (rho_0^4 - rho*^4).

    >>> round(float(relaxed_norm(0.1, 1e-2, weight_norm=2.0, eff_grad_norm=1.0, steps=1000)), 3)
    1.51
    """
    balance = equilibrium_norm(lr, weight_decay, eff_grad_norm) ** 4
    remaining = shrinkage(lr, weight_decay) ** (4 * np.asarray(steps, float))
    return (balance + remaining * (np.asarray(weight_norm, float) ** 4 - balance)) ** 0.25


def norm_fluctuation(
    lr: ArrayLike, weight_decay: ArrayLike, gradient_variation: ArrayLike
) -> Array:
    r"""Return std(rho^2) / mean(rho^2) at equilibrium: sqrt(eta lambda / 2) v.

    v = std(g~^2) / mean(g~^2) `gradient_variation`, for gradients independent from step to step; to
    order eta lambda.

    >>> round(float(norm_fluctuation(lr=0.5, weight_decay=1e-2, gradient_variation=1.0)), 3)
    0.05
    """
    return np.sqrt((1 - shrinkage(lr, weight_decay)) / 2) * np.asarray(gradient_variation, float)


def norm_budget(
    lr: ArrayLike, weight_decay: ArrayLike, angular_updates: ArrayLike
) -> tuple[Array, Array]:
    r"""Return (decay, growth), the two sides of the log-norm budget.

    Over the last axis of `angular_updates`:
    ln(rho_T^2 / rho_0^2) = growth - decay,
    decay = 2 T |ln a|,  growth = sum_t ln(1 + tan^2 alpha_t).

    growth / decay is 1 over a closed period and at equilibrium, and near 0 while the norm decays
    freely. Exact for momentum zero. `lr` and `weight_decay` have the shape of the leading axes.

    >>> decay, growth = norm_budget(1.0, 1e-3, np.full(100, equilibrium_angle(1.0, 1e-3)))
    >>> round(float(growth / decay), 12)
    1.0
    """
    alpha = np.asarray(angular_updates, float)
    growth = np.log1p(np.square(np.tan(alpha))).sum(axis=-1)
    return -2 * alpha.shape[-1] * np.log(shrinkage(lr, weight_decay)), growth
