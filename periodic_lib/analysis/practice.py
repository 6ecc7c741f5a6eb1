"""Runs of practical settings on one clock: decay time, free decay, breaks that a schedule allows.

NumPy and pandas only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike

from periodic_lib import theory
from periodic_lib.analysis.conditions import letters
from periodic_lib.analysis.periods import find_destabilizations, find_periods, late
from periodic_lib.analysis.regimes import summarize
from periodic_lib.analysis.spreads import spread
from periodic_lib.config import Run

SHOWN = {  # column of `on_the_clock` -> its header in a table, its form
    "destabilizations": ("breaks", ".0f"),
    "decay_time": ("decay time per period", ".2g"),
    "free_decay": ("free decay / period", ".2g"),
    "late_loss": ("late loss", ".2g"),
    "late_gradient": ("late gradient", ".2g"),
}
EPOCH = 391  # steps: CIFAR-10 in batches of 128


def decay_rates(results: xr.Dataset) -> pd.Series:
    """Return what decay adds to ln(ELR) per step, by run: 2 eta lambda / (1 - mu), first order.

    >>> places = {"lr": ("run", [0.01]), "weight_decay": ("run", [0.01]), "run": [0]}
    >>> data = xr.Dataset(coords=places | {"momentum": ("run", [0.9])})
    >>> decay_rates(data).round(12).tolist()
    [0.002]
    """
    rates = 2 * results.lr * results.weight_decay / (1 - results.momentum)
    return pd.Series(rates.values, pd.Index(results.run.values, name="run"))


def on_the_clock(results: xr.Dataset, rung: str) -> pd.DataFrame:
    """Return the run table (`regimes.summarize`) on the clock of decay, with a column `rung`.

    Further columns: `seed`; `decay_time`, the median period times `decay_rates`; `free_decay`, the
    median over periods of 2 ln(norm_start / norm_end) / (decay_rates x length): the share of a
    period that the norm would have needed with no gradient; `shortest`, the smallest
    2 ln(norm_start / norm_end) of a period; `late_gradient`, the median effective gradient norm of
    the second half.
    """
    table, periods, rates = summarize(results), find_periods(results), decay_rates(results)
    fallen = 2 * np.log(periods["norm_start"] / periods["norm_end"])
    free = fallen / periods["length"] / periods["run"].map(rates)
    table["decay_time"] = table["median_period"] * rates
    table["free_decay"] = free.groupby(periods["run"]).median()
    table["shortest"] = fallen.groupby(periods["run"]).min()
    table["late_gradient"] = late(results)["eff_grad_norm"].median("step").values
    return table.assign(rung=rung).rename(columns={"init_seed": "seed"})


def breaks_by_clock(results: xr.Dataset, until: Mapping[str, float]) -> pd.DataFrame:
    """Return how many breaks each run has had when its clock 2 eta lambda t shows given values.

    Rows `rung`, `seed`, `count`: for every name in `until` and every run of `results`, which keep
    their learning rate.
    """
    breaks, rates = find_destabilizations(results), decay_rates(results)
    clock = breaks["start"] * breaks["run"].map(rates)
    rows = [
        (name, int(results.init_seed.sel(run=run)), int((clock[breaks["run"] == run] <= end).sum()))
        for name, end in until.items()
        for run in results.run.values
    ]
    return pd.DataFrame(rows, columns=["rung", "seed", "count"])


def by_what_differs(results: xr.Dataset) -> dict[str, xr.Dataset]:
    """Return the runs of one stack by what is not plain in them: one word each -> its runs.

    "laboratory" where nothing is; else "momentum", "warmup", or the name of the schedule.
    """
    words = np.where(results.momentum > 0, "momentum", results.schedule.values.astype(object))
    words = np.where(results.warmup > 0, "warmup", words)
    words = np.where(words == "constant", "laboratory", words)
    return {name: results.isel(run=words == name) for name in dict.fromkeys(words)}


def learning_rates(results: xr.Dataset) -> np.ndarray:
    """Return the learning rate of every step of the first run, its schedule included, (step,)."""
    from periodic_lib.engine.optimizers import schedule_factors

    one, steps = results.isel(run=0), results.sizes["step"]
    plan = {"schedule": one.schedule.item(), "warmup": int(one.warmup)}
    run = Run(float(one.lr), float(one.weight_decay), **plan)
    return run.lr * schedule_factors([run], steps, 0, steps)[:, 0]


def clocks(rungs: Mapping[str, xr.Dataset]) -> dict[str, np.ndarray]:
    """Return `theory.decay_clock` of the first run of each result, without momentum: (step,)."""
    return {
        name: theory.decay_clock(learning_rates(one), float(one.weight_decay[0]))
        for name, one in rungs.items()
    }


def after_the_turn(results: xr.Dataset) -> np.ndarray:
    """Return how many steps after its clock stood highest each break of a schedule's runs comes."""
    turn = int(clocks({"": results})[""].argmax())
    return find_destabilizations(results)["start"].to_numpy() - turn


