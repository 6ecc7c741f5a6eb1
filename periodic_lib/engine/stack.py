"""R runs as one network: loss, step, evaluation, state; on CUDA a step is one captured graph.

All trained weights of all runs are one flat tensor (runs, weights), the scale-invariant ones first,
so that a norm, an angle or an update is one operation for the whole stack. Inside a step nothing
waits for the device. Randomness is a function of (seed, step), so that training can stop and go on
anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch

from periodic_lib import outside
from periodic_lib.config import Run, Setup
from periodic_lib.engine import batches, datasets, devices, losses, metrics, networks, optimizers
from periodic_lib.engine.evaluation import Evaluation
from periodic_lib.engine.guards import Guards
from periodic_lib.project import ConfigError

SCHEDULE_CHUNK = 1000  # steps whose learning-rate factors are on the device at once
WEIGHT_COPIES = 6  # drawn, weights, gradient, new weights, the optimizer's two
FULL_BATCH_NUMBERS = 2**26  # input numbers of a full batch up to which all runs are stepped at once


class Stack(Evaluation):
    """R runs as one network: `weights` (runs, weights), the scale-invariant ones first, and what is
    done with them.

    `loss` is the plain function of the weights that everything else follows from; `step` and
    `evaluate` are the operations of training.

    >>> stack = Stack(Setup(width=8, dtype="float64", bn_eps=0), [Run(lr=0.1, weight_decay=0)])
    >>> batch = stack.batch_order().next()
    >>> before, after = (stack.loss(c * stack.weights, batch) for c in (1, 3))
    >>> bool(torch.isclose(after, before, rtol=1e-12))
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
            devices.keep_freed_memory()
        self.setup, self.runs, self.device = setup, runs, device
        self.data = datasets.load(setup, device) if data is None else data.to(device)
        self.network = networks.build(setup, self.data.shape, self.data.classes)
        self.loss_of, self.labels = losses.LOSSES[setup.loss], self.data.y_train
        self._check_memory()
        self._lay_out(self._initial_values(initial or {}))
        n, dtype = self.weights.shape[1], self.weights.dtype
        self.optimizer = optimizers.make(setup, runs, self.n_invariant, n, dtype, device)
        self.seeds = [run.data_seed for run in runs]
        self.steps_done = self._task = 0
        self.alive = torch.ones(len(runs), 1, dtype=torch.bool, device=device)
        self.steps_alive = torch.zeros(len(runs), dtype=torch.int64, device=device)
        schedules = {run.schedule for run in runs}
        keeps = torch.tensor([[run.schedule == "constant_elr"] for run in runs], device=device)
        self._keeps_elr = keeps if "constant_elr" in schedules else None
        self._project()
        self.changes = optimizers.Changes(self.optimizer, runs)
        self.guards = Guards(runs, dtype, device)
        self.first_norm = metrics.norm(self.invariant).unsqueeze(1).clone()
        self.rate = torch.zeros_like(self.first_norm)  # learning rate of the last step
        self._factors = torch.empty(0)
        self._one = torch.ones_like(self.rate)
        warm = any(run.warmup for run in runs)
        self._constant = schedules <= {"constant", "constant_elr"} and not warm
        self._loss = torch.compile(self._mean_loss) if compiled else self._mean_loss
        self._graphs: dict[int, devices.Graph] = {}

    def _check_memory(self) -> None:
        """Raise `ConfigError` unless the weights fit into memory with all that a step makes."""
        weights = sum(int(np.prod(one.shape, dtype=object)) for one in self.network.parameters)
        runs, width = len(self.runs), self.setup.width
        outside.require_memory(
            WEIGHT_COPIES * runs * weights * getattr(torch, self.setup.dtype).itemsize,
            f"a stack of {runs} networks of {weights:,} weights",
            f"Take a smaller `width` than {width}, or fewer runs at once.",
        )

    def _initial_values(self, given: Mapping) -> networks.Tensors:
        names = [parameter.name for parameter in self.network.parameters]
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise ConfigError(
                f"`initial` has unknown parameters {unknown}; the network has {names}."
            )
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
            values[parameter.name] = value.to(self.device, getattr(torch, self.setup.dtype))
        return values

    def _lay_out(self, values: networks.Tensors) -> None:
        """Put the trained parameters into one flat tensor, scale-invariant first, and keep the rest
        as it is.
        """
        parameters = self.network.parameters
        self.shapes = {p.name: p.shape for p in parameters if p.scale_invariant or p.followed}
        others = {p.name: p.shape for p in parameters if p.name not in self.shapes}
        self.trained = self.shapes | others if self.setup.train_others else self.shapes
        self.sizes = [int(np.prod(shape)) for shape in self.trained.values()]
        self.layer_sizes = self.sizes[: len(self.shapes)]
        self.n_invariant = sum(self.layer_sizes)
        flat = torch.cat([values.pop(name).flatten(1) for name in self.trained], dim=1)
        flat[:, : self.n_invariant] *= flat.new_tensor([[run.init_scale] for run in self.runs])
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
            optimizers.project(
                self.weights, self.layer_sizes, self.n_invariant, self.setup.fixed_norm, scope
            )

    def batch_order(self) -> batches.BatchOrder:
        """Return the order that the runs' data seeds give."""
        examples, setup = len(self.data.x_train), self.setup
        return batches.BatchOrder(
            self.seeds, examples, setup.batch_size, setup.drop_last, self.device
        )

    def values(
        self, weights: torch.Tensor, fixed: networks.Tensors | None = None
    ) -> networks.Tensors:
        """Return all parameters as views (runs, *shape) of the flat weights and the fixed rest
        (None: of all runs).
        """
        parts = weights.split(self.sizes, dim=1)
        views = {
            name: part.unflatten(1, shape)
            for (name, shape), part in zip(self.trained.items(), parts, strict=True)
        }
        return {**views, **(self.fixed if fixed is None else fixed)}

    # -- one step

    def loss(self, weights: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return the mini-batch losses (runs,) at `weights` (runs, weights) on the examples `index`
        (runs, batch).
        """
        return self._mean_loss(weights, *self._examples(index), self.fixed)

    def _examples(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pictures (runs, batch, channels, height, width) and labels (runs, batch) of the
        examples `index`.
        """
        # whole rows: three times as fast as x_train[index]
        x = self.data.x_train.index_select(0, index.flatten())
        return x.unflatten(0, index.shape), self.labels[index]

    def _mean_loss(self, weights, x, labels, fixed) -> torch.Tensor:
        with self._autocast():
            return self.loss_of(self.network.logits(self.values(weights, fixed), x), labels)

    def _autocast(self):
        """Return the context in which a forward pass rounds to bfloat16, if `Setup.matmul` asks for
        it.
        """
        if self.setup.matmul != "bfloat16":
            return nullcontext()
        return torch.autocast(self._kind, dtype=torch.bfloat16)

    def _rounding(self):
        """Return the context of everything that is computed on CUDA, forward and backward.

        A convolution's backward pass reads the flags when it runs, not when the forward pass did.
        """
        if self._kind == "cpu":
            return nullcontext()
        return devices.cuda_flags(tf32=self.setup.matmul == "tf32")

    @property
    def _kind(self) -> str:
        return str(self.device).split(":")[0]

    def step(
        self, index: torch.Tensor, parts: tuple[str, ...] | None = ()
    ) -> tuple[torch.Tensor, ...]:
        """Update all runs on the examples `index` (runs, batch); return what was measured.

        `parts`: None to measure nothing but the loss; else "layer", "neuron" or "batch", to measure
        these, too. Returns `metrics.measures("step")`, (measures, runs), or the loss alone, (1,
        runs); then for each part what `_of_parts` returns.
        """
        self._reshuffle(self.steps_done)
        x, labels = self._examples(index)
        if self.setup.augment:
            x = batches.augment(x, self.seeds, self.steps_done, self.data.black)
        if self.setup.fresh_label_noise:
            noise = self.setup.fresh_label_noise, self.data.classes
            labels = batches.with_fresh_noise(labels, self.seeds, self.steps_done, *noise)
        factor = self._one if self._constant else self._factor()
        self.changes.before(self.steps_done, self.weights, self.n_invariant)
        self.steps_done += 1
        if self._kind == "cuda" and not parts:
            size = index.shape[1]
            if size not in self._graphs:
                self._graphs[size] = devices.Graph(self, x, labels, factor)
            return (self._graphs[size](x, labels, factor),)
        return self._update(x, labels, factor, parts)

    def _reshuffle(self, step: int) -> None:
        """Let the training labels change places if this step begins a new task."""
        task, given = step // (self.setup.reshuffle_every or step + 1), self.data.y_train
        if task != self._task:
            self._task = task
            order = np.random.default_rng([self.setup.sample_seed, task]).permutation(len(given))
            self.labels = given[torch.as_tensor(order, device=given.device)]

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
        """Do one step on given examples: device operations only, so that it can be captured as a
        graph.
        """
        loss, gradient = self._loss_and_gradient(x, labels)
        curved = self._batch_sharpness(x, labels) if parts and "batch" in parts else None
        with torch.no_grad():
            w, g = self.invariant, gradient[:, : self.n_invariant]
            factor = self._scheduled(factor)
            torch.mul(self.optimizer.lr, factor, out=self.rate)
            new = self.optimizer.step(self.weights, self.guards.clipped(gradient), factor)
            new = self.guards.kept(self.weights, new, gradient)
            step = metrics.Step(w, g, new[:, : self.n_invariant], loss, self.rate.squeeze(1))
            step.batch_sharpness = curved
            moved = metrics.norm(step.new) if parts is None else step.angular_update
            self._freeze(loss, moved, new)
            measured = self._measured(step, parts)
            self._accept(new)
            self._project()
            self.changes.after(self.weights, self.n_invariant)
        return measured

    def _scheduled(self, factor: torch.Tensor) -> torch.Tensor:
        """Return the factors on the learning rates, those that keep the effective learning rate
        included.
        """
        if self._keeps_elr is None:
            return factor
        grown = (metrics.norm(self.invariant).unsqueeze(1) / self.first_norm) ** 2
        return torch.where(self._keeps_elr, factor * grown, factor)

    def _measured(
        self, step: metrics.Step, parts: tuple[str, ...] | None
    ) -> tuple[torch.Tensor, ...]:
        """Return what `step` returns; the values of a run that left the numbers are nan."""
        if parts is None:
            tables = [step.loss[None].clone()]
        else:
            tables = [torch.stack([one.of(step) for one in metrics.measures("step")])]
            tables += [self._of_parts(part, step) for part in parts]
        dead = self.alive.logical_not().squeeze(1)
        for table in tables:
            table.masked_fill_(dead.view(1, -1, *[1] * (table.dim() - 2)), torch.nan)
        return tuple(tables)

    def _loss_and_gradient(self, x, labels) -> tuple[torch.Tensor, torch.Tensor]:
        """Return losses (runs,) and gradient (runs, weights); a large full batch is done run by
        run, to save memory.

        Runs are independent, so that the numbers are the same. (Batch normalization needs the whole
        batch of a run at once: the batch itself cannot be cut.)
        """
        if self.setup.batch_size is not None or x.numel() <= FULL_BATCH_NUMBERS:
            return self._gradient_at(self.weights, x, labels, self.fixed)
        pieces = []
        for run in range(len(self.runs)):
            one = slice(run, run + 1)
            w = self.weights.detach()[one].requires_grad_()
            pieces.append(self._gradient_at(w, x[one], labels[one], self._fixed_of(one)))
        losses, gradients = zip(*pieces, strict=True)
        return torch.cat(losses), torch.cat(gradients)

    def _gradient_at(self, weights, x, labels, fixed) -> tuple[torch.Tensor, torch.Tensor]:
        """Return losses and gradient at `weights`, both detached."""
        with self._rounding():
            loss = self._loss(weights, x, labels, fixed)
            return loss.detach(), torch.autograd.grad(loss.sum(), weights)[0]

    def _batch_sharpness(self, x, labels) -> torch.Tensor:
        """Return `metrics.curvature_along_gradient` of the mini-batch losses, (runs,)."""
        with self._rounding(), networks.second_derivatives():
            return metrics.curvature_along_gradient(
                lambda w: self._mean_loss(w, x, labels, self.fixed), self.weights, self.n_invariant
            )

    def _fixed_of(self, one: slice) -> networks.Tensors:
        """Return the parameters that are not trained, of some runs."""
        return {name: value[one] for name, value in self.fixed.items()}

    def _freeze(self, loss: torch.Tensor, moved: torch.Tensor, new: torch.Tensor) -> None:
        """Freeze, for good, the runs whose loss or new weights are not finite, and note the step.

        `moved`, the angle or the new norm, is finite only if all new scale-invariant weights are.
        """
        finite = torch.isfinite(loss + moved)
        if new.shape[1] > self.n_invariant:
            finite &= torch.isfinite(metrics.norm(new[:, self.n_invariant :]))
        self.alive.logical_and_(finite.unsqueeze(1))
        self.steps_alive.add_(self.alive.squeeze(1))

    def _accept(self, new: torch.Tensor) -> None:
        """Give the runs that are alive their new weights."""
        if self.alive.is_cpu and self.alive.all():  # elsewhere the question waits for the device
            self.weights.copy_(new)
        else:
            torch.where(self.alive, new, self.weights, out=self.weights)

    def _of_parts(self, part: str, step: metrics.Step) -> torch.Tensor:
        """Return the measures of every layer or neuron, (measures, runs, parts), or the batch's."""
        if part == "batch":
            return torch.stack([one.of(step) for one in metrics.measures("batch")])
        if part == "layer":
            of_each = partial(metrics.by_layer, sizes=self.layer_sizes)
        else:
            shapes = list(self.shapes.values())
            of_each = partial(metrics.by_neuron, shapes=shapes, sizes=self.layer_sizes)

        def of(measure: metrics.Measure) -> torch.Tensor:
            vectors = (step.weights, step.gradient, step.new)
            return of_each(lambda *pieces: measure.of(metrics.Step(*pieces)), *vectors)

        return torch.stack([of(measure) for measure in metrics.measures("step", parts=True)])

    # -- state

    def state(self) -> dict[str, torch.Tensor]:
        """Return everything that changes during training."""
        own = {"weights": self.weights.detach(), "alive": self.alive}
        own |= {"steps_alive": self.steps_alive, "steps_done": torch.tensor(self.steps_done)}
        own |= {"first_norm": self.first_norm, "held_norm": self.changes.held}
        own |= {f"guards_{name}": value for name, value in self.guards.state().items()}
        return own | {f"optimizer_{name}": value for name, value in self.optimizer.state().items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go to a state that `state` returned."""
        mine = self.state()
        prefix = "optimizer_"
        for name, value in state.items():
            if not name.startswith(prefix):
                mine[name].copy_(value)
        self.optimizer.load_state(
            {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        )
        self.steps_done = int(state["steps_done"])
        self.changes.seek(self.steps_done)
        self._reshuffle(max(self.steps_done - 1, 0))
        self._factors = torch.empty(0)
