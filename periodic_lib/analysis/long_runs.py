"""Long runs, judged by epochs: steadiness, loss against intrinsic time, where in an epoch they
break.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from periodic_lib.analysis.levels import passages
from periodic_lib.analysis.spreads import variation

READ = {"train_loss": "train_loss", "si_weight_norm": "weight_norm"}  # published -> recorded


def departure(values: ArrayLike) -> float:
    """Return the largest distance of values from their median, relative to it: max |x / m - 1|.

    >>> round(departure([9.0, 10.0, 10.0, 12.0]), 12)
    0.2
    """
    values = np.asarray(values, float)
    return float(np.abs(values / np.median(values) - 1).max())


def steps_after(starts: ArrayLike, batch: int, steps_per_epoch: int) -> np.ndarray:
    """Return how many steps after the last `batch` (its place in an epoch, from 0) starts come.

    >>> steps_after([390, 391, 780, 781], batch=390, steps_per_epoch=391).tolist()
    [0, 1, 390, 0]
    """
    return (np.asarray(starts, int) - batch) % steps_per_epoch


@dataclass(frozen=True)
class Excess:
    """How many of `total` events lie where chance puts a share of `expected`: `found` of them, and
    the probability `p` of as many or more (one-sided binomial test).
    """

    found: int
    total: int
    expected: float
    p: float


def excess(hits: Iterable[bool], expected: float) -> Excess:
    """Return how many events are hits, against a share of `expected` by chance.

    The p of no events at all is 1.

    >>> excess([True, True, True, False], expected=0.5).p
    0.3125
    """
    hits = list(map(bool, hits))
    if not hits:
        return Excess(0, 0, expected, 1.0)
    p = binomtest(sum(hits), len(hits), expected, alternative="greater").pvalue
    return Excess(sum(hits), len(hits), expected, float(p))


def inside(limits: object, name: str, value: float) -> bool:
    """Whether a value lies in a rule's range, from `limits.<name>_low` to `limits.<name>_high`.

    >>> from types import SimpleNamespace
    >>> inside(SimpleNamespace(norm_low=31, norm_high=35), "norm", 33.0)
    True
    """
    return bool(getattr(limits, f"{name}_low") <= value <= getattr(limits, f"{name}_high"))


def excesses(places: Mapping[int, ArrayLike], after: int, steps_per_epoch: int) -> pd.DataFrame:
    """Return, for each kind of last batch, how many breaks start at it or within `after` steps.

    `places`: size of the last batch -> how many steps after it breaks start (`steps_after`). Rows
    in the same order: `size`, `breaks`, `found`, `expected` (by chance, as many as steps), `p`.

    >>> excesses({8: [0, 0, 5, 0]}, after=1, steps_per_epoch=10).to_numpy().round(4).tolist()
    [[8.0, 4.0, 3.0, 0.8, 0.0272]]
    """
    share, rows = (after + 1) / steps_per_epoch, []
    for size, place in places.items():
        test = excess(np.asarray(place) <= after, share)
        rows.append((size, test.total, test.found, test.total * share, test.p))
    return pd.DataFrame(rows, columns=["size", "breaks", "found", "expected", "p"])


def run_row(plan: object, data: xr.Dataset | None, epoch: int) -> dict[str, object]:
    """Return the row of a table of long runs: what was asked, and what is there of it.

    Parameters
    ----------
    plan : of the experiment (`experiments.plan`).
    data : its result so far; None if there is none.
    epoch : steps of an epoch.

    >>> from types import SimpleNamespace as Of
    >>> plan = Of(name="long", runs=[Of(lr=0.1)], setup=Of(steps=20))
    >>> row = run_row(plan, None, epoch=10)
    >>> row["epochs"], row["of"]
    ('not run', 2.0)
    """
    facts = {} if data is None else data.attrs
    done = facts.get("steps_done", 0)
    return {
        "command": f"periodic run {plan.name} --profile paper",
        "learning rate": ", ".join(f"{run.lr:g}" for run in plan.runs),
        "epochs": f"{done / epoch:.0f}" if done else "not run",
        "of": plan.setup.steps / epoch,
        "ms a step": 1000 * facts["seconds"] / done if done else np.nan,
        "processor": facts.get("instructions"),
    }


def break_table(result: xr.Dataset, epoch: int) -> pd.DataFrame:
    """Return a row for each break of a long run.

    Parameters
    ----------
    result : one run, every step around its breaks (`recording.thin`).
    epoch : steps of an epoch.

    Returns
    -------
    table with `epoch` at which it begins and `batch`, the place there, from 1; `break` and
    `restart`, the effective learning rates where it begins and where it ends; and, nan after the
    last one, `wait`, the epochs from there to the next, and `decay`, the share of them that weight
    decay alone needs (`levels.passages`).

    >>> saw = 3 * np.exp(-0.01 * (np.arange(250) % 100))
    >>> names = {"lr": 0.5, "weight_decay": 0.02, "init_seed": 0}
    >>> runs = {name: ("run", [value]) for name, value in names.items()} | {"step": np.arange(250)}
    >>> data = {"weight_norm": (("run", "step"), [saw]), "train_loss": (("run", "step"), [saw])}
    >>> table = break_table(xr.Dataset(data, runs), epoch=10)
    >>> table[["epoch", "batch", "wait", "decay"]].round(2).values.tolist()
    [[9.9, 10.0, 9.9, 0.99], [19.9, 10.0, nan, nan]]
    """
    found = passages(result)
    return pd.DataFrame(
        {
            "epoch": found.start / epoch,
            "batch": (found.start % epoch + 1).astype(int),
            "break": found["break"],
            "restart": found.restart,
            "wait": found.steps / epoch,
            "decay": found.law / found.steps,
        }
    )


def laboratory_table(results: Iterable[xr.Dataset]) -> pd.DataFrame:
    """Return a row for each run of results, with how it breaks.

    Parameters
    ----------
    results : any, every step around their breaks (`recording.thin`).

    Returns
    -------
    table with `lr`, `seed`; `breaks`, their number; `wait`, the median of the steps from the start
    of one to the next, and `variation`, the coefficient of variation of these; medians of `span`,
    ln ELR from the end of a break to the next, and of the effective learning rates at which breaks
    begin, `break`, and end, `restart`. nan where there are too few.

    >>> saw = 3 * np.exp(-0.01 * (np.arange(350) % 100))
    >>> names = {"lr": 0.5, "weight_decay": 0.02, "init_seed": 0}
    >>> runs = {name: ("run", [value]) for name, value in names.items()} | {"step": np.arange(350)}
    >>> data = {"weight_norm": (("run", "step"), [saw]), "train_loss": (("run", "step"), [saw])}
    >>> table = laboratory_table([xr.Dataset(data, runs | {"run": [0]})])
    >>> table[["breaks", "wait", "variation", "span"]].round(2).values.tolist()
    [[3.0, 100.0, 0.0, 1.98]]
    """
    rows = []
    for data in results:
        found = passages(data)
        for run in data.run.values:
            one, of = found[found.run == run], data.sel(run=run)
            waits = one.start.diff().dropna()
            row = {"lr": float(of.lr), "seed": int(of.init_seed), "breaks": len(one)}
            row |= {
                "wait": waits.median(),
                "variation": variation(waits) if len(waits) > 1 else np.nan,
            }
            rows.append(row | one[["span", "break", "restart"]].median().to_dict())
    return pd.DataFrame(rows)


def loss_times(epochs: xr.Dataset, breaks: Iterable[float]) -> list[float]:
    """Return the median of loss times intrinsic time, L tau, of each complete stretch of one run.

    A stretch is from the start, or from a break, to the next break; tau is the sum of the effective
    learning rates since it began. The median is over the epochs from a third of it to its end:
    L tau is constant there where the loss falls as 1 / tau (`theory.intrinsic_time`).

    Parameters
    ----------
    epochs : one run as `recording.thin` returns it, a row an epoch (`covers` steps).
    breaks : steps at which it breaks.

    >>> tau = np.arange(1.0, 9.0)
    >>> rows = {"train_loss_median": ("step", 3 / tau), "elr": ("step", np.full(8, 0.1))}
    >>> rows["covers"] = "step", np.full(8, 10)
    >>> [round(value, 6) for value in loss_times(xr.Dataset(rows, {"step": 10 * tau - 10}), [80])]
    [3.0]
    """
    step, found, first = epochs.step.values, [], 0.0
    for last in sorted(breaks):
        inside = (step >= first) & (step + epochs.covers.values <= last)
        tau = np.cumsum(np.where(inside, epochs.elr.values * epochs.covers.values, 0.0))
        late = inside & (step >= first + (last - first) / 3)
        if late.any():
            found.append(float(np.median((epochs.train_loss_median.values * tau)[late])))
        first = last
    return found


def beside(
    curves: pd.DataFrame, epochs: Mapping[float, xr.Dataset], names: Mapping[str, str]
) -> pd.DataFrame:
    """Return the published values of curves with ours at the same epochs, in a column `ours`.

    Parameters
    ----------
    curves : `learning_rate`, `quantity`, `epoch`, and columns that are kept as they are.
    epochs : learning rate -> one run as `recording.thin` returns it, a row an epoch; the mean over
        an epoch stands at its middle.
    names : quantity of `curves` -> variable of a result.

    Rows without a value of ours are left out.

    >>> rows = {"train_loss": ("step", [4.0, 2.0])}
    >>> ours = xr.Dataset(rows, {"step": [0, 10]}, {"steps_per_epoch": 10})
    >>> read = {"learning_rate": 0.1, "quantity": "loss", "epoch": [1.0, 9.0]}
    >>> beside(pd.DataFrame(read), {0.1: ours}, {"loss": "train_loss"}).ours.tolist()
    [3.0]
    """
    parts = []
    for (rate, quantity), part in curves.groupby(["learning_rate", "quantity"]):
        if rate in epochs and quantity in names:
            run = epochs[rate]
            middle = run.step.values / run.attrs["steps_per_epoch"] + 0.5
            values = run[names[quantity]].values
            ours = np.interp(part.epoch, middle, values, left=np.nan, right=np.nan)
            parts.append(part.assign(ours=ours))
    return pd.concat(parts, ignore_index=True).dropna(subset="ours")
