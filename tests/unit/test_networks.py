import pytest
import torch

from periodic_lib import networks
from periodic_lib.config import Run, Setup
from periodic_lib.metrics import scale_sensitivity
from periodic_lib.networks import Statistics, batch_norm
from periodic_lib.training import Stack


def plain(setup: Setup, values: dict, eps: float) -> torch.nn.Sequential:
    """The same network of one run in plain PyTorch."""
    layers, names = [], [name for name in values if name.startswith("hidden")]
    for name in names:
        out, fan_in = values[name].shape
        layer = torch.nn.Linear(fan_in, out, bias=False, dtype=torch.float64)
        layer.weight.data = values[name].clone()
        norm = torch.nn.BatchNorm1d(out, eps=eps, affine=False, momentum=None, dtype=torch.float64)
        layers += [layer, norm, torch.nn.ReLU()]
    last = torch.nn.Linear(*reversed(values["last.weight"].shape), dtype=torch.float64)
    last.weight.data, last.bias.data = values["last.weight"].clone(), values["last.bias"].clone()
    return torch.nn.Sequential(*layers, last)


@pytest.fixture(scope="module")
def stack():
    return Stack(Setup(dtype="float64", width=24, bn_eps=0), [Run(0.1, 0.1, init_seed=s, data_seed=s) for s in (0, 5)])


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_declared_scale_invariance_is_what_a_probe_finds(stack, factor):
    batch = stack.batch_order().next()
    x, labels = stack.data.x_train[batch], stack.data.y_train[batch]

    def loss(values):
        return networks.cross_entropy(stack.network.logits(values, x), labels)

    values = stack.values(stack.weights.detach())
    for parameter in stack.network.parameters:
        change = scale_sensitivity(loss, values, parameter.name, factor)
        assert (change < 1e-12) == parameter.scale_invariant, parameter.name
        assert parameter.scale_invariant or change > 1e-4


def test_every_neuron_is_scale_invariant_on_its_own(stack):
    batch = stack.batch_order().next()
    weights = stack.weights.detach().clone()
    values = stack.values(weights)
    before = stack.loss(weights, batch)
    values["hidden1.weight"][:, 3] *= 7.0  # a view: changes the flat weights
    assert torch.allclose(stack.loss(weights, batch), before, rtol=1e-12)


def test_batch_norm_is_pytorchs():
    h = torch.randn(3, 5, 17, dtype=torch.float64)  # (runs, channels, batch)
    for run in range(3):
        theirs = torch.nn.functional.batch_norm(h[run].T, None, None, training=True, eps=1e-3).T
        assert torch.allclose(batch_norm(h, 1e-3)[run], theirs, atol=1e-12)


def test_a_stack_computes_what_plain_networks_compute():
    setup = Setup(dtype="float64", width=16, depth=2)
    stack = Stack(setup, [Run(0.1, 0, init_seed=s) for s in range(3)])
    x = stack.data.x_train[:50]
    stacked = stack.network.logits(stack.values(stack.weights.detach()), x.expand(3, -1, -1))
    for run in range(3):
        network = plain(setup, stack.network.initialize(run), setup.bn_eps)
        assert torch.allclose(stacked[run].T, network(x), rtol=1e-10)


def test_re_estimated_statistics_are_those_of_the_whole_set():
    setup = Setup(dtype="float64", width=16, depth=2)
    stack = Stack(setup, [Run(0.1, 0)])
    train, test = stack.data.x_train, stack.data.x_test
    network, statistics = plain(setup, stack.network.initialize(0), setup.bn_eps), Statistics()
    network.train()(train)
    correction = (len(train) - 1) / len(train)  # PyTorch keeps the unbiased variance
    for layer in network:
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.running_var *= correction
    values = stack.values(stack.weights.detach())
    stack.network.logits(values, train[None], statistics.collect)
    ours = stack.network.logits(values, test[None], statistics.apply)
    assert torch.allclose(ours[0].T, network.eval()(test), rtol=1e-9)


def test_initialization_is_pytorchs_default_with_the_last_layer_scaled():
    network = networks.build(Setup(width=256), features=64, classes=10)
    values = network.initialize(0)
    assert values["hidden0.weight"].shape == (256, 64)
    bound = 1 / 64**0.5
    assert values["hidden0.weight"].abs().max() <= bound
    assert float(values["hidden0.weight"].std()) == pytest.approx(bound / 3**0.5, rel=0.02)
    assert float(values["last.weight"].norm()) == pytest.approx(10.0)
    free = networks.build(Setup(width=256, last_layer_norm=None), 64, 10).initialize(0)
    assert free["last.weight"].abs().max() <= 1 / 256**0.5
    assert not torch.equal(values["hidden0.weight"], network.initialize(1)["hidden0.weight"])
