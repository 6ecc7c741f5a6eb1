"""Networks in plain PyTorch, for one run, as a user writes them: nothing of the library is used.

They are the oracles of the library's stacked networks, and the other side of the benchmark.
"""

import itertools
import math

from torch import nn


class Plain(nn.Sequential):
    """Layers by name, the last of them `last`; `affine`: batch norms have a scale and a shift."""

    def names(self) -> dict[str, nn.Parameter]:
        """Return the parameters by the names that the library gives them."""
        return {_library_name(name): value for name, value in self.named_parameters()}


def _library_name(name: str) -> str:
    """Return the library's name of a parameter.

    >>> _library_name("block10.norm0.weight"), _library_name("conv0.weight")
    ('block10.norm0.scale', 'conv0.weight')
    """
    layer, _, kind = name.rpartition(".")
    return f"{layer}.{ {'weight': 'scale', 'bias': 'shift'}[kind] }" if "norm" in layer else name


class PlainMLP(Plain):
    """Three hidden layers: linear without bias - batch norm - ReLU; a linear layer to 10 classes.

    >>> sum(value.numel() for value in PlainMLP((1, 8, 8), 16).parameters())
    1706
    """

    def __init__(self, shape: tuple[int, int, int], width: int, affine: bool = False):
        super().__init__()
        self.add_module("flatten", nn.Flatten())
        sizes = [math.prod(shape), width, width, width]
        for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            self.add_module(f"hidden{i}", nn.Linear(inputs, outputs, bias=False))
            self.add_module(f"norm{i}", nn.BatchNorm1d(outputs, affine=affine))
            self.add_module(f"relu{i}", nn.ReLU())
        self.add_module("last", nn.Linear(width, 10))


class PlainConvNet(Plain):
    """Four blocks: 3x3 convolution without bias - batch norm - ReLU - 2x2 max-pool (not the first).

    A max-pool over what remains of the picture, and a linear layer to 10 classes: the network of
    Lobacheva et al. 2021.

    >>> sum(value.numel() for value in PlainConvNet((3, 32, 32), 32).parameters())
    390506
    """

    def __init__(self, shape: tuple[int, int, int], width: int, affine: bool = False):
        super().__init__()
        sizes = [shape[0], *(width * 2**i for i in range(4))]
        for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            self.add_module(f"conv{i}", nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
            self.add_module(f"norm{i}", nn.BatchNorm2d(outputs, affine=affine))
            self.add_module(f"relu{i}", nn.ReLU())
            if i > 0:
                self.add_module(f"pool{i}", nn.MaxPool2d(2))
        self.add_module("pool", nn.AdaptiveMaxPool2d(1))
        self.add_module("flatten", nn.Flatten())
        self.add_module("last", nn.Linear(sizes[-1], 10))


class PlainBlock(nn.Module):
    """Pre-activation block: twice batch norm - ReLU - 3x3 convolution, plus the shortcut.

    Where the shape changes, the shortcut is batch norm - 1x1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, affine: bool):
        super().__init__()
        self.norm0, self.norm1 = (nn.BatchNorm2d(size, affine=affine) for size in (inputs, outputs))
        self.conv0 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv1 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.changes = stride > 1 or inputs != outputs
        if self.changes:
            self.shortcut_norm = nn.BatchNorm2d(inputs, affine=affine)
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        """Return (batch, outputs, height / stride, width / stride)."""
        h = self.conv0(self.norm0(x).relu())
        h = self.conv1(self.norm1(h).relu())
        return h + (self.shortcut(self.shortcut_norm(x)) if self.changes else x)


class PlainResNet(Plain):
    """Pre-activation ResNet-18: convolution, 4 stages of 2 blocks, batch norm, ReLU, mean, linear.

    Take a `width` of at least 8: on processors without AVX-512, oneDNN 3.12 corrupts memory in the
    backward pass of a 1x1 convolution of stride 2 with fewer input channels.

    >>> sum(value.numel() for value in PlainResNet((3, 32, 32), 8).parameters())
    175192
    """

    def __init__(self, shape: tuple[int, int, int], width: int, affine: bool = False):
        super().__init__()
        self.add_module("first", nn.Conv2d(shape[0], width, 3, 1, 1, bias=False))
        size = width
        for stage, number in itertools.product(range(4), range(2)):
            outputs, stride = width * 2**stage, 2 if stage > 0 and number == 0 else 1
            self.add_module(f"block{stage}{number}", PlainBlock(size, outputs, stride, affine))
            size = outputs
        self.add_module("norm", nn.BatchNorm2d(size, affine=affine))
        self.add_module("relu", nn.ReLU())
        self.add_module("pool", nn.AdaptiveAvgPool2d(1))
        self.add_module("flatten", nn.Flatten())
        self.add_module("last", nn.Linear(size, 10, bias=False))


PLAIN = {"mlp": PlainMLP, "convnet": PlainConvNet, "resnet18": PlainResNet}
