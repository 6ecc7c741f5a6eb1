r"""What a monitor measures of groups of parameters at an optimizer's steps, without waiting for the
device.

A *cell* is what one group of parameters and one parameter group of the optimizer have in common:
its learning rate and weight decay are one number each. Of every cell a row of sums is kept on the
device, from which `measures` makes norms, angles and cosines on the host, in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from periodic_lib.checks import known_names
from periodic_lib.project import ConfigError

ROWS = 100  # steps between two copies to the host
SUMS = (  # of a cell, in the order of the ring's columns
    "weight_square",  # |w|^2 before the step
    "grad_square",  # |g|^2, g without the decay term
    "product",  # <g, w>
    "second_moment",  # sum of Adam's second moments, before the step
    "change_square",  # |w' - w|^2, where a copy was kept
    "new_square",  # |w'|^2
    "change_along",  # <w', w' - w>
)
MEASURES = (  # of a group, in the order of the columns that `measures` returns
    "weight_norm",
    "grad_norm",
    "angular_update",
    "radial_cosine",
    "relative_update",
    "second_moment",
    "lr",
    "weight_decay",
)
SQUARED = ("angular_update", "relative_update")  # averaged as the root of the mean square


@dataclass
class Cell:
    """Parameters of one group that share a parameter group of the optimizer (None: in none)."""

    group: int
    place: int | None  # of the parameter group in the optimizer's list, whose dicts may be replaced
    parameters: list[torch.nn.Parameter]

    def rates(self, optimizer: torch.optim.Optimizer) -> tuple[float | torch.Tensor, ...]:
        """Return learning rate and weight decay; zeros where the optimizer has no such weights."""
        mine = {} if self.place is None else optimizer.param_groups[self.place]
        return tuple(_still(mine.get(name, 0.0)) for name in ("lr", "weight_decay"))


def refuse_shards(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Raise for parameters of which this process holds a part only.

    Raises
    ------
    ConfigError : for DTensor and FSDP's flat parameters.
    """
    for one in parameters:
        if hasattr(one, "device_mesh") or getattr(one, "_is_flat_param", False):
            raise ConfigError(
                "`model` must have whole parameters; got sharded ones (DTensor, FSDP), whose norms "
                "no single process knows. Monitor an unsharded training of a smaller model instead."
            )


def named(
    groups: Sequence[Sequence[str | torch.nn.Parameter]], names: Mapping[int, str]
) -> list[list[str]]:
    """Return `groups` as names; `names`: of parameters by identity.

    Raises
    ------
    ConfigError : for a name or a parameter that the model does not have, or one in two groups.
    """
    found = []
    for group in groups:
        if isinstance(group, str):
            raise ConfigError(
                f"`groups` must be a list of lists; got {group!r} in it. Write [[...]]."
            )
        found.append([p if isinstance(p, str) else names.get(id(p), "?") for p in group])
    flat = [name for group in found for name in group]
    known_names("parameter", flat, list(names.values()))
    twice = sorted({name for name in flat if flat.count(name) > 1})
    if twice:
        raise ConfigError(f"`groups` must have each parameter once; got {twice[0]!r} twice.")
    return found


def split(groups: Sequence[Sequence[torch.nn.Parameter]], optimizer) -> list[Cell]:
    """Return the cells of `groups`, group after group."""
    parts = enumerate(optimizer.param_groups)
    owner = {id(p): place for place, rates in parts for p in rates["params"]}
    cells = []
    for number, group in enumerate(groups):
        mine: dict[int | None, Cell] = {}
        for one in group:
            place = owner.get(id(one))
            mine.setdefault(place, Cell(number, place, [])).parameters.append(one)
        cells += mine.values()
    return cells


def decayed(
    groups: Sequence[Sequence[torch.nn.Parameter]], optimizer: torch.optim.Optimizer
) -> list[int]:
    """Return the places of the groups that weight decay shrinks; of all, if it shrinks none.

    >>> one, other = (torch.nn.Parameter(torch.ones(2)) for _ in "ab")
    >>> parts = [{"params": [one], "weight_decay": 0.1}, {"params": [other]}]
    >>> decayed([[other], [one]], torch.optim.SGD(parts, lr=0.1))
    [1]
    """
    rates = {
        id(weights): part.get("weight_decay", 0)
        for part in optimizer.param_groups
        for weights in part["params"]
    }
    shrunk = [i for i, group in enumerate(groups) if any(rates.get(id(p), 0) for p in group)]
    return shrunk or list(range(len(groups)))


