import pytest
import torch
from plain_networks import PLAIN, PlainConvNet
from torch import nn

from periodic_lib.config import Run, Setup
from periodic_lib.engine import networks
from periodic_lib.engine.losses import cross_entropy, squared_error
from periodic_lib.engine.metrics import scale_sensitivity
from periodic_lib.engine.normalization import FEATURES, PICTURES, Statistics, batch_norm
from periodic_lib.engine.stack import Stack
from periodic_lib.project import ConfigError

NETWORKS = ["mlp", "convnet", "resnet18", "transformer"]
SHAPES = [(1, 8, 8), (3, 32, 32), (1, 28, 28)]
RUNS = 2


def make(name, shape=(1, 8, 8), **options):
    """A network in float64 with the values of two runs; scale and shift are moved away from 1 and 0."""
    width = 16 if name == "transformer" else 8
    setup = Setup(network=name, width=width, dtype="float64", **{"bn_eps": 0, **options})
    network = networks.build(setup, shape, classes=10)
    drawn = [network.initialize(run) for run in range(RUNS)]
    values = {key: torch.stack([one[key] for one in drawn]) for key in drawn[0]}
    generator = torch.Generator().manual_seed(0)
    for key in values:
        if key.endswith(("scale", "shift")):
            values[key] = 0.5 + torch.rand(values[key].shape, dtype=torch.float64, generator=generator)
    x = torch.randn(RUNS, 12, *shape, dtype=torch.float64, generator=generator)
    return network, values, x


# ---------------------------------------------------------------- scale invariance


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "name",
    [
        *NETWORKS,
        "transformer rmsnorm",
        "mlp layernorm",
        "mlp rmsnorm",
        "mlp none",
        "transformer plain",
        "transformer rows",
    ],
)
def test_declared_scale_invariance_is_what_a_probe_finds(name, shape, others):
    name, _, normalization = name.partition(" ")
    special = {"plain": {"qk_norm": False}, "rows": {"tokens": "rows"}}
    how = special.get(normalization, {"normalization": normalization or None})
    network, values, x = make(name, shape, train_others=others, **how)
    labels = torch.arange(12).expand(RUNS, -1) % 10

    def loss(v):
        return cross_entropy(network.logits(v, x), labels)

    groups = {}
    for parameter in network.parameters:
        groups.setdefault(parameter.group, []).append(parameter.name)
    for group, names in groups.items():
        if group is not None:
            assert scale_sensitivity(loss, values, names, 3.0) < 1e-10, group
        if group is None or len(names) > 1:  # each by itself changes the loss, if it matters to it at all
            for one in names:
                leaf = values[one].clone().requires_grad_()
                (gradient,) = torch.autograd.grad(loss({**values, one: leaf}).sum(), leaf)
                if gradient.abs().max() > 1e-12:
                    assert scale_sensitivity(loss, values, [one], 3.0) > 1e-7, one


@pytest.mark.parametrize("name", NETWORKS)
def test_all_trained_weights_are_invariant_together_in_the_invariant_variant(name):
    stack = Stack(Setup(network=name, width=16, dtype="float64", bn_eps=0), [Run(0.1, 0), Run(0.1, 0, init_seed=1)])
    assert stack.weights.shape[1] == stack.n_invariant
    batch = stack.batch_order().next()
    assert torch.allclose(stack.loss(7 * stack.weights, batch), stack.loss(stack.weights, batch), rtol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_ordinary_variant_trains_everything(name):
    stack = Stack(Setup(network=name, width=16, train_others=True, last_layer_norm=None), [Run(0.1, 0)])
    assert list(stack.fixed) == []
    assert {"last.weight", "norm.scale"} & set(stack.trained)
    assert stack.weights.shape[1] > stack.n_invariant


# ---------------------------------------------------------------- oracles in plain PyTorch


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("name", "plain"), PLAIN.items())
def test_a_stack_computes_what_plain_networks_compute(name, plain, affine):
    network, values, x = make(name, (3, 32, 32), train_others=affine, bn_eps=1e-5)
    stacked = network.logits(values, x)
    for run in range(RUNS):
        module = plain((3, 32, 32), 8, affine).double()
        assert set(module.names()) == set(values)
        for key, parameter in module.names().items():
            parameter.data = values[key][run].clone()
        assert torch.allclose(stacked[run].T, module(x[run]), rtol=1e-8, atol=1e-10)


def test_the_mlp_is_a_plain_perceptron():
    network, values, x = make("mlp", train_others=True, bn_eps=1e-5)
    stacked = network.logits(values, x)
    for run in range(RUNS):
        h = x[run].flatten(1)
        for i in range(3):
            h = h @ values[f"hidden{i}.weight"][run].T
            h = nn.functional.batch_norm(
                h, None, None, values[f"norm{i}.scale"][run], values[f"norm{i}.shift"][run], training=True
            ).relu()
        plain = h @ values["last.weight"][run].T + values["last.bias"][run]
        assert torch.allclose(stacked[run].T, plain, rtol=1e-9)


