from itertools import pairwise

import numpy as np
import pytest
import torch

from periodic_lib.config import OPTIMIZERS, SCHEDULES, Run, Setup
from periodic_lib.engine import optimizers

N, N_INVARIANT, STEPS = 30, 20, 50
ADAM = [
    Run(0.1, 1e-2),
    Run(0.5, 1e-1, beta1=0.5, beta2=0.9),
    Run(0.01, 0.0, adam_eps=1e-3),
    Run(1e-3, 1.0, beta1=0.0, beta2=0.5),
]
MIXED = [Run(0.1, 1e-2), Run(0.5, 1e-1, momentum=0.9), Run(0.01, 0.0, momentum=0.5), Run(0.02, 1e-3, momentum=0.99)]
CASES = {
    "plain": ("sgd", [Run(0.1, 1e-2), Run(0.5, 1e-1), Run(0.01, 0.0), Run(1.0, 1e-3)]),
    "momentum": ("sgd", MIXED),
    "nesterov": ("nesterov", MIXED),
    "adam": ("adam", ADAM),
    "adamw": ("adamw", ADAM),
}
each_case = pytest.mark.parametrize(("name", "runs"), CASES.values(), ids=CASES)


def with_others_lr(runs):
    """The same runs with learning rates of the others: larger, smaller, none at all, as before."""
    rates = [0.2, 0.03, 0.0, None]
    return [Run(**{**run.to_dict(), "others_lr": rate}) for run, rate in zip(runs, rates, strict=True)]


def make(name, runs, dtype=torch.float64, n_invariant=N_INVARIANT, n=N, device="cpu"):
    return optimizers.make(Setup(optimizer=name), runs, n_invariant, n, dtype, device)


