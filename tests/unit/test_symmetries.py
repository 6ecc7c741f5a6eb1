"""Scale-invariant groups: in networks of others, against a table by hand; in networks with known symmetries."""

import copy
import importlib.util
import random
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from periodic_lib import ConfigError
from periodic_lib.symmetries import find_groups, jacobians, powers, probes

sys.path.insert(0, str(Path(__file__).parents[1]))
from foreign_networks import FOREIGN, GPT, Encoder, biased_perceptron, matching, tokens, vectors

SEED = 0


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    yield
    torch.set_num_threads(before)


def sets(found):
    return {frozenset(names) for names in found.names}


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize("title", FOREIGN)
def test_a_network_of_others_has_the_symmetries_of_its_architecture(title):
    case = FOREIGN[title]
    if case.needs and not importlib.util.find_spec(case.needs):
        pytest.skip(f"{case.needs} is not installed")
    model, example = case.make()
    names = [name for name, _ in model.named_parameters()]
    small = sum(value.numel() for value in model.parameters()) < 50_000
    found = find_groups(model, example, seconds=300, margins=small)
    assert sets(found) == case.groups(names)
    assert set(found.dead) == set(matching(case.dead, names))
    assert len(found.rescalings) == case.rescalings
    assert found.error <= 1e-6
    assert not found.approximate
    assert not found.untested
    assert all(power == 1 for group in found.groups for power in group.powers)
    assert all((group.fails_below is not None) == small for group in found.groups)


def test_the_table_expects_something_else_of_every_kind():
    counts = {title: bool(case.single or case.joint) for title, case in FOREIGN.items()}
    assert sum(counts.values()) > 12
    assert len(counts) - sum(counts.values()) >= 4  # and networks without any


# ---------------------------------------------------------------- checks that know nothing of the finder


def doubling(model, example):
    """Return a function: the relative change of the outputs when tensors of these names are doubled."""
    other = copy.deepcopy(model).double().train()
    example = example.double() if example.is_floating_point() else example
    for module in other.modules():
        if getattr(module, "eps", None):
            module.eps = 1e-14
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    tensors = dict(other.named_parameters())
    with torch.no_grad():
        for value in tensors.values():
            value.add_(0.1 * torch.randn_like(value))
        before = other(example)

    def change(names):
        with torch.no_grad():
            for name in names:
                tensors[name].mul_(2)
            after = other(example)
            for name in names:
                tensors[name].div_(2)
        return float((after - before).norm() / before.norm())

    return change


INDEPENDENT = ["GPT pre-LN, untied, normalized queries and keys", "GPT pre-LN, tied", "torchvision densenet"]
INDEPENDENT += ["torch TransformerEncoder, post-LN, ReLU", "group normalization", "biases before batch normalization"]


@pytest.mark.parametrize("title", INDEPENDENT)
def test_groups_and_nothing_else_can_be_doubled(title):
    model, example = FOREIGN[title].make()
    found, doubled = find_groups(model, example), doubling(model, example)
    for names in found.names:
        assert doubled(names) < 1e-6
        if len(names) > 1:  # no smaller group is in it
            assert doubled(names[:-1]) > 1e-4
            assert doubled(names[1:]) > 1e-4
    for name, _ in model.named_parameters():
        assert (doubled([name]) < 1e-6) == ([name] in found.names or name in found.dead)
    for one in found.rescalings:
        assert doubled(one.up) > 1e-6


class Reversed(nn.Module):
    """A network whose parts are registered from back to front under other names."""

    def __init__(self, network):
        super().__init__()
        self.network = (network,)
        for place, (_, part) in enumerate(reversed(list(network.named_children()))):
            self.add_module(f"part{place}", part)

    def forward(self, x):
        return self.network[0](x)


@pytest.mark.parametrize("options", [{}, {"activation": torch.relu, "bias": False, "norm": nn.RMSNorm}])
def test_names_and_their_order_do_not_matter(options):
    network = GPT(**options)
    other = Reversed(network)
    known = {id(value): name for name, value in network.named_parameters()}
    renamed = {name: known[id(value)] for name, value in other.named_parameters()}
    found, again = find_groups(network, tokens()), find_groups(other, tokens())
    assert list(renamed) != list(renamed.values())
    assert {frozenset(renamed[name] for name in names) for names in again.names} == sets(found)
    assert {renamed[name] for name in again.dead} == set(found.dead)
    assert len(again.rescalings) == len(found.rescalings)


# ---------------------------------------------------------------- networks with known symmetries


