"""What is trained: a `Setup` shared by a stack of runs, the `Run`s in it, and what a `Record`
keeps.

All three are checked when they are made, so that nothing is computed with a value that cannot be
meant. Errors name the parameter, its legal values, what came, and what to do next.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from math import inf, prod
from pathlib import Path
from typing import ClassVar

from periodic_lib.changes import checked_changes
from periodic_lib.checks import flag, integer, known_names, number, one_of, optional, shown
from periodic_lib.project import ConfigError

DATASETS = ("digits", "breast_cancer", "moby_dick", "cifar10", "cifar100", "fashion_mnist")
NETWORKS = ("mlp", "convnet", "resnet18", "transformer")
OPTIMIZERS = ("sgd", "nesterov", "adam", "adamw")
SCHEDULES = ("constant", "step", "linear", "cosine", "constant_elr")
NORMALIZATIONS = ("batchnorm", "layernorm", "rmsnorm", "none")
NORMALIZED_BY = {  # network -> what may normalize it, its usual one first
    "mlp": NORMALIZATIONS,
    "convnet": ("batchnorm",),
    "resnet18": ("batchnorm",),
    "transformer": ("layernorm", "rmsnorm"),
}
SCOPES = ("total", "layer")
TOKENS = ("patches", "rows")
DTYPES = ("float32", "float64")
MATMULS = ("full", "tf32", "bfloat16")
LOSSES = ("cross_entropy", "squared_error")
UNITS = ("step", "epoch")

WHOLE, FROM_ZERO = "a whole number of at least 1", "a whole number from 0"  # as messages say it
POSITIVE, BELOW_ONE = "a positive number", "a number from 0 to below 1"
OPEN = True  # the lower limit itself is not legal


HEADS = 4  # of the transformer
DEPTHS = {"mlp": (1, 64), "convnet": (1, 5), "transformer": (1, 64)}


def _dataset(name: str, value: object) -> str:
    if isinstance(value, str | Path) and str(value).endswith(".npz"):
        return str(value)
    try:
        return one_of(name, value, DATASETS)
    except ConfigError as error:
        raise ConfigError(
            f"{str(error).split(';')[0]}, or the path of a .npz file; got {shown(value)}."
        ) from None


def _check_depth(network: str, depth: int | None) -> None:
    if depth is None:
        return
    if network not in DEPTHS:
        raise ConfigError(f"`depth` of {network!r} is fixed and must be None; got {depth}.")
    low, high = DEPTHS[network]
    if not low <= depth <= high:
        raise ConfigError(f"`depth` of {network!r} must be from {low} to {high}; got {depth}.")


class _Checked:
    """Behaviour shared by the frozen dataclasses below.

    `RULES`: field -> (check, its arguments), where check(name, value, *arguments) returns the clean
    value; `_check_together` sees fields that limit each other.
    """

    RULES: ClassVar[dict[str, tuple]]

    def __post_init__(self) -> None:
        for name, (check, *arguments) in self.RULES.items():
            object.__setattr__(self, name, check(name, getattr(self, name), *arguments))
        self._check_together()

    def _check_together(self) -> None:
        """Raise `ConfigError` for values that do not go together."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of the parameters, in order."""
        return tuple(field.name for field in fields(cls))

    def to_dict(self) -> dict:
        """Return the parameters as a plain dictionary (numbers, text, None), ready for JSON."""
        return {name: getattr(self, name) for name in self.names()}


