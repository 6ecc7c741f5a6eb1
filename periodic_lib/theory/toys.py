r"""Two toy models that train in periods: the smallest scale-invariant losses with weight decay.

Toy A, `circle_orbit`: two weights, so the direction lives on a circle; gradient descent; for the
stability edge. Toy B, `SphereToy`: three weights, so the direction lives on a sphere; a
batch-normalized neuron trained by SGD, which shows every regime of a network. Its results have the
form of `training.train`'s, so that plots and the period finder take them. Both are NumPy only, and
toy B uses random numbers that any language can make: the book's simulator is the same model in
JavaScript.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from periodic_lib.checks import integer, number, one_of
from periodic_lib.config import DTYPES
from periodic_lib.project import ConfigError

# ---------------------------------------------------------------- toy A: a circle


def circle_orbit(
    lr_wd: float,
    steps: int,
    frequency: float = 1.0,
    phi: float = 1e-3,
    sphere_step: float = 0.5,
    floor: float = 0.0,
    seed: int = 0,
) -> xr.Dataset:
    r"""Return the orbit of toy A: the loss (1 - cos k phi) / k on a circle, the smallest there is.

    phi' = phi - arctan(Phi sin k phi) + noise,   Phi' = Phi / (a^2 (1 + Phi^2 sin^2 k phi)):
    exactly gradient descent with weight decay in the plane, without ever forming the weights.
    k = `frequency`; its sharpness is h = k.

    Parameters
    ----------
    lr_wd : learning rate times weight decay.
    steps : number of steps.
    phi, sphere_step : where the orbit starts.
    floor : standard deviation of a normal perturbation of phi at every step. With none, an orbit
        that underflows to phi = 0 stays there for ever.
    seed : of the perturbation.

    Returns
    -------
    data set (step): `phi`, `sphere_step` Phi, `x` = Phi h.

    Raises
    ------
    ConfigError : for a value that cannot be used.

    >>> orbit = circle_orbit(lr_wd=1e-3, steps=2000, phi=1e-9, sphere_step=0.9)
    >>> left = np.flatnonzero(np.abs(orbit.phi) >= 1e-9)[1]  # as far out again as it had come in
    >>> round(float(orbit.x[left]), 2)  # `theory.exit_without_noise`: 6.80 as lr_wd -> 0
    6.82
    """
    lr_wd = number("lr_wd", lr_wd, "a number from 0 to below 1", 0, 1)
    steps = integer("steps", steps, "a whole number of at least 1", low=1)
    floor = number("floor", floor, "a number from 0", 0, float("inf"))
    k = number("frequency", frequency, "a positive number", 0, float("inf"), low_open=True)
    noise, shrink = floor * np.random.default_rng(seed).normal(size=steps), (1 - lr_wd) ** 2
    angles, sizes = np.empty(steps), np.empty(steps)
    for t in range(steps):
        angles[t], sizes[t] = phi, sphere_step
        tangent = sphere_step * np.sin(k * phi)  # of the step's angle
        phi += noise[t] - np.arctan(tangent)
        sphere_step /= shrink * (1 + tangent * tangent)
    variables = {"phi": ("step", angles), "sphere_step": ("step", sizes), "x": ("step", k * sizes)}
    parameters = {"lr_wd": lr_wd, "frequency": k, "floor": floor}
    return xr.Dataset(variables, {"step": np.arange(steps)}, parameters)


# ---------------------------------------------------------------- toy B: a sphere

BLOCK = 1024  # steps of the sphere toy whose batches are drawn, and whose losses measured, at once
POINT_STREAM, BATCH_STREAM, START_STREAM = 1, 2, 3  # what random numbers are used for


def random_numbers(seed: ArrayLike, stream: int, counter: ArrayLike) -> NDArray[np.float64]:
    r"""Return numbers from 0 to below 1 that depend on (seed, stream, counter) only.

    They are the same in any language: the 32-bit finalizer of MurmurHash3 (A. Appleby, public
    domain), applied to the stream and seed, then to their hash plus the counter times 0x9E3779B9;
    divided by 2^32.

    >>> random_numbers(seed=0, stream=1, counter=[0, 1]).round(6).tolist()
    [0.665014, 0.827433]
    """

    def mix(h):
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        return h ^ (h >> np.uint32(16))

    with np.errstate(over="ignore"):
        start = mix(np.asarray(seed, np.uint32) + np.uint32(stream) * np.uint32(0x9E3779B9))
        return mix(start + np.asarray(counter, np.uint32) * np.uint32(0x9E3779B9)) / 2.0**32


def _on_sphere(height: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
    """Return unit vectors (..., 3) of these first components and angles around the first axis."""
    radius = np.sqrt(1 - height * height)
    return np.stack([height, radius * np.cos(azimuth), radius * np.sin(azimuth)], axis=-1)


def _log_loss(w: np.ndarray, x: np.ndarray, gain: float) -> tuple[float, np.ndarray]:
    """Return ln of toy B's loss at w, and its gradient; the loss's own vanishes with the loss."""
    size = np.linalg.norm(w)
    u = w / size
    score = gain * x @ u
    downhill = gain * (x.T @ (1 / (1 + np.exp(score)))) / len(x)
    loss = np.logaddexp(0, -score).mean()
    return np.log(loss), (u * (u @ downhill) - downhill) / (size * loss)


@dataclass(frozen=True)
class SphereToy:
    r"""Toy B: one batch-normalized neuron with a frozen head; its direction lives on a sphere.

    loss_i(w) = ln(1 + exp(-gamma <x_i, w> / sqrt(|w|^2 + eps))), with the label's sign inside x_i;
    SGD on `batch` points drawn with replacement (all of them if `batch` = `points`) with coupled
    weight decay: w' = (1 - eta lambda) w - eta grad. Each parameter is a number, or an array with
    one entry per run.

    Parameters
    ----------
    lr_wd : learning rate times weight decay.
    gain : gamma, the gain of the head.
    margin : every point has <x_i, e_1> of at least this much, so that the loss can be made small; 0
        to below 1.
    flipped : fraction of the points whose label is wrong (the first ones).
    batch : points of a step.
    eps : batch normalization's epsilon.
    seed : of the points, the start and the batches.
    points : number of points, the same for all runs.
    weight_decay : lambda.
    elr_start : effective learning rate at the start.
    lr : train at this learning rate without weight decay; `lr_wd` and `weight_decay` are then not
        used.
    elr : train on the sphere, without weight decay: at the start and after every step the weights
        get the norm at which the effective learning rate is this; None: free.
    dtype : "float64", or "float32" to compute every step in 32 bits (points and start are the same,
        rounded once).

    Raises
    ------
    ConfigError : for a value that cannot be used.

    >>> orbit = SphereToy(lr_wd=1e-2).run(2000)
    >>> bool(orbit.train_loss.min() < 0.01 and orbit.train_loss.max() > 1)
    True
    """

    lr_wd: ArrayLike = 1e-3
    gain: ArrayLike = 30.0
    margin: ArrayLike = 0.05
    flipped: ArrayLike = 0.0
    batch: ArrayLike = 4
    eps: ArrayLike = 0.0
    seed: ArrayLike = 0
    points: int = 16
    weight_decay: float = 0.1
    elr_start: float = 0.02
    lr: float | None = None
    elr: ArrayLike | None = None
    dtype: str = "float64"

    def __post_init__(self):
        one_of("dtype", self.dtype, DTYPES)
        inf = float("inf")
        ranges = {"gain": (0, inf), "margin": (0, 1), "flipped": (0, 1), "eps": (0, inf)}
        for value in np.ravel(self.lr_wd):
            number("lr_wd", value, "a number above 0 and below 1", 0, 1, low_open=True)
        for value in [] if self.elr is None else np.ravel(self.elr):
            number("elr", value, "a positive number, or None", 0, inf, low_open=True)
        for name, (low, high) in ranges.items():
            for value in np.ravel(getattr(self, name)):
                number(name, value, f"a number from {low} to below {high}", low, high)
        points = integer("points", self.points, "a whole number of at least 1", low=1)
        for value in np.ravel(self.batch):
            if not 1 <= integer("batch", value, "a whole number", low=1) <= points:
                raise ConfigError(
                    f"`batch` must be a whole number from 1 to `points` = {points}; got {value!r}."
                )

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        """The parameters, one entry per run."""
        names = ("lr_wd", "gain", "margin", "flipped", "batch", "eps", "seed")
        names += () if self.elr is None else ("elr",)
        values = np.broadcast_arrays(*(np.atleast_1d(getattr(self, name)) for name in names))
        return dict(zip(names, values, strict=True))

    @cached_property
    def learning_rate(self) -> np.ndarray:
        """eta of every run."""
        lr_wd = self._columns["lr_wd"].astype(float)
        return lr_wd / self.weight_decay if self.lr is None else np.full_like(lr_wd, self.lr)

    @cached_property
    def x(self) -> np.ndarray:
        """The points of every run, with their label's sign, shape (runs, points, 3)."""
        column, number_of = self._columns, np.arange(self.points)
        seed = column["seed"][:, None]
        drawn = (random_numbers(seed, POINT_STREAM, 2 * number_of + k) for k in (0, 1))
        u, v = drawn  # (runs, points)
        height = column["margin"][:, None] + (1 - column["margin"][:, None]) * u
        x = _on_sphere(height, 2 * np.pi * v)
        wrong = number_of < np.round(column["flipped"][:, None] * self.points)
        return np.where(wrong[..., None], -x, x)

    @cached_property
    def start(self) -> np.ndarray:
        """The initial weights, uniform on the sphere of the starting norm, shape (runs, 3)."""
        seed = self._columns["seed"]
        height = 2 * random_numbers(seed, START_STREAM, 0) - 1
        u = _on_sphere(height, 2 * np.pi * random_numbers(seed, START_STREAM, 1))
        elr = self._columns.get("elr", self.elr_start)
        return u * np.sqrt(self.learning_rate / elr)[:, None]

    def _batches(self, first: int, steps: int) -> np.ndarray:
        """Return the points of `steps` steps from `first` on, (runs, steps, largest batch)."""
        batch, place = self._columns["batch"], np.arange(int(self._columns["batch"].max()))
        counter = (first + np.arange(steps)[:, None]) * self.points + place
        drawn = random_numbers(self._columns["seed"][:, None], BATCH_STREAM, counter.ravel())
        index = (drawn * self.points).astype(int).reshape(len(batch), *counter.shape)
        return np.where((batch == self.points)[:, None, None], place, index)

    def losses(self, direction: np.ndarray) -> np.ndarray:
        """Return the first run's loss on all points at unit vectors (..., 3), for a map."""
        score = self._columns["gain"][0] * np.asarray(direction) @ self.x[0].T
        return np.logaddexp(0, -score).mean(axis=-1)

    def minimum(self) -> xr.Dataset:
        r"""Return what training meets where the loss is smallest, for every run (eps = 0).

        Returns
        -------
        data set (run): `train_loss`; `sharpness` h, the largest eigenvalue of the Hessian on the
        sphere; `eff_grad_norm`, root mean square over batches: sqrt(E|g~_i|^2 / batch) with
        replacement, 0 for the full batch.

        >>> float(SphereToy(flipped=0.25).minimum().train_loss.round(2)[0])
        1.76
        """
        column, rows = self._columns, []
        gains, batches = column["gain"].astype(float), column["batch"]
        for x, gain, batch in zip(self.x, gains, batches, strict=True):
            found = [
                minimize(_log_loss, start, (x, gain), jac=True, tol=1e-9)
                for start in (*np.eye(3), -np.eye(3)[0], x.mean(0))
            ]
            best = min(found, key=lambda one: one.fun)
            u = best.x / np.linalg.norm(best.x)
            across = np.eye(3) - np.outer(u, u)
            score = gain * x @ u
            wrong = 1 / (1 + np.exp(score))
            hessian = gain**2 * (x.T * (wrong * (1 - wrong))) @ x / len(x)
            hessian += (wrong * score).mean() * np.eye(3)
            sharpness = np.linalg.eigvalsh(across @ hessian @ across)[-1]
            single = np.square(gain * wrong[:, None] * (x @ across)).sum(axis=1).mean()
            noise = 0.0 if batch == self.points else np.sqrt(single / batch)
            rows.append((np.exp(best.fun), sharpness, noise))
        names = ("train_loss", "sharpness", "eff_grad_norm")
        columns = zip(names, np.array(rows).T, strict=True)
        return xr.Dataset({name: ("run", values) for name, values in columns})

    def run(self, steps: int) -> xr.Dataset:
        """Return `steps` steps of all runs, in the form of `training.train`'s result.

        Returns
        -------
        data set (run, step), taken before each step: `train_loss` (all points), `batch_loss`,
        `weight_norm`, `elr`, `grad_norm`, `eff_grad_norm` (of the batch), `angular_update`;
        `direction` (run, step, axis). Coordinates of `run`: the parameters, `lr`, `weight_decay`.
        """
        weights = np.empty((steps + 1, *self.start.shape), self.dtype)
        weights[0] = self.start
        blocks = [
            self._block(weights[first : first + BLOCK + 1], first)
            for first in range(0, steps, BLOCK)
        ]
        kept = {
            name: np.concatenate([one[name] for one in blocks], axis=1, dtype=float)
            for name in blocks[0]
        }
        return self._dataset(weights.astype(float), kept)

    @cached_property
    def _law(self) -> tuple[np.ndarray, ...]:
        """What every step uses, in the dtype of the steps: points (runs, points, 3), eta, the
        factor of weight decay, the weight of each point of a batch, gain, epsilon (runs, ...).
        """
        column, eta = self._columns, self.learning_rate[:, None]
        decays = self.lr is None and self.elr is None
        shrink = 1 - eta * self.weight_decay if decays else np.ones_like(eta)
        used = np.arange(int(column["batch"].max())) < column["batch"][:, None]
        weight = np.where(used, 1 / column["batch"][:, None], 0.0)  # (runs, largest batch)
        exact = (self.x, eta, shrink, weight, column["gain"][:, None], column["eps"])
        return tuple(np.asarray(value, self.dtype) for value in exact)

    def _block(self, weights: np.ndarray, first: int) -> dict[str, np.ndarray]:
        """Fill `weights` (steps + 1, runs, 3) from its first row on; return what was measured,
        (runs, steps).

        Only what a step needs of the one before is done step by step.
        """
        x, eta, shrink, weight, gain, eps = self._law
        steps = len(weights) - 1
        index = self._batches(first, steps)  # (runs, steps, largest batch)
        chosen = x[np.arange(len(x))[:, None, None], index]  # (runs, steps, largest batch, 3)
        directions, gradients = np.empty((2, steps, *weights.shape[1:]), weights.dtype)
        length = np.sqrt(np.einsum("ra,ra->r", self.start, self.start)).astype(self.dtype)
        for t, w in enumerate(weights[:-1]):
            scale = np.sqrt(np.einsum("ra,ra->r", w, w) + eps)[:, None]
            u = w / scale
            miss = weight / (1 + np.exp(gain * np.einsum("rba,ra->rb", chosen[:, t], u)))
            # minus the gradient on the sphere
            downhill = gain * np.einsum("rb,rba->ra", miss, chosen[:, t])
            gradient = (u * np.einsum("ra,ra->r", u, downhill)[:, None] - downhill) / scale
            directions[t], gradients[t] = u, gradient
            weights[t + 1] = shrink * w - eta * gradient
            if self.elr is not None:
                new = weights[t + 1]
                new *= (length / np.sqrt(np.einsum("ra,ra->r", new, new)))[:, None]
        loss = np.logaddexp(0, -gain[..., None] * np.einsum("rpa,tra->rtp", x, directions))
        return {
            "train_loss": loss.mean(-1),
            "batch_loss": (weight[:, None] * np.take_along_axis(loss, index, axis=2)).sum(-1),
            "grad_norm": np.sqrt(np.einsum("tra,tra->rt", gradients, gradients)),
        }

    def _dataset(self, weights: np.ndarray, kept: dict[str, np.ndarray]) -> xr.Dataset:
        norm = np.linalg.norm(weights, axis=-1)  # (steps + 1, runs)
        product = norm[:-1] * norm[1:]
        cosine = np.einsum("tra,tra->tr", weights[:-1], weights[1:]) / product
        sine = np.linalg.norm(np.cross(weights[:-1], weights[1:]), axis=-1) / product
        rho = norm[:-1].T
        values = kept | {
            "weight_norm": rho,
            "elr": self.learning_rate[:, None] / rho**2,
            "eff_grad_norm": rho * kept["grad_norm"],
            "angular_update": np.arctan2(sine, cosine).T,
        }
        variables = {name: (("run", "step"), value) for name, value in values.items()}
        direction = (weights[:-1] / norm[:-1, :, None]).transpose(1, 0, 2)
        variables["direction"] = (("run", "step", "axis"), direction)
        decay = self.weight_decay if self.lr is None and self.elr is None else 0.0
        parameters = {name: values for name, values in self._columns.items() if name != "elr"}
        columns = parameters | {
            "lr": self.learning_rate,
            "weight_decay": np.full(len(rho), decay),
            "momentum": np.zeros(len(rho)),
            "init_seed": self._columns["seed"],
        }
        coordinates = {name: ("run", value) for name, value in columns.items()}
        places = {"run": np.arange(len(rho)), "step": np.arange(rho.shape[1])}
        return xr.Dataset(variables, places | coordinates)
