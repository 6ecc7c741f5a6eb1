"""One function per kind of figure: `plot_x(results, ax=None) -> ax`.

Same learning rate, same colour, everywhere; the words on axes are the glossary's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

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
from periodic_lib.glossary import label

POINTS = 400  # per line: each is the geometric mean of a window of steps
MARKERS = "osD^vPX<>"
PHASE_COLORS = {"A": "#0173b2", "B": "#de8f05", "C": "#cc3311"}  # of the colour-blind safe palette
REGIME_COLORS = {  # in the order in which a larger learning rate or weight decay leads through them
    "convergence": "#56b4e9",
    "one break": "#fbe4bd",
    "two breaks": "#f3bf66",
    "irregular breaks": "#cc78bc",
    "periodic": "#de8f05",
    "equilibrium": "#029e73",
    "chaotic equilibrium": "#ca9161",
    "divergence": "#595959",
}


def use_style() -> None:
    """Set the book's figure style: white, as wide as a page, safe for colour-blind readers.

    The smallest text of a figure 9 inches wide is 12 pixels high where the page is 688 wide.
    """
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=1.04)
    white = {"figure.facecolor": "white", "savefig.facecolor": "white"}
    plt.rcParams.update(white | {"figure.dpi": 100})


# ---------------------------------------------------------------- against the step


def windowed(
    results: xr.Dataset, name: str, points: int = POINTS, along: str = "step"
) -> xr.DataArray:
    """Return geometric means of `name` over at most `points` windows of equal length.

    A geometric mean keeps the order of magnitude of both the quiet stretches and the spikes.

    >>> loss = (("run", "step"), [[1.0, 100.0, 4.0, 4.0]])
    >>> data = xr.Dataset({"train_loss": loss}, {"step": [0, 1, 2, 3]})
    >>> windowed(data, "train_loss", points=2).values.round(9).tolist()
    [[10.0, 4.0]]
    """
    length = max(1, results.sizes[along] // points)
    windows = np.log(results[name].clip(1e-30)).coarsen({along: length}, boundary="trim")
    return np.exp(windows.mean())


def plot_trajectory(
    results: xr.Dataset,
    name: str,
    ax: Axes | None = None,
    legend: bool = True,
    points: int = POINTS,
    **style: object,
) -> Axes:
    """Plot one recorded quantity against the step, one line per run, on a logarithmic axis.

    The lowest seed is drawn strongly, other seeds faintly. Each line has at most `points` points.
    `style` is matplotlib's, for all lines.
    """
    ax = plt.gca() if ax is None else ax
    along = results[name].dims[1]
    lines = windowed(results, name, points, along)
    for (lr, seed), line in _by_run(lines):
        first = seed == lines.init_seed.min()
        drawn = {"lw": 1.4, "zorder": 3} if first else {"lw": 0.6, "alpha": 0.3, "zorder": 2}
        drawn |= {"color": _color(results, lr), "label": f"{lr:g}" if first else None}
        ax.plot(line[along], line, **drawn | style)
    ax.set(xlabel="step", ylabel=label(name), yscale="log")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    plain_numbers(ax.yaxis)
    if legend:
        ax.legend(title="learning rate")
    return ax


def plot_stacked(
    results: xr.Dataset,
    names: Sequence[str],
    destabilizations: Sequence[float] | pd.DataFrame | None = None,
    axes: Sequence[Axes] | None = None,
    points: int = POINTS,
    **style: object,
) -> np.ndarray:
    """Plot recorded quantities above each other, against the same steps; return the axes.

    Parameters
    ----------
    results : one run, or a few that are to be seen together.
    names : of variables of `results`, one panel each; evaluated ones, too. What is not recorded can
        be added: results.assign(balance_ratio=periods.balance_ratio(results)).
    destabilizations : steps, or a table from `periods.find_destabilizations`; a grey line marks
        each, in every panel.
    axes : as many as `names`, for instance a column of a grid; None: those of a new figure.
    points, style : as `plot_trajectory`.
    """
    if axes is None:
        size = (9, 1 + 1.8 * len(names))
        grid = {"squeeze": False, "sharex": True, "layout": "constrained"}
        axes = plt.subplots(len(names), 1, figsize=size, **grid)[1][:, 0]
    is_table = isinstance(destabilizations, pd.DataFrame)
    marked = destabilizations["start"] if is_table else destabilizations
    for ax, name in zip(axes, names, strict=True):
        for step in [] if marked is None else marked:
            ax.axvline(step, color="0.8", lw=1, zorder=1)
        plot_trajectory(results, name, ax, legend=False, points=points, **style)
        ax.label_outer()
    return np.asarray(axes)


def plot_one_run(results: xr.Dataset, destabilizations: Sequence[float] | None = None) -> Figure:
    """Return training loss above weight norm of a single run, its destabilizations marked."""
    names, points = ("train_loss", "weight_norm"), results.sizes["step"]
    return plot_stacked(results, names, destabilizations, points=points)[0].figure


def shade_phases(
    ax: Axes, steps: Sequence[float], phases: Sequence[str], legend: bool = False
) -> Axes:
    """Shade `ax` by the phase of each step (`periods.label_phases`): A blue, B orange, C red."""
    steps, phases = np.asarray(steps, float), np.asarray(phases)
    edges = np.flatnonzero(phases[1:] != phases[:-1]) + 1
    for first, last in zip([0, *edges], [*edges, len(phases)], strict=True):
        if phases[first] in PHASE_COLORS:
            end = steps[min(last, len(steps) - 1)]
            color = PHASE_COLORS[phases[first]]
            ax.axvspan(steps[first], end, color=color, alpha=0.18, lw=0, zorder=0)
    if legend:
        patches = [
            Patch(color=color, alpha=0.3, label=f"phase {name}")
            for name, color in PHASE_COLORS.items()
        ]
        ax.figure.legend(handles=patches, loc="outside upper center", ncols=len(patches))
    return ax


# ---------------------------------------------------------------- the plane, and the main figure


def plot_phase_diagram(
    results: xr.Dataset, ax: Axes | None = None, of: Mapping[float, str] | None = None
) -> Axes:
    """Plot effective gradient norm against effective learning rate, one path per learning rate.

    Of the lowest seed. The dashed line of the same colour is the balance (`theory.balance_line`):
    above it the norm grows and the run moves left, below it the norm shrinks and it moves right.
    `of`: learning rate -> colour, where several results share a figure.
    """
    ax = plt.gca() if ax is None else ax
    elr, gradient = windowed(results, "elr"), windowed(results, "eff_grad_norm")
    first = results.init_seed == results.init_seed.min()
    span = np.array([elr[first].min(), elr[first].max()])
    for run in np.flatnonzero(first):
        lr, wd = float(results.lr[run]), float(results.weight_decay[run])
        color = of[lr] if of else _color(results, lr)
        ax.plot(elr[run], gradient[run], color=color, lw=0.8, alpha=0.8)
        ax.plot(elr[run, -1], gradient[run, -1], "o", color=color, ms=6, mec="white", zorder=4)
        ax.plot(span, theory.balance_line(span, lr, wd), "--", color=color, lw=1)
    ax.set(xlabel=label("elr"), ylabel=label("eff_grad_norm"), xscale="log", yscale="log")
    drawn = [
        value for line in ax.lines if line.get_linestyle() == "-" for value in line.get_ydata()
    ]
    ax.set_ylim(min(drawn) / 2, max(drawn) * 2)
    return ax


def plot_dynamics(
    results: xr.Dataset, names: Sequence[str] = ("train_loss", "test_error", "weight_norm")
) -> Figure:
    """Return the main figure: one panel per quantity against the step, and the phase diagram."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), layout="constrained")
    for ax, name in zip(axes.flat, names, strict=False):
        plot_trajectory(results, name, ax, legend=False)
    plot_phase_diagram(results, axes.flat[-1])
    handles, labels = axes.flat[0].get_legend_handles_labels()
    place = {"loc": "outside upper center", "ncols": len(labels)}
    figure.legend(handles, labels, title="learning rate", **place)
    return figure