@dataclass(frozen=True)
class Setup(_Checked):
    """What all runs of a stack share: data, network, batch size, number of steps, optimizer,
    arithmetic.

    Parameters
    ----------
    dataset : "digits" (scikit-learn's 1,797 pictures of 8 x 8 pixels, 1,437 for training, 360 for
        testing), "breast_cancer" (its 569 rows of 30 features in two classes, 455 for training, 114
        for testing), "moby_dick" (characters of the novel, 27 of them, each to be told by the 16
        before it, 4,000 places for training, 1,000 for testing), "cifar10", "cifar100",
        "fashion_mnist" (through torchvision), or the path of your own `.npz` file
        (`periodic_lib.engine.sources` says what it must hold).
    network : "mlp", "convnet", "resnet18" or "transformer" (`periodic_lib.engine.networks`).
    width : units of a hidden layer, channels of the first block, or size of a token.
    depth : hidden layers, blocks; None means the network's usual depth (mlp 3, convnet 4,
        transformer 4).
    batch_size : examples per step; None means the full training set (gradient descent).
    drop_last : leave out the last batch of an epoch when it is shorter than `batch_size` (every
        epoch draws a new order, so no example is left out for good). False keeps it, as
        `torch.utils.data.DataLoader` does.
    augment : shift pictures by up to 4 pixels (zero padding) and flip them, on the device, for each
        run by its seed.
    train_size : use a class-balanced subset of that many training examples; None: all of them.
    test_on_rest : test on the training examples that `train_size` leaves out, too: a larger test
        set, a finer error.
    label_noise : fraction of training labels replaced by a different, random class.
    fresh_label_noise : fraction of a step's labels replaced by a different, random class, drawn
        anew at every step: it cannot be learned by heart. Evaluations have the true labels.
    reshuffle_every : steps after which the labels of the training examples change places, and again
        after as many: from the first time on they have nothing to do with the pictures, and every
        stretch is a new task to be learned by heart. Training is evaluated on the labels of the
        moment. None: never.
    jpeg : quality, from 1 to 100, at which every picture is encoded as JPEG once before it is used;
        None: as it is.
    sample_seed : seed of the subset, of the label noise and of the reshuffled labels.
    loss : "cross_entropy", or "squared_error": half the squared distance of the logits to the
        indicator of the class, mean over the examples.
    steps : parameter updates.
    train_others : train the parameters that are not scale-invariant, too: the scale and shift of
        the normalizations and the last layer. False: they have no scale and shift, and the last
        layer stays as it was drawn.
    last_layer_norm : Frobenius norm to which the last layer's random weights are scaled (10 in the
        paper); None keeps PyTorch's default initialization. Its bias keeps the default either way.
    fixed_norm : project the scale-invariant weights to this norm after every step (and at the
        start); None: free.
    fixed_norm_scope : "total": all of them together; "layer": every layer by itself has this norm.
    normalization : "batchnorm", "layernorm" or "rmsnorm" (over the features of an example), or
        "none": no weight is scale-invariant then, and norm, gradient and angle are those of the
        hidden layers' weights. None: the network's usual one, layer normalization for the
        transformer, batch normalization else. Only the perceptron has all four.
    qk_norm : normalize the queries and keys of the transformer; without, these matrices are not
        scale-invariant, but still measured.
    tokens : of the transformer: "patches", 4 x 4 of a picture, or its "rows".
    bn_eps : epsilon of the normalizations, added to the variance.
    optimizer : "sgd" (momentum per run), "nesterov", "adam" (both with coupled weight decay),
        "adamw" (decoupled).
    dtype : "float32" or "float64".
    matmul : "full"; "tf32" or "bfloat16" let matrix products and convolutions round more, for speed
        on a GPU.

    Raises
    ------
    ConfigError : naming the parameter, its legal values and what came.

    >>> Setup(steps="2e3").steps
    2000
    >>> Setup(dataset="mnist")
    Traceback (most recent call last):
    periodic_lib.project.ConfigError: `dataset` must be one of 'digits', ...; got 'mnist'.
    """

    dataset: str = "digits"
    network: str = "mlp"
    width: int = 64
    depth: int | None = None
    batch_size: int | None = 128
    drop_last: bool = False
    augment: bool = False
    train_size: int | None = None
    test_on_rest: bool = False
    label_noise: float = 0.0
    fresh_label_noise: float = 0.0
    reshuffle_every: int | None = None
    jpeg: int | None = None
    sample_seed: int = 0
    loss: str = "cross_entropy"
    steps: int = 20_000
    train_others: bool = False
    last_layer_norm: float | None = 10.0
    fixed_norm: float | None = None
    fixed_norm_scope: str = "total"
    normalization: str | None = None
    qk_norm: bool = True
    tokens: str = "patches"
    bn_eps: float = 1e-5
    optimizer: str = "sgd"
    dtype: str = "float32"
    matmul: str = "full"

    RULES: ClassVar = {
        "dataset": (_dataset,),
        "network": (one_of, NETWORKS),
        "width": (integer, WHOLE, 1),
        "depth": (optional, integer, WHOLE + ", or None", 1),
        "batch_size": (optional, integer, "a whole number of at least 2, or None (full batch)", 2),
        "drop_last": (flag,),
        "augment": (flag,),
        "train_size": (optional, integer, WHOLE + ", or None (all)", 1),
        "test_on_rest": (flag,),
        "label_noise": (number, "a fraction from 0 to below 1", 0, 1),
        "fresh_label_noise": (number, "a fraction from 0 to below 1", 0, 1),
        "reshuffle_every": (optional, integer, WHOLE + ", or None (never)", 1),
        "jpeg": (optional, integer, "a quality from 1 to 100, or None", 1, 100),
        "sample_seed": (integer, FROM_ZERO, 0),
        "loss": (one_of, LOSSES),
        "steps": (integer, WHOLE, 1),
        "train_others": (flag,),
        "last_layer_norm": (optional, number, POSITIVE + ", or None", 0, inf, OPEN),
        "fixed_norm": (optional, number, POSITIVE + ", or None", 0, inf, OPEN),
        "fixed_norm_scope": (one_of, SCOPES),
        "normalization": (optional, one_of, NORMALIZATIONS),
        "qk_norm": (flag,),
        "tokens": (one_of, TOKENS),
        "bn_eps": (number, "a number from 0", 0, inf),
        "optimizer": (one_of, OPTIMIZERS),
        "dtype": (one_of, DTYPES),
        "matmul": (one_of, MATMULS),
    }

    def _check_together(self) -> None:
        _check_depth(self.network, self.depth)
        legal = NORMALIZED_BY[self.network]
        if self.normalization is not None:
            one_of(f"normalization` of {self.network!r}, `normalization", self.normalization, legal)
        odd = self.width % HEADS or self.width < 4 * HEADS
        if self.network == "transformer" and odd:
            raise ConfigError(
                f"`width` of a transformer must be a multiple of its {HEADS} heads, "
                f"at least {4 * HEADS}; got {self.width!r}."
            )


