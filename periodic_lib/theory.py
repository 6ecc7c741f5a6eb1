r"""Closed forms for norm and direction of scale-invariant weights under SGD and AdamW with decay.

Assumption: the loss does not change when the scale-invariant weights w are scaled, L(c w) = L(w)
for c > 0. Then the gradient is orthogonal to w and grows as 1/|w|, and one step of SGD with coupled
weight decay,

    w' = a w - eta grad L(w),    a = 1 - eta lambda,

splits exactly into a motion of the norm rho = |w| and a motion of the direction u = w / rho.
Notation: eta `lr`, lambda `weight_decay`, g~ = rho |grad L| `eff_grad_norm`, eta/rho^2 `elr`,
Phi = eta/(a rho^2) `sphere_step`, h `sharpness` (largest Hessian eigenvalue on the unit sphere),
eta lambda `lr_wd`. Where a formula holds for momentum or AdamW it says so; else momentum is zero.
"Exact" formulas hold step by step for stochastic gradients too. All functions take numbers or
arrays, which broadcast.

Sections: one step; equilibrium; jumps; how long a period lasts; the stability edge; batch
normalization's epsilon. The two toy models on which all of it can be watched are in
`periodic_lib.toys`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import spence

from periodic_lib.config import ConfigError, number

Array = NDArray[np.float64] | np.float64


def _decay(lr: ArrayLike, weight_decay: ArrayLike) -> Array:
    """Return a = 1 - eta lambda, the factor by which weight decay shrinks the weights in a step."""
    return 1 - np.asarray(lr, float) * np.asarray(weight_decay, float)


# ---------------------------------------------------------------- one step


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
    return effective_lr(lr, weight_norm) / _decay(lr, weight_decay)


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
    return np.hypot(_decay(lr, weight_decay) * rho, np.asarray(lr, float) * g / rho)


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
    return np.asarray(lr, float) * _decay(lr, weight_decay) ** (-2 * np.asarray(step, float) - 1)


# ---------------------------------------------------------------- equilibrium


def equilibrium_norm(
    lr: ArrayLike, weight_decay: ArrayLike, eff_grad_norm: ArrayLike, momentum: ArrayLike = 0.0
) -> Array:
    r"""Return the norm at which weight decay and the outward push of the gradients balance.

    rho*^4 = eta g~^2 / (lambda (1 - mu) (2 - eta lambda / (1 + mu))); inf unless lambda > 0.
    Without momentum mu it is the fixed point of `next_norm` for a constant g~. With momentum it is
    the stationary norm of the second-order recursion

        w_{t+1} = (1 + mu - eta lambda) w_t - mu w_{t-1} - eta g_t

    with gradients that are independent from step to step, of root mean square g~ / rho*.

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
    lr_wd = 1 - _decay(lr, weight_decay)
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

    >>> rho = 10.0
    >>> g = balance_line(effective_lr(0.5, rho), lr=0.5, weight_decay=0.02)
    >>> bool(np.isclose(next_norm(0.5, 0.02, rho, g), rho, rtol=1e-14))
    True
    """
    slope = _decay(lr, weight_decay) * np.tan(equilibrium_angle(lr, weight_decay))
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
    a, b, lr = _decay(lr, weight_decay), np.asarray(beta1, float), np.asarray(lr, float)
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
    a, b = _decay(lr, weight_decay), np.asarray(beta1, float)
    return np.arccos(1 - (1 - a) * (1 - b) / (1 + a * b))


def relaxation_steps(lr: ArrayLike, weight_decay: ArrayLike) -> Array:
    r"""Return the steps in which rho^2 comes closer to its equilibrium by a factor e.

    About 1 / (4 eta lambda). rho^2 -> a^2 rho^2 + eta^2 g~^2 / rho^2 has the slope 2 a^2 - 1 at its
    fixed point, always between -1 and 1: for a constant effective gradient the equilibrium is
    stable. T = -1 / ln|2 a^2 - 1|.

    >>> round(float(relaxation_steps(lr=1.0, weight_decay=1e-3)), 1)
    249.6
    """
    return -1 / np.log(np.abs(2 * _decay(lr, weight_decay) ** 2 - 1))


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
    remaining = _decay(lr, weight_decay) ** (4 * np.asarray(steps, float))
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
    return np.sqrt((1 - _decay(lr, weight_decay)) / 2) * np.asarray(gradient_variation, float)


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
    return -2 * alpha.shape[-1] * np.log(_decay(lr, weight_decay)), growth


# ---------------------------------------------------------------- jumps
#
# A delta-jump is a step with 1 - cos(alpha) > delta. The bounds below hold for every sequence of
# effective gradient norms between `low` (l) and `high` (L); theory books call them l <= g~ <= L.


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
    return np.sqrt(size / (_decay(lr, weight_decay) * jump_tangent(delta)))


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
    a, lr, low = _decay(lr, weight_decay), np.asarray(lr, float), np.asarray(low, float)
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
    r"""Return T_1: while no delta-jump happens, Phi reaches `edge` within this many steps.

    T = ln((rho_0^4 - w_q) / (w_c - w_q)) / (4 |ln a|),
    w_c = (eta / (a edge))^2,  w_q = (2 + kappa^2) a^2 eta^2 q^2 / (1 - a^4),
    if the effective gradient norm stays at or below q `quiet_gradient`; finite if q edge < about
    sqrt(2 eta lambda), else inf: it need not. This is the instability presumption as a theorem: a
    small gradient cannot hold the norm up.

    >>> round(float(unstable_by(0.1, 1e-3, weight_norm=5.0, quiet_gradient=0.01, edge=0.1)))
    16107
    """
    a, lr = _decay(lr, weight_decay), np.asarray(lr, float)
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
    return np.log1p(-np.asarray(delta, float)) / np.log(_decay(lr, weight_decay)) - 1


# ---------------------------------------------------------------- how long a period lasts


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
    return growth / (-2 * np.log(_decay(lr, weight_decay)))


def intrinsic_time(elr: ArrayLike) -> Array:
    r"""Return tau_t = elr_0 + ... + elr_t along the last axis: time of gradient flow on the sphere.

    In the quiet part of a period the cross-entropy of a network that fits its data falls
    about as 1 / tau.

    >>> intrinsic_time([0.5, 0.25, 0.25]).tolist()
    [0.5, 0.75, 1.0]
    """
    return np.cumsum(np.asarray(elr, float), axis=-1)


# ---------------------------------------------------------------- the stability edge


def edge_elr(sharpness: ArrayLike) -> Array:
    r"""Return 2 / h: the step on the sphere above which descent leaves a minimum of sharpness h.

    >>> float(edge_elr(40.0))
    0.05
    """
    return 2 / np.asarray(sharpness, float)


def balance_to_edge(
    lr: ArrayLike, weight_decay: ArrayLike, eff_grad_norm: ArrayLike, sharpness: ArrayLike
) -> Array:
    r"""Return chi = sqrt(2 eta lambda) h / (2 g~): the equilibrium's ELR in units of the edge.

    Far below 1 the norm settles before the edge is reached; near 1 and above the edge comes first.
    On toy B, with g~ and h at the minimum, it separates the regimes; on a network its value at one
    moment does not (both move along a run), see the chapters on conditions.

    >>> float(balance_to_edge(1.0, 0.005, eff_grad_norm=1.0, sharpness=20.0).round(12))
    1.0
    """
    lr_wd = 1 - _decay(lr, weight_decay)
    return np.sqrt(2 * lr_wd) / np.asarray(eff_grad_norm, float) / edge_elr(sharpness)


def edge_constant(quartic: ArrayLike, sharpness: ArrayLike) -> Array:
    r"""Return C = 2 b / h + 8/3 of a minimum with gradient h phi - b phi^3 along the circle.

    (N1) It tells what happens at the edge, where decay and growth balance in an orbit of period 2:
    to first order |eigenvalue|^2 = 1 + (4 - C) eta lambda of that orbit (of a symmetric minimum),
    and its small oscillations last 2 pi / sqrt(8 eta lambda) steps. Below 4, that is for
    b / h < 2/3, the balance is unstable: oscillations grow into cycles. Above 4 training stays at
    the edge.

    >>> float(edge_constant(quartic=2 / 3, sharpness=1.0))
    4.0
    """
    return 2 * np.asarray(quartic, float) / np.asarray(sharpness, float) + 8 / 3


def dilogarithm(x: ArrayLike) -> Array:
    r"""Return Re Li2(x), whose derivative is -ln|1 - x| / x; it is largest, pi^2 / 4, at x = 2.

    >>> round(float(dilogarithm(2.0) - np.pi**2 / 4), 12)
    0.0
    """
    return np.real(spence(1 - np.asarray(x, complex)))


def exit_without_noise(start: float) -> float:
    r"""Return x = Phi h at which an orbit without noise leaves the minimum.

    (N2) It entered at x = `start`, below 2. While |phi| is small it is multiplied by |1 - x| a step
    and x by 1/a^2. It leaves once the growth beyond x = 2 has undone the shrinking before it:
    Re Li2(x_exit) = Re Li2(start). To relative order eta lambda.

    Raises
    ------
    ConfigError : unless 0 < start < 2.

    >>> round(exit_without_noise(0.9), 3)
    6.8
    """
    start = number("start", start, "a number above 0 and below 2", 0, 2, low_open=True)
    return _above_two(float(dilogarithm(start)))


def exit_with_floor(lr_wd: float, growth: float) -> float:
    r"""Return x = Phi h at which an orbit leaves that grows, from x = 2, from a floor under |phi|.

    (N3) Re Li2(2) - Re Li2(x) = 2 eta lambda ln(phi_J / phi_f) with `growth` = phi_J / phi_f, the
    size that counts as a jump over the floor; to leading order
    x = 2 + sqrt(8 eta lambda ln(growth)). Rounding is such a floor, so the number format decides
    how far beyond the edge deterministic training gets.

    Raises
    ------
    ConfigError : unless 0 < lr_wd < 1 and growth > 1.

    >>> round(exit_with_floor(lr_wd=1e-3, growth=1e12), 3)
    2.552
    """
    lr_wd = number("lr_wd", lr_wd, "a number above 0 and below 1", 0, 1, low_open=True)
    growth = number("growth", growth, "a factor above 1", 1, float("inf"), low_open=True)
    return _above_two(float(dilogarithm(2.0)) - 2 * lr_wd * np.log(growth))


def noise_floor(sigma: ArrayLike, lr_wd: ArrayLike) -> Array:
    r"""Return the floor under |phi| of an orbit that passes the edge with noise.

    Of standard deviation `sigma` a step: phi_f = sigma (pi / (4 eta lambda))^(1/4), the root mean
    square of what noise accumulates while x passes 2: noise of s steps before or after is smaller
    by exp(-2 eta lambda s^2) when the orbit has left. The median of |phi| is 0.674 of it.

    >>> float(noise_floor(sigma=1e-8, lr_wd=np.pi / 4))
    1e-08
    """
    return np.asarray(sigma, float) * (np.pi / (4 * np.asarray(lr_wd, float))) ** 0.25


def _above_two(value: float) -> float:
    """Return the x > 2 with Re Li2(x) = value."""
    high = 4.0
    while dilogarithm(high) > value:
        high *= 2
    return float(brentq(lambda x: float(dilogarithm(x)) - value, 2.0, high, xtol=1e-13))


# ---------------------------------------------------------------- batch normalization's epsilon


def edge_eps(lr: ArrayLike, sharpness: ArrayLike) -> Array:
    r"""Return eps* = eta h / 2: a larger epsilon keeps the effective learning rate below the edge.

    >>> float(edge_eps(lr=0.1, sharpness=40.0))
    2.0
    """
    return np.asarray(lr, float) * np.asarray(sharpness, float) / 2


# ---------------------------------------------------------------- schedules


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
