r"""Groups and rescalings in the null space of a Jacobian by the logarithms of scales. No PyTorch.

A symmetry is a vector of powers a, one a tensor: w_k -> c^a_k w_k leaves the outputs as they are.
`null_basis` finds all of them; `powers_of_groups` writes them as groups, a >= 0, that share no
tensor, and rescalings, of both signs, by linear programs.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import scipy.linalg
import scipy.optimize

PARTS = 12  # powers are multiples of 1 / PARTS


def null_basis(rows: np.ndarray, limit: float) -> tuple[np.ndarray, tuple[float, float]]:
    """Return a basis of the null space of rows (m, K), and the gap of the singular values.

    Columns are scaled to length 1; singular values below `limit` of the largest count as 0. Powers
    are fractions of small numbers, so the reduced basis (K, d), with an identity at d of the K
    places, is rounded to them.

    >>> null_basis(np.array([[1.0, -1.0, 0.5], [2.0, -2.0, 1.0], [0.0, 0.0, 1.0]]), 1e-8)[0].T
    array([[1., 1., 0.]])
    """
    count = rows.shape[1]
    if not count:
        return np.empty((0, 0)), (0.0, 0.0)
    lengths = np.linalg.norm(rows, axis=0)
    _, values, vectors = np.linalg.svd(rows / lengths, full_matrices=len(rows) < count)
    values = np.concatenate([values, np.zeros(count - len(values))]) / values[0]
    zero = values < limit
    gap = float(values[zero].max(initial=0)), float(values[~zero].min(initial=1))
    null = vectors[zero].T / lengths[:, None]
    if not zero.any():
        return null, gap
    pivots = scipy.linalg.qr(null.T, pivoting=True, mode="r")[1][: null.shape[1]]
    basis = null @ np.linalg.inv(null[np.sort(pivots)])
    rounded = np.round(PARTS * basis) / PARTS
    return np.where(np.abs(rounded - basis) < 1e-2, rounded, basis), gap


def powers_of_groups(
    basis: np.ndarray, sizes: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the powers of groups and of rescalings, that together span the symmetries, and of
    overlapping groups, (n, K) each.

    `basis`: of the null space, (K, d); `sizes`: numbers of weights of the tensors; `order`: their
    places in the order of use. Groups have no tensor in common: the smallest come first. What is
    left of the smallest group of every tensor overlaps them.

    Parameters of x = (u w + r): u and w rescale, and r grows with either.

    >>> basis = np.array([[1, 0], [0, 1], [1, 1]])
    >>> groups, rescalings, others = powers_of_groups(basis, sizes=[4, 9, 4], order=[0, 1, 2])
    >>> groups.tolist(), rescalings.tolist(), others.tolist()
    ([[0.0, 1.0, 1.0]], [[1.0, -1.0, 0.0]], [[1.0, 0.0, 1.0]])
    """
    sizes, order = np.asarray(sizes, float), np.asarray(order, float)
    cost = 1 + 1e-2 * (1 - sizes / sizes.max()) + 1e-3 * (1 - order / max(1, order.max()))
    basis = np.asarray(basis, float)
    places = np.flatnonzero(np.abs(basis).max(axis=1, initial=0) > 0)
    found = _unique(smallest_group(basis, place, cost) for place in places)
    found.sort(key=lambda powers: (not _equal(powers), (powers > 0) @ cost))
    groups: list[np.ndarray] = []
    others: list[np.ndarray] = []
    for powers in found:
        shared = any((powers * other).any() for other in groups)
        (others if shared else groups).append(powers)
    groups.sort(key=lambda powers: np.flatnonzero(powers)[0])
    mixed = _unique(sparsest(basis, place, cost) for place in places)
    mixed.sort(key=lambda powers: (np.abs(powers) > 0) @ cost)
    span, rescalings = list(groups), []
    for powers in [*mixed, *found, *basis.T]:
        if _rank([*span, powers]) > len(span):
            span.append(powers)
            rescalings.append(powers * np.sign(powers[np.flatnonzero(powers)[0]]))
    shape = (-1, len(basis))
    return np.reshape(groups, shape), np.reshape(rescalings, shape), np.reshape(others, shape)


def smallest_group(basis: np.ndarray, place: int, cost: np.ndarray) -> np.ndarray | None:
    """Return powers a >= 0 of a symmetry with a = 1 at this place, of the smallest cost; or None.

    A linear program over the null space; if its powers differ, equal ones are looked for.
    """
    size = basis.shape[1]
    options = {"A_ub": -basis, "b_ub": np.zeros(len(basis))}
    fixed = {"A_eq": basis[[place]], "b_eq": [1.0], "bounds": (None, None)}
    found = scipy.optimize.linprog(basis.T @ cost, **options, **fixed)
    if found.status != 0:
        return None
    powers = _cleaned(basis @ found.x)
    return powers if _equal(powers) else _equal_group(basis, place, cost, size, powers)


def _equal_group(basis, place, cost, size, otherwise) -> np.ndarray:
    """Return the cheapest powers of 0 and 1 with 1 at this place, or else `otherwise`."""
    count = len(basis)
    lower = np.concatenate([np.zeros(count), np.full(size, -np.inf)])
    upper = np.concatenate([np.ones(count), np.full(size, np.inf)])
    lower[place] = 1
    found = scipy.optimize.milp(
        np.concatenate([cost, np.zeros(size)]),
        integrality=np.concatenate([np.ones(count), np.zeros(size)]),
        bounds=scipy.optimize.Bounds(lower, upper),
        constraints=scipy.optimize.LinearConstraint(np.hstack([np.eye(count), -basis]), 0, 0),
        options={"time_limit": 5.0},
    )
    return np.round(found.x[:count]) if found.status == 0 else otherwise


def sparsest(basis: np.ndarray, place: int, cost: np.ndarray) -> np.ndarray:
    """Return powers of a symmetry, of any sign, with 1 at this place and the smallest sum."""
    count, size = basis.shape
    eye = np.eye(count)
    found = scipy.optimize.linprog(
        np.concatenate([cost, cost, np.zeros(size)]),
        A_eq=np.vstack(
            [
                np.hstack([eye, -eye, -basis]),
                np.eye(1, 2 * count + size, place) - np.eye(1, 2 * count + size, count + place),
            ]
        ),
        b_eq=np.concatenate([np.zeros(count), [1.0]]),
        bounds=[(0, None)] * (2 * count) + [(None, None)] * size,
    )
    return _cleaned(basis @ found.x[2 * count :])


def _cleaned(powers: np.ndarray) -> np.ndarray:
    """Return powers with what rounding left of 0 removed, fractions exact."""
    rounded = np.round(PARTS * powers) / PARTS
    return np.where(np.abs(rounded - powers) < 1e-2, rounded, powers) + 0.0


def _equal(powers: np.ndarray) -> bool:
    """Whether all powers that are not 0 are 1."""
    return bool(np.isin(powers, (0.0, 1.0)).all())


def _unique(found: Iterable[np.ndarray | None]) -> list[np.ndarray]:
    """Return every array of powers once."""
    kept: dict[tuple, np.ndarray] = {}
    for powers in found:
        if powers is not None:
            kept.setdefault(tuple(np.round(powers, 3)), powers)
    return list(kept.values())


def _rank(vectors: list[np.ndarray]) -> int:
    """Return how many of the vectors are independent."""
    return int(np.linalg.matrix_rank(np.array(vectors), tol=1e-3))
