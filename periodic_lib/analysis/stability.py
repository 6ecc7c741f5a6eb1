r"""Where a full-batch orbit sits against the edge of stability, and the shape of the loss there.

The orbit: product Phi h / 2 along a run (`breaks.full_edge_share`), and how far the effective
learning rate swings. The shape, at a kept network w of unit norm with the top eigenvector u of the
Hessian on the sphere: the loss along the great circle cos(phi) w + sin(phi) u, and what a pair of
steps that flip from side to side does to the sharpness (Damian et al. 2023, arXiv 2209.15594).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib import theory
from periodic_lib.analysis.breaks import full_edge_share
from periodic_lib.analysis.periods import find_destabilizations, late
from periodic_lib.project import ConfigError

if TYPE_CHECKING:
    import torch

DEGREE = 6  # of the polynomial through a scan
POINTS = 41  # of a scan
MISFIT = 1e-3  # of that polynomial, over the rise of the loss
HALVINGS = 8
TOLERANCE = 1e-3  # relative, of an eigenvalue


def swing(results: xr.Dataset) -> xr.DataArray:
    """Return, of every run, the largest over the smallest ELR of the second half, (run,).

    >>> data = xr.Dataset({"elr": (("run", "step"), [[9.0, 9.0, 1.0, 3.0]])}, {"step": range(4)})
    >>> swing(data).values.tolist()
    [3.0]
    """
    elr = late(results).elr
    return (elr.max("step") / elr.min("step")).rename("swing")


def residence(results: xr.Dataset) -> pd.DataFrame:
    """Return where every run spends the second half of its record, one row for each.

    Returns
    -------
    table with `weight_decay`, `init_seed`; `product`, the median of Phi h / 2, and its `low` and
    `high`, 10 and 90 % of the measurements; `peak`, the largest; `swing`, of the effective learning
    rate; `breaks` that start in it; `sharpened`, the median sharpness of the last quarter over that
    of the second; `error`, the training error at the end.
    """
    share, half = full_edge_share(results), int(results.step[results.sizes["step"] // 2])
    second = share.sel(curvature_step=slice(half, None))
    quarter = share.sizes["curvature_step"] // 4
    h = results.sharpness
    early, last = (
        h.isel(curvature_step=s) for s in (slice(quarter, 2 * quarter), slice(-quarter, None))
    )
    found = find_destabilizations(results)
    starts = (
        found[found.start >= half].groupby("run").size().reindex(results.run.values, fill_value=0)
    )
    quantiles = {"low": 0.1, "product": 0.5, "high": 0.9, "peak": 1.0}
    columns = {name: second.quantile(q, "curvature_step").values for name, q in quantiles.items()}
    return pd.DataFrame(
        {
            "weight_decay": results.weight_decay.values,
            "init_seed": results.init_seed.values,
            **columns,
            "swing": swing(results).values,
            "breaks": starts.to_numpy(),
            "sharpened": (last.median("curvature_step") / early.median("curvature_step")).values,
            "error": results.train_error.isel(eval_step=-1).values,
        }
    )


# ---------------------------------------------------------------- a place on the sphere


@dataclass(frozen=True)
class Place:
    """A point of the unit sphere, the loss there, and its sharpest direction.

    `loss`: a function of a vector (n,), scale-invariant; `point` and `direction`, unit vectors
    (n,) at right angles; `sharpness`, the largest eigenvalue of the Hessian on the sphere.
    """

    loss: Callable[[torch.Tensor], torch.Tensor]
    point: torch.Tensor
    direction: torch.Tensor
    sharpness: float

    def at(self, angle: float) -> torch.Tensor:
        """Return the point at this angle along the great circle through `direction`."""
        return np.cos(angle) * self.point + np.sin(angle) * self.direction


def place(loss: Callable[[torch.Tensor], torch.Tensor], point: torch.Tensor) -> Place:
    """Return the place at `point` (n,), scaled to unit norm.

    Lanczos iteration (`scipy.sparse.linalg.eigsh`) on Hessian-vector products, both sides projected
    off the point: of a scale-invariant loss this is the Hessian on the sphere.
    """
    import torch
    from scipy.sparse.linalg import LinearOperator, eigsh

    w = (point / point.norm()).detach()
    _, pull_back = torch.func.vjp(torch.func.grad(loss), w)  # the Hessian is symmetric

    def across(vector: torch.Tensor) -> torch.Tensor:
        return vector - (w @ vector) * w

    def times(vector: np.ndarray) -> np.ndarray:
        v = across(torch.as_tensor(vector.reshape(-1), dtype=w.dtype))
        return across(pull_back(v)[0].detach()).numpy().astype(float)

    size = w.numel()
    start = np.random.default_rng(0).standard_normal(size)
    operator = LinearOperator((size, size), matvec=times, dtype=np.float64)
    top, vectors = eigsh(operator, k=1, which="LA", tol=TOLERANCE, v0=start)
    u = across(torch.as_tensor(vectors[:, 0], dtype=w.dtype))
    return Place(loss, w, u / u.norm(), float(top[0]))


def kept_place(results: xr.Dataset, run: int, step: int) -> Place:
    """Return the place of the network that was kept at `step` (`Record.snapshot_every`).

    Its loss is that of the whole training set, at the norm that the weights had.

    Raises
    ------
    ConfigError : if no network was kept at that step.
    """
    import torch

    from periodic_lib.analysis.minima import as_networks

    steps = results.snapshot_step.values if "snapshot_step" in results.dims else np.empty(0)
    if step not in steps:
        near = int(steps[np.abs(steps - step).argmin()]) if len(steps) else "none"
        raise ConfigError(
            f"`step` must be one of `snapshot_step`; got {step}. The nearest: {near}."
        )
    one = results.sel(run=run)
    norm = float(one.weight_norm.sel(step=step, method="nearest"))
    stack = as_networks(results, run, one.direction.sel(snapshot_step=[step]).values, norm)
    everything = torch.arange(len(stack.data.x_train))[None]

    def loss(vector: torch.Tensor) -> torch.Tensor:
        return stack.loss(norm * vector[None], everything).sum()

    return place(loss, stack.invariant[0])


# ---------------------------------------------------------------- the shape along u


@dataclass(frozen=True)
class Shape:
    r"""Coefficients of a loss along a circle, around its minimum there.

    F'(phi) = h phi + (k / 2) phi^2 - b phi^3: `sharpness` h, `cubic` k, `quartic` b; `minimum`, the
    angle of the minimum; `residual`, root mean square of the fit over the rise of the loss.
    """

    minimum: float
    sharpness: float
    cubic: float
    quartic: float
    residual: float

    @property
    def effective_quartic(self) -> float:
        r"""b + k^2 / (2 h): what decides at the edge whether a flip grows, asymmetry included.

        The map phi - Phi F'(phi) flips supercritically, that is into a small stable orbit of period
        2, where its square of the second-order term plus the third-order one is positive (the
        normal form of the flip bifurcation): Phi^2 k^2 / 4 + Phi b > 0 with Phi = 2 / h.
        """
        return self.quartic + self.cubic**2 / (2 * self.sharpness)

    @property
    def edge_constant(self) -> float:
        """`theory.edge_constant` of it: oscillations at the edge grow into cycles below 4."""
        return float(theory.edge_constant(self.effective_quartic, self.sharpness))


def shape(at: Place, reach: float) -> tuple[Shape, float]:
    """Return the shape along the sharpest direction, and the reach at which it was found.

    `reach` is halved until a polynomial describes the loss to `MISFIT`, at most `HALVINGS` times:
    next to a break a loss has walls that stand nearer than the flip at rest.
    """
    for _ in range(HALVINGS):
        found = fitted(*scan(at, reach))
        if found.residual < MISFIT and found.sharpness > 0:
            break
        reach /= 2
    return found, reach


def scan(at: Place, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Return angles from -reach to reach and the losses there, (points,) each."""
    angles = np.linspace(-reach, reach, POINTS)
    return angles, np.array([float(at.loss(at.at(angle))) for angle in angles])