def test_groups_that_share_a_tensor_are_named_and_not_counted():
    model, example = FOREIGN["group normalization"].make()
    found, doubled = find_groups(model, example), doubling(model, example)
    assert [set(group.names) for group in found.overlapping] == [{"1.weight", "1.bias", "3.bias"}]
    assert doubled(found.overlapping[0].names) < 1e-6
    assert doubled([name for group in found.groups for name in group.names]) < 1e-6  # all groups at once
    assert doubled({*found.groups[1].names, *found.overlapping[0].names}) > 1e-3  # but not these two
    assert "as it shares tensors with the groups: 1.weight, 1.bias, 3.bias" in str(found)


class Unequal(nn.Module):
    """u + v^2, normalized: v has half the power of u."""

    def __init__(self):
        super().__init__()
        self.u, self.v, self.head = (nn.Parameter(torch.ones(6, 6)) for _ in range(3))

    def forward(self, x):
        return functional.layer_norm(x @ self.u + x @ (self.v * self.v), (6,)) @ self.head


def test_powers_may_differ():
    found = find_groups(Unequal(), vectors(12, 6))
    assert found.names == [["u", "v"]]
    assert np.divide(*found.groups[0].powers) == pytest.approx(2)
    assert found.error < 1e-10


def one_unit(norm, epsilon):
    """Return a batch normalization of w x with |w| = norm, and inputs with the same variance in every direction."""
    model = nn.Sequential(
        nn.Linear(3, 1, bias=False), nn.BatchNorm1d(1, eps=epsilon, affine=False), nn.Linear(1, 2, bias=False)
    )
    weight = model[0].weight.data
    weight.mul_(norm / weight.norm())
    x = vectors(64, 3)
    return model, 8 * torch.linalg.qr(x - x.mean(0))[0]


@pytest.mark.parametrize(("norm", "epsilon"), [(3.0, 1e-5), (0.5, 1e-5), (0.05, 1e-3)])
def test_the_norm_below_which_the_epsilon_shows(norm, epsilon):
    (group,) = find_groups(*one_unit(norm, epsilon)).groups

    limit = group.fails_below
    assert group.norm == pytest.approx(norm)
    assert 1 - limit / (limit**2 + epsilon) ** 0.5 == pytest.approx(0.01, rel=0.05)
    assert (limit > norm) == (epsilon > 0.02 * norm**2)
    assert "fails below" in str(group)


class HiddenEpsilon(nn.Module):
    """A normalization whose epsilon is a tensor."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8, bias=False), nn.Linear(8, 5)
        self.register_buffer("small", torch.tensor(1e-5))

    def forward(self, x):
        x = self.first(x)
        return self.last(x / (x.square().mean(-1, keepdim=True) + self.small).sqrt())


def test_nearly_invariant_tensors_are_named_and_not_counted():
    found = find_groups(HiddenEpsilon(), vectors(16, 6))
    assert not found.groups
    assert [group.names for group in found.approximate] == [("first.weight",)]
    assert 1e-6 < found.approximate[0].error < 1e-2
    assert "Only nearly invariant, not counted: first.weight" in found.report()


def test_one_output_of_a_forward_pass_suffices():
    model, example = biased_perceptron()

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x).square().mean()

    found = find_groups(Loss(), example)
    names = {frozenset(name.removeprefix("model.") for name in group) for group in found.names}
    assert names == sets(find_groups(model, example)) != set()
    assert len(found.rescalings) == 1


def test_shared_tensors_have_all_their_names():
    found = find_groups(GPT(tied=True), tokens())
    assert found.tied == (("wte.weight", "head.weight"),)
    assert found.share == 0
    assert "this mechanism of instabilities does not apply" in str(found)
    assert "Shared: wte.weight = head.weight." in str(found)
    assert "Without a gradient: blocks.0.attn.k.bias" in str(found)


def test_tensors_that_are_not_trained_are_left_out():
    model = GPT()
    model.wpe.weight.requires_grad_(False)
    found = find_groups(model, tokens())
    assert found.frozen == 1
    assert found.tensors == len(list(model.parameters())) - 1
    assert not found.groups  # the others cannot be scaled without it
    assert "Not trained and left out: 1 tensors." in str(found)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_normalization_of_the_old_kind():
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 4))
    model(vectors(5, 6)).sum().backward()  # its weight is no leaf now
    assert find_groups(model, vectors(16, 6)).names == [["0.weight_v"]]


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrapped_models_are_unwrapped(wrap):
    model, example = biased_perceptron()
    assert find_groups(wrap(model), example).names == find_groups(model, example).names


# ---------------------------------------------------------------- the model and the world stay as they are


class Noisy(nn.Module):
    """A network that draws from every source of chance, with buffers that change."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)
        self.drop, self.count = nn.Dropout(0.5), 0

    def forward(self, x):
        self.count += 1
        shift = random.random() + np.random.rand() + torch.rand(1)  # noqa: NPY002
        return self.last(self.drop(self.norm(self.first(x + shift))))


