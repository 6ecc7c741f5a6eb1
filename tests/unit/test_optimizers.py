import torch

from periodic_lib.config import Run
from periodic_lib.optimizers import SGD

RUNS = [Run(0.1, 1e-2), Run(0.5, 1e-1, momentum=0.9), Run(0.01, 0.0, momentum=0.5), Run(1.0, 1e-3)]


def gradient(w):
    """Of a smooth function with a different curvature in each direction."""
    return torch.sin(w) * torch.linspace(0.1, 2, w.shape[-1], dtype=w.dtype)


def test_every_run_of_a_stack_is_torch_optim_sgd():
    start = torch.randn(len(RUNS), 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stacked, optimizer = start.clone(), SGD(RUNS, torch.float64, "cpu")
    for _ in range(20):
        stacked = optimizer.step(stacked, gradient(stacked))
    for run, row in zip(RUNS, range(len(RUNS)), strict=True):
        w = start[row].clone().requires_grad_()
        theirs = torch.optim.SGD([w], lr=run.lr, weight_decay=run.weight_decay, momentum=run.momentum)
        for _ in range(20):
            w.grad = gradient(w.detach())
            theirs.step()
        assert torch.allclose(stacked[row], w, rtol=1e-6)


def test_small_decay_is_not_lost_in_float32():
    w = torch.ones(1, 1000) * 3.0
    optimizer = SGD([Run(0.01, 1e-3)], torch.float32, "cpu")
    shrunk = w
    for _ in range(1000):
        shrunk = optimizer.step(shrunk, torch.zeros_like(w))
    expected = 3.0 * (1 - 1e-5) ** 1000
    assert abs(float(shrunk.mean()) - expected) / (3.0 - expected) < 0.02  # float32 steps of 2.4e-7 in 3e-5