# ---------------------------------------------------------------- tables: one row per run


def plot_published(
    curves: pd.DataFrame, quantity: str, ax: Axes | None = None, of: Mapping | None = None
) -> Axes:
    """Shade what published curves cover, one band per learning rate, against the epoch.

    `curves`: a table as `anchors.published("lobacheva2021_figure2")`. `of`: learning rate -> colour
    (`colors`); None: one for each of `curves`.
    """
    ax = plt.gca() if ax is None else ax
    of = colors(curves.learning_rate.unique()) if of is None else of
    for lr, part in curves[curves.quantity == quantity].groupby("learning_rate"):
        low, high = part.column_low, part.column_high
        style = {"color": of[lr], "alpha": 0.4, "lw": 0.5, "label": f"{lr:g}"}
        ax.fill_between(part.epoch, low, high, **style)
    ax.set(yscale="log", xlabel="epoch")
    plain_numbers(ax)
    return ax


def plot_groups(
    table: pd.DataFrame,
    x: str,
    y: str,
    hue: str | None = None,
    ax: Axes | None = None,
    order: Sequence | None = None,
    join: bool = True,
) -> Axes:
    """Plot column `y` by groups of equal `x`: a point at the median, a bar from lowest to highest.

    Groups that are numbers above 0 stand where they belong on a logarithmic axis; others stand side
    by side, in the order of the table. Colour and marker tell the values of column `hue`, sorted,
    or those of `order`; their points stand beside each other. `join`: a line through the medians.
    `y` is logarithmic: rows where it is not positive and finite are left out. The legend is left to
    the caller.
    """
    ax = plt.gca() if ax is None else ax
    places, logarithmic = _places(table[x])
    gap = np.diff(places).min() if len(places) > 1 else 1.0
    parts = list(_parts(table, [y], hue, order))
    for number, (part, style) in enumerate(parts):
        spread = part.groupby(x)[y].agg(["median", "min", "max"]).reindex(places.index).dropna()
        at = places.loc[spread.index] + 0.12 * gap * (number - (len(parts) - 1) / 2)
        ends = spread["median"] - spread["min"], spread["max"] - spread["median"]
        drawn = {"ms": 5, "ls": "-" if join else "none", "lw": 1, "elinewidth": 1.2, "capsize": 2.5}
        ax.errorbar(np.exp(at) if logarithmic else at, spread["median"], ends, **drawn | style)
    ax.set(xscale="log" if logarithmic else "linear", yscale="log")
    ax.set(xlabel=label(x), ylabel=label(y))
    if not logarithmic:
        ax.set_xticks(places, [_word(value) for value in places.index])
    return plain_numbers(ax)


