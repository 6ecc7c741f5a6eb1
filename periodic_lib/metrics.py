"""Measurements of stacked weights: flat tensors (runs, weights) in, one number per run, layer or neuron out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

SHARPNESS_TOLERANCE = 1e-3  # relative, of the eigenvalue


def norm(vectors: torch.Tensor) -> torch.Tensor:
    """Return the Euclidean norm of each run's vector, shape (runs,)."""
    return torch.linalg.vector_norm(vectors, dim=-1)


def angle(old: torch.Tensor, new: torch.Tensor, length: torch.Tensor | None = None) -> torch.Tensor:
    """Return the angle between each run's old and new vector in radians, shape (runs,).

    atan2 of the parts of the change across and along `old`: exact to rounding for the small steps of training, where
    arccos of a float32 cosine would lose every digit below 3e-4. `length`: the norm of `old`, if it is known already.

    >>> angle(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.9, 1.9e-6]]))
    tensor([1.0000e-06])
    """
    change = new - old
    length = norm(old) if length is None else length
    along = torch.linalg.vecdot(old, change) / length  # of the change, along the unit vector
    across = torch.addcmul(change, old, (along / length).unsqueeze(-1), value=-1)
    return torch.atan2(norm(across), length + along)


def by_layer(function: Callable, *vectors: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Return `function` of every layer's part of flat vectors (runs, weights), shape (runs, layers).

    >>> by_layer(norm, torch.tensor([[2.0, 3.0, 4.0]]), sizes=[1, 2])
    tensor([[2., 5.]])
    """
    parts = zip(*(vector.split(list(sizes), dim=-1) for vector in vectors), strict=True)
    return torch.stack([function(*part) for part in parts], dim=-1)


def by_neuron(
    function: Callable, *vectors: torch.Tensor, shapes: Sequence[tuple[int, ...]], sizes: Sequence[int]
) -> torch.Tensor:
    """Return `function` of every neuron's (filter's) incoming weights, shape (runs, neurons), layer after layer.

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
    """Return max over runs of |loss(c w) - loss(w)| / loss(w), where the parameters `names` are scaled by c together.

    Zero to rounding exactly if they are scale-invariant together: the probe that proves a declaration.
    """
    before = loss(values)
    after = loss({**values, **{name: factor * values[name] for name in names}})
    return float(((after - before).abs() / before).max())


def sharpness(loss: Callable[[torch.Tensor], torch.Tensor], weights: torch.Tensor) -> float:
    r"""Return the spherical sharpness: the top eigenvalue of the Hessian of `loss` at unit norm.

    h = rho^2 lambda_max(Hessian at w), for weights of shape (n,), by Lanczos iteration (`scipy.sparse.linalg.eigsh`)
    on Hessian-vector products, to 1e-3 relative. nan if a product is not finite or the iteration does not converge.

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
        top = eigsh(operator, k=1, which="LA", tol=SHARPNESS_TOLERANCE, v0=start, return_eigenvectors=False)
    except ArpackError:
        return float("nan")
    return square * float(top[0])
