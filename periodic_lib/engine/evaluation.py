"""What a stack of runs can be asked without its trajectory being touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from periodic_lib.engine import batches, metrics, networks
from periodic_lib.engine.normalization import Statistics

CURVATURE_EXAMPLES = 2048  # of the training set: all of digits
EVALUATION_SEED = 0  # of the order in which the training set is evaluated


class Evaluation:
    """The half of `periodic_lib.engine.stack.Stack` that looks and changes nothing: losses and
    errors of the whole training and test set, sharpness, directions.
    """

    @torch.no_grad()
    def evaluate(self) -> torch.Tensor:
        """Return `metrics.measures("evaluation")`, (measures, runs), without touching the
        trajectory.
        """
        values, statistics = self.values(self.weights), Statistics()
        on_train = self._mean_over(self.labels, self._collect(values, statistics))
        on_test = self._mean_over(self.data.y_test, self._apply(values, statistics))
        return torch.cat([on_train, on_test])

    @torch.no_grad()
    def predict(self) -> torch.Tensor:
        """Return the test set's logits, (runs, examples, classes), as `evaluate` judges them."""
        values, statistics = self.values(self.weights), Statistics()
        for _ in self._collect(values, statistics):
            pass
        logits = [logits for _, logits in self._apply(values, statistics)]
        return torch.cat(logits, dim=2).transpose(1, 2)

    def _mean_over(self, y: torch.Tensor, predictions: Iterable) -> torch.Tensor:
        """Return mean loss and error, (2, runs), of (index, logits) against the labels `y`."""
        sums, seen = torch.zeros(2, len(self.runs), dtype=self.weights.dtype, device=self.device), 0
        for index, logits in predictions:
            labels = y[index].expand(len(self.runs), -1)  # (runs, batch)
            wrong = (logits.argmax(dim=1) != labels).to(sums.dtype).mean(dim=1)
            sums += len(index) * torch.stack([self.loss_of(logits, labels), wrong])
            seen += len(index)
        return sums / seen

    def _collect(self, values, statistics: Statistics) -> Iterator[tuple]:
        """Yield (index, logits) of the training set's mini-batches, in training mode, and collect
        their statistics.
        """
        examples, size = len(self.data.x_train), self.setup.batch_size or len(self.data.x_train)
        order = batches.BatchOrder(
            [EVALUATION_SEED], examples, size, self.setup.drop_last, self.device
        )
        for _ in range(order.steps_per_epoch):
            index = order.next()[0]
            pictures = self.data.x_train[index]
            yield index, self._logits(pictures, values, statistics, statistics.collect)
            statistics.batches += 1

    def _apply(self, values, statistics: Statistics) -> Iterator[tuple]:
        """Yield (index, logits) of the test set, normalized by the collected statistics."""
        size = self.setup.batch_size or len(self.data.x_train)
        for index in torch.arange(len(self.data.x_test), device=self.device).split(size):
            yield index, self._logits(self.data.x_test[index], values, statistics, statistics.apply)

    def _logits(self, pictures, values, statistics: Statistics, how: Callable) -> torch.Tensor:
        """Return the logits (runs, classes, batch) of all runs on the same (batch, ...)."""
        statistics.begin()
        with self._rounding(), self._autocast():
            return self.network.logits(
                values, pictures.expand(len(self.runs), *pictures.shape), how
            )

    def direction(self) -> torch.Tensor:
        """Return the scale-invariant weights over their norm, (runs, n_invariant)."""
        return self.invariant / metrics.norm(self.invariant).unsqueeze(1)

    def sharpness(self) -> torch.Tensor:
        """Return the spherical sharpness of every run, (runs,), over the first 2,048 training
        examples.
        """
        x, labels = (t[None, :CURVATURE_EXAMPLES] for t in (self.data.x_train, self.labels))
        tops = []
        for run in range(len(self.runs)):
            one = slice(run, run + 1)
            w = self.weights.detach()[one]
            rest, fixed = w[:, self.n_invariant :], self._fixed_of(one)

            def loss(v, rest=rest, fixed=fixed):
                return self._mean_loss(torch.cat([v[None], rest], dim=1), x, labels, fixed).sum()

            with self._rounding(), networks.second_derivatives():
                finite = bool(torch.isfinite(w).all())
                tops.append(metrics.sharpness(loss, w[0, : self.n_invariant]) if finite else np.nan)
        return torch.tensor(tops, dtype=self.weights.dtype)

    def snapshot(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `metrics.measures("snapshot")`, in float32 on the CPU: what `direction` and
        `predict` return.
        """
        return self.direction().float().cpu(), self.predict().float().cpu()
