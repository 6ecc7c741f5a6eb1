"""Figures that set runs side by side: a column per run, and maps of networks against networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from periodic_lib import plots
from periodic_lib.periods import find_destabilizations

MAPS = {"cosine": "cividis", "disagreement": "cividis_r"}  # quantity -> colours
WIDEST = 3e4  # ratio of a logarithmic axis: a schedule may end at 0


def plot_columns(
    results: Mapping[str, xr.Dataset],
    quantities: Sequence[str] = ("train_loss", "weight_norm"),
    runs: int | None = 1,
    points: int = 1500,
    **style: object,
) -> tuple[Figure, np.ndarray]:
    """Plot recorded quantities of several results; return the figure and its axes (rows, columns).

    Parameters
    ----------
    results : title of a column -> result.
    quantities : variables of every result, one row each; a row's panels share their axis.
    runs : how many runs of each result are shown (None: all). The destabilizations of a single one
        are marked.
    points, style : as `plots.plot_trajectory`.
    """
    shape = len(quantities), len(results)
    shared = {"sharex": "col", "sharey": "row", "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(*shape, figsize=(9, 1 + 1.7 * shape[0]), **shared)
    for column, (title, result) in zip(axes.T, results.items(), strict=True):
        one = result.isel(run=slice(runs))
        breaks = find_destabilizations(one) if one.sizes["run"] == 1 else None
        plots.plot_stacked(one, quantities, breaks, column, points=points, **{"lw": 0.7} | style)
        column[0].set_title(title, fontsize=10)
        column[0].locator_params(axis="x", nbins=3)
    for ax in axes[:, 0]:
        low, high = ax.get_ylim()
        ax.set_ylim(bottom=max(low, high / WIDEST) if ax.get_yscale() == "log" else low)
        plots.plain_numbers(ax.yaxis)  # of all that share it
    return figure, axes


def plot_maps(results: xr.Dataset, cosine: np.ndarray, disagreement: np.ndarray) -> Figure:
    """Plot both comparisons of all kept networks (`minima.similarity`), runs one after the other.

    White lines: destabilizations, and (thick) where a run ends. The colours of the disagreement end
    at what nine in ten unlike networks have.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.4), sharey=True, layout="constrained")
    length = results.snapshot_step.values[[1, -1]].sum()
    end = results.sizes["run"] * length
    unlike = disagreement[cosine < 0.5]
    tops = {"cosine": 1, "disagreement": np.quantile(unlike, 0.9) if unlike.size else 1}
    drawn = {"cosine": cosine, "disagreement": disagreement}
    for ax, (name, colors) in zip(axes, MAPS.items(), strict=True):
        look = {"vmin": 0, "vmax": tops[name], "cmap": colors, "extent": (0, end, end, 0)}
        image = ax.imshow(drawn[name], **look)
        open_end = "neither" if name == "cosine" else "max"
        where = {"location": "bottom", "shrink": 0.9, "extend": open_end}
        figure.colorbar(image, ax=ax, label=name, **where)
        _mark_runs(ax, results, length)
    return figure


def _mark_runs(ax: Axes, results: xr.Dataset, length: float) -> None:
    """Draw white lines at destabilizations and between runs; name the runs."""
    places = np.arange(results.sizes["run"])
    for row in places:
        breaks = find_destabilizations(results.isel(run=[row]))["start"]
        inside, style = (row * length, (row + 1) * length), {"color": "white", "lw": 0.5}
        ax.vlines(row * length + breaks, *inside, **style)
        ax.hlines(row * length + breaks, *inside, **style)
    for border in places[1:] * length:
        ax.axhline(border, color="white", lw=2)
        ax.axvline(border, color="white", lw=2)
    words = [f"run {row + 1}" for row in places]
    ax.set_xticks((places + 0.5) * length, words)
    ax.set_yticks((places + 0.5) * length, words)
