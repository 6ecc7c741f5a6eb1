"""Optimizers on stacked weights: one flat tensor (runs, weights), one set of hyper-parameters per run."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from periodic_lib.config import Run


class SGD:
    """Stochastic gradient descent with coupled weight decay and momentum, as `torch.optim.SGD`, for a stack.

    d = g + wd w;  v <- momentum v + d;  w <- w - lr v   (v = d without momentum; no dampening, no Nesterov).

    The decay is applied as an increment of w, not as a product with 1 - lr wd, which float32 rounds by up to
    3e-8: that would be 0.3 % of lr wd = 1e-5.
    """

    def __init__(self, runs: Sequence[Run], dtype: torch.dtype, device: str | torch.device):
        def column(name: str) -> torch.Tensor:  # (runs, 1)
            return torch.tensor([[getattr(run, name)] for run in runs], dtype=dtype, device=device)

        self.lr, self.weight_decay, self.momentum = column("lr"), column("weight_decay"), column("momentum")
        self.velocity = None if not any(run.momentum for run in runs) else 0.0

    def step(self, weights: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Return the new weights (runs, weights); `gradient` does not contain the decay term."""
        direction = torch.addcmul(gradient, weights, self.weight_decay)
        if self.velocity is not None:
            direction = self.velocity = self.momentum * self.velocity + direction
        return torch.addcmul(weights, direction, self.lr, value=-1)
