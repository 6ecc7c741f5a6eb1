"""Measurements of stacked scale-invariant weights: flat tensors (runs, weights) in, one number per run out."""

from __future__ import annotations

from collections.abc import Callable

import torch


def norm(vectors: torch.Tensor) -> torch.Tensor:
    """Return the Euclidean norm of each run's vector, shape (runs,)."""
    return torch.linalg.vector_norm(vectors, dim=1)


def angle(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Return the angle between each run's old and new vector in radians, shape (runs,).

    atan2 of the parts of the change across and along `old`: exact to rounding for the small steps of training, where
    arccos of a float32 cosine would lose every digit below 3e-4.

    >>> angle(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.9, 1.9e-6]]))
    tensor([1.0000e-06])
    """
    change = new - old
    square = torch.linalg.vecdot(old, old)
    along = torch.linalg.vecdot(old, change)
    across = torch.addcmul(change, old, (along / square).unsqueeze(1), value=-1)
    return torch.atan2(norm(across), (square + along) / square.sqrt())


def scale_sensitivity(
    loss: Callable[[dict[str, torch.Tensor]], torch.Tensor], values: dict[str, torch.Tensor], name: str, factor: float
) -> float:
    """Return max over runs of |loss(c w) - loss(w)| / loss(w), where only the parameter `name` is scaled by c.

    Zero to rounding exactly if that parameter is scale-invariant: the probe that proves a declaration.
    """
    before = loss(values)
    after = loss({**values, name: factor * values[name]})
    return float(((after - before).abs() / before).max())
