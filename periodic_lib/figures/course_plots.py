"""Figures of chapters 01 to 07 and 14: each takes tables or results and returns a figure.

Words and colours are those of `plots`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr
from matplotlib.figure import Figure

from periodic_lib import theory
from periodic_lib.analysis import bounds, budgets, long_runs
from periodic_lib.figures import plots
from periodic_lib.glossary import label

SMALLEST = 1e-17  # a difference of zero has no place on a logarithmic axis
EPSILONS = 1e-7  # as small as a logarithmic axis of epsilon goes
STYLES = ("-", "--", "-.", ":")
CONSTRAINED = {"layout": "constrained"}
ABOVE = {"loc": "outside upper center"}


# ---------------------------------------------------------------- the motion of the norm


def plot_differences(curves: Mapping[str, np.ndarray], note: str) -> Figure:
    """Plot how relative differences of runs grow, a line each; the legend ends with a `note`."""
    figure, ax = plt.subplots(figsize=(8, 4.4), **CONSTRAINED)
    for (name, curve), style in zip(curves.items(), STYLES, strict=True):
        ax.plot(np.arange(len(curve)) + 1, np.maximum(curve, SMALLEST), style, label=name)
    ax.plot([], [], " ", label=note)
    ax.set(xscale="log", yscale="log", xlabel="steps")
    ax.set_ylabel("largest relative difference\nof the loss so far")
    figure.legend(ncols=2, **ABOVE)
    return figure


def plot_forces(paths: np.ndarray, lr: float, weight_decay: float, gradient: float) -> Figure:
    """Plot norms against the step, and what decay takes and growth gives, by the norm.

    `paths` (steps, starts): norms at one effective gradient norm, `gradient`. Dashed or dotted:
    the equilibrium.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), **CONSTRAINED)
    balance, norm = theory.equilibrium_norm(lr, weight_decay, gradient), np.geomspace(0.3, 9, 200)
    left.plot(paths)
    left.axhline(balance, ls="--", color="0.4", lw=1)
    left.set(yscale="log", xlabel="step", ylabel="weight norm ρ")
    left.set_title("from any start to one norm")
    shrinks = (1 - (1 - lr * weight_decay) ** 2) * norm**2
    right.loglog(norm, shrinks, norm, (lr * gradient / norm) ** 2, "--")
    right.axvline(balance, ls=":", color="0.4", lw=1)
    right.set(xlabel="weight norm ρ", ylabel="change of ρ² in one step")
    right.legend(["decay", "growth"], title="the two forces")
    for ax in (left, right):
        plots.plain_numbers(ax)
    return figure


def plot_budgets(results: xr.Dataset, runs: Sequence[int]) -> Figure:
    """Plot accumulated decay and growth of ln rho^2 against eta lambda t, a panel per run."""
    grown, taken = budgets.growth(results), budgets.decay(results)
    figure, axes = plt.subplots(1, len(runs), figsize=(9, 3.4), **CONSTRAINED)
    for ax, run in zip(axes, runs, strict=True):
        mine = grown.sel(run=run)
        time = mine.step * float(taken.sel(run=run)) / 2
        ax.plot(time, 2 * time, "--", label="decay", color="0.4")
        ax.plot(time, mine.cumsum(), label="growth", color="C1", lw=2)
        ax.set(title=f"learning rate {float(mine.lr):g}", xlabel="lr × wd × step")
    axes[0].set(ylabel="accumulated change of ln ρ²")
    axes[0].legend()
    return figure


# ---------------------------------------------------------------- published curves


def plot_published_panels(curves: pd.DataFrame, words: Mapping[str, str]) -> Figure:
    """Plot published quantities side by side; `words`: quantity -> what stands on its axis."""
    figure, axes = plt.subplots(1, len(words), figsize=(9, 3.4), **CONSTRAINED)
    for ax, (name, text) in zip(axes, words.items(), strict=True):
        plots.plot_published(curves, name, ax).set_ylabel(text)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, title="learning rate", ncols=4, **ABOVE)
    return figure


