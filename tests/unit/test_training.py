import json
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from plain_networks import PlainConvNet

from periodic_lib import Record, Run, Setup, grid, results, theory, train
from periodic_lib.engine import devices, recording, training
from periodic_lib.engine import stack as stack_module
from periodic_lib.engine.stack import Stack
from periodic_lib.project import ConfigError, Unfinished

SMALL = {"width": 16, "depth": 2, "drop_last": True}


def quick(setup, runs, **options):
    return train(setup, runs, options.pop("record", Record(evaluate_every=None)), progress=False, **options)


# ---------------------------------------------------------------- oracles


def test_training_is_a_hand_written_pytorch_loop():
    """Plain nn.Module, torch.optim.SGD, foreign weights, explicit batches: same loss, norm and gradient norm."""
    steps, run = 20, Run(lr=0.2, weight_decay=1e-2, momentum=0.9)
    torch.manual_seed(3)
    layers = []
    for fan_in in (64, 32):
        layers += [torch.nn.Linear(fan_in, 32, bias=False), torch.nn.BatchNorm1d(32, affine=False), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(32, 10)).double()
    network[-1].requires_grad_(False)
    weights = [network[0].weight, network[3].weight]
    names = {"hidden0.weight": weights[0], "hidden1.weight": weights[1]}
    names |= {"last.weight": network[-1].weight, "last.bias": network[-1].bias}
    initial = {name: value.detach().clone() for name, value in names.items()}
    setup = Setup(width=32, depth=2, steps=steps, dtype="float64", batch_size=50)
    batches = np.random.default_rng(0).integers(0, 1437, (steps, 50))
    ours = quick(setup, [run], initial=initial, batches=batches)

    data = Stack(setup, [run]).data
    optimizer = torch.optim.SGD(weights, lr=run.lr, weight_decay=run.weight_decay, momentum=run.momentum)
    for step, index in enumerate(torch.as_tensor(batches)):
        loss = torch.nn.functional.cross_entropy(network(data.x_train[index].flatten(1)), data.y_train[index])
        optimizer.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum(w.detach().square().sum() for w in weights))
        gradient = torch.sqrt(sum(w.grad.square().sum() for w in weights))
        optimizer.step()
        assert float(ours.train_loss[0, step]) == pytest.approx(float(loss.detach()), rel=1e-6)
        assert float(ours.weight_norm[0, step]) == pytest.approx(float(norm), rel=1e-6)
        assert float(ours.grad_norm[0, step]) == pytest.approx(float(gradient), rel=1e-6)


def test_a_stack_is_the_same_runs_alone():
    setup = Setup(**SMALL, steps=60, dtype="float64")
    runs = [*grid(lr=[0.01, 0.3], weight_decay=[0, 1e-2], seed=[0, 3]), Run(0.1, 1e-2, momentum=0.9, data_seed=9)]
    together = quick(setup, runs, record=Record(evaluate_every=20))
    for row, run in enumerate(runs):
        alone = quick(setup, [run], record=Record(evaluate_every=20))
        for name in together.data_vars:
            np.testing.assert_allclose(together[name][row], alone[name][0], rtol=1e-9, err_msg=f"{name} {run}")


# ---------------------------------------------------------------- identities


@pytest.fixture(scope="module")
def identities():
    return quick(Setup(**SMALL, steps=200, dtype="float64", bn_eps=0), grid(lr=[0.05, 1], weight_decay=[0, 1e-1]))


def test_norm_recursion(identities):
    rho, g = identities.weight_norm.values, identities.eff_grad_norm.values
    lr, wd = identities.lr.values[:, None], identities.weight_decay.values[:, None]
    np.testing.assert_allclose(theory.next_norm(lr, wd, rho, g)[:, :-1], rho[:, 1:], rtol=1e-12)


def test_angle_identity(identities):
    rho, g = identities.weight_norm.values, identities.eff_grad_norm.values
    lr, wd = identities.lr.values[:, None], identities.weight_decay.values[:, None]
    np.testing.assert_allclose(theory.angular_update(lr, wd, rho, g), identities.angular_update, rtol=1e-9)


def test_derived_metrics(identities):
    lr = identities.lr.values[:, None]
    np.testing.assert_allclose(identities.elr, lr / identities.weight_norm.values**2, rtol=1e-12)
    np.testing.assert_allclose(identities.eff_grad_norm, identities.weight_norm * identities.grad_norm, rtol=1e-12)


def test_gradient_is_orthogonal_to_the_weights():
    stack = Stack(Setup(**SMALL, dtype="float64", bn_eps=0), grid(lr=0.1, weight_decay=0, seed=range(3)))
    (gradient,) = torch.autograd.grad(stack.loss(stack.weights, stack.batch_order().next()).sum(), stack.weights)
    cosine = torch.nn.functional.cosine_similarity(gradient, stack.weights.detach(), dim=1)
    assert cosine.abs().max() < 1e-13


