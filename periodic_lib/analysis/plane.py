r"""The plane of eta lambda and noise that cannot be learned: which regime where, and its border.

One edge and two gradients. A minimum of sharpness h holds training up to the effective learning
rate c 2/h; the noise of mini-batches makes c less than 1. With the gradient G at the minimum the
balance is at sqrt(2 eta lambda) / G: below the edge training rests there (*cold* equilibrium). Far
from any minimum, with the gradient G_far, the balance is at sqrt(2 eta lambda) / G_far: above the
edge no minimum can catch training (*hot* equilibrium). Periods lie between, where
chi(G_far) < c < chi(G) with chi = sqrt(2 eta lambda) h / (2 G).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib import theory
from periodic_lib.analysis import budgets
from periodic_lib.analysis.equilibria import rms
from periodic_lib.analysis.periods import balance_ratio, count_by_run, find_destabilizations, late
from periodic_lib.analysis.regimes import BUDGET_BORDER, UNDECIDED, window_budget
from periodic_lib.theory.toys import SphereToy

ROUNDED = 16  # units in the last place; rounding moved ln ELR by up to 12 in 4,000 steps


def judged(data: xr.Dataset, **columns: object) -> pd.DataFrame:
    """Return what the plane shows of every run of a result, with `columns` beside it.

    `budget`, the window budget; `breaks`, their number; `swing`, the range of ln rho^2, `loss`, its
    median, and `gradient`, the root mean square of the effective gradient norm, all over the second
    half of the record; `lr_wd`, `seed`.
    """
    second = late(data)
    level = 2 * np.log(second.weight_norm)
    found = {"budget": window_budget(data).values}
    found["breaks"] = count_by_run(find_destabilizations(data), data).values
    found["swing"] = (level.max("step") - level.min("step")).values
    found["loss"] = second.train_loss.median("step").values
    found["gradient"] = rms(second.eff_grad_norm).values
    found["lr_wd"] = (data.lr * data.weight_decay).values.round(12)
    return pd.DataFrame(found | {"seed": data.init_seed.values} | columns)


def about_the_line(data: xr.Dataset, low: float = 0.5, high: float = 2.0) -> pd.DataFrame:
    """Return where the steps of the second half are, and who pays for the norm's growth, by run.

    `below`, `on`, `above`: shares of the steps with a balance ratio below `low`, between, above
    `high`. `top`: share of the growth, the sum of ln(1 + tan^2 alpha), that the most violent 1 % of
    the steps pay.
    """
    second = late(data)
    ratio = balance_ratio(second)
    growth = np.sort(budgets.growth(second).values)
    few = max(1, growth.shape[1] // 100)
    found = {"below": (ratio < low).mean("step"), "above": (ratio > high).mean("step")}
    table = pd.DataFrame(found, data.run.values)
    table["on"] = 1 - table.below - table.above
    return table.assign(top=growth[:, -few:].sum(1) / growth.sum(1))


def moves_as_it_must(data: xr.Dataset, close: float) -> np.ndarray:
    """Return of every step whose balance ratio r is not within `close` of 1 whether the effective
    learning rate grows exactly if the ratio is below 1: an identity of SGD without momentum.

    Steps whose change, ln ELR by -4 eta lambda (r - 1), is below `ROUNDED` units in the last place
    of the recorded norm say nothing, and are left out, too.
    """
    ratio = balance_ratio(data).values[:, :-1]
    grows = np.diff(np.log(data.elr.values.astype(float)), axis=1) > 0
    lost = ROUNDED * np.finfo(data.weight_norm.dtype).eps / (4 * data.lr * data.weight_decay)
    return (grows == (ratio < 1))[np.abs(ratio - 1) > np.maximum(close, lost.values[:, None])]


def nearest(data: xr.Dataset, product: float) -> tuple[float, xr.Dataset]:
    """Return the first run whose eta lambda is nearest to `product`, by its logarithm, and that.

    As (eta lambda, a result with one run).

    >>> at = {"lr": ("run", [1.0, 1.0, 10.0]), "weight_decay": ("run", [0.1, 0.02, 0.1])}
    >>> value, one = nearest(xr.Dataset(coords=at), 0.03)
    >>> value, one.lr.values.tolist()
    (0.02, [1.0])
    """
    products = (data.lr * data.weight_decay).values
    near = np.abs(np.log(products / product)).argmin()
    return float(products[near]), data.isel(run=[near])


def cold_sharpness(data: xr.Dataset) -> float:
    """Return the last measured sharpness of the runs of smallest eta lambda, median over seeds."""
    product = data.lr * data.weight_decay
    coldest = (product == product.min()).values
    return float(data.sharpness.isel(run=coldest, curvature_step=-1).median())


def toy_plane(products, flipped, seeds, horizon: int = 50_000) -> pd.DataFrame:
    r"""Return `judged` runs of toy B on a grid of eta lambda, part of flipped labels, and seed.

    30 / eta lambda steps each, 60 e-foldings of the squared norm, but at most `horizon`. Beside the
    columns of `judged`, `noise` is the part flipped, and `cold` and `hot` are chi at the minimum
    (`SphereToy.minimum`) and with the gradient `far_gradient`.
    """
    noise, seed = np.repeat(flipped, len(seeds)), np.tile(seeds, len(flipped))
    at = SphereToy(flipped=noise, seed=seed)
    minimum, far, tables = at.minimum(), far_gradient(at), []
    for product in products:
        toy = SphereToy(product, flipped=noise, seed=seed)
        table = judged(toy.run(int(min(30 / product, horizon))), noise=noise)
        chi = (
            theory.balance_to_edge(1.0, product, gradient, minimum.sharpness.values)
            for gradient in (minimum.eff_grad_norm.values, far)
        )
        tables.append(table.assign(**dict(zip(("cold", "hot"), chi, strict=True))))
    return pd.concat(tables, ignore_index=True)


def far_gradient(toy: SphereToy, directions: int = 400) -> np.ndarray:
    r"""Return the root mean square effective gradient norm of toy B over all directions, (runs,).

    E |g~|^2 over unit vectors u and batches of B points drawn with replacement,
    (1 - 1/B) |mean g_i|^2 + mean |g_i|^2 / B, g_i = -gamma sigma(-gamma <x_i, u>) (x_i - u <u,
    x_i>).
    """
    k = np.arange(directions) + 0.5  # even on the sphere: a spiral
    height, azimuth = 1 - 2 * k / directions, np.pi * (1 + 5**0.5) * k
    radius = np.sqrt(1 - height**2)
    u = np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), height], axis=1)
    column, found = toy._columns, []
    for x, gain, batch in zip(toy.x, column["gain"], column["batch"], strict=True):
        score = u @ x.T  # (directions, points)
        miss = gain / (1 + np.exp(gain * score))
        single = np.square(miss) * (1 - np.square(score))
        mean = (miss @ x - u * (miss * score).mean(1, keepdims=True) * x.shape[0]) / len(x)
        square = (1 - 1 / batch) * np.square(mean).sum(1) + single.mean(1) / batch
        found.append(np.sqrt(square.mean()))
    return np.array(found)


def with_chi(table: pd.DataFrame, sharpness: pd.Series) -> pd.DataFrame:
    r"""Return `judged` runs of a network with `cold` and `hot`, chi of each noise and eta lambda.

    The gradients are those of the runs at the smallest (cold) and the largest (hot) eta lambda of
    the same noise, medians over seeds; these runs are then left out. `sharpness`: at the minimum,
    noise -> h.
    """
    ends = table.lr_wd.min(), table.lr_wd.max()
    inner = table[~table.lr_wd.isin(ends)].copy()
    for name, end in zip(("cold", "hot"), ends, strict=True):
        gradient = table[table.lr_wd == end].groupby("noise").gradient.median()
        at = inner.noise.map(gradient), inner.noise.map(sharpness)
        inner[name] = theory.balance_to_edge(1.0, inner.lr_wd, *at)
    return inner


def fields(table: pd.DataFrame, edge: float) -> pd.DataFrame:
    """Return a row for each noise and eta lambda: what is said of it and what is found.

    Columns `budget`, `cold`, `hot`, medians; `below`, `cold` is below `edge`; `said`, equilibrium
    by chi: that, or `hot` is above the edge; `held`, the budget is at least the border; `decided`,
    it is not within a tenth of it.
    """
    rows = table.groupby(["noise", "lr_wd"])[["budget", "cold", "hot"]].median().reset_index()
    rows["below"] = rows.cold < edge
    rows["said"] = rows.below | (rows.hot > edge)
    rows["held"] = rows.budget >= BUDGET_BORDER
    rows["decided"] = np.abs(rows.budget / BUDGET_BORDER - 1) >= UNDECIDED
    return rows


def best_constant(values, held, either: bool = True) -> int:
    """Return how many outcomes the best single threshold on `values`, in hindsight, tells right.

    Held above it or, if `either` direction will do, below; all or none of them held, too.

    >>> best_constant([1, 2, 3, 4], [True, True, False, True])
    3
    """
    values, held = np.asarray(values), np.asarray(held, bool)
    above = [((values > cut) == held).sum() for cut in [-np.inf, *np.unique(values)]]
    return int(max(*above, len(held) - min(above) if either else 0))


def border_scores(rows: pd.DataFrame) -> dict[str, int]:
    """Return of the decided `fields` their number and how many are told right.

    `right` by chi, `below` by its cold border alone, `cold` by the best cold border in hindsight;
    `lr_wd` and `noise` by the best threshold on one of them in hindsight, `always` by the more
    frequent outcome.
    """
    rows = rows[rows.decided]
    found = {"fields": len(rows), "right": int((rows.said == rows.held).sum())}
    found["below"] = int((rows.below == rows.held).sum())
    found["cold"] = best_constant(-rows.cold, rows.held, either=False)
    for name in ("lr_wd", "noise"):
        found[name] = best_constant(rows[name], rows.held)
    return found | {"always": int(max(rows.held.sum(), (~rows.held).sum()))}


def border_outcomes(score: Mapping[str, int], share: float) -> tuple[dict[str, bool], str]:
    """Return what `border_scores` say of a border: the outcomes of its rule, and the numbers."""
    right, number = score["right"], score["fields"]
    met = {f"at least {share:.0%} of the fields": right >= share * number}
    words = {"lr_wd": "the best border at one lr × wd", "noise": "the best border at one noise"}
    met |= {f"more than by {said}": right > score[name] for name, said in words.items()}
    nulls = ", ".join(f"by {said} {score[name]}" for name, said in words.items())
    return met, f"{right} of {number} decided fields; {nulls}"


def border(rows: pd.DataFrame, edge: float, name: str = "cold") -> pd.Series:
    r"""Return eta lambda at which chi reaches the edge, for each noise: chi grows as its root.

    `rows`: `fields`; `name` "hot" for the upper border.

    >>> rows = pd.DataFrame({"noise": [0.1], "lr_wd": [0.01], "cold": [0.6]})
    >>> border(rows, edge=0.3).round(6).to_dict()
    {0.1: 0.0025}
    """
    square = rows.lr_wd * np.square(edge / rows[name])
    return square.groupby(rows.noise).median()


def borders(rows: pd.DataFrame, edge: float) -> dict[str, pd.Series]:
    """Return both borders (`border`), by the words of a legend.

    >>> rows = pd.DataFrame({"noise": [0.1], "lr_wd": [0.01], "cold": [0.6], "hot": [0.3]})
    >>> {name: found.round(6).tolist() for name, found in borders(rows, edge=0.3).items()}
    {'cold border': [0.0025], 'hot border': [0.01]}
    """
    return {f"{name} border": border(rows, edge, name) for name in ("cold", "hot")}
