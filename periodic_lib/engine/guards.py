"""What practitioners put between a gradient and its step: clipping, and steps that are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from periodic_lib.config import Run

HISTORY = 128  # gradient norms that a step is compared with
ENOUGH = HISTORY // 2  # of them, before any step is left out
TINY = 1e-6  # as torch.nn.utils.clip_grad_norm_
WARM_UP = 25  # gradient norms from which ZClip's statistics start
MEMORY = 0.97  # of its mean and variance, the authors' default
STATE = ("first", "mean", "variance", "count")  # that it keeps from step to step


class AdaptiveLimit:
    r"""The limit of ZClip (Kumar et al. 2025, arXiv 2504.02507), for each run by itself.

    mu and sigma are mean and deviation of the gradient's norm, exponentially weighted with 0.97. A
    norm with z = (|g| - mu) / (sigma + 1e-6) above the run's z* gets the limit

        mu + z*^2 sigma / z,

    the nearer to mu the further it is off, and enters the two as that limit; any other as it is.
    They start from the first 25 norms, before which nothing is limited. As the authors' code: the
    variance is of the distance to the mean that has been updated already.

    Parameters
    ----------
    above : z* (runs, 1); infinity: no limit.
    """

    def __init__(self, above: torch.Tensor):
        self.above = above
        self.first = torch.zeros(len(above), WARM_UP, dtype=above.dtype, device=above.device)
        self.mean, self.variance = (torch.zeros_like(above) for _ in range(2))
        self.count = torch.zeros_like(above, dtype=torch.int64)

    def of(self, length: torch.Tensor) -> torch.Tensor:
        """Return the limits (runs, 1) of gradients of this norm; infinity: none. Take it in."""
        spread = self.variance.sqrt()
        z = (length - self.mean) / (spread + TINY)
        outlier = (self.count >= WARM_UP) & (z > self.above)
        limit = torch.where(outlier, self.mean + self.above**2 * spread / z, float("inf"))
        self._take_in(torch.minimum(length, limit))
        return limit

    def _take_in(self, length: torch.Tensor) -> None:
        self.first.scatter_(1, self.count.clamp_max(WARM_UP - 1), length)
        starts, goes_on = self.count == WARM_UP - 1, self.count >= WARM_UP
        mean = MEMORY * self.mean + (1 - MEMORY) * length
        variance = MEMORY * self.variance + (1 - MEMORY) * (length - mean) ** 2
        first = self.first.mean(dim=1, keepdim=True)
        spread = self.first.var(dim=1, keepdim=True, unbiased=False)
        self.mean.copy_(torch.where(goes_on, mean, torch.where(starts, first, self.mean)))
        self.variance.copy_(
            torch.where(goes_on, variance, torch.where(starts, spread, self.variance))
        )
        self.count.add_(1)


class Guards:
    """Clipping by the global norm, and steps left out where the gradient is an outlier.

    Clipping, as `torch.nn.utils.clip_grad_norm_`: g <- g min(1, c / (|g| + 1e-6)), where |g| is the
    norm over all trained parameters and c = `Run.clip_norm`, or, where that is lower, the limit of
    `AdaptiveLimit` with z* = `Run.clip_above`. Leaving out: nothing moves, the decay
    included, where |g| exceeds the mean of the last 128 norms by more than `Run.skip_above` of
    their standard deviations. Outliers are among the norms that later ones are compared with.

    Parameters
    ----------
    runs : one per row of the gradients.
    dtype, device : of the gradients.
    """

    def __init__(self, runs: Sequence[Run], dtype: torch.dtype, device: str | torch.device):
        def column(name: str) -> torch.Tensor:
            values = [getattr(run, name) for run in runs]
            values = [float("inf") if value is None else value for value in values]
            return torch.tensor(values, dtype=dtype, device=device).unsqueeze(1)  # (runs, 1)

        self.limit, self.deviations = column("clip_norm"), column("skip_above")
        above = column("clip_above")
        self.adaptive = AdaptiveLimit(above) if bool(torch.isfinite(above).any()) else None
        self.clips = self.adaptive is not None or bool(torch.isfinite(self.limit).any())
        self.skips = bool(torch.isfinite(self.deviations).any())
        rows = len(runs) if self.skips else 0
        self.norms = torch.zeros(rows, HISTORY, dtype=dtype, device=device)
        self.seen = torch.zeros(rows, 1, dtype=torch.int64, device=device)

    @torch.no_grad()
    def clipped(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the gradient (runs, n) that the step gets."""
        if not self.clips:
            return gradient
        length, limit = torch.linalg.vector_norm(gradient, dim=1, keepdim=True), self.limit
        if self.adaptive is not None:
            limit = torch.minimum(limit, self.adaptive.of(length))
        return gradient * (limit / (length + TINY)).clamp_max(1)

    @torch.no_grad()
    def kept(self, old: torch.Tensor, new: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return the new weights, the old ones where the step is left out; (runs, n)."""
        if not self.skips:
            return new
        length = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        count = self.seen.clamp_max(HISTORY)
        mean = self.norms.sum(dim=1, keepdim=True) / count
        variance = self.norms.square().sum(dim=1, keepdim=True) / count - mean**2
        border = mean + self.deviations * variance.clamp_min(0).sqrt()
        outlier = (length > border) & (self.seen >= ENOUGH) & torch.isfinite(self.deviations)
        self.norms.scatter_(1, self.seen % HISTORY, length)
        self.seen.add_(1)
        return torch.where(outlier, old, new)

    def state(self) -> dict[str, torch.Tensor]:
        """Return what a step keeps for the next one: the tensors themselves."""
        own = {"norms": self.norms, "seen": self.seen}
        if self.adaptive is not None:
            own |= {name: getattr(self.adaptive, name) for name in STATE}
        return own

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy what `state` returned."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