@dataclass(frozen=True)
class Run(_Checked):
    """What may differ between the runs of one stack.

    Parameters
    ----------
    lr : learning rate eta, > 0.
    weight_decay : weight decay lambda, >= 0, with lr * weight_decay < 1. Coupled: the step of SGD
        is w <- (1 - lr * weight_decay) w - lr * gradient; AdamW's is decoupled.
    momentum : in [0, 1), of SGD, as `torch.optim.SGD` (no dampening).
    beta1, beta2, adam_eps : of Adam and AdamW, as `torch.optim.Adam`.
    others_lr : learning rate of the parameters that are not scale-invariant, if they are trained;
        None: `lr`.
    schedule : factor on the learning rates over the steps t of T: "constant"; "step": divided by
        `decay_factor` after each quarter; "linear": constant for a quarter, then in a straight line
        to 1 / `decay_factor`; "cosine": half a cosine to zero; "constant_elr": proportional to the
        squared norm of the scale-invariant weights, so that the effective learning rate keeps its
        first value.
    warmup : steps over which the learning rates grow in a straight line to their value; 0: none.
    decay_factor : of "step" and "linear", >= 1.
    init_seed, data_seed : seeds of the initial weights and of the order and augmentation of the
        batches.
    init_scale : factor on the initial scale-invariant weights, > 0.
    clip_norm : the gradient is scaled down to this norm where it is longer; None: never.
    clip_above : the gradient is scaled down where its norm exceeds a running mean by more than so
        many running standard deviations, by ZClip's rule (`periodic_lib.engine.guards`; the
        authors take 2.5); None: never.
    skip_above : a step is left out where its gradient's norm exceeds the mean of the last 128 by
        more than so many of their standard deviations; None: never (`periodic_lib.engine.guards`).
    changes : what becomes different on the way (`periodic_lib.changes`), for example "2500:
        weight_decay 0" or "900: elr 0.15, 915: elr 0.03"; None: nothing.

    >>> Run(lr="1e-1", weight_decay=1e-3).lr
    0.1
    """

    lr: float
    weight_decay: float
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    adam_eps: float = 1e-8
    others_lr: float | None = None
    schedule: str = "constant"
    warmup: int = 0
    decay_factor: float = 10.0
    init_seed: int = 0
    data_seed: int = 0
    init_scale: float = 1.0
    clip_norm: float | None = None
    clip_above: float | None = None
    skip_above: float | None = None
    changes: str | None = None

    RULES: ClassVar = {
        "lr": (number, POSITIVE + ", for example 0.03", 0, inf, OPEN),
        "weight_decay": (number, "a number from 0", 0, inf),
        "momentum": (number, BELOW_ONE, 0, 1),
        "beta1": (number, BELOW_ONE, 0, 1),
        "beta2": (number, BELOW_ONE, 0, 1),
        "adam_eps": (number, "a number from 0", 0, inf),
        "others_lr": (optional, number, "a number from 0, or None (lr)", 0, inf),
        "schedule": (one_of, SCHEDULES),
        "warmup": (integer, FROM_ZERO, 0),
        "decay_factor": (number, "a number from 1", 1, inf),
        "init_seed": (integer, FROM_ZERO, 0),
        "data_seed": (integer, FROM_ZERO, 0),
        "init_scale": (number, POSITIVE, 0, inf, OPEN),
        "clip_norm": (optional, number, POSITIVE + ", or None", 0, inf, OPEN),
        "clip_above": (optional, number, POSITIVE + ", or None", 0, inf, OPEN),
        "skip_above": (optional, number, POSITIVE + ", or None", 0, inf, OPEN),
        "changes": (optional, checked_changes),
    }

    def _check_together(self) -> None:
        product = self.lr * self.weight_decay
        if product >= 1:
            raise ConfigError(
                f"`lr` * `weight_decay` must be below 1 (a step would flip the weights' sign); "
                f"got {self.lr!r} * {self.weight_decay!r} = {product:g}. Lower one of them."
            )


