"""What practitioners put between a gradient and its step: clipping, and steps that are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from periodic_lib.config import Run

HISTORY = 128  # gradient norms that a step is compared with
ENOUGH = HISTORY // 2  # of them, before any step is left out
TINY = 1e-6  # as torch.nn.utils.clip_grad_norm_


class Guards:
    """Clipping by the global norm, and steps left out where the gradient is an outlier.

    Clipping, as `torch.nn.utils.clip_grad_norm_`: g <- g min(1, c / (|g| + 1e-6)), where |g| is the
    norm over all trained parameters and c = `Run.clip_norm`. Leaving out: nothing moves, the decay
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
        self.clips = bool(torch.isfinite(self.limit).any())
        self.skips = bool(torch.isfinite(self.deviations).any())
        rows = len(runs) if self.skips else 0
        self.norms = torch.zeros(rows, HISTORY, dtype=dtype, device=device)
        self.seen = torch.zeros(rows, 1, dtype=torch.int64, device=device)

    @torch.no_grad()
    def clipped(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the gradient (runs, n) that the step gets."""
        if not self.clips:
            return gradient
        length = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        return gradient * (self.limit / (length + TINY)).clamp_max(1)

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
        return {"norms": self.norms, "seen": self.seen}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy what `state` returned."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
