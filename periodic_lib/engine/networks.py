r"""Networks of which R copies train as one: every parameter has shape (runs, \*shape).

Which weights are scale-invariant is declared where a layer is made: a `Parameter` names its
*group*. Scaling all parameters of a group together by c > 0 leaves the loss as it is; most groups
have one member, but all the layers that write into one residual stream are invariant only
together. A test proves every declaration by probing.

Every network exists in two variants. Fully scale-invariant (the default): normalizations without
scale and shift, the last layer fixed; every trained weight is in a group. Ordinary
(`Setup.train_others`): scale, shift and the last layer are trained, too; what was scale-invariant
still is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from periodic_lib.config import HEADS, Setup
from periodic_lib.engine.normalization import FEATURES, PICTURES, affine, batch_norm

Tensors = dict[str, torch.Tensor]
PATCHES = 4  # per side of the transformer's picture


@dataclass(frozen=True)
class Parameter:
    """One parameter of one run: name, shape in PyTorch's layout, initialization, group.

    `fan_in`: PyTorch's default initialization, uniform in +-1/sqrt(fan_in); None: filled with
    `value`. `group`: the scale-invariant group, None if the loss depends on the parameter's scale.
    `followed`: trained and measured as scale-invariant weights are, although it is none.

    >>> Parameter("hidden0.weight", (8, 64), fan_in=64, group="hidden0").scale_invariant
    True
    """

    name: str
    shape: tuple[int, ...]
    fan_in: int | None = None
    value: float = 0.0
    group: str | None = None
    followed: bool = False

    @property
    def scale_invariant(self) -> bool:
        """Whether the parameter belongs to a scale-invariant group."""
        return self.group is not None

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """Return the initial value of one run; float64, so that dtypes agree to rounding.

        >>> Parameter("norm0.scale", (3,), value=1.0).draw(torch.Generator())
        tensor([1., 1., 1.], dtype=torch.float64)
        """
        values = torch.empty(self.shape, dtype=torch.float64)
        if self.fan_in is None:
            return values.fill_(self.value)
        bound = 1 / math.sqrt(self.fan_in)
        return values.uniform_(-bound, bound, generator=generator)


class Network:
    """What all networks share: parameters, their initial values, the normalization, the last layer.

    `logits(values, x, normalize)` returns (runs, classes, batch) for pictures (runs, batch,
    channels, height, width) and parameters (runs, *shape).
    """

    last_bias = True
    batch_axes = FEATURES

    def __init__(self, setup: Setup, shape: tuple[int, int, int], classes: int):
        self.setup, self.shape, self.classes = setup, shape, classes
        self.parameters: list[Parameter] = []
        size = self._layers()
        self._add("last.weight", (classes, size), fan_in=size)
        if self.last_bias:
            self._add("last.bias", (classes,), fan_in=size)

    def _layers(self) -> int:
        """Declare all layers but the last; return the number of features that the last one gets."""
        raise NotImplementedError

    def _add(self, name: str, shape: tuple[int, ...], **how: object) -> None:
        """Declare a parameter; `how`: the other fields of `Parameter`."""
        self.parameters.append(Parameter(name, shape, **how))

    def _add_normalization(self, name: str, channels: int) -> None:
        """Declare scale and shift of a normalization, where these are trained."""
        if self.setup.train_others:
            self._add(f"{name}.scale", (channels,), value=1.0)
            self._add(f"{name}.shift", (channels,), value=0.0)

    def initialize(self, init_seed: int) -> Tensors:
        """Return the initial parameters of one run, float64, without a `runs` axis."""
        generator = torch.Generator().manual_seed(init_seed)
        values = {parameter.name: parameter.draw(generator) for parameter in self.parameters}
        if self.setup.last_layer_norm is not None:
            values["last.weight"] *= self.setup.last_layer_norm / values["last.weight"].norm()
        return values

    def _normalize(
        self, values: Tensors, name: str, h: torch.Tensor, normalize: Callable
    ) -> torch.Tensor:
        """Normalize a layer's activations over the batch with `normalize`, then scale and shift."""
        scale, shift = values.get(f"{name}.scale"), values.get(f"{name}.shift")
        return normalize(h, self.setup.bn_eps, self.batch_axes, scale, shift)

    def _over_features(self, h: torch.Tensor) -> torch.Tensor:
        """Normalize the last axis, the features of an example, by layer or RMS normalization."""
        normalize = F.rms_norm if self.setup.normalization == "rmsnorm" else F.layer_norm
        return normalize(h, h.shape[-1:], eps=self.setup.bn_eps)

    def _last(self, values: Tensors, h: torch.Tensor) -> torch.Tensor:
        """Apply the last layer to (runs, features, batch)."""
        if self.last_bias:
            return torch.baddbmm(values["last.bias"].unsqueeze(-1), values["last.weight"], h)
        return torch.bmm(values["last.weight"], h)


