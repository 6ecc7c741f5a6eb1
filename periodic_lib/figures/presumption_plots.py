"""Figures of the chapters on the two presumptions: each takes tables or results, returns a figure.

Words and colours are those of `plots`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from periodic_lib import theory
from periodic_lib.analysis import approaches, budgets, equilibria
from periodic_lib.analysis.periods import balance_ratio
from periodic_lib.figures import plots
from periodic_lib.glossary import label

CONSTRAINED = {"layout": "constrained"}


def legend_above(figure: Figure, ax: Axes, columns: int, title: str | None = None) -> None:
    """Put the legend of one panel above all of them, with lines thick enough to tell apart."""
    place = {"loc": "outside upper center", "ncols": columns, "title": title}
    legend = figure.legend(*ax.get_legend_handles_labels(), **place)
    for line in legend.get_lines():
        line.set(lw=max(2.0, line.get_linewidth()))


# ---------------------------------------------------------------- equilibrium


def plot_ratios(
    groups: Mapping[str, pd.DataFrame], titles: Mapping[str, str], within: float
) -> Figure:
    """Plot columns that should be 1, a panel each, a row per setting; 1 ± `within` is shaded.

    `groups`: name -> table with a column `setting`; `titles`: column -> title. The last panel is
    logarithmic.
    """
    order = pd.concat(groups.values()).setting.unique().tolist()
    shape = {"figsize": (9, 5.6), "sharey": True} | CONSTRAINED
    figure, axes = plt.subplots(1, len(titles), **shape)
    for (name, title), ax in zip(titles.items(), axes, strict=True):
        ax.axvspan(1 - within, 1 + within, color="0.88", zorder=0)
        for (group, part), mark in zip(groups.items(), plots.MARKERS, strict=False):
            place = [order.index(one) for one in part.setting]
            ax.plot(part[name], place, mark, ms=5, alpha=0.7, label=group)
        ax.set(title=title, xlabel="measured / formula")
    axes[-1].set_xscale("log")
    plots.plain_numbers(axes[-1])
    axes[0].set_yticks(range(len(order)), order)
    axes[0].invert_yaxis()
    legend_above(figure, axes[0], len(groups))
    return figure


def plot_rate_error(table: pd.DataFrame, hue: str) -> Figure:
    """Plot `elr` - 1 against eta lambda and against `variance`, with the slopes of two limits."""
    shape = {"figsize": (9, 3.7), "sharey": True} | CONSTRAINED
    figure, (left, right) = plt.subplots(1, 2, **shape)
    parts = table.groupby(hue, sort=False)
    for (name, part), mark in zip(parts, plots.MARKERS, strict=False):
        left.plot(part.lr_wd, part.elr - 1, mark, alpha=0.7, label=name)
        right.plot(part.variance, part.elr - 1, mark, alpha=0.7)
    span = np.array([0, table.variance.max() * 1.1])
    for slope, style, words in ((0.5, "--", "s²/2"), (1.5, ":", "3 s²/2")):
        right.plot(span, slope * span, style, color="0.4", lw=1, label=words)
    left.set(xscale="log", xlabel=label("lr_wd"))
    left.set(ylabel="mean effective learning rate / formula - 1")
    right.set(xlabel="relative variance s² of ρ²")
    plots.plain_numbers(left)
    left.legend()
    right.legend()
    return figure


def plot_return(
    norm: np.ndarray, square: np.ndarray, factors: Sequence[float], memory: float, window: int
) -> Figure:
    """Plot how norms come back after they were multiplied by `factors`, with the law dashed.

    `norm` (steps, factors) over its value in equilibrium; `square`, the squared effective gradient
    norm over its mean, averaged over `window` steps; `memory` in steps.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), **CONSTRAINED)
    clock, tint = np.arange(len(norm)) / memory, plots.colors(factors)
    for k, factor in enumerate(factors):
        style = {"color": tint[factor], "lw": 1.1}
        left.plot(clock, norm[:, k], **style)
        law = (1 + (factor**4 - 1) * np.exp(-clock)) ** 0.25
        left.plot(clock, law, "--", color="0.3", lw=0.8)
        smooth = pd.Series(square[:, k]).rolling(window, min_periods=1).mean()
        right.plot(clock, smooth, **style, label=f"{factor:g}")
    for ax in (left, right):
        ax.set(yscale="log", xlabel="steps × 4 lr × wd")
        plots.plain_numbers(ax)
    left.set(ylabel="norm / equilibrium norm")
    right.set(ylabel="squared effective gradient / its mean")
    legend_above(figure, right, len(factors), "norm multiplied by")
    return figure