def plot_against_lr_wd(
    table: pd.DataFrame,
    y: str,
    hue: str | None = None,
    ax: Axes | None = None,
    order: Sequence | None = None,
) -> Axes:
    """Plot column `y` against `lr_wd`, learning rate times weight decay, one point per row.

    Both axes are logarithmic; `table` is a run table (`regimes.summarize`) or like one. `hue` and
    `order` are those of `plot_prediction`, and so are the rows that are left out.
    """
    ax = plt.gca() if ax is None else ax
    _scatter(ax, table, "lr_wd", y, hue, order)
    ax.set(xlabel=label("lr_wd"), ylabel=label(y))
    return plain_numbers(ax)


def plot_prediction(
    table: pd.DataFrame,
    measured: str,
    predicted: str,
    hue: str | None = None,
    ax: Axes | None = None,
    order: Sequence | None = None,
) -> Axes:
    """Plot predicted against measured on logarithmic axes, with the diagonal where both are equal.

    Colour and marker tell the values of column `hue`, sorted, or those of `order`: give it where
    several panels have to agree. The legend is left to the caller. Rows that are not positive or
    not finite are left out, since they have no place on such axes.
    """
    ax = plt.gca() if ax is None else ax
    _scatter(ax, table, measured, predicted, hue, order)
    both = table[[measured, predicted]][_has_place(table, [measured, predicted])].to_numpy(float)
    if len(both):
        ends = [both.min() / 1.3, both.max() * 1.3]
        ax.plot(ends, ends, "--", color="0.4", lw=1, zorder=0)
    ax.set(xlabel=measured, ylabel=predicted)
    return plain_numbers(ax)


def _scatter(
    ax: Axes, table: pd.DataFrame, x: str, y: str, hue: str | None, order: Sequence | None
) -> None:
    for part, style in _parts(table, [x, y], hue, order):
        drawn = {"s": 22, "alpha": 0.75, "edgecolors": "white", "linewidths": 0.4}
        ax.scatter(part[x], part[y], **drawn | style)
    ax.set(xscale="log", yscale="log")


def _parts(
    table: pd.DataFrame, shown: list[str], hue: str | None, order: Sequence | None
) -> Iterator[tuple[pd.DataFrame, dict]]:
    """Yield the rows of each value of `hue` that can be shown, with their colour, marker, label."""
    rows = table[_has_place(table, shown)]
    if hue is None:
        yield rows, {"color": "C0", "marker": "o"}
        return
    names = sorted(table[hue].unique()) if order is None else list(order)
    palette = _palette(hue, names)
    for name, color, marker in zip(names, palette, itertools.cycle(MARKERS), strict=False):
        part = rows[rows[hue] == name]
        if len(part):
            yield part, {"color": color, "marker": marker, "label": _word(name)}