def start(runs=4, n=N):
    return torch.randn(runs, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def gradient(w):
    """Of a smooth function with a different curvature in each direction."""
    return torch.sin(w) * torch.linspace(0.1, 2, w.shape[-1], dtype=w.dtype)


def trained(optimizer, w, factors):
    for factor in factors:
        w = optimizer.step(w, gradient(w), factor.unsqueeze(1))
    return w


def factors(seed=None):
    """Factors (steps, runs): all one, or random."""
    if seed is None:
        return torch.ones(STEPS, 4, dtype=torch.float64)
    return 2 * torch.rand(STEPS, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def theirs(name, run, groups):
    if name in ("adam", "adamw"):
        kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        betas = (run.beta1, run.beta2)
        return kind(groups, lr=run.lr, betas=betas, eps=run.adam_eps, weight_decay=run.weight_decay)
    nesterov = name == "nesterov" and run.momentum > 0  # torch refuses Nesterov without momentum
    return torch.optim.SGD(groups, lr=run.lr, weight_decay=run.weight_decay, momentum=run.momentum, nesterov=nesterov)


def trained_by_torch(name, run, w, factors):
    parts = [part.clone().requires_grad_() for part in (w[:N_INVARIANT], w[N_INVARIANT:])]
    rates = [run.lr, run.lr if run.others_lr is None else run.others_lr]
    optimizer = theirs(name, run, [{"params": [part]} for part in parts])
    for factor in factors:
        whole = gradient(torch.cat(parts).detach())
        parts[0].grad, parts[1].grad = whole[:N_INVARIANT], whole[N_INVARIANT:]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * float(factor)
        optimizer.step()
    return torch.cat(parts).detach()


# ---------------------------------------------------------------- steps


@each_case
@pytest.mark.parametrize("others", [False, True], ids=["one_lr", "others_lr"])
@pytest.mark.parametrize("seed", [None, 1], ids=["constant", "scheduled"])
def test_every_run_of_a_stack_is_torch_optim(name, runs, others, seed):
    runs = with_others_lr(runs) if others else runs
    optimizer = make(name, runs)
    assert (optimizer.others_lr is not None) == others
    stacked = trained(optimizer, start(), factors(seed))
    for row, run in enumerate(runs):
        expected = trained_by_torch(name, run, start()[row], factors(seed)[:, row])
        torch.testing.assert_close(stacked[row], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("n_invariant", [0, N])
def test_a_stack_may_have_one_kind_of_column_only(n_invariant):
    runs = with_others_lr(MIXED)
    rates = [run.lr if n_invariant or run.others_lr is None else run.others_lr for run in runs]
    new = make("adamw", runs, n_invariant=n_invariant).step(start(), torch.zeros(4, N, dtype=torch.float64), 1.0)
    decay = torch.tensor([1 - rate * run.weight_decay for rate, run in zip(rates, runs, strict=True)])
    torch.testing.assert_close(new, start() * decay.unsqueeze(1))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_small_decay_is_not_lost_in_float32(name):
    shrunk = torch.ones(1, 1000) * 3.0
    optimizer = make(name, [Run(0.01, 1e-3)], torch.float32, 1000, 1000)
    for _ in range(1000):
        shrunk = optimizer.step(shrunk, torch.zeros_like(shrunk), torch.ones(1, 1))
    expected = 3.0 * (1 - 1e-5) ** 1000
    assert abs(float(shrunk.mean()) - expected) / (3.0 - expected) < 0.02  # float32 steps of 2.4e-7 in 3e-5


def test_first_step_of_adam_in_float32_is_the_learning_rate():
    new = make("adam", [Run(0.1, 0.0)], torch.float32).step(torch.zeros(1, N), torch.full((1, N), 0.5), 1.0)
    torch.testing.assert_close(new, torch.full((1, N), -0.1), rtol=5e-7, atol=0)


# ---------------------------------------------------------------- state


@each_case
def test_a_resumed_optimizer_goes_on_bit_for_bit(name, runs):
    whole = trained(make(name, runs), start(), factors(1))
    first = make(name, runs)
    w = trained(first, start(), factors(1)[:20])
    second = make(name, runs)
    second.load_state({key: value.clone() for key, value in first.state().items()})
    assert torch.equal(trained(second, w, factors(1)[20:]), whole)


@each_case
def test_state_stays_at_its_address(name, runs):
    optimizer = make(name, runs)
    before = {key: value.data_ptr() for key, value in optimizer.state().items()}
    trained(optimizer, start(), factors()[:3])
    optimizer.load_state({key: value.clone() for key, value in optimizer.state().items()})
    assert {key: value.data_ptr() for key, value in optimizer.state().items()} == before


def test_a_stack_without_momentum_keeps_no_state():
    for name in ("sgd", "nesterov"):
        assert make(name, CASES["plain"][1]).state() == {}


def test_a_state_of_another_optimizer_or_stack_is_refused():
    for state in (make("adam", MIXED).state(), make("sgd", MIXED[1:2]).state()):
        with pytest.raises(ValueError, match=r"must hold the tensors \{'velocity': \(4, 30\)\}; got .*another setup"):
            make("sgd", MIXED).load_state(state)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_asks_the_device_for_nothing(name):
    """Tensors on the meta device have no values: a step that looked at one, or waited for it, would raise."""
    w = torch.empty(4, N, device="meta")
    optimizer = make(name, with_others_lr(MIXED), torch.float32, device="meta")
    assert optimizer.step(w, w, torch.empty(4, 1, device="meta")).shape == w.shape
    optimizers.project(w, [8, 12], N_INVARIANT, 1.0, "layer")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@each_case
def test_a_captured_step_is_the_same_step(name, runs):
    w, factor = start().cuda(), torch.ones(4, 1, dtype=torch.float64, device="cuda")
    slope = torch.linspace(0.1, 2, N, dtype=w.dtype, device="cuda")
    optimizer = make(name, with_others_lr(runs), device="cuda")
    clean = {key: value.clone() for key, value in optimizer.state().items()}

    def step():
        w.copy_(optimizer.step(w, torch.sin(w) * slope, factor))
        optimizers.project(w, [8, 12], N_INVARIANT, 1.0, "layer")

    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):  # warm-up, as torch.cuda.graph wants it
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    results = []
    for go in (step, graph.replay):
        w.copy_(start())
        optimizer.load_state(clean)
        for value in factors(1):
            factor.copy_(value.unsqueeze(1))
            go()
        results.append(w.clone())
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- schedules


def schedule(name, steps=400, start=0, stop=None, **options):
    runs = [Run(0.1, 0.0, schedule=name, **options)]
    return optimizers.schedule_factors(runs, steps, start, steps if stop is None else stop)[:, 0]


@pytest.mark.parametrize(
    ("name", "at_quarters", "last"),
    [
        ("constant", [1, 1, 1, 1], 1),
        ("step", [1, 1 / 4, 1 / 16, 1 / 64], 1 / 64),
        ("linear", [1, 1, 3 / 4, 1 / 2], 1 / 4 + 1 / 400),
        ("cosine", [1, (1 + 0.5**0.5) / 2, 1 / 2, (1 - 0.5**0.5) / 2], (1 - np.cos(np.pi / 400)) / 2),
        ("constant_elr", [1, 1, 1, 1], 1),
    ],
)
def test_schedule_at_the_quarters_and_the_end(name, at_quarters, last):
    values = schedule(name, decay_factor=4)
    np.testing.assert_allclose(values[::100], at_quarters, rtol=1e-12)
    np.testing.assert_allclose(values[-1], last, rtol=1e-10)
    assert values.dtype == np.float64


def test_step_schedule_falls_at_the_start_of_a_quarter():
    np.testing.assert_allclose(schedule("step")[[99, 100, 199, 200, 299, 300]], [1, 0.1, 0.1, 0.01, 0.01, 0.001])


def test_linear_schedule_is_straight_after_the_first_quarter():
    values = schedule("linear", decay_factor=4, stop=401)
    np.testing.assert_allclose(values[:101], 1)
    np.testing.assert_allclose(np.diff(values[100:]), -3 / 4 / 300)
    np.testing.assert_allclose(values[400], 1 / 4)


@pytest.mark.parametrize("warmup", [0, 1, 40])
def test_cosine_schedule_is_torch_lr_scheduler(warmup):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=400)
    values = []
    for _ in range(400):
        values.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    values = np.array(values)
    values[:warmup] *= np.arange(1, warmup + 1) / max(warmup, 1)
    np.testing.assert_allclose(schedule("cosine", warmup=warmup), values, rtol=1e-9, atol=1e-14)


def test_schedule_does_not_depend_on_the_chunks():
    runs = [Run(0.1, 0.0, schedule=name, warmup=warmup) for name in SCHEDULES for warmup in (0, 30)]
    whole = optimizers.schedule_factors(runs, 101, 0, 101)
    chunks = [optimizers.schedule_factors(runs, 101, *chunk) for chunk in pairwise([0, 1, 20, 20, 77, 101])]
    assert whole.shape == (101, len(runs))
    assert np.array_equal(np.concatenate(chunks), whole)


# ---------------------------------------------------------------- projection


@pytest.mark.parametrize(("scope", "sizes"), [("total", [N_INVARIANT]), ("layer", [5, 12, 3])])
def test_projection_sets_the_norm_and_nothing_else(scope, sizes):
    w = start().requires_grad_()  # as the training loop's
    assert optimizers.project(w, [5, 12, 3], N_INVARIANT, 2.5, scope) is None
    w = w.detach()
    assert torch.equal(w[:, N_INVARIANT:], start()[:, N_INVARIANT:])
    for new, old in zip(w[:, :N_INVARIANT].split(sizes, 1), start()[:, :N_INVARIANT].split(sizes, 1), strict=True):
        torch.testing.assert_close(new.norm(dim=1), torch.full((4,), 2.5, dtype=w.dtype), rtol=1e-12, atol=0)
        cosine = torch.cosine_similarity(new, old, dim=1)
        torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=1e-12, atol=0)