def plot_teeth(curves: pd.DataFrame, passages: pd.DataFrame) -> Figure:
    """Plot published norms, and the fall that weight decay alone would give from each tooth.

    `passages`: of `forecasts.published_passages`.
    """
    figure, ax = plt.subplots(figsize=(9, 4), **CONSTRAINED)
    plots.plot_published(curves, "si_weight_norm", ax)
    for row in passages.itertuples():
        ends = [row.begin, row.begin + row.law], [row.highest, row.lowest]
        ax.plot(*ends, "k-", lw=0.9)
    ax.set(ylabel="norm (read off)")
    return figure


def plot_beside(
    curves: pd.DataFrame, results: Sequence[xr.Dataset], epoch: int, longest: float
) -> Figure:
    """Plot the first runs of results over published curves; test errors; the phase diagram.

    Parameters
    ----------
    curves : published ones, of the learning rates of `results`.
    results : one learning rate each, thinned to epochs.
    epoch : steps.
    longest : where the axes end, in epochs.
    """
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), **CONSTRAINED)
    colors, errors, phases = plots.colors([data.lr[0] for data in results]), *axes[1]
    for ax, published in zip(axes[0], long_runs.READ, strict=True):
        plots.plot_published(curves, published, ax, colors)
        ax.set(xlim=(0, longest))
    for data in results:
        one, color = data.isel(run=0), colors[float(data.lr[0])]
        for ax, name in zip(axes[0], long_runs.READ.values(), strict=True):
            ax.plot(one.step / epoch, one[name], color=color)
        style = {"color": color, "label": f"{float(one.lr):g}", "ms": 3}
        errors.plot(one.eval_step / epoch, one.test_error, "o-", **style)
        plots.plot_phase_diagram(data, phases, colors)
    axes[0, 0].set(title="training loss", ylabel="nats")
    axes[0, 1].set(title="norm of the scale-invariant weights")
    errors.set(title="test error (ours)", xlabel="epoch", xlim=(0, longest))
    plots.plain_numbers(phases).set(title="phase diagram (ours)")
    title = "learning rate; bands: published"
    figure.legend(*errors.get_legend_handles_labels(), title=title, ncols=4, **ABOVE)
    sns.despine(figure)
    return figure


def plot_laboratory(results: Sequence[xr.Dataset], levels: Mapping[str, float]) -> Figure:
    """Plot the effective learning rates of all runs against the step, a panel for each result.

    `levels`: words -> an effective learning rate to compare with, a dashed line.
    """
    width = {"figsize": (9, 3.4), "sharey": True, "squeeze": False}
    figure, axes = plt.subplots(1, len(results), **width, **CONSTRAINED)
    for ax, data in zip(axes[0], results, strict=True):
        colors = sns.color_palette(n_colors=data.sizes["run"])
        for color, one in zip(colors, data.transpose("run", ...).elr, strict=True):
            ax.semilogy(data.step, one, color=color, lw=1, label=f"seed {int(one.init_seed)}")
        for words, level in levels.items():
            ax.axhline(level, color="0.3", ls="--", lw=1, label=words)
        ax.set(title=f"learning rate {float(data.lr[0]):g}", xlabel=label("step"))
    axes[0, 0].set(ylabel=label("elr"))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=4, **ABOVE)
    sns.despine(figure)
    return figure


# ---------------------------------------------------------------- jumps


def plot_first_jump(one: pd.DataFrame, more: int = 60) -> Figure:
    """Plot norms of one setting under random gradients and under the adversary, up to its bound.

    `one`: a row of `bounds.random_settings`; `more`: steps shown beyond the bound. Dashed: the norm
    from which on a jump is possible.
    """
    rates = one["lr"].values, one["weight_decay"].values
    most = one["low"].values, one["high"].values, one["delta"].values
    bound = one["bound"].iloc[0]
    figure, ax = plt.subplots(figsize=(9, 3.6), **CONSTRAINED)
    made = {"random": bounds.between(one), "adversary": bounds.adversary(*rates, *most)}
    for name, choose in made.items():
        path = bounds.norm_paths(*rates, one["start"], choose, int(bound) + more)
        ax.plot(path, lw=1.5, label=f"gradients: {name}")
    level = theory.jump_norm(*rates, *most[1:])[0]
    ax.axhline(level, color="0.3", ls="--", lw=1, label="a jump is possible")
    ax.axvline(bound, color="0.6", lw=1, label="$T_{min}$")
    ax.set(xlabel="step", ylabel="norm", yscale="log")
    plots.plain_numbers(ax).legend()
    return figure


