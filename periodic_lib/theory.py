r"""Closed forms for the norm and direction of scale-invariant weights under SGD and AdamW with weight decay.

Assumption: the loss does not change when the scale-invariant weights w are scaled, L(c w) = L(w) for c > 0.
Then the gradient is orthogonal to w and grows as 1/|w|, and one step of SGD with coupled weight decay,

    w' = a w - eta grad L(w),    a = 1 - eta lambda,

splits exactly into a motion of the norm rho = |w| and a motion of the direction u = w / rho. Notation: eta `lr`,
lambda `weight_decay`, g~ = rho |grad L| `eff_grad_norm`, eta/rho^2 `elr`, Phi = eta/(a rho^2) `sphere_step`, h
`sharpness` (largest Hessian eigenvalue on the unit sphere), el = eta lambda. Where a formula holds for momentum or
AdamW it says so; else momentum is zero. "Exact" formulas hold step by step for stochastic gradients too.
All functions take numbers or arrays, which broadcast.

Sections: one step; equilibrium; jumps; how long a period lasts; the stability edge; batch normalization's epsilon.
The two toy models on which all of it can be watched are in `periodic_lib.toys`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import spence

from periodic_lib.config import ConfigError, number
from periodic_lib.toys import SphereToy, circle_orbit  # noqa: F401 - the theory's two examples

Array = NDArray[np.float64] | np.float64


def _decay(lr: ArrayLike, weight_decay: ArrayLike) -> Array:
    """Return a = 1 - eta lambda, the factor by which weight decay shrinks the weights in a step."""
    return 1 - np.asarray(lr, float) * np.asarray(weight_decay, float)


# ---------------------------------------------------------------- one step


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
    return np.hypot(_decay(lr, weight_decay) * rho, np.asarray(lr, float) * g / rho)


def next_sphere_step(phi: ArrayLike, lr: ArrayLike, weight_decay: ArrayLike, eff_grad_norm: ArrayLike) -> Array:
    r"""Return Phi' = Phi / (a^2 (1 + Phi^2 g~^2)): the step size on the sphere after one step of size `phi`. Exact.

    Weight decay makes the step grow by 1/a^2, a large gradient makes it fall; direction and norm meet only here.

    >>> phi = sphere_step(lr=0.5, weight_decay=0.02, weight_norm=10.0)
    >>> after = sphere_step(0.5, 0.02, next_norm(0.5, 0.02, 10.0, 20.0))
    >>> bool(np.isclose(next_sphere_step(phi, 0.5, 0.02, 20.0), after, rtol=1e-14))
    True
    """
    phi, g = np.asarray(phi, float), np.asarray(eff_grad_norm, float)
    return phi / (_decay(lr, weight_decay) ** 2 * (1 + np.square(phi * g)))


def rescaled(lr: ArrayLike, weight_decay: ArrayLike, scale: ArrayLike) -> tuple[Array, Array]:
    r"""Return (c^2 eta, lambda / c^2): with these, weights c w follow c times the trajectory of w. Exact.

    So only eta lambda and eta / rho_0^2 decide how directions and losses go. With momentum too. Source: Li and Arora,
    arXiv 1910.07454.

    >>> [float(value) for value in rescaled(lr=0.1, weight_decay=0.5, scale=2.0)]
    [0.4, 0.125]
    """
    square = np.square(np.asarray(scale, float))
    return np.asarray(lr, float) * square, np.asarray(weight_decay, float) / square


def exponential_lr(lr: ArrayLike, weight_decay: ArrayLike, step: ArrayLike) -> Array:
    r"""Return eta_t = eta a^(-2t-1): without weight decay it moves the direction as (eta, lambda) does. Exact.

    Source: Li and Arora, arXiv 1910.07454; here for momentum zero.

    >>> round(float(exponential_lr(lr=0.1, weight_decay=1e-2, step=1000)), 5)
    0.74039
    """
    return np.asarray(lr, float) * _decay(lr, weight_decay) ** (-2 * np.asarray(step, float) - 1)


def rescaled_adamw(lr: ArrayLike, weight_decay: ArrayLike, scale: ArrayLike) -> tuple[Array, Array]:
    r"""Return (c eta, lambda / c), the rescaling for AdamW, whose step does not depend on the gradient's size.

    Exact if AdamW's own epsilon is zero.

    >>> [float(value) for value in rescaled_adamw(lr=0.1, weight_decay=0.5, scale=2.0)]
    [0.2, 0.25]
    """
    scale = np.asarray(scale, float)
    return np.asarray(lr, float) * scale, np.asarray(weight_decay, float) / scale


# ---------------------------------------------------------------- equilibrium


def equilibrium_norm(
    lr: ArrayLike, weight_decay: ArrayLike, eff_grad_norm: ArrayLike, momentum: ArrayLike = 0.0
) -> Array:
    r"""Return the norm at which weight decay and the outward push of the gradients balance.

    rho*^4 = eta g~^2 / (lambda (1 - mu) (2 - eta lambda / (1 + mu))); it needs lambda > 0 (else inf). Without momentum
    mu it is the fixed point of `next_norm` for a constant g~. With momentum it is the stationary norm of the second-
    order recursion w_{t+1} = (1 + mu - eta lambda) w_t - mu w_{t-1} - eta g_t with gradients that are independent from
    step to step, of root mean square g~ / rho*.

    >>> rho = equilibrium_norm(lr=1.0, weight_decay=1e-3, eff_grad_norm=48.0)
    >>> round(float(rho), 2), bool(np.isclose(next_norm(1.0, 1e-3, rho, 48.0), rho))
    (32.77, True)
    """
    lr, wd, g, mu = (np.asarray(value, float) for value in (lr, weight_decay, eff_grad_norm, momentum))
    with np.errstate(divide="ignore"):
        return (lr * np.square(g) / (wd * (1 - mu) * (2 - lr * wd / (1 + mu)))) ** 0.25


def equilibrium_elr(
    lr: ArrayLike, weight_decay: ArrayLike, eff_grad_norm: ArrayLike, momentum: ArrayLike = 0.0
) -> Array:
    r"""Return the effective learning rate at the equilibrium norm, about sqrt(2 eta lambda (1 - mu)) / g~.

    >>> round(float(equilibrium_elr(lr=1.0, weight_decay=1e-3, eff_grad_norm=48.0)), 6)
    0.000931
    """
    return effective_lr(lr, equilibrium_norm(lr, weight_decay, eff_grad_norm, momentum))


def equilibrium_angle(lr: ArrayLike, weight_decay: ArrayLike, momentum: ArrayLike = 0.0) -> Array:
    r"""Return the angular update at equilibrium: cos(alpha) = 1 - eta lambda / (1 + mu), about sqrt(2 el / (1 + mu)).

    Whatever the gradient. Exact without momentum; with it, for gradients independent from step to step (then cos is
    the correlation of successive weights). Source of the approximation: Wan et al., arXiv 2006.08419.

    >>> round(float(equilibrium_angle(lr=1.0, weight_decay=1e-3)), 6)
    0.044725
    """
    el = 1 - _decay(lr, weight_decay)
    return np.arccos(1 - el / (1 + np.asarray(momentum, float)))


def equilibrium_norm_adamw(
    lr: ArrayLike, weight_decay: ArrayLike, weights: ArrayLike, beta1: ArrayLike = 0.9
) -> Array:
    r"""Return the equilibrium norm of `weights` weights under AdamW; about sqrt(eta d / (2 lambda)).

    rho*^2 = d eta^2 (1 - b) (1 + a b) / ((1 - a b) (1 - a^2) (1 + b)), b = beta1, for gradients independent from step
    to step, whose size the second moment has averaged: each weight then follows an autoregression with roots a and b.
    Source of the approximation: Kosson et al., arXiv 2305.17212.

    >>> round(float(equilibrium_norm_adamw(lr=1e-3, weight_decay=0.1, weights=400, beta1=0.0)), 4)
    1.4142
    """
    a, b, lr = _decay(lr, weight_decay), np.asarray(beta1, float), np.asarray(lr, float)
    with np.errstate(divide="ignore"):
        square = np.square(lr) * (1 - b) * (1 + a * b) / ((1 - a * b) * (1 - a * a) * (1 + b))
    return np.sqrt(np.asarray(weights, float) * square)


def equilibrium_angle_adamw(lr: ArrayLike, weight_decay: ArrayLike, beta1: ArrayLike = 0.9) -> Array:
    r"""Return the angular update under AdamW at equilibrium, about sqrt(2 eta lambda (1 - b) / (1 + b)).

    1 - cos(alpha) = (1 - a) (1 - b) / (1 + a b); assumptions and source as `equilibrium_norm_adamw`.

    >>> round(float(equilibrium_angle_adamw(lr=1e-2, weight_decay=0.1, beta1=0.0)), 6)
    0.044725
    """
    a, b = _decay(lr, weight_decay), np.asarray(beta1, float)
    return np.arccos(1 - (1 - a) * (1 - b) / (1 + a * b))


def relaxation_steps(lr: ArrayLike, weight_decay: ArrayLike) -> Array:
    r"""Return the steps in which rho^2 comes closer to its equilibrium by a factor e: about 1 / (4 eta lambda).

    rho^2 -> a^2 rho^2 + eta^2 g~^2 / rho^2 has the slope 2 a^2 - 1 at its fixed point, always between -1 and 1: for a
    constant effective gradient the equilibrium is stable. T = -1 / ln|2 a^2 - 1|.

    >>> round(float(relaxation_steps(lr=1.0, weight_decay=1e-3)), 1)
    249.6
    """
    return -1 / np.log(np.abs(2 * _decay(lr, weight_decay) ** 2 - 1))


def relaxed_norm(
    lr: ArrayLike, weight_decay: ArrayLike, weight_norm: ArrayLike, eff_grad_norm: ArrayLike, steps: ArrayLike
) -> Array:
    r"""Return the norm after `steps` steps at a constant effective gradient norm, to relative order eta lambda.

    rho_t^4 = rho*^4 + a^(4t) (rho_0^4 - rho*^4).

    >>> round(float(relaxed_norm(lr=0.1, weight_decay=1e-2, weight_norm=2.0, eff_grad_norm=1.0, steps=1000)), 3)
    1.51
    """
    balance = equilibrium_norm(lr, weight_decay, eff_grad_norm) ** 4
    remaining = _decay(lr, weight_decay) ** (4 * np.asarray(steps, float))
    return (balance + remaining * (np.asarray(weight_norm, float) ** 4 - balance)) ** 0.25


def norm_fluctuation(lr: ArrayLike, weight_decay: ArrayLike, gradient_variation: ArrayLike) -> Array:
    r"""Return std(rho^2) / mean(rho^2) at equilibrium: sqrt(eta lambda / 2) v.

    v = std(g~^2) / mean(g~^2) `gradient_variation`, for gradients independent from step to step; to order eta lambda.

    >>> round(float(norm_fluctuation(lr=0.5, weight_decay=1e-2, gradient_variation=1.0)), 3)
    0.05
    """
    return np.sqrt((1 - _decay(lr, weight_decay)) / 2) * np.asarray(gradient_variation, float)


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
    growth = np.log1p(np.square(np.tan(alpha))).sum(axis=-1)
    return -2 * alpha.shape[-1] * np.log(_decay(lr, weight_decay)), growth


# ---------------------------------------------------------------- jumps
#
# A delta-jump is a step with 1 - cos(alpha) > delta. The bounds below hold for every sequence of effective gradient
# norms between `low` (l) and `high` (L); theory books call them l <= g~ <= L.


def jump_tangent(delta: ArrayLike) -> Array:
    r"""Return kappa = sqrt(delta (2 - delta)) / (1 - delta): a delta-jump happens if and only if Phi g~ > kappa.

    It is tan(alpha) at cos(alpha) = 1 - delta; about sqrt(2 delta).

    >>> round(float(jump_tangent(0.5)), 6)
    1.732051
    """
    delta = np.asarray(delta, float)
    if ((delta <= 0) | (delta >= 1)).any():
        raise ConfigError(f"`delta` must be a cosine distance above 0 and below 1; got {delta}.")
    return np.sqrt(delta * (2 - delta)) / (1 - delta)


def jump_norm(lr: ArrayLike, weight_decay: ArrayLike, eff_grad_norm: ArrayLike, delta: ArrayLike) -> Array:
    r"""Return the norm below which a step with `eff_grad_norm` is a delta-jump: rho^2 = eta g~ / (a kappa).

    With the largest gradient: above it no jump is possible. With the smallest: below it a jump is forced.

    >>> round(float(jump_norm(lr=0.1, weight_decay=1e-3, eff_grad_norm=10.0, delta=0.1)), 4)
    1.437
    """
    size = np.asarray(lr, float) * np.asarray(eff_grad_norm, float)
    return np.sqrt(size / (_decay(lr, weight_decay) * jump_tangent(delta)))


def jump_not_before(
    lr: ArrayLike, weight_decay: ArrayLike, weight_norm: ArrayLike, low: ArrayLike, high: ArrayLike, delta: ArrayLike
) -> Array:
    r"""Return T_min: from `weight_norm` no delta-jump comes before this many steps (inf: never).

    T = ln((rho_0^4 - w_l) / (z^2 - w_l)) / (4 |ln a|), z = `jump_norm`(L)^2, w_l = 2 a^2 eta^2 l^2 / (1 - a^4).
    Because rho'^4 >= a^4 rho^4 + 2 a^2 eta^2 l^2, the norm cannot fall faster. Attained by gradients that stay at l
    until a jump is possible and then take L.

    >>> round(float(jump_not_before(0.1, 1e-3, weight_norm=5.0, low=0.0, high=10.0, delta=0.1)))
    12468
    >>> float(jump_not_before(0.1, 1e-3, weight_norm=5.0, low=5.0, high=10.0, delta=0.1))
    inf
    """
    a, lr, low = _decay(lr, weight_decay), np.asarray(lr, float), np.asarray(low, float)
    start = np.asarray(weight_norm, float) ** 4
    possible = jump_norm(lr, weight_decay, high, delta) ** 4
    return _passage_steps(a, start, possible, floor=2 * np.square(a * lr * low) / (1 - a**4))


def never_jump_ratio(lr: ArrayLike, weight_decay: ArrayLike, delta: ArrayLike) -> Array:
    r"""Return the ratio L / l of gradient norms up to which no delta-jump comes: about sqrt(delta / (eta lambda)).

    kappa a^2 sqrt(2 / (1 - a^4)), from the starting norm `jump_norm`(L) or above. This is the equilibrium presumption
    as a theorem: if the effective gradient varies little enough, nothing ever breaks.

    >>> round(float(never_jump_ratio(lr=1.0, weight_decay=1e-3, delta=0.1)), 2)
    10.82
    """
    a = _decay(lr, weight_decay)
    return jump_tangent(delta) * a**2 * np.sqrt(2 / (1 - a**4))


def unstable_by(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    weight_norm: ArrayLike,
    quiet_gradient: ArrayLike,
    edge: ArrayLike,
    delta: ArrayLike = 0.1,
) -> Array:
    r"""Return T_1: while no delta-jump happens, Phi reaches `edge` within this many steps (inf: it need not).

    T = ln((rho_0^4 - w_q) / (w_c - w_q)) / (4 |ln a|), w_c = (eta / (a edge))^2, w_q = (2 + kappa^2) a^2 eta^2 q^2 /
    (1 - a^4), if the effective gradient norm stays at or below q `quiet_gradient`; finite if q edge < about
    sqrt(2 eta lambda). This is the instability presumption as a theorem: a small gradient cannot hold the norm up.

    >>> round(float(unstable_by(0.1, 1e-3, weight_norm=5.0, quiet_gradient=0.01, edge=0.1)))
    16107
    """
    a, lr = _decay(lr, weight_decay), np.asarray(lr, float)
    start, target = np.asarray(weight_norm, float) ** 4, np.square(lr / (a * np.asarray(edge, float)))
    floor = (2 + jump_tangent(delta) ** 2) * np.square(a * lr * np.asarray(quiet_gradient, float)) / (1 - a**4)
    return _passage_steps(a, start, target, floor)


def _passage_steps(a: Array, start: Array, target: Array, floor: Array) -> Array:
    """Return the steps in which rho^4, relaxing by a^4 a step towards `floor`, comes from `start` down to `target`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.log((start - floor) / (target - floor)) / (-4 * np.log(a))
    return np.where(start <= target, 0.0, np.where(target <= floor, np.inf, steps))[()]


