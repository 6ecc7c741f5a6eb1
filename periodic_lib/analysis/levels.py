r"""Levels: the effective learning rates at which periods begin and end. NumPy and pandas only.

*Restart* and *break level*: the effective learning rate (ELR) where the norm has stopped growing
after a break, and where the next break begins. Between them lies a *passage*, and its *span* is
ln(break level / restart level). If decay alone moved the norm, it would take
T = span / (2 |ln a|) steps (`theory.free_decay_steps`).

*Overshoot*: rho'^2 = a^2 rho^2 + eta^2 g~^2 / rho^2, squared and with decay left out, is
1/ELR_t^2 = 1/ELR_0^2 + sum (2 g~^2 + ELR^2 g~^4): the gradient spent in a break sets where it ends.
The last term is smaller than the first by tan^2(angular update) / 2.

*Freezing* and *melting level*, on the sphere (the norm is held): up to the first a broken or a
random network converges; from the second on a converged one breaks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike

from periodic_lib import theory
from periodic_lib.analysis.periods import find_destabilizations
from periodic_lib.analysis.regimes import summarize
from periodic_lib.changes import parse_changes


def passages(results: xr.Dataset) -> pd.DataFrame:
    """Return one row per break of every run: its levels, and the passage to the next one.

    Returns
    -------
    table with `run`, `lr`, `weight_decay`, `lr_wd`, `init_seed`; `start` and `end` of the break
    (steps); `break` and `restart`, the effective learning rates there; and, nan after the last
    break of a run, `next`, the level of the next break, `steps` from the end to there, `span`,
    ln(next / restart), and `law`, the steps that decay alone needs for it. Runs whose loss is not
    finite have no rows.

    >>> saw = 3 * np.exp(-0.01 * (np.arange(250) % 100))
    >>> names = {"lr": 0.5, "weight_decay": 0.02, "init_seed": 0}
    >>> runs = {name: ("run", [value]) for name, value in names.items()} | {"step": np.arange(250)}
    >>> data = {"weight_norm": (("run", "step"), [saw]), "train_loss": (("run", "step"), [saw])}
    >>> passages(xr.Dataset(data, runs))[["start", "end", "steps"]].values.tolist()
    [[99.0, 100.0, 99.0], [199.0, 200.0, nan]]
    """
    finite = results.isel(run=np.isfinite(results.train_loss).all("step").values)
    breaks = find_destabilizations(finite)
    parameters = {
        name: finite[name].values for name in ("lr", "weight_decay", "init_seed") if name in finite
    }
    table = breaks[["run", "start", "end"]].merge(
        pd.DataFrame(parameters, finite.run.values), left_on="run", right_index=True, how="left"
    )
    table["lr_wd"] = (table.lr * table.weight_decay).round(12)
    table["break"] = table.lr / breaks.norm_before**2
    table["restart"] = table.lr / breaks.norm_after**2
    by_run = table.groupby("run")
    table["next"], ends = by_run["break"].shift(-1), by_run["start"].shift(-1)
    table["steps"], table["span"] = ends - table.end, np.log(table.next / table.restart)
    table["law"] = theory.free_decay_steps(table.lr, table.weight_decay, table.restart, table.next)
    return table


def overshoot(results: xr.Dataset, breaks: pd.DataFrame) -> pd.DataFrame:
    r"""Return of every break what its gradient did: 1/ELR^2 = 1/ELR_0^2 + what was spent.

    Parameters
    ----------
    results : data set with `eff_grad_norm`, `train_loss` and `elr` at every step.
    breaks : as `passages` returns it for them.

    Returns
    -------
    `breaks` with `spent`, 2 sum g~^2 over the steps from `start` to before `end`; `ratio`, 1/ELR^2
    at the end over 1/ELR^2 at the start plus `spent`; `closed`, the same with the sum of
    ELR^2 g~^4, too (1 but for decay); `elr_at_peak`, the effective learning rate where the loss is
    highest in the break; `peak_loss`.

    >>> norm = np.sqrt([1.0, 1.01, 1.01 + 0.01 / 1.01])  # lr 0.1, g~ = 1: rho^2 + 0.01 / rho^2
    >>> names = {"weight_norm": norm, "eff_grad_norm": np.ones(3), "train_loss": [1.0, 3.0, 2.0]}
    >>> runs = {name: (("run", "step"), [values]) for name, values in names.items()}
    >>> data = xr.Dataset(runs, {"run": [0], "step": np.arange(3)})
    >>> data["elr"] = 0.1 / data.weight_norm**2
    >>> ends = {"run": [0], "start": [0], "end": [2], "break": [0.1]}
    >>> ends["restart"] = [float(data.elr[0, 2])]
    >>> table = overshoot(data, pd.DataFrame(ends))
    >>> table[["spent", "closed"]].round(6).values.tolist(), round(float(table.lasted[0]), 3)
    ([[4.0, 1.0]], 0.199)
    """
    rows = []
    for row in breaks.itertuples():
        one = results.sel(run=row.run, step=slice(row.start, row.end))
        square = np.square(one.eff_grad_norm.values[:-1].astype(float))
        fourth = np.square(one.elr.values[:-1] * square).sum()
        top = int(one.train_loss.values.argmax())
        lasted = one.elr.values[:-1].astype(float).sum()
        peak = float(one.elr[top]), float(one.train_loss[top])
        rows.append((2 * square.sum(), fourth, lasted, *peak))
    columns = ["spent", "fourth", "lasted", "elr_at_peak", "peak_loss"]
    table = breaks.join(pd.DataFrame(rows, breaks.index, columns, dtype=float))
    expected = table["break"] ** -2.0 + table.spent
    table["ratio"] = table.restart**-2.0 / expected
    table["closed"] = table.restart**-2.0 / (expected + table.fourth)
    return table.drop(columns="fourth")


def arrested(table: pd.DataFrame, lasts: float) -> pd.Series:
    r"""Return the level at which each break ends if it lasts `lasts` of intrinsic time.

    dt = ELR per step, d(1/ELR^2) = 2 g~^2 per step, hence d(1/ELR)/dt = g~^2, and
    1/ELR_end = 1/ELR_start + <g~^2> t, with <g~^2> the mean over the steps of the break.

    Parameters
    ----------
    table : as `overshoot` returns it, with `break`, `spent`, `start`, `end`.
    lasts : intrinsic time of a break.

    >>> one = {"break": [0.1], "spent": [40.0], "start": [5], "end": [7]}  # <g~^2> = 10
    >>> arrested(pd.DataFrame(one), 1.0).tolist()
    [0.05]
    """
    mean_square = table.spent / 2 / (table.end - table.start)
    return 1 / (1 / table["break"] + mean_square * lasts)


def arrest_table(setups: Mapping[str, pd.DataFrame], least: int, factor: float) -> pd.DataFrame:
    """Return how long breaks last and where they end, beside `arrested` with the first's time.

    Parameters
    ----------
    setups : name -> breaks as `overshoot` returns them. The median time and level of the first are
        what the others are compared with.
    least : breaks that a setup must have to be listed.
    factor : what counts as near.

    Returns
    -------
    table, a row per setup: `breaks`; medians `lasted`, `restart` and `law`, the level by
        `arrested`; `near`, the share of breaks in which it is within `factor` of the measured one;
        then medians of |ln(level / measured)|: `error`, by the law; by its nulls `steps`, the law
        with the first setup's median number of steps instead of time, `before`, no change of
        level at all, and `constant`, the first setup's median level.
    """
    first = next(iter(setups.values()))
    steps = (first.end - first.start).median()
    rows = {}
    for name, breaks in setups.items():
        if len(breaks) < least:
            continue
        law = arrested(breaks, first.lasted.median())
        a_step = breaks.spent / (breaks.end - breaks.start)
        same_steps = (breaks["break"] ** -2.0 + a_step * steps) ** -0.5
        levels = law, same_steps, breaks["break"], first.restart.median()
        errors = [np.log(level / breaks.restart).abs() for level in levels]
        medians = breaks.lasted.median(), breaks.restart.median(), law.median()
        near = (errors[0] <= np.log(factor)).mean()
        rows[name] = len(breaks), *medians, near, *(error.median() for error in errors)
    columns = ["breaks", "lasted", "restart", "law", "near", "error", "steps", "before", "constant"]
    return pd.DataFrame.from_dict(rows, "index", columns=columns)


def level_table(results: xr.Dataset, **facts: object) -> pd.DataFrame:
    """Return the levels by lr_wd: one row per value at which a run breaks.

    Returns
    -------
    table with `facts` as columns (the setup's name, say), `lr_wd`; `breaks`, their number; medians
    over breaks of `restart` and `break`, and of `span` and `share` (law over measured steps) over
    passages; `periodic`, how many of the `runs` are; `period`, the median of their median periods
    (nan without), and `folds`, 2 lr_wd period: in e-foldings of rho^2.
    """
    breaks, runs = passages(results), summarize(results)
    breaks["share"] = breaks.law / breaks.steps
    by_lr_wd = breaks.groupby("lr_wd")
    table = by_lr_wd[["restart", "break", "span", "share"]].median()
    table.insert(0, "breaks", by_lr_wd.size())
    judged = runs[runs.regime == "periodic"].groupby("lr_wd")
    table["runs"] = runs.groupby("lr_wd").size()
    table["periodic"] = judged.size().reindex(table.index, fill_value=0)
    table["period"] = judged.median_period.median()
    table["folds"] = 2 * table.index * table.period
    return table.reset_index().assign(**facts)


def doubled(runs: pd.DataFrame, name: str, other: str) -> pd.DataFrame:
    """Return `lr_wd` and `ratio` of median periods for pairs of runs that differ by 2 in `name`.

    `runs`: rows of a run table; a pair has equal `other` and `init_seed`; ratio and lr_wd are of
    the larger over the smaller, and of the smaller.

    >>> two = pd.DataFrame({"lr": [1.0, 2.0], "weight_decay": 0.1, "init_seed": 0})
    >>> two = two.assign(lr_wd=two.lr * 0.1, median_period=[90.0, 45.0])
    >>> doubled(two, "lr", "weight_decay").values.tolist()
    [[0.1, 0.5, 'lr']]
    """
    place = np.log2(runs[name]).round(3)
    keys = ["place", other, "init_seed"]
    pairs = runs.assign(place=place).merge(runs.assign(place=place - 1), on=keys)
    ratio = pairs.median_period_y / pairs.median_period_x
    return pd.DataFrame({"lr_wd": pairs.lr_wd_x, "ratio": ratio, "doubled": name}).dropna()


def with_forecasts(
    table: pd.DataFrame, everywhere: pd.Series, own: dict[str, tuple[float, pd.Series | None]]
) -> pd.DataFrame:
    """Return level tables with forecasts of the period over the measured one: `own`, `elsewhere`.

    A forecast is ln(break / restart) / (2 lr_wd). Rows without a period are left out.

    Parameters
    ----------
    table : `network`, `lr_wd`, `restart`, `break`, `period`, as of `level_table`.
    everywhere : `restart` and `break`, used for every row (`elsewhere`).
    own : network -> (lr_wd, levels): those that its rows are forecast by; None: those of its row at
        lr_wd. Rows at lr_wd, where the levels were measured, are not forecast.

    >>> rows = {"network": "a", "lr_wd": [1e-3, 1e-2], "restart": 0.1, "break": 0.1 * np.e}
    >>> rows = pd.DataFrame(rows | {"period": [500.0, 40.0]})
    >>> found = with_forecasts(rows, rows[["restart", "break"]].iloc[0], {"a": (1e-3, None)})
    >>> found[["own", "elsewhere"]].round(3).values.tolist()
    [[nan, 1.0], [1.25, 1.25]]
    """
    table = table.dropna(subset="period").reset_index(drop=True)
    table["folds"] = 2 * table.lr_wd * table.period
    table["own"], table["elsewhere"] = np.nan, _span(everywhere) / table.folds
    for network, (lr_wd, given) in own.items():
        mine = table.network == network
        there = mine & np.isclose(table.lr_wd, lr_wd)
        if given is not None or there.any():
            used = table[there].iloc[0] if given is None else given
            table.loc[mine & ~there, "own"] = _span(used) / table.folds[mine & ~there]
    return table


def _span(levels: pd.Series) -> float:
    return float(np.log(levels["break"] / levels["restart"]))


def steadiness(breaks: pd.DataFrame, low: float, high: float) -> pd.DataFrame:
    """Return how far restart and break level move, over `lr_wd` from `low` to `high`.

    Index "restart" and "break"; `moved`, largest over smallest median along lr_wd; `effect`, by
    what part a learning rate 100 times larger moves it at equal lr_wd, with `least` and `most`, its
    95 % interval (`effect_within`).
    """
    near = breaks[breaks.lr_wd.between(0.999 * low, 1.001 * high)]
    rows = {}
    for name in ("restart", "break"):
        medians = near.groupby("lr_wd")[name].median()
        moved = medians.max() / medians.min()
        rows[name] = (moved, *effect_within(near, "lr", name, "lr_wd"))
    return pd.DataFrame.from_dict(rows, "index", columns=["moved", "effect", "least", "most"])


# ---------------------------------------------------------------- held norms: freezing, melting


def held(results: xr.Dataset) -> pd.DataFrame:
    """Return, per run, from which `step` on and at which `elr` its norm is held, by its changes.

    `state`: "random" (held from the start), "converged", "natural" (held from a step that no other
    seed shares); of those held before, "adapted" (from the start) or "forced" (broken by it).

    >>> coords = {"changes": ("run", ["0: elr 0.1", "9: elr 0.2, 12: elr 0.1"])}
    >>> coords |= {"run": [0, 1], "init_seed": ("run", [0, 0])}
    >>> held(xr.Dataset(coords=coords)).values.tolist()
    [[0, 0, 0.1, 'random'], [0, 12, 0.1, 'forced']]
    """
    rows = []
    for text, seed in zip(results.changes.values, results.init_seed.values, strict=True):
        changes = parse_changes(str(text))
        last = changes[-1]
        rows.append((int(seed), last.step, last.value, changes[0].step, len(changes)))
    columns = ["init_seed", "step", "elr", "first", "changes"]
    table = pd.DataFrame(rows, results.run.values, columns)
    seeds = table.groupby("step").init_seed.transform("nunique")
    many = table.init_seed.nunique() > 1
    state = np.where(many & (seeds == 1), "natural", "converged")
    before = np.where(table["first"] == 0, "adapted", "forced")
    state = np.where(table.changes > 1, before, np.where(table.step == 0, "random", state))
    return table[["init_seed", "step", "elr"]].assign(state=state)


def first_passage(
    loss: ArrayLike, start: int, level: float, window: int, above: bool = False
) -> float:
    """Return the steps from `start` until the mean of `window` losses is below (above) `level`.

    The window lies after `start`; nan if it does not happen within the record.

    >>> first_passage([9, 9, 9, 1, 1, 1], start=1, level=2, window=2)
    4.0
    """
    after = pd.Series(np.asarray(loss, float)[start:]).rolling(window).mean()
    found = np.flatnonzero(after > level if above else after < level)
    return float(found[0] + 1) if len(found) else np.nan


def watch(
    results: xr.Dataset, low: float, high: float, window: int, last: int = 300
) -> pd.DataFrame:
    """Return `held` runs with what became of them.

    `wait`, the steps until the mean loss of `window` steps is below `low`; `broke`, until it is
    above `high` (nan: not in the record); `late_loss`, the median of the `last` losses.
    """
    table, losses = held(results), results.train_loss.values
    starts = table.step.to_numpy()
    rows = [
        (
            first_passage(loss, start, low, window),
            first_passage(loss, start, high, window, above=True),
            float(np.median(loss[-last:])),
        )
        for loss, start in zip(losses, starts, strict=True)
    ]
    return table.join(pd.DataFrame(rows, table.index, ["wait", "broke", "late_loss"]))


def borders(table: pd.DataFrame, holds: pd.Series) -> pd.Series:
    """Return `border` of every state and seed: (state, init_seed) -> effective learning rate."""
    rows = table.assign(holds=holds).groupby(["state", "init_seed"])
    return rows[["elr", "holds"]].apply(lambda one: border(one.elr, one.holds))


def border(levels: ArrayLike, holds: ArrayLike) -> float:
    """Return where holding ends: the geometric mean of the last level that holds and the next one.

    "Last" before the first that does not hold. At the ends of the range that is a bound only: the
    largest level if all hold, the smallest if none does.

    >>> round(border([0.01, 0.04, 0.16], [True, True, False]), 12)
    0.08
    """
    order = np.argsort(levels)
    levels, holds = np.asarray(levels, float)[order], np.asarray(holds, bool)[order]
    first = int(np.argmin(holds)) if not holds.all() else len(levels)
    if first in (0, len(levels)):
        return float(levels[max(first - 1, 0)])
    return float(np.sqrt(levels[first - 1] * levels[first]))


def ramp_breaks(results: xr.Dataset, low: float, high: float, window: int) -> pd.Series:
    """Return, per init_seed, the ELR at which a run of the slowest ramp breaks for the first time.

    That is where the mean of `window` losses is above `high`, after it has once been below `low`;
    the last ELR of a run that does not break.
    """
    found = {}
    for run in results.run.values[results.warmup.values == results.warmup.values.max()]:
        one = results.sel(run=run)
        start = first_passage(one.train_loss, 0, low, window)
        start = int(start) if np.isfinite(start) else 0
        up = first_passage(one.train_loss, start, high, window, above=True)
        at = start + int(up) - 1 if np.isfinite(up) else -1
        found[int(one.init_seed)] = float(one.elr[at])
    return pd.Series(found)


# ---------------------------------------------------------------- what moves with what


def steps_back(table: pd.DataFrame, rank: dict[str, int]) -> pd.DataFrame:
    """Return how many neighbours of a map go back in the order of regimes: `back` of `pairs`.

    `table`: a run table over a grid; `rank`: regime -> its place in the order. Index: the seed and
    which of learning rate and weight decay grows.

    >>> runs = {"lr": [1, 2, 4], "weight_decay": 1, "init_seed": 0, "regime": ["a", "b", "a"]}
    >>> steps_back(pd.DataFrame(runs), {"a": 0, "b": 1}).loc["seed 0, learning rate"].tolist()
    [1, 2]
    """
    rows = {}
    for seed, mine in table.assign(rank=table.regime.map(rank)).groupby("init_seed"):
        places = mine.pivot_table("rank", "weight_decay", "lr").to_numpy()
        for axis, name in ((1, "learning rate"), (0, "weight decay")):
            moves = np.diff(places, axis=axis)
            rows[f"seed {seed}, {name}"] = int((moves < 0).sum()), moves.size
    return pd.DataFrame.from_dict(rows, "index", columns=["back", "pairs"])


def slope_within(table: pd.DataFrame, x: str, y: str, by: str) -> float:
    """Return the slope of ln y against ln x within groups of equal `by`, by least squares.

    >>> two = pd.DataFrame({"x": [1, 10, 1, 10], "y": [1, 10, 7, 70], "by": [0, 0, 1, 1]})
    >>> round(slope_within(two, "x", "y", "by"), 12)
    1.0
    """
    logs = np.log(table[[x, y]].astype(float))
    logs -= logs.groupby(table[by]).transform("mean")
    return float((logs[x] * logs[y]).sum() / np.square(logs[x]).sum())


def power(table: pd.DataFrame, x: str, names: dict[str, str], by: str) -> pd.DataFrame:
    """Return the slope of ln y against ln x per group of `by`: a column for each y of `names`.

    >>> one = pd.DataFrame({"x": [1.0, 10.0], "y": [1.0, 100.0], "seed": 3})
    >>> power(one, "x", {"loss": "y"}, "seed").round(6).to_dict()
    {'loss': {3: 2.0}}
    """
    rows = {
        group: {
            name: float(np.polyfit(np.log(part[x]), np.log(part[column]), 1)[0])
            for name, column in names.items()
        }
        for group, part in table.groupby(by)
    }
    return pd.DataFrame.from_dict(rows, "index", columns=list(names))


def explained(table: pd.DataFrame, y: str, by: str) -> float:
    """Return the part of the variance of ln y that groups of equal `by` explain.

    1 - sum (ln y - its group's mean)^2 / sum (ln y - the mean of all)^2.

    >>> rows = {"y": np.exp([0.0, 2, 10, 12]), "by": [0, 0, 1, 1]}
    >>> round(explained(pd.DataFrame(rows), "y", "by"), 4)
    0.9615
    """
    logs = np.log(table[y])
    within = logs - logs.groupby(table[by]).transform("mean")
    return float(1 - (within**2).sum() / ((logs - logs.mean()) ** 2).sum())


def effect_within(
    table: pd.DataFrame, x: str, y: str, by: str, factor: float = 100, draws: int = 1000
) -> tuple[float, float, float]:
    """Return by what part y changes when x grows by `factor` at equal `by`; with a 95 % interval.

    factor^slope - 1, and its bootstrap interval over the rows of each group.
    """
    rows = table.dropna(subset=[x, y])
    if rows[x].nunique() < 2:
        return np.nan, np.nan, np.nan
    logs = np.log(rows[[x, y]].to_numpy(float))
    groups = pd.factorize(rows[by])[0]
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    rng, slopes = np.random.default_rng(0), []
    for _ in range(draws):
        drawn = [logs[rng.choice(one, len(one))] for one in members]
        centred = np.concatenate([part - part.mean(axis=0) for part in drawn])
        square = np.square(centred[:, 0]).sum()
        slopes.append((centred[:, 0] * centred[:, 1]).sum() / square if square else np.nan)
    ends = np.nanquantile(slopes, [0.025, 0.975])
    middle = slope_within(rows, x, y, by)
    return tuple(float(factor**slope - 1) for slope in (middle, *ends))