class MLP(Network):
    """Perceptron: (linear without bias - batch norm - ReLU) x depth, linear.

    Activations are kept as (runs, features, batch): each layer is one batched product. In place of
    batch normalization there may be layer or RMS normalization over the features, or none.
    """

    def _layers(self) -> int:
        size = math.prod(self.shape)
        self.depth = self.setup.depth or 3
        normalized = self.setup.normalization != "none"
        for i in range(self.depth):
            shape, group = (self.setup.width, size), f"hidden{i}" if normalized else None
            self._add(f"hidden{i}.weight", shape, fan_in=size, group=group, followed=True)
            self._add_normalization(f"norm{i}", self.setup.width)
            size = self.setup.width
        return size

    def logits(
        self, values: Tensors, x: torch.Tensor, normalize: Callable = batch_norm
    ) -> torch.Tensor:
        """Return (runs, classes, batch)."""
        h = x.flatten(2).transpose(1, 2)  # (runs, features, batch)
        for i in range(self.depth):
            h = torch.bmm(values[f"hidden{i}.weight"], h)
            h = self._normalize(values, f"norm{i}", h, normalize)
            h = F.relu(h, inplace=True)
        return self._last(values, h)

    def _normalize(
        self, values: Tensors, name: str, h: torch.Tensor, normalize: Callable
    ) -> torch.Tensor:
        if self.setup.normalization in (None, "batchnorm"):
            return super()._normalize(values, name, h, normalize)
        if self.setup.normalization != "none":
            h = self._over_features(h.transpose(1, 2)).transpose(1, 2)
        return affine(h, values.get(f"{name}.scale"), values.get(f"{name}.shift"))