def return_not_before(lr: ArrayLike, weight_decay: ArrayLike, delta: ArrayLike) -> Array:
    r"""Return how many steps after a delta-jump the norm cannot be back at its old level: -ln(1 - delta)/|ln a| - 1.

    A jump multiplies rho^2 by at least a^2 / (1 - delta)^2, and weight decay takes it back by a^2 a step.

    >>> round(float(return_not_before(lr=0.1, weight_decay=1e-3, delta=0.3)))
    3566
    """
    return np.log1p(-np.asarray(delta, float)) / np.log(_decay(lr, weight_decay)) - 1


# ---------------------------------------------------------------- how long a period lasts


def free_decay_steps(lr: ArrayLike, weight_decay: ArrayLike, elr_start: ArrayLike, elr_end: ArrayLike) -> Array:
    r"""Return the steps in which weight decay alone carries the effective learning rate from start to end.

    With no gradient rho^2 shrinks by a^2 a step, so T = ln(elr_end / elr_start) / (2 |ln a|). A gradient pushes the
    norm out and makes the passage longer: T is a lower bound.

    >>> round(float(free_decay_steps(lr=0.1, weight_decay=1e-2, elr_start=0.01, elr_end=0.05)))
    804
    """
    growth = np.log(np.asarray(elr_end, float) / np.asarray(elr_start, float))
    return growth / (-2 * np.log(_decay(lr, weight_decay)))


