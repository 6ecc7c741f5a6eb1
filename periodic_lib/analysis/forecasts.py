r"""Forecasts of the next break, from the past of a run only; and what a published curve shows.

At a moment s steps after a restart, with the effective learning rate e now, the length of the
passage is forecast (every one at least s):

- `clock`: the median of the passages before;
- `level`: s plus the steps in which weight decay alone takes e to the median break level so far;
- `thresholds`: the steps in which it takes the median restart level to the median break level;
- `not_before`: s plus the steps to the lowest break level so far. Not a forecast but a bound.

Only breaks that are over enter, that of the restart included. NumPy and pandas only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike

from periodic_lib import theory
from periodic_lib.analysis.levels import passages

FRACTIONS = (0.0, 0.25, 0.5, 0.75)  # of a passage: when the forecast is made
METHODS = ("clock", "level", "thresholds", "not_before")
LEAST = 3  # passages before
COLUMNS = ["number", "fraction", "length", *METHODS]


def back_test(
    steps: ArrayLike,
    elr: ArrayLike,
    ends: pd.DataFrame,
    rate: float,
    fractions: Sequence[float] = FRACTIONS,
) -> pd.DataFrame:
    """Return the forecasts of one run, each from what was known when it was made.

    Parameters
    ----------
    steps, elr : the record: times, and the effective learning rate there.
    ends : one row per passage, in order: `begin` and `finish` (times), `restart` and `break`
        (levels); `first`, optional: the level of the break before the first passage.
    rate : 2 |ln a| per unit of time.
    fractions : of the passage that has passed.

    Returns
    -------
    table with `number` of the passage (from 0), `fraction`, its `length`, and the forecast length
    by each of `METHODS`; only of passages with `LEAST` or more before them.

    >>> t = np.arange(500.0)
    >>> saw = pd.DataFrame({"begin": [0, 100, 200, 300], "finish": [100, 200, 300, 400]})
    >>> saw = saw.assign(restart=1.0, **{"break": np.e})
    >>> found = back_test(t, np.exp(t % 100 / 100), saw, rate=0.01)
    >>> found[["clock", "level", "not_before"]].round(6).iloc[1].tolist()
    [100.0, 100.0, 100.0]
    """
    steps, elr, rows = np.asarray(steps, float), np.asarray(elr, float), []
    for number in range(LEAST, len(ends)):
        past, one = ends.iloc[:number], ends.iloc[number]
        levels = np.append(past["break"], [one["first"]] if "first" in ends else [])
        length, median = one.finish - one.begin, np.median(levels)
        span = np.log(median / np.median(past.restart))
        for fraction in fractions:
            passed = fraction * length
            now = one.restart if not fraction else np.interp(one.begin + passed, steps, elr)
            said = {
                "clock": np.median(past.finish - past.begin),
                "level": passed + max(0.0, np.log(median / now)) / rate,
                "thresholds": span / rate,
                "not_before": passed + max(0.0, np.log(levels.min() / now)) / rate,
            }
            rows.append((number, fraction, length, *(max(passed, said[m]) for m in METHODS)))
    return pd.DataFrame(rows, columns=COLUMNS, dtype=None if rows else float)


def back_test_runs(results: xr.Dataset, runs: Sequence[int] | None = None) -> pd.DataFrame:
    """Return `back_test` of every run of a result, or of some, with their number in `run`."""
    found, parts = passages(results), []
    for run in results.run.values if runs is None else runs:
        mine = found[found.run == run].dropna(subset="next")
        if len(mine) > LEAST:
            ends = pd.DataFrame(
                {"begin": mine.end, "finish": mine.end + mine.steps, "restart": mine.restart}
            ).assign(**{"break": mine.next})
            one = results.sel(run=run)
            rate = -2 * np.log(theory.motion.shrinkage(mine.lr.iloc[0], mine.weight_decay.iloc[0]))
            parts.append(back_test(one.step, one.elr, ends, float(rate)).assign(run=run))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*COLUMNS, "run"])


def errors(forecasts: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return the median error of each forecast, |forecast - length| / length, per group.

    With `passages`, how many, and `not_before`: the share of breaks that do not come before that
    bound (up to 1 % of the length).

    >>> made = pd.DataFrame({"fraction": [0.0], "length": [100.0], "clock": [80.0]})
    >>> made = made.assign(level=110.0, thresholds=100.0, not_before=90.0)
    >>> errors(made, ["fraction"]).round(2).values.tolist()
    [[0.2, 0.1, 0.0, 1.0, 1.0]]
    """
    off = forecasts[list(METHODS)].sub(forecasts.length, axis=0).div(forecasts.length, axis=0)
    off = off.abs().assign(not_before=off.not_before <= 0.01)
    keys = [forecasts[name] for name in by]
    medians = off[list(METHODS[:3])].groupby(keys).median()
    covered = off.not_before.astype(float).groupby(keys).agg(["mean", "size"])
    return medians.assign(not_before=covered["mean"], passages=covered["size"])


