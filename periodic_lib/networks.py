r"""Networks of which R copies train as one: every parameter has shape (runs, \*shape).

Which weights are scale-invariant is declared where a layer is made (`Parameter.scale_invariant`); a test proves
each declaration by probing, loss(c w) = loss(w).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from periodic_lib.config import Setup

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Parameter:
    """One parameter of one run: its name, its shape in PyTorch's layout, and whether the loss ignores its scale."""

    name: str
    shape: tuple[int, ...]
    scale_invariant: bool
    fan_in: int

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """Return PyTorch's default initialization, uniform in +-1/sqrt(fan_in); float64, so that dtypes agree."""
        bound = 1 / math.sqrt(self.fan_in)
        return torch.empty(self.shape, dtype=torch.float64).uniform_(-bound, bound, generator=generator)


def batch_norm(h: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalize each channel of each run over its batch; `h` has shape (runs, channels, batch).

    With the batch last, normalizing a channel of a run over its batch is a layer norm: one fused kernel, and runs
    cannot mix. The variance is the biased one, as in PyTorch's training mode.
    """
    return F.layer_norm(h, h.shape[-1:], eps=eps)


class Statistics:
    """Batch-normalization statistics, re-estimated on one set of examples and then used on another.

    Pass `collect` as a network's `normalize` on the first set (it normalizes as in training and remembers mean and
    variance, layer by layer), then `apply` on the second.
    """

    def __init__(self) -> None:
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._next = 0

    def collect(self, h: torch.Tensor, eps: float) -> torch.Tensor:
        """Normalize with the batch's own statistics and keep them."""
        variance, mean = torch.var_mean(h, dim=-1, correction=0, keepdim=True)  # (runs, channels, 1)
        self.layers.append((mean, variance))
        return (h - mean) * torch.rsqrt(variance + eps)

    def apply(self, h: torch.Tensor, eps: float) -> torch.Tensor:
        """Normalize with the statistics kept for this layer."""
        mean, variance = self.layers[self._next % len(self.layers)]
        self._next += 1
        return (h - mean) * torch.rsqrt(variance + eps)


class MLP:
    """Fully scale-invariant perceptron: (linear without bias - BN without affine - ReLU) x depth, fixed last layer.

    Activations are kept as (runs, features, batch): each layer is one batched product.
    """

    def __init__(self, setup: Setup, features: int, classes: int):
        self.setup = setup
        sizes = [features] + [setup.width] * (3 if setup.depth is None else setup.depth)
        self.hidden = [f"hidden{i}.weight" for i in range(len(sizes) - 1)]
        self.parameters = [
            Parameter(name, (out, fan_in), scale_invariant=True, fan_in=fan_in)
            for name, fan_in, out in zip(self.hidden, sizes[:-1], sizes[1:], strict=True)
        ] + [
            Parameter("last.weight", (classes, sizes[-1]), scale_invariant=False, fan_in=sizes[-1]),
            Parameter("last.bias", (classes,), scale_invariant=False, fan_in=sizes[-1]),
        ]

    def initialize(self, init_seed: int) -> Tensors:
        """Return the initial parameters of one run, float64, without a `runs` axis."""
        generator = torch.Generator().manual_seed(init_seed)
        values = {parameter.name: parameter.draw(generator) for parameter in self.parameters}
        if self.setup.last_layer_norm is not None:
            values["last.weight"] *= self.setup.last_layer_norm / values["last.weight"].norm()
        return values

    def logits(self, values: Tensors, x: torch.Tensor, normalize: Callable = batch_norm) -> torch.Tensor:
        """Return (runs, classes, batch) for inputs (runs, batch, features) and parameters (runs, *shape)."""
        h = x.transpose(1, 2)  # (runs, features, batch)
        for name in self.hidden:
            h = F.relu(normalize(torch.bmm(values[name], h), self.setup.bn_eps))
        return torch.baddbmm(values["last.bias"].unsqueeze(-1), values["last.weight"], h)


def build(setup: Setup, features: int, classes: int) -> MLP:
    """Return the network that `setup` names, for inputs of `features` numbers and `classes` classes."""
    return {"mlp": MLP}[setup.network](setup, features, classes)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of each run, shape (runs,), from (runs, classes, batch) and (runs, batch)."""
    return F.cross_entropy(logits, labels, reduction="none").mean(dim=1)