def is_plain(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step is -lr (g + weight decay w), so that the angle follows from the sums."""
    return type(optimizer).__name__ == "SGD" and not any(
        rates["momentum"] for rates in optimizer.param_groups
    )


class Gauges:
    """A ring of sums of every cell, filled at each step and read every `ROWS` steps.

    Parameters
    ----------
    cells : as `split` returns them.
    optimizer : whose state holds Adam's second moments.
    copied : number of leading cells of which a copy is kept for the angle, unless the optimizer
        `is_plain`.
    """

    def __init__(self, cells: Sequence[Cell], optimizer: torch.optim.Optimizer, copied: int):
        self.cells, self.optimizer = list(cells), optimizer
        self.parameters = [p for cell in cells for p in cell.parameters]
        owner = [i for i, cell in enumerate(cells) for _ in cell.parameters]
        self.device = self.parameters[0].device
        self._dtype = torch.float32 if self.device.type == "mps" else torch.float64
        like = {"dtype": self._dtype, "device": self.device}
        members = np.equal.outer(np.arange(len(cells)), owner).astype(float)
        self._members = torch.as_tensor(members).to(**like)
        self._zero = torch.zeros((), dtype=torch.float32, device=self.device)
        self.ring = torch.full((ROWS, len(SUMS), len(cells)), np.nan, **like)
        self.losses = torch.full((ROWS,), np.nan, **like)
        self.rates = [[(0.0, 0.0)] * len(cells) for _ in range(ROWS)]
        self._copied_cells = 0 if is_plain(optimizer) else copied
        self._copied = sum(len(cell.parameters) for cell in cells[: self._copied_cells])
        self._old: list[torch.Tensor] | None = None
        self._kept = False  # whether `_old` has the weights before this step
        self._half = any(p.dtype in (torch.float16, torch.bfloat16) for p in self.parameters)

    # -- at a step

    def before(self, row: int, keep_copy: bool) -> None:
        """Measure weights and gradients before a step; `keep_copy`: of the weights, for `after`."""
        self.rates[row] = [cell.rates(self.optimizer) for cell in self.cells]
        with torch.no_grad():
            weights, sums = self.parameters, self.ring[row]
            here = [i for i, p in enumerate(weights) if p.grad is not None]
            gradients = [weights[i].grad for i in here]
            products = [_dot(weights[i], g) for i, g in zip(here, gradients, strict=True)]
            norms = self._norms([*weights, *gradients])
            lengths = self._placed(here, norms[len(weights) :])
            columns = self._by_cell(norms[: len(weights)], lengths, self._placed(here, products))
            sums[:3] = columns
            scale = getattr(self.optimizer, "grad_scale", None)  # a fused step unscales by itself
            if scale is not None:
                skipped = self.optimizer.found_inf.to(self._dtype) > 0  # and skips one, too
                sums[1] /= torch.where(skipped, torch.nan, scale.to(self._dtype)) ** 2
                sums[2] /= torch.where(skipped, torch.nan, scale.to(self._dtype))
            sums[3:] = float("nan")
            self._second_moments(sums)
            if keep_copy and self._copied:
                self._keep(weights[: self._copied])

    def after(self, row: int) -> None:
        """Measure the change of the weights since `before`, where a copy was kept."""
        if not self._kept:
            return
        with torch.no_grad():
            new = self.parameters[: self._copied]
            torch._foreach_sub_(self._old, new)  # w - w'
            along = [-_dot(n, d) for n, d in zip(new, self._old, strict=True)]
            norms, places = self._norms([*self._old, *new]), range(self._copied)
            lengths = norms[: self._copied], norms[self._copied :]
            change, now = (self._placed(places, length) for length in lengths)
            self.ring[row, 4:] = self._by_cell(change, now, self._placed(places, along))
            self.ring[row, 4:, self._copied_cells :] = np.nan
        self._kept = False

    def _keep(self, weights: list[torch.Tensor]) -> None:
        if self._old is None:
            self._old = [w.detach().clone() for w in weights]
        else:
            torch._foreach_copy_(self._old, weights)
        self._kept = True

    def _second_moments(self, sums: torch.Tensor) -> None:
        """Keep the sums of Adam's second moments, where the optimizer has them."""
        state = self.optimizer.state
        here = [i for i, p in enumerate(self.parameters) if "exp_avg_sq" in state.get(p, ())]
        if here:
            moments = [state[self.parameters[i]]["exp_avg_sq"] for i in here]
            found = self._placed(here, torch._foreach_norm(moments, 1))
            sums[3] = self._by_cell(found)[0]

    def _norms(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        how = {"dtype": torch.float32} if self._half else {}
        return torch._foreach_norm(tensors, 2, **how)

    def _placed(self, places, values) -> list[torch.Tensor]:
        """Return a value for every parameter, zero where there is none."""
        found = [self._zero] * len(self.parameters)
        for place, value in zip(places, values, strict=True):
            found[place] = value
        return found

    def _by_cell(self, *columns: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return sums over the parameters of each cell, (columns, cells): of three columns the
        first two are squared before.
        """
        values = [value for column in columns for value in column]
        if len({value.device for value in values}) > 1:
            values = [value.to(self.device, non_blocking=True) for value in values]
        table = torch.stack(values).to(self._dtype).reshape(-1, len(self.parameters))
        if len(table) == 3:
            table[:2].square_()
        return table @ self._members.T

    # -- on the host

    def read(self, rows: int) -> tuple[NDArray, NDArray, NDArray]:
        """Return losses (rows,), sums (rows, SUMS, cells), rates (rows, 2, cells); this waits."""
        stacked = torch.cat([self.ring[:rows].flatten(), self.losses[:rows]]).cpu().numpy()
        stacked = stacked.astype(float)
        sums = stacked[: -rows or None].reshape(rows, len(SUMS), len(self.cells))
        rates = [[[float(r) for r in cell] for cell in row] for row in self.rates[:rows]]
        self.losses.fill_(np.nan)
        return stacked[len(stacked) - rows :], sums, np.array(rates).swapaxes(1, 2)


def _still(rate: float | torch.Tensor) -> float | torch.Tensor:
    """Return a rate that a schedule cannot change any more."""
    return rate.detach().clone() if isinstance(rate, torch.Tensor) else float(rate)


def _dot(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the inner product, in at least float32."""
    if one.dtype in (torch.float16, torch.bfloat16) or other.dtype != one.dtype:
        return torch.sum(one.float() * other.float())
    if one.dim() == 4 and one.stride() == other.stride() and one.stride(1) == 1:  # channels last
        one, other = one.permute(0, 2, 3, 1), other.permute(0, 2, 3, 1)
    return torch.dot(one.reshape(-1), other.reshape(-1))


def measures(sums: NDArray, rates: NDArray, owner: NDArray, plain: bool) -> NDArray:
    r"""Return the measures of every group, (rows, MEASURES, groups), from the sums of its cells.

    The angle is that between w and w' = w + d: atan2(|d across w|, |w| + d along w). Of plain SGD
    d = -lr (g + weight_decay w) has |d|^2 and <w, d> in the sums; else d was measured.

    Parameters
    ----------
    sums : (rows, SUMS, cells). rates : (rows, 2, cells): learning rate and weight decay.
    owner : (groups, cells), 1 where a cell belongs to a group.
    plain : whether the steps are those of plain SGD.
    """
    by = {name: sums[:, i] for i, name in enumerate(SUMS)}
    lr, decay = rates[:, 0], rates[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        if plain:
            w2, g2, p = by["weight_square"], by["grad_square"], by["product"]
            square = lr**2 * (decay**2 * w2 + 2 * decay * p + g2)
            along = -lr * (decay * w2 + p)
        else:
            square, along = by["change_square"], by["change_along"]
        return _of_groups(by, square, along, lr, decay, owner, plain)


def _of_groups(by, square, along, lr, decay, owner, plain) -> NDArray:
    def total(values):
        return np.stack([values[:, mine].sum(1) for mine in owner > 0], axis=1)

    norm, gradient = np.sqrt(total(by["weight_square"])), np.sqrt(total(by["grad_square"]))
    change, base = total(square), norm
    if not plain:
        base = np.sqrt(total(by["new_square"]))
    radial = total(along) / base  # of the change, along w, or along w'
    across = np.sqrt(np.maximum(change - radial**2, 0))
    mean_lr = total(lr * by["weight_square"]) / norm**2
    mean_decay = total(lr * decay * by["weight_square"]) / norm**2 / mean_lr
    columns = {
        "weight_norm": norm,
        "grad_norm": gradient,
        "angular_update": np.arctan2(across, base + (radial if plain else -radial)),
        "radial_cosine": np.where(gradient > 0, total(by["product"]) / norm / gradient, 0.0),
        "relative_update": np.sqrt(change) / norm,
        "second_moment": np.sqrt(total(by["second_moment"])),
        "lr": mean_lr,
        "weight_decay": np.where(mean_lr > 0, mean_decay, 0.0),
    }
    return np.stack([columns[name] for name in MEASURES], axis=1)


def by_group(table: NDArray, names: Mapping[str, bool]) -> dict[str, dict[str, object]]:
    """Return the columns of every group for `verdicts.judge`: `table` (rows, MEASURES, groups), and
    `names` of the groups, with whether their weights are scale-invariant.
    """
    found = {}
    for place, (name, invariant) in enumerate(names.items()):
        one = {measure: table[:, i, place] for i, measure in enumerate(MEASURES)}
        one["eff_grad_norm"] = one["weight_norm"] * one["grad_norm"]
        found[name] = one | {"invariant": invariant}
    return found