# ---------------------------------------------------------------- what a monitor said


def scored(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a monitor's back-test with how right each was.

    Parameters
    ----------
    rows : one per moment: `begin` and `break` of the passage, `now`, the bound `not_before`; for
        each of `METHODS` but the last `..._point`, `..._low`, `..._high`, all in steps (nan: not
        said); `given`, the method of the interval that was given, or nothing.

    Returns
    -------
    `rows` with `held`, whether the break did not come before the bound (to 1 % of the passage), and
    `excluded`, the share of the wait that it excluded; per method, and for what was given as
    `own`, `..._error`, |point - break| over the length of the passage, `..._covered` and
    `..._width`, of the interval; nan where nothing was said.

    >>> row = {"begin": 0, "break": 100, "now": 50, "not_before": 60, "given": "level"}
    >>> row |= {f"{m}_{end}": v for m in METHODS for end, v in
    ...         (("point", 90), ("low", 80), ("high", 95))}
    >>> made = scored(pd.DataFrame([row | {"level_high": 120}]))
    >>> made[["held", "excluded", "own_error", "own_covered", "own_width"]].values.tolist()
    [[1.0, 0.2, 0.1, 1.0, 0.4]]
    """
    ends, length = rows["break"], rows["break"] - rows.begin
    wait, bound = ends - rows.now, rows.not_before
    found = rows.assign(
        held=(bound <= ends + 0.01 * length).where(bound.notna()).astype(float),
        excluded=((bound - rows.now) / wait).clip(0, 1),
    )
    for name in METHODS[:3]:
        point, low, high = (rows[f"{name}_{part}"] for part in ("point", "low", "high"))
        found[f"{name}_error"] = (point - ends).abs() / length
        covered = (low <= ends) & (ends <= high)
        found[f"{name}_covered"] = covered.where(low.notna()).astype(float)
        found[f"{name}_width"] = (high - low) / length
    for part in ("error", "covered", "width"):
        chosen = [found[f"{name}_{part}"].where(rows.given == name) for name in METHODS[:3]]
        found[f"own_{part}"] = pd.concat(chosen, axis=1).min(axis=1)  # one of them is not nan
    return found


def scores(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """Return of scored rows, per value of `by`: medians of the errors, and of what was `given`, how
    many, its median error and width and the share covered, beside the clock's at the same moments.
    """
    rows = rows.dropna(subset="clock_error")
    errors = rows.groupby(by)[[f"{name}_error" for name in METHODS[:3]]].median()
    given = rows.dropna(subset="own_error").groupby(by)
    table = errors.assign(given=given.size()).fillna({"given": 0})
    for name in ("own", "clock"):
        for part, how in (("error", "median"), ("covered", "mean"), ("width", "median")):
            table[f"given_{name}_{part}"] = given[f"{name}_{part}"].agg(how)
    return table


# ---------------------------------------------------------------- published curves


def published_passages(
    norms: pd.DataFrame, breaks: Sequence[float], lr: float, weight_decay: float, per_epoch: float
) -> pd.DataFrame:
    """Return the passages of a norm that was read off a figure, the first from the start.

    Parameters
    ----------
    norms : `epoch`, `column_low`, `column_high`: what the curve covers in a column of pixels.
    breaks : the epochs at which it breaks.
    lr, weight_decay, per_epoch : of the training; steps per epoch.

    Returns
    -------
    table with `begin` and `finish` (epochs of the highest norm between two breaks and of the lowest
    one after it), `highest` and `lowest` norm, `restart` and `break` (effective learning rates),
    `epochs`, `law` (epochs of free decay) and `ratio`, law / epochs.

    >>> t = np.arange(0.0, 101)
    >>> norm = 10 * np.exp(-0.01 * (t % 50))
    >>> curve = pd.DataFrame({"epoch": t, "column_low": norm, "column_high": norm})
    >>> published_passages(curve, [49, 99], 0.1, 0.1, 1).ratio.round(3).tolist()
    [0.995, 0.995]
    """
    rows = []
    for first, second in pairwise([0, *breaks]):
        after = norms[norms.epoch.between(first, second)]
        top = after.loc[after.column_high.idxmax()]
        until = norms[norms.epoch.between(top.epoch, second + 6)]  # the figure's columns: 5.4
        end = until.loc[until.column_low.idxmin()]
        rows.append((top.epoch, end.epoch, top.column_high, end.column_low))
    table = pd.DataFrame(rows, columns=["begin", "finish", "highest", "lowest"])
    table["restart"] = theory.effective_lr(lr, table.highest)
    table["break"] = theory.effective_lr(lr, table.lowest)
    table["epochs"] = table.finish - table.begin
    decay = theory.free_decay_steps(lr, weight_decay, table.restart, table["break"])
    table["law"] = decay / per_epoch
    return table.assign(ratio=table.law / table.epochs, lr=lr)


def back_test_published(
    curves: pd.DataFrame, breaks: pd.DataFrame, setting: pd.Series, rates: Sequence[float]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the passages of published curves and their `back_test`, of learning rates `rates`.

    The effective learning rate between breaks is that of the geometric middle of what the curve
    covers. `curves`, `breaks`, `setting`: as `published_levels`.
    """
    norms, read, made = curves[curves.quantity == "si_weight_norm"], [], []
    weight_decay, per_epoch = setting.weight_decay, setting.steps_per_epoch
    for lr in rates:
        curve = norms[norms.learning_rate == lr]
        at = breaks.epoch[breaks.learning_rate == lr]
        read.append(published_passages(curve, at, lr, weight_decay, per_epoch))
        middle = lr / (curve.column_low * curve.column_high)
        rate = -2 * np.log1p(-lr * weight_decay) * per_epoch
        made.append(back_test(curve.epoch, middle, read[-1], rate))
    return pd.concat(read), pd.concat(made)


def published_levels(
    curves: pd.DataFrame, breaks: pd.DataFrame, setting: pd.Series
) -> pd.DataFrame:
    """Return the levels of published curves, as `levels.level_table`: a row per learning rate.

    Medians over the passages after the first break; `period` is the median spacing of the breaks,
    in steps. Parameters: the tables "lobacheva2021_figure2" and "_jumps" of `anchors.published`,
    and the row of "_setting".
    """
    norms, rows = curves[curves.quantity == "si_weight_norm"], []
    for lr, at in breaks.groupby("learning_rate").epoch:
        rates = lr, setting.weight_decay, setting.steps_per_epoch
        read = published_passages(norms[norms.learning_rate == lr], at, *rates).iloc[1:]
        facts = {"network": "published", "setup": "published", "lr_wd": lr * rates[1]}
        facts |= {"breaks": len(at), "period": at.diff().median() * rates[2]}
        rows.append(facts | dict(read[["restart", "break"]].median()))
    return pd.DataFrame(rows)
