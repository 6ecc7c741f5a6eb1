r"""The stability edge: where descent leaves a minimum, with and without noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import spence

from periodic_lib.checks import number
from periodic_lib.theory.motion import Array, shrinkage


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
    lr_wd = 1 - shrinkage(lr, weight_decay)
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


def edge_eps(lr: ArrayLike, sharpness: ArrayLike) -> Array:
    r"""Return eps* = eta h / 2: a larger epsilon keeps the effective learning rate below the edge.

    >>> float(edge_eps(lr=0.1, sharpness=40.0))
    2.0
    """
    return np.asarray(lr, float) * np.asarray(sharpness, float) / 2
