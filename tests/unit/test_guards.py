"""Clipping, steps that are left out, reshuffled labels: against PyTorch and plain arithmetic."""

import numpy as np
import pytest
import torch

from periodic_lib import Record, Run, Setup, train
from periodic_lib.guards import ENOUGH, HISTORY, Guards
from periodic_lib.project import Unfinished
from periodic_lib.stack import Stack

BASE = {"lr": 0.3, "weight_decay": 1e-2}


def guards(**fields):
    return Guards([Run(**BASE, **fields)], torch.float64, "cpu")


def test_clipping_is_pytorchs():
    for size in (0.1, 3.0):
        gradient = size * torch.randn(1, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        leaf = torch.zeros(50, dtype=torch.float64, requires_grad=True)
        leaf.grad = gradient[0].clone()
        torch.nn.utils.clip_grad_norm_([leaf], 5.0)
        assert torch.allclose(guards(clip_norm=5.0).clipped(gradient)[0], leaf.grad, rtol=1e-14)
    assert guards().clipped(gradient) is gradient


def test_outliers_are_left_out_once_enough_was_seen():
    guard, old, new = guards(skip_above=6.0), torch.zeros(1, 4), torch.ones(1, 4)
    norms = np.random.default_rng(0).normal(10, 1, 300)
    norms[[20, 150, 250]] = 100.0
    moved = [float(guard.kept(old, new, torch.full((1, 1), norm, dtype=torch.float64))[0, 0]) for norm in norms]
    for step, norm in enumerate(norms):
        before = norms[max(0, step - HISTORY) : step]
        expected = step >= ENOUGH and norm > before.mean() + 6 * before.std()
        assert moved[step] == (0.0 if expected else 1.0), step
    assert moved[20] == 1
    assert moved[150] == 0


def test_runs_are_guarded_each_by_itself_and_none_costs_nothing():
    setup = Setup(width=8, depth=1, steps=40, dtype="float64")
    runs = [Run(**BASE), Run(**BASE, clip_norm=0.05)]
    data = train(setup, runs, Record(evaluate_every=None), progress=False)
    plain = train(setup, [Run(**BASE)], Record(evaluate_every=None), progress=False)
    np.testing.assert_allclose(data.train_loss[0], plain.train_loss[0], rtol=1e-12)
    moved = data.angular_update[1] * data.weight_norm[1] / 0.3  # the gradient that the step had, to first order
    assert (moved <= 0.05 * 1.01).all()
    assert (data.grad_norm[1] > 0.05).any()  # recorded as it was


def test_labels_change_places_task_by_task():
    setup = Setup(width=8, depth=1, steps=30, reshuffle_every=10, train_size=100, batch_size=50)
    stack = Stack(setup, [Run(**BASE)])
    order, seen = stack.batch_order(), []
    for _ in range(30):
        stack.step(order.next())
        seen.append(stack.labels.clone())
    first, second, third = seen[9], seen[10], seen[20]
    assert torch.equal(first, stack.data.y_train)
    assert torch.equal(seen[19], second)
    for one, other in ((first, second), (second, third)):
        assert not torch.equal(one, other)
        assert torch.equal(one.sort().values, other.sort().values)


@pytest.mark.parametrize("fields", [{"skip_above": 2.0}, {"clip_norm": 0.1}])
def test_stopped_and_taken_up_after_every_step(tmp_path, fields):
    setup = Setup(width=8, depth=1, steps=100, dtype="float64", reshuffle_every=30, train_size=200, batch_size=32)
    runs, record = [Run(**BASE, **fields)], Record(evaluate_every=30)
    whole = train(setup, runs, record, progress=False)
    while True:
        try:
            data = train(setup, runs, record, progress=False, resume=tmp_path / "state.npz", budget=1e-9)
            break
        except Unfinished:
            pass
    for name in ("train_loss", "weight_norm", "train_error"):
        np.testing.assert_array_equal(data[name], whole[name])
