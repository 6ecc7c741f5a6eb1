"""The plane of eta lambda and noise at several widths, from the committed rows of a sweep."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib.analysis.plane import judged
from periodic_lib.analysis.regimes import UNDECIDED, classify_regime
from periodic_lib.project import root

PATH = "data/sweeps/plane.csv"
KEPT = ("width", "noise", "lr_wd", "seed", "regime", "budget", "breaks", "swing", "loss")


def row_table(data: xr.Dataset, width: int, noise: float) -> pd.DataFrame:
    """Return the columns `KEPT` of every run of a result (`plane.judged`, `classify_regime`)."""
    table = judged(data, width=width, noise=noise)
    return table.assign(regime=classify_regime(data).values)[list(KEPT)]


def swept() -> pd.DataFrame:
    """Return the committed rows, data/sweeps/plane.csv: one of every run, columns `KEPT`.

    >>> swept().groupby("width").size().to_dict()
    {12: 180, 16: 180, 32: 180, 64: 180}
    """
    return pd.read_csv(root() / PATH, comment="#")


def made_by() -> str:
    """Return where the rows come from, the first line of their file."""
    with (root() / PATH).open(encoding="utf-8") as stream:
        return stream.readline().lstrip("# ").strip()


def fields(table: pd.DataFrame) -> pd.DataFrame:
    """Return the median window budget of each field: rows width and noise, columns eta lambda."""
    return table.pivot_table(values="budget", index=["width", "noise"], columns="lr_wd")


def region(table: pd.DataFrame, border: float) -> pd.Series:
    """Return by width how many fields the periods have: window budget below `border`.

    >>> columns = {"width": [8, 8, 9], "noise": 0, "lr_wd": [1, 2, 1], "budget": [0.2, 0.9, 0.9]}
    >>> region(pd.DataFrame(columns), 0.5).to_dict()
    {8: 1, 9: 0}
    """
    return (fields(table) < border).sum(axis=1).groupby("width").sum()


def upper_border(table: pd.DataFrame, border: float, noise: float = 0.0) -> pd.Series:
    """Return by width the largest eta lambda whose window budget is below `border`, or 0.

    >>> columns = {"width": [8, 8, 9], "noise": 0, "lr_wd": [1, 2, 1], "budget": [0.2, 0.9, 0.9]}
    >>> upper_border(pd.DataFrame(columns), 0.5).to_dict()
    {8: 1.0, 9: 0.0}
    """
    below = fields(table).xs(noise, level="noise") < border
    return below.mul(below.columns.to_numpy(float)).max(axis=1)


def outcomes_of_region(table: pd.DataFrame, border: float, share: float) -> dict[str, bool]:
    """Return the outcomes of claim plane-width."""
    count, number = region(table, border), fields(table).groupby("width").count().sum(axis=1)
    pairs = list(zip(count.index, count.index[1:], strict=False))
    met = {f"{wide} not fewer than {slim}": count[wide] >= count[slim] for slim, wide in pairs}
    met["64 more than 16"] = count[64] > count[16]
    met["none at 12"] = 1 - count[12] / number[12] >= share
    return {name: bool(value) for name, value in met.items()}


def outcomes_of_border(table: pd.DataFrame, border: float, times: float) -> dict[str, bool]:
    """Return the outcomes of claim plane-width-hot."""
    top = upper_border(table, border)
    pairs = list(zip(top.index, top.index[1:], strict=False))
    met = {f"{slim} not above {wide}": top[slim] <= top[wide] for slim, wide in pairs}
    met[f"16 lower {times:g} times"] = top[16] * times <= top[64]
    return {name: bool(value) for name, value in met.items()}


def again(table: pd.DataFrame, one: pd.DataFrame, border: float) -> dict[str, int]:
    """Return how the sweep's plane at width 64 and that of one process agree where they meet.

    `fields`, shared fields of seed 0, and `same`, of one regime; `decided` fields of the sweep's
    other seed, `right`, on the side of `border` of most seeds of one process, and `often`, if the
    more frequent side is said of all.
    """
    at = ["noise", "lr_wd"]
    wide = table[table.width == 64]
    first = wide[wide.seed == 0].merge(one[one.seed == 0], on=at, suffixes=("", "_one"))
    most = one.assign(held=one.budget >= border).groupby(at).held.mean() > 0.5
    other = wide[wide.seed != 0].merge(most.reset_index(), on=at)
    other = other[np.abs(other.budget / border - 1) >= UNDECIDED]
    side = other.budget >= border
    return {
        "fields": len(first),
        "same": int((first.regime == first.regime_one).sum()),
        "identical": int((first.budget.round(6) == first.budget_one.round(6)).sum()),
        "decided": len(other),
        "right": int((side == other.held).sum()),
        "often": int(max(side.sum(), (~side).sum())),
    }


def outcomes_of_agreement(found: Mapping[str, int], share: float) -> dict[str, bool]:
    """Return the outcomes of claim plane-again, of what `again` found; without a shared field
    (other seeds here), none of seed 0.

    >>> found = {"fields": 0, "same": 0, "decided": 4, "right": 3, "often": 2}
    >>> outcomes_of_agreement(found, 0.7)
    {'seed 3: 70%': True, 'seed 3: more than by the more frequent side': True}
    """
    shared = {f"seed 0: {share:.0%}": found["same"] >= share * found["fields"]}
    return (shared if found["fields"] else {}) | {
        f"seed 3: {share:.0%}": found["right"] >= share * found["decided"],
        "seed 3: more than by the more frequent side": found["right"] > found["often"],
    }
