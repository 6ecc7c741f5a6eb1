"""Figures of chapters 02 and 08 to 10: runs side by side, tables by factors, maps of networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from periodic_lib.analysis.periods import find_destabilizations
from periodic_lib.analysis.spreads import interval
from periodic_lib.figures import plots
from periodic_lib.glossary import label

WORDS = {"independent": "other\nrun"}  # where a name is too long for an axis
MAPS = {"cosine": "cividis", "disagreement": "cividis_r"}  # quantity -> colours
WIDEST = 3e4  # ratio of a logarithmic axis: a schedule may end at 0


def plot_columns(
    results: Mapping[str, xr.Dataset],
    quantities: Sequence[str] = ("train_loss", "weight_norm"),
    runs: int | None = 1,
    points: int = 1500,
    widest: float = WIDEST,
    mark: bool = True,
    **style: object,
) -> tuple[Figure, np.ndarray]:
    """Plot recorded quantities of several results; return the figure and its axes (rows, columns).

    Parameters
    ----------
    results : title of a column -> result.
    quantities : variables of every result, one row each; a row's panels share their axis.
    runs : how many runs of each result are shown (None: all).
    widest : ratio of the ends of a logarithmic axis; what is lower is cut off.
    mark : whether the destabilizations of a single run are marked.
    points, style : as `plots.plot_trajectory`.
    """
    shape = len(quantities), len(results)
    shared = {"sharex": "col", "sharey": "row", "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(*shape, figsize=(9, 1 + 1.7 * shape[0]), **shared)
    for column, (title, result) in zip(axes.T, results.items(), strict=True):
        one = result.isel(run=slice(runs))
        breaks = find_destabilizations(one) if mark and one.sizes["run"] == 1 else None
        plots.plot_stacked(one, quantities, breaks, column, points=points, **{"lw": 0.7} | style)
        column[0].set_title(title, fontsize=10)
        column[0].locator_params(axis="x", nbins=3)
    for ax in axes[:, 0]:
        low, high = ax.get_ylim()
        ax.set_ylim(bottom=max(low, high / widest) if ax.get_yscale() == "log" else low)
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


def mark_fall(ax: Axes, place: int, top: float, bottom: float) -> None:
    """Draw an arrow from `top` to `bottom` at a step, and their ratio in the corner."""
    style = {"arrowstyle": "<->", "color": "black", "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (place, bottom), (place, top), arrowprops=style, zorder=4)
    corner = {"transform": ax.transAxes, "ha": "right", "fontsize": 11}
    ax.text(0.97, 0.04, f"÷ {float(f'{top / bottom:.2g}'):g}", **corner)


def plot_factors(
    table: pd.DataFrame, factors: Mapping[str, Mapping[str, str]], y: str, border: float
) -> Figure:
    """Plot column `y` of a run table by what was changed, a panel per factor, a line per rate.

    `factors`: name -> {setup of the table: its value, as text}. A grey stripe marks the setup
    "unchanged", a dashed line the `border`.
    """
    shape = {"figsize": (9, 5.6), "sharey": True, "layout": "constrained"}
    figure, axes = plt.subplots(2, -(-len(factors) // 2), **shape)
    for ax, (name, setups) in zip(axes.flat, factors.items(), strict=False):
        parts = [table[table["setup"] == setup].assign(x=word) for setup, word in setups.items()]
        plots.plot_groups(pd.concat(parts), "x", y, "lr", ax)
        same = list(setups).index("unchanged")
        ax.axvspan(same - 0.3, same + 0.3, color="0.92", zorder=0)
        ax.axhline(border, color="0.4", ls="--", lw=1)
        ax.set(xlabel=name, ylabel=None, yscale="linear")
    for ax in axes[:, 0]:
        ax.set_ylabel(label(y))
    handles = axes.flat[0].get_legend_handles_labels()
    place = {"loc": "outside upper center", "ncols": len(handles[0])}
    figure.legend(*handles, title="learning rate", **place)
    return figure


def plot_by_regime(
    parts: Mapping[str, tuple[pd.DataFrame, str]],
    x: str,
    y: str,
    line: float,
    labels: tuple[str, str],
) -> Figure:
    """Plot columns of run tables against each other: a marker per part, a colour per regime.

    `parts`: word -> (run table, marker); `line`: where a vertical line stands. Both axes are
    logarithmic; `labels`: what stands on them.
    """
    figure, ax = plt.subplots(figsize=(9, 5), layout="constrained")
    for word, (table, marker) in parts.items():
        style = {"ms": 9 if marker == "*" else 5, "mec": "white", "mew": 0.4, "ls": ""}
        for regime, rows in table.groupby("regime"):
            color = plots.REGIME_COLORS.get(regime, "black")
            ax.plot(rows[x], rows[y], marker, c=color, alpha=0.85, **style)
        ax.plot([], [], marker, c="0.4", ls="", label=word)
    for regime in sorted({name for table, _ in parts.values() for name in table["regime"]}):
        color = plots.REGIME_COLORS.get(regime, "black")
        ax.plot([], [], "o", c=color, ls="", label=regime)
    ax.axvline(line, color="0.4", lw=1)
    ax.set(xscale="log", yscale="log", xlabel=labels[0], ylabel=labels[1])
    plots.plain_numbers(ax)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def plot_ladder(table: pd.DataFrame) -> Figure:
    """Plot the breaks of every run, a row per `rung` of the table, in its order."""
    order = list(dict.fromkeys(table["rung"]))
    figure, ax = plt.subplots(figsize=(9, 5), layout="constrained")
    for row, (_, part) in enumerate(table.groupby("rung", sort=False)):
        ax.plot(part["destabilizations"], row + (part["seed"] - 2) * 0.1, "o", ms=6, color="C0")
        ax.plot(part["destabilizations"].median(), row, "|", ms=16, color="0.15")
    ax.set(xlabel="breaks per run (one dot per seed, a bar at the median)")
    ax.set_yticks(range(len(order)), order)
    ax.invert_yaxis()
    ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


def plot_pairs(results: xr.Dataset, words: Sequence[str]) -> Figure:
    """Plot norm and effective learning rate of the weights and of each pair, of one run.

    `results`: as `pairs.follow_pairs`, one run; `words`: what the pairs are called.
    """
    shape = {"figsize": (9, 4.6), "sharex": True, "layout": "constrained"}
    figure, axes = plt.subplots(2, 1, **shape)
    lr, step = float(results.lr[0]), results.step
    for ax, name in zip(axes, ["weight_norm", "elr"], strict=True):
        ax.plot(step, results[name][0], color="0.15", label="weights", lw=1)
        for start in find_destabilizations(results)["start"]:
            ax.axvline(start, color="0.8", lw=1, zorder=1)
        for number, word in enumerate(words):
            norm = results.pair_norm[0, :, number]
            ax.plot(step, norm if name == "weight_norm" else lr / norm**2, label=word, lw=1)
        ax.set(yscale="log", ylabel="norm" if name == "weight_norm" else label(name))
        plots.plain_numbers(ax.yaxis)
    axes[1].set_xlabel("step")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(words) + 1)
    return figure


def plot_numbered(table: pd.DataFrame, name: str, ax: Axes) -> None:
    """Plot a column of minima against their `number`: a line per run, mean and 95 % interval.

    Errors on a linear axis; other columns on a logarithmic one, with the interval of the
    logarithm.
    """
    linear = name.endswith("error")
    for _, group in table.groupby("run"):
        ax.plot(group["number"], group[name], color="C0", lw=0.6, alpha=0.3)
    for number, values in table.groupby("number")[name]:
        found = np.array(interval(values if linear else np.log(values)))
        middle, low, high = found if linear else np.exp(found)
        ax.errorbar(number, middle, [[middle - low], [high - middle]], fmt="o", color="C0", ms=5)
    ax.set(xlabel="number of the minimum", ylabel=label(name))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_yscale("linear" if linear else "log")
    plots.plain_numbers(ax.yaxis)


def plot_means(table: pd.DataFrame, ax: Axes) -> None:
    """Plot values of runs (columns) side by side, a dot each, a bar at their mean, by row."""
    for place, (_, row) in enumerate(table.iterrows()):
        values = row.dropna()
        jitter = np.linspace(-0.2, 0.2, len(values))
        ax.plot(place + jitter, values, "o", color="C0", ms=4, alpha=0.5)
        ax.hlines(values.mean(), place - 0.3, place + 0.3, color="0.15", lw=2)
    ax.set_xticks(range(len(table)), [WORDS.get(name, str(name)) for name in table.index])
    ax.axhline(0, color="0.7", lw=1, zorder=0)


def plot_clocks(clocks: Mapping[str, np.ndarray], results: Mapping[str, xr.Dataset]) -> Figure:
    """Plot `theory.decay_clock` of schedules against the step; dots: breaks of the first run."""
    figure, ax = plt.subplots(figsize=(9, 3.6), layout="constrained")
    for number, (name, clock) in enumerate(clocks.items()):
        at = find_destabilizations(results[name].isel(run=[0]))["start"].to_numpy(int)
        ax.plot(clock, color=f"C{number}", label=name)
        ax.plot(at, clock[at], "o", color=f"C{number}", ms=5)
    ax.set(xlabel="step", ylabel="clock $C_t$", ylim=(-3, None))
    figure.legend(loc="outside upper center", ncols=len(clocks))
    return figure
