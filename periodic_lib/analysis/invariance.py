"""How exactly a symmetry holds: relative errors of identities, and how far two runs have parted."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike


def relative_error(left: ArrayLike, right: ArrayLike) -> float:
    """Return |left - right| / |right|, of arrays as vectors.

    >>> relative_error([3.0, 4.4], [3.0, 4.0]).__round__(12)
    0.08
    """
    left, right = np.asarray(left, float), np.asarray(right, float)
    return float(np.linalg.norm(left - right) / np.linalg.norm(right))


def decade(error: float) -> str:
    """Return the power of ten that an error does not exceed, 1e-16 at least.

    >>> decade(3e-13), decade(0.0)
    ('1e-12', '1e-16')
    """
    return f"1e{math.ceil(math.log10(max(error, 1e-16)))}"


def parted(results: xr.Dataset, run: int, reference: int = 0) -> np.ndarray:
    """Return the largest relative difference of a run's losses to another run's so far, (step,).

    >>> losses = ("run", "step"), [[1.0, 2.0, 4.0], [1.0, 3.0, 4.0]]
    >>> parted(xr.Dataset({"train_loss": losses}), run=1).tolist()
    [0.0, 0.5, 0.5]
    """
    losses = results.train_loss.values.astype(float)
    return np.maximum.accumulate(np.abs(losses[run] / losses[reference] - 1))