def against_the_clock(
    constant: xr.Dataset, rungs: Mapping[str, xr.Dataset], tables: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """Return measured beside predicted breaks of schedules, a row per rung and seed.

    The prediction, `by_clock`, are the breaks that the run at a constant learning rate, of the same
    seed, has had when its clock shows the `largest_clock` of the schedule (`theory.decay_clock`);
    `by_sum`, when it shows its `decay_time`, the sum alone. `off`: measured minus `by_clock`.
    """
    rates = {name: learning_rates(one) for name, one in rungs.items()}
    decay = {name: float(one.weight_decay[0]) for name, one in rungs.items()}
    largest = {name: float(clock.max()) for name, clock in clocks(rungs).items()}
    total = {k: float(2 * decay[k] * rates[k].sum()) for k in rungs}
    table = pd.concat([tables[name] for name in rungs])[["rung", "seed", "destabilizations"]]
    for column, limit, by in (
        ("largest_clock", largest, "by_clock"),
        ("decay_time", total, "by_sum"),
    ):
        found = breaks_by_clock(constant, limit).rename(columns={"count": by})
        table = table.assign(**{column: table["rung"].map(limit)}).merge(found, on=["rung", "seed"])
    return table.assign(off=table["destabilizations"] - table["by_clock"])


def schedule_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return `against_the_clock` as a table of text, a row per schedule: median and range."""
    groups = table.groupby("rung", sort=False)
    shown = groups[["decay_time", "largest_clock"]].first().map("{:.1f}".format)
    heads = {"by_sum": "by decay time alone", "by_clock": "by the clock"}
    for column, head in (heads | {"destabilizations": "measured"}).items():
        shown[head] = groups[column].agg(spread, form=".0f")
    return shown.reset_index(names="schedule")


def deepest_breaks(results: xr.Dataset) -> pd.Series:
    """Return where in its record each run has the break that raises its norm most, from 0 to 1.

    Runs that never break are left out.
    """
    breaks = find_destabilizations(results)
    factor = breaks["norm_after"] / breaks["norm_before"]
    deepest = breaks.loc[factor.groupby(breaks["run"]).idxmax(), "start"]
    return deepest / results.sizes["step"]


def cosine(lr: float, steps: int) -> np.ndarray:
    """Return the learning rates of a cosine schedule, step by step: lr (1 + cos(pi t / T)) / 2.

    >>> cosine(1.0, 4).round(3).tolist()
    [1.0, 0.854, 0.5, 0.146]
    """
    return lr * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2


def periods_allowed(
    setting: str, rates: ArrayLike, weight_decay: float, momentum: float, span: Iterable[float]
) -> dict[str, object]:
    """Return what the clock says of a schedule before it is trained, as a row of a table.

    `decay_time`, the sum of 2 eta lambda / (1 - mu); `largest_clock`, the largest
    `theory.decay_clock`; `fewest` and `most` periods: that over the most and the least that one
    period has taken elsewhere (`span`, in the same units).

    >>> row = periods_allowed("constant", np.full(100, 0.1), 0.1, 0.0, span=(1.0, 0.5))
    >>> round(row["fewest"], 9), round(row["most"], 9)
    (2.0, 4.0)
    """
    largest = float(theory.decay_clock(rates, weight_decay, momentum).max())
    low, high = min(span), max(span)
    time = 2 * weight_decay * np.sum(rates) / (1 - momentum)
    found = {"decay_time": time, "largest_clock": largest}
    return {"setting": setting} | found | {"fewest": largest / high, "most": largest / low}


def recipes(
    span: tuple[float, float], digits: xr.Dataset, breaks: pd.DataFrame, own_breaks: str
) -> pd.DataFrame:
    """Return `periods_allowed` of settings that people use, a row each, and the breaks `seen`.

    The published runs (ConvNet on CIFAR-10, weight decay 0.001, 1,000 epochs of 391 steps; their
    `breaks` by `learning_rate`); momentum 0.9 with a cosine over 200 epochs of CIFAR-10, and the
    same on `digits` (`own_breaks`); 90 epochs of ImageNet in batches of 256, 30 each at 0.1, 0.01,
    0.001; AdamW with PyTorch's defaults, whose angle is eta / rho, so that its clock runs half as
    fast. "?": not trained.

    >>> digits = xr.Dataset(coords={"lr": ("run", [1.0]), "step": np.arange(10)})
    >>> read = pd.DataFrame({"learning_rate": [0.01], "epoch": [100]})
    >>> table = recipes((1.0, 2.0), digits, read, "3").set_index("setting")
    >>> round(float(table.largest_clock["paper, lr 0.01"]), 9), table.seen["paper, lr 0.01"]
    (7.82, '1')
    """
    own = cosine(float(digits.lr[0]), digits.sizes["step"])
    imagenet, half = np.repeat([0.1, 0.01, 0.001], 30 * 5005), (span[0] / 2, span[1] / 2)
    rows = [
        (f"paper, lr {lr:g}", np.full(1000 * EPOCH, lr), 1e-3, 0, span) for lr in (1e-3, 1e-2, 3e-2)
    ]
    rows += [
        ("recipe, CIFAR-10", cosine(0.1, 200 * EPOCH), 5e-4, 0.9, span),
        ("recipe, digits", own, 5e-4, 0.9, span),
        ("90 epochs of ImageNet", imagenet, 1e-4, 0.9, span),
        ("AdamW, defaults", cosine(1e-3, 200 * EPOCH), 5e-3, 0, half),
    ]
    counted = breaks["learning_rate"].value_counts()
    seen = [f"{counted.get(lr, 0)}" for lr in (1e-3, 1e-2, 3e-2)] + ["?", own_breaks, "?", "?"]
    return pd.DataFrame([periods_allowed(*row) for row in rows]).assign(seen=seen)


def published_decay_times(breaks: pd.DataFrame, weight_decay: float = 1e-3) -> dict[float, float]:
    """Return the mean decay time between published breaks, by learning rate: 2 eta lambda x steps.

    `breaks`: `learning_rate`, `epoch`; 391 steps an epoch.

    >>> read = pd.DataFrame({"learning_rate": 0.01, "epoch": [100, 200, 400]})
    >>> {lr: round(time, 6) for lr, time in published_decay_times(read).items()}
    {0.01: 1.173}
    """
    return {
        float(lr): float(2 * lr * weight_decay * EPOCH * np.diff(epochs).mean())
        for lr, epochs in breaks.groupby("learning_rate")["epoch"]
    }


# ---------------------------------------------------------------- in words


def span_of(table: pd.DataFrame, column: str = "destabilizations") -> str:
    """Return the lowest to the highest whole number of a column: "2 to 5", or "2".

    >>> span_of(pd.DataFrame({"destabilizations": [5, 2, 3]}))
    '2 to 5'
    """
    return " to ".join(dict.fromkeys([str(table[column].min()), str(table[column].max())]))


def at_least(
    table: pd.DataFrame, least: float, column: str = "destabilizations"
) -> dict[str, bool]:
    """Return the outcomes of a claim: is a column at least so large, by rung and seed?

    >>> at_least(pd.DataFrame({"rung": ["Adam"], "seed": [0], "destabilizations": [3]}), 2)
    {'Adam, seed 0': True}
    """
    rows = table[["rung", "seed", column]].itertuples(index=False)
    return {f"{rung}, seed {seed}": bool(value >= least) for rung, seed, value in rows}


def tabulated(
    tables: Mapping[str, pd.DataFrame], columns: Iterable[str] = tuple(SHOWN)
) -> pd.DataFrame:
    """Return tables of `on_the_clock` as one of text: a row per rung, median and range over seeds.

    The regimes are letters (`conditions.letters`); `columns` are those of `SHOWN`.
    """
    rows = [
        {"runs": name, "regimes": letters(table)}
        | {SHOWN[k][0]: spread(table[k], SHOWN[k][1]) for k in columns}
        for name, table in tables.items()
    ]
    return pd.DataFrame(rows)


def counts(tables: Mapping[str, pd.DataFrame]) -> str:
    """Return the median number of breaks of each table, as text: "Adam 3; AdamW 4"."""
    medians = {name: table["destabilizations"].median() for name, table in tables.items()}
    return "; ".join(f"{name} {value:.0f}" for name, value in medians.items())
