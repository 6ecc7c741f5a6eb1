"""The training loop: R runs as one stacked network, measured at every step that a `Record` names.

All trained weights of all runs are one flat tensor (runs, weights), the scale-invariant ones first, so that a norm, an
angle or an update is one operation for the whole stack. Inside a step nothing waits for the device; on CUDA a step is
one captured graph. Randomness is a function of (seed, step), so that training can stop and go on anywhere.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from periodic_lib import datasets, metrics, networks, optimizers, results
from periodic_lib.config import ConfigError, Record, Run, Setup, Unfinished, number
from periodic_lib.glossary import defined

STEP_METRICS = ("train_loss", "weight_norm", "grad_norm", "angular_update")
PART_METRICS = STEP_METRICS[1:]  # what is measured of a layer or a neuron
EVALUATIONS = ("train_loss_full", "train_error", "test_loss", "test_error")
LOG_SECONDS = 15  # between progress lines in a log
RESUME_SECONDS = 60  # between writes of the resume state
SCHEDULE_CHUNK = 1000  # steps whose learning-rate factors are on the device at once
CURVATURE_EXAMPLES = 2048  # of the training set: all of digits
EVALUATION_SEED = 0  # of the order in which the training set is evaluated
FULL_BATCH_NUMBERS = 2**26  # input numbers of a full batch up to which all runs are stepped at once
SNAPSHOT_BYTES = 4e9  # of all snapshots of a record together


@defined
def train(
    setup: Setup,
    runs: Sequence[Run],
    record: Record | None = None,
    *,
    device: str | None = None,
    progress: bool = True,
    resume: Path | str | None = None,
    budget: float | None = None,
    initial: Mapping[str, object] | None = None,
    batches: object | None = None,
    compiled: bool = False,
) -> xr.Dataset:
    """Train `runs` as one stacked network and return what was measured.

    Parameters
    ----------
    setup, runs, record : what to train (see `Setup`, `Run`, `grid`) and what to keep (default: every step,
        evaluation every 100 steps).
    device : "cpu", "cuda", ...; None takes CUDA where there is one.
    progress : show steps per second, the median loss of the runs, and the time left.
    resume : file for the state of unfinished training, overwritten about every minute. If it is there and belongs to
        the same settings and code, training goes on from it, to the same numbers as if it had never stopped.
    budget : seconds after which training stops, with its state saved in `resume`, by raising `Unfinished`; the next
        call goes on from there. None: no limit.
    initial : initial parameters by name, in PyTorch's layout: shape (runs, *shape), or (*shape) for all runs alike.
        Names that are missing keep their default initialization.
    batches : integer array (steps, batch): the training examples of each step, the same for all runs.
    compiled : pass the loss through `torch.compile` (needs a C++ compiler on a CPU).

    Returns
    -------
    xarray.Dataset with dimensions `run`, `step`, `eval_step`, `curvature_step`, `snapshot_step`;
        coordinates of `run` are the fields of
        `Run`. Of every recorded step t, (run, step):
        `train_loss`: [[train_loss]];
        `weight_norm`: [[weight_norm]];
        `elr`: [[elr]], with the learning rate of the step;
        `grad_norm`: [[grad_norm]];
        `eff_grad_norm`: [[eff_grad_norm]];
        `angular_update`: [[angular_update]], in radians.
        All but the last are of the weights before the step. With `Record.layers`, `Record.neurons`
        norm, gradient norm and angle also have an axis `layer` or `neuron`.
        Shape (run, eval_step): `train_loss_full`, `train_error` over the training set in mini-batches, in training
        mode, and `test_loss`, `test_error` with batch-normalization statistics re-estimated in the same pass.
        Shape (run, curvature_step): `sharpness`, the spherical sharpness (`metrics.sharpness`) of the loss on the
        first 2,048 training examples, as one batch.
        With `Record.snapshot_every`, in float32 whatever the dtype: `direction` (run, snapshot_step, weight), the
        scale-invariant weights over their norm, in the order of the network's parameters, and `test_logits`
        (run, snapshot_step, example, class), evaluated as `test_error` is; `label` (example) are the true classes.
        A step index of S means the weights after S updates. `diverged_at` (run) is the step at which a run left the
        finite numbers; it is frozen from there on, and its values are nan. nan in `diverged_at`: it never did.

    Raises
    ------
    ConfigError : before any training, for a parameter that cannot be used.
    Unfinished : when `budget` is used up.

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
    budget = _checked_budget(budget, resume)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    stack = Stack(setup, list(runs), device, initial, compiled=compiled)
    order = stack.batch_order()
    keep = _Recorder(stack, record, order.steps_per_epoch)
    if batches is not None:
        order = _FixedOrder(batches, stack)
    state = _Resume(Path(resume), stack, keep, (initial, batches)) if resume is not None else None
    called = time.perf_counter()
    started = called - (state.load() if state else 0.0)
    order.seek(stack.steps_done)
    with _progress_bar(setup.steps, stack.steps_done, progress) as bar:
        for step in range(stack.steps_done, setup.steps):
            keep.look_at(step)
            measured = stack.step(order.next(), keep.parts if keep.records(step) else None)
            if keep.records(step):
                keep.add_step(step, *measured)
            bar.advance(step, measured[0])
            if state:
                state.save_now_and_then(time.perf_counter() - started)
                if time.perf_counter() - called > budget and step + 1 < setup.steps:
                    state.save(time.perf_counter() - started)
                    raise Unfinished(step + 1, setup.steps)
        keep.look_at(setup.steps)
    return keep.dataset(seconds=time.perf_counter() - started)


