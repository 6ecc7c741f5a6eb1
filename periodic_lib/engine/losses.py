"""Losses of stacked logits: one number for each run."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean of -log softmax(logits)[label] of each run, (runs,).

    `logits`: (runs, classes, batch), `labels`: (runs, batch).

    >>> cross_entropy(torch.zeros(1, 10, 3), torch.zeros(1, 3, dtype=torch.long))  # ln 10
    tensor([2.3026])
    """
    return F.cross_entropy(logits, labels, reduction="none").mean(dim=1)


def squared_error(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean of half the squared distance of the logits to the class's indicator, (runs,).

    `logits`: (runs, classes, batch), `labels`: (runs, batch).

    >>> squared_error(torch.tensor([[[1.0, 3.0], [0.0, 0.0]]]), torch.tensor([[0, 0]]))
    tensor([1.])
    """
    indicator = torch.zeros_like(logits).scatter_(1, labels.unsqueeze(1), 1.0)
    return (logits - indicator).square().sum(dim=1).mean(dim=1) / 2


LOSSES = {"cross_entropy": cross_entropy, "squared_error": squared_error}
