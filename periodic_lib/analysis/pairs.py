r"""Scale and shift of a normalization: a scale-invariant pair, where another one follows.

Batch normalization with a scale gamma and a shift beta, ReLU, a linear layer or a convolution
without bias, batch normalization: multiply gamma and beta by c > 0, and everything up to the second
normalization is multiplied by c; the loss stays as it is. So the pair (gamma, beta) of the first
moves as scale-invariant weights do: rho'^2 = a^2 rho^2 + eta^2 |g|^2 with plain SGD,
a = 1 - eta lambda. The last pair, which the output layer reads, is none. No torch at import.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib.analysis.budgets import decay
from periodic_lib.analysis.periods import find_destabilizations
from periodic_lib.config import Run, Setup

LOSS, NORM = 0, 1  # rows of `Stack.step`


def follow_pairs(setup: Setup, runs: Sequence[Run]) -> xr.Dataset:
    """Train a perceptron or a ConvNet, everything trained; return the norms of every pair.

    Parameters
    ----------
    setup : with `train_others`; plain SGD.
    runs : at a constant learning rate, without momentum.

    Returns
    -------
    data set with `train_loss`, `weight_norm` and `elr` of the scale-invariant weights (run, step);
    `pair_norm`, `pair_grad_norm` and `pair_cosine`, between gradient and pair (run, step, pair), of
    the parameters before a step, the gradient without weight decay. The last pair is the one that
    the output layer reads. Coordinates of `run` as in a result; `attrs["seconds"]` is its time.
    """
    import time

    import torch

    from periodic_lib.engine.stack import Stack

    began, stack = time.perf_counter(), Stack(setup, list(runs))
    pairs, order, rows = _places(stack), stack.batch_order(), []
    rates = [[run.lr, run.weight_decay] for run in runs]
    lr, wd = torch.tensor(rates, dtype=stack.weights.dtype).split(1, dim=1)  # (runs, 1) each
    for _ in range(setup.steps):
        before = stack.weights.detach().clone()
        step = stack.step(order.next())[0]
        gradient = ((1 - lr * wd) * before - stack.weights.detach()) / lr
        parts = [(before[:, place], gradient[:, place]) for place in pairs]
        sizes = [(w.norm(dim=1), g.norm(dim=1), (w * g).sum(dim=1)) for w, g in parts]
        rows.append([step[LOSS], step[NORM], *[value for size in sizes for value in size]])
    numbers = [[value.numpy() for value in row] for row in rows]
    table = np.array(numbers, float)  # (step, value, run)
    return _as_results(table.transpose(2, 0, 1), runs, time.perf_counter() - began)


def _places(stack) -> list[slice]:
    """Return where each pair is in a stack's flat weights: the scale, and the shift after it."""
    ends = np.cumsum(stack.sizes)
    parts = zip(stack.trained, stack.sizes, ends, strict=True)
    at = {name: (end - size, end) for name, size, end in parts}
    scales = [name for name in at if name.endswith(".scale")]
    return [slice(at[name][0], at[name.replace(".scale", ".shift")][1]) for name in scales]


def _as_results(table: np.ndarray, runs: Sequence[Run], seconds: float) -> xr.Dataset:
    """Return (run, step, value) as a data set; values: loss, norm, then three of each pair."""
    loss, norm, rest = table[..., LOSS], table[..., NORM], table[..., NORM + 1 :]
    pair_norm, gradient, inner = np.moveaxis(rest.reshape(*loss.shape, -1, 3), -1, 0)
    names = ("lr", "weight_decay", "momentum", "init_seed")
    places = {name: ("run", [getattr(run, name) for run in runs]) for name in names}
    lr = np.array([run.lr for run in runs])
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = inner / (pair_norm * gradient)
    of_steps = {"train_loss": loss, "weight_norm": norm, "elr": lr[:, None] / norm**2}
    of_pairs = {"pair_norm": pair_norm, "pair_grad_norm": gradient, "pair_cosine": cosine}
    variables = {name: (("run", "step"), values) for name, values in of_steps.items()}
    variables |= {name: (("run", "step", "pair"), values) for name, values in of_pairs.items()}
    axes = {"run": np.arange(len(runs)), "step": np.arange(loss.shape[1])}
    axes["pair"] = np.arange(1, pair_norm.shape[-1] + 1)
    return xr.Dataset(variables, axes | places, {"seconds": seconds})


def radial_share(results: xr.Dataset) -> xr.DataArray:
    r"""Return how much of a pair's gradient points along it, (run, pair), 0 where it is invariant.

    sqrt(sum (g.p)^2 / sum |g|^2 |p|^2) over the steps: large gradients count, rounding does not.

    >>> data = xr.Dataset({"pair_norm": (("run", "step", "pair"), np.ones((1, 2, 1)))})
    >>> data["pair_grad_norm"] = data.pair_norm
    >>> data["pair_cosine"] = ("run", "step", "pair"), [[[0.6], [0.0]]]
    >>> round(float(radial_share(data)[0, 0]), 6)
    0.424264
    """
    size = (results.pair_norm * results.pair_grad_norm) ** 2
    along = (size * results.pair_cosine.fillna(0) ** 2).sum("step")
    return np.sqrt(along / size.sum("step"))


def pair_breaks(results: xr.Dataset) -> pd.DataFrame:
    r"""Return what every pair does at each break of the weight norm, one row per run, pair, break.

    `rise`: of ln rho_p^2 in the break; `fall`: of ln rho_p^2 from its end to the next break (nan
    after the last); `share`: of what weight decay alone takes in those steps,
    -2 ln(1 - eta lambda) a step.

    >>> t, zero = np.arange(300) % 100, ("run", [0.0])
    >>> saw = (("run", "step"), [np.exp(-0.01 * t)])
    >>> data = xr.Dataset({"weight_norm": saw}, {"step": np.arange(300), "run": [0]})
    >>> data["pair_norm"] = ("run", "step", "pair"), np.exp(-0.005 * t)[None, :, None]
    >>> data = data.assign_coords(pair=[1], lr=("run", [1 - np.exp(-0.01)]))
    >>> rows = pair_breaks(data.assign_coords(weight_decay=("run", [1.0]), init_seed=zero))
    >>> rows.rise.round(2).tolist(), rows.share.round(2).tolist()
    ([0.99, 0.99], [0.5, nan])
    """
    breaks, parts = find_destabilizations(results), []
    for run, mine in breaks.groupby("run"):
        one = results.sel(run=run)
        level = 2 * np.log(one.pair_norm)
        rate = float(decay(one))
        start, end = mine["start"].to_numpy(), mine["end"].to_numpy()
        after = np.append(start[1:], end[-1])  # of the last nothing is known
        low, high, next_low = (level.sel(step=at).values for at in (start, end, after))
        steps = np.where(np.arange(len(end)) < len(end) - 1, after - end, np.nan)[:, None]
        shape = {"rise": high - low, "fall": np.where(steps > 0, high - next_low, np.nan)}
        columns = {name: values.ravel() for name, values in shape.items()}
        columns["share"] = (shape["fall"] / (rate * steps)).ravel()
        places = {"run": run, "seed": int(one.init_seed)}
        places["pair"] = np.tile(results.pair.values, len(mine))
        parts.append(pd.DataFrame(places | columns))
    empty = pd.DataFrame(columns=["run", "seed", "pair", "rise", "fall", "share"])
    return pd.concat(parts, ignore_index=True) if parts else empty