def _palette(hue: str, names: list) -> list:
    """Return a colour per value: a learning rate's or a regime's is that of every other figure."""
    if hue == "lr":
        return [colors(names)[name] for name in names]
    if hue == "regime":
        return [REGIME_COLORS.get(name, "black") for name in names]
    return sns.color_palette("viridis", len(names))


def _has_place(table: pd.DataFrame, names: list[str]) -> pd.Series:
    """Return which rows have a place on logarithmic axes: the columns are positive and finite."""
    values = table[names].astype(float)
    return ((values > 0) & np.isfinite(values)).all(axis=1)


def _places(groups: pd.Series) -> tuple[pd.Series, bool]:
    """Return where each distinct value stands, and whether that is its logarithm."""
    values = groups.dropna().unique()
    if pd.api.types.is_numeric_dtype(groups) and (values > 0).all():
        values = np.sort(values)
        return pd.Series(np.log(values), values), True
    return pd.Series(np.arange(len(values), dtype=float), values), False


def _word(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------- the map of regimes


def plot_regimes(
    regimes: xr.DataArray,
    ax: Axes | None = None,
    x: str = "lr",
    y: str = "weight_decay",
    undecided: Sequence[bool] | None = None,
) -> Axes:
    """Plot the regime of every run (`regimes.classify_regime`) as a map over two coordinates.

    Both are logarithmic. Each pair of values is a cell, cut into one upright stripe per seed. What
    was not run stays white. `undecided` runs (near a border between regimes) are hatched.
    """
    ax = plt.gca() if ax is None else ax
    hatched = np.zeros(regimes.sizes["run"], bool) if undecided is None else np.asarray(undecided)
    columns, rows = (_edges(np.unique(regimes[name])) for name in (x, y))
    seeds = np.unique(regimes.init_seed)
    for run in range(regimes.sizes["run"]):
        left, right = columns[float(regimes[x][run])]
        bottom, top = rows[float(regimes[y][run])]
        place = int(np.searchsorted(seeds, regimes.init_seed[run]))
        start, stop = (left * (right / left) ** (part / len(seeds)) for part in (place, place + 1))
        color = REGIME_COLORS[str(regimes.values[run])]
        corners = [start, stop, stop, start], [bottom, bottom, top, top]
        style = {"hatch": "//////", "edgecolor": "white"} if hatched[run] else {}
        ax.fill(*corners, facecolor=color, lw=0, zorder=1, **style)
    for edge in {e for pair in columns.values() for e in pair}:
        ax.axvline(edge, color="white", lw=1, zorder=2)
    for edge in {e for pair in rows.values() for e in pair}:
        ax.axhline(edge, color="white", lw=1, zorder=2)
    ax.set(xscale="log", yscale="log", xlabel=label(x), ylabel=label(y))
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


# ---------------------------------------------------------------- colours and numbers


def colors(values: Sequence[float]) -> dict[float, tuple[float, float, float]]:
    """Return a colour for each distinct value, in order: those of a line per learning rate."""
    distinct = np.unique(values)
    return dict(zip(distinct.tolist(), sns.color_palette("colorblind", len(distinct)), strict=True))


def _color(results: xr.Dataset, lr: float) -> tuple[float, float, float]:
    return colors(results.lr)[lr]


def _by_run(lines: xr.DataArray) -> Iterator[tuple[tuple[float, int], xr.DataArray]]:
    for run in range(lines.sizes["run"]):
        yield (float(lines.lr[run]), int(lines.init_seed[run])), lines.isel(run=run)


def plain_numbers(ax: Axes | Axis) -> Axes | Axis:
    """Label logarithmic axes, or one of them, with 0.001, 0.01, ...

    And with 2, 5 too where they span less than two decades.
    """
    for axis in [ax] if isinstance(ax, Axis) else [ax.xaxis, ax.yaxis]:
        if axis.get_scale() == "log":
            _number_plainly(axis)
    return ax


def _number_plainly(axis: Axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = axis.get_data_interval()
    if high < 100 * low:
        axis.set_minor_locator(LogLocator(subs=(2, 5)))
        axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axis.set_minor_formatter(NullFormatter())