def intrinsic_time(elr: ArrayLike) -> Array:
    r"""Return tau_t = elr_0 + ... + elr_t along the last axis: the time that gradient flow on the sphere has run.

    In the quiet part of a period the cross-entropy of a network that fits its data falls about as 1 / tau.

    >>> intrinsic_time([0.5, 0.25, 0.25]).tolist()
    [0.5, 0.75, 1.0]
    """
    return np.cumsum(np.asarray(elr, float), axis=-1)


def expected_periods(lr: ArrayLike, weight_decay: ArrayLike, elr_span: ArrayLike) -> Array:
    r"""Return the number of free decays that a schedule has time for: 2 lambda sum_t eta_t / ln(span).

    `lr` holds the learning rates of all steps (last axis), `elr_span` the factor by which the effective learning rate
    grows between a restart and the next break. An upper bound, as `free_decay_steps` is a lower one.

    >>> round(float(expected_periods(np.full(10_000, 0.1), 1e-2, elr_span=50.0)), 2)
    5.11
    """
    total = np.asarray(lr, float).sum(axis=-1)
    return 2 * np.asarray(weight_decay, float) * total / np.log(np.asarray(elr_span, float))


# ---------------------------------------------------------------- the stability edge


def edge_elr(sharpness: ArrayLike) -> Array:
    r"""Return 2 / h: the step on the sphere above which gradient descent leaves a minimum of sharpness h.

    >>> float(edge_elr(40.0))
    0.05
    """
    return 2 / np.asarray(sharpness, float)


