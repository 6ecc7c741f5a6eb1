"""Batch normalization of the activations of all runs at once, and its statistics for evaluation."""

from __future__ import annotations

import torch
import torch.nn.functional as F

FEATURES = (-1,)  # batch axes of (runs, channels, batch)
PICTURES = (0, 2, 3)  # batch axes of (batch, runs * channels, height, width)


def batch_norm(
    h: torch.Tensor,
    eps: float,
    batch: tuple[int, ...],
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
) -> torch.Tensor:
    """Return scale (h - mean) / sqrt(variance + eps) + shift, for each channel of each run.

    Training mode: `mean` and the biased variance are this batch's. With the batch as last axis this
    is a layer norm: one fused kernel, and runs cannot mix. With pictures the channels of all runs
    lie side by side: PyTorch's own batch norm. `scale`, `shift`: (runs, channels), or None.

    >>> h = torch.tensor([[[1.0, 3.0], [5.0, 9.0]]])  # one run, two channels, two examples
    >>> batch_norm(h, 0.0, FEATURES, None, None)
    tensor([[[-1.,  1.],
             [-1.,  1.]]])
    """
    if batch == FEATURES:
        return affine(F.layer_norm(h, h.shape[-1:], eps=eps), scale, shift)
    flat = [None if p is None else p.flatten() for p in (scale, shift)]
    # the operator itself: torch.nn.functional's form of it refuses eps = 0
    return torch.batch_norm(h, *flat, None, None, True, 0.0, eps, torch.backends.cudnn.enabled)


def affine(h: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None) -> torch.Tensor:
    """Return scale h + shift, channel by channel; `h` itself without them."""
    if scale is None or shift is None:
        return h
    shape = (*scale.shape, 1) if h.dim() == 3 else (1, -1, 1, 1)
    return torch.addcmul(shift.reshape(shape), h, scale.reshape(shape))


class Statistics:
    """Batch-normalization statistics re-estimated over many batches.

    As `torch.optim.swa_utils.update_bn` does it: pass `collect` as a network's `normalize` on each
    batch of the training set: it normalizes as in training and adds the batch's mean and unbiased
    variance to a cumulative average, layer by layer. Pass `apply` on other examples. Call `begin`
    before each batch, and count `batches` after each that was collected.

    >>> statistics = Statistics()
    >>> for h in (torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[4.0, 6.0]]])):
    ...     statistics.begin()
    ...     _ = statistics.collect(h, 0.0, FEATURES, None, None)
    ...     statistics.batches += 1
    >>> [float(kept) for kept in statistics.layers[0]]  # mean and variance
    [3.0, 2.0]
    """

    def __init__(self) -> None:
        self.layers: list[list[torch.Tensor]] = []
        self.batches = 0
        self._next = 0

    def begin(self) -> None:
        """Start the next forward pass."""
        self._next = 0

    def collect(self, h, eps, batch, scale, shift) -> torch.Tensor:
        """Normalize with the batch's own statistics and add them to the average."""
        variance, mean = torch.var_mean(h, dim=batch, correction=1, keepdim=True)
        if self._next == len(self.layers):
            self.layers.append([mean, variance])
        else:
            for kept, value in zip(self.layers[self._next], (mean, variance), strict=True):
                kept += (value - kept) / (self.batches + 1)
        self._next += 1
        return batch_norm(h, eps, batch, scale, shift)

    def apply(self, h, eps, batch, scale, shift) -> torch.Tensor:
        """Normalize with the statistics kept for this layer."""
        mean, variance = self.layers[self._next]
        self._next += 1
        return affine((h - mean) * torch.rsqrt(variance + eps), scale, shift)