@dataclass(frozen=True)
class Record(_Checked):
    """What is kept of a training run, measured inside the loop.

    Parameters
    ----------
    every : the per-step metrics are kept at steps 0, every, 2 every, ... (in `unit`s).
    unit : "step", or "epoch" (one pass over the training set).
    average : keep means over the steps from one kept step to the next instead of the values of one
        step (of the angular update the root mean square, whose square adds up along a path); the
        row at step t covers t to t + every - 1. For long runs that keep a row an epoch.
    layers, neurons : keep weight norm, gradient norm and angular update of every scale-invariant
        layer, or of every neuron (filter), too.
    evaluate_every : the full training set and the test set are evaluated this often (in `unit`s),
        and at the end; None: never.
    batch_sharpness : keep the curvature of every recorded step's own mini-batch along its gradient,
        too: a Hessian-vector product each.
    curvature_every : the spherical sharpness is measured this often (in `unit`s), and at the end;
        None: never.
    snapshot_every : the direction of the scale-invariant weights and the logits of the test set are
        kept this often (in `unit`s), and at the end; None: never. A snapshot of a run takes 4 bytes
        for every scale-invariant weight and every logit, in memory and, hardly compressible, in the
        result's file: 64 kB for the perceptron on digits, 2 MB for the paper's network on CIFAR-10.
        All together may take 4 GB.

    >>> Record(every=5).every
    5
    """

    every: int = 1
    unit: str = "step"
    average: bool = False
    layers: bool = False
    neurons: bool = False
    batch_sharpness: bool = False
    evaluate_every: int | None = 100
    curvature_every: int | None = None
    snapshot_every: int | None = None

    RULES: ClassVar = {
        "every": (integer, WHOLE, 1),
        "unit": (one_of, UNITS),
        "average": (flag,),
        "layers": (flag,),
        "neurons": (flag,),
        "batch_sharpness": (flag,),
        "evaluate_every": (optional, integer, WHOLE + ", or None (never)", 1),
        "curvature_every": (optional, integer, WHOLE + ", or None (never)", 1),
        "snapshot_every": (optional, integer, WHOLE + ", or None (never)", 1),
    }


SEED = "seed"  # in a grid: one number for init_seed and data_seed
GRID_RUNS = 200_000
GRID_NAMES = (*Run.names(), SEED)


def grid(**values: object) -> list[Run]:
    """Return the runs of the Cartesian product of the values given, the last name varying fastest.

    Every name is a parameter of `Run`, or `seed`, which sets `init_seed` and `data_seed` together.
    A value may be a list or a single value.

    Raises
    ------
    ConfigError : for an unknown name, an empty list, or a value that `Run` refuses.

    >>> [(run.lr, run.init_seed) for run in grid(lr=[0.1, 1], weight_decay=1e-3, seed=[0, 1])]
    [(0.1, 0), (0.1, 1), (1.0, 0), (1.0, 1)]
    """
    known_names("parameter", values, GRID_NAMES)
    if SEED in values and ("init_seed" in values or "data_seed" in values):
        raise ConfigError(
            "`seed` sets `init_seed` and `data_seed`: give either `seed` or those two, not both."
        )
    for required in ("lr", "weight_decay"):
        if required not in values:
            raise ConfigError(
                f"a grid needs `{required}`: a number or a list of numbers; got none."
            )
    columns = {name: _as_list(value) for name, value in values.items()}
    for name, column in columns.items():
        if not column:
            raise ConfigError(f"the grid is empty: `{name}` must have at least one value; got [].")
    size = prod(map(len, columns.values()))
    if size > GRID_RUNS:
        raise ConfigError(
            f"a grid has at most {GRID_RUNS:,} runs; got {size:,}. Take fewer values."
        )
    return [
        _run(dict(zip(columns, row, strict=True))) for row in itertools.product(*columns.values())
    ]


def _as_list(value: object) -> list:
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        return list(value)
    return [value]


def _run(row: dict) -> Run:
    if SEED in row:
        row["init_seed"] = row["data_seed"] = integer(SEED, row.pop(SEED), FROM_ZERO, 0)
    return Run(**row)