def test_radial_cosine_is_zero_where_the_invariance_is_exact_and_shows_where_epsilon_breaks_it(identities):
    assert np.abs(identities.radial_cosine).max() < 1e-13
    setup, runs = Setup(**SMALL, steps=1, dtype="float64", bn_eps=0.1), grid(lr=0.1, weight_decay=0, seed=range(3))
    stack = Stack(setup, runs)
    (gradient,) = torch.autograd.grad(stack.loss(stack.weights, stack.batch_order().next()).sum(), stack.weights)
    cosine = torch.nn.functional.cosine_similarity(gradient, stack.weights.detach(), dim=1)
    assert cosine.abs().min() > 1e-3
    np.testing.assert_allclose(quick(setup, runs).radial_cosine[:, 0], cosine, rtol=1e-9)


def test_rescaling_symmetry_float64():
    lr, wd = 0.1, 0.1
    runs = [Run(c**2 * lr, wd / c**2, init_scale=c) for c in (1.0, 100.0, 0.01)]
    result = quick(Setup(**SMALL, steps=40, dtype="float64", bn_eps=0), runs)
    np.testing.assert_allclose(result.train_loss[1:], result.train_loss[[0, 0]], rtol=1e-9)
    np.testing.assert_allclose(result.angular_update[1:], result.angular_update[[0, 0]], rtol=1e-6)


def test_rescaling_by_a_power_of_two_is_exact_in_float32():
    runs = [Run(0.1, 0.1), Run(1.6, 0.00625, init_scale=4.0)]
    result = quick(Setup(**SMALL, steps=400, bn_eps=0), runs)
    assert float(result.train_loss.max()) > 1  # it went through a destabilization
    assert (result.train_loss[0].values == result.train_loss[1].values).all()
    assert (4 * result.weight_norm[0].values == result.weight_norm[1].values).all()


def test_momentum_too_is_symmetric():
    runs = [Run(c**2 * 0.1, 0.1 / c**2, momentum=0.9, init_scale=c) for c in (1.0, 8.0)]
    result = quick(Setup(**SMALL, steps=40, dtype="float64", bn_eps=0), runs)
    np.testing.assert_allclose(result.train_loss[1], result.train_loss[0], rtol=1e-9)


def test_bn_epsilon_breaks_the_symmetry():
    runs = [Run(0.1, 0.1), Run(1.6, 0.00625, init_scale=4.0)]
    result = quick(Setup(**SMALL, steps=40, dtype="float64", bn_eps=1e-3), runs)
    assert abs(float(result.train_loss[0, -1] / result.train_loss[1, -1]) - 1) > 1e-6


def test_bn_epsilon_counts_only_in_units_of_the_squared_norm():
    """Weights c w, lr c^2, decay / c^2 see epsilon / c^2: chapter 6 sweeps epsilon in one stack by this."""
    setup = Setup(**SMALL, steps=40, dtype="float64")
    large = quick(replace(setup, bn_eps=0.1), [Run(0.1, 0.1)])
    small = quick(replace(setup, bn_eps=1e-5), [Run(1e-5, 1000, init_scale=0.01)])
    np.testing.assert_allclose(small.train_loss, large.train_loss, rtol=1e-9)
    np.testing.assert_allclose(small.weight_norm, 0.01 * large.weight_norm, rtol=1e-9)


# ---------------------------------------------------------------- behaviour


def test_same_seed_same_numbers_other_seed_other_numbers():
    setup = Setup(**SMALL, steps=30)
    first, second = (quick(setup, grid(lr=0.1, weight_decay=1e-2, seed=[0, 1])) for _ in range(2))
    assert (first.train_loss.values == second.train_loss.values).all()
    assert (first.train_loss[0] != first.train_loss[1]).any()


def test_evaluation_does_not_change_the_trajectory():
    setup, runs = Setup(**SMALL, steps=30), grid(lr=0.1, weight_decay=1e-2, seed=[0, 1])
    with_it, without = quick(setup, runs, record=Record(evaluate_every=3)), quick(setup, runs)
    assert (with_it.train_loss.values == without.train_loss.values).all()
    assert "eval_step" not in without.dims


def test_full_batch_loss_is_the_evaluated_loss():
    setup = Setup(**SMALL | {"batch_size": None}, steps=4, dtype="float64")
    result = quick(setup, [Run(0.1, 1e-2)], record=Record(evaluate_every=1))
    np.testing.assert_allclose(result.train_loss[0], result.train_loss_full[0, :-1], rtol=1e-12)


def test_training_learns():
    result = quick(Setup(steps=150), [Run(0.1, 1e-3)], record=Record(evaluate_every=150))
    assert float(result.test_error[0, 0]) > 0.7
    assert float(result.test_error[0, -1]) < 0.1
    assert float(result.train_error[0, -1]) < 0.02


def test_records_follow_the_request():
    setup = Setup(**SMALL, steps=50)
    every_step = quick(setup, [Run(0.1, 1e-2)])
    sparse = quick(setup, [Run(0.1, 1e-2)], record=Record(every=7, evaluate_every=20))
    assert sparse.step.values.tolist() == list(range(0, 50, 7))
    assert sparse.eval_step.values.tolist() == [0, 20, 40, 50]
    assert (sparse.train_loss.values == every_step.train_loss.values[:, ::7]).all()
    epochs = quick(setup, [Run(0.1, 1e-2)], record=Record(unit="epoch", evaluate_every=2))
    assert epochs.attrs["steps_per_epoch"] == 11  # 1437 // 128
    assert epochs.step.values.tolist() == [0, 11, 22, 33, 44]
    assert epochs.eval_step.values.tolist() == [0, 22, 44, 50]