def fitted(angles: np.ndarray, losses: np.ndarray) -> Shape:
    r"""Return the shape of a loss along a circle, by a polynomial of degree 6.

    >>> phi = np.linspace(-0.1, 0.1, 41)
    >>> shape = fitted(phi, 3 * (phi - 0.01) ** 2 - 5 * (phi - 0.01) ** 4)
    >>> [round(x, 3) for x in (shape.minimum, shape.sharpness, shape.cubic, shape.quartic)]
    [0.01, 6.0, 0.0, 20.0]
    """
    line = np.polynomial.Polynomial.fit(angles, losses, DEGREE)
    fine = np.linspace(angles[0], angles[-1], 2001)
    low = fine[line(fine).argmin()]
    h, k, q = (float(line.deriv(order)(low)) for order in (2, 3, 4))
    residual = np.sqrt(np.mean((line(angles) - losses) ** 2)) / np.ptp(losses)
    return Shape(float(low), h, k, -q / 6, float(residual))


# ---------------------------------------------------------------- the two brakes


def flip_drift(at: Place, angle: float) -> torch.Tensor:
    r"""Return the mean gradient of the flip pair +-angle less that between them, across u, (n,).

    (g(phi) + g(-phi)) / 2 - g(0), off w and u: to leading order phi^2 / 2 times the gradient of the
    sharpness along u. Steps along -it lower the sharpness: self-stabilization.
    """
    import torch

    gradient = torch.func.grad(at.loss)
    mean = (gradient(at.at(angle)) + gradient(at.at(-angle))) / 2 - gradient(at.point)
    for unit in (at.point, at.direction):
        mean = mean - (unit @ mean) * unit
    return mean.detach()