def plot_memory(cases: Mapping[str, tuple[xr.Dataset, slice]]) -> Figure:
    """Plot norm, running average and the epoch's equilibrium norm; title -> (run, steps)."""
    figure, axes = plt.subplots(1, len(cases), figsize=(9, 3.9), **CONSTRAINED)
    for (name, (one, part)), ax in zip(cases.items(), axes, strict=True):
        moment = equilibria.formulas(one, equilibria.epoch_gradient(one))[0]
        step, past = one.step[part], equilibria.remembered_norm(one)
        words = "equilibrium norm of the epoch"
        ax.plot(step, moment[part], color="0.7", lw=0.6, label=words)
        ax.plot(step, one.weight_norm[part], color="C0", lw=2, label="norm")
        ax.plot(step, past[part], "--", color="C1", lw=1, label="running average")
        ax.set(yscale="log", title=name, xlabel="step")
        plots.plain_numbers(ax)
    axes[0].set_ylabel("norm")
    legend_above(figure, axes[0], 3)
    return figure


# ---------------------------------------------------------------- instability


def plot_approaches(results: Sequence[xr.Dataset], shown: float = 6.0) -> Figure:
    """Plot the effective learning rate of the first seed on the clock eta lambda t: all of it, up
    to `shown`, and, over its first minimum, until the first break, with e^(2 eta lambda t) dashed.
    """
    shape = {"figsize": (9, 4.2), "width_ratios": (3, 2)} | CONSTRAINED
    figure, (left, right) = plt.subplots(1, 2, **shape)
    tint = plots.colors(np.concatenate([data.lr for data in results]))
    pairs = [pair for data in results for pair in approaches.runs_with_breaks(data)]
    least, longest = min(int(one.init_seed) for one, _ in pairs), 0.0
    for one, breaks in sorted(pairs, key=lambda pair: float(pair[0].lr)):
        if int(one.init_seed) == least:
            lr, clock = float(one.lr), one.step.values * float(budgets.decay(one)) / 2
            until = int(breaks["start"].iloc[0]) if len(breaks) else len(clock)
            style = {"color": tint[lr], "lw": 1}
            left.plot(clock, one.elr, **style, label=f"{lr:g}")
            start = one.elr[int(one.weight_norm.values[:until].argmax())]
            right.plot(clock[:until], one.elr[:until] / start, **style)
            longest = max(longest, clock[until - 1])
    line = np.linspace(0, longest, 50)
    right.plot(line, np.exp(2 * line), "--", color="0.2", lw=1)
    axis = {"yscale": "log", "xlabel": "lr × wd × step"}
    left.set(ylabel=label("elr"), xlim=(0, shown), **axis)
    right.set(ylabel=f"{label('elr')} / first minimum", title="until the first break", **axis)
    for ax in (left, right):
        plots.plain_numbers(ax)
    legend_above(figure, left, len(tint), "learning rate")
    return figure


def plot_aftermath(results: Mapping[float, xr.Dataset]) -> Figure:
    """Plot loss and norm around all breaks, over their level before: median, 10 to 90 % band.

    `results`: learning rate -> its runs, a column each.
    """
    shape = {"figsize": (9, 5), "sharex": True, "sharey": "row"} | CONSTRAINED
    figure, axes = plt.subplots(2, len(results), squeeze=False, **shape)
    tint = plots.colors([*results])
    for (lr, data), column in zip(results.items(), axes.T, strict=True):
        smooth = data.train_loss.rolling(step=3, min_periods=1).median()
        for name, ax in zip(("train_loss", "weight_norm"), column, strict=True):
            time, rows = approaches.aligned(data.assign(train_loss=smooth), name)
            if len(rows):
                low, middle, high = np.quantile(rows, (0.1, 0.5, 0.9), axis=0)
                ax.fill_between(time, low, high, color=tint[lr], alpha=0.25, lw=0)
                ax.plot(time, middle, color=tint[lr], lw=1.3)
            ax.axhline(1, color="0.5", lw=0.8, ls="--")
            ax.axvline(0, color="0.5", lw=0.8)
            ax.set(yscale="log")
            plots.plain_numbers(ax)
        column[0].set_title(f"learning rate {lr:g}, {len(rows)} breaks")
        column[1].set_xlabel("steps since the break × 2 lr × wd")
    axes[0, 0].set_ylabel("loss / level before")
    axes[1, 0].set_ylabel("norm / level before")
    return figure