def test_a_run_that_leaves_the_numbers_leaves_its_neighbour_alone():
    setup = Setup(**SMALL, steps=30)
    huge, sane = Run(1e38, 0.0, init_scale=1e-18), Run(0.1, 1e-2)
    pair, healthy = quick(setup, [huge, sane]), quick(setup, [Run(0.2, 1e-2), sane])
    where = int(pair.diverged_at[0])
    assert np.isfinite(pair.train_loss[0, :where]).all()
    assert np.isnan(pair.train_loss[0, where:]).all()
    assert np.isnan(pair.diverged_at[1])
    for name in ("train_loss", "weight_norm", "angular_update"):
        assert (pair[name][1].values == healthy[name][1].values).all()  # bit for bit


def test_the_result_says_where_it_comes_from():
    result = quick(Setup(**SMALL, steps=3), [Run(0.1, 1e-2, momentum=0.5, init_seed=4)])
    assert np.isnan(result.others_lr[0])
    assert float(result.momentum[0]) == 0.5
    assert int(result.init_seed[0]) == 4
    for name in ("setup", "record", "seconds", "created", "git_revision", "device", "torch_version", "threads"):
        assert name in result.attrs
    assert result.elr.attrs["long_name"] == "effective learning rate"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"initial": {"hidden9.weight": 0}}, ["`initial`", "hidden9.weight", "hidden0.weight"]),
        ({"initial": {"last.bias": np.zeros(3)}}, ["last.bias", "(1, 10)", "(10,)", "(3,)"]),
        ({"batches": np.zeros((2, 8), int)}, ["`batches`", "at least 5 rows", "(2, 8)"]),
        ({"batches": np.zeros((5, 8))}, ["`batches`", "integer", "float64"]),
        ({"batches": np.full((5, 8), 1437)}, ["`batches`", "1437"]),
    ],
)
def test_bad_explicit_inputs_are_refused(options, words):
    with pytest.raises(ConfigError) as caught:
        quick(Setup(**SMALL, steps=5), [Run(0.1, 1e-2)], **options)
    assert all(word in str(caught.value) for word in words)


def test_no_runs_is_an_error():
    with pytest.raises(ConfigError, match="`runs` must have at least one Run"):
        train(Setup(steps=1), [])


def test_progress_shows_steps_loss_and_time_left(tmp_path, monkeypatch):
    monkeypatch.setenv("PERIODIC_PROGRESS", str(tmp_path / "progress"))
    train(Setup(**SMALL, steps=400), [Run(0.1, 1e-2)], Record(evaluate_every=None))
    text = (tmp_path / "progress").read_text()
    assert "/400" in text
    assert "step/s" in text
    assert "loss" in text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_follows_the_cpu():
    setup, runs = Setup(**SMALL, steps=20, dtype="float64"), grid(lr=0.1, weight_decay=1e-2, seed=[0, 1])
    cpu, cuda = (quick(setup, runs, device=device) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(cpu.train_loss, cuda.train_loss, rtol=1e-9)


# ---------------------------------------------------------------- every network, optimizer and schedule


@pytest.mark.parametrize("name", ["convnet", "resnet18", "transformer"])
@pytest.mark.parametrize("others", [False, True])
def test_every_network_trains_the_same_in_a_stack_and_alone(name, others):
    few = {"width": 16, "train_size": 96, "batch_size": 32, "steps": 6}
    setup = Setup(network=name, dtype="float64", train_others=others, augment=True, **few)
    runs = [Run(0.05, 1e-2), Run(0.1, 1e-3, init_seed=1, data_seed=2, schedule="cosine", warmup=3, others_lr=0.01)]
    together = quick(setup, runs, record=Record(evaluate_every=6))
    for row, run in enumerate(runs):
        alone = quick(setup, [run], record=Record(evaluate_every=6))
        for metric in ("train_loss", "weight_norm", "angular_update", "elr", "test_loss", "train_loss_full"):
            np.testing.assert_allclose(together[metric][row], alone[metric][0], rtol=1e-7, err_msg=metric)


def test_convnet_training_is_a_hand_written_pytorch_loop():
    """Foreign weights and explicit batches: loss and norm agree with plain PyTorch over 20 steps, in float32."""
    steps, lr, wd = 20, 0.05, 1e-2
    torch.manual_seed(0)
    module = PlainConvNet((1, 8, 8), 8)
    module.last.requires_grad_(False)
    initial = {name: value.detach().clone() for name, value in module.names().items()}
    setup = Setup(network="convnet", width=8, steps=steps)
    batches = np.random.default_rng(0).integers(0, 1437, (steps, 64))
    ours = quick(setup, [Run(lr, wd)], initial=initial, batches=batches)
    data = Stack(setup, [Run(lr, wd)]).data
    weights = [value for name, value in module.names().items() if name.startswith("conv")]
    optimizer = torch.optim.SGD(weights, lr=lr, weight_decay=wd)
    for step, index in enumerate(torch.as_tensor(batches)):
        loss = torch.nn.functional.cross_entropy(module(data.x_train[index]), data.y_train[index])
        norm = torch.sqrt(sum(w.detach().square().sum() for w in weights))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert float(ours.train_loss[0, step]) == pytest.approx(float(loss.detach()), rel=1e-5)
        assert float(ours.weight_norm[0, step]) == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["nesterov", "adam", "adamw"])
