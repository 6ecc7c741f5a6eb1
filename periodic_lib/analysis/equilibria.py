"""Runs against the equilibrium presumption: its formulas, its forecast, what they leave out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib import theory
from periodic_lib.analysis import words
from periodic_lib.analysis.periods import late
from periodic_lib.analysis.regimes import summarize

if TYPE_CHECKING:
    import torch

    from periodic_lib.config import Run, Setup
    from periodic_lib.engine.stack import Stack


def formulas(
    data: xr.Dataset, gradient: xr.DataArray, weights: int | None = None
) -> tuple[xr.DataArray, xr.DataArray]:
    """Return norm and angular update in equilibrium of every run, for effective gradient norms.

    Parameters
    ----------
    data : results with coordinates lr, weight_decay and momentum, or beta1.
    gradient : effective gradient norm, (run,) or (run, step); AdamW's formulas do not use it.
    weights : number of scale-invariant weights of runs with AdamW; None: SGD.

    Sources: `theory.equilibrium_norm`, `theory.equilibrium_norm_adamw`.
    """
    at = data.lr, data.weight_decay
    if weights is not None:
        norm = xr.apply_ufunc(theory.equilibrium_norm_adamw, *at, weights, data.beta1)
        return norm, xr.apply_ufunc(theory.equilibrium_angle_adamw, *at, data.beta1)
    norm = xr.apply_ufunc(theory.equilibrium_norm, *at, gradient, data.momentum)
    return norm, xr.apply_ufunc(theory.equilibrium_angle, *at, data.momentum)


def rms(values: xr.DataArray) -> xr.DataArray:
    """Return the root mean square over steps.

    >>> float(rms(xr.DataArray([1.0, 7.0], dims="step")))
    5.0
    """
    return np.sqrt(np.square(values.astype(float)).mean("step"))


def epoch_gradient(data: xr.Dataset) -> xr.DataArray:
    """Return the root mean square effective gradient norm of the epoch around each step."""
    square = np.square(data.eff_grad_norm.astype(float))
    window = {"step": data.attrs["steps_per_epoch"]}
    return np.sqrt(square.rolling(window, center=True, min_periods=1).mean())


def against_formulas(data: xr.Dataset, weights: int | None = None) -> pd.DataFrame:
    r"""Return what every run did in the second half of its record, over what the formulas give.

    With G the root mean square of the effective gradient norm there:

    - `norm`: mean norm over rho* = (eta G^2 / (lambda (2 - eta lambda)))^(1/4);
    - `elr`: mean effective learning rate over eta / rho*^2;
    - `angle`, `typical`: root mean square and median of the angular update over alpha*. The first
      is near 1 in every stretch that ends at the norm at which it began;
    - `variance`: relative variance s^2 of rho^2;
    - `now` (SGD): factor above 1 between the norm and the formula's for the gradients of the epoch
      around each step, the median over steps;
    - `next` (SGD): `next_stretch`.

    `weights`: as `formulas`.
    """
    half = late(data).astype(float)
    rho, square = half.weight_norm, np.square(half.weight_norm)
    norm, angle = formulas(half, rms(half.eff_grad_norm), weights)
    found = {"norm": rho.mean("step") / norm}
    found["elr"] = half.elr.mean("step") / theory.effective_lr(half.lr, norm)
    found["angle"] = rms(half.angular_update) / angle
    found["typical"] = half.angular_update.median("step") / angle
    found["variance"] = square.var("step") / np.square(square.mean("step"))
    if weights is None:
        moment = formulas(half, epoch_gradient(half))[0]
        found["now"] = np.exp(np.abs(np.log(rho / moment)).median("step"))
        found["next"] = next_stretch(data)
    return pd.DataFrame({name: np.asarray(one) for name, one in found.items()}, data.run.values)


def run_table(families: Mapping[str, xr.Dataset], weights: int) -> pd.DataFrame:
    """Return the run tables of results, with `against_formulas`, as one.

    Added are `family`, the name of the result, `momentum`, and `setting`, in words. `weights`:
    number of scale-invariant weights, for results with AdamW.
    """
    tables = []
    for family, data in families.items():
        adam = json.loads(data.attrs.get("setup", "{}")).get("optimizer", "sgd") != "sgd"
        ratios = against_formulas(data, weights if adam else None)
        table = summarize(data).join(ratios).assign(family=family, momentum=data.momentum.values)
        rows = zip(data.lr.values, data.momentum.values, data.beta1.values, strict=True)
        table["setting"] = [_setting(*row, adam) + family for row in rows]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _setting(lr: float, momentum: float, beta1: float, adam: bool) -> str:
    more = f", momentum {momentum:g}" if momentum else ""
    return f"lr {lr:g}" + (f", β {beta1:g}" if adam else more)


def near_one(table: pd.DataFrame, columns: Sequence[str], within: float) -> pd.Series:
    """Return which rows are within `within` of 1 in all of the columns."""
    return ((table[[*columns]] - 1).abs() <= within).all(axis=1)


def by_run(table: pd.DataFrame, met: Sequence[bool]) -> dict[str, bool]:
    """Return an outcome for each run of a table with `setting` and `init_seed`, by its words."""
    return words.outcomes(met, "{setting}, seed {init_seed}", table)


def next_stretch(data: xr.Dataset) -> np.ndarray:
    """Return the norm that the third quarter's gradients forecast over the fourth's mean, (runs,).

    SGD. The forecast is the formula's norm for the root mean square effective gradient norm of the
    third quarter of the record.

    >>> at = {"lr": 0.1, "weight_decay": 0.01, "momentum": 0.0}
    >>> rho = float(theory.equilibrium_norm(0.1, 0.01, 2.0))
    >>> rows = {"weight_norm": [[rho] * 8], "eff_grad_norm": [[2.0] * 8]}
    >>> data = xr.Dataset({name: (("run", "step"), values) for name, values in rows.items()})
    >>> next_stretch(data.assign_coords({key: ("run", [x]) for key, x in at.items()})).tolist()
    [1.0]
    """
    steps = data.sizes["step"]
    third = data.isel(step=slice(steps // 2, 3 * steps // 4))
    fourth = data.isel(step=slice(3 * steps // 4, None))
    forecast = formulas(data, rms(third.eff_grad_norm))[0]
    return (forecast / fourth.weight_norm.astype(float).mean("step")).values


def remembered_norm(one: xr.Dataset) -> np.ndarray:
    r"""Return the norm that the running average of squared gradients gives, (steps,).

    rho^4 -> a^4 rho^4 + 2 a^2 eta^2 g~^2, from the first norm on: the motion of the norm without
    its last term, eta^4 g~^4 / rho^4. `one`: a run of SGD without momentum.
    """
    lr, wd = float(one.lr), float(one.weight_decay)
    a, power, norms = 1 - lr * wd, float(one.weight_norm[0]) ** 4, []
    for g in one.eff_grad_norm.values.astype(float):
        norms.append(power**0.25)
        power = a**4 * power + 2 * (a * lr * g) ** 2
    return np.array(norms)


def running_error(one: xr.Dataset) -> float:
    """Return the largest relative error of `remembered_norm` in the second half of a run."""
    error = np.abs(remembered_norm(one) / one.weight_norm.values - 1)
    return float(error[len(error) // 2 :].max())


def free_return(factor: float) -> float:
    r"""Return in which time the excess of rho^4 falls to 1/e if there is no gradient at all.

    In units of 1 / (4 |ln a|), the time of the presumption, from `factor` times the norm in
    equilibrium: ln(f^4 / (1 + (f^4 - 1) / e)); nan from below, where decay leads away.

    >>> round(free_return(2), 3), round(free_return(4), 3), free_return(0.5)
    (0.898, 0.993, nan)
    """
    if factor <= 1:
        return float("nan")
    return float(np.log(factor**4 / (1 + (factor**4 - 1) / np.e)))


# ---------------------------------------------------------------- trainings step by step


def correlation_of_steps(
    setup: Setup,
    runs: Sequence[Run],
    steps: int,
    draw: Callable[[Stack], torch.Tensor] | None = None,
) -> pd.DataFrame:
    r"""Train with momentum, and return how far the norm's law needs the correlation of gradients.

    Over the steps from 0.4 `steps` on, with velocity m_t before a step and gradient g_t:
    c = 2 mu <g m> / <g^2>, the momentum law rho^2 = eta <g^2> (1 + c) / (lambda (1 - mu)
    (2 - eta lambda / (1 + mu))), and 1 - cos(alpha) = eta lambda / (1 + mu). For runs of one
    learning rate and weight decay.

    Parameters
    ----------
    draw : returns the examples of a step, (runs, batch), of a stack; None: every one once an epoch.

    Returns
    -------
    table with `momentum`, `init_seed`, `setting`, `c`, `plain` (mean rho^2 over the law with c =
    0), `corrected`
    (over the law with c), `apart` (mean cosine distance of successive weights over its law).
    """
    import torch

    from periodic_lib.engine.stack import Stack

    stack = Stack(setup, runs)
    order = stack.batch_order()
    lr, wd = runs[0].lr, runs[0].weight_decay
    mu = torch.tensor([[run.momentum] for run in runs])
    before, kept = torch.zeros(()), []
    for step in range(steps):
        w = stack.invariant.clone()
        index = draw(stack) if draw else order.next()
        angle = stack.step(index)[0][3].double()
        velocity = (w - stack.invariant) / lr
        g = velocity - mu * before - wd * w
        if step >= int(0.4 * steps):
            dots = [(x * y).double().sum(1) for x, y in ((g, g), (g, before), (w, w))]
            kept.append(torch.stack([*dots, 1 - angle.cos()]))
        before = velocity
    gg, gm, ww, apart = torch.stack(kept).mean(0).numpy()
    share = pd.Series([run.momentum for run in runs])
    table = pd.DataFrame({"momentum": share, "init_seed": [run.init_seed for run in runs]})
    table["setting"] = [f"momentum {value:g}" for value in share]
    law = lr * gg / (wd * (1 - share) * (2 - lr * wd / (1 + share)))
    table["c"], table["plain"] = 2 * share * gm / gg, ww / law
    table["corrected"] = table.plain / (1 + table.c)
    return table.assign(apart=apart / (lr * wd / (1 + share)))


def after_scaling(
    setup: Setup, runs: Sequence[Run], factors: Sequence[float], settle: int, follow: int
) -> tuple[np.ndarray, np.ndarray]:
    """Train, multiply all weights by a factor, train on; return norm and effective gradient norm.

    The function of the network does not change by the factor. Both arrays have the shape (follow,
    factors, runs), from the step after the multiplication on.
    """
    import torch

    from periodic_lib.engine.stack import Stack

    stack = Stack(setup, list(runs) * len(factors))
    order, rows = stack.batch_order(), []
    for step in range(settle + follow):
        if step == settle:
            scales = torch.tensor(factors).repeat_interleave(len(runs))
            stack.invariant.mul_(scales[:, None])
        rows.append(stack.step(order.next())[0][1:3].numpy())
    shape = follow, 2, len(factors), len(runs)  # 2: norm, gradient norm
    norm, gradient = np.moveaxis(np.reshape(rows[settle:], shape), 1, 0).astype(float)
    return norm, norm * gradient
