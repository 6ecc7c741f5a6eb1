"""Clipping, fixed and adaptive, steps left out, reshuffled labels: against PyTorch and plain arithmetic."""

import numpy as np
import pytest
import torch

from periodic_lib import Record, Run, Setup, train
from periodic_lib.engine.guards import ENOUGH, HISTORY, Guards
from periodic_lib.engine.stack import Stack
from periodic_lib.project import Unfinished

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


@pytest.mark.parametrize("fields", [{"skip_above": 2.0}, {"clip_norm": 0.1}, {"clip_above": 1.0}])
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


def zclip(norms, above, limit=float("inf")):
    """Return the lengths that steps get, by the published rule written down with plain numbers."""
    first, lengths, mean, variance = [], [], None, None
    for norm in norms:
        entering = norm
        if mean is not None:
            z = (norm - mean) / (np.sqrt(variance) + 1e-6)
            if z > above:
                entering = mean + above * np.sqrt(variance) / (z / above)
            mean = 0.97 * mean + 0.03 * entering
            variance = 0.97 * variance + 0.03 * (entering - mean) ** 2
        else:
            first.append(norm)
            if len(first) == 25:
                mean, variance = np.mean(first), np.var(first)
        lengths.append(min(entering, limit))
    return np.array(lengths)


@pytest.mark.parametrize("fields", [{}, {"clip_norm": 10.5}])
def test_the_adaptive_limit_is_zclips(fields):
    norms = np.random.default_rng(0).normal(10, 1, 400)
    norms[[10, 24, 25, 26, 200]], norms[300:340] = (30.0, 40.0, 30.0, 35.0, 500.0), np.geomspace(20, 2000, 40)
    guard, expected = guards(clip_above=2.5, **fields), zclip(norms, 2.5, fields.get("clip_norm", np.inf))
    direction = torch.full((1, 4), 0.5, dtype=torch.float64)
    lengths = [float(guard.clipped(norm * direction).norm()) for norm in norms]
    np.testing.assert_allclose(lengths, expected, rtol=1e-6)  # of the 1e-6 that PyTorch's clipping adds to the norm
    assert (expected < norms)[[25, 200, *range(300, 340)]].all()
    assert (norms == zclip(norms, 2.5))[:25].all()


def test_the_adaptive_limit_is_each_runs_own_and_touches_no_other():
    setup = Setup(width=8, depth=1, steps=200, dtype="float64")
    runs = [Run(**BASE), Run(**BASE, clip_above=0.5), Run(**BASE, clip_norm=0.05)]
    record = Record(evaluate_every=None)
    data = train(setup, runs, record, progress=False)
    for row, run in enumerate(runs):
        alone = train(setup, [run], record, progress=False)
        np.testing.assert_allclose(data.train_loss[row], alone.train_loss[0], rtol=1e-12)
    moved = (np.tan(data.angular_update) * data.weight_norm * (1 - 0.3e-2) / 0.3).values  # the step's gradient
    lengths = zclip(data.grad_norm[1].values, 0.5)
    assert (lengths < data.grad_norm[1]).sum() > 5
    np.testing.assert_allclose(moved[1], lengths, rtol=0.01)


def test_without_an_adaptive_limit_nothing_is_computed_otherwise():
    gradient = torch.randn(2, 50, generator=torch.Generator().manual_seed(1))
    runs = [Run(**BASE, clip_norm=2.0), Run(**BASE)]
    plain = Guards(runs, torch.float32, "cpu").clipped(gradient)
    beside = Guards([*runs, Run(**BASE, clip_above=2.0)], torch.float32, "cpu").clipped(gradient[[0, 1, 1]])
    assert torch.equal(plain, beside[:2])
    assert torch.equal(plain[1], gradient[1])