def test_every_optimizer_learns(optimizer):
    lr = 0.05 if optimizer == "nesterov" else 1e-2
    setup = Setup(optimizer=optimizer, steps=120, drop_last=True)
    result = quick(setup, [Run(lr, 1e-3, momentum=0.9)], record=Record(evaluate_every=120))
    assert float(result.train_error[0, -1]) < 0.02


def test_the_effective_learning_rate_follows_the_schedule():
    setup = Setup(**SMALL, steps=40, dtype="float64")
    runs = [Run(0.1, 1e-2, schedule=schedule) for schedule in ("step", "cosine")]
    result = quick(setup, runs)
    rate = result.elr * result.weight_norm**2
    np.testing.assert_allclose(rate[0], [0.1 / 10 ** (4 * t // 40) for t in range(40)], rtol=1e-9)
    np.testing.assert_allclose(rate[1], 0.05 * (1 + np.cos(np.pi * np.arange(40) / 40)), rtol=1e-9)


def test_constant_elr_keeps_the_effective_learning_rate():
    result = quick(
        Setup(**SMALL, steps=60, dtype="float64"), [Run(0.5, 1e-2, schedule="constant_elr"), Run(0.5, 1e-2)]
    )
    np.testing.assert_allclose(result.elr[0], result.elr[0, 0], rtol=1e-12)
    assert result.elr[1].max() > 1.01 * result.elr[1].min()


@pytest.mark.parametrize("scope", ["total", "layer"])
def test_the_norm_can_be_fixed(scope):
    setup = Setup(**SMALL, steps=30, dtype="float64", fixed_norm=3.0, fixed_norm_scope=scope)
    result = quick(setup, [Run(0.5, 0.0), Run(0.5, 1e-2)], record=Record(layers=True, evaluate_every=None))
    fixed = result.weight_norm if scope == "total" else result.layer_weight_norm
    np.testing.assert_allclose(fixed, 3.0, rtol=1e-12)


def test_layers_and_neurons_add_up_and_obey_the_norm_recursion():
    setup = Setup(**SMALL, steps=30, dtype="float64", bn_eps=0)
    result = quick(setup, [Run(0.3, 1e-2)], record=Record(layers=True, neurons=True, evaluate_every=None))
    assert result.layer.values.tolist() == ["hidden0.weight", "hidden1.weight"]
    assert result.neuron.values[17] == "hidden1.weight[1]"
    for part in ("layer", "neuron"):
        np.testing.assert_allclose((result[f"{part}_weight_norm"] ** 2).sum(part), result.weight_norm**2, rtol=1e-12)
        rho, slope = result[f"{part}_weight_norm"].values[0], result[f"{part}_grad_norm"].values[0]
        np.testing.assert_allclose(theory.next_norm(0.3, 1e-2, rho, rho * slope)[:-1], rho[1:], rtol=1e-10)
        turn = theory.angular_update(0.3, 1e-2, rho, rho * slope)
        np.testing.assert_allclose(result[f"{part}_angular_update"][0], turn, rtol=1e-6, atol=1e-12)


def test_batch_sharpness_is_the_dense_hessians_along_the_gradient():
    setup = Setup(width=4, depth=1, steps=3, batch_size=16, train_size=60, dtype="float64")
    runs, record = grid(lr=0.3, weight_decay=1e-2, seed=[0, 1]), Record(batch_sharpness=True, evaluate_every=None)
    result = quick(setup, runs, record=record)
    assert result.batch_sharpness.dims == ("run", "step")
    for run in range(2):
        alone = Stack(setup, [runs[run]])
        order = alone.batch_order()
        for step in range(3):
            index, w = order.next(), alone.weights.detach()[0].clone()
            dense = torch.autograd.functional.hessian(lambda v, i=index, one=alone: one.loss(v[None], i).sum(), w)
            (gradient,) = torch.autograd.functional.jacobian(lambda v, i=index, one=alone: one.loss(v[None], i), w)
            along = w.square().sum() * (gradient @ dense @ gradient) / gradient.square().sum()
            assert float(result.batch_sharpness[run, step]) == pytest.approx(float(along), rel=1e-9)
            alone.step(index)
    without = quick(setup, runs, record=Record(evaluate_every=None))
    np.testing.assert_array_equal(result.train_loss, without.train_loss)


def test_sharpness_is_that_of_the_dense_hessian():
    setup = Setup(width=4, depth=1, steps=4, batch_size=None, train_size=60, dtype="float64")
    runs = grid(lr=0.1, weight_decay=1e-2, seed=[0, 1])
    result = quick(setup, runs, record=Record(evaluate_every=None, curvature_every=2))
    assert result.curvature_step.values.tolist() == [0, 2, 4]
    stack = Stack(setup, runs)
    everything = torch.arange(60).expand(1, -1)
    for run in range(2):
        w = stack.weights.detach()[run]
        alone = Stack(setup, [runs[run]])
        dense = torch.autograd.functional.hessian(lambda v, one=alone: one.loss(v[None], everything).sum(), w)
        top = float(torch.linalg.eigvalsh(dense)[-1]) * float(w.square().sum())
        assert float(result.sharpness[run, 0]) == pytest.approx(top, rel=2e-3)


@pytest.mark.parametrize("stop", [None, 8, 17])
def test_an_average_is_the_mean_of_every_step(tmp_path, stop):
    setup, runs = Setup(**SMALL, steps=25), grid(lr=0.1, weight_decay=1e-2, seed=[0, 1])
    every = quick(setup, runs, record=Record(evaluate_every=None, layers=True))
    record = Record(every=6, average=True, evaluate_every=None, layers=True)
    if stop is None:
        means = quick(setup, runs, record=record)
    else:
        means = interrupted_then_resumed(setup, runs, record, tmp_path / "state.npz", at=stop)
    assert means.step.values.tolist() == [0, 6, 12, 18, 24]
    parts = [every.isel(step=slice(start, start + 6)) for start in means.step.values]  # the last: one step
    for name in ("train_loss", "weight_norm", "elr", "eff_grad_norm", "layer_grad_norm"):
        expected = np.stack([part[name].mean("step") for part in parts], axis=1)
        np.testing.assert_allclose(means[name], expected, rtol=2e-6, err_msg=name)
    for name in ("angular_update", "layer_angular_update"):
        expected = np.stack([np.sqrt(np.square(part[name]).mean("step")) for part in parts], axis=1)
        np.testing.assert_allclose(means[name], expected, rtol=2e-6, err_msg=name)


def test_measuring_curvature_and_parts_does_not_change_the_trajectory():
    setup, runs = Setup(width=8, depth=1, steps=12), grid(lr=0.1, weight_decay=1e-2, seed=[0, 1])
    plain = quick(setup, runs)
    watched = quick(setup, runs, record=Record(layers=True, neurons=True, evaluate_every=4, curvature_every=6))
    assert (plain.train_loss.values == watched.train_loss.values).all()


def test_a_large_full_batch_gives_the_same_numbers_run_by_run(monkeypatch):
    setup = Setup(width=8, depth=1, steps=5, batch_size=None, dtype="float64")
    runs = grid(lr=0.1, weight_decay=1e-2, seed=[0, 1, 2])
    at_once = quick(setup, runs)
    monkeypatch.setattr(stack_module, "FULL_BATCH_NUMBERS", 1)
    np.testing.assert_allclose(quick(setup, runs).train_loss, at_once.train_loss, rtol=1e-12)


# ---------------------------------------------------------------- snapshots


def test_snapshots_are_the_weights_of_independent_stepping():
    setup, runs = Setup(**SMALL, steps=25), grid(lr=0.1, weight_decay=1e-2, seed=[0, 1])
    result = quick(setup, runs, record=Record(evaluate_every=None, snapshot_every=10))
    assert result.snapshot_step.values.tolist() == [0, 10, 20, 25]
    stack = Stack(setup, runs)
    order, kept = stack.batch_order(), [stack.invariant.clone()]
    for _ in range(setup.steps):
        stack.step(order.next())
        kept.append(stack.invariant.clone())
    w = torch.stack(kept, dim=1).numpy()[:, result.snapshot_step]  # (runs, snapshots, weights)
    np.testing.assert_allclose(result.direction, w / np.linalg.norm(w, axis=2, keepdims=True), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(w, axis=2)[:, :-1], result.weight_norm.sel(step=[0, 10, 20]), rtol=1e-6)


@pytest.mark.parametrize("network", ["mlp", "convnet"])
@pytest.mark.parametrize("batch_size", [50, None])
def test_the_logits_of_a_snapshot_give_the_evaluated_test_metrics(network, batch_size):
    setup = Setup(network=network, width=8, depth=2, batch_size=batch_size, steps=12, train_size=100, dtype="float64")
    record = Record(evaluate_every=5, snapshot_every=5)
    result = quick(setup, grid(lr=[0.1, 1], weight_decay=1e-2), record=record)
    assert result.test_logits.dims == ("run", "snapshot_step", "example", "class")
    assert result.direction.dtype == result.test_logits.dtype == np.float32
    wrong = result.test_logits.argmax("class") != result.label
    np.testing.assert_allclose(wrong.mean("example"), result.test_error, rtol=1e-12)
    score = torch.tensor(result.test_logits.values).log_softmax(dim=-1).numpy()
    likelihood = np.take_along_axis(score, result.label.values[None, None, :, None], axis=3)
    np.testing.assert_allclose(-likelihood.mean(axis=(2, 3)), result.test_loss, rtol=1e-5)


def test_a_snapshot_makes_a_network_again():
    """A direction is all that a scale-invariant network is; the last layer is drawn again by the run's seed."""
    setup, runs = Setup(**SMALL, steps=30, dtype="float64", bn_eps=0), [Run(0.1, 1e-2, init_seed=4)]
    result = quick(setup, runs, record=Record(evaluate_every=30, snapshot_every=30))
    stack = Stack(setup, runs * 2)  # both snapshots, as two runs
    stack.invariant.copy_(3 * torch.tensor(result.direction.values[0]))
    losses = stack.evaluate()[2]
    np.testing.assert_allclose(losses, result.test_loss[0], rtol=1e-5)


def test_snapshots_do_not_change_the_trajectory_and_stay_finite_for_the_sane(tmp_path):
    setup, runs = Setup(**SMALL, steps=25), [Run(0.1, 1e-2), Run(1e38, 0, init_scale=1e-18)]
    record = Record(evaluate_every=None, unit="epoch", snapshot_every=1)
    plain, watched = quick(setup, runs), quick(setup, runs, record=record)
    assert watched.snapshot_step.values.tolist() == [0, 11, 22, 25]
    np.testing.assert_array_equal(plain.train_loss.sel(step=watched.step), watched.train_loss)
    assert np.isfinite(watched.test_logits[0]).all()
    results.save(watched, tmp_path / "kept.nc")
    assert results.load(tmp_path / "kept.nc").identical(watched)


def test_too_many_snapshots_are_refused_before_training():
    with pytest.raises(ConfigError, match=r"`snapshot_every` must leave at most 4 GB of snapshots; got 1: 200002 of"):
        quick(Setup(steps=100_000), grid(lr=0.1, weight_decay=0, seed=[0, 1]), record=Record(snapshot_every=1))


# ---------------------------------------------------------------- precision, own data


@pytest.mark.parametrize("matmul", ["tf32", "bfloat16"])
def test_less_precise_arithmetic_only_when_asked(matmul):
    setup = Setup(**SMALL, steps=5)
    full, less = (quick(replace(setup, matmul=m), [Run(0.1, 1e-2)]) for m in ("full", matmul))
    np.testing.assert_allclose(less.train_loss, full.train_loss, rtol=0.05)
    assert not torch.backends.cuda.matmul.allow_tf32
    assert json.loads(less.attrs["setup"])["matmul"] == matmul
    if matmul == "bfloat16":  # a CPU has no tf32
        assert (less.train_loss.values != full.train_loss.values).any()


@pytest.mark.parametrize("matmul", ["full", "tf32"])
def test_cuda_rounds_backwards_as_it_does_forwards(matmul):
    """The flags are read when a convolution's backward pass runs; a hook stands in for it where there is no GPU."""
    stack = Stack(Setup(network="convnet", width=4, depth=2, batch_size=8, matmul=matmul), [Run(0.1, 1e-2)])
    x, labels = stack._examples(stack.batch_order().next())
    stack.device, seen, logits = "cuda", [], stack.network.logits
    cudnn = torch.backends.cudnn

    def watched(values, pictures, normalize=None):
        note = lambda *_: seen.append((cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark))  # noqa: E731
        note()
        out = logits(values, pictures)
        out.register_hook(note)
        return out

    stack.network.logits = watched
    before = cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    stack._loss_and_gradient(x, labels)
    assert seen == [(matmul == "tf32", True, False)] * 2
    assert before == (cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark)


def test_a_transformer_has_a_curvature():
    setup = Setup(network="transformer", width=16, depth=1, steps=1, train_size=64, batch_size=16)
    out = quick(setup, [Run(0.1, 1e-2)], record=Record(evaluate_every=None, curvature_every=1))
    assert (out.sharpness > 0).all()


def test_own_data_are_trained_on(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    pictures = (rng.random((60, 6, 6, 3)) * 50 + 60 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "own.npz", x_train=pictures, y_train=labels, x_test=pictures[:9], y_test=labels[:9])
    setup = Setup(dataset=str(tmp_path / "own.npz"), network="convnet", width=8, depth=2, batch_size=20, steps=40)
    result = quick(setup, [Run(0.05, 1e-3)], record=Record(evaluate_every=40))
    assert float(result.train_error[0, -1]) < 0.1


# ---------------------------------------------------------------- stopping and going on


def interrupted_then_resumed(setup, runs, record, path, at):
    """Train with a resume state written after every step; stop at a step, then go on with a fresh call."""

    class Stop(Exception):
        pass

    original = Stack.step

    def step(self, *arguments):
        if self.steps_done == at:
            raise Stop
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "RESUME_SECONDS", 0)
        patch.setattr(Stack, "step", step)
        with pytest.raises(Stop):
            train(setup, runs, record, progress=False, resume=path)
    return train(setup, runs, record, progress=False, resume=path)


@pytest.mark.parametrize("at", [1, 17, 24])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_stopping_and_going_on_is_not_stopping(tmp_path, at, optimizer):
    setup = Setup(width=8, depth=1, steps=25, optimizer=optimizer, augment=True, network="mlp")
    runs = [Run(0.1, 1e-2, momentum=0.9, schedule="cosine"), Run(1e38, 0, init_scale=1e-18, data_seed=3)]
    record = Record(every=3, layers=True, evaluate_every=5, curvature_every=10, snapshot_every=4)
    whole = train(setup, runs, record, progress=False)
    pieces = interrupted_then_resumed(setup, runs, record, tmp_path / "state.npz", at)
    assert pieces.drop_attrs().identical(whole.drop_attrs())  # bit for bit, nan where nan


def test_a_state_of_other_training_or_a_damaged_one_is_not_used(tmp_path):
    setup, runs, path = Setup(width=8, depth=1, steps=25), [Run(0.1, 1e-2)], tmp_path / "state.npz"
    interrupted_then_resumed(setup, runs, Record(), path, at=10)
    other = [Run(0.2, 1e-2)]
    assert (
        train(setup, other, progress=False, resume=path).train_loss.values == quick(setup, other).train_loss.values
    ).all()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert (
        train(setup, runs, progress=False, resume=path).train_loss.values == quick(setup, runs).train_loss.values
    ).all()


def test_killed_at_a_random_step_and_started_again_is_bit_identical(tmp_path):
    """SIGKILL, not an exception: the state on disk is all there is."""
    code = (
        "import sys; from periodic_lib import Setup, Run, Record, results, train; "
        "from periodic_lib.engine import training; training.RESUME_SECONDS = 0.05; "
        "out = train(Setup(width=16, depth=2, steps=1200), [Run(0.3, 1e-2), Run(0.1, 1e-2, data_seed=1)], "
        "Record(evaluate_every=500), resume=sys.argv[1], progress=False); results.save(out, sys.argv[2])"
    )
    state, killed, whole = (tmp_path / name for name in ("state.npz", "killed.nc", "whole.nc"))
    command = [sys.executable, "-c", code]
    with subprocess.Popen([*command, state, killed]) as process:
        deadline = time.monotonic() + 60
        while not state.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        process.kill()
    assert state.exists()
    assert not killed.exists()
    for path, target in ((state, killed), (tmp_path / "none.npz", whole)):
        subprocess.run([*command, path, target], check=True)
    assert results.load(killed).drop_attrs().identical(results.load(whole).drop_attrs())


# ---------------------------------------------------------------- memory, graphs


def tensors_of(stack):
    data = [getattr(stack.data, name) for name in ("x_train", "y_train", "x_test", "y_test", "black")]
    own = [*stack.state().values(), *stack.fixed.values(), stack.rate, stack.weights]
    return sum(t.nbytes for t in data), sum(t.nbytes for t in own)


def test_memory_grows_linearly_with_the_runs_and_the_data_are_shared():
    sizes = [
        tensors_of(Stack(Setup(optimizer="adamw"), grid(lr=0.1, weight_decay=0, seed=range(r)))) for r in (1, 2, 8)
    ]
    assert len({data for data, _ in sizes}) == 1
    one, two, eight = (own for _, own in sizes)
    assert eight - one == 7 * (two - one)


def test_a_long_record_of_many_runs_stays_small():
    stack = Stack(Setup(steps=20_000), grid(lr=0.1, weight_decay=0, seed=range(64)))
    keep = recording.Recorder(stack, Record(), steps_per_epoch=12)
    recorded = sum(table.nbytes for table in keep.tables.values())
    assert recorded < 100e6


def test_not_measuring_does_not_change_the_trajectory():
    setup, runs = Setup(**SMALL, steps=40), [Run(0.1, 1e-2), Run(1e38, 0, init_scale=1e-18)]
    every, seldom = quick(setup, runs), quick(setup, runs, record=Record(every=7, evaluate_every=None))
    np.testing.assert_array_equal(seldom.train_loss, every.train_loss[:, ::7])
    np.testing.assert_array_equal(seldom.diverged_at, every.diverged_at)


def test_a_captured_step_is_the_step(monkeypatch):
    """The bookkeeping around a CUDA graph, with a stand-in for CUDA that runs the captured step at every replay."""

    class FakeGraph:
        def replay(self):
            self.owner.measured.copy_(stack._update(*self.owner.inputs, ())[0])

    fake = {"Stream": lambda: FakeStream, "current_stream": lambda: FakeStream, "CUDAGraph": FakeGraph}
    FakeStream = type("FakeStream", (), {"wait_stream": staticmethod(lambda _: None)})
    for name, value in {**fake, "stream": lambda _: nullcontext(), "graph": lambda *_, **__: nullcontext()}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    setup = Setup(width=8, depth=1, steps=30, optimizer="adamw", dtype="float64")
    runs = [Run(0.01, 1e-2, schedule="cosine"), Run(0.01, 1e-2, schedule="constant_elr", data_seed=1)]
    plain, stack = Stack(setup, runs), Stack(setup, runs)
    orders = plain.batch_order(), stack.batch_order()
    graphs = {}
    for _ in range(setup.steps):
        expected = plain.step(orders[0].next())[0]
        index = orders[1].next()
        inputs = stack.data.x_train[index], stack.data.y_train[index], stack._factor()
        stack.steps_done += 1
        if index.shape[1] not in graphs:  # full batches and the last, short one of an epoch
            graph = graphs[index.shape[1]] = devices.Graph(stack, *inputs)
            graph.graph.owner = graph
        assert torch.equal(graphs[index.shape[1]](*inputs), expected)
    assert len(graphs) == 2
    assert torch.equal(stack.weights, plain.weights)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_training_is_the_same():
    setup = Setup(network="convnet", width=4, depth=2, steps=5, batch_size=16, drop_last=True, dtype="float64")
    plain, compiled = (quick(setup, [Run(0.05, 1e-2)], compiled=flag) for flag in (False, True))
    np.testing.assert_allclose(compiled.train_loss, plain.train_loss, rtol=1e-9)
    np.testing.assert_allclose(compiled.angular_update, plain.angular_update, rtol=1e-6)


def test_adamw_is_rescaled_by_c_and_1_over_c(tmp_path):
    rng = np.random.default_rng(0)  # no constant feature: a gradient that is all rounding would be normalized, too
    arrays = {f"x_{part}": rng.normal(size=(256, 12)) for part in ("train", "test")}
    labels = {f"y_{part}": np.arange(256) % 4 for part in ("train", "test")}
    np.savez(tmp_path / "features.npz", **arrays, **labels)
    settings = [(0.01, 0.1, 1.0)]
    settings += [(0.01 * c, 0.1 / c, c) for c in (0.1, 10.0)]
    runs = [Run(lr=lr, weight_decay=wd, init_scale=c, adam_eps=0) for lr, wd, c in settings]
    data = str(tmp_path / "features.npz")
    setup = Setup(dataset=data, optimizer="adamw", dtype="float64", bn_eps=0, width=16, steps=40)
    out = train(setup, runs, Record(evaluate_every=None), progress=False)
    for scaled, (_, _, c) in zip(out.transpose("run", ...).train_loss[1:], settings[1:], strict=True):
        np.testing.assert_allclose(scaled, out.train_loss[0], rtol=1e-9, err_msg=f"c = {c}")


def test_fresh_label_noise_is_what_the_loss_sees_and_evaluations_do_not():
    setup, runs = Setup(**SMALL, steps=400, dtype="float64"), grid(lr=0.1, weight_decay=0, seed=[0, 1])
    clean = quick(setup, runs, record=Record(evaluate_every=200))
    noisy = quick(replace(setup, fresh_label_noise=0.3), runs, record=Record(evaluate_every=200))
    np.testing.assert_array_equal(noisy.test_error[:, 0], clean.test_error[:, 0])  # the same start
    assert float(noisy.train_loss[:, -50:].mean()) > float(noisy.train_loss_full[:, -1].mean()) + 0.5
    again = quick(replace(setup, fresh_label_noise=0.3), runs[1:], record=Record(evaluate_every=200))
    np.testing.assert_allclose(again.train_loss[0], noisy.train_loss[1], rtol=1e-9)


# ---------------------------------------------------------------- long records


def test_thin_is_what_a_record_of_means_would_have_kept_but_every_step_around_events():
    setup, runs = Setup(**SMALL, steps=60, dtype="float64"), grid(lr=[0.1, 1], weight_decay=1e-2)
    full = quick(setup, runs, record=Record(evaluate_every=20, layers=True))
    means = quick(setup, runs, record=Record(every=10, average=True, evaluate_every=20, layers=True))
    thinned = recording.thin(full, every=10, around=[33], margin=4)
    assert thinned.step.values.tolist() == [0, 10, *range(20, 40), 40, 50]
    assert thinned.covers.values.tolist() == [10, 10, *[1] * 20, 10, 10]
    quiet = thinned.sel(step=[0, 10, 40, 50])
    for name in means.data_vars:
        if "step" in means[name].dims:
            np.testing.assert_allclose(quiet[name], means[name].sel(step=quiet.step), rtol=1e-12, err_msg=name)
    near = slice(20, 39)
    np.testing.assert_array_equal(thinned.train_loss.sel(step=near), full.train_loss.sel(step=near))
    np.testing.assert_array_equal(thinned.test_error, full.test_error)
    median = np.median(full.train_loss.values[:, :10], axis=1)
    np.testing.assert_array_equal(thinned.train_loss_median[:, 0], median)
    assert recording.thin(full, every=60).sizes["step"] == 1
    for name, twice in recording.thin(thinned, every=20).data_vars.items():  # a row counts as often as it covers steps
        if "step" in twice.dims and "median" not in name:
            np.testing.assert_allclose(twice, recording.thin(full, every=20)[name], rtol=1e-6, err_msg=name)


def test_what_was_recorded_so_far_comes_with_the_end_of_a_budget(tmp_path):
    setup, runs, record = Setup(**SMALL, steps=300), grid(lr=0.1, weight_decay=0), Record(evaluate_every=50)
    whole, rows = quick(setup, runs, record=record), []
    with pytest.raises(Unfinished) as stopped:
        quick(setup, runs, record=record, resume=tmp_path / "state.npz", budget=1e-9)
    rows, done = stopped.value.dataset, stopped.value.done
    assert 0 < rows.sizes["step"] == done == rows.attrs["steps_done"] < 300
    np.testing.assert_array_equal(rows.train_loss, whole.train_loss[:, :done])
    assert f"{done} (so far, of 300)" in results.provenance(rows)
