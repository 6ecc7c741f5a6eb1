"""Weights that random gradients move: where norm and turn come to rest, simulated and in closed
form.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from periodic_lib import theory
from periodic_lib.checks import one_of

if TYPE_CHECKING:
    import pandas as pd

OPTIMIZERS = ("SGD", "AdamW")


@dataclass(frozen=True)
class RandomGradients:
    r"""An optimizer with coupled (SGD) or decoupled (AdamW) weight decay, fed with noise.

    Every step draws a fresh normal gradient g of `size` weights, independent of all before, and so
    orthogonal to the weights on average: of root mean square norm `eff_grad_norm` / |w| for SGD, of
    unit variance for AdamW. The latter's second moment would be 1, and is left out:

    SGD:    m' = mu m + g + lambda w,      w' = w - eta m'
    AdamW:  m' = mu m + (1 - mu) g,        w' = (1 - eta lambda) w - eta m'

    Parameters
    ----------
    optimizer : "SGD" or "AdamW".
    momentum : mu; beta_1 of AdamW.
    lr, weight_decay : eta, lambda.
    size : number of weights.
    eff_grad_norm : for SGD.
    """

    optimizer: str
    momentum: float = 0.0
    lr: float = 0.02
    weight_decay: float = 0.1
    size: int = 400
    eff_grad_norm: float = 3.0

    def __post_init__(self):
        one_of("optimizer", self.optimizer, OPTIMIZERS)

    def predicted(self) -> tuple[float, float]:
        """Return norm and cosine of the turn per step at rest, by `theory`.

        >>> norm, cosine = RandomGradients("SGD").predicted()
        >>> round(norm, 3), round(cosine, 6)
        (0.974, 0.998)
        """
        rates = self.lr, self.weight_decay
        if self.optimizer == "SGD":
            norm = theory.equilibrium_norm(*rates, self.eff_grad_norm, self.momentum)
            turn = theory.equilibrium_angle(*rates, self.momentum)
        else:
            norm = theory.equilibrium_norm_adamw(*rates, self.size, self.momentum)
            turn = theory.equilibrium_angle_adamw(*rates, self.momentum)
        return float(norm), float(np.cos(turn))

    def step(self, weights: NDArray, memory: NDArray, noise: NDArray) -> tuple[NDArray, NDArray]:
        """Return weights and memory after one step; all (vectors, size)."""
        decay = self.lr * self.weight_decay
        if self.optimizer == "AdamW":
            memory = self.momentum * memory + (1 - self.momentum) * noise
            return (1 - decay) * weights - self.lr * memory, memory
        norm = np.linalg.norm(weights, axis=1, keepdims=True)
        gradient = noise * (self.eff_grad_norm / np.sqrt(self.size)) / norm
        memory = self.momentum * memory + gradient + self.weight_decay * weights
        return weights - self.lr * memory, memory

    def simulated(
        self, vectors: int = 8, memories: float = 8.0, seed: int = 0
    ) -> tuple[NDArray, NDArray]:
        """Return norm (root of the mean square) and mean cosine of the turn, each (vectors,).

        Means over `memories` times 1 / (eta lambda) steps, after two such times to settle; the
        vectors start at the predicted norm.
        """
        rng, unit = np.random.default_rng(seed), 1 / (self.lr * self.weight_decay)
        weights = rng.normal(size=(vectors, self.size))
        weights *= self.predicted()[0] / np.linalg.norm(weights, axis=1, keepdims=True)
        memory, sums, count = np.zeros_like(weights), np.zeros((2, vectors)), int(memories * unit)
        for step in range(int(2 * unit) + count):
            new, memory = self.step(weights, memory, rng.normal(size=weights.shape))
            if step >= int(2 * unit):
                squares = [np.square(one).sum(1) for one in (weights, new)]
                cosine = (weights * new).sum(1) / np.sqrt(squares[0] * squares[1])
                sums += [squares[0], cosine]
            weights = new
        return np.sqrt(sums[0] / count), sums[1] / count


def compared(
    cases: Iterable[RandomGradients], memories: float = 8.0, errors: float = 3.0
) -> pd.DataFrame:
    """Return how far simulated norms and turns are from their laws: a row for each case and both.

    Columns `optimizer`, `momentum`; `of`, "norm" or "turn"; `ratio`, the mean over eight vectors of
    the norm, or of 1 - cos(turn), over its law; `within`, whether it is 1 within `errors` standard
    errors of that mean and eta lambda, the order that the laws neglect.

    >>> table = compared([RandomGradients("SGD", lr=1.0, weight_decay=0.1)])
    >>> bool(table.within.all()), table.of.tolist()
    (True, ['norm', 'turn'])
    """
    import pandas as pd

    rows = []
    for case in cases:
        (norm, cosine), (norm_law, cosine_law) = case.simulated(memories=memories), case.predicted()
        ratios = {"norm": norm / norm_law, "turn": (1 - cosine) / (1 - cosine_law)}
        for name, ratio in ratios.items():
            mean, error = float(ratio.mean()), float(ratio.std(ddof=1) / ratio.size**0.5)
            within = abs(mean - 1) < errors * error + case.lr * case.weight_decay
            rows.append((case.optimizer, case.momentum, name, mean, within))
    return pd.DataFrame(rows, columns=["optimizer", "momentum", "of", "ratio", "within"])
