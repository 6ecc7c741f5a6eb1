"""Scale and shift as a scale-invariant pair: of our networks, of torchvision's, and how it moves."""

import numpy as np
import pytest
import torch

from periodic_lib import Setup, grid
from periodic_lib.analysis import pairs
from periodic_lib.engine.sources import import_torchvision
from periodic_lib.engine.stack import Stack

EXACT = {"width": 8, "dtype": "float64", "bn_eps": 0.0, "train_others": True, "drop_last": True}


@pytest.mark.parametrize("network", [{"network": "mlp", "depth": 3}, {"network": "convnet", "depth": 2, "width": 2}])
def test_all_pairs_but_the_last_are_scale_invariant(network):
    stack = Stack(Setup(**EXACT | network), grid(lr=0.1, weight_decay=0.01))
    batch = stack.batch_order().next()
    with torch.no_grad():
        stack.weights[:, stack.n_invariant :] += 0.1 * torch.randn_like(stack.weights[:, stack.n_invariant :])
        before = stack.loss(stack.weights, batch)
        places = pairs._places(stack)
        same = []
        for place in places:
            scaled = stack.weights.detach().clone()
            scaled[:, place] *= 3
            same.append(bool(torch.isclose(stack.loss(scaled, batch), before, rtol=1e-10)))
    assert same == [True] * (len(places) - 1) + [False]


def test_an_invariant_pair_moves_as_scale_invariant_weights_do():
    """rho'^2 = a^2 rho^2 + lr^2 |g|^2, and its gradient is orthogonal to it; not for the last pair."""
    runs = grid(lr=0.5, weight_decay=0.02, seed=[0, 1])
    found = pairs.follow_pairs(Setup(**EXACT, steps=30), runs)
    norm, gradient = found.pair_norm.values, found.pair_grad_norm.values
    predicted = (0.99 * norm[:, :-1]) ** 2 + (0.5 * gradient[:, :-1]) ** 2
    np.testing.assert_allclose(norm[:, 1:, :2] ** 2, predicted[..., :2], rtol=1e-10)
    assert not np.allclose(norm[:, 1:, 2] ** 2, predicted[..., 2], rtol=1e-6)
    share = pairs.radial_share(found).values
    assert (share[:, :2] < 1e-9).all()
    assert (share[:, 2] > 0.01).all()


def test_following_does_not_change_the_training():
    from periodic_lib import train

    setup, runs = Setup(width=8, train_others=True, steps=20, drop_last=True), grid(lr=0.5, weight_decay=0.02)
    mine, theirs = pairs.follow_pairs(setup, runs), train(setup, runs, progress=False)
    np.testing.assert_array_equal(mine.weight_norm.values, theirs.weight_norm.values.astype(float))
    np.testing.assert_allclose(mine.elr, theirs.elr, rtol=1e-6)


def test_torchvisions_resnet18_has_eleven_such_groups():
    """The first normalization of each block; the normalizations that write into each of three streams."""
    torch.manual_seed(0)
    model = import_torchvision().models.resnet18(num_classes=4).double().train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-30
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    blocks = [(s, b) for s in range(1, 5) for b in range(2)]
    groups = [[f"layer{s}.{b}.bn1"] for s, b in blocks]
    groups += [["bn1", "layer1.0.bn2", "layer1.1.bn2"]]
    groups += [[f"layer{s}.0.downsample.1", f"layer{s}.0.bn2", f"layer{s}.1.bn2"] for s in (2, 3)]
    assert len(groups) == 11
    last = [["layer4.0.downsample.1", "layer4.0.bn2", "layer4.1.bn2"]]
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    moved = [_change(model, images, group) for group in groups + last]
    assert max(moved[:-1]) < 1e-9
    assert moved[-1] > 1e-3


@torch.no_grad()
def _change(model, images, group: list[str]) -> float:
    """Return how far outputs move when the scales and shifts of a group are doubled."""
    parameters = [p for name in group for p in model.get_submodule(name).parameters()]
    before = model(images)
    for p in parameters:
        p.mul_(2)
    after = model(images)
    for p in parameters:
        p.div_(2)
    return float((after - before).abs().max() / before.abs().max())
