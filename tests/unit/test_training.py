import numpy as np
import pytest
import torch

from periodic_lib import Record, Run, Setup, grid, theory, train
from periodic_lib.config import ConfigError
from periodic_lib.training import Stack

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
        loss = torch.nn.functional.cross_entropy(network(data.x_train[index]), data.y_train[index])
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
    huge = Run(1e38, 0.0, init_scale=1e-18)
    pair, alone = quick(setup, [huge, Run(0.1, 1e-2)]), quick(setup, [Run(0.1, 1e-2)])
    assert not np.isfinite(pair.train_loss[0]).all()
    np.testing.assert_allclose(pair.train_loss[1], alone.train_loss[0], rtol=1e-6)


def test_the_result_says_where_it_comes_from():
    result = quick(Setup(**SMALL, steps=3), [Run(0.1, 1e-2, momentum=0.5, init_seed=4)])
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
