"""The monitor: what it measures against the library's own training, and that it changes nothing."""

import csv
import shutil
import sysconfig
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from plain_networks import PlainMLP, PlainResNet
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from periodic_lib import Record, Run, Setup, train
from periodic_lib.engine.stack import Stack
from periodic_lib.monitor import Monitor, gauges, outlook
from periodic_lib.monitor.histories import History
from periodic_lib.project import ConfigError
from periodic_lib.results import load, provenance

HIDDEN = [[f"hidden{i}.weight"] for i in range(3)]


@pytest.fixture
def batches():
    chance = torch.Generator().manual_seed(0)
    return [
        (torch.randn(16, 1, 8, 8, generator=chance), torch.randint(10, (16,), generator=chance)) for _ in range(230)
    ]


def make(seed=0, width=8):
    torch.manual_seed(seed)
    return PlainMLP((1, 8, 8), width, affine=True)


def optimizer_of(model, kind="sgd", lr=0.1, decay=1e-2, **options):
    hidden = [p for name, p in model.named_parameters() if "hidden" in name]
    rest = [p for name, p in model.named_parameters() if "hidden" not in name]
    parts = [{"params": hidden, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0, "lr": lr / 2}]
    makers = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return makers[kind](parts, lr, **options)


def fit(model, optimizer, batches, monitor=None, steps=None, accumulate=1, clip=None, scheduler=None):
    for i, (x, y) in enumerate(batches[:steps]):
        loss = nn.functional.cross_entropy(model(x), y)
        (loss / accumulate).backward()
        if monitor is not None:
            monitor.loss = loss
        if (i + 1) % accumulate == 0:
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            if scheduler is not None:
                scheduler.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


OPTIMIZERS = [("sgd", {}), ("sgd", {"momentum": 0.9}), ("adam", {"lr": 1e-2}), ("adamw", {"lr": 1e-2})]


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_training_is_the_same_bit_by_bit(batches, kind, options):
    ends = []
    for watched in (False, True):
        model = make()
        optimizer = optimizer_of(model, kind, **options)
        monitor = Monitor(model, optimizer, groups=HIDDEN, angle_every=3) if watched else None
        ends.append(fit(model, optimizer, batches, monitor, clip=1.0))
        ends.append(torch.rand(3))  # the random numbers are where they were, too
    assert torch.equal(ends[0], ends[2])
    assert torch.equal(ends[1], ends[3])
    assert monitor.failure is None
    assert monitor.steps == len(batches)


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_measures_against_numbers_by_hand(batches, kind, options):
    model = make().double()
    optimizer = optimizer_of(model, kind, **options)
    monitor = Monitor(model, optimizer, groups=[[name for (name,) in HIDDEN]], angle_every=1)
    mine = [p for name, p in model.named_parameters() if "hidden" in name]
    expected = []
    for x, y in batches[:20]:
        loss = nn.functional.cross_entropy(model(x.double()), y)
        loss.backward()
        monitor.loss = loss
        w, g = (torch.cat([part.flatten() for part in parts]) for parts in ([p.detach() for p in mine], grads(mine)))
        optimizer.step()
        new = torch.cat([p.detach().flatten() for p in mine])
        optimizer.zero_grad()
        cosine = torch.dot(w, new) / w.norm() / new.norm()
        row = [loss.item(), w.norm(), g.norm(), torch.arccos(cosine), torch.dot(w, g) / w.norm() / g.norm()]
        expected.append([float(value) for value in row])
    found = monitor.results.isel(run=0)
    names = ["train_loss", "weight_norm", "grad_norm", "angular_update", "radial_cosine"]
    for name, values in zip(names, np.transpose(expected), strict=True):
        tolerance = {"rtol": 3e-6, "atol": 1e-7}
        np.testing.assert_allclose(found[name], values, **tolerance, err_msg=name)
    rho = found.weight_norm
    np.testing.assert_allclose(found.eff_grad_norm, rho * found.grad_norm)
    np.testing.assert_allclose(found.elr, optimizer.param_groups[0]["lr"] / rho**2)


