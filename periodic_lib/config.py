"""What is trained: a `Setup` shared by a stack of runs, the `Run`s in it, and what a `Record` keeps.

All three are checked when they are made, so that nothing is computed with a value that cannot be meant.
Errors name the parameter, its legal values, what came, and what to do next.
"""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

DATASETS = ("digits",)
NETWORKS = ("mlp",)
OPTIMIZERS = ("sgd",)
DTYPES = ("float32", "float64")
UNITS = ("step", "epoch")


class ConfigError(ValueError):
    """A parameter that cannot be used; the message is one line that says which, why, and what would be legal."""


# ---------------------------------------------------------------- checks of single values


def known_names(kind: str, given: Iterable[str], legal: Sequence[str]) -> None:
    """Raise `ConfigError` for the first name in `given` that is not in `legal`, with the closest legal one."""
    for name in given:
        if name not in legal:
            close = difflib.get_close_matches(str(name), legal, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"unknown {kind} {name!r}; known: {', '.join(legal)}.{hint}")


def one_of(name: str, value: object, legal: Sequence[str]) -> str:
    """Return `value` if it is one of the `legal` words."""
    if value not in legal:
        words = ", ".join(repr(word) for word in legal)
        raise ConfigError(f"`{name}` must be one of {words}; got {value!r}.")
    return str(value)


def number(name: str, value: object, meaning: str, low: float, high: float, low_open: bool = False) -> float:
    """Return `value` as a float in [low, high) (or (low, high)); text such as ``"1e-3"`` is read as a number."""
    try:
        if isinstance(value, bool):
            raise ValueError
        result = float(value)  # also NumPy scalars and text, which is what YAML makes of 1e-3
    except (TypeError, ValueError):
        raise ConfigError(f"`{name}` must be {meaning}; got {value!r}.") from None
    if not (low < result if low_open else low <= result) or not result < high:  # also refuses nan
        raise ConfigError(f"`{name}` must be {meaning}; got {value!r}.")
    return result


def flag(name: str, value: object) -> bool:
    """Return `value` if it is True or False."""
    if value not in (True, False) or not isinstance(value, int):
        raise ConfigError(f"`{name}` must be true or false; got {value!r}.")
    return bool(value)


def integer(name: str, value: object, meaning: str, low: int) -> int:
    """Return `value` as an int of at least `low`; ``2e4`` and ``"20000"`` are read as whole numbers."""
    result = number(name, value, meaning, low=low, high=float("inf"))
    if result != int(result):
        raise ConfigError(f"`{name}` must be {meaning}; got {value!r}.")
    return int(result)


# ---------------------------------------------------------------- the three small objects


