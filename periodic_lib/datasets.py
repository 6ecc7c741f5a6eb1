"""Data sets as tensors on the device, and the order in which each run sees its examples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from periodic_lib.config import ConfigError, Setup

DIGITS_TEST_SIZE = 360
DIGITS_SPLIT_SEED = 0


@dataclass(frozen=True)
class Data:
    """One data set on one device: standardized inputs and integer labels, shared by all runs."""

    x_train: torch.Tensor  # (examples, features)
    y_train: torch.Tensor  # (examples,)
    x_test: torch.Tensor
    y_test: torch.Tensor
    classes: int

    @property
    def features(self) -> int:
        """Numbers per example."""
        return self.x_train.shape[1]


def load(setup: Setup, device: str | torch.device = "cpu") -> Data:
    """Return the data set that `setup` names, standardized, in its dtype, on `device`.

    Raises
    ------
    ConfigError : if `batch_size` exceeds the training set.
    """
    x_train, y_train, x_test, y_test = {"digits": _digits}[setup.dataset]()
    check_batch_size(setup, len(x_train))
    mean, std = x_train.mean(), x_train.std()  # one number each: one channel
    dtype = getattr(torch, setup.dtype)

    def inputs(pictures: np.ndarray) -> torch.Tensor:
        return torch.as_tensor((pictures - mean) / std, dtype=dtype, device=device)

    def labels(values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.int64, device=device)

    return Data(inputs(x_train), labels(y_train), inputs(x_test), labels(y_test), classes=int(y_train.max()) + 1)


def check_batch_size(setup: Setup, examples: int) -> None:
    """Raise `ConfigError` if a batch of `setup` cannot be drawn from `examples` training examples."""
    if setup.batch_size is not None and setup.batch_size > examples:
        raise ConfigError(
            f"`batch_size` must be at most {examples}, the training examples of {setup.dataset!r}, or None (full "
            f"batch); got {setup.batch_size}."
        )


@cache
def _digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """scikit-learn's digits (its copy of the UCI test set), 1,437 + 360, stratified, float64, 64 pixels each."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pictures, digits = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        pictures, digits, test_size=DIGITS_TEST_SIZE, random_state=DIGITS_SPLIT_SEED, stratify=digits
    )
    return x_train, y_train, x_test, y_test


class BatchOrder:
    """The examples of each run's next mini-batch.

    Every epoch is a permutation of the training set drawn from (data_seed, epoch), so that the order of a run
    depends on its own seed only, not on its neighbours, the device, or where training was resumed. The last,
    shorter batch of an epoch is kept unless `drop_last`.

    >>> order = BatchOrder(data_seeds=[0, 7], examples=5, batch_size=2)
    >>> [tuple(order.next().shape) for _ in range(4)]
    [(2, 2), (2, 2), (2, 1), (2, 2)]
    """

    def __init__(
        self, data_seeds: list[int], examples: int, batch_size: int | None, drop_last: bool = False, device="cpu"
    ):
        self.data_seeds, self.examples, self.device = data_seeds, examples, device
        self.batch_size = examples if batch_size is None else batch_size
        self.steps_per_epoch = examples // self.batch_size if drop_last else -(-examples // self.batch_size)
        self.step = 0

    def next(self) -> torch.Tensor:
        """Return the indices of the next mini-batch, shape (runs, batch)."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if position == 0:
            self._order = self._permutations(epoch)
        self.step += 1
        return self._order[:, position * self.batch_size : (position + 1) * self.batch_size]

    def _permutations(self, epoch: int) -> torch.Tensor:
        if self.batch_size == self.examples:  # full batch: the order does not matter
            return torch.arange(self.examples, device=self.device).expand(len(self.data_seeds), -1)
        rows = {seed: np.random.default_rng([seed, epoch]).permutation(self.examples) for seed in set(self.data_seeds)}
        return torch.as_tensor(np.stack([rows[seed] for seed in self.data_seeds]), device=self.device)
