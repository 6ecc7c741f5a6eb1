r"""The stability edge on the two toys: what an orbit does there, beside the laws of `theory.edge`.

NumPy and pandas only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from periodic_lib import theory
from periodic_lib.analysis.periods import find_destabilizations
from periodic_lib.theory.toys import SphereToy, circle_orbit

VISIBLE = 0.1  # of the flip at rest, sqrt(lr_wd / 2): when an orbit counts as out
NORMAL_MEDIAN = 0.6745  # of |x|, in standard deviations


def modulus(frequency: float, lr_wd: float) -> float:
    r"""Return (|eigenvalue|^2 - 1) / lr_wd of toy A's orbit of period 2 at the edge, numerically.

    At rest phi flips its sign every step and turns by 2 A with cos 2A = a. Map: phi to
    arctan(Phi sin k phi) - phi, and Phi to Phi / (a^2 (1 + Phi^2 sin^2 k phi)). Law: 4 - C
    (`theory.edge_constant`); above zero oscillations grow.

    >>> round(modulus(1.0, 1e-4), 2)
    1.0
    """

    def flip(point):
        tangent = point[1] * np.sin(frequency * point[0])  # of the step's angle
        grown = point[1] / ((1 - lr_wd) ** 2 * (1 + tangent**2))
        return np.array([np.arctan(tangent) - point[0], grown])

    angle = np.arccos(1 - lr_wd) / 2
    rest = np.array([angle, np.tan(2 * angle) / np.sin(frequency * angle)])
    slopes = [
        (flip(rest + nudge) - flip(rest - nudge)) / (2 * nudge.sum())
        for nudge in np.diag(1e-5 * rest)
    ]
    return float((np.linalg.det(slopes) - 1) / lr_wd)


def exit_after_entry(lr_wd: float, entry: float = 0.9, phi: float = 1e-9) -> float:
    """Return x = Phi h where an orbit of toy A without noise is out as far as it was at `entry`.

    Law: `theory.exit_without_noise`.
    """
    orbit = circle_orbit(lr_wd, int(1.2 / lr_wd), phi=phi, sphere_step=entry)
    later = orbit.isel(step=slice(5, None))
    return float(later.x[np.argmax(np.abs(later.phi.values) >= phi)])


def growth(lr_wd: float, noise: float | np.ndarray) -> float | np.ndarray:
    """Return a visible phi over the median of |phi| in noise of this size a step.

    >>> round(growth(1e-2, 1e-6))
    3522
    """
    return VISIBLE * np.sqrt(lr_wd / 2) / (NORMAL_MEDIAN * theory.noise_floor(noise, lr_wd))


def exit_from_floor(lr_wd: float, noise: float, seeds: int) -> float:
    """Return the median x, over orbits of toy A with noise, where phi has become visible.

    Law: `theory.exit_with_floor(lr_wd, growth(lr_wd, noise))`.
    """
    exits = []
    for seed in range(seeds):
        start = {"phi": 1e-3, "sphere_step": 0.9}
        orbit = circle_orbit(lr_wd, int(1 / lr_wd), **start, floor=noise, seed=seed)
        visible = np.abs(orbit.phi) >= VISIBLE * np.sqrt(lr_wd / 2)
        exits.append(float(orbit.x[(visible & (orbit.x > 2)).values.argmax()]))
    return float(np.median(exits))


def sphere_breaks(
    lr_wd: float, steps: int, dtype: str, batch: int, seeds: Sequence[int]
) -> pd.DataFrame:
    """Return the breaks of toy B with their `level`: the sphere step there, in units of the edge.

    The edge is that of each data set's minimum, 2 / h. Columns as `find_destabilizations`, and
    `lr_wd`, `batch`, `format` (the dtype).
    """
    toy = SphereToy(lr_wd, seed=list(seeds), batch=batch, dtype=dtype)
    edge = theory.edge_elr(toy.minimum().sharpness.values)
    breaks = find_destabilizations(toy.run(steps))
    rates = toy.learning_rate[0], toy.weight_decay
    phi = theory.sphere_step(*rates, breaks.norm_before.astype(float))
    level = phi / edge[breaks.run.astype(int)]
    return breaks.assign(lr_wd=lr_wd, batch=batch, format=dtype, level=level)


def rounding_level(lr_wd: float, dtype: str) -> float:
    """Return the level in units of the edge at which rounding lets full-batch training break.

    A floor of half a unit in the last place a step; a break begins where a step turns by the
    equilibrium angle, phi = sqrt(2 lr_wd) / 2.

    >>> round(rounding_level(1e-3, "float64"), 2), round(rounding_level(1e-3, "float32"), 2)
    (1.3, 1.17)
    """
    floor = theory.noise_floor(np.finfo(dtype).eps / 2, lr_wd)
    return theory.exit_with_floor(lr_wd, float(np.sqrt(lr_wd / 2) / floor)) / 2


def laws(
    frequencies: Sequence[float],
    entries: Sequence[float],
    floors: Sequence[tuple[float, float]],
    seeds: int,
    errors: float = 2,
) -> pd.DataFrame:
    """Return what orbits of toy A do at the edge, beside the laws: one row per case.

    Parameters
    ----------
    frequencies : k of F' = sin(k phi), at lr_wd 1e-4: `modulus`.
    entries : lr_wd of orbits without noise that enter at x = 0.9: `exit_after_entry`.
    floors : (lr_wd, noise) of orbits that leave from a floor: `exit_from_floor` over `seeds`.

    Returns
    -------
    table with `case`, `lr_wd`, `measured`, `law`, and `off`, the distance from the law in units of
    lr_wd: of the modulus over 1 + its size, of an exit relatively, and from a floor beyond `errors`
    standard errors of the median over the orbits.

    >>> laws([1.0, 2.0], [1e-2], [], seeds=1)["law"].round(2).tolist()
    [1.0, 0.0, 6.8]
    """
    rows, small = [], 1e-4
    for k in frequencies:
        law = 4 - float(theory.edge_constant(quartic=k**3 / 6, sharpness=k))
        found = modulus(k, small)
        off = abs(found - law) / (1 + abs(law)) / small
        rows.append((f"modulus, k = {k:g} (b/h = {k**2 / 6:.3f})", small, found, law, off))
    for lr_wd in entries:
        found, law = exit_after_entry(lr_wd), theory.exit_without_noise(0.9)
        rows.append(("exit, entry at 0.9", lr_wd, found, law, abs(found / law - 1) / lr_wd))
    wide = np.exp(errors * 1.17 / np.sqrt(seeds))  # 1.17: of the median of ln|phi|
    for lr_wd, noise in floors:
        grown, found = growth(lr_wd, noise), exit_from_floor(lr_wd, noise, seeds)
        law, low, high = (theory.exit_with_floor(lr_wd, grown * by) for by in (1, 1 / wide, wide))
        off = max(0.0, 1 - found / low, found / high - 1) / lr_wd
        rows.append((f"exit, noise {noise:.0e}", lr_wd, found, law, off))
    return pd.DataFrame(rows, columns=["case", "lr_wd", "measured", "law", "off"])
