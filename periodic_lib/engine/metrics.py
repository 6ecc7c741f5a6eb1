"""Measurements of stacked weights: flat tensors (runs, weights) in, one number per run, layer or
neuron out.

`MEASURES` is the table of all that a training can keep. What each is, in words and units, stands in
`periodic_lib.glossary` under the same name: a new quantity is a line here and a line there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

from periodic_lib.glossary import TERMS

SHARPNESS_TOLERANCE = 1e-3  # relative, of the eigenvalue


class Step:
    """What a step knows when its measures are taken, of whole runs or of parts of them.

    Parameters
    ----------
    weights, gradient, new : scale-invariant weights before the step, the gradient by them without
        the decay term, and the weights after the step, (..., n).
    loss : of the mini-batch before the step, (runs,); None of parts.
    rate : learning rate of the step, (runs,); None of parts.
    """

    def __init__(self, weights, gradient, new, loss=None, rate=None):
        self.weights, self.gradient, self.new = weights, gradient, new
        self.loss, self.rate = loss, rate
        self.batch_sharpness = None  # (runs,), where it is asked for

    @cached_property
    def weight_norm(self) -> torch.Tensor:
        """rho, the norm of the weights before the step."""
        return norm(self.weights)

    @cached_property
    def grad_norm(self) -> torch.Tensor:
        """Norm of the gradient."""
        return norm(self.gradient)

    @cached_property
    def angular_update(self) -> torch.Tensor:
        """Angle between the weights before and after the step, in radians."""
        return angle(self.weights, self.new, self.weight_norm)


@dataclass(frozen=True)
class Measure:
    """One quantity that a training can keep.

    `name` is the variable of a result and the entry of the glossary; `when` it is taken (a key of
    `DIMENSIONS`); `more`, its dimensions beyond those; `of`, how it is computed from a `Step`,
    shape (runs,) or (runs, parts), where the loop takes it; `parts`: kept of layers and neurons,
    too, where a `Record` asks for them; `squared`: averaged as the root of the mean square.
    """

    name: str
    when: str
    of: Callable[[Step], torch.Tensor] | None = None
    more: tuple[str, ...] = ()
    parts: bool = False
    squared: bool = False

    @property
    def dims(self) -> tuple[str, ...]:
        """Dimensions of the variable of a result."""
        return (*DIMENSIONS[self.when], *self.more)

    @property
    def unit(self) -> str:
        """Unit, as the glossary has it."""
        return TERMS[self.name].unit


DIMENSIONS = {  # when a measure is taken -> the dimensions it has
    "step": ("run", "step"),
    "batch": ("run", "step"),
    "evaluation": ("run", "eval_step"),
    "curvature": ("run", "curvature_step"),
    "snapshot": ("run", "snapshot_step"),
}
MEASURES = (
    Measure("train_loss", "step", lambda step: step.loss),
    Measure("weight_norm", "step", lambda step: step.weight_norm, parts=True),
    Measure("grad_norm", "step", lambda step: step.grad_norm, parts=True),
    Measure("angular_update", "step", lambda step: step.angular_update, parts=True, squared=True),
    Measure("elr", "step", lambda step: step.rate / step.weight_norm**2),
    Measure("eff_grad_norm", "step", lambda step: step.weight_norm * step.grad_norm),
    Measure("radial_cosine", "step", lambda step: cosine(step.gradient, step.weights)),
    Measure("batch_sharpness", "batch", lambda step: step.batch_sharpness),
    # what `Stack.evaluate`, `Stack.sharpness` and `Stack.snapshot` return, in their order
    Measure("train_loss_full", "evaluation"),
    Measure("train_error", "evaluation"),
    Measure("test_loss", "evaluation"),
    Measure("test_error", "evaluation"),
    Measure("sharpness", "curvature"),
    Measure("direction", "snapshot", more=("weight",)),
    Measure("test_logits", "snapshot", more=("example", "class")),
)


@cache  # asked at every step
def measures(when: str, parts: bool = False) -> tuple[Measure, ...]:
    """Return the measures that are taken at one kind of moment; `parts`: only those kept of layers
    and neurons.

    >>> [measure.name for measure in measures("evaluation")]
    ['train_loss_full', 'train_error', 'test_loss', 'test_error']
    """
    return tuple(one for one in MEASURES if one.when == when and (one.parts or not parts))


def norm(vectors: torch.Tensor) -> torch.Tensor:
    """Return the Euclidean norm of each run's vector, shape (runs,)."""
    return torch.linalg.vector_norm(vectors, dim=-1)


def angle(old: torch.Tensor, new: torch.Tensor, length: torch.Tensor | None = None) -> torch.Tensor:
    """Return the angle between each run's old and new vector in radians, shape (runs,).

    atan2 of the parts of the change across and along `old`: exact to rounding for the small steps
    of training, where arccos of a float32 cosine would lose every digit below 3e-4. `length`: the
    norm of `old`, if it is known already.

    On a CPU torch computes atan2 by vector instructions, but of the last few of many numbers by
    scalar ones, which round otherwise. Of numbers that do not lie side by side it always takes the
    scalar ones: so what is measured of a run does not depend on how many runs are beside it.

    >>> angle(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.9, 1.9e-6]]))
    tensor([1.0000e-06])
    """
    change = new - old
    length = norm(old) if length is None else length
    along = torch.linalg.vecdot(old, change) / length  # of the change, along the unit vector
    across = torch.addcmul(change, old, (along / length).unsqueeze(-1), value=-1)
    return torch.atan2(*torch.stack((norm(across), length + along), dim=-1).unbind(-1))