def balance_to_edge(lr: ArrayLike, weight_decay: ArrayLike, eff_grad_norm: ArrayLike, sharpness: ArrayLike) -> Array:
    r"""Return chi = sqrt(2 eta lambda) h / (2 g~): the equilibrium's effective learning rate in units of the edge.

    Far below 1 the norm settles before the edge is reached; near 1 and above the edge comes first. On toy B, with g~
    and h at the minimum, it separates the regimes; on a network its value at one moment does not (both move along a
    run), see the chapters on conditions.

    >>> float(balance_to_edge(lr=1.0, weight_decay=0.005, eff_grad_norm=1.0, sharpness=20.0).round(12))
    1.0
    """
    el = 1 - _decay(lr, weight_decay)
    return np.sqrt(2 * el) / np.asarray(eff_grad_norm, float) / edge_elr(sharpness)


def edge_el(eff_grad_norm: ArrayLike, sharpness: ArrayLike) -> Array:
    r"""Return the eta lambda at which `balance_to_edge` is 1: 2 (g~ / h)^2.

    At the minimum: the lower end of the window in which periods are possible. In the chaotic state after a break: the
    upper end, above which training stays in equilibrium at a high loss.

    >>> float(edge_el(eff_grad_norm=1.0, sharpness=20.0).round(9))
    0.005
    """
    return 2 * np.square(np.asarray(eff_grad_norm, float) / np.asarray(sharpness, float))