class _Checked:
    """Behaviour shared by the frozen dataclasses below: `_check` returns the cleaned value of every field."""

    def __post_init__(self) -> None:
        for name, value in self._check().items():
            object.__setattr__(self, name, value)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of the parameters, in order."""
        return tuple(field.name for field in fields(cls))

    def to_dict(self) -> dict:
        """Return the parameters as a plain dictionary (numbers, text, None), ready for JSON."""
        return {name: getattr(self, name) for name in self.names()}


@dataclass(frozen=True)
class Setup(_Checked):
    """What all runs of a stack share: data, network, batch size, number of steps, arithmetic.

    Parameters
    ----------
    dataset : "digits" (scikit-learn's 1,797 pictures of 8 x 8 pixels, 1,437 for training, 360 for testing).
    network : "mlp": `depth` hidden layers, each linear without bias, batch normalization without affine
        parameters, ReLU; then a last linear layer with bias.
    width : units of a hidden layer.
    depth : hidden layers; None means the network's usual depth (mlp: 3).
    batch_size : examples per step; None means the full training set (gradient descent).
    drop_last : leave out the last batch of an epoch when it is shorter than `batch_size` (every epoch draws a new
        order, so no example is left out for good). False keeps it, as `torch.utils.data.DataLoader` does.
    steps : parameter updates.
    last_layer_norm : Frobenius norm to which the last layer's random weights are scaled before they are frozen
        (10 in the paper); None keeps PyTorch's default initialization. Its bias keeps the default either way.
    bn_eps : epsilon of batch normalization, added to the batch variance.
    optimizer : "sgd" (coupled weight decay, momentum per run).
    dtype : "float32" or "float64".

    Raises
    ------
    ConfigError : naming the parameter, its legal values and what came.

    >>> Setup(steps="2e3").steps
    2000
    >>> Setup(dataset="mnist")
    Traceback (most recent call last):
    periodic_lib.config.ConfigError: `dataset` must be one of 'digits'; got 'mnist'.
    """

    dataset: str = "digits"
    network: str = "mlp"
    width: int = 64
    depth: int | None = None
    batch_size: int | None = 128
    drop_last: bool = False
    steps: int = 20_000
    last_layer_norm: float | None = 10.0
    bn_eps: float = 1e-5
    optimizer: str = "sgd"
    dtype: str = "float32"

    def _check(self) -> dict:
        whole = "a whole number of at least 1"
        return {
            "dataset": one_of("dataset", self.dataset, DATASETS),
            "network": one_of("network", self.network, NETWORKS),
            "width": integer("width", self.width, whole, low=1),
            "depth": None if self.depth is None else integer("depth", self.depth, whole + ", or None", low=1),
            "batch_size": None
            if self.batch_size is None
            else integer("batch_size", self.batch_size, "a whole number of at least 2, or None (full batch)", low=2),
            "drop_last": flag("drop_last", self.drop_last),
            "steps": integer("steps", self.steps, whole, low=1),
            "last_layer_norm": None
            if self.last_layer_norm is None
            else number(
                "last_layer_norm", self.last_layer_norm, "a positive number, or None", 0, float("inf"), low_open=True
            ),
            "bn_eps": number("bn_eps", self.bn_eps, "a number from 0", 0, float("inf")),
            "optimizer": one_of("optimizer", self.optimizer, OPTIMIZERS),
            "dtype": one_of("dtype", self.dtype, DTYPES),
        }


@dataclass(frozen=True)
class Run(_Checked):
    """What may differ between the runs of one stack.

    Parameters
    ----------
    lr : learning rate eta, > 0.
    weight_decay : coupled weight decay lambda, >= 0, with lr * weight_decay < 1: the step is
        w <- (1 - lr * weight_decay) w - lr * gradient.
    momentum : in [0, 1), as `torch.optim.SGD` (no dampening, no Nesterov).
    init_seed, data_seed : seeds of the initial weights and of the order of the batches.
    init_scale : factor on the initial scale-invariant weights, > 0.

    >>> Run(lr="1e-1", weight_decay=1e-3).lr
    0.1
    """

    lr: float
    weight_decay: float
    momentum: float = 0.0
    init_seed: int = 0
    data_seed: int = 0
    init_scale: float = 1.0

    def _check(self) -> dict:
        seed = "a whole number from 0"
        checked = {
            "lr": number("lr", self.lr, "a positive number, for example 0.03", 0, float("inf"), low_open=True),
            "weight_decay": number("weight_decay", self.weight_decay, "a number from 0", 0, float("inf")),
            "momentum": number("momentum", self.momentum, "a number from 0 to below 1", 0, 1),
            "init_seed": integer("init_seed", self.init_seed, seed, low=0),
            "data_seed": integer("data_seed", self.data_seed, seed, low=0),
            "init_scale": number("init_scale", self.init_scale, "a positive number", 0, float("inf"), low_open=True),
        }
        product = checked["lr"] * checked["weight_decay"]
        if product >= 1:
            raise ConfigError(
                f"`lr` * `weight_decay` must be below 1 (a step would flip the sign of the weights); "
                f"got {self.lr!r} * {self.weight_decay!r} = {product:g}. Lower one of them."
            )
        return checked


@dataclass(frozen=True)
class Record(_Checked):
    """What is kept of a training run, measured inside the loop.

    Parameters
    ----------
    every : the per-step metrics are kept at steps 0, every, 2 every, ... (in `unit`s).
    unit : "step", or "epoch" (one pass over the training set).
    evaluate_every : the full training set and the test set are evaluated this often (in `unit`s), and at the end;
        None: never.

    >>> Record(every=5).every
    5
    """

    every: int = 1
    unit: str = "step"
    evaluate_every: int | None = 100

    def _check(self) -> dict:
        whole = "a whole number of at least 1"
        return {
            "every": integer("every", self.every, whole, low=1),
            "unit": one_of("unit", self.unit, UNITS),
            "evaluate_every": None
            if self.evaluate_every is None
            else integer("evaluate_every", self.evaluate_every, whole + ", or None", low=1),
        }


SEED = "seed"  # in a grid: one number for init_seed and data_seed
GRID_NAMES = (*Run.names(), SEED)


def grid(**values: object) -> list[Run]:
    """Return the runs of the Cartesian product of the values given, the last name varying fastest.

    Every name is a parameter of `Run`, or `seed`, which sets `init_seed` and `data_seed` together. A value may be
    a list or a single value.

    Raises
    ------
    ConfigError : for an unknown name, an empty list, or a value that `Run` refuses.

    >>> [(run.lr, run.init_seed) for run in grid(lr=[0.1, 1], weight_decay=1e-3, seed=[0, 1])]
    [(0.1, 0), (0.1, 1), (1.0, 0), (1.0, 1)]
    """
    known_names("parameter", values, GRID_NAMES)
    if SEED in values and ("init_seed" in values or "data_seed" in values):
        raise ConfigError("`seed` sets `init_seed` and `data_seed`: give either `seed` or those two, not both.")
    for required in ("lr", "weight_decay"):
        if required not in values:
            raise ConfigError(f"a grid needs `{required}`: a number or a list of numbers; got none.")
    columns = {name: _as_list(value) for name, value in values.items()}
    for name, column in columns.items():
        if not column:
            raise ConfigError(f"the grid is empty: `{name}` must have at least one value; got [].")
    return [_run(dict(zip(columns, row, strict=True))) for row in itertools.product(*columns.values())]


def _as_list(value: object) -> list:
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        return list(value)
    return [value]


def _run(row: dict) -> Run:
    if SEED in row:
        row["init_seed"] = row["data_seed"] = integer(SEED, row.pop(SEED), "a whole number from 0", low=0)
    return Run(**row)


# ---------------------------------------------------------------- where the project is


def root() -> Path:
    """Return the project folder: $PERIODIC_ROOT, else the nearest folder upwards that has book/experiments.yml.

    The search starts in the working directory, then at the library itself.

    Raises
    ------
    ConfigError : if there is none.
    """
    if os.environ.get("PERIODIC_ROOT"):
        return Path(os.environ["PERIODIC_ROOT"])
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parent.parent):
        if (folder / "book" / "experiments.yml").is_file():
            return folder
    raise ConfigError(
        f"no project folder: {here} and the folders above it have no book/experiments.yml. "
        "Change into the cloned project, or set PERIODIC_ROOT to it."
    )