def state(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    kept = {name: (value.clone(), value.requires_grad, value.dtype) for name, value in tensors.items()}
    return kept, [module.training for module in model.modules()], model.count, model.norm.eps, model.drop.p


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_not_touched(training):
    model = Noisy().train(training)
    model.last.bias.requires_grad_(False)
    fired = []
    model.register_forward_hook(lambda *_: fired.append("forward"))
    model.first.register_forward_pre_hook(lambda *_: fired.append("before"))
    model.norm.register_full_backward_hook(lambda *_: fired.append("backward"))
    model.first.weight.register_hook(lambda *_: fired.append("gradient"))
    example = vectors(16, 6)
    before, given = state(model), example.clone()
    chance = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    with torch.no_grad():
        found = find_groups(model, example)
        assert not torch.is_grad_enabled()
    assert ["first.weight"] in found.names
    assert not fired
    assert torch.equal(torch.get_rng_state(), chance[0])
    assert random.getstate() == chance[1]
    assert np.array_equal(np.random.get_state()[1], chance[2])  # noqa: NPY002
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(example, given)
    assert all(value.grad is None for value in model.parameters())
    after = state(model)
    assert before[1:] == after[1:]
    for name, (value, *rest) in before[0].items():
        assert torch.equal(value, after[0][name][0])
        assert list(after[0][name][1:]) == rest


def test_the_same_is_found_twice():
    model, example = Encoder(), vectors(6, 5, 16)
    first, second = find_groups(model, example), find_groups(model, example)
    assert first.groups == second.groups
    assert first.rescalings == second.rescalings


# ---------------------------------------------------------------- want of time


def test_without_time_tensors_on_their_own_are_found_in_single_precision():
    found = find_groups(*biased_perceptron(), seconds=1e-9)
    assert found.precision == "float32"
    assert found.names == [["0.weight"], ["3.weight"]]
    assert set(found.dead) == {"0.bias", "3.bias"}
    assert found.groups[0].fails_below is None
    assert found.error < 1e-3
    assert "Not tested: joint groups." in str(found)


def test_with_little_time_joint_groups_are_not_looked_for(monkeypatch):
    monkeypatch.setattr(jacobians, "ENOUGH", 0.0)
    found = find_groups(*biased_perceptron())
    assert found.precision == "float64"
    assert found.names == [["0.weight"], ["3.weight"]]
    assert found.untested.startswith("Tested: each tensor on its own. Not tested, for want of time: joint groups")
    assert "give `seconds=10`" in str(found)
    none = find_groups(GPT(), tokens())
    assert "does not apply" not in str(none)  # it was not looked for
    assert "No tensor is scale-invariant on its own" in str(none)


# ---------------------------------------------------------------- what is refused


class Shard(nn.Parameter):
    """A parameter of which only a part is here."""

    _local_tensor = None


def with_parameter(value):
    model = nn.Linear(3, 3)
    model.weight = value
    return model


REFUSED = {
    "`model` must be a torch.nn.Module; got int": lambda: 3,
    "'weight' is a shard of a tensor: find the groups before": lambda: with_parameter(Shard(torch.ones(3, 3))),
    r"'weight' has no values \(device meta\)": lambda: nn.Linear(3, 3, device="meta"),
    "'weight' is complex": lambda: nn.Linear(3, 3, dtype=torch.complex64),
    "'weight' has no shape yet: run the model once": lambda: nn.LazyLinear(3),
    r"'weight' is quantized \(torch.int8\)": lambda: with_parameter(
        nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    ),
    "has no parameter that is trained": lambda: nn.Linear(3, 3).requires_grad_(False),
    "does not run on `example`: .* Give a tensor, a tuple": lambda: nn.Linear(4, 4),
    "returned zeros, or numbers that are not finite": lambda: nn.Sequential(
        nn.Linear(3, 3), nn.Threshold(1e9, np.nan)
    ),
    "returned no floating tensor, but tuple": lambda: Returning(lambda x: ("a", x.long())),
    "do not depend on a trained parameter": lambda: Returning(lambda x: x.detach()),
}


class Returning(nn.Linear):
    """A layer with an output of its own."""

    def __init__(self, make):
        super().__init__(3, 3)
        self.make = make

    def forward(self, x):
        return self.make(super().forward(x))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_probed_is_refused(message):
    with pytest.raises(ConfigError, match=message):
        find_groups(REFUSED[message](), vectors(5, 3))


def test_what_cannot_be_copied_is_refused():
    model = nn.Linear(3, 3)
    model.lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"`model` cannot be copied: TypeError: .*lock"):
        find_groups(model, vectors(5, 3))
    with pytest.raises(ConfigError, match="`seconds` must be a positive number of seconds; got 0"):
        find_groups(nn.Linear(3, 3), vectors(5, 3), seconds=0)