def test_attention_is_what_its_definition_says():
    network, values, _ = make("transformer")
    h = torch.randn(RUNS, 3, 16, 16, dtype=torch.float64)  # (runs, batch, tokens, features)
    ours = network._attention(values, "block0", h)
    for run in range(RUNS):
        q, k, v = (h[run] @ values[f"block0.{matrix}"][run].T for matrix in ("queries", "keys", "values"))
        for head in range(4):
            part = slice(4 * head, 4 * head + 4)
            q_, k_ = (nn.functional.layer_norm(m[..., part], (4,), eps=0) for m in (q, k))
            weights = torch.softmax(q_ @ k_.transpose(1, 2) / 4**0.5, dim=-1)
            assert torch.allclose(ours[run, ..., part], weights @ v[..., part], rtol=1e-9)


def test_rows_are_the_rows_of_a_picture():
    network, values, x = make("transformer", (3, 28, 20), tokens="rows")
    rows = network._patches(x)
    assert rows.shape == (RUNS, 12, 28, 3 * 20)
    assert torch.equal(rows, x.transpose(2, 3).flatten(3))
    assert values["positions"].shape[1:] == (28, 16)
    assert network.logits(values, x).shape == (RUNS, 10, 12)


def test_patches_hold_every_pixel_once():
    network, _, x = make("transformer", (3, 28, 28))
    patches = network._patches(x)
    assert patches.shape == (RUNS, 12, 16, 3 * 7 * 7)
    assert torch.equal(patches[1, 5, 0], x[1, 5, :, :7, :7].flatten())
    assert torch.equal(patches[1, 5, 6], x[1, 5, :, 7:14, 14:21].flatten())


@pytest.mark.parametrize("name", NETWORKS)
def test_runs_do_not_mix(name):
    network, values, x = make(name)
    alone = {key: value[1:] for key, value in values.items()}
    assert torch.allclose(network.logits(values, x)[1:], network.logits(alone, x[1:]), rtol=1e-10)


# ---------------------------------------------------------------- one run after the other, second derivatives


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("name", ["convnet", "resnet18"])
def test_run_by_run_gives_the_losses_and_gradients_of_all_runs_together(name, others):
    network, values, x = make(name, (3, 16, 16), train_others=others, bn_eps=1e-5)
    labels = torch.arange(12).expand(RUNS, -1) % 10
    found = []
    for logits in (network._logits, network._logits_by_run):
        leaves = {key: value.clone().requires_grad_() for key, value in values.items()}
        losses = cross_entropy(logits(leaves, x, batch_norm), labels)
        found.append([losses, *torch.autograd.grad(losses.sum(), list(leaves.values()))])
    for together, one_by_one in zip(*found, strict=True):
        assert torch.allclose(together, one_by_one, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["convnet", "resnet18"])
def test_run_by_run_statistics_normalize_as_those_of_all_runs_together(name):
    network, values, x = make(name, (3, 16, 16), train_others=True, bn_eps=1e-5)
    found = []
    for logits in (network._logits, network._logits_by_run):
        statistics = Statistics()
        for batch in x.split(6, dim=1):
            statistics.begin()
            logits(values, batch, statistics.collect)
            statistics.batches += 1
        statistics.begin()
        found.append(logits(values, x.flip(1), statistics.apply))
    assert torch.allclose(*found, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["convnet", "resnet18"])
def test_on_a_cpu_runs_go_together(name, monkeypatch):
    network, values, x = make(name)
    monkeypatch.delattr(networks._Convolutional, "_logits_by_run")
    assert network.logits(values, x).shape == (RUNS, 10, 12)