def grads(parameters):
    return [p.grad for p in parameters]


def trained_beside(steps, run, record):
    """The library's training; the same network in plain PyTorch, its optimizer, and the loss of each step's batch."""
    torch.manual_seed(3)
    network = PlainMLP((1, 8, 8), 16).double()
    initial = {name: value.detach().clone() for name, value in network.names().items()}
    setup = Setup(width=16, depth=3, steps=steps, dtype="float64", batch_size=50)
    order = np.random.default_rng(0).integers(0, 1437, (steps, 50))
    ours = train(setup, [run], record, progress=False, initial=initial, batches=order).isel(run=0)
    data = Stack(setup, [run]).data
    network.last.requires_grad_(False)
    with torch.no_grad():  # the library's network takes the values as they are
        for name, value in network.names().items():
            value.copy_(initial[name])
    mine = [p for name, p in network.named_parameters() if "hidden" in name]
    optimizer = torch.optim.SGD(mine, lr=run.lr, weight_decay=run.weight_decay, momentum=run.momentum)

    def loss(index):
        return nn.functional.cross_entropy(network(data.x_train[index]), data.y_train[index])

    return ours, network, optimizer, [partial(loss, index) for index in torch.as_tensor(order)]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_agrees_with_the_library_to_six_digits(momentum):
    steps, run = 120, Run(lr=0.2, weight_decay=1e-2, momentum=momentum)
    ours, network, optimizer, losses = trained_beside(steps, run, Record(evaluate_every=None, layers=True))
    monitor = Monitor(network, optimizer, groups=HIDDEN, angle_every=1)
    for loss_of in losses:
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        monitor.loss = loss
        optimizer.step()
    found = monitor.results.isel(run=0)
    for name in ("train_loss", "weight_norm", "grad_norm", "eff_grad_norm", "elr", "angular_update"):
        np.testing.assert_allclose(found[name], ours[name], rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(found.radial_cosine, ours.radial_cosine, atol=1e-6)
    for name in ("weight_norm", "grad_norm", "angular_update"):
        theirs = ours[f"layer_{name}"]
        np.testing.assert_allclose(found[f"group_{name}"].values[:, :3], theirs, rtol=1e-6, err_msg=name)


def test_rates_of_every_group_and_of_schedules(batches):
    model = make()
    optimizer = optimizer_of(model, lr=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, 10)
    monitor = Monitor(model, optimizer, groups=[*HIDDEN, ["norm0.weight", "last.weight"]])
    fit(model, optimizer, batches, monitor, steps=10, scheduler=scheduler)
    found = monitor.results.isel(run=0)
    slow = 0.1 * np.linspace(1, 0.5, 11)[:10]
    np.testing.assert_allclose(found.group_learning_rate[:, 0], slow, rtol=1e-6)
    np.testing.assert_allclose(found.group_learning_rate[:, 3], slow / 2, rtol=1e-6)
    np.testing.assert_allclose(found.group_decay[:, 0], 1e-2, rtol=1e-6)
    assert (found.group_decay[:, 3] == 0).all()
    assert found.step.dtype == int
    assert list(found.group.values) == [*(name for (name,) in HIDDEN), "norm0.weight +1", "rest"]
    optimizer.load_state_dict(optimizer.state_dict())  # replaces the dicts of rates
    optimizer.param_groups[0]["lr"] = 0.7
    fit(model, optimizer, batches, monitor, steps=1)
    assert float(monitor.results.group_learning_rate[0, -1, 0]) == pytest.approx(0.7)


def test_what_decay_does_not_shrink_is_not_followed(batches):
    model = make()
    kernels, others = ["hidden0.weight"], ["hidden1.weight", "hidden2.weight"]
    named = dict(model.named_parameters())
    parts = [{"params": [named[n] for n in kernels], "weight_decay": 0.1}, {"params": [named[n] for n in others]}]
    monitor = Monitor(model, torch.optim.SGD(parts, 0.1), groups=[[n] for n in (*kernels, *others)])
    fit(model, monitor.optimizer, batches, monitor, steps=30)
    found = monitor.results
    assert found.weight_norm.values == pytest.approx(found.group_weight_norm.isel(group=0).values)
    undecayed = Monitor(model, torch.optim.SGD(model.parameters(), 0.1), groups=HIDDEN)
    fit(model, undecayed.optimizer, batches, undecayed, steps=30)
    all_three = np.sqrt((undecayed.results.group_weight_norm[..., :3] ** 2).sum("group"))
    assert undecayed.results.weight_norm.values == pytest.approx(all_three.values)


def test_its_record_says_when_and_with_what_it_was_made(batches):
    model = make()
    monitor = Monitor(model, optimizer_of(model), groups=HIDDEN, total_steps=30)
    fit(model, monitor.optimizer, batches, monitor, steps=20)
    assert provenance(monitor.results).startswith("1 runs of 20 (so far, of 30) steps on cpu (")


def test_only_real_steps_count(batches):
    model = make()
    optimizer = optimizer_of(model)
    monitor = Monitor(model, optimizer, groups=HIDDEN)
    fit(model, optimizer, batches, monitor, steps=22, accumulate=4, clip=0.5)
    found = monitor.results.isel(run=0)
    assert monitor.steps == found.sizes["step"] == 5
    whole = np.sqrt((found.group_grad_norm**2).sum("group"))
    assert (whole <= 0.5 * (1 + 1e-5)).all()  # clipped before it was seen


def test_steps_with_a_closure(batches):
    found = []
    for closed in (False, True):
        model = make()
        optimizer = optimizer_of(model)
        monitor = Monitor(model, optimizer, groups=HIDDEN)

        def closure(model=model, optimizer=optimizer, monitor=monitor):
            x, y = batches[monitor.steps]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            monitor.loss = loss
            return loss

        for i in range(6):
            if closed and i % 2:
                optimizer.step(closure=closure)
            elif closed:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        found.append(monitor.results)
    assert found[0].equals(found[1])


def test_a_closure_that_is_called_often_is_measured_once(batches):
    model = make()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    monitor = Monitor(model, optimizer, groups=HIDDEN)
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batches[0][0]), batches[0][1])
        loss.backward()
        monitor.loss = loss
        losses.append(loss.item())
        return loss

    optimizer.step(closure)
    assert len(losses) > 1
    assert monitor.results.train_loss.values.tolist() == [[pytest.approx(losses[0], rel=1e-6)]]


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device."""

    NAMES = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "_to_cpu")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += any(function.__name__.startswith(name) for name in self.NAMES)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_the_host_never_waits_between_reads(batches, kind, options, monkeypatch):
    read = []
    whole = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: read.append(1) or whole(self))

    def count(watched):
        model = make()
        optimizer = optimizer_of(model, kind, **options)
        monitor = Monitor(model, optimizer, groups=HIDDEN, angle_every=1) if watched else None
        with Waits() as waits:
            fit(model, optimizer, batches, monitor, steps=99)
        return waits.count

    assert count(True) == count(False)  # Adam reads its own step counts
    assert not read


def test_the_count_of_waits_counts():
    with Waits() as waits:
        float(torch.ones(1))
    assert waits.count == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_wait_on_a_gpu(batches):
    model = make().cuda()
    optimizer = optimizer_of(model)
    monitor = Monitor(model, optimizer, groups=HIDDEN)
    moved = [(x.cuda(), y.cuda()) for x, y in batches]
    torch.cuda.set_sync_debug_mode("error")
    try:
        fit(model, optimizer, moved, monitor, steps=99)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert monitor.failure is None


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("place", ["before", "after", "read", "losses"])
def test_a_fault_inside_stops_the_monitor_and_not_the_training(batches, place, monkeypatch):
    model = make()
    optimizer = optimizer_of(model, momentum=0.9)
    monitor = Monitor(model, optimizer, groups=HIDDEN)

    def fail(*arguments, **options):
        raise ZeroDivisionError("injected")

    if place == "losses":
        monkeypatch.setattr(torch.Tensor, "mean", fail)
    else:
        monkeypatch.setattr(monitor._gauges, place, fail)
    with pytest.warns(RuntimeWarning, match="the training goes on as it would without it") as warned:
        end = fit(model, optimizer, batches, monitor)
    monkeypatch.undo()
    assert len(warned) == 1
    alone = make()
    expected = fit(alone, optimizer_of(alone, momentum=0.9), batches)
    assert torch.equal(end, expected)
    assert monitor.failure == "ZeroDivisionError: injected"
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_verdicts_and_logs_are_guarded_too(batches, monkeypatch, tmp_path):
    from periodic_lib.monitor import verdicts

    model = make()
    optimizer = optimizer_of(model)
    monitor = Monitor(model, optimizer, groups=HIDDEN, csv=tmp_path / "log.csv")
    monkeypatch.setattr(verdicts, "judge", lambda *_: 1 / 0)
    with pytest.warns(RuntimeWarning, match="ZeroDivisionError"):
        fit(model, optimizer, batches, monitor)
    monkeypatch.undo()
    assert monitor.report().startswith("The monitor is off since step 100: ZeroDivisionError")


def test_messages(batches):
    model = make()
    optimizer = optimizer_of(model)
    with pytest.raises(ConfigError, match=r"must be given; got neither\."):
        Monitor(model, optimizer)
    with pytest.raises(ConfigError, match=r"unknown parameter 'hidden0\.wieght'.*Did you mean 'hidden0.weight'"):
        Monitor(model, optimizer, groups=[["hidden0.wieght"]])
    with pytest.raises(ConfigError, match=r"each parameter once; got 'hidden0\.weight' twice"):
        Monitor(model, optimizer, groups=[["hidden0.weight"], ["hidden0.weight"]])
    with pytest.raises(ConfigError, match="must be a list of lists"):
        Monitor(model, optimizer, groups=["hidden0.weight"])
    with pytest.raises(ConfigError, match=r"`scalars` must be one of 'one', 'three', 'all'"):
        Monitor(model, optimizer, groups=[], scalars="many")
    with pytest.raises(ConfigError, match=r"whole parameters; got sharded ones \(DTensor, FSDP\)"):
        gauges.refuse_shards([SimpleNamespace(device_mesh=None)])
    assert not optimizer._optimizer_step_pre_hooks


# ---------------------------------------------------------------- life


def test_groups_by_parameters_and_by_a_probe(batches, monkeypatch):
    model = make()
    optimizer = optimizer_of(model)
    by_value = Monitor(model, optimizer, groups=[[model.hidden0.weight]])
    assert by_value.groups == [("hidden0.weight",)]
    both = ("hidden0.weight", "hidden1.weight")
    twice = [SimpleNamespace(names=names, fails_below=0.25) for names in (both[:1], both)]
    monkeypatch.setattr(Monitor, "find_groups", lambda *_: torch.rand(1) and SimpleNamespace(groups=twice))
    torch.manual_seed(0)
    probed = Monitor(model, optimizer, example=batches[0][0])
    assert probed.groups == [("hidden0.weight",)]
    assert probed.symmetries.groups == twice
    fit(model, optimizer, batches, probed, steps=1)
    np.testing.assert_array_equal(probed.results.fails_below, [0.25, np.nan])
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    Monitor(model, optimizer, example=batches[0][0])
    assert torch.equal(torch.rand(1), first)  # the probe's random numbers are its own


def test_detach_and_context(batches):
    model = make()
    optimizer = optimizer_of(model)
    with Monitor(model, optimizer, groups=HIDDEN) as monitor:
        fit(model, optimizer, batches, monitor, steps=3)
    fit(model, optimizer, batches, steps=3)
    assert monitor.steps == 3
    assert monitor.results.sizes["step"] == 3


def test_going_on_from_a_state(batches):
    model = make()
    optimizer = optimizer_of(model, "adamw")
    whole = Monitor(model, optimizer, groups=HIDDEN, angle_every=7)
    fit(model, optimizer, batches, whole)

    model = make()
    optimizer = optimizer_of(model, "adamw")
    first = Monitor(model, optimizer, groups=HIDDEN, angle_every=7)
    fit(model, optimizer, batches[:130], first)
    state = first.state_dict()
    first.detach()
    second = Monitor(model, optimizer, groups=HIDDEN, angle_every=7)
    second.load_state_dict(state)
    fit(model, optimizer, batches[130:], second)
    assert second.results.equals(whole.results)
    other = Monitor(model, optimizer, groups=[])
    with pytest.raises(ConfigError, match="`state` must be of the same groups; got one of 3 groups"):
        other.load_state_dict(state)


def test_save_plot_and_logs(batches, tmp_path):
    model = make()
    optimizer = optimizer_of(model)
    rows = []
    board = SimpleNamespace(add_scalar=lambda name, value, step: rows.append((name, step)))
    monitor = Monitor(
        model, optimizer, groups=HIDDEN, csv=tmp_path / "log.csv", tensorboard=board, log_every=150, total_steps=500
    )
    fit(model, optimizer, batches, monitor)
    with (tmp_path / "log.csv").open() as file:
        table = list(csv.reader(file))
    assert table[0] == ["step", "state", "elr_over_equilibrium", "not_before"]
    assert [row[0] for row in table[1:]] == ["200"]
    assert rows == [(f"periodic/{name}", 200) for name in table[0][1:]]
    assert load(monitor.save(tmp_path / "run.nc")).equals(monitor.results)
    assert monitor.plot() is not None
    text = monitor.report()
    assert text.startswith("3 scale-invariant groups")
    assert len(text.splitlines()) <= 8
    assert set(monitor.states()) == {name for (name,) in HIDDEN}


def test_without_scale_invariant_weights_it_says_so(batches):
    model = make()
    optimizer = optimizer_of(model)
    monitor = Monitor(model, optimizer, groups=[])
    fit(model, optimizer, batches, monitor, steps=60)
    assert outlook.state(monitor.results) == "no scale-invariant weights"
    assert monitor.report().startswith("No scale-invariant weights")


def test_half_precision_and_missing_gradients(batches):
    model = make().to(torch.bfloat16)
    optimizer = optimizer_of(model)
    monitor = Monitor(model, optimizer, groups=HIDDEN)
    model.hidden1.weight.requires_grad_(False)
    x, y = batches[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = nn.functional.cross_entropy(model(x.bfloat16()), y)
        loss.backward()
    monitor.loss = loss
    norm = model.hidden0.weight.detach().double().norm()
    optimizer.step()
    found = monitor.results.isel(run=0, step=0)
    assert float(found.group_weight_norm[0]) == pytest.approx(float(norm), rel=1e-5)
    assert float(found.group_grad_norm[1]) == 0
    assert monitor.failure is None


def test_channels_last_dot_is_the_same():
    one, other = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    last = [t.to(memory_format=torch.channels_last) for t in (one, other)]
    expected = float((one * other).sum())
    for pair in ((one, other), last, (one, last[1])):
        assert float(gauges._dot(*pair)) == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------- what is asked seldom


class Dropping(PlainMLP):
    """With chance in it, and running statistics."""

    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.2))


def with_statistics():
    torch.manual_seed(0)
    model = Dropping((1, 8, 8), 8, affine=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.track_running_stats = True
    return nn.Sequential(nn.BatchNorm2d(1), model)


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_the_sharpness_of_a_batch_is_measured_beside_the_training(batches, kind, options):
    ends = []
    for watched in (False, True):
        model = with_statistics()
        torch.manual_seed(5)
        optimizer = optimizer_of(model, kind, **options)
        groups = [["1.hidden1.weight"]]
        monitor = Monitor(model, optimizer, groups=groups, edge_every=3 if watched else None)
        for x, y in batches[:10]:
            monitor.batch_loss = lambda x=x, y=y, model=model: nn.functional.cross_entropy(model(x), y)
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            monitor.loss = loss
            optimizer.step()
            optimizer.zero_grad()
        ends.append([value.clone() for value in model.state_dict().values()])
    assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))
    found = monitor.results
    assert found.edge_step.values.tolist() == [0, 3, 6, 9]
    assert np.isfinite(found.batch_sharpness.values).all()
    twin = Monitor(model, optimizer, groups=groups)
    twin.load_state_dict(monitor.state_dict())
    assert twin.results.batch_sharpness.equals(found.batch_sharpness)


def test_the_sharpness_of_a_batch_is_the_librarys():
    steps, run = 30, Run(lr=0.2, weight_decay=1e-2)
    ours, network, optimizer, losses = trained_beside(steps, run, Record(evaluate_every=None, batch_sharpness=True))
    monitor = Monitor(network, optimizer, groups=HIDDEN, edge_every=5)
    for loss in losses:
        optimizer.zero_grad()
        monitor.batch_loss = loss
        loss().backward()
        optimizer.step()
    found = monitor.results.batch_sharpness[0]
    np.testing.assert_allclose(found, ours.batch_sharpness.sel(step=found.edge_step), rtol=1e-6)


def test_a_batch_that_cannot_be_differentiated_twice_ends_the_sharpness_only(batches):
    model = make()
    optimizer = optimizer_of(model)
    monitor = Monitor(model, optimizer, groups=HIDDEN, edge_every=1)
    monitor.batch_loss = lambda: 1 / 0
    with pytest.warns(RuntimeWarning, match="no sharpness of the batch from step 0 on: division by zero"):
        fit(model, optimizer, batches, monitor, steps=3)
    assert monitor.failure is None
    assert monitor.steps == 3
    with pytest.raises(ConfigError, match="`edge_every` must be a whole number of at least 1, or None; got 0"):
        Monitor(model, optimizer, groups=HIDDEN, edge_every=0)


def test_the_smallest_neurons(batches):
    model = make()
    with torch.no_grad():
        model.hidden1.weight[2] *= 0.1
    optimizer = optimizer_of(model)
    monitor = Monitor(model, optimizer, groups=[*HIDDEN[:2], ["last.weight"]])
    weights = model.hidden1.weight.detach().clone().double()
    fit(model, optimizer, batches, monitor, steps=5)
    table = monitor.neurons(worst=2)
    assert table.group.tolist() == [name for name in ("hidden0.weight", "hidden1.weight", "last.weight") for _ in "12"]
    worst = table[table.group == "hidden1.weight"].iloc[0]
    norms = weights.norm(dim=1)
    assert worst.neuron == 2
    assert worst.norm_share == pytest.approx(float(norms[2]) / np.median(norms), rel=1e-5)
    assert worst.elr_ratio == pytest.approx(worst.norm_share**-2)
    invariant = table.groupby("group").invariant.all()
    assert invariant["hidden1.weight"]
    assert not invariant["last.weight"]  # no normalization follows


# ---------------------------------------------------------------- compiled and scaled trainings


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's own, in its compiler
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_model_is_watched_all_the_same(batches, backend):
    compiler = any(map(shutil.which, ("g++", "clang++"))) and Path(sysconfig.get_path("include"), "Python.h").exists()
    if backend == "inductor" and not compiler:
        pytest.skip("this backend needs a C++ compiler and Python's headers")
    found = []
    for watched in (False, True):
        torch._dynamo.reset()
        model = make()
        optimizer = optimizer_of(model, momentum=0.9)
        compiled = torch.compile(model, backend=backend)
        names = [[f"_orig_mod.{name}"] for (name,) in HIDDEN]
        monitor = Monitor(compiled, optimizer, groups=names) if watched else None
        ends = fit(compiled, optimizer, batches, monitor, steps=5)
        found.append(ends)
    assert torch.equal(*found)
    assert monitor.failure is None
    assert monitor.results.sizes["step"] == 5


def scaled_fit(batches, scaled, fused):
    """Eight steps, of which the sixth is skipped for a gradient that is not finite."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3, enabled=scaled)
    monitor = Monitor(model, optimizer, groups=HIDDEN)
    for i, (x, y) in enumerate(batches[:8]):
        if i == 5 and not scaled:
            continue
        loss = nn.functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        if i == 5:
            model.hidden0.weight.grad[0, 0] = float("inf")
        monitor.loss = loss
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert monitor.failure is None
    return monitor.results.isel(run=0)


