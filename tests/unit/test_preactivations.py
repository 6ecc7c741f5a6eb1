"""The variances that batch normalization divides by, against a plain forward pass."""

import pytest
import torch

from periodic_lib import Run, Setup
from periodic_lib.analysis.preactivations import variances
from periodic_lib.engine.stack import Stack


def test_the_variances_of_one_layer_are_those_of_its_products():
    setup = Setup(width=5, depth=1, steps=1, dtype="float64")
    run = Run(lr=0.1, weight_decay=0.01)
    stack = Stack(setup, [run])
    w = next(v for v in stack.values(stack.weights).values() if v.numel() == stack.invariant.numel())
    x = stack.data.x_train.flatten(1)
    expected = (x @ w.reshape(5, -1).T).var(0, correction=1) / w.square().sum()
    expected = expected.detach()
    found = variances(setup, run, steps=1)
    assert found.shape == (1, 2)
    assert found[0] == pytest.approx([float(expected.min()), float(torch.median(expected))], rel=1e-9)


def test_a_look_every_so_many_steps():
    assert variances(Setup(width=4, depth=1), Run(lr=0.1, weight_decay=0.01), steps=5, every=2).shape == (3, 2)
