"""The training loop: R runs as one stacked network, measured at every step that a `Record` names.

The scale-invariant weights of all runs are one flat tensor (runs, weights), so that a norm, an angle or an update
is one operation for the whole stack. Everything else (the last layer) is fixed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from periodic_lib import datasets, metrics, networks, results
from periodic_lib.config import ConfigError, Record, Run, Setup
from periodic_lib.optimizers import SGD

STEP_METRICS = ("train_loss", "weight_norm", "grad_norm", "angular_update")
LOG_SECONDS = 15
EVALUATIONS = ("train_loss_full", "train_error", "test_loss", "test_error")


def train(
    setup: Setup,
    runs: Sequence[Run],
    record: Record | None = None,
    *,
    device: str | None = None,
    progress: bool = True,
    initial: Mapping[str, object] | None = None,
    batches: object | None = None,
) -> xr.Dataset:
    """Train `runs` as one stacked network and return what was measured.

    Parameters
    ----------
    setup, runs, record : what to train (see `Setup`, `Run`, `grid`) and what to keep (default: every step,
        evaluation every 100 steps).
    device : "cpu", "cuda", ...; None takes CUDA where there is one.
    progress : show steps per second, the median loss of the runs, and the time left.
    initial : initial parameters by name, in PyTorch's layout: shape (runs, *shape), or (*shape) for all runs alike.
        Names that are missing keep their default initialization.
    batches : integer array (steps, batch): the training examples of each step, the same for all runs.

    Returns
    -------
    xarray.Dataset with dimensions `run`, `step` and `eval_step`; coordinates of `run` are the fields of `Run`.
        At step t, before its update, on its mini-batch, batch normalization in training mode, shape (run, step):
        `train_loss`; `weight_norm` rho of all scale-invariant weights; `elr` = lr / rho^2; `grad_norm` (without
        the decay term); `eff_grad_norm` = rho * grad_norm; `angular_update`, the angle to the weights after the
        step, in radians.
        Shape (run, eval_step): `train_loss_full`, `train_error` on the full training set (training mode), and
        `test_loss`, `test_error` with batch-normalization statistics re-estimated on the full training set.
        A step index of S means the weights after S updates.

    Raises
    ------
    ConfigError : before any training, for a parameter that cannot be used.

    >>> small = Setup(width=8, depth=1, steps=20)
    >>> out = train(small, [Run(lr=0.1, weight_decay=1e-2)], Record(evaluate_every=20), progress=False)
    >>> dict(out.sizes)
    {'run': 1, 'step': 20, 'eval_step': 2}
    """
    record = Record() if record is None else record
    if not runs:
        raise ConfigError(
            "`runs` must have at least one Run; got none. Make them with grid(lr=..., weight_decay=...)."
        )
    started = time.perf_counter()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    stack = Stack(setup, list(runs), device, initial)
    order = stack.batch_order()
    keep = _Recorder(setup, record, len(runs), order.steps_per_epoch, device)
    if batches is not None:
        order = _FixedOrder(batches, setup, stack)
    with _progress_bar(setup.steps, progress) as bar:
        for step in range(setup.steps):
            if keep.evaluates(step):
                keep.add_evaluation(step, stack.evaluate())
            measured = stack.step(order.next(), measure=keep.records(step))
            if measured is not None:
                keep.add_step(step, measured)
            bar.advance(step, measured)
        if record.evaluate_every is not None:
            keep.add_evaluation(setup.steps, stack.evaluate())
    return keep.dataset(runs, seconds=time.perf_counter() - started, device=device)


class Stack:
    """R runs as one network: `weights` (runs, weights), all scale-invariant, and what is done with them.

    `loss` is the plain function of the weights that everything else follows from; `step` and `evaluate` are the two
    operations of training.

    >>> stack = Stack(Setup(width=8, dtype="float64", bn_eps=0), [Run(lr=0.1, weight_decay=0)])
    >>> batch = stack.batch_order().next()
    >>> bool(torch.isclose(stack.loss(3 * stack.weights, batch), stack.loss(stack.weights, batch), rtol=1e-12))
    True
    """

    def __init__(self, setup: Setup, runs: list[Run], device: str = "cpu", initial: Mapping | None = None):
        self.setup, self.runs, self.device = setup, runs, device
        self.data = datasets.load(setup, device)
        self.network = networks.build(setup, self.data.features, self.data.classes)
        values = self._initial_values(initial or {})
        moving = [parameter for parameter in self.network.parameters if parameter.scale_invariant]
        self.shapes = {parameter.name: parameter.shape for parameter in moving}
        self.sizes = [int(np.prod(shape)) for shape in self.shapes.values()]
        flat = [values.pop(name).flatten(1) for name in self.shapes]
        scale = torch.tensor([[run.init_scale] for run in runs], dtype=flat[0].dtype, device=device)
        self.weights = (scale * torch.cat(flat, dim=1)).requires_grad_()  # (runs, weights)
        self.fixed = values
        self.optimizer = SGD(runs, self.weights.dtype, device)

    def _initial_values(self, given: Mapping) -> dict[str, torch.Tensor]:
        names = [parameter.name for parameter in self.network.parameters]
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise ConfigError(f"`initial` has unknown parameters {unknown}; the network has {names}.")
        drawn = [self.network.initialize(run.init_seed) for run in self.runs]
        values = {}
        for parameter in self.network.parameters:
            value = torch.stack([run[parameter.name] for run in drawn])  # (runs, *shape)
            if parameter.name in given:
                foreign = torch.as_tensor(np.asarray(given[parameter.name]), dtype=value.dtype)
                if foreign.shape not in (value.shape, value.shape[1:]):
                    raise ConfigError(
                        f"`initial[{parameter.name!r}]` must have shape {tuple(value.shape)} or "
                        f"{tuple(value.shape[1:])}; got {tuple(foreign.shape)}."
                    )
                value = foreign.expand(value.shape)
            values[parameter.name] = value.to(device=self.device, dtype=getattr(torch, self.setup.dtype))
        return values

    def batch_order(self) -> datasets.BatchOrder:
        """Return the order that the runs' data seeds give."""
        seeds = [run.data_seed for run in self.runs]
        setup = self.setup
        return datasets.BatchOrder(seeds, self.data.x_train.shape[0], setup.batch_size, setup.drop_last, self.device)

    def values(self, weights: torch.Tensor) -> networks.Tensors:
        """Return all parameters as views (runs, *shape) of the flat weights and the fixed rest."""
        parts = weights.split(self.sizes, dim=1)
        views = {name: part.view(-1, *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        return {**views, **self.fixed}

    def loss(self, weights: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return the mini-batch losses (runs,) at `weights` (runs, weights) on the examples `index` (runs, batch)."""
        x, labels = self.data.x_train[index], self.data.y_train[index]  # (runs, batch, features), (runs, batch)
        return networks.cross_entropy(self.network.logits(self.values(weights), x), labels)

    def step(self, index: torch.Tensor, measure: bool) -> torch.Tensor | None:
        """Update all runs on their mini-batches; return `STEP_METRICS`, shape (metrics, runs), if asked."""
        loss = self.loss(self.weights, index)  # (runs,)
        (gradient,) = torch.autograd.grad(loss.sum(), self.weights)
        with torch.no_grad():
            new = self.optimizer.step(self.weights, gradient)
            measured = None
            if measure:
                measured = torch.stack(
                    [loss, metrics.norm(self.weights), metrics.norm(gradient), metrics.angle(self.weights, new)]
                )
            self.weights.copy_(new)
        return measured

    @torch.no_grad()
    def evaluate(self) -> torch.Tensor:
        """Return `EVALUATIONS`, shape (evaluations, runs), without touching the trajectory."""
        values, statistics = self.values(self.weights), networks.Statistics()

        def loss_and_error(x, y, normalize):
            logits = self.network.logits(values, x.expand(len(self.runs), *x.shape), normalize)
            labels = y.expand(len(self.runs), -1)  # (runs, examples)
            wrong = (logits.argmax(dim=1) != labels).to(logits.dtype)
            return networks.cross_entropy(logits, labels), wrong.mean(dim=1)

        train = loss_and_error(self.data.x_train, self.data.y_train, statistics.collect)
        return torch.stack([*train, *loss_and_error(self.data.x_test, self.data.y_test, statistics.apply)])


class _FixedOrder:
    """An explicit order of examples, the same for every run."""

    def __init__(self, batches: object, setup: Setup, stack: Stack):
        index = torch.as_tensor(np.asarray(batches), device=stack.device)
        examples = stack.data.x_train.shape[0]
        if index.ndim != 2 or len(index) < setup.steps or index.is_floating_point():
            raise ConfigError(
                f"`batches` must be an integer array (steps, batch) with at least {setup.steps} rows; "
                f"got shape {tuple(index.shape)} of {index.dtype}."
            )
        if index.min() < 0 or index.max() >= examples:
            raise ConfigError(
                f"`batches` must index the {examples} training examples from 0; got {int(index.min())} to "
                f"{int(index.max())}."
            )
        self._batches = iter(index[:, None, :].expand(-1, len(stack.runs), -1))  # (steps, runs, batch)

    def next(self) -> torch.Tensor:
        """Return the indices of the next mini-batch, shape (runs, batch)."""
        return next(self._batches)


class _Recorder:
    """Preallocated tables of what a `Record` asks for, and their labelled form."""

    def __init__(self, setup: Setup, record: Record, runs: int, steps_per_epoch: int, device: str):
        self.setup, self.record, self.steps_per_epoch = setup, record, steps_per_epoch
        unit = steps_per_epoch if record.unit == "epoch" else 1
        self.every = record.every * unit
        self.evaluate_every = None if record.evaluate_every is None else record.evaluate_every * unit
        dtype = getattr(torch, setup.dtype)
        rows = -(-setup.steps // self.every)
        self.steps = torch.empty(rows, len(STEP_METRICS), runs, dtype=dtype, device=device)
        self.evaluations: dict[int, torch.Tensor] = {}

    def records(self, step: int) -> bool:
        """Whether the metrics of this step are kept."""
        return step % self.every == 0

    def evaluates(self, step: int) -> bool:
        """Whether the full data set is evaluated before this step."""
        return self.evaluate_every is not None and step % self.evaluate_every == 0

    def add_step(self, step: int, measured: torch.Tensor) -> None:
        """Keep the metrics of one step, without waiting for the device."""
        self.steps[step // self.every] = measured

    def add_evaluation(self, step: int, measured: torch.Tensor) -> None:
        """Keep one evaluation."""
        self.evaluations[step] = measured

    def dataset(self, runs: Sequence[Run], seconds: float, device: str) -> xr.Dataset:
        """Return everything kept as one labelled data set, with its provenance."""
        table = dict(zip(STEP_METRICS, self.steps.permute(1, 2, 0).cpu().numpy(), strict=True))  # (run, step)
        lr = np.array([[run.lr] for run in runs])
        with np.errstate(all="ignore"):  # a run may have left the numbers
            table["elr"] = (lr / table["weight_norm"].astype(float) ** 2).astype(self.setup.dtype)
            table["eff_grad_norm"] = table["weight_norm"] * table["grad_norm"]
        coordinates = {name: ("run", [getattr(run, name) for run in runs]) for name in Run.names()}
        coordinates["run"] = np.arange(len(runs))
        coordinates["step"] = np.arange(len(self.steps)) * self.every
        variables = {name: (("run", "step"), values) for name, values in table.items()}
        if self.evaluations:
            coordinates["eval_step"] = np.array(list(self.evaluations))
            kept = torch.stack(list(self.evaluations.values())).permute(1, 2, 0).cpu().numpy()
            variables |= {name: (("run", "eval_step"), rows) for name, rows in zip(EVALUATIONS, kept, strict=True)}
        dataset = xr.Dataset(variables, coordinates)
        return results.with_provenance(
            dataset,
            self.setup,
            self.record,
            steps_per_epoch=self.steps_per_epoch,
            seconds=seconds,
            device=torch.cuda.get_device_name() if device.startswith("cuda") else device,
            torch_version=str(torch.__version__),
            threads=torch.get_num_threads(),
        )


# ---------------------------------------------------------------- progress


class _Bar:
    """A tqdm bar that looks at the loss only when it is drawn, so that the device is never waited for in between."""

    REDRAWS = 200

    def __init__(self, bar: tqdm, steps: int):
        self.bar, self.stride, self.steps = bar, max(1, steps // self.REDRAWS), steps

    def advance(self, step: int, measured: torch.Tensor | None) -> None:
        """Count one step; now and then redraw."""
        done = step + 1
        if done % self.stride == 0 or done == self.steps:
            if measured is not None:
                self.bar.set_postfix_str(f"loss {float(measured[0].median()):.2g}", refresh=False)
            self.bar.update(done - self.bar.n)


@contextmanager
def _progress_bar(steps: int, show: bool):
    """Yield a progress bar on standard error, or in the file that $PERIODIC_PROGRESS names, for another process."""
    target = os.environ.get("PERIODIC_PROGRESS")
    with open(target, "w", encoding="utf-8") if show and target else nullcontext(sys.stderr) as stream:
        live = target or stream.isatty()  # in a log, a line now and then
        style = {"dynamic_ncols": True} if live else {"mininterval": LOG_SECONDS, "ascii": True, "ncols": 100}
        with tqdm(total=steps, unit="step", file=stream, disable=not show, leave=False, **style) as bar:
            yield _Bar(bar, steps)