class _Convolutional(Network):
    """Activations are (batch, runs * channels, height, width), in the channels-last layout.

    A layer is one grouped convolution: runs are groups.
    """

    batch_axes = PICTURES

    def logits(
        self, values: Tensors, x: torch.Tensor, normalize: Callable = batch_norm
    ) -> torch.Tensor:
        """Return (runs, classes, batch)."""
        if x.is_cuda and len(x) > 1:  # cuDNN is slow at grouped convolutions
            return self._logits_by_run(values, x, normalize)
        return self._logits(values, x, normalize)

    def _logits(self, values: Tensors, x: torch.Tensor, normalize: Callable) -> torch.Tensor:
        """Return `logits` of all runs together."""
        raise NotImplementedError

    def _logits_by_run(self, values: Tensors, x: torch.Tensor, normalize: Callable) -> torch.Tensor:
        """Return the same logits, one run after the other: plain convolutions.

        To `normalize`, a layer of R runs is R layers of one run each, met run by run.
        """
        columns = (value.split(1) for value in values.values())  # its gradient is one concatenation
        rows = [dict(zip(values, row, strict=True)) for row in zip(*columns, strict=True)]
        each = zip(rows, x.split(1), strict=True)
        return torch.cat([self._logits(row, pictures, normalize) for row, pictures in each])

    def _add_convolution(
        self, name: str, inputs: int, outputs: int, kernel: int, group: str
    ) -> None:
        """Declare a convolution without bias."""
        shape = (outputs, inputs, kernel, kernel)
        self._add(f"{name}.weight", shape, fan_in=inputs * kernel * kernel, group=group)

    @staticmethod
    def _start(x: torch.Tensor) -> torch.Tensor:
        """Return (batch, runs * channels, height, width) from (runs, batch, channels, ...)."""
        return x.transpose(0, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def _convolve(values: Tensors, name: str, h: torch.Tensor, stride: int = 1) -> torch.Tensor:
        """Convolve, padded with zeros so that stride 1 keeps height and width."""
        weight = values[f"{name}.weight"]  # (runs, out, in, kernel, kernel)
        flat = weight.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        kernel = weight.shape[-1]
        if kernel == 1 and stride > 1:
            # The pixels that a 1x1 kernel reads, taken first: the same numbers. With a stride and
            # few channels, oneDNN 3.12 (torch 2.13) writes past a buffer in the backward pass on
            # x86 processors without AVX-512 (tests/faults/convolution_shapes.py).
            h = h[:, :, ::stride, ::stride].contiguous(memory_format=torch.channels_last)
            stride = 1
        return F.conv2d(h, flat, stride=stride, padding=kernel // 2, groups=len(weight))

    @staticmethod
    def _by_run(values: Tensors, h: torch.Tensor) -> torch.Tensor:
        """Return (runs, features, batch) from (batch, runs * features)."""
        return h.view(h.shape[0], len(values["last.weight"]), -1).permute(1, 2, 0)


class ConvNet(_Convolutional):
    """Blocks of conv 3x3 without bias - batch norm - ReLU, widths c, 2c, 4c, ..., a linear layer.

    A 2x2 max-pool follows every block but the first (while the picture has two pixels a side), a
    max-pool over the whole remaining picture the last. With depth 4 on 32 x 32 pictures this is the
    network of Lobacheva et al. 2021.
    """

    def _layers(self) -> int:
        self.depth, size = self.setup.depth or 4, self.shape[0]
        for i in range(self.depth):
            outputs = self.setup.width * 2**i
            self._add_convolution(f"conv{i}", size, outputs, 3, group=f"conv{i}")
            self._add_normalization(f"norm{i}", outputs)
            size = outputs
        return size

    def _logits(self, values: Tensors, x: torch.Tensor, normalize: Callable) -> torch.Tensor:
        h = self._start(x)
        for i in range(self.depth):
            h = self._convolve(values, f"conv{i}", h)
            h = self._normalize(values, f"norm{i}", h, normalize)
            if i > 0 and min(h.shape[-2:]) >= 2:
                h = F.max_pool2d(h, 2)
            h = F.relu(
                h, inplace=True
            )  # after the max-pool: the same numbers, a quarter of the work
        return self._last(values, self._by_run(values, h.amax((2, 3))))


class ResNet18(_Convolutional):
    """Pre-activation ResNet-18: a convolution, 4 stages of 2 blocks, batch norm, mean, linear.

    The stages' widths are c, 2c, 4c, 8c. A block: batch norm - ReLU - conv - batch norm - ReLU -
    conv, plus a shortcut; where the shape changes, that is batch norm - conv 1x1. All convolutions
    that write into the residual stream (the first, the second of each block, the shortcuts) are
    scale-invariant together: every reader of the stream normalizes it.
    """

    last_bias = False
    STREAM = "stream"

    def _layers(self) -> int:
        self.blocks: list[tuple[str, int, bool]] = []  # name, stride, shortcut has a convolution
        size = self.setup.width
        self._add_convolution("first", self.shape[0], size, 3, group=self.STREAM)
        for stage in range(4):
            for number in range(2):
                outputs = self.setup.width * 2**stage
                stride = 2 if stage > 0 and number == 0 else 1
                size = self._add_block(f"block{stage}{number}", size, outputs, stride)
        self._add_normalization("norm", size)
        return size

    def _add_block(self, name: str, inputs: int, outputs: int, stride: int) -> int:
        """Declare a block; return the number of its output channels."""
        changes = stride > 1 or inputs != outputs
        self.blocks.append((name, stride, changes))
        self._add_normalization(f"{name}.norm0", inputs)
        self._add_convolution(f"{name}.conv0", inputs, outputs, 3, group=f"{name}.conv0")
        self._add_normalization(f"{name}.norm1", outputs)
        self._add_convolution(f"{name}.conv1", outputs, outputs, 3, group=self.STREAM)
        if changes:
            self._add_normalization(f"{name}.shortcut_norm", inputs)
            self._add_convolution(f"{name}.shortcut", inputs, outputs, 1, group=self.STREAM)
        return outputs

    def _logits(self, values: Tensors, x: torch.Tensor, normalize: Callable) -> torch.Tensor:
        stream = self._convolve(values, "first", self._start(x))
        for name, stride, changes in self.blocks:
            h = F.relu(self._normalize(values, f"{name}.norm0", stream, normalize), inplace=True)
            h = self._convolve(values, f"{name}.conv0", h, stride)
            h = F.relu(self._normalize(values, f"{name}.norm1", h, normalize), inplace=True)
            if changes:
                stream = self._normalize(values, f"{name}.shortcut_norm", stream, normalize)
                stream = self._convolve(values, f"{name}.shortcut", stream, stride)
            stream = stream + self._convolve(values, f"{name}.conv1", h)
        h = F.relu(self._normalize(values, "norm", stream, normalize), inplace=True)
        return self._last(values, self._by_run(values, h.mean((2, 3))))


class Transformer(Network):
    """Small pre-norm transformer on patches, normalized so that every matrix is scale-invariant.

    The picture is cut into 4 x 4 patches, or into its rows (`Setup.tokens`). A block: norm -
    queries, keys, values - attention with normalized queries and keys (`Setup.qk_norm`) - norm -
    output; norm - linear - ReLU - norm - linear. The norm before each matrix that writes into the
    residual stream makes the matrices before it invariant on their own; the writers (patch and
    position embedding, both output matrices of each block) are invariant together. Tokens are
    averaged at the end. Normalizations are layer norm or RMS norm over a token's features (a
    head's, for queries and keys): nothing depends on the batch. The second norms are those of Wang
    et al. 2022 (arXiv 2210.06423).
    """

    STREAM = "stream"

    def _layers(self) -> int:
        channels, height, width = self.shape
        size, self.depth = self.setup.width, self.setup.depth or 4
        self.cuts = (height, 1) if self.setup.tokens == "rows" else (PATCHES, PATCHES)
        self.patch = (math.ceil(height / self.cuts[0]), math.ceil(width / self.cuts[1]))
        pixels = channels * math.prod(self.patch)
        self._add("patches.weight", (size, pixels), fan_in=pixels, group=self.STREAM)
        self._add("positions", (math.prod(self.cuts), size), fan_in=size, group=self.STREAM)
        for i in range(self.depth):
            self._add_normalization(f"block{i}.norm_attention", size)
            for kind in ("queries", "keys", "values"):
                matrix = f"block{i}.{kind}"
                group = matrix if self.setup.qk_norm or kind == "values" else None
                self._add(matrix, (size, size), fan_in=size, group=group, followed=True)
            self._add_normalization(f"block{i}.norm_heads", size)
            self._add(f"block{i}.output", (size, size), fan_in=size, group=self.STREAM)
            self._add_normalization(f"block{i}.norm_hidden", size)
            self._add(f"block{i}.hidden", (4 * size, size), fan_in=size, group=f"block{i}.hidden")
            self._add_normalization(f"block{i}.norm_wide", 4 * size)
            self._add(f"block{i}.wide", (size, 4 * size), fan_in=4 * size, group=self.STREAM)
        self._add_normalization("norm", size)
        return size

    def _norm(self, values: Tensors, name: str, h: torch.Tensor) -> torch.Tensor:
        """Normalize the last axis of (runs, batch, tokens, features), then scale and shift."""
        h = self._over_features(h)
        if f"{name}.scale" in values:
            scale, shift = (values[f"{name}.{part}"][:, None, None] for part in ("scale", "shift"))
            h = torch.addcmul(shift, h, scale)
        return h

    @staticmethod
    def _linear(matrix: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """Apply (runs, out, in) to (runs, batch, tokens, in)."""
        return torch.bmm(h.flatten(1, 2), matrix.transpose(1, 2)).unflatten(1, h.shape[1:3])

    def _heads(self, h: torch.Tensor) -> torch.Tensor:
        """Return (runs * batch, heads, tokens, features per head)."""
        return h.unflatten(-1, (HEADS, -1)).transpose(2, 3).flatten(0, 1)

    def _attention(self, values: Tensors, block: str, h: torch.Tensor) -> torch.Tensor:
        """Mix the tokens of (runs, batch, tokens, features)."""
        queries, keys, content = (
            self._heads(self._linear(values[f"{block}.{matrix}"], h))
            for matrix in ("queries", "keys", "values")
        )
        if self.setup.qk_norm:
            queries, keys = self._over_features(queries), self._over_features(keys)
        mixed = F.scaled_dot_product_attention(queries, keys, content)
        return mixed.transpose(1, 2).flatten(2).unflatten(0, h.shape[:2])  # the shape of h

    def logits(
        self, values: Tensors, x: torch.Tensor, normalize: Callable | None = None
    ) -> torch.Tensor:
        """Return (runs, classes, batch); `normalize` is not used: no norm is over the batch."""
        stream = self._linear(values["patches.weight"], self._patches(x))
        stream = stream + values["positions"][:, None]
        for i in range(self.depth):
            stream = stream + self._mixed(values, f"block{i}", stream)
            stream = stream + self._transformed(values, f"block{i}", stream)
        return self._last(values, self._norm(values, "norm", stream).mean(2).transpose(1, 2))

    def _mixed(self, values: Tensors, block: str, stream: torch.Tensor) -> torch.Tensor:
        """Return what a block's attention adds to the stream."""
        h = self._norm(values, f"{block}.norm_attention", stream)
        h = self._attention(values, block, h)
        h = self._norm(values, f"{block}.norm_heads", h)
        return self._linear(values[f"{block}.output"], h)

    def _transformed(self, values: Tensors, block: str, stream: torch.Tensor) -> torch.Tensor:
        """Return what a block's perceptron, token by token, adds to the stream."""
        h = self._norm(values, f"{block}.norm_hidden", stream)
        h = F.relu(self._linear(values[f"{block}.hidden"], h))
        h = self._norm(values, f"{block}.norm_wide", h)
        return self._linear(values[f"{block}.wide"], h)

    def _patches(self, x: torch.Tensor) -> torch.Tensor:
        """Return (runs, batch, tokens, pixels) from pictures, zero-padded to whole patches."""
        (h, w), (height, width), (rows, columns) = self.patch, x.shape[-2:], self.cuts
        x = F.pad(x, (0, columns * w - width, 0, rows * h - height))
        x = x.unflatten(-1, (columns, w))
        x = x.unflatten(-3, (rows, h))  # (runs, batch, channels, rows, h, columns, w)
        return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)


NETWORKS = {"mlp": MLP, "convnet": ConvNet, "resnet18": ResNet18, "transformer": Transformer}


def build(setup: Setup, shape: tuple[int, int, int], classes: int) -> Network:
    """Return the network that `setup` names, for pictures (channels, height, width).

    >>> build(Setup(network="mlp", width=16, depth=1), (1, 8, 8), classes=10).parameters[0].shape
    (16, 64)
    """
    return NETWORKS[setup.network](setup, shape, classes)


def second_derivatives() -> AbstractContextManager:
    """Return a context in which a network's logits can be differentiated twice.

    PyTorch's fused attention kernels have no second derivative; its attention made of plain
    products has one, and is slower. Both compute the same numbers up to rounding.

    >>> x = torch.ones(1, 2, 1, requires_grad=True)
    >>> with second_derivatives():
    ...     y = F.scaled_dot_product_attention(x, x, x**2).sum()
    >>> (gradient,) = torch.autograd.grad(y, x, create_graph=True)
    >>> torch.autograd.grad(gradient.sum(), x)[0].flatten()  # of y = 2 x^2, by equal tokens
    tensor([2., 2.])
    """
    return sdpa_kernel(SDPBackend.MATH)
