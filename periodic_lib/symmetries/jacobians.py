"""The Jacobian of a model's outputs by the logarithms of its tensors' scales, row by row.

A row costs one pass backward.

J_ik = <dz_i/dw_k, w_k>, with random projections z_i of the outputs. What it sends to 0 are the
scaling symmetries of the model (`periodic_lib.symmetries`).
"""

from __future__ import annotations

import time

import numpy as np
import torch

from periodic_lib.symmetries.powers import null_basis
from periodic_lib.symmetries.probes import NotRunError, Probe

LIMITS = {  # precision -> what counts as 0: cosine or singular value, output change, |g| |w|
    torch.float64: (1e-6, 1e-6, 1e-10),
    torch.float32: (1e-4, 1e-3, 1e-6),
}
NEARLY = 1e-4  # singular value of an approximate symmetry; a tenth of the cosine of one
FEW = 6  # projections for tensors on their own
MORE = 8  # projections beyond the number of unknown tensors
WEIGHTS = 3  # perturbed weights at least
ROWS = 1.5  # outputs per tensor
ENOUGH = 0.7  # of the time left, for the rows: checks need the rest


class Clock:
    """The time that is left of so many seconds."""

    def __init__(self, seconds: float):
        self.begin, self.seconds = time.monotonic(), seconds

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.begin

    @property
    def left(self) -> float:
        """Seconds left, negative if there are none."""
        return self.seconds - self.spent


class Rows:
    """Rows of the Jacobian by the logarithms of the scales of a probe's tensors."""

    def __init__(self, probe: Probe, outputs: torch.Tensor, clock: Clock):
        self.probe, self.outputs, self.clock = probe, outputs, clock
        self.limits = LIMITS[probe.dtype]
        self.exact = probe.dtype == torch.float64
        self.found: list[np.ndarray] = []
        self.seed = self.used = 0
        self.seconds_each = 0.0

    @classmethod
    def started(cls, model: torch.nn.Module, example: object, clock: Clock) -> Rows:
        """Return the rows of a probe with the first of them, in single precision if need be.

        Raises
        ------
        ConfigError : if the copy runs in neither precision.
        """
        try:
            probe = Probe(model, example)
            rows = cls(probe, probe.run(), clock)
            rows.add(1)
            if rows.seconds_each * FEW < clock.left:
                return rows
        except NotRunError as error:
            first = error
        else:
            first = None
        try:
            probe = Probe(model, example, torch.float32)
            return cls(probe, probe.run(), clock)
        except NotRunError as error:
            raise first or error from None

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self.found)

    def add(self, count: int, least: int | None = None) -> None:
        """Add so many rows, at weights perturbed anew every few of them; at least `least` of them,
        more only while there is time.

        The weights change so often that there are 1.5 outputs for a row: symmetries hold at all
        weights.
        """
        most = max(1, min(int(self.outputs.numel() / ROWS), -(-count // WEIGHTS)))
        begin = time.monotonic()
        for done in range(count):
            if least is not None and done >= least and self.clock.left < 0:
                break
            if self.used >= most:
                self.seed, self.used = self.seed + 1, 0
                self.probe.perturb(self.seed)
                self.outputs = self.probe.run()
            self.found.append(self.probe.row(self.outputs, self.count))
            self.used += 1
            self.seconds_each = (time.monotonic() - begin) / (done + 1)

    def sorted_out(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return which tensors are invariant alone, which are dead, and which nearly invariant
        alone, (K,) each.

        The last: a hundredth of the effect that a random direction has, and a small cosine.
        """
        products, bounds = np.moveaxis(np.array(self.found), 1, 0)
        size = np.sqrt((bounds**2).mean(axis=0))
        dead = size <= self.limits[2] * size.max()
        cosine = np.abs(products).max(axis=0) / np.where(dead, 1, size)
        alone = ~dead & (cosine < self.limits[0])
        nearly = (cosine < 10 * NEARLY) & (cosine * np.sqrt(self.probe.sizes) < 0.01)
        return alone, dead, nearly & ~dead & ~alone

    def null_space(self, unknown: np.ndarray, limit: float) -> tuple[np.ndarray, tuple]:
        """Return a basis of the symmetries of these tensors, (K, d), and the gap of the singular
        values at this limit.
        """
        found, gap = null_basis(np.array(self.found)[:, 0][:, unknown], limit)
        basis = np.zeros((len(unknown), found.shape[1]))
        basis[unknown] = found
        return basis, gap

    def what_is_left(self, rows: int) -> str:
        """Return what cannot be tested in the time left, as a sentence; empty if all can."""
        if not self.exact:
            return "Tested in single precision: each tensor on its own. Not tested: joint groups."
        if rows * self.seconds_each < ENOUGH * self.clock.left:
            return ""
        needed = self.clock.spent + 2 * rows * self.seconds_each
        return (
            "Tested: each tensor on its own. Not tested, for want of time: joint groups; give "
            f"`seconds={10 * int(needed / 10 + 1)}`, or a smaller example."
        )