def cosine(vectors: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the cosine of the angle between each run's two vectors, (runs,); 0 if one is zero.

    >>> cosine(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
    tensor([0.6000, 0.0000])
    """
    tiny, along = torch.finfo(vectors.dtype).tiny, torch.linalg.vecdot(vectors, others)
    return along / norm(vectors).clamp_min(tiny) / norm(others).clamp_min(tiny)


def by_layer(function: Callable, *vectors: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Return `function` of every layer's part of flat vectors (runs, weights), shape (runs,
    layers).

    >>> by_layer(norm, torch.tensor([[2.0, 3.0, 4.0]]), sizes=[1, 2])
    tensor([[2., 5.]])
    """
    parts = zip(*(vector.split(list(sizes), dim=-1) for vector in vectors), strict=True)
    return torch.stack([function(*part) for part in parts], dim=-1)


def by_neuron(
    function: Callable,
    *vectors: torch.Tensor,
    shapes: Sequence[tuple[int, ...]],
    sizes: Sequence[int],
) -> torch.Tensor:
    """Return `function` of every neuron's (filter's) incoming weights, shape (runs, neurons), layer
    after layer.

    >>> by_neuron(norm, torch.tensor([[3.0, 4.0, 0.0, 1.0]]), shapes=[(2, 2)], sizes=[4])
    tensor([[5., 1.]])
    """
    parts = zip(*(vector.split(list(sizes), dim=-1) for vector in vectors), strict=True)
    rows = [
        function(*(piece.unflatten(-1, (shape[0], -1)) for piece in part))
        for part, shape in zip(parts, shapes, strict=True)
    ]
    return torch.cat(rows, dim=-1)


def scale_sensitivity(
    loss: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    values: dict[str, torch.Tensor],
    names: Sequence[str],
    factor: float,
) -> float:
    """Return max over runs of |loss(c w) - loss(w)| / loss(w), where the parameters `names` are
    scaled by c together.

    Zero to rounding exactly if they are scale-invariant together: the probe that proves a
    declaration.
    """
    before = loss(values)
    after = loss({**values, **{name: factor * values[name] for name in names}})
    return float(((after - before).abs() / before).max())


def curvature_along_gradient(
    loss: Callable[[torch.Tensor], torch.Tensor], weights: torch.Tensor, n: int
) -> torch.Tensor:
    r"""Return rho^2 g'Hg / |g|^2 of each run's loss, (runs,): its curvature along its gradient.

    g, H, rho belong to the first `n` columns of `weights` (runs, weights); `loss` returns (runs,).
    Of a scale-invariant loss g is orthogonal to the weights, so that this is the curvature on the
    unit sphere in the direction of the step. nan where the gradient vanishes.

    >>> w = torch.tensor([[3.0, 4.0]])
    >>> curvature_along_gradient(lambda v: (v**2 * torch.tensor([1.0, 0.0])).sum(1), w, 2)
    tensor([50.])
    """
    w = weights.detach().requires_grad_()
    gradient = torch.autograd.grad(loss(w).sum(), w, create_graph=True)[0][:, :n]
    along = gradient.detach()
    product = torch.autograd.grad((gradient * along).sum(), w)[0][:, :n]
    curvature = torch.linalg.vecdot(product, along) / torch.linalg.vecdot(along, along)
    return norm(w.detach()[:, :n]) ** 2 * curvature


def sharpness(loss: Callable[[torch.Tensor], torch.Tensor], weights: torch.Tensor) -> float:
    r"""Return the spherical sharpness: the top eigenvalue of the Hessian of `loss` at unit norm.

    h = rho^2 lambda_max(Hessian at w), for weights of shape (n,), by Lanczos iteration
    (`scipy.sparse.linalg.eigsh`) on Hessian-vector products, to 1e-3 relative. nan if a product is
    not finite or the iteration does not converge.

    >>> diagonal = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    >>> w = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    >>> round(sharpness(lambda v: (diagonal * v**2).sum() / 2, w), 3)
    20.0
    """
    gradient = torch.func.grad(loss)
    _, pull_back = torch.func.vjp(gradient, weights)  # the Hessian is symmetric

    def times(vector: np.ndarray) -> np.ndarray:
        v = torch.as_tensor(vector.reshape(-1), dtype=weights.dtype, device=weights.device)
        return pull_back(v)[0].detach().cpu().numpy().astype(float)

    size = weights.numel()
    square = float(weights.detach().double().square().sum())
    if size < 3:  # Lanczos needs room
        dense = np.stack([times(row) for row in np.eye(size)])
        return square * float(np.linalg.eigvalsh(dense)[-1])
    start = np.random.default_rng(0).standard_normal(size)
    if not np.isfinite(times(start)).all():
        return float("nan")
    operator = LinearOperator((size, size), matvec=times, dtype=np.float64)
    try:
        top = eigsh(
            operator, k=1, which="LA", tol=SHARPNESS_TOLERANCE, v0=start, return_eigenvectors=False
        )
    except ArpackError:
        return float("nan")
    return square * float(top[0])