@pytest.mark.parametrize("fused", [False, True])
def test_scaled_gradients_are_seen_unscaled(batches, fused):
    plain, scaled = (scaled_fit(batches, one, fused) for one in (False, True))
    if fused:  # such a step decides on the device whether to skip: a row without a gradient
        assert np.isnan(scaled.grad_norm).values.tolist() == [i == 5 for i in range(8)]
        scaled = scaled.isel(step=[0, 1, 2, 3, 4, 6, 7])
    for name in ("weight_norm", "grad_norm", "angular_update"):
        np.testing.assert_allclose(scaled[name], plain[name], rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(scaled.radial_cosine, plain.radial_cosine, atol=1e-6)
    losses = np.delete(scaled.train_loss, 5), np.delete(plain.train_loss, 5)
    np.testing.assert_allclose(*losses, rtol=1e-6)  # without `fused` the skipped one is in that mean


# ---------------------------------------------------------------- the record


def test_history_is_bounded_and_its_means_are_right():
    rows = np.abs(np.random.default_rng(0).normal(size=(10_000, 3)))
    history = History(3, capacity=128, squared=[1], largest=[2])
    for part in np.split(rows, 100):
        history.add(part)
    steps, covers, values = history.rows()
    assert len(history) == covers.sum() == 10_000
    assert len(steps) <= 128 * (1 + np.log2(10_000 / 128))
    assert (np.diff(steps) == covers[:-1]).all()
    blocks = [rows[step : step + cover] for step, cover in zip(steps, covers, strict=True)]
    np.testing.assert_allclose(values[:, 0], [block[:, 0].mean() for block in blocks], atol=1e-6)
    np.testing.assert_allclose(values[:, 1], [np.sqrt((block[:, 1] ** 2).mean()) for block in blocks], rtol=1e-5)
    np.testing.assert_allclose(values[:, 2], [block[:, 2].max() for block in blocks], rtol=1e-6)
    assert (covers[steps >= history.whole_from] == 1).all()


def test_what_it_keeps_is_small():
    model = PlainResNet((3, 32, 32), 64, affine=True)
    groups = [[name] for name, p in model.named_parameters() if p.dim() == 4]
    monitor = Monitor(model, torch.optim.SGD(model.parameters(), 0.1, weight_decay=1e-2), groups=groups)
    kept = monitor._gauges
    assert kept.ring.nbytes + kept.losses.nbytes < 2**18  # on the device
    assert kept._old is None  # no copy of the weights under plain SGD
    assert monitor.history.capacity * monitor.history.levels[0].shape[1] * 4 < 2**22  # on the host, a level


def test_history_skips_what_is_missing():
    history = History(2, capacity=2, squared=[1])
    history.add(np.array([[1.0, np.nan], [np.nan, 3.0], [5.0, 5.0], [7.0, 7.0]]))
    assert history.rows()[2][0].tolist() == [1.0, 3.0]
