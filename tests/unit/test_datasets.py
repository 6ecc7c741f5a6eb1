import numpy as np
import pytest
import torch

from periodic_lib import datasets
from periodic_lib.config import ConfigError, Setup
from periodic_lib.datasets import BatchOrder


def test_digits_have_the_stated_split_and_scale():
    data = datasets.load(Setup(dtype="float64"))
    assert data.x_train.shape == (1437, 64)
    assert data.x_test.shape == (360, 64)
    assert data.classes == 10
    assert float(data.x_train.mean()) == pytest.approx(0, abs=1e-12)
    assert float(data.x_train.std(correction=0)) == pytest.approx(1, rel=1e-12)
    assert data.x_train.dtype == torch.float64
    assert data.y_train.dtype == torch.int64


def test_the_split_is_fixed_and_stratified_and_loses_no_picture():
    from sklearn.datasets import load_digits

    x_train, y_train, x_test, y_test = datasets._digits()
    assert np.bincount(y_test).min() >= 35
    together = np.concatenate([x_train, x_test])
    pictures, labels = load_digits(return_X_y=True)
    assert sorted(map(bytes, together)) == sorted(map(bytes, pictures))
    assert (np.bincount(y_train) + np.bincount(y_test) == np.bincount(labels)).all()
    assert y_test[:12].tolist() == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3, 2, 6]  # seed 0, for good


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ConfigError, match=r"`batch_size` must be at most 1437.*got 2000"):
        datasets.load(Setup(batch_size=2000))


def test_an_epoch_shows_every_example_once_and_keeps_the_short_batch():
    order = BatchOrder([3], examples=10, batch_size=4)
    sizes = [order.next() for _ in range(3)]
    assert [batch.shape[1] for batch in sizes] == [4, 4, 2]
    assert sorted(torch.cat(sizes, dim=1)[0].tolist()) == list(range(10))


def test_drop_last_leaves_out_the_short_batch_but_no_example_for_good():
    order = BatchOrder([0], examples=10, batch_size=4, drop_last=True)
    batches = [order.next() for _ in range(20)]
    assert {batch.shape[1] for batch in batches} == {4}
    assert set(torch.cat(batches, dim=1)[0].tolist()) == set(range(10))


def test_the_order_of_a_run_does_not_depend_on_its_neighbours():
    alone, stacked = BatchOrder([7], 50, 8), BatchOrder([1, 7, 1], 50, 8)
    for _ in range(15):
        mine, all_three = alone.next(), stacked.next()
        assert torch.equal(mine[0], all_three[1])
        assert torch.equal(all_three[0], all_three[2])
        assert not torch.equal(all_three[0], all_three[1])


def test_epochs_differ():
    order = BatchOrder([0], examples=30, batch_size=30 - 1)
    first, _, second = order.next(), order.next(), order.next()
    assert not torch.equal(first, second)


def test_full_batch_is_every_example():
    order = BatchOrder([0, 1], examples=6, batch_size=None)
    assert order.next().tolist() == [list(range(6))] * 2