def brake(at: Place, angle: float) -> float:
    r"""Return s = |gradient of h|^2 / h^2, the sharpness's share in braking at the edge.

    A flip of size phi at Phi = 2 / h lowers ln h by s phi^2 a step, through `flip_drift`, and
    ln Phi by 4 phi^2, as the norm grows by (Phi h phi)^2 (`theory.next_norm`).
    """
    slope = 2 * flip_drift(at, angle) / angle**2
    return float(slope @ slope) / at.sharpness**2


def sharpness_along(at: Place, direction: torch.Tensor, length: float) -> float:
    """Return ln of the sharpness at `length` along a direction over that at the place."""
    moved = at.point + length * direction / direction.norm()
    return float(np.log(place(at.loss, moved).sharpness / at.sharpness))


# ---------------------------------------------------------------- tables over kept networks


def product_at(results: xr.Dataset, run: int, at: Place, step: int) -> float:
    """Return Phi h / 2 of a kept network: its step on the sphere over the edge.

    Phi = `theory.sphere_step`, 2 / h = `theory.edge_elr`.
    """
    one = results.sel(run=run)
    norm = float(one.weight_norm.sel(step=step, method="nearest"))
    phi = theory.sphere_step(float(one.lr), float(one.weight_decay), norm)
    return float(phi / theory.edge_elr(at.sharpness))


def products(results: xr.Dataset, run: int, low: float, high: float) -> pd.Series:
    """Return Phi h / 2 of a run by step, at every network kept from step `low` to `high`."""
    steps = results.snapshot_step.sel(snapshot_step=slice(low, high)).values.tolist()
    values = [product_at(results, run, kept_place(results, run, step), step) for step in steps]
    return pd.Series(values, index=pd.Index(steps, name="step"), name="product")


def before_breaks(results: xr.Dataset, before: int) -> list[tuple[int, int]]:
    """Return (run, step) of the network kept last, `before` steps ahead of each first break."""
    first = find_destabilizations(results).groupby("run").start.first() - before
    kept = results.snapshot_step
    found = {run: kept[kept <= step].values for run, step in first.items()}
    return [(int(run), int(steps[-1])) for run, steps in found.items() if len(steps)]


def late_places(results: xr.Dataset, number: int) -> list[tuple[int, int]]:
    """Return (run, step) of `number` networks of every run with weight decay, evenly spread over
    those kept in the second half.
    """
    steps, half = results.snapshot_step.values, float(results.step[results.sizes["step"] // 2])
    steps = steps[(steps >= half) & (steps < results.sizes["step"])]
    chosen = steps[np.unique(np.linspace(0, len(steps) - 1, number).astype(int))]
    decays = results.run.values[results.weight_decay.values > 0]
    return [(int(run), int(step)) for run in decays for step in chosen]


def shapes(
    results: xr.Dataset, places: list[tuple[int, int]], reach: float, aim: float, seed: int = 0
) -> pd.DataFrame:
    """Return the shape of the loss at kept networks, one row for each (run, step) of `places`.

    Parameters
    ----------
    reach : of the scans, in flips at rest, sqrt(lr_wd / 2); see `shape`.
    aim : the fall of ln h that a move against the flips' mean gradient should bring.

    Returns
    -------
    table with `run`, `init_seed`, `step`; `product`, Phi h / 2; `ratio`, b / h, and `effective`,
    the same with the asymmetry in it; `constant`, `theory.edge_constant` of the latter;
    `sideways`, b / h along a random direction; `brake`; `fell`, by how much ln h falls on that
    move, and `null`, on one as far in a random direction; `reach`, in radians.
    """
    import torch

    rows, generator = [], torch.Generator().manual_seed(seed)
    for run, step in places:
        one = results.sel(run=run)
        flip = float(np.sqrt(one.lr * one.weight_decay / 2))
        at = kept_place(results, run, step)
        found, width = shape(at, reach * flip)
        slope = 8 * flip_drift(at, width / 2) / width**2  # the gradient of the sharpness
        length = aim * at.sharpness / float(slope.norm())
        noise = torch.randn(slope.shape, generator=generator)
        rows.append(
            {
                "run": run,
                "init_seed": int(one.init_seed),
                "step": step,
                "product": product_at(results, run, at, step),
                "ratio": found.quartic / found.sharpness,
                "effective": found.effective_quartic / found.sharpness,
                "constant": found.edge_constant,
                "sideways": sideways(at, noise, reach * flip),
                "brake": brake(at, width / 2),
                "fell": -sharpness_along(at, -slope, length),
                "null": -sharpness_along(at, noise, length),
                "reach": width,
            }
        )
    return pd.DataFrame(rows)


def sideways(at: Place, direction: torch.Tensor, reach: float) -> float:
    """Return b / h of the loss along another direction (n,): nan where it has no minimum there."""
    u = direction - (at.point @ direction) * at.point
    found, _ = shape(Place(at.loss, at.point, u / u.norm(), at.sharpness), reach)
    return found.quartic / found.sharpness if found.sharpness > 0 else float("nan")