def edge_constant(quartic: ArrayLike, sharpness: ArrayLike) -> Array:
    r"""Return C = 2 b / h + 8/3 of a minimum with gradient F'(phi) = h phi - b phi^3 along the circle.

    >>> float(edge_constant(quartic=2 / 3, sharpness=1.0))
    4.0
    """
    return 2 * np.asarray(quartic, float) / np.asarray(sharpness, float) + 8 / 3


def edge_modulus(el: ArrayLike, constant: ArrayLike) -> Array:
    r"""Return |eigenvalue|^2 = 1 + (4 - C) el of the period-2 orbit at the edge, where decay and growth balance.

    (N1) Above 1, that is for b / h < 2/3, the balance at the edge is unstable: oscillations grow into cycles. Below 1
    training stays at the edge. Derived for a symmetric minimum, to first order in el; C from `edge_constant`.

    >>> float(edge_modulus(el=0.01, constant=3.0))
    1.01
    """
    return 1 + (4 - np.asarray(constant, float)) * np.asarray(el, float)


def edge_oscillation_steps(el: ArrayLike) -> Array:
    r"""Return the period of small oscillations around the edge, in steps: 2 pi / sqrt(8 el).

    >>> round(float(edge_oscillation_steps(1e-4)))
    222
    """
    return 2 * np.pi / np.sqrt(8 * np.asarray(el, float))