# ---------------------------------------------------------------- the parts


def test_small_constants_are_shrunk_and_others_are_not():
    x = torch.full((4,), 1e-6, dtype=torch.float64)
    with probes.Precise(torch.float64, tiny=True, known=set()) as mode:
        assert float((x + 1e-5)[0]) == pytest.approx(1e-6)
        assert float((x + 1.5)[0]) == pytest.approx(1.500001)
        assert float((x + 0.01)[0]) == pytest.approx(0.010001)
        assert float(functional.normalize(x, dim=0, eps=1.0).norm()) == pytest.approx(1)
        assert float(functional.dropout(x, 0.5).sum()) == pytest.approx(4e-6)
        assert x.float().dtype == x.to(torch.bfloat16).dtype == torch.zeros(2, dtype=torch.float16).dtype == x.dtype
        assert torch.arange(3).dtype == torch.int64
    assert not mode.order
    with probes.Precise(torch.float64, tiny=False, known={id(x)}) as mode:
        assert float((x + 1e-5)[0]) == pytest.approx(1.1e-5)
    assert list(mode.order) == [id(x)]


def test_null_space_of_a_random_matrix_with_known_powers():
    chance = np.random.default_rng(0)
    known = np.array([[1, 1, 0, 0, 0.5, 0], [0, 0, 1, -1, 0, 0]]).T
    rows = chance.normal(size=(20, 6))
    rows -= rows @ known @ np.linalg.pinv(known)
    basis, gap = powers.null_basis(rows, 1e-8)
    assert basis.shape == (6, 2)
    assert np.linalg.matrix_rank(np.hstack([basis, known])) == 2
    assert gap[0] < 1e-14 < 1e-3 < gap[1]
    groups, rescalings, _ = powers.powers_of_groups(basis, np.ones(6), np.arange(6))
    assert groups.tolist() in ([[1, 1, 0, 0, 0.5, 0]], [[2, 2, 0, 0, 1, 0]])
    assert rescalings.tolist() == [[0, 0, 1, -1, 0, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_groups_do_not_depend_on_the_basis_or_the_order(seed):
    chance = np.random.default_rng(seed)
    known = np.array([[1, 1, 1, 0, 0, 0, 0], [0, 1, -1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0]], float).T
    sizes, use = np.array([9, 4, 5, 3, 3, 7, 2]), np.arange(7)
    mixed, order = chance.integers(-2, 3, (3, 3)), chance.permutation(7)
    mixed = mixed + 7 * np.eye(3)
    groups, rescalings, _ = powers.powers_of_groups((known @ mixed)[order], sizes[order], use[order])
    found = {frozenset(order[np.flatnonzero(one)].tolist()) for one in groups}
    assert found == {frozenset({0, 2}), frozenset({3, 4})} or found == {frozenset({0, 1, 2}), frozenset({3, 4})}
    assert len(rescalings) == 1


def test_equal_powers_are_preferred():
    basis = np.array(
        [[1, 0], [0.5, 0.5], [0, 1], [0.5, -0.5]]
    )  # a = (1, 1/2, 0, 1/2) has the same sum as (1, 1, 1, 0)
    groups, *_ = powers.powers_of_groups(basis, np.ones(4), np.arange(4))
    assert groups.tolist() == [[1, 1, 1, 0]]


def test_without_symmetries_there_is_nothing():
    groups, rescalings, _ = powers.powers_of_groups(np.empty((3, 0)), np.ones(3), np.arange(3))
    assert groups.shape == rescalings.shape == (0, 3)
    assert powers.null_basis(np.empty((4, 0)), 1e-8)[0].shape == (0, 0)
