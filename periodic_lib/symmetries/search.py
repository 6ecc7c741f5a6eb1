r"""Which weights of a network are scale-invariant: found by experiment, not by the names of layers.

Definitions
-----------
*Scaling symmetry*: powers a of the K trained tensors with f(c^a_1 w_1, ..., c^a_K w_K) = f(w_1,
..., w_K) for every c > 0. The powers of all symmetries are the null space of the Jacobian of the
outputs by the logarithms of the tensors' scales, J_ik = <dz_i/dw_k, w_k>, at any weights and
inputs. Rows of J are random projections of the outputs, a pass backward each.

*Group*: tensors that are scale-invariant together, a_k >= 0, the smallest set that is. Groups share
no tensor, so all can be scaled at once. Where a symmetry has more than one such form, the one of
the fewest tensors counts, of these the largest, of these the last used.

*Rescaling*: a symmetry with powers of both signs: what one tensor takes up, another gives back.
Weight decay gains nothing by it.

*Dead*: tensors without a gradient, such as a bias before batch normalization.

Source: Li and Arora 2020 (arXiv 1910.07454) for <dL/dw, w> = 0, and Kunin et al. 2021 (arXiv
2012.04728) for rescalings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from periodic_lib.checks import flag, number
from periodic_lib.project import ConfigError
from periodic_lib.symmetries.jacobians import FEW, MORE, NEARLY, Clock, Rows
from periodic_lib.symmetries.powers import powers_of_groups
from periodic_lib.symmetries.probes import Probe

NEARLY_CHANGE = 0.01  # the output change when its weights are doubled
FAILS = 0.01  # relative output change from which an epsilon has broken an invariance
LARGE = 64.0  # times the weights: no epsilon matters there
NOT_SEEN = 1e-11  # output change that is rounding


@dataclass(frozen=True)
class Group:
    """Tensors that are scale-invariant together.

    `powers`: a_k, all 1 but in rare networks; `share`: of the trained weights; `norm`: of all its
    weights together, as the model has them; `error`: relative change of the outputs when the
    weights are doubled; `fails_below`: the norm below which the model's own epsilons change the
    outputs by 1 %, 0 if far below, None if not measured.
    """

    names: tuple[str, ...]
    powers: tuple[float, ...]
    parameters: int
    share: float
    norm: float
    error: float
    fails_below: float | None = None

    def __str__(self) -> str:
        """Return the names, and how small the norm may become."""
        limit = self.fails_below
        text = f"{_listed(self.names)} ({100 * self.share:.3g} % of the weights, norm "
        text += f"{self.norm:.3g}"
        return text + (f", fails below {limit:.2g})" if limit is not None else ")")


@dataclass(frozen=True)
class Rescaling:
    """Tensors that can take up a factor and those that give it back, with their powers."""

    up: dict[str, float]
    down: dict[str, float]

    def __str__(self) -> str:
        """Return the names on either side."""
        return f"{_listed(self.up)} against {_listed(self.down)}"


@dataclass(frozen=True)
class Symmetries:
    """The scaling symmetries of a model, see `find_groups`.

    `overlapping`: further smallest groups, which share tensors with those that count, so that both
    cannot be scaled at once; `tied`: the names of each tensor that has more than one; `untested`:
    what was not looked for, and why, empty if everything was; `gap`: the largest singular value
    that counted as 0 and the smallest that did not.
    """

    groups: tuple[Group, ...]
    dead: tuple[str, ...]
    rescalings: tuple[Rescaling, ...]
    approximate: tuple[Group, ...]
    overlapping: tuple[Group, ...]
    tied: tuple[tuple[str, ...], ...]
    tensors: int
    frozen: int
    parameters: int
    precision: str
    seconds: float
    untested: str = ""
    gap: tuple[float, float] = field(default=(0.0, 0.0))

    @property
    def names(self) -> list[list[str]]:
        """The names of the tensors of every group."""
        return [list(group.names) for group in self.groups]

    @property
    def share(self) -> float:
        """The share of the trained weights that is in a group."""
        return sum(group.parameters for group in self.groups) / self.parameters

    @property
    def error(self) -> float:
        """The largest relative output change of a group when its weights are doubled."""
        return max((group.error for group in self.groups), default=0.0)

    def report(self, most: int = 8) -> str:
        """Return what was found in a few lines; groups and rescalings up to `most` each."""
        return "\n".join(_report(self, most))

    def __str__(self) -> str:
        """Return the report."""
        return self.report()


def _listed(names, most: int = 4) -> str:
    """Return the first names, and how many more there are.

    >>> _listed("abcde"), _listed("ab")
    ('a, b, c, d and 1 more', 'a, b')
    """
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _report(found: Symmetries, most: int) -> Iterator[str]:
    """Yield the lines of a report."""
    inside = sum(len(group.names) for group in found.groups)
    if found.groups:
        yield (
            f"{inside} of {found.tensors} tensors in {len(found.groups)} scale-invariant groups: "
            f"{100 * found.share:.3g} % of {found.parameters:,} weights, verified to "
            f"{found.error:.1g} in {found.precision} ({found.seconds:.1f} s)."
        )
    else:
        what = "No tensor is scale-invariant on its own" if found.untested else NO_GROUP
        yield f"{what} ({found.tensors} tensors, {found.seconds:.1f} s)."
    if found.untested:
        yield found.untested
    for group in found.groups[:most]:
        yield f"  {group}"
    if len(found.groups) > most:
        yield f"  and {len(found.groups) - most} more groups"
    if found.tied:
        yield "Shared: " + "; ".join(" = ".join(names) for names in found.tied) + "."
    if found.dead:
        yield f"Without a gradient: {_listed(found.dead)}."
    if found.rescalings:
        texts = "; ".join(str(one) for one in found.rescalings[:most])
        yield f"Rescalings, not counted ({len(found.rescalings)}): {texts}."
    for group in found.overlapping[:most]:
        yield f"Invariant too, but not counted, as it shares tensors with the groups: {group}."
    for group in found.approximate:
        yield f"Only nearly invariant, not counted: {group}, error {group.error:.1g}."
    if found.frozen:
        yield f"Not trained and left out: {found.frozen} tensors."


NO_GROUP = (
    "No group of tensors is scale-invariant: weight decay cannot raise an effective learning "
    "rate here, and this mechanism of instabilities does not apply"
)


def find_groups(
    model: torch.nn.Module, example: object, seconds: float = 60.0, margins: bool = True
) -> Symmetries:
    r"""Find the groups of tensors of a model that are scale-invariant, alone or together.

    f(c w_G, w_rest) = f(w_G, w_rest) for every c > 0, with normalization as in training, dropout
    off and epsilons near 0. The model is not touched: a copy in double precision on the CPU is
    perturbed and differentiated; every group is then doubled to see that the outputs stay.

    Parameters
    ----------
    model : any module of floating tensors; those with `requires_grad` False are left out.
    example : inputs as the model takes them: a tensor, a tuple of them, or a dict of named ones. A
        few examples are enough; batch normalization needs at least three.
    seconds : time to spend. If it does not suffice, only tensors that are invariant on their own
        are looked for, at last in single precision, and the result says so (`untested`).
    margins : whether to measure the norm below which an epsilon breaks a group (`fails_below`):
        three more passes for each.

    Raises
    ------
    ConfigError : if the model cannot be copied or run, or its parameters are sharded, quantized,
        complex or have no values.

    >>> from torch import nn
    >>> layers = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)
    >>> found = find_groups(nn.Sequential(*layers), torch.randn(16, 5))
    >>> found.names, found.dead, found.error < 1e-9
    ([['0.weight']], ('0.bias',), True)
    """
    number("seconds", seconds, "a positive number of seconds", 0, float("inf"), low_open=True)
    flag("margins", margins)
    clock = Clock(seconds)
    measured = Rows.started(model, example, clock)
    measured.add(FEW, least=2)
    alone, dead, near = measured.sorted_out()
    left = max(0, (~alone & ~dead).sum() + MORE - measured.count)
    untested = measured.what_is_left(left)
    basis = wide = np.empty((len(dead), 0))
    gap = (0.0, 0.0)
    if not untested:
        measured.add(left)
        alone, dead, near = measured.sorted_out()
        basis, gap = measured.null_space(~alone & ~dead, measured.limits[0])
        wide, _ = measured.null_space(~alone & ~dead & ~near, NEARLY)
    sizes, order = measured.probe.sizes, measured.probe.order
    joint, rescalings, others = powers_of_groups(basis, sizes, order)
    powers = np.vstack([np.eye(len(dead))[alone], joint])
    powers = powers[np.argsort((powers > 0).argmax(axis=1))]  # in the model's order
    nearly = np.vstack([np.eye(len(dead))[near], powers_of_groups(wide, sizes, order)[0]])
    checked = _Check(measured.probe, clock, measured.limits[1], margins)
    good, approximate = checked.groups(powers, nearly)
    overlapping = checked.overlapping(others)
    held = [one for one in rescalings if clock.left < 0 or checked.error(one) <= checked.limit]
    return checked.result(good, approximate, overlapping, held, dead, untested, gap)


# ---------------------------------------------------------------- checks on the outputs


class _Check:
    """Scales groups of a probe's tensors and sees what the outputs do."""

    def __init__(self, probe: Probe, clock: Clock, limit: float, margins: bool):
        self.probe, self.clock, self.limit, self.margins = probe, clock, limit, margins
        self.reference = probe.run().detach()

    def error(self, powers: np.ndarray) -> float:
        """Return |z(doubled) - z| / |z| of the outputs."""
        return self.change(powers, 2.0, self.reference, tiny=True)

    def change(self, powers, factor: float, reference: torch.Tensor, tiny: bool) -> float:
        """Return the relative difference of the outputs at scaled weights to others."""
        try:
            changed = self.probe.run(powers, factor, tiny).detach()
        except ConfigError:  # not finite
            return float("inf")
        return float((changed - reference).norm() / reference.norm())

    def groups(self, powers: np.ndarray, nearly: np.ndarray) -> tuple[list[Group], list[Group]]:
        """Return the groups of these powers that hold, and those that hold nearly."""
        together = self.error(powers.sum(axis=0)) if len(powers) else 0.0
        good, approximate = [], []
        for one in powers:
            quick = self.clock.left < 0 and together <= self.limit
            error = together if quick else self.error(one)
            if error <= self.limit:
                measured = self.fails_below(one) if self.margins and not quick else None
                good.append(self.group(one, error, measured))
            elif error <= NEARLY_CHANGE:
                approximate.append(self.group(one, error, None))
        known = [set(group.names) for group in [*good, *approximate]]
        for one in nearly:
            group = self.group(one, self.error(one), None)
            if group.error <= NEARLY_CHANGE and set(group.names) not in known:
                approximate.append(group)
        return good, approximate

    def overlapping(self, powers: np.ndarray) -> list[Group]:
        """Return the groups of these powers that hold, while there is time."""
        found = []
        for one in powers:
            if self.clock.left > 0 and (error := self.error(one)) <= self.limit:
                found.append(self.group(one, error, None))
        return found

    def fails_below(self, powers: np.ndarray) -> float:
        """Return the norm of a group below which the model's own epsilons change the outputs
        by 1 %, compared to those at a large norm.

        An epsilon adds to a variance, so its effect falls with 1 / c^2. Measured at 1/8 of the
        weights, at more where that is beyond the law, and where the law says 1 %. 0 where nothing
        is seen at 1/8.
        """
        try:
            large = self.probe.run(powers, LARGE, tiny=False).detach()
        except ConfigError:
            return float("nan")
        for factor in (1 / 8, 1 / 2, 2, 8):
            error = self.change(powers, factor, large, tiny=False)
            if error < 0.1:
                break
        if error < NOT_SEEN:
            return 0.0
        factor *= (error / FAILS) ** 0.5
        error = self.change(powers, factor, large, tiny=False)
        return float(factor * min(max(error / FAILS, 0.1), 10) ** 0.5 * self.norm(powers))

    def norm(self, powers: np.ndarray) -> float:
        """Return the norm of a group's weights as the model has them."""
        return float(np.linalg.norm(self.probe.norms[powers != 0]))

    def group(self, powers: np.ndarray, error: float, fails_below: float | None) -> Group:
        """Return a group with its names and sizes."""
        inside = np.flatnonzero(powers)
        count = int(self.probe.sizes[inside].sum())
        return Group(
            names=tuple(self.probe.names[place][0] for place in inside),
            powers=tuple(powers[inside].tolist()),
            parameters=count,
            share=count / int(self.probe.sizes.sum()),
            norm=self.norm(powers),
            error=error,
            fails_below=fails_below,
        )

    def result(self, good, approximate, overlapping, rescalings, dead, untested, gap) -> Symmetries:
        """Return all that was found."""
        names = [shared[0] for shared in self.probe.names]
        return Symmetries(
            groups=tuple(good),
            dead=tuple(names[place] for place in np.flatnonzero(dead)),
            rescalings=tuple(_rescaling(names, powers) for powers in rescalings),
            approximate=tuple(approximate),
            overlapping=tuple(overlapping),
            tied=tuple(shared for shared in self.probe.names if len(shared) > 1),
            tensors=len(names),
            frozen=self.probe.frozen,
            parameters=int(self.probe.sizes.sum()),
            precision=str(self.probe.dtype).removeprefix("torch."),
            seconds=self.clock.spent,
            untested=untested,
            gap=gap,
        )


def _rescaling(names: list[str], powers: np.ndarray) -> Rescaling:
    """Return a rescaling by the names of its tensors."""
    up = {name: float(power) for name, power in zip(names, powers, strict=True) if power > 0}
    down = {name: float(power) for name, power in zip(names, powers, strict=True) if power < 0}
    return Rescaling(up, down)