@pytest.mark.parametrize("normalization", ["layernorm", "rmsnorm"])
def test_a_transformers_hessian_vector_product_is_a_difference_of_gradients(normalization):
    network, values, x = make("transformer", normalization=normalization, bn_eps=1e-5)
    labels, name = torch.arange(12).expand(RUNS, -1) % 10, "block0.queries"

    def gradient(matrix):
        loss = cross_entropy(network.logits({**values, name: matrix}, x), labels).sum()
        return torch.autograd.grad(loss, matrix, create_graph=True)[0]

    vector = torch.randn(values[name].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    matrix = values[name].clone().requires_grad_()
    step = 1e-7  # so short that no ReLU switches on the way
    with networks.second_derivatives():
        (product,) = torch.autograd.grad(gradient(matrix), matrix, vector)
    right, left = (gradient((values[name] + sign * step * vector).requires_grad_()) for sign in (1, -1))
    assert product.norm() > 1e-4
    assert torch.allclose(product, (right - left) / (2 * step), rtol=1e-5, atol=1e-9)


def test_attention_in_the_context_of_second_derivatives_gives_the_same_logits():
    network, values, x = make("transformer")
    with networks.second_derivatives():
        plain = network.logits(values, x)
    assert torch.allclose(network.logits(values, x), plain, rtol=1e-9)


# ---------------------------------------------------------------- batch normalization, initialization


def test_batch_norm_is_pytorchs():
    h = torch.randn(3, 5, 17, dtype=torch.float64)  # (runs, channels, batch)
    scale, shift = torch.rand(2, 3, 5, dtype=torch.float64)
    ours = batch_norm(h, 1e-3, FEATURES, scale, shift)
    for run in range(3):
        theirs = nn.functional.batch_norm(h[run].T, None, None, scale[run], shift[run], training=True, eps=1e-3).T
        assert torch.allclose(ours[run], theirs, atol=1e-12)
    pictures = torch.randn(6, 15, 4, 4, dtype=torch.float64)  # (batch, runs * channels, height, width)
    theirs = nn.functional.batch_norm(pictures, None, None, scale.flatten(), shift.flatten(), training=True, eps=1e-3)
    assert torch.allclose(batch_norm(pictures, 1e-3, PICTURES, scale, shift), theirs, atol=1e-12)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(
    ("normalization", "theirs"), [("layernorm", nn.LayerNorm), ("rmsnorm", nn.RMSNorm), ("none", nn.Identity)]
)
def test_a_perceptron_normalized_otherwise_is_pytorchs(normalization, theirs, affine):
    network, values, x = make("mlp", normalization=normalization, bn_eps=1e-3, train_others=affine)
    for run in range(RUNS):
        h = x[run].flatten(1)
        for i in range(3):
            h = theirs(8, eps=1e-3, elementwise_affine=False)(h @ values[f"hidden{i}.weight"][run].T)
            if affine:
                h = h * values[f"norm{i}.scale"][run] + values[f"norm{i}.shift"][run]
            h = h.relu()
        logits = h @ values["last.weight"][run].T + values["last.bias"][run]
        assert torch.allclose(network.logits(values, x)[run].T, logits, atol=1e-12)


def test_without_normalization_the_hidden_weights_are_followed():
    network, _, _ = make("mlp", normalization="none")
    assert [p.name for p in network.parameters if p.followed] == [f"hidden{i}.weight" for i in range(3)]
    assert not any(parameter.scale_invariant for parameter in network.parameters)


@pytest.mark.parametrize("affine", [False, True])
def test_re_estimated_statistics_are_those_of_update_bn(affine):
    network, values, _ = make("convnet", (3, 32, 32), train_others=affine, bn_eps=1e-5)
    batches = torch.randn(3, 20, 3, 32, 32, dtype=torch.float64)
    test = torch.randn(15, 3, 32, 32, dtype=torch.float64)
    statistics = Statistics()
    for batch in batches:
        statistics.begin()
        network.logits(values, batch.expand(RUNS, *batch.shape), statistics.collect)
        statistics.batches += 1
    statistics.begin()
    ours = network.logits(values, test.expand(RUNS, *test.shape), statistics.apply)
    for run in range(RUNS):
        module = PlainConvNet((3, 32, 32), 8, affine).double()
        for key, parameter in module.names().items():
            parameter.data = values[key][run].clone()
        torch.optim.swa_utils.update_bn(batches, module)
        assert torch.allclose(ours[run].T, module.eval()(test), rtol=1e-8, atol=1e-10)


def test_initialization_is_pytorchs_default_with_the_last_layer_scaled():
    network = networks.build(Setup(width=256), (1, 8, 8), classes=10)
    values = network.initialize(0)
    bound = 1 / 64**0.5
    assert values["hidden0.weight"].shape == (256, 64)
    assert values["hidden0.weight"].abs().max() <= bound
    assert float(values["hidden0.weight"].std()) == pytest.approx(bound / 3**0.5, rel=0.02)
    assert float(values["last.weight"].norm()) == pytest.approx(10.0)
    free = networks.build(Setup(width=256, last_layer_norm=None), (1, 8, 8), 10).initialize(0)
    assert free["last.weight"].abs().max() <= 1 / 256**0.5
    assert not torch.equal(values["hidden0.weight"], network.initialize(1)["hidden0.weight"])


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_convnet_has_one_to_five_blocks(depth, shape):
    network, values, x = make("convnet", shape, depth=depth)
    assert network.logits(values, x).shape == (RUNS, 10, 12)
    assert values[f"conv{depth - 1}.weight"].shape[1] == 8 * 2 ** (depth - 1)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"network": "convnet", "depth": 6}, "`depth` of 'convnet' must be from 1 to 5; got 6"),
        ({"network": "resnet18", "depth": 2}, "`depth` of 'resnet18' is fixed"),
        ({"network": "transformer", "width": 18}, "multiple of its 4 heads, at least 16; got 18"),
    ],
)
def test_impossible_networks_are_refused(options, word):
    with pytest.raises(ConfigError, match=word):
        Setup(**options)


def test_squared_error_is_half_pytorchs_sum_over_classes():
    logits = torch.randn(RUNS, 10, 7, dtype=torch.float64)
    labels = torch.randint(10, (RUNS, 7))
    for run in range(RUNS):
        indicator = nn.functional.one_hot(labels[run], 10).to(logits.dtype)
        theirs = nn.functional.mse_loss(logits[run].T, indicator, reduction="sum") / 7 / 2
        assert torch.allclose(squared_error(logits, labels)[run], theirs, rtol=1e-12)
