r"""The bounds on delta-jumps, held against gradients made up for it and against training.

`theory.jumps` has the bounds; here are the gradients that attain them, and the stretches of a run
in which each of them has something to say. NumPy and pandas only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from periodic_lib import theory
from periodic_lib.analysis.periods import find_destabilizations

CASES = ["kind", "run", "bound", "steps"]
UPPER = "quiet"  # the kind whose bound is an upper one

Gradients = Callable[[NDArray], NDArray]  # norms -> effective gradient norms


def norm_paths(
    lr: ArrayLike, weight_decay: ArrayLike, start: ArrayLike, choose: Gradients, steps: int
) -> NDArray:
    """Return the norms before each step, (steps, settings), for gradients `choose(norm)`.

    >>> norm_paths(0.1, 1.0, [2.0], lambda norm: 0 * norm, 3).round(2).ravel().tolist()
    [2.0, 1.8, 1.62]
    """
    norms, norm = [], np.array(start, float)
    for _ in range(steps):
        norms.append(norm)
        norm = theory.next_norm(lr, weight_decay, norm, choose(norm))
    return np.array(norms)


def first_jump(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    delta: ArrayLike,
    start: ArrayLike,
    choose: Gradients,
    steps: int,
) -> NDArray:
    """Return the step of the first delta-jump of each setting for gradients `choose(norm)`, or inf.

    >>> first_jump(0.1, 1.0, 0.5, [2.0], lambda norm: 1 + 59 * (norm < 1.7), 9).tolist()
    [2.0]
    """
    norm = np.array(start, float)
    first = np.full(norm.shape, np.inf)
    for t in range(steps):
        g = choose(norm)
        turn = 1 - np.cos(theory.angular_update(lr, weight_decay, norm, g))
        first = np.where((turn > np.multiply(delta, 1 + 1e-12)) & np.isinf(first), t, first)
        norm = theory.next_norm(lr, weight_decay, norm, g)
    return first


def adversary(
    lr: ArrayLike, weight_decay: ArrayLike, low: ArrayLike, high: ArrayLike, delta: ArrayLike
) -> Gradients:
    """Return the gradients that jump as early as possible: `low`, until `high` makes a jump.

    >>> choose = adversary(0.1, 0.1, low=1.0, high=5.0, delta=0.5)
    >>> choose(np.array([0.1, 9.0])).tolist()
    [5.0, 1.0]
    """
    limit = theory.jump_norm(lr, weight_decay, high, delta)
    return lambda norm: np.where(norm < limit, high, low)


def random_settings(number: int, seed: int = 0) -> pd.DataFrame:
    """Return settings drawn at random, with their `bound`, T_min.

    Columns: `lr`, `weight_decay`, `lr_wd`, `delta`, `low` and `high` (l and L), `critical` (the
    ratio L / l up to which nothing jumps; `high` is beyond it), `start` (norm).
    """
    rng, table = np.random.default_rng(seed), pd.DataFrame()
    table["lr"] = 10 ** rng.uniform(-2, 1, number)
    table["lr_wd"] = 10 ** rng.uniform(-2.7, -2, number)
    table["weight_decay"] = table.lr_wd / table.lr
    table["delta"] = rng.uniform(0.03, 0.3, number)
    table["low"] = rng.uniform(0.1, 10, number)
    rates = table.lr, table.weight_decay
    table["critical"] = theory.never_jump_ratio(*rates, table.delta)
    table["high"] = table.low * table.critical * rng.uniform(1.5, 20, number)
    jump = theory.jump_norm(*rates, table.high, table.delta)
    table["start"] = jump * rng.uniform(1.2, 5, number)
    ends = table.start, table.low, table.high, table.delta
    return table.assign(bound=theory.jump_not_before(*rates, *ends))


def between(settings: pd.DataFrame, seed: int = 1) -> Gradients:
    """Return gradients that are random between `low` and `high`, most of them small."""
    low, high = settings.low.to_numpy(), settings.high.to_numpy()
    rng = np.random.default_rng(seed)
    return lambda norm: low * (high / low) ** rng.beta(0.2, 2, len(low))


def first_jumps(
    settings: pd.DataFrame, below: float, above: float, unforced: float, forced: float
) -> pd.DataFrame:
    """Return the first jump of every setting, inf without one, for gradients of several kinds.

    - `adversary` and `random` (`between`), from `start`;
    - `never` and `soon`: the adversary with L at the part `below` (`above`) of the critical ratio;
    - `unforced`: a constant gradient, from twice its equilibrium norm, for delta = `unforced` times
      lr_wd; `forced`: gradients that vary by up to a factor of 3, for `forced` times lr_wd.
    """
    col = {name: values.to_numpy() for name, values in settings.items()}
    rates, low, delta = (col["lr"], col["weight_decay"]), col["low"], col["delta"]
    rng = np.random.default_rng(2)

    def attacked(high, start, steps):
        choose = adversary(*rates, low, high, delta)
        return first_jump(*rates, delta, start, choose, steps)

    def at_ratio(part):
        most = part * col["critical"] * low
        return attacked(most, theory.jump_norm(*rates, most, delta), 10_000)

    balance = 2 * theory.equilibrium_norm(*rates, low)
    large, small = unforced * col["lr_wd"], forced * col["lr_wd"]
    varied = first_jump(
        *rates, small, balance, lambda _: low * 3 ** rng.uniform(0, 1, len(low)), 5000
    )
    found = {
        "adversary": attacked(col["high"], col["start"], 2000),
        "random": first_jump(*rates, delta, col["start"], between(settings), 2000),
        "never": at_ratio(below),
        "soon": at_ratio(above),
        "unforced": first_jump(*rates, large, balance, lambda _: low, 5000),
        "forced": varied,
    }
    return pd.DataFrame(found, settings.index)


# ---------------------------------------------------------------- in training


def bounds_in_training(results: xr.Dataset, delta: float) -> pd.DataFrame:
    """Return every case in which a bound says something, beside what happened.

    Returns
    -------
    table with `run`, `bound` and `steps`, and `kind`:

    - "early": from every maximum of the norm after a break (and the first one of the run) to the
      next delta-jump; bound: T_min with the smallest and largest gradient on the way;
    - "back": from every delta-jump until the norm is back (inf: not in the record);
    - "quiet": the middle half of every passage that has no delta-jump; bound: the *upper* one, with
      the largest gradient in it (inf: it says nothing).
    """
    breaks, rows = find_destabilizations(results), []
    for run in results.run.values:
        one, mine = results.sel(run=run), breaks[breaks.run == run]
        for kind, cases in (("early", _early), ("back", _back), (UPPER, _quiet)):
            rows += [(kind, run, *case) for case in cases(one, mine, delta)]
    return pd.DataFrame(rows, columns=CASES)


def violation(cases: pd.DataFrame) -> pd.Series:
    """Return by how many steps each case violates its bound; negative where it is kept.

    >>> two = pd.DataFrame({"kind": ["early", "quiet"], "bound": [9.0, 9.0], "steps": [7.0, 7.0]})
    >>> violation(two).tolist()
    [2.0, -2.0]
    """
    above = cases.bound - cases.steps
    return above.where(cases.kind != UPPER, -above)


def _early(one: xr.Dataset, breaks: pd.DataFrame, delta: float) -> Iterator[tuple[float, float]]:
    rho, g = one.weight_norm.values.astype(float), one.eff_grad_norm.values
    jumps = np.flatnonzero(1 - np.cos(one.angular_update.values) > delta)
    first = int(breaks.start.iloc[0]) if len(breaks) else len(rho)
    for top in [int(rho[:first].argmax()), *breaks.end.astype(int)]:
        for jump in jumps[jumps >= top][:1]:
            seen = g[top : jump + 1]
            rates = float(one.lr), float(one.weight_decay)
            bound = theory.jump_not_before(*rates, rho[top], seen.min(), seen.max(), delta)
            yield float(bound), float(jump - top)


def _back(one: xr.Dataset, breaks: pd.DataFrame, delta: float) -> Iterator[tuple[float, float]]:
    rho, turn = one.weight_norm.values, 1 - np.cos(one.angular_update.values.astype(float))
    for jump in np.flatnonzero(turn[:-1] > delta):
        below = rho[jump + 1 :] <= rho[jump]
        bound = theory.return_not_before(float(one.lr), float(one.weight_decay), turn[jump])
        yield float(bound), float(below.argmax()) if below.any() else np.inf


def _quiet(one: xr.Dataset, breaks: pd.DataFrame, delta: float) -> Iterator[tuple[float, float]]:
    rho, alpha = one.weight_norm.values, one.angular_update.values
    rates = float(one.lr), float(one.weight_decay)
    ends = zip(breaks.end.astype(int), breaks.start.astype(int)[1:], strict=False)
    for top, end in ends:
        first, last = top + (end - top) // 4, end - (end - top) // 4
        if last > first and np.cos(alpha[first:last].max()) >= 1 - delta:
            largest = one.eff_grad_norm.values[first:last].max()
            edge = theory.sphere_step(*rates, rho[last])
            bound = theory.unstable_by(*rates, rho[first], largest, edge, delta)
            yield float(bound), float((rho[first : last + 1] <= rho[last]).argmax())