def plot_free_decay(passages: pd.DataFrame, runs: pd.DataFrame, line: pd.Series) -> Figure:
    """Plot the free-decay law against measured steps, and median periods against eta lambda.

    Parameters
    ----------
    passages : of periodic runs, with columns `steps`, `law`, `lr_wd`.
    runs : of all regimes, with columns `lr_wd`, `median_period`, `regime`.
    line : eta lambda -> a period of slope -1, drawn dashed.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.5), **CONSTRAINED)
    products = sorted(runs["lr_wd"].unique())
    plots.plot_prediction(passages, "steps", "law", "lr_wd", axes[0], products)
    axes[0].set(xlabel="measured [steps]", ylabel="free-decay law [steps]")
    plots.plot_against_lr_wd(runs, "median_period", "regime", axes[1])
    axes[1].plot(line.index, line, "--", color="0.3", lw=1, label="slope -1")
    axes[1].set(ylabel="median period [steps]")
    axes[1].legend()
    handles = axes[0].get_legend_handles_labels()
    place = {"loc": "outside upper left", "ncols": 6}
    figure.legend(*handles, title="learning rate × weight decay", **place)
    return figure


# ---------------------------------------------------------------- controls


def plot_cases(
    cases: Mapping[str, xr.Dataset], names: Sequence[str], in_rows: bool = False
) -> np.ndarray:
    """Plot quantities of several results, a column each with its title, or a row; return the axes.

    Panels of one quantity share their axis.
    """
    shape, size = (len(names), len(cases)), (9, 2.4 * len(names))
    if in_rows:
        shape, size = shape[::-1], (9, 1.4 * len(cases))
    shared = {"sharex": True, "sharey": "col" if in_rows else "row", "squeeze": False}
    axes = plt.subplots(*shape, figsize=size, **shared, **CONSTRAINED)[1]
    for (title, data), own in zip(cases.items(), axes if in_rows else axes.T, strict=True):
        plots.plot_stacked(data, names, axes=own)
        own[0].set_title(title, loc="left", fontsize=10)
    return axes


def plot_held(table: pd.DataFrame, words: Mapping[str, str], border: float) -> Figure:
    """Plot columns against the effective learning rate at which runs were held; a dashed border.

    `words`: column -> what stands on its axis; the last one is logarithmic.
    """
    figure, axes = plt.subplots(1, len(words), figsize=(8, 3.4), **CONSTRAINED)
    for ax, (name, text) in zip(axes, words.items(), strict=True):
        ax.plot(table["elr"], table[name], "o", color="C0", alpha=0.6)
        ax.axvline(border, ls="--", color="0.4", lw=1)
        ax.set(xscale="log", xlabel="effective learning rate, held", ylabel=text)
        plots.plain_numbers(ax.xaxis)
    axes[-1].set(yscale="log")
    return figure


def plot_epsilons(rates: Mapping[float, Sequence[float]], variances: tuple[float, float]) -> Figure:
    """Plot breaks per 10,000 steps against epsilon, a point per seed; grey: the `variances`."""
    figure, ax = plt.subplots(figsize=(6, 3.2), **CONSTRAINED)
    for epsilon, found in rates.items():
        ax.plot([max(epsilon, EPSILONS)] * len(found), found, "o", color="C0", alpha=0.6)
    ax.axvspan(*variances, color="0.85", zorder=0)
    ax.set(xscale="log", xlabel=f"epsilon (leftmost: {min(rates):g})")
    ax.set(ylabel="breaks per 10,000 steps")
    return figure


# ---------------------------------------------------------------- the map


def plot_map(
    regimes: xr.DataArray, table: pd.DataFrame, undecided: float, steps: int, at_once: float
) -> Figure:
    """Plot regimes over learning rate and weight decay, the mean number of breaks in each cell.

    Lines: where half a decay time, and where a free decay to the first break, takes all steps.
    Dotted: constant products.

    Parameters
    ----------
    regimes, table : of the same runs, by `regimes.classify_regime` and `regimes.summarize`.
    undecided : runs with a smaller margin are hatched.
    steps : of every run.
    at_once : learning rate at which the start is at the effective learning rate of first breaks.
    """
    lrs, wds = (np.unique(table[name]) for name in ("lr", "weight_decay"))
    figure, ax = plt.subplots(figsize=(9, 5.6), **CONSTRAINED)
    plots.plot_regimes(regimes, ax, undecided=table["margin"] < undecided)
    counts = table.groupby(["lr", "weight_decay"])["destabilizations"].mean()
    for (lr, wd), count in counts[counts > 0].items():
        ax.text(lr, wd, f"{count:.3g}", ha="center", va="center", zorder=5)
    line = np.geomspace(lrs[0] / 2, lrs[-1] * 2, 200)
    for lr_wd in (1e-3, 1e-2, 1e-1):
        ax.plot(line, lr_wd / line, ":", color="0.2", lw=1, zorder=3)
    style = {"color": "black", "lw": 1.8, "zorder": 4}
    decays = np.log(at_once / line) / 2  # lr wd T of a free decay
    ax.plot(line, 0.5 / steps / line, "-", label="lr wd T = 1/2", **style)
    slow = np.where(decays > 0, decays, np.nan) / steps / line
    ax.plot(line, slow, "--", label="a free decay to the first break", **style)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    plots.regime_legend(figure, regimes)
    ax.set_xticks(lrs, [f"{lr:g}" for lr in lrs])
    ax.set_yticks(wds, [f"{wd:.3g}" for wd in wds])
    ax.minorticks_off()
    return figure


def plot_collapse(
    regimes: xr.DataArray, table: pd.DataFrame, words: Mapping[str, str], undecided: float
) -> Figure:
    """Plot the map sheared to eta lambda, and three columns against it, coloured by learning rate.

    `words`: column -> what stands on its axis; `regimes`, `table`, `undecided` as `plot_map`.
    """
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.2), sharex=True, **CONSTRAINED)
    sheared = regimes.assign_coords(lr_wd=("run", table["lr_wd"]))
    plots.plot_regimes(sheared, axes[0, 0], "lr_wd", undecided=table["margin"] < undecided)
    colored = table.rename(columns={"lr": "learning rate"})
    for ax, (name, text) in zip(axes.flat[1:], words.items(), strict=True):
        plots.plot_against_lr_wd(colored, name, "learning rate", ax)
        ax.set(ylabel=text)
    colors = axes[1, 1].get_legend_handles_labels()
    figure.legend(*colors, title="learning rate", loc="outside right lower")
    plots.regime_legend(figure, regimes)
    return figure


def plot_states(
    broken: pd.DataFrame, watched: pd.DataFrame, kinds: Sequence[str], low: float
) -> Figure:
    """Plot steps to a `low` loss, and the loss in the end, by the held effective learning rate.

    Rows of `levels.watch`; `kinds`: the states, in the order of the legend.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), **CONSTRAINED)
    plots.plot_groups(broken, "elr", "wait", "state", axes[0], kinds)
    plots.plot_groups(watched, "elr", "late_loss", "state", axes[1], kinds)
    axes[0].set(ylabel=f"steps to a loss below {low:g}")
    axes[1].set(ylabel="loss in the end")
    figure.legend(*axes[1].get_legend_handles_labels(), ncols=len(kinds), **ABOVE)
    return figure


# ---------------------------------------------------------------- long runs


def plot_places(places: Mapping[int, np.ndarray], length: int) -> Figure:
    """Plot the shares of breaks by steps after the last batch of an epoch; dashed: by chance.

    `places`: pictures in the last batch -> `long_runs.steps_after` of the breaks; `length`: steps
    of an epoch.
    """
    shape = {"figsize": (9, 2.4), "sharey": True} | CONSTRAINED
    figure, axes = plt.subplots(1, len(places), **shape)
    for ax, (size, place) in zip(axes, places.items(), strict=True):
        counts = np.bincount(place, minlength=length)
        ax.bar(range(length), counts / max(1, len(place)), color="C0")
        ax.axhline(1 / length, color="0.4", ls="--", lw=1)
        ax.set(title=f"last batch: {size}", xlabel="steps after it")
    axes[0].set_ylabel("share of breaks")
    return figure
