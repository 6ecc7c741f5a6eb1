"""Optimizers on stacked weights: one flat tensor (runs, n), one set of hyper-parameters per run.

The first `n_invariant` columns are the scale-invariant weights; the rest, the "others", are the
remaining trained parameters (there may be none). Weight decay is the same for all columns.

A step asks the device for nothing and keeps its state at fixed addresses, so that it can be
captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from periodic_lib.changes import Change, parse_changes
from periodic_lib.config import Run, Setup


class Optimizer:
    """What all optimizers share: w <- w - f lr d with a direction d of its own, a learning rate lr
    for the invariant columns and `others_lr` for the others, and the schedule's factor f of this
    step on both.

    The decay is always a part of d, an increment of w, never a product with 1 - lr wd, which
    float32 rounds by up to 3e-8: that would be 0.3 % of lr wd = 1e-5.

    Parameters
    ----------
    runs : one per row of the weights.
    n_invariant, n : columns that are scale-invariant, all columns.
    dtype, device : of the weights.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        n_invariant: int,
        n: int,
        dtype: torch.dtype,
        device: str | torch.device,
    ):
        self._options = {"dtype": dtype, "device": device}
        self._shape, self._n_invariant = (len(runs), n), n_invariant
        self._state: dict[str, torch.Tensor] = {}
        self.lr = self._column(run.lr for run in runs)
        self.weight_decay = self._column(run.weight_decay for run in runs)
        others = [run.lr if run.others_lr is None else run.others_lr for run in runs]
        same = n_invariant == n or others == [run.lr for run in runs]
        self.others_lr = None if same else self._column(others)

    def _column(self, values) -> torch.Tensor:
        return torch.tensor(list(values), **self._options).unsqueeze(1)  # (runs, 1)

    def _direction(self, weights: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def step(
        self, weights: torch.Tensor, gradient: torch.Tensor, factor: torch.Tensor
    ) -> torch.Tensor:
        """Return the new weights, a new tensor (runs, n), and update the state in place.

        `gradient` (runs, n) does not contain the decay term; `factor` (runs, 1), of the dtype of
        the weights, is the schedule's factor on the learning rates.
        """
        direction = self._direction(weights, gradient)  # (runs, n)
        new = torch.addcmul(weights, direction, self.lr * factor, value=-1)  # (runs, n)
        if self.others_lr is not None:
            others = slice(self._n_invariant, None)
            rate = self.others_lr * factor
            torch.addcmul(
                weights[:, others], direction[:, others], rate, value=-1, out=new[:, others]
            )
        return new

    def state(self) -> dict[str, torch.Tensor]:
        """Return what a step keeps for the next one, by name, one row per run: the tensors
        themselves, no copies.
        """
        return dict(self._state)

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy what `state` returned, from any device, into this optimizer's own tensors.

        Raises ValueError if names or shapes are not those of this optimizer and stack.
        """
        expected, given = (
            {name: tuple(t.shape) for name, t in s.items()} for s in (self._state, state)
        )
        if given != expected:
            raise ValueError(
                f"`state` must hold the tensors {expected}; got {given}. "
                "Was it saved by another setup?"
            )
        for name, tensor in state.items():
            self._state[name].copy_(tensor)


class SGD(Optimizer):
    """Stochastic gradient descent with coupled weight decay and momentum m.

    v <- m v + g + wd w;  d = v, or with `nesterov` d = g + wd w + m v;  w <- w - f lr d.

    As `torch.optim.SGD` without dampening, for every run by itself. Stacks without any momentum
    keep no velocity v.
    """

    def __init__(self, runs: Sequence[Run], *shape_and_options, nesterov: bool = False):
        super().__init__(runs, *shape_and_options)
        self.nesterov, self.momentum = nesterov, self._column(run.momentum for run in runs)
        if any(run.momentum for run in runs):
            self._state["velocity"] = torch.zeros(self._shape, **self._options)

    def _direction(self, weights: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        direction = torch.addcmul(gradient, weights, self.weight_decay)
        if "velocity" not in self._state:
            return direction
        velocity = self._state["velocity"]
        torch.addcmul(direction, velocity, self.momentum, out=velocity)
        return torch.addcmul(direction, velocity, self.momentum) if self.nesterov else velocity


class Adam(Optimizer):
    """Adam with coupled weight decay: the decay is a part of the gradient, g' = g + wd w.

    m <- b1 m + (1 - b1) g';  v <- b2 v + (1 - b2) g'^2;  d = m / (1 - b1^k) / (sqrt(v / (1 - b2^k))
    + eps); w <- w - f lr d, where k = 1, 2, ... counts the steps.

    As `torch.optim.Adam`, for every run by itself (Kingma & Ba 2015, algorithm 1).
    """

    def __init__(self, runs: Sequence[Run], *shape_and_options):
        super().__init__(runs, *shape_and_options)
        # float64 for the corrections only: float32 would round 1 - 0.999 by up to 3e-5 of it
        betas = [(run.beta1, run.beta2) for run in runs]
        self.betas = torch.tensor(
            betas, dtype=torch.float64, device=self._options["device"]
        )  # (runs, 2)
        self.rest1, self.rest2 = (
            (1 - self.betas).to(self._options["dtype"]).split(1, dim=1)
        )  # (runs, 1) each
        self.eps = self._column(run.adam_eps for run in runs)
        self._state["count"] = torch.zeros_like(self.betas[:, :1])  # (runs, 1)
        for name in ("first", "second"):  # moments m and v
            self._state[name] = torch.zeros(self._shape, **self._options)

    def _direction(self, weights: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return self._update(torch.addcmul(gradient, weights, self.weight_decay))

    def _update(self, gradient: torch.Tensor) -> torch.Tensor:
        count, first, second = (self._state[name] for name in ("count", "first", "second"))
        count.add_(1)
        first.lerp_(gradient, self.rest1)
        second.lerp_(gradient.square(), self.rest2)
        correction1, correction2 = (
            (1 - self.betas**count).to(self._options["dtype"]).split(1, dim=1)
        )  # (runs, 1) each
        root = second.sqrt()  # (runs, n)
        return first / torch.addcmul(
            correction1 * self.eps, root, correction1 * correction2.rsqrt()
        )


class AdamW(Adam):
    """Adam with decoupled weight decay: m and v see the gradient g only, and w <- w - f lr (d + wd
    w).

    As `torch.optim.AdamW`, for every run by itself (Loshchilov & Hutter 2019, algorithm 2, with
    alpha = 1 and the decay times lr, as in PyTorch).
    """

    def _direction(self, weights: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self._update(gradient), weights, self.weight_decay)


def make(
    setup: Setup,
    runs: Sequence[Run],
    n_invariant: int,
    n: int,
    dtype: torch.dtype,
    device: str | torch.device,
) -> Optimizer:
    """Return the optimizer that `setup` names, for weights (runs, n) with `n_invariant`
    scale-invariant columns.
    """
    if setup.optimizer in ("sgd", "nesterov"):
        return SGD(runs, n_invariant, n, dtype, device, nesterov=setup.optimizer == "nesterov")
    return {"adam": Adam, "adamw": AdamW}[setup.optimizer](runs, n_invariant, n, dtype, device)


# ---------------------------------------------------------------- schedules


def schedule_factors(runs: Sequence[Run], steps: int, start: int, stop: int) -> np.ndarray:
    """Return the factors on the learning rates at steps t = start, ..., stop - 1 of T = `steps`,
    (stop - start, runs).

    constant: 1;  step: D^-floor(4 t / T) with D = `decay_factor`;  linear: 1 up to T / 4, then in a
    straight line to 1 / D at t = T;  cosine: (1 + cos(pi t / T)) / 2;  all times min(1, (t + 1) /
    warmup). constant_elr: 1; its factor depends on the weight norm, and the training loop applies
    it.

    >>> runs = [Run(0.1, 0, schedule="step"), Run(0.1, 0, warmup=2)]
    >>> schedule_factors(runs, steps=8, start=0, stop=3)
    array([[1. , 0.5], [1. , 1. ], [0.1, 1. ]])
    """
    t = np.arange(start, stop)
    return np.stack(
        [_schedule(run, t, steps) * np.minimum(1, (t + 1) / max(run.warmup, 1)) for run in runs],
        axis=1,
    )


def _schedule(run: Run, t: np.ndarray, steps: int) -> np.ndarray:
    if run.schedule == "step":
        return run.decay_factor ** -(4 * t // steps).astype(float)
    if run.schedule == "linear":
        return 1 - (1 - 1 / run.decay_factor) * np.maximum(0, 4 * t - steps) / (3 * steps)
    if run.schedule == "cosine":
        return (1 + np.cos(np.pi * t / steps)) / 2
    return np.ones(len(t))


# ---------------------------------------------------------------- changes on the way


class Changes:
    """What `Run.changes` asks for, done to an optimizer and its weights at the right steps.

    Parameters
    ----------
    optimizer : its `lr` and `weight_decay` are changed in place.
    runs : one per row of the weights.
    """

    def __init__(self, optimizer: Optimizer, runs: Sequence[Run]):
        self.optimizer = optimizer
        asked = [(row, one) for row, run in enumerate(runs) for one in parse_changes(run.changes)]
        self._due = sorted(asked, key=lambda pair: pair[1].step)
        self._done = 0
        self._holds = any(change.what in ("elr", "hold") for _, change in asked)
        self.held = torch.zeros_like(optimizer.lr)  # norm at which a run is held; 0: it is free

    @torch.no_grad()
    def before(self, step: int, weights: torch.Tensor, n_invariant: int) -> None:
        """Do what is due before this step."""
        while self._done < len(self._due) and self._due[self._done][1].step <= step:
            row, change = self._due[self._done]
            self._set(row, change)
            if change.what == "elr":
                self.held[row] = (self.optimizer.lr[row] / change.value).sqrt()
            elif change.what in ("hold", "free"):
                norm = torch.linalg.vector_norm(weights[row, :n_invariant])
                self.held[row] = norm if change.what == "hold" else 0.0
            self._done += 1
            self.after(weights, n_invariant)

    @torch.no_grad()
    def after(self, weights: torch.Tensor, n_invariant: int) -> None:
        """Scale the scale-invariant columns of held runs back to their norm, in place."""
        if self._holds:
            part = weights[:, :n_invariant]
            norm = torch.linalg.vector_norm(part, dim=1, keepdim=True)
            part.mul_(torch.where(self.held > 0, self.held / norm, 1))

    def _set(self, row: int, change: Change) -> None:
        if change.what in ("lr", "weight_decay"):
            getattr(self.optimizer, change.what)[row] = change.value

    def seek(self, steps_done: int) -> None:
        """Go to where these steps are done, with `held` as it was saved."""
        self._done = sum(change.step < steps_done for _, change in self._due)
        for row, change in self._due[: self._done]:
            self._set(row, change)


# ---------------------------------------------------------------- training at a fixed norm


@torch.no_grad()
def project(
    weights: torch.Tensor, sizes: Sequence[int], n_invariant: int, norm: float, scope: str
) -> None:
    """Scale the scale-invariant columns of the weights (runs, n) in place to the norm `norm`: w <-
    norm w / |w|.

    `scope` "total": all of them together have this norm; "layer": every layer by itself, where
    `sizes` are the columns of each scale-invariant layer, in order (their sum is `n_invariant`).
    The others are not touched.

    >>> weights = torch.tensor([[3.0, 4.0, 7.0]])
    >>> project(weights, sizes=[1, 1], n_invariant=2, norm=10.0, scope="total"); weights
    tensor([[6., 8., 7.]])
    """
    sizes = list(sizes) if scope == "layer" else [n_invariant]
    for part in weights[:, :n_invariant].split(sizes, dim=1):
        part.mul_(norm / torch.linalg.vector_norm(part, dim=1, keepdim=True))
