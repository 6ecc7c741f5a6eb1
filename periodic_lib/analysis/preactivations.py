"""How large are the variances by which batch normalization divides?"""

from __future__ import annotations

import numpy as np
import torch

from periodic_lib.config import Run, Setup
from periodic_lib.engine.normalization import Statistics
from periodic_lib.engine.stack import Stack


def variances(setup: Setup, run: Run, steps: int, every: int = 100) -> np.ndarray:
    """Train one run; return the smallest and the median variance of its pre-activations, (look, 2).

    Over the whole training set, of all units of all normalized layers, in units of the squared norm
    of the scale-invariant weights, before steps 0, `every`, 2 `every`, ... below `steps`: as the
    variances are proportional to it, they are compared with epsilon at any norm.
    """
    stack, looks = Stack(setup, [run]), []
    order = stack.batch_order()
    for step in range(steps):
        if step % every == 0:
            looks.append(_smallest_and_median(stack))
        stack.step(order.next(), None)
    return np.array(looks)


def _smallest_and_median(stack: Stack) -> np.ndarray:
    statistics, values = Statistics(), stack.values(stack.weights)
    statistics.begin()
    with torch.no_grad():
        stack.network.logits(values, stack.data.x_train[None], statistics.collect)
        each = torch.cat([variance.flatten() for _, variance in statistics.layers])
        both = torch.stack([each.min(), each.median()]) / stack.invariant.square().sum()
    return both.cpu().numpy()