def plot_by_seed(table: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Plot columns against eta lambda, a panel each, a line per seed; the last one counts breaks.

    `titles`: column -> title.
    """
    shape = {"figsize": (9, 3.3), "squeeze": False} | CONSTRAINED
    figure, (axes,) = plt.subplots(1, len(titles), **shape)
    for (name, title), ax in zip(titles.items(), axes, strict=True):
        for _, part in table.groupby("init_seed"):
            ax.plot(part.lr_wd, part[name], "o-", ms=4, lw=0.8, alpha=0.7)
        ax.set(xscale="log", xlabel=label("lr_wd"), title=title)
    axes[-1].set_yscale("symlog", linthresh=1)
    axes[-1].set(ylim=(-0.3, None), yticks=[0, 1, 10], yticklabels=["0", "1", "10"])
    return figure


# ---------------------------------------------------------------- both


def plot_about_the_line(runs: Mapping[str, xr.Dataset], smoothing: int = 5) -> Figure:
    """Plot runs in the plane of gradient and scaled effective learning rate, and the density of
    their balance ratio; title -> a result with one run.
    """
    shape = {"figsize": (9, 4.8), "width_ratios": [1.6, 1]} | CONSTRAINED
    figure, (left, right) = plt.subplots(1, 2, **shape)
    for (name, data), color in zip(runs.items(), "0124", strict=False):
        one = data.isel(run=0, step=slice(data.sizes["step"] // 200, None))
        line = theory.balance_line(1, one.lr, one.weight_decay)
        path = (np.log(one.elr / line), np.log(one.eff_grad_norm))
        x, y = (np.exp(axis.rolling(step=smoothing, center=True).mean()) for axis in path)
        left.plot(x, y, lw=0.6, alpha=0.75, color=f"C{color}", label=name)
        ratio = np.log10(balance_ratio(one).clip(1e-3, 30))
        look = {"histtype": "stepfilled", "alpha": 0.45, "density": True}
        right.hist(ratio, np.linspace(-3, 1.5, 60), color=f"C{color}", **look)
    left.set(xscale="log", yscale="log")
    (first, last), top = left.get_xlim(), left.get_ylim()[1]
    span = np.array([max(1 / top, first), last])
    left.plot(span, 1 / span, "--", color="0.2", lw=1.2)
    left.set(xlabel="ELR / (a tan α*)", ylabel=label("eff_grad_norm"))
    right.axvline(0, ls="--", color="0.2", lw=1.2)
    ticks = [-3, -2, -1, 0, 1]
    right.set_xticks(ticks, [f"{10.0**tick:g}" for tick in ticks])
    right.set(xlabel="balance ratio", ylabel="density over the steps")
    legend_above(figure, left, 4, "run, lr × wd")
    return figure


def plot_dial(table: pd.DataFrame, chance: float) -> Figure:
    """Plot, against eta lambda, shares of steps about the line, who pays for growth, wait, loss.

    `table`: rows per run with `below`, `on`, `above`, `top`, `wait`, `late_loss`; `chance`: the
    loss of guessing all classes alike.
    """
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), sharex=True, **CONSTRAINED)
    mean = table.groupby("lr_wd")[["below", "on", "above", "top"]].mean()
    shares, look = ["below", "on", "above"], {"colors": ["#0173b2", "#ece133", "#cc3311"]}
    words = ["below", "on the line", "above"]
    axes[0, 0].stackplot(mean.index, mean[shares].T, labels=words, alpha=0.7, **look)
    axes[0, 0].set(ylabel="share of steps", ylim=(0, 1))
    axes[0, 0].legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    axes[0, 1].plot(mean.index, mean.top, "o-", ms=3)
    axes[0, 1].plot(table.lr_wd, table.top, ".", color="0.5", ms=3)
    axes[0, 1].set(ylabel="growth paid by 1 % of the steps", ylim=(0, 1))
    lines = (("wait", 1.0, "time between breaks × 2 lr wd"), ("late_loss", chance, "median loss"))
    for (name, line, title), ax in zip(lines, axes[1], strict=True):
        plots.plot_against_lr_wd(table, name, ax=ax)
        ax.axhline(line, ls=":", color="0.5")
        ax.set(ylabel=title)
    return figure


def plot_plane(
    panels: Mapping[str, pd.DataFrame], borders: Mapping[str, Mapping[str, pd.Series]]
) -> Figure:
    """Plot the window budget over eta lambda and noise as colour, with the swing written in it.

    Parameters
    ----------
    panels : title -> judged runs (`plane.judged`).
    borders : title -> name of a border -> noise -> eta lambda at which it lies; what is off the
        panel is not drawn.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 4.2), **CONSTRAINED)
    for ax, (title, table) in zip(axes, panels.items(), strict=True):
        cell = {"index": "noise", "columns": "lr_wd", "aggfunc": "median"}
        middle = table.pivot_table(values="budget", **cell)[::-1]
        swing = table.pivot_table(values="swing", **cell)[::-1]
        look = {"vmin": 0, "vmax": 1, "cmap": "cividis", "cbar": ax is axes[-1]}
        look |= {"annot": swing, "fmt": ".1f", "annot_kws": {"size": 8}}
        sns.heatmap(middle, ax=ax, **look)
        for (name, border), color in zip(borders[title].items(), ("C3", "black"), strict=False):
            _draw_border(ax, middle, border, name, color)
        ax.set(title=title, xlabel=label("lr_wd"), ylabel="part of wrong labels")
        ax.set_xticklabels([f"{value:g}" for value in middle.columns], rotation=45)
        ax.set_yticklabels([f"{value:.2g}" for value in middle.index], rotation=0)
    legend_above(figure, axes[0], 2)
    return figure


