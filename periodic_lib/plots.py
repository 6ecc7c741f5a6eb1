"""One function per kind of figure: `plot_x(results, ax=None) -> ax`. Same learning rate, same colour, everywhere."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from periodic_lib import theory
from periodic_lib.results import LABELS

POINTS = 400  # per line: each is the geometric mean of a window of steps


def use_style() -> None:
    """Set the book's figure style: white, readable at the width of a page, safe for colour-blind readers."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.85)
    plt.rcParams.update({"figure.facecolor": "white", "savefig.facecolor": "white", "figure.dpi": 100})


def windowed(results: xr.Dataset, name: str, points: int = POINTS, along: str = "step") -> xr.DataArray:
    """Return geometric means of `name` over at most `points` windows of equal length.

    A geometric mean keeps the order of magnitude of both the quiet stretches and the spikes.

    >>> data = xr.Dataset({"train_loss": (("run", "step"), [[1.0, 100.0, 4.0, 4.0]])}, {"step": [0, 1, 2, 3]})
    >>> windowed(data, "train_loss", points=2).values.round(9).tolist()
    [[10.0, 4.0]]
    """
    length = max(1, results.sizes[along] // points)
    windows = np.log(results[name].clip(1e-30)).coarsen({along: length}, boundary="trim")
    return np.exp(windows.mean())


def plot_trajectory(
    results: xr.Dataset, name: str, ax: Axes | None = None, legend: bool = True, points: int = POINTS
) -> Axes:
    """Plot one recorded quantity against the step, one line per run, on a logarithmic axis.

    The lowest seed is drawn strongly, other seeds faintly. Each line has at most `points` points.
    """
    ax = plt.gca() if ax is None else ax
    along = results[name].dims[1]
    lines = windowed(results, name, points, along)
    for (lr, seed), line in _by_run(lines):
        style = {"lw": 1.4, "zorder": 3} if seed == lines.init_seed.min() else {"lw": 0.6, "alpha": 0.3, "zorder": 2}
        label = f"{lr:g}" if seed == lines.init_seed.min() else None
        ax.plot(line[along], line, color=_color(results, lr), label=label, **style)
    ax.set(xlabel="step", ylabel=_label(name), yscale="log")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    _plain_numbers(ax.yaxis)
    if legend:
        ax.legend(title="learning rate")
    return ax


def plot_phase_diagram(results: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Plot effective gradient norm against effective learning rate, one path per learning rate (seed 0).

    The dashed line of the same colour is the balance, elr * eff_grad_norm = a tan(equilibrium angle): above it the
    norm grows and the run moves left, below it the norm shrinks and the run moves right.
    """
    ax = plt.gca() if ax is None else ax
    elr, gradient = windowed(results, "elr"), windowed(results, "eff_grad_norm")
    first = results.init_seed == results.init_seed.min()
    span = np.array([elr[first].min(), elr[first].max()])
    for run in np.flatnonzero(first):
        lr, wd = float(results.lr[run]), float(results.weight_decay[run])
        color = _color(results, lr)
        ax.plot(elr[run], gradient[run], color=color, lw=0.8, alpha=0.8)
        ax.plot(elr[run, -1], gradient[run, -1], "o", color=color, ms=6, mec="white", zorder=4)
        ax.plot(span, (1 - lr * wd) * np.tan(theory.equilibrium_angle(lr, wd)) / span, "--", color=color, lw=1)
    ax.set(xlabel=_label("elr"), ylabel=_label("eff_grad_norm"), xscale="log", yscale="log")
    ax.set_ylim(float(gradient[first].min()) / 2, float(gradient[first].max()) * 2)
    return ax


def plot_dynamics(results: xr.Dataset, names: Sequence[str] = ("train_loss", "test_error", "weight_norm")) -> Figure:
    """Return the main figure: one panel per quantity against the step, and the phase diagram."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), layout="constrained")
    for ax, name in zip(axes.flat, names, strict=False):
        plot_trajectory(results, name, ax, legend=False)
    plot_phase_diagram(results, axes.flat[-1])
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, title="learning rate", loc="outside upper center", ncols=len(labels))
    return figure


def plot_one_run(results: xr.Dataset, kicks: Sequence[int] = ()) -> Figure:
    """Return training loss above weight norm of a single run, with its destabilizations marked."""
    figure, axes = plt.subplots(2, 1, figsize=(9, 4.6), sharex=True, layout="constrained")
    for ax, name in zip(axes, ("train_loss", "weight_norm"), strict=True):
        for kick in kicks:
            ax.axvline(kick, color="0.8", lw=1, zorder=1)
        plot_trajectory(results, name, ax, legend=False, points=results.sizes["step"])
        ax.label_outer()
    return figure


PHASE_COLORS = {"A": "#0173b2", "B": "#de8f05", "C": "#cc3311"}  # of the colour-blind safe palette


def shade_phases(ax: Axes, steps: Sequence[float], phases: Sequence[str], legend: bool = False) -> Axes:
    """Shade the background of `ax` by the phase of each step (`periods.label_phases`): A blue, B orange, C red."""
    steps, phases = np.asarray(steps, float), np.asarray(phases)
    edges = np.flatnonzero(phases[1:] != phases[:-1]) + 1
    for first, last in zip([0, *edges], [*edges, len(phases)], strict=True):
        if phases[first] in PHASE_COLORS:
            end = steps[min(last, len(steps) - 1)]
            ax.axvspan(steps[first], end, color=PHASE_COLORS[phases[first]], alpha=0.18, lw=0, zorder=0)
    if legend:
        patches = [Patch(color=color, alpha=0.3, label=f"phase {name}") for name, color in PHASE_COLORS.items()]
        ax.figure.legend(handles=patches, loc="outside upper center", ncols=len(patches))
    return ax


def _plain_numbers(axis: Axis) -> None:
    """Label a logarithmic axis with 0.001, 0.01, ..., and with 2, 5 too where it spans less than two decades."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = axis.get_data_interval()
    if high < 100 * low:
        axis.set_minor_locator(LogLocator(subs=(2, 5)))
        axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axis.set_minor_formatter(NullFormatter())


def _by_run(lines: xr.DataArray):
    for run in range(lines.sizes["run"]):
        yield (float(lines.lr[run]), int(lines.init_seed[run])), lines.isel(run=run)


def colors(values: Sequence[float]) -> dict[float, tuple[float, float, float]]:
    """Return a colour for each distinct value, in order; the colours of every figure with a line per learning rate."""
    distinct = np.unique(values)
    return dict(zip(distinct.tolist(), sns.color_palette("colorblind", len(distinct)), strict=True))


def _color(results: xr.Dataset, lr: float):
    return colors(results.lr)[lr]


def _label(name: str) -> str:
    label, unit = LABELS[name]
    return label if unit == "1" else f"{label} [{unit}]"


def plot_prediction(
    table: pd.DataFrame,
    measured: str,
    predicted: str,
    hue: str | None = None,
    ax: Axes | None = None,
    order: Sequence | None = None,
) -> Axes:
    """Plot predicted against measured on logarithmic axes, with the diagonal on which both are equal.

    Colour and marker tell the values of column `hue`, sorted, or those of `order`: give it where several panels have
    to agree. The legend is left to the caller. Rows that are not positive or not finite are left out, since they have
    no place on such axes.
    """
    ax = plt.gca() if ax is None else ax
    values = table[[measured, predicted]].astype(float)
    shown = table[((values > 0) & np.isfinite(values)).all(axis=1)]
    names = [None] if hue is None else sorted(table[hue].unique()) if order is None else list(order)
    colors, markers = sns.color_palette("viridis", len(names)), "osD^vPX<>"
    for name, color, marker in zip(names, colors, itertools.cycle(markers), strict=False):
        part = shown if hue is None else shown[shown[hue] == name]
        if part.empty:
            continue
        label = None if hue is None else f"{name:g}" if isinstance(name, float) else str(name)
        style = {"s": 22, "alpha": 0.75, "edgecolors": "white", "linewidths": 0.4}
        ax.scatter(part[measured], part[predicted], color=color, marker=marker, label=label, **style)
    if len(shown):
        both = shown[[measured, predicted]].to_numpy(float)
        ends = [both.min() / 1.3, both.max() * 1.3]
        ax.plot(ends, ends, "--", color="0.4", lw=1, zorder=0)
    ax.set(xscale="log", yscale="log", xlabel=measured, ylabel=predicted)
    return plain_numbers(ax)


def plain_numbers(ax: Axes | Axis) -> Axes | Axis:
    """Label logarithmic axes, or one of them, with 0.001, 0.01, ..., and with 2, 5 too where they span little."""
    for axis in [ax] if isinstance(ax, Axis) else [ax.xaxis, ax.yaxis]:
        if axis.get_scale() == "log":
            _plain_numbers(axis)
    return ax


REGIME_COLORS = {"convergence": "#56b4e9", "periodic": "#de8f05", "equilibrium": "#029e73", "divergence": "#595959"}


def plot_regimes(regimes: xr.DataArray, ax: Axes | None = None, x: str = "lr", y: str = "weight_decay") -> Axes:
    """Plot the regime of every run (`periods.classify_regime`) as a map over two of its coordinates, both logarithmic.

    Each pair of values is a cell, cut into one upright stripe per seed. What was not run stays white.
    """
    ax = plt.gca() if ax is None else ax
    columns, rows = (_edges(np.unique(regimes[name])) for name in (x, y))
    seeds = np.unique(regimes.init_seed)
    for run in range(regimes.sizes["run"]):
        left, right = columns[float(regimes[x][run])]
        bottom, top = rows[float(regimes[y][run])]
        place = int(np.searchsorted(seeds, regimes.init_seed[run]))
        start, stop = (left * (right / left) ** (part / len(seeds)) for part in (place, place + 1))
        color = REGIME_COLORS[str(regimes.values[run])]
        ax.fill([start, stop, stop, start], [bottom, bottom, top, top], color=color, lw=0, zorder=1)
    for edge in {e for pair in columns.values() for e in pair}:
        ax.axvline(edge, color="white", lw=1, zorder=2)
    for edge in {e for pair in rows.values() for e in pair}:
        ax.axhline(edge, color="white", lw=1, zorder=2)
    ax.set(xscale="log", yscale="log", xlabel=_name(x), ylabel=_name(y))
    ax.set_xlim(min(columns.values())[0], max(columns.values())[1])
    ax.set_ylim(min(rows.values())[0], max(rows.values())[1])
    return plain_numbers(ax)


def regime_legend(figure: Figure, regimes: xr.DataArray) -> None:
    """Put a legend of the regimes that occur above a figure."""
    found = [name for name in REGIME_COLORS if (regimes == name).any()]
    patches = [Patch(color=REGIME_COLORS[name], label=name) for name in found]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(patches))


def _edges(values: np.ndarray) -> dict[float, tuple[float, float]]:
    """Return the logarithmic cell around each of some ascending values."""
    logs = np.log(values)
    steps = np.diff(logs) if len(logs) > 1 else np.array([np.log(2.0)])
    inner = logs[:-1] + steps[: len(logs) - 1] / 2
    edges = np.exp([logs[0] - steps[0] / 2, *inner, logs[-1] + steps[-1] / 2])
    return {float(value): (edges[i], edges[i + 1]) for i, value in enumerate(values)}


def _name(coordinate: str) -> str:
    return {"lr": "learning rate", "weight_decay": "weight decay", "el": "lr × wd"}.get(coordinate, coordinate)
