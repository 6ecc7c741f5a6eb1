r"""What a monitor asks of a model once, or seldom: its groups, single neurons, the sharpness of a
step's own batch. The model is left as it was, bit by bit: its buffers, gradients and chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from periodic_lib.project import ConfigError

TURNED = 1e-2  # cosine of weights and gradient from which a scale is not free any more
NEURON_COLUMNS = [
    "group",
    "weights",
    "neuron",
    "norm_share",
    "elr_ratio",
    "radial_cosine",
    "invariant",
]


# ---------------------------------------------------------------- groups


def found_groups(
    find: Callable, model: torch.nn.Module, example: object, seconds: float
) -> tuple[object, dict[tuple[str, ...], float | None]]:
    """Return what the probe `find` finds, and its groups, each weight in the first that has it,
    with the norm below which the model's epsilons break the invariance (None: not measured).

    Raises
    ------
    ConfigError : without an example.
    """
    if example is None:
        raise ConfigError(
            "one of `example` and `groups` must be given; got neither. Pass a batch of inputs as "
            "`example`, for a probe, or the groups of scale-invariant weights as `groups`."
        )
    with torch.random.fork_rng():  # the training's random numbers are not ours
        found = find(model, example, seconds)
    taken: set[str] = set()
    groups = {}
    for group in found.groups:
        if not taken & set(group.names):
            groups[tuple(group.names)] = group.fails_below
            taken |= set(group.names)
    return found, groups


# ---------------------------------------------------------------- the sharpness of a batch


@contextmanager
def unchanged(model: torch.nn.Module) -> Iterator[None]:
    """Give the model back its buffers (running statistics), and the program its random numbers."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng(), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


def batch_sharpness(
    loss: Callable[[], torch.Tensor],
    model: torch.nn.Module,
    parameters: Sequence[torch.nn.Parameter],
) -> torch.Tensor:
    r"""Return rho^2 g'Hg / |g|^2: the curvature of a batch's loss along its own gradient, on the
    sphere of the scale-invariant weights.

    g, H and rho belong to `parameters` together; `loss()` computes the batch's loss anew. It takes
    one pass forward and two backward: of a ResNet-18 on a CPU the time of 3.4 steps. A quadratic is
    unstable above 2 / (step on the sphere). The same as `metrics.curvature_along_gradient`; nan
    where the gradient vanishes.

    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> _ = torch.nn.init.constant_(model.weight, 3.0)
    >>> value = batch_sharpness(lambda: model.weight[0, 0] ** 2, model, [model.weight])
    >>> round(value.item(), 4)  # rho^2 = 18, curvature 2
    36.0
    """
    with unchanged(model):
        gradients = torch.autograd.grad(loss(), parameters, create_graph=True, allow_unused=True)
        here = [i for i, gradient in enumerate(gradients) if gradient is not None]
        along = [gradients[i].detach() for i in here]
        product = sum((gradients[i] * v).sum() for i, v in zip(here, along, strict=True))
        weights = [parameters[i] for i in here]
        curved = torch.autograd.grad(product, weights, allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        square = sum(v.double().square().sum() for v in along)
        bent = sum((c.double() * v).sum() for c, v in zip(curved, along, strict=True))
        return sum(p.double().square().sum() for p in parameters) * bent / square


# ---------------------------------------------------------------- single neurons


def neuron_sums(
    parameters: Mapping[str, torch.nn.Parameter],
) -> dict[str, torch.Tensor]:
    """Return |w_i|^2, |g_i|^2 and <g_i, w_i> of every neuron, (3, neurons), by name of the tensor:
    a neuron is what has one first index. Tensors of one dimension have none; nor those without a
    gradient.
    """
    found = {}
    with torch.no_grad():
        for name, weights in parameters.items():
            if weights.dim() > 1 and weights.grad is not None:
                w, g = weights.flatten(1).float(), weights.grad.flatten(1).float()
                found[name] = torch.stack([(w * w).sum(1), (g * g).sum(1), (g * w).sum(1)])
    return found


def neurons(
    sums: Mapping[str, torch.Tensor], groups: Mapping[str, Sequence[str]], worst: int
) -> pd.DataFrame:
    r"""Return the neurons of every group whose norm is smallest beside the others of their tensor.

    Columns: `group`, `weights` (the tensor), `neuron`; `norm_share`, its norm over the tensor's
    median; `elr_ratio`, 1 / norm_share^2, its step on the sphere over the median's (SGD);
    `radial_cosine` of its gradient; `invariant`: whether that is below 1e-2, so that its scale
    alone is free, too.

    >>> sums = {"w": torch.tensor([[1.0, 1.0, 0.25], [1.0, 1.0, 1.0], [0.0, 0.5, 0.0]])}
    >>> table = neurons(sums, {"layer": ["w"]}, worst=1)
    >>> table[["neuron", "norm_share", "elr_ratio", "invariant"]].values.tolist()
    [[2, 0.5, 4.0, True]]
    """
    parts = [
        _of_tensor(sums[name].double().cpu().numpy()).assign(group=place, weights=name)
        for place, names in enumerate(groups.values())
        for name in names
        if name in sums
    ]
    if not parts:
        return pd.DataFrame(columns=NEURON_COLUMNS)
    table = pd.concat(parts).sort_values(["group", "norm_share", "weights", "neuron"])
    chosen = table.groupby("group").head(worst)
    chosen["group"] = [list(groups)[place] for place in chosen.group]
    return chosen[NEURON_COLUMNS].reset_index(drop=True)


def _of_tensor(sums: np.ndarray) -> pd.DataFrame:
    norm, gradient = np.sqrt(sums[0]), np.sqrt(sums[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        share = norm / np.median(norm)
        cosine = np.where(gradient * norm > 0, sums[2] / norm / gradient, 0.0)
        columns = {"norm_share": share, "elr_ratio": share**-2.0, "radial_cosine": cosine}
    table = pd.DataFrame(columns | {"invariant": np.abs(cosine) < TURNED})
    return table.assign(neuron=np.arange(len(norm)))


# ---------------------------------------------------------------- the optimizer


def optimizer_facts(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return momentum and Adam's first beta of the first group; 0 and nan where it has none."""
    first = optimizer.param_groups[0]
    beta1 = first["betas"][0] if "betas" in first else np.nan
    return {"momentum": float(first.get("momentum", 0.0)), "beta1": float(beta1)}


def circumstances(optimizer: torch.optim.Optimizer) -> tuple[dict[str, str], str]:
    """Return where a training runs, and its optimizer's name ("adamw" where decay is decoupled)."""
    first = optimizer.param_groups[0]
    decoupled = "betas" in first and first.get("decoupled_weight_decay")
    where = {
        "device": str(first["params"][0].device),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch_version": str(torch.__version__),
    }
    return where, "adamw" if decoupled else type(optimizer).__name__.lower()