def plot_widths(panels: Mapping[str, pd.DataFrame], border: float) -> Figure:
    """Plot the window budget over eta lambda and noise, a panel for each width; fields below
    `border` are framed.

    `panels` : title -> rows of runs (`widths.swept`).
    """
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, sharey=True, **CONSTRAINED)
    for ax, (title, table) in zip(axes.flat, panels.items(), strict=False):
        cell = {"index": "noise", "columns": "lr_wd", "aggfunc": "median"}
        middle = table.pivot_table(values="budget", **cell)[::-1]
        look = {"vmin": 0, "vmax": 1, "cmap": "cividis", "cbar": ax in axes[:, -1]}
        sns.heatmap(middle, ax=ax, **look)
        for row, column in np.argwhere(middle.to_numpy() < border):
            ax.add_patch(plt.Rectangle((column, row), 1, 1, fill=False, ec="C3", lw=2))
        ax.set(title=title, xlabel="", ylabel="")
        ax.set_xticklabels([f"{value:.2g}" for value in middle.columns], rotation=90)
        ax.set_yticklabels([f"{value:g}" for value in middle.index], rotation=0)
    figure.supxlabel(label("lr_wd"))
    figure.supylabel("part of wrong labels")
    return figure


def _draw_border(ax: Axes, middle: pd.DataFrame, border: pd.Series, name: str, color: str) -> None:
    """Draw eta lambda of each row as an upright stroke, at its place between the columns."""
    logs = np.log(middle.columns.to_numpy(float))
    for row, noise in enumerate(middle.index):
        at = np.interp(np.log(border[noise]), logs, np.arange(len(logs)) + 0.5, np.nan, np.nan)
        words = {"label": name} if row == 0 else {}
        ax.plot([at, at], [row, row + 1], color=color, lw=3, solid_capstyle="butt", **words)


def plot_areas(areas: pd.DataFrame) -> Figure:
    """Plot areas under the curve with their intervals, a row each (`early_signs.areas`)."""
    figure, ax = plt.subplots(figsize=(9, 1 + 0.38 * len(areas)), **CONSTRAINED)
    rows = np.arange(len(areas))[::-1]
    ends = areas.area - areas.low, areas.high - areas.area
    ax.errorbar(areas.area, rows, xerr=np.abs(ends), fmt="o", ms=6, capsize=3)
    ax.axvline(0.5, ls="--", color="0.4", lw=1)
    ax.set_yticks(rows, areas.index)
    ax.set(xlabel="area under the curve, held out", xlim=(None, 1.01))
    return figure