def dilogarithm(x: ArrayLike) -> Array:
    r"""Return Re Li2(x), whose derivative is -ln|1 - x| / x; it is largest, pi^2 / 4, at x = 2.

    >>> round(float(dilogarithm(2.0) - np.pi**2 / 4), 12)
    0.0
    """
    return np.real(spence(1 - np.asarray(x, complex)))


def exit_without_noise(start: float) -> float:
    r"""Return x = Phi h at which a deterministic orbit that entered at x = `start` (below 2) leaves the minimum.

    (N2) While |phi| is small it is multiplied by |1 - x| a step and x by 1/a^2. It leaves once the growth beyond x = 2
    has undone the shrinking before it: Re Li2(x_exit) = Re Li2(start). To relative order el.

    >>> round(exit_without_noise(0.9), 3)
    6.8
    """
    start = number("start", start, "a number above 0 and below 2", 0, 2, low_open=True)
    return _above_two(float(dilogarithm(start)))


def exit_with_floor(el: float, growth: float) -> float:
    r"""Return x = Phi h at which an orbit leaves that starts to grow, at x = 2, from a floor under |phi|.

    (N3) Re Li2(2) - Re Li2(x) = 2 el ln(phi_J / phi_f) with `growth` = phi_J / phi_f, the size that counts as a jump
    over the floor; to leading order x = 2 + sqrt(8 el ln(growth)). Rounding is such a floor, so the number format
    decides how far beyond the edge deterministic training gets.

    >>> round(exit_with_floor(el=1e-3, growth=1e12), 3)
    2.552
    """
    el = number("el", el, "a number above 0 and below 1", 0, 1, low_open=True)
    growth = number("growth", growth, "a factor above 1", 1, float("inf"), low_open=True)
    return _above_two(float(dilogarithm(2.0)) - 2 * el * np.log(growth))


