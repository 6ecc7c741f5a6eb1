"""Transfer of a learning rate: where is the loss lowest at each width, and in which unit is that
one place?

The learning rate, the effective learning rate and the turn per step order the runs of one width
alike; across widths at most one of them can stay where the loss is lowest (Kosson et al. 2025,
arXiv 2510.19093).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib.analysis.equilibria import rms

LAST = 50  # steps, over whose mini-batches the final training loss is a mean
UNITS = ("lr", "elr", "turn")


def final_losses(results: Iterable[xr.Dataset], last: int = LAST) -> pd.DataFrame:
    """Return one row for each run of results at several widths.

    Returns
    -------
    table with `width`, `seed`, `lr`, `loss`, the mean training loss of the `last` steps, `elr`,
    the mean effective learning rate over all steps, and `turn`, the root mean square of the angular
    update over all steps, in radians.
    """
    return pd.concat([_rows(each, last) for each in results], ignore_index=True)


def _rows(each: xr.Dataset, last: int) -> pd.DataFrame:
    columns = {
        "seed": each.init_seed,
        "lr": each.lr,
        "loss": each.train_loss.astype(float).isel(step=slice(-last, None)).mean("step"),
        "elr": each.elr.astype(float).mean("step"),
        "turn": rms(each.angular_update.astype(float)),
    }
    table = pd.DataFrame({name: column.values for name, column in columns.items()})
    table.insert(0, "width", json.loads(each.attrs["setup"])["width"])
    return table


def lowest(lr: Iterable[float], loss: Iterable[float]) -> float:
    """Return the learning rate of the lowest loss, between the points of a grid.

    Vertex of the parabola in ln lr through the lowest point and its two neighbours (at an end of
    the grid, the three points there); nan where that is no minimum within the grid.

    >>> lr = np.array([0.1, 0.2, 0.4, 0.8])
    >>> round(lowest(lr, np.log(lr / 0.3) ** 2), 6)
    0.3
    >>> lowest(lr, lr)
    nan
    """
    found = pd.Series(np.asarray(loss, float), np.log(np.asarray(lr, float))).sort_index()
    middle = int(np.clip(found.to_numpy().argmin(), 1, len(found) - 2))
    three = found.iloc[middle - 1 : middle + 2]
    square, slope, _ = np.polyfit(three.index, three, 2)
    vertex = -slope / (2 * square) if square > 0 else np.nan
    inside = found.index[0] <= vertex <= found.index[-1]
    return float(np.exp(vertex)) if inside else float("nan")


def optima(table: pd.DataFrame) -> pd.DataFrame:
    """Return the place of the `lowest` loss of every width and seed, in three units.

    Parameters
    ----------
    table : as `final_losses` returns it.

    Returns
    -------
    table indexed by (width, seed) with `lr`, and `elr` and `turn` there, straight lines between the
    runs in logarithms.
    """
    groups = table.sort_values("lr").groupby(["width", "seed"])
    return pd.DataFrame({key: _optimum(part) for key, part in groups}).T.rename_axis(
        ["width", "seed"]
    )


def _optimum(part: pd.DataFrame) -> Mapping[str, float]:
    best = lowest(part.lr, part.loss)
    logs = np.log(part[list(UNITS)])
    return {unit: float(np.exp(np.interp(np.log(best), logs.lr, logs[unit]))) for unit in UNITS}


def shift_per_doubling(best: pd.DataFrame) -> pd.DataFrame:
    r"""Return by how much ln of the optimum changes per doubling of the width, a row for each seed.

    Slope of the line of least squares of $\ln$ over $\log_2$ width: 0 where the optimum transfers,
    $\pm\ln 2$ where it is proportional to the width or its inverse; nan if an optimum is missing.

    >>> places = pd.MultiIndex.from_product([[32, 64], [0]], names=["width", "seed"])
    >>> shift_per_doubling(pd.DataFrame({"lr": [0.1, 0.2]}, places)).round(4).lr.tolist()
    [0.6931]
    """
    logs = np.log(best)

    def slope(values: pd.Series) -> float:
        if values.isna().any():
            return float("nan")
        doublings = np.log2(values.index.get_level_values("width").to_numpy(float))
        return float(np.polyfit(doublings, values, 1)[0])

    return logs.groupby("seed").agg(slope)


def highest_over_lowest(table: pd.DataFrame) -> pd.Series:
    """Return the highest over the lowest loss among the learning rates, by (width, seed).

    >>> table = pd.DataFrame({"width": 32, "seed": 0, "loss": [1.0, 1.5, 1.2]})
    >>> highest_over_lowest(table).tolist()
    [1.5]
    """
    loss = table.groupby(["width", "seed"]).loss
    return loss.max() / loss.min()