def _checked_budget(budget: object, resume: object) -> float:
    """Return the seconds that training may take."""
    if budget is None:
        return float("inf")
    if resume is None:
        raise ConfigError("`budget` needs `resume`, a file for the state from which the next call goes on.")
    return number("budget", budget, "a positive number of seconds, or None", 0, float("inf"), low_open=True)


class Stack:
    """R runs as one network: `weights` (runs, weights), the scale-invariant ones first, and what is done with them.

    `loss` is the plain function of the weights that everything else follows from; `step` and `evaluate` are the
    operations of training.

    >>> stack = Stack(Setup(width=8, dtype="float64", bn_eps=0), [Run(lr=0.1, weight_decay=0)])
    >>> batch = stack.batch_order().next()
    >>> bool(torch.isclose(stack.loss(3 * stack.weights, batch), stack.loss(stack.weights, batch), rtol=1e-12))
    True
    """

    def __init__(
        self,
        setup: Setup,
        runs: list[Run],
        device: str = "cpu",
        initial: Mapping | None = None,
        compiled: bool = False,
        data: datasets.Data | None = None,
    ):
        if str(device) == "cpu":
            _keep_freed_memory()
        self.setup, self.runs, self.device = setup, runs, device
        self.data = datasets.load(setup, device) if data is None else data.to(device)
        self.network = networks.build(setup, self.data.shape, self.data.classes)
        self._lay_out(self._initial_values(initial or {}))
        n, dtype = self.weights.shape[1], self.weights.dtype
        self.optimizer = optimizers.make(setup, runs, self.n_invariant, n, dtype, device)
        self.seeds = [run.data_seed for run in runs]
        self.steps_done = 0
        self.alive = torch.ones(len(runs), 1, dtype=torch.bool, device=device)
        self.steps_alive = torch.zeros(len(runs), dtype=torch.int64, device=device)
        self._square = torch.tensor([[run.schedule == "constant_elr"] for run in runs], device=device)
        self._keeps_elr = any(run.schedule == "constant_elr" for run in runs)
        self._project()
        self.first_norm = metrics.norm(self.invariant).unsqueeze(1).clone()
        self.rate = torch.zeros(len(runs), 1, dtype=dtype, device=device)  # learning rate of the last step
        self._factors = torch.empty(0)
        self._one = torch.ones_like(self.rate)
        self._constant = all(run.schedule in ("constant", "constant_elr") and not run.warmup for run in runs)
        self._loss = torch.compile(self._mean_loss) if compiled else self._mean_loss
        self._graphs: dict[int, _Graph] = {}

    def _initial_values(self, given: Mapping) -> networks.Tensors:
        names = [parameter.name for parameter in self.network.parameters]
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise ConfigError(f"`initial` has unknown parameters {unknown}; the network has {names}.")
        seeds = [run.init_seed for run in self.runs]
        drawn = {seed: self.network.initialize(seed) for seed in set(seeds)}
        values = {}
        for parameter in self.network.parameters:
            value = torch.stack([drawn[seed][parameter.name] for seed in seeds])  # (runs, *shape)
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

    def _lay_out(self, values: networks.Tensors) -> None:
        """Put the trained parameters into one flat tensor, scale-invariant first, and keep the rest as it is."""
        invariant = [p for p in self.network.parameters if p.scale_invariant]
        others = [p for p in self.network.parameters if not p.scale_invariant] if self.setup.train_others else []
        self.shapes = {p.name: p.shape for p in invariant}
        self.trained = {p.name: p.shape for p in [*invariant, *others]}
        self.sizes = [int(np.prod(shape)) for shape in self.trained.values()]
        self.layer_sizes = self.sizes[: len(self.shapes)]
        self.n_invariant = sum(self.layer_sizes)
        flat = torch.cat([values.pop(name).flatten(1) for name in self.trained], dim=1)
        scale = torch.tensor([[run.init_scale] for run in self.runs], dtype=flat.dtype, device=self.device)
        flat[:, : self.n_invariant] *= scale
        self.weights = flat.requires_grad_()  # (runs, weights)
        self.fixed = values

    @property
    def invariant(self) -> torch.Tensor:
        """The scale-invariant weights, shape (runs, n_invariant); a view."""
        return self.weights.detach()[:, : self.n_invariant]

    @torch.no_grad()
    def _project(self) -> None:
        if self.setup.fixed_norm is not None:
            scope = self.setup.fixed_norm_scope
            optimizers.project(self.weights, self.layer_sizes, self.n_invariant, self.setup.fixed_norm, scope)

    def batch_order(self) -> datasets.BatchOrder:
        """Return the order that the runs' data seeds give."""
        examples, setup = len(self.data.x_train), self.setup
        return datasets.BatchOrder(self.seeds, examples, setup.batch_size, setup.drop_last, self.device)

    def values(self, weights: torch.Tensor, fixed: networks.Tensors | None = None) -> networks.Tensors:
        """Return all parameters as views (runs, *shape) of the flat weights and the fixed rest (None: of all runs)."""
        parts = weights.split(self.sizes, dim=1)
        views = {
            name: part.unflatten(1, shape) for (name, shape), part in zip(self.trained.items(), parts, strict=True)
        }
        return {**views, **(self.fixed if fixed is None else fixed)}

    # -- one step

    def loss(self, weights: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return the mini-batch losses (runs,) at `weights` (runs, weights) on the examples `index` (runs, batch)."""
        return self._mean_loss(weights, *self._examples(index), self.fixed)

    def _examples(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pictures (runs, batch, channels, height, width) and labels (runs, batch) of the examples `index`."""
        x = self.data.x_train.index_select(0, index.flatten())  # whole rows: three times as fast as x_train[index]
        return x.unflatten(0, index.shape), self.data.y_train[index]

    def _mean_loss(self, weights, x, labels, fixed) -> torch.Tensor:
        with self._arithmetic():
            return networks.cross_entropy(self.network.logits(self.values(weights, fixed), x), labels)

    def _arithmetic(self):
        """Return the context in which matrix products round as `Setup.matmul` says, and only inside."""
        kind = str(self.device).split(":")[0]
        if self.setup.matmul == "bfloat16":
            return torch.autocast(kind, dtype=torch.bfloat16)
        return nullcontext() if kind == "cpu" else _tf32(self.setup.matmul == "tf32")

    def step(self, index: torch.Tensor, parts: tuple[str, ...] | None = ()) -> tuple[torch.Tensor, ...]:
        """Update all runs on the examples `index` (runs, batch); return what was measured.

        `parts`: None to measure nothing but the loss; else of which parts ("layer", "neuron") to measure, too.
        Returns `STEP_METRICS` (metrics, runs), or the loss alone, (1, runs); then for each part `PART_METRICS`
        (metrics, runs, parts).
        """
        x, labels = self._examples(index)
        if self.setup.augment:
            x = datasets.augment(x, self.seeds, self.steps_done, self.data.black)
        factor = self._one if self._constant else self._factor()
        self.steps_done += 1
        if str(self.device).startswith("cuda") and not parts:
            size = index.shape[1]
            if size not in self._graphs:
                self._graphs[size] = _Graph(self, x, labels, factor)
            return (self._graphs[size](x, labels, factor),)
        return self._update(x, labels, factor, parts)

    def _factor(self) -> torch.Tensor:
        """Return the schedule's factors of this step, (runs, 1)."""
        row = self.steps_done % SCHEDULE_CHUNK
        if row == 0 or not len(self._factors):
            start = self.steps_done - row
            stop = min(start + SCHEDULE_CHUNK, max(self.setup.steps, self.steps_done + 1))
            table = optimizers.schedule_factors(self.runs, self.setup.steps, start, stop)
            self._factors = torch.as_tensor(table, dtype=self.weights.dtype, device=self.device)
        return self._factors[min(row, len(self._factors) - 1)].unsqueeze(1)

    def _update(self, x, labels, factor, parts: tuple[str, ...] | None) -> tuple[torch.Tensor, ...]:
        """Do one step on given examples: device operations only, so that it can be captured as a graph."""
        loss, gradient = self._loss_and_gradient(x, labels)
        with torch.no_grad():
            w, g = self.invariant, gradient[:, : self.n_invariant]
            rho = metrics.norm(w) if parts is not None or self._keeps_elr else None
            if self._keeps_elr:
                factor = torch.where(self._square, factor * (rho.unsqueeze(1) / self.first_norm) ** 2, factor)
            torch.mul(self.optimizer.lr, factor, out=self.rate)
            new = self.optimizer.step(self.weights, gradient, factor)
            moved = new[:, : self.n_invariant]
            turn = metrics.norm(moved) if parts is None else metrics.angle(w, moved, rho)
            self._freeze(loss, turn, new)
            measured = loss[None].clone() if parts is None else torch.stack([loss, rho, metrics.norm(g), turn])
            measured.masked_fill_(self.alive.logical_not().T, torch.nan)
            pieces = tuple(self._of_parts(part, w, g, moved) for part in parts or ())
            self._accept(new)
            self._project()
        return measured, *pieces

    def _loss_and_gradient(self, x, labels) -> tuple[torch.Tensor, torch.Tensor]:
        """Return losses (runs,) and gradient (runs, weights); a large full batch is done run by run, to save memory.

        Runs are independent, so that the numbers are the same. (Batch normalization needs the whole batch of a run at
        once: the batch itself cannot be cut.)
        """
        if self.setup.batch_size is not None or x.numel() <= FULL_BATCH_NUMBERS or len(self.runs) == 1:
            loss = self._loss(self.weights, x, labels, self.fixed)
            return loss.detach(), torch.autograd.grad(loss.sum(), self.weights)[0]
        losses, gradients = [], []
        for run in range(len(self.runs)):
            one = slice(run, run + 1)
            w = self.weights.detach()[one].requires_grad_()
            loss = self._loss(w, x[one], labels[one], {name: value[one] for name, value in self.fixed.items()})
            losses.append(loss.detach())
            gradients.append(torch.autograd.grad(loss.sum(), w)[0])
        return torch.cat(losses), torch.cat(gradients)

    def _freeze(self, loss: torch.Tensor, turn: torch.Tensor, new: torch.Tensor) -> None:
        """Freeze, for good, the runs whose loss or new weights are not finite, and note the step.

        `turn`, the angle or the new norm, is finite only if all new scale-invariant weights are.
        """
        finite = torch.isfinite(loss + turn)
        if new.shape[1] > self.n_invariant:
            finite &= torch.isfinite(metrics.norm(new[:, self.n_invariant :]))
        self.alive.logical_and_(finite.unsqueeze(1))
        self.steps_alive.add_(self.alive.squeeze(1))

    def _accept(self, new: torch.Tensor) -> None:
        """Give the runs that are alive their new weights."""
        if self.alive.is_cpu and self.alive.all():  # elsewhere the question would wait for the device
            self.weights.copy_(new)
        else:
            torch.where(self.alive, new, self.weights, out=self.weights)

    def _of_parts(self, part: str, w, g, new) -> torch.Tensor:
        """Return `PART_METRICS` of every layer or neuron, (metrics, runs, parts)."""
        if part == "layer":
            of_each = partial(metrics.by_layer, sizes=self.layer_sizes)
        else:
            of_each = partial(metrics.by_neuron, shapes=list(self.shapes.values()), sizes=self.layer_sizes)
        pieces = [(metrics.norm, w), (metrics.norm, g), (metrics.angle, w, new)]
        return torch.stack([of_each(function, *vectors) for function, *vectors in pieces])

    # -- measurements that leave the trajectory alone

    @torch.no_grad()
    def evaluate(self) -> torch.Tensor:
        """Return `EVALUATIONS`, shape (evaluations, runs), without touching the trajectory."""
        values, statistics = self.values(self.weights), networks.Statistics()
        train = self._mean_over(self.data.y_train, self._collect(values, statistics))
        return torch.stack([*train, *self._mean_over(self.data.y_test, self._apply(values, statistics))])

    @torch.no_grad()
    def predict(self) -> torch.Tensor:
        """Return the logits of the test set, (runs, examples, classes), as `evaluate` judges them."""
        values, statistics = self.values(self.weights), networks.Statistics()
        for _ in self._collect(values, statistics):
            pass
        return torch.cat([logits for _, logits in self._apply(values, statistics)], dim=2).transpose(1, 2)

    def _mean_over(self, y: torch.Tensor, predictions: Iterable) -> torch.Tensor:
        """Return mean loss and error, (2, runs), of (index, logits) against the labels `y`."""
        sums, seen = torch.zeros(2, len(self.runs), dtype=self.weights.dtype, device=self.device), 0
        for index, logits in predictions:
            labels = y[index].expand(len(self.runs), -1)  # (runs, batch)
            wrong = (logits.argmax(dim=1) != labels).to(sums.dtype).mean(dim=1)
            sums += len(index) * torch.stack([networks.cross_entropy(logits, labels), wrong])
            seen += len(index)
        return sums / seen

    def _collect(self, values, statistics: networks.Statistics) -> Iterator[tuple]:
        """Yield (index, logits) of the training set's mini-batches, in training mode, and collect their statistics."""
        examples, size = len(self.data.x_train), self.setup.batch_size or len(self.data.x_train)
        order = datasets.BatchOrder([EVALUATION_SEED], examples, size, self.setup.drop_last, self.device)
        for _ in range(order.steps_per_epoch):
            index = order.next()[0]
            yield index, self._logits(self.data.x_train[index], values, statistics, statistics.collect)
            statistics.batches += 1

    def _apply(self, values, statistics: networks.Statistics) -> Iterator[tuple]:
        """Yield (index, logits) of the test set, normalized by the statistics that were collected."""
        size = self.setup.batch_size or len(self.data.x_train)
        for index in torch.arange(len(self.data.x_test), device=self.device).split(size):
            yield index, self._logits(self.data.x_test[index], values, statistics, statistics.apply)

    def _logits(self, pictures, values, statistics: networks.Statistics, how: Callable) -> torch.Tensor:
        """Return the logits (runs, classes, batch) of all runs on the same pictures (batch, ...)."""
        statistics.begin()
        with self._arithmetic():
            return self.network.logits(values, pictures.expand(len(self.runs), *pictures.shape), how)

    def direction(self) -> torch.Tensor:
        """Return the scale-invariant weights over their norm, (runs, n_invariant)."""
        return self.invariant / metrics.norm(self.invariant).unsqueeze(1)

    def sharpness(self) -> torch.Tensor:
        """Return the spherical sharpness of every run, (runs,), over the first 2,048 training examples."""
        x, labels = self.data.x_train[None, :CURVATURE_EXAMPLES], self.data.y_train[None, :CURVATURE_EXAMPLES]
        tops = []
        for run in range(len(self.runs)):
            one = slice(run, run + 1)
            w = self.weights.detach()[one]
            rest = w[:, self.n_invariant :]
            fixed = {name: value[one] for name, value in self.fixed.items()}

            def loss(v, rest=rest, fixed=fixed):
                return self._mean_loss(torch.cat([v[None], rest], dim=1), x, labels, fixed).sum()

            finite = bool(torch.isfinite(w).all())
            tops.append(metrics.sharpness(loss, w[0, : self.n_invariant]) if finite else float("nan"))
        return torch.tensor(tops, dtype=self.weights.dtype)

    # -- state

    def state(self) -> dict[str, torch.Tensor]:
        """Return everything that changes during training."""
        own = {"weights": self.weights.detach(), "alive": self.alive, "steps_alive": self.steps_alive}
        own |= {"steps_done": torch.tensor(self.steps_done), "first_norm": self.first_norm}
        return own | {f"optimizer_{name}": value for name, value in self.optimizer.state().items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go to a state that `state` returned."""
        mine = self.state()
        prefix = "optimizer_"
        for name, value in state.items():
            if not name.startswith(prefix):
                mine[name].copy_(value)
        self.optimizer.load_state({n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)})
        self.steps_done = int(state["steps_done"])
        self._factors = torch.empty(0)


@contextmanager
def _tf32(allowed: bool):
    """Allow, or forbid, CUDA to round to tf32, inside only."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = allowed
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


@cache
def _keep_freed_memory() -> None:
    """Ask glibc not to give freed memory back to the system between steps: getting it again costs a third of a step.

    A step of a convolutional network frees and allocates hundreds of megabytes; by default the system takes them back
    and hands them out again page by page, zeroed. Where there is no glibc, nothing is done.
    """
    trim_threshold, mmap_max = -1, -4  # numbers of glibc's <malloc.h>
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)  # large tensors come from the heap, too
        libc.mallopt(trim_threshold, 2**31 - 1)
    except (OSError, AttributeError, TypeError):
        return


class _Graph:
    """One step as a CUDA graph: fixed input tensors, one launch a step. Capturing leaves the state as it was."""

    WARM_UP = 3

    def __init__(self, stack: Stack, *inputs: torch.Tensor):
        self.inputs = [value.clone() for value in inputs]
        before = {name: value.clone() for name, value in stack.state().items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.WARM_UP):
                stack._update(*self.inputs, ())
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            (self.measured,) = stack._update(*self.inputs, ())
        stack.load_state(before)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        for mine, value in zip(self.inputs, inputs, strict=True):
            mine.copy_(value)
        self.graph.replay()
        return self.measured


class _FixedOrder:
    """An explicit order of examples, the same for every run."""

    def __init__(self, batches: object, stack: Stack):
        index = torch.as_tensor(np.asarray(batches), device=stack.device)
        examples, steps = len(stack.data.x_train), stack.setup.steps
        if index.ndim != 2 or len(index) < steps or index.is_floating_point():
            raise ConfigError(
                f"`batches` must be an integer array (steps, batch) with at least {steps} rows; "
                f"got shape {tuple(index.shape)} of {index.dtype}."
            )
        if index.min() < 0 or index.max() >= examples:
            raise ConfigError(
                f"`batches` must index the {examples} training examples from 0; got {int(index.min())} to "
                f"{int(index.max())}."
            )
        self._index, self._runs, self._step = index, len(stack.runs), 0

    def seek(self, step: int) -> None:
        """Go to the batch of a step."""
        self._step = step

    def next(self) -> torch.Tensor:
        """Return the indices of the next mini-batch, shape (runs, batch)."""
        self._step += 1
        return self._index[self._step - 1].expand(self._runs, -1)


# ---------------------------------------------------------------- recording


class _Recorder:
    """Preallocated tables of what a `Record` asks for, and their labelled form."""

    def __init__(self, stack: Stack, record: Record, steps_per_epoch: int):
        self.stack, self.record, self.steps_per_epoch = stack, record, steps_per_epoch
        unit = steps_per_epoch if record.unit == "epoch" else 1
        self.every = record.every * unit
        self.evaluate_every = record.evaluate_every and record.evaluate_every * unit
        self.curvature_every = record.curvature_every and record.curvature_every * unit
        self.snapshot_every = record.snapshot_every and record.snapshot_every * unit
        self._check_snapshots()
        self.parts = tuple(name for name, asked in (("layer", record.layers), ("neuron", record.neurons)) if asked)
        rows, runs = -(-stack.setup.steps // self.every), len(stack.runs)
        neurons = sum(shape[0] for shape in stack.shapes.values())
        lengths = {"layer": len(stack.shapes), "neuron": neurons}

        def table(*shape: int) -> torch.Tensor:
            return torch.zeros(rows, *shape, dtype=stack.weights.dtype, device=stack.device)

        self.tables = {"step": table(len(STEP_METRICS), runs), "rate": table(runs)}
        self.tables |= {part: table(len(PART_METRICS), runs, lengths[part]) for part in self.parts}
        self.looks = [  # what is kept, step by step, how often, and how it is measured
            ("evaluations", self.evaluate_every, stack.evaluate),
            ("curvatures", self.curvature_every, stack.sharpness),
            ("directions", self.snapshot_every, lambda: stack.direction().float().cpu()),
            ("predictions", self.snapshot_every, lambda: stack.predict().float().cpu()),
        ]
        self.seen: dict[str, dict[int, torch.Tensor]] = {name: {} for name, _, _ in self.looks}

    def _check_snapshots(self) -> None:
        """Raise `ConfigError` if the snapshots would not fit into memory."""
        if not self.snapshot_every:
            return
        stack = self.stack
        numbers = stack.n_invariant + len(stack.data.y_test) * stack.data.classes  # of a snapshot of a run
        snapshots = len(stack.runs) * (-(-stack.setup.steps // self.snapshot_every) + 1)
        if 4 * numbers * snapshots > SNAPSHOT_BYTES:
            raise ConfigError(
                f"`snapshot_every` must leave at most {SNAPSHOT_BYTES / 1e9:g} GB of snapshots; got "
                f"{self.record.snapshot_every}: {snapshots} of {4 * numbers / 1e6:.2g} MB. Take fewer."
            )

    def records(self, step: int) -> bool:
        """Whether the metrics of this step are kept."""
        return step % self.every == 0

    def look_at(self, step: int) -> None:
        """Evaluate, measure the curvature, keep a snapshot before this step, if asked for, and after the last."""
        last = step == self.stack.setup.steps
        for name, every, measure in self.looks:
            if every and (last or step % every == 0) and step not in self.seen[name]:
                self.seen[name][step] = measure()

    def add_step(self, step: int, measured: torch.Tensor, *parts: torch.Tensor) -> None:
        """Keep the metrics of one step, without waiting for the device."""
        row = step // self.every
        self.tables["step"][row] = measured
        self.tables["rate"][row] = self.stack.rate.squeeze(1)
        for part, values in zip(self.parts, parts, strict=True):
            self.tables[part][row] = values

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what was kept so far, for a resume state."""
        rows = -(-self.stack.steps_done // self.every)
        kept = {f"table_{name}": table[:rows].cpu().numpy() for name, table in self.tables.items()}
        for name, looks in self.seen.items():
            kept[f"{name}_steps"] = np.array(list(looks), dtype=np.int64)
            kept[name] = torch.stack(list(looks.values())).cpu().numpy() if looks else np.empty(0)
        return kept

    def load_arrays(self, kept: Mapping[str, np.ndarray]) -> None:
        """Take back what `arrays` returned."""
        for name, table in self.tables.items():
            rows = kept[f"table_{name}"]
            table[: len(rows)] = torch.as_tensor(rows)
        for name, looks in self.seen.items():
            device = self.stack.device if name == "evaluations" else "cpu"  # where each is kept
            pairs = zip(kept[f"{name}_steps"].tolist(), kept[name], strict=False)
            looks.update({step: torch.as_tensor(row, device=device) for step, row in pairs})

    def dataset(self, seconds: float) -> xr.Dataset:
        """Return everything kept as one labelled data set, with its provenance."""
        stack, runs = self.stack, self.stack.runs
        coordinates = {"run": np.arange(len(runs)), "step": np.arange(len(self.tables["step"])) * self.every}
        coordinates |= {name: ("run", _column(runs, name)) for name in Run.names()}
        variables = {name: (("run", "step"), values) for name, values in self._step_metrics().items()}
        for part in self.parts:
            coordinates[part] = self._part_names(part)
            values = self.tables[part].permute(1, 2, 0, 3).cpu().numpy()  # (metrics, run, step, part)
            names = (f"{part}_{name}" for name in PART_METRICS)
            variables |= {name: (("run", "step", part), rows) for name, rows in zip(names, values, strict=True)}
        seen = {name: torch.stack(list(kept.values())).cpu().numpy() for name, kept in self.seen.items() if kept}
        if self.evaluate_every:
            coordinates["eval_step"] = np.array(list(self.seen["evaluations"]))
            kept = np.moveaxis(seen["evaluations"], 0, -1)  # (evaluations, run, eval_step)
            variables |= {n: (("run", "eval_step"), rows) for n, rows in zip(EVALUATIONS, kept, strict=True)}
        if self.curvature_every:
            coordinates["curvature_step"] = np.array(list(self.seen["curvatures"]))
            variables["sharpness"] = (("run", "curvature_step"), seen["curvatures"].T)
        if self.snapshot_every:
            coordinates["snapshot_step"] = np.array(list(self.seen["directions"]))
            coordinates["label"] = ("example", stack.data.y_test.cpu().numpy())
            variables["direction"] = (("run", "snapshot_step", "weight"), seen["directions"].swapaxes(0, 1))
            logits = seen["predictions"].swapaxes(0, 1)
            variables["test_logits"] = (("run", "snapshot_step", "example", "class"), logits)
        alive, lived = stack.alive.squeeze(1).cpu().numpy(), stack.steps_alive.cpu().numpy()
        variables["diverged_at"] = ("run", np.where(alive, np.nan, lived))
        cuda = str(stack.device).startswith("cuda")
        return results.with_provenance(
            xr.Dataset(variables, coordinates),
            stack.setup,
            runs,
            self.record,
            steps_per_epoch=self.steps_per_epoch,
            seconds=seconds,
            device=torch.cuda.get_device_name() if cuda else str(stack.device),
            torch_version=str(torch.__version__),
            threads=torch.get_num_threads(),
        )

    def _step_metrics(self) -> dict[str, np.ndarray]:
        """Return the recorded metrics and those that follow from them, shape (run, step)."""
        table = dict(zip(STEP_METRICS, self.tables["step"].permute(1, 2, 0).cpu().numpy(), strict=True))
        rate = self.tables["rate"].T.cpu().numpy().astype(float)
        with np.errstate(all="ignore"):  # a run may have left the numbers
            table["elr"] = (rate / table["weight_norm"].astype(float) ** 2).astype(self.stack.setup.dtype)
            table["eff_grad_norm"] = table["weight_norm"] * table["grad_norm"]
        return table

    def _part_names(self, part: str) -> list[str]:
        shapes = self.stack.shapes
        if part == "layer":
            return list(shapes)
        return [f"{name}[{row}]" for name, shape in shapes.items() for row in range(shape[0])]


def _column(runs: Sequence[Run], name: str) -> list:
    """Return one parameter of all runs; a missing number is nan, as NetCDF knows no None."""
    values = [getattr(run, name) for run in runs]
    return [np.nan if value is None else value for value in values]


# ---------------------------------------------------------------- resuming


class _Resume:
    """The state of unfinished training in one file, overwritten now and then, all or nothing, with a checksum."""

    def __init__(self, path: Path, stack: Stack, keep: _Recorder, explicit: tuple):
        self.path, self.stack, self.keep = path, stack, keep
        facts = [results.settings_of(stack.setup, stack.runs, keep.record), results.code_digest(), str(stack.device)]
        self.key = results.digest([*facts, _fingerprint(explicit), str(torch.__version__)])
        self.last = time.monotonic()

    def load(self) -> float:
        """Go to the stored state if there is one of the same training; return the seconds that it took so far."""
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                content = {name: stored[name] for name in stored.files}
        except FileNotFoundError:
            return 0.0
        except Exception:  # a damaged archive raises many kinds
            content = {}
        if str(content.pop("key", "")) != self.key or str(content.pop("sha256", "")) != _fingerprint(content):
            return 0.0
        self.keep.load_arrays({name: value for name, value in content.items() if not name.startswith("state_")})
        state = {n.removeprefix("state_"): torch.as_tensor(v) for n, v in content.items() if n.startswith("state_")}
        self.stack.load_state(state)
        return float(content["seconds"])

    def save_now_and_then(self, seconds: float) -> None:
        """Write the state if the last time is long ago."""
        if time.monotonic() - self.last >= RESUME_SECONDS:
            self.save(seconds)
            self.last = time.monotonic()

    def save(self, seconds: float) -> None:
        """Write the state."""
        content = {f"state_{name}": value.cpu().numpy() for name, value in self.stack.state().items()}
        content |= self.keep.arrays() | {"seconds": np.array(seconds)}
        with results.all_or_nothing(self.path) as path, path.open("wb") as stream:
            np.savez(stream, key=self.key, sha256=_fingerprint(content), **content)


def _fingerprint(content: object) -> str:
    """Return the SHA-256 of nested dictionaries, sequences and arrays."""
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, Mapping):
            for name in sorted(value):
                digest.update(str(name).encode())
                add(value[name])
        elif isinstance(value, tuple):
            for item in value:
                add(item)
        elif value is None:
            digest.update(b"none")
        else:
            array = np.ascontiguousarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
            digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())

    add(content)
    return digest.hexdigest()


# ---------------------------------------------------------------- progress


class _Bar:
    """A tqdm bar that looks at the loss only when it is drawn, so that the device is never waited for in between."""

    REDRAWS = 200

    def __init__(self, bar: tqdm, steps: int):
        self.bar, self.stride, self.steps = bar, max(1, steps // self.REDRAWS), steps

    def advance(self, step: int, measured: torch.Tensor) -> None:
        """Count one step; now and then redraw."""
        done = step + 1
        if done % self.stride == 0 or done == self.steps:
            if not self.bar.disable:
                self.bar.set_postfix_str(f"loss {float(measured[0].nanmedian()):.2g}", refresh=False)
            self.bar.update(done - self.bar.n)


@contextmanager
def _progress_bar(steps: int, done: int, show: bool):
    """Yield a progress bar on standard error, or in the file that $PERIODIC_PROGRESS names, for another process."""
    target = os.environ.get("PERIODIC_PROGRESS")
    with open(target, "w", encoding="utf-8") if show and target else nullcontext(sys.stderr) as stream:
        live = target or stream.isatty()  # in a log, a line now and then
        style = {"dynamic_ncols": True} if live else {"mininterval": LOG_SECONDS, "ascii": True, "ncols": 100}
        options = {"total": steps, "initial": done, "unit": "step", "disable": not show, "leave": False}
        with tqdm(file=stream, **options, **style) as bar:
            yield _Bar(bar, steps)
