"""Figures of chapters 15 and 18: a walk on the sphere, tasks, norms under a limited gradient."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from periodic_lib.analysis.clipping import adaptive_limits, clipped_norm
from periodic_lib.analysis.periods import find_destabilizations
from periodic_lib.figures import plots
from periodic_lib.glossary import label

MARKERS = "oDsv^P*"
BEFORE, AFTER = 150, 150  # steps around a break that are shown
CLOSE = 0.75  # of the norm without a limit: lines above would hide each other


def plot_walk(run: xr.Dataset, window: int, held: pd.DataFrame, border: float) -> Figure:
    """Plot loss against effective learning rate: the path of a free run over runs that are held.

    Parameters
    ----------
    run : one free run; its first third is left out.
    window : records of which each point of the path is the median loss.
    held : a row for each run at a fixed effective learning rate, `elr` and `late_loss`.
    border : a rate, dashed.
    """
    smooth, path = run.train_loss.rolling(step=window).median(), slice(len(run.step) // 3, None)
    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    ax.plot(run.elr[path], smooth[path], lw=0.7, color="0.5", label="a periodic run")
    middles = held.groupby("elr").late_loss.median()
    ax.plot(middles.index, middles, "o", color="C0", label="fixed, late loss")
    ax.axvline(border, color="0.3", ls="--", lw=1)
    ax.set(xscale="log", yscale="log", xlabel=label("elr"), ylabel=label("train_loss"))
    ax.legend()
    return figure


def plot_tasks(tasks: Mapping[str, pd.DataFrame]) -> Figure:
    """Plot steps to learn new labels: means by task, and every task against its starting rate.

    `tasks`: name -> table of `plasticity.task_table`.
    """
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    colors = sns.color_palette("colorblind", len(tasks))
    for (name, table), marker, color in zip(tasks.items(), MARKERS, colors, strict=False):
        look = {"marker": marker, "ms": 5, "color": color}
        mean = table.groupby("task")["steps"].mean()
        axes[0].plot(mean.index, mean, label=name, lw=1.2, **look)
        axes[1].plot(table["elr"], table["steps"], ls="", alpha=0.6, **look)
    rate = "effective learning rate at the switch"
    axes[0].set(xlabel="reshuffling", ylabel="steps to 90 %", yscale="log")
    axes[1].set(xlabel=rate, ylabel="steps to 90 %", xscale="log", yscale="log")
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    for axis in (axes[0].yaxis, axes[1].yaxis):
        plots.plain_numbers(axis)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def plot_limits(results: xr.Dataset, table: pd.DataFrame) -> Figure:
    """Plot the norm against the step under limits, of the first seed, and where it ends.

    `table`: of `clipping.guard_table`. Runs with skipped steps are left out, on the left also
    limits under which the norm ends within `CLOSE` of that without one. Right: a point for every
    run, filled where the second half has no break, the balance at the limit dashed, and the
    range of the runs without a limit.
    """
    clipped = table[~np.isfinite(table["skip_above"])]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    _norms(axes[0], results, clipped[clipped["seed"] == clipped["seed"].min()])
    _ends(axes[1], results, clipped)
    for axis in (axes[0].yaxis, axes[1].yaxis, axes[1].xaxis):
        plots.plain_numbers(axis)
    return figure


def _norms(ax: Axes, results: xr.Dataset, clipped: pd.DataFrame) -> None:
    """Draw a line for every limit, named at its end; the darkest one has none."""
    free = clipped.loc[clipped["clip_norm"].isna(), "norm_end"].min()
    clipped = clipped[clipped["clip_norm"].isna() | (clipped["norm_end"] < CLOSE * free)]
    colors = plt.cm.viridis(np.linspace(0, 0.75, len(clipped)))
    ordered = clipped.sort_values("clip_norm", ascending=False, na_position="first")
    for row, color in zip(ordered.itertuples(), colors, strict=True):
        norm = results["weight_norm"].sel(run=row.run)
        word = f"{row.clip_norm:g}" if np.isfinite(row.clip_norm) else "no limit"
        ax.semilogy(norm["step"], norm, lw=1.3, color=color)
        look = {"va": "center", "color": color, "fontsize": 9}
        at = float(norm["step"][-1]), row.norm_end
        ax.annotate(word, at, (4, 0), textcoords="offset points", **look)
    ax.set(xlabel="step", ylabel="weight norm", xlim=(0, 1.24 * results.sizes["step"]))


def _ends(ax: Axes, results: xr.Dataset, clipped: pd.DataFrame) -> None:
    """Draw the last norm of every run against its limit."""
    free, limited = (clipped[np.isfinite(clipped["clip_norm"]) == has] for has in (False, True))
    lr, decay = (float(results[name][0]) for name in ("lr", "weight_decay"))
    ends = limited["clip_norm"].min() / 1.5, limited["clip_norm"].max() * 1.5
    line = np.geomspace(*ends, 50)
    balance = clipped_norm(lr, decay, line)
    ax.loglog(line, balance, "--", color="0.5", label="balance at the limit")
    span = free["norm_end"].min(), free["norm_end"].max()
    ax.axhspan(*span, color="0.85", label="no limit")
    for still, marker, word in ((True, "o", "no more breaks"), (False, "D", "still breaks")):
        part = limited[(limited["late_breaks"] == 0) == still]
        look = {"ms": 6, "mfc": "C0" if still else "white", "mec": "C0", "label": word}
        ax.plot(part["clip_norm"], part["norm_end"], marker, **look)
    ax.set(xlabel="limit of the gradient norm", ylabel="weight norm, last tenth")
    ax.legend(fontsize=8)


def plot_adaptive(free: xr.Dataset, limited: xr.Dataset) -> Figure:
    """Plot the norm against the step without a limit and with ZClip's, and gradients at a break.

    `free`: one run; `limited`: runs of one seed, one for each `clip_above`, the laxest first.
    Right: the gradient's norm around the first break of the first of them, or its last step, and
    what is left of it.
    """
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    axes[0].semilogy(free.step, free.weight_norm, color="0.65", lw=1, label="no limit")
    for row, look in zip(range(limited.sizes["run"]), ("C0-", "C1--"), strict=False):
        one = limited.isel(run=row)
        word = f"z* = {float(one.clip_above):g}"
        axes[0].plot(one.step, one.weight_norm, look, lw=1.6, label=word)
    first, breaks = limited.isel(run=[0]), find_destabilizations(limited.isel(run=[0]))
    place = int(breaks["start"].min()) if len(breaks) else int(first.step[-1])
    near = first.sel(step=slice(place - BEFORE, place + AFTER)).step
    gradient, limit = (x.sel(step=near)[0] for x in (first.grad_norm, adaptive_limits(first)))
    axes[1].semilogy(near - place, gradient, color="0.5", lw=0.8, label="gradient")
    used = np.minimum(gradient, limit)
    axes[1].plot(near - place, used, "C0o", ms=2, label="after the limit")
    axes[0].set(xlabel="step", ylabel="weight norm")
    axes[1].set(xlabel="steps from the start of a break", ylabel="gradient norm")
    for ax in axes:
        plots.plain_numbers(ax.yaxis)
        ax.legend(fontsize=8)
    return figure


def plot_worth(judged: Mapping[str, pd.DataFrame], ax: Axes) -> None:
    """Plot test errors of one network, of averaged predictions, of averaged weights; a dot a run.

    `judged`: name -> table with `single`, `ensemble`, `average`, as `successive.put_together` has.
    """
    columns = ("single", "ensemble", "average")
    for shift, marker, color, (name, table) in zip(
        (-0.12, 0.12), MARKERS, ("C0", "C1"), judged.items(), strict=False
    ):
        places = np.repeat(np.arange(len(columns)), len(table)) + shift
        values = table[[*columns]].to_numpy().T.ravel()
        ax.plot(places, values, marker, ms=5, color=color, alpha=0.7, label=name)
    words = ("one", "predictions\naveraged", "weights\naveraged")
    ax.set(yscale="log", ylabel="test error", xlim=(-0.5, len(columns) - 0.5))
    ax.set_xticks(range(len(columns)), words)
    plots.plain_numbers(ax.yaxis)
    ax.legend(fontsize=8)