def noise_floor(sigma: ArrayLike, el: ArrayLike) -> Array:
    r"""Return the floor under |phi| of an orbit that passes the edge with noise of standard deviation `sigma` a step.

    phi_f = sigma (pi / (4 el))^(1/4), the root mean square of what noise accumulates while x passes 2: noise of s
    steps before or after is smaller by exp(-2 el s^2) when the orbit has left. The median of |phi| is 0.674 of it.

    >>> float(noise_floor(sigma=1e-8, el=np.pi / 4))
    1e-08
    """
    return np.asarray(sigma, float) * (np.pi / (4 * np.asarray(el, float))) ** 0.25


def _above_two(value: float) -> float:
    """Return the x > 2 with Re Li2(x) = value."""
    high = 4.0
    while dilogarithm(high) > value:
        high *= 2
    return float(brentq(lambda x: float(dilogarithm(x)) - value, 2.0, high, xtol=1e-13))


# ---------------------------------------------------------------- batch normalization's epsilon


def output_gain(weight_norm: ArrayLike, eps: ArrayLike) -> Array:
    r"""Return rho / sqrt(rho^2 + eps), by which epsilon shrinks the normalized output.

    In units in which the variance of the pre-activation is rho^2. It breaks scale invariance: a smaller norm now means
    a smaller output, so the gradient of a fitted network gets a part that points outwards.

    >>> round(float(output_gain(weight_norm=1.0, eps=1.0)), 6)
    0.707107
    """
    rho = np.asarray(weight_norm, float)
    return rho / np.sqrt(np.square(rho) + np.asarray(eps, float))


def bounded_elr(lr: ArrayLike, weight_norm: ArrayLike, eps: ArrayLike) -> Array:
    r"""Return eta / (rho^2 + eps): with epsilon the effective learning rate cannot grow beyond eta / eps.

    >>> float(bounded_elr(lr=0.1, weight_norm=0.0, eps=1e-2))
    10.0
    """
    return np.asarray(lr, float) / (np.square(np.asarray(weight_norm, float)) + np.asarray(eps, float))


def edge_eps(lr: ArrayLike, sharpness: ArrayLike) -> Array:
    r"""Return eps* = eta h / 2, the scale above which epsilon keeps the effective learning rate below the edge.

    >>> float(edge_eps(lr=0.1, sharpness=40.0))
    2.0
    """
    return np.asarray(lr, float) * np.asarray(sharpness, float) / 2


# ---------------------------------------------------------------- schedules


def decay_clock(lr: ArrayLike, weight_decay: ArrayLike, momentum: ArrayLike = 0.0) -> Array:
    r"""Return ln(ELR) that free decay and the schedule have added after each step, the last axis of `lr`.

    C_t = 2 lambda (eta_0 + ... + eta_t) / (1 - mu) + ln(eta_t / max eta). While no gradient holds the norm up, the
    effective learning rate eta / rho^2 grows as exp(C_t): by decay, which shrinks rho^2, and by the schedule itself. A
    drop of the learning rate by f sets the clock back by ln(f), and decay has to make that up before anything can
    break. So what a schedule leads to is told by its largest C_t, not by the sum alone (`expected_periods`).
    Leading axes broadcast with `weight_decay` and `momentum`; to first order in eta lambda.

    >>> decay_clock([0.1, 0.1, 0.05], weight_decay=1.0).round(3).tolist()
    [0.2, 0.4, -0.193]
    """
    lr = np.asarray(lr, float)
    rate = 2 * np.asarray(weight_decay, float) / (1 - np.asarray(momentum, float))
    with np.errstate(divide="ignore"):
        return rate[..., None] * np.cumsum(lr, axis=-1) + np.log(lr / lr.max(axis=-1, keepdims=True))
