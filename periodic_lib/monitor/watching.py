r"""Watch a PyTorch training: does weight decay drive its loss spikes, by which weights, and what
next?

    monitor = Monitor(model, optimizer, example=images[:32])
    for images, labels in loader:
        loss = criterion(model(images), labels)
        loss.backward()
        monitor.loss = loss
        optimizer.step()
        optimizer.zero_grad()
    print(monitor.report())

It reads weights and gradients in the optimizer's own step hooks, so that accumulated, clipped and
unscaled gradients are what it sees, and changes nothing: the training takes the same path, bit by
bit, with and without it. The numbers stay on the device for 100 steps at a time. Should anything
inside fail, it says so once and leaves the training alone.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

from periodic_lib.checks import integer, number, one_of, optional
from periodic_lib.monitor import gauges, outlook, readings, verdicts
from periodic_lib.monitor.adapters import guarded
from periodic_lib.monitor.gauges import MEASURES, ROWS, SQUARED, Gauges
from periodic_lib.monitor.histories import History, as_dataset
from periodic_lib.monitor.logs import Logs
from periodic_lib.project import ConfigError
from periodic_lib.results import origin

ALL, REST = "all", "rest"  # the scale-invariant groups under decay together; the other weights
PROBE_SECONDS = 60.0


class Monitor:
    """The instabilities of one training, told apart while it runs.

    Parameters
    ----------
    model, optimizer : of the training, on any device.
    example : a batch of inputs, as the model takes it: a copy of the model is probed with it for
        the groups of weights whose common scale the outputs do not feel (`symmetries.find_groups`).
    groups : these groups, if they are known: a list of lists of parameters or of their names; an
        empty list if there are none. One of `example` and `groups` is needed.
    angle_every : steps between two measurements of the angular update for optimizers with a state,
        which take a copy of the scale-invariant weights. Plain SGD's is known at every step.
    edge_every : steps between two measurements of the sharpness of the step's own batch
        (`readings.batch_sharpness`; of a ResNet-18 3.4 steps' time each); None: none. It needs
        `monitor.batch_loss = lambda: criterion(model(images), labels)` before the step.
    total_steps : steps that the training will take, for what its schedule has time for.
    log_every : steps between rows of the logs; they are written when the ring is read.
    csv, tensorboard : file, and folder or `SummaryWriter`, of the logs; None: no log.
    scalars : "one" (the state), "three" (state, elr_over_equilibrium, not_before) or "all".
    seconds : budget of the probe.

    Attributes
    ----------
    groups : list of tuples of names. failure : what went wrong inside, or None.
    symmetries : all that the probe found, to print; None where the groups were given.

    Raises
    ------
    ConfigError : for a group that the model does not have, sharded parameters, neither `example`
        nor `groups`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        example: object = None,
        groups: Sequence[Sequence[str | torch.nn.Parameter]] | None = None,
        *,
        angle_every: int = 10,
        edge_every: int | None = None,
        total_steps: int | None = None,
        log_every: int = ROWS,
        csv: Path | str | None = None,
        tensorboard: object = None,
        scalars: str = "three",
        seconds: float = PROBE_SECONDS,
    ):
        whole = "a whole number of at least 1"
        self.angle_every = integer("angle_every", angle_every, whole, 1)
        self.edge_every = optional("edge_every", edge_every, integer, f"{whole}, or None", 1)
        self.log_every = integer("log_every", log_every, whole, 1)
        self.scalars = one_of("scalars", scalars, ("one", "three", "all"))
        seconds = number("seconds", seconds, "a number of seconds above 0", 0, np.inf, True)
        self.total_steps, self.optimizer = total_steps, optimizer
        names = {id(p): name for name, p in model.named_parameters()}
        gauges.refuse_shards(list(model.parameters()))
        self.symmetries, limits = None, {}  # the norms below which epsilons break a group
        if groups is None:
            found = readings.found_groups(Monitor.find_groups, model, example, seconds)
            self.symmetries, limits = found
            groups = list(limits)
        self.groups = [tuple(group) for group in gauges.named(groups, names)]
        self._fails_below = [limits.get(group) for group in self.groups]
        self._model, self._batch_loss = model, None
        self._sharpness: list[tuple[int, torch.Tensor | float]] = []
        self._neurons: dict[str, torch.Tensor] = {}
        self._loss_sum: list[torch.Tensor] = []
        self.failure: str | None = None
        self.steps = 0  # of the optimizer, seen so far
        self._attached, self._seconds = time.perf_counter(), 0.0  # until the last step
        self._watch(dict(model.named_parameters()))
        self._logs = None if csv is None and tensorboard is None else Logs(csv, tensorboard)
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def _watch(self, parameters: dict[str, torch.nn.Parameter]) -> None:
        """Prepare gauges and history for the groups and for the weights in none."""
        taken = {name for group in self.groups for name in group}
        rest = [name for name in parameters if name not in taken]
        self._names = [*self.groups, *([tuple(rest)] if rest else [])]
        watched = [[parameters[name] for name in group] for group in self._names]
        self._weights = sum(p.numel() for group in watched for p in group)
        self._invariant = sum(p.numel() for group in watched[: len(self.groups)] for p in group)
        cells = gauges.split(watched, self.optimizer)
        member = np.array([cell.group for cell in cells])
        self._gauges = Gauges(cells, self.optimizer, int((member < len(self.groups)).sum()))
        every = np.equal.outer(np.arange(len(self._names)), member)
        followed = gauges.decayed(watched[: len(self.groups)] or watched, self.optimizer)
        self._edge_weights = [p for i in followed for p in watched[i]] if self.groups else []
        self._parameters = {name: parameters[name] for name in taken}
        self._followed = sum(p.numel() for i in followed for p in watched[i])
        union = np.isin(member, followed)
        self._owner = np.vstack([union, every]).astype(float)
        columns = 2 + len(MEASURES) * len(self._owner)  # loss, its largest, measures of groups
        squared = [
            2 + MEASURES.index(name) * len(self._owner) + i
            for name in SQUARED
            for i in range(len(self._owner))
        ]
        self.history = History(columns, squared=squared, largest=[1])
        self._judged: list[dict] = []

    @staticmethod
    def find_groups(model: torch.nn.Module, example: object, seconds: float = PROBE_SECONDS):
        """Return what `symmetries.find_groups` finds: groups of scale-invariant weights."""
        from periodic_lib.symmetries import find_groups

        return find_groups(model, example, seconds=seconds)

    @staticmethod
    def lightning(**options: object):
        """Return a callback of Lightning; `options` as here, `example="first batch"` allowed."""
        from periodic_lib.monitor.adapters import lightning_callback

        return lightning_callback(Monitor, **options)

    @staticmethod
    def huggingface(**options: object):
        """Return a callback of a Hugging Face trainer; `options` as for `lightning`."""
        from periodic_lib.monitor.adapters import huggingface_callback

        return huggingface_callback(Monitor, **options)

    # -- in the training

    @property
    def loss(self) -> None:
        """Loss of the step that comes: set it to a tensor, or to a number; it is not read here."""

    @loss.setter
    def loss(self, value: torch.Tensor | float) -> None:
        self._take_loss(value)

    @property
    def batch_loss(self) -> None:
        """Function that computes the loss of the step that comes anew, for `edge_every`."""

    @batch_loss.setter
    def batch_loss(self, function: Callable[[], torch.Tensor]) -> None:
        self._batch_loss = function

    @guarded
    def _take_loss(self, value: torch.Tensor | float) -> None:
        if isinstance(value, torch.Tensor):
            value = value.detach().mean().to(self._gauges.losses)
        else:
            value = torch.full_like(self._gauges.losses[0], float(value))
        self._loss_sum.append(value)

    @guarded
    def _before(self, optimizer, arguments, options) -> tuple[tuple, dict] | None:
        """Measure before a step; where the step is given a closure, after that has been called."""
        self._measured = False
        closure = options.get("closure") if len(arguments) < 2 else arguments[1]
        if closure is None:
            self._measure()
            return None

        def then_measure():
            result = closure()
            self._measure()
            return result

        others = {name: value for name, value in options.items() if name != "closure"}
        return (arguments[0], then_measure, *arguments[2:]), others

    @guarded
    def _measure(self) -> None:
        if self._measured:
            return
        self._measured, row = True, self.steps % ROWS
        if self._loss_sum:
            self._gauges.losses[row] = torch.stack(self._loss_sum).mean()
            self._loss_sum = []
        self._gauges.before(row, keep_copy=self.steps % self.angle_every == 0)
        if not row:
            self._neurons = readings.neuron_sums(self._parameters)
        if self.edge_every and self.steps % self.edge_every == 0:
            self._measure_sharpness()

    def _measure_sharpness(self) -> None:
        """Measure the sharpness of the batch, if it can be had; an error ends these only."""
        ask, self._batch_loss = self._batch_loss, None
        if ask is None or not self._edge_weights:
            return
        try:
            found = readings.batch_sharpness(ask, self._model, self._edge_weights)
            self._sharpness.append((self.steps, found))
        except Exception as error:
            self.edge_every = None
            words = f"no sharpness of the batch from step {self.steps} on: {error}"
            warnings.warn(words, RuntimeWarning, stacklevel=2)

    @guarded
    def _after(self, optimizer, arguments, options) -> None:
        self._gauges.after(self.steps % ROWS)
        self.steps += 1
        if self.steps % ROWS == 0:
            self._flush()

    def _flush(self) -> None:
        """Read the ring, judge spikes that are over, write the logs."""
        seen = len(self.history) + self.history.first
        rows = self.steps - seen
        if not rows or self.failure is not None:
            return
        losses, sums, rates = self._gauges.read(ROWS)
        self._sharpness = [(step, float(value)) for step, value in self._sharpness]
        start = seen % ROWS
        found = gauges.measures(sums, rates, self._owner, gauges.is_plain(self.optimizer))
        table = np.column_stack([losses, losses, found.reshape(ROWS, -1)])
        self.history.add(table[start : start + rows])
        self._seconds = time.perf_counter() - self._attached
        self._judge()
        self._log()

    def detach(self) -> None:
        """Take the hooks off the optimizer; what was recorded stays."""
        for handle in getattr(self, "_handles", ()):
            handle.remove()
        self._handles = []

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    # -- afterwards, or in between

    @property
    def results(self) -> xr.Dataset:
        """What was recorded so far, as `train` returns it, with one run.

        `weight_norm`, `grad_norm`, `elr`, `eff_grad_norm`, `angular_update`, `radial_cosine` of the
        scale-invariant weights under weight decay together (run, step; of all scale-invariant ones
        where decay shrinks none, of all weights where none is scale-invariant); the same as
        `group_...` (run, step, group) of every group and of the rest. `train_loss`, and the
        `learning_rate` of the step. `covers` (step): how many steps a row is the mean of.
        `batch_sharpness` (run, edge_step), where it was measured. `fails_below` (group): the norm
        below which epsilons break the invariance, where the probe found it.
        Coordinates `lr`, `weight_decay` and `momentum` (run) are the last ones.
        """
        self._flush()
        data, rates = as_dataset(self.history, MEASURES, self._labels())
        facts = rates | readings.optimizer_facts(self.optimizer) | {"init_seed": 0}
        places = {name: ("run", [value]) for name, value in facts.items()}
        limits = [*self._fails_below, None][: data.sizes["group"]]
        places["fails_below"] = ("group", np.array(limits, float))
        if self._sharpness:
            places["edge_step"] = [step for step, _ in self._sharpness]
            values = [[value for _, value in self._sharpness]]
            data = data.assign(batch_sharpness=(("run", "edge_step"), values))
        return data.assign_coords(places).assign_attrs(self._attributes())

    def _labels(self) -> list[str]:
        """Return a name for every group: its first parameter's, and how many more there are."""
        more = [f" +{len(names) - 1}" if len(names) > 1 else "" for names in self._names]
        found = [names[0] + extra for names, extra in zip(self._names, more, strict=True)]
        return [*found[: len(self.groups)], *[REST] * (len(self._names) - len(self.groups))]

    def _attributes(self) -> dict[str, object]:
        made_with, kind = readings.circumstances(self.optimizer)
        setup = {"optimizer": kind, "network": "your own", "steps": self.total_steps or self.steps}
        return {
            "setup": json.dumps(setup),
            **origin(),
            **made_with,
            "seconds": self._seconds,
            "groups": len(self.groups),
            "weights": self._weights,
            "invariant": self._invariant,
            "followed": self._followed,
            "total_steps": self.total_steps or 0,
            "steps_done": self.steps,
        }

    # -- verdicts and logs

    def _judge(self) -> None:
        """Judge the spikes that are over and not yet judged, while their steps are on record."""
        after = self._judged[-1]["end"] if self._judged else self.history.first
        found = self._recent_spikes()
        known = found.over | (found.end + verdicts.CALM <= self.steps)
        over = found[(found.start >= after) & known.astype(bool)]
        self._judged += over.to_dict("records")

    def _recent_spikes(self) -> pd.DataFrame:
        """Return the spikes in the steps that still have a row each, in steps."""
        steps, covers, rows = self.history.rows()
        whole = covers == 1
        rows, first = rows[whole].astype(float), int(steps[whole][0]) if whole.any() else 0
        if not len(rows) or np.isnan(rows[:, 0]).all():
            return pd.DataFrame(columns=verdicts.VERDICT_COLUMNS)
        table = rows[:, 2:].reshape(len(rows), len(MEASURES), len(self._owner))
        names = {name: bool(self.groups) and name != REST for name in [ALL, *self._labels()]}
        found = verdicts.judge(rows[:, 0], gauges.by_group(table, names))
        places = ["start", "peak", "end"]
        found[places] = found[places].astype(int) + first
        return found

    @property
    def spikes(self) -> pd.DataFrame:
        """The spikes of the loss so far, with the cause of each (`verdicts.judge`), in steps; the
        last ones may not be over.
        """
        self._flush()
        after = self._judged[-1]["end"] if self._judged else self.history.first
        found = self._recent_spikes()
        recent = found[found.start >= after].to_dict("records")
        return pd.DataFrame([*self._judged, *recent], columns=verdicts.VERDICT_COLUMNS)

    def _log(self) -> None:
        if self._logs is not None and self.steps - self._logs.last >= self.log_every:
            self._logs.write(self.steps, self.summary())

    def summary(self) -> dict[str, float]:
        """Return the scalars of a log: `state` is a place in `outlook.STATES`."""
        data = self.results
        row = {"state": float(outlook.STATES.index(outlook.state(data)))}
        if self.scalars != "one":
            row["elr_over_equilibrium"] = outlook.over_equilibrium(data)
            row["not_before"] = outlook.not_before(data)
        if self.scalars == "all":
            last = data.isel(run=0, step=-1)
            row |= {str(n): float(v) for n, v in last.data_vars.items() if v.ndim == 0}
        return row

    def report(self, schedule: Sequence[float] | None = None) -> str:
        """Return what there is to say, in up to eight lines; `schedule`: learning rates to come."""
        data, spikes = self.results, self.spikes
        words = outlook.report(data, spikes, schedule)
        if self.failure is not None:
            words = f"The monitor is off since step {self.steps}: {self.failure}.\n{words}"
        return words

    def neurons(self, worst: int = 3) -> pd.DataFrame:
        """Return the `worst` neurons of every group, those of the smallest norm beside the others
        of their tensor, as they were at most 100 steps ago (`readings.neurons`).
        """
        integer("worst", worst, "a whole number of at least 1", 1)
        return readings.neurons(
            self._neurons, dict(zip(self._labels(), self.groups, strict=False)), worst
        )

    def states(self) -> dict[str, str]:
        """Return the present state of every group of scale-invariant weights."""
        data = self.results
        names = self._labels()[: len(self.groups)]
        return {name: outlook.state(data, name) for name in names}

    def plot(self):
        """Return a figure of loss and norm over the record, with the breaks marked."""
        from periodic_lib.figures.plots import plot_one_run

        data = self.results
        marks = outlook.breaks_and_passages(data).start if self.groups else []
        return plot_one_run(data, destabilizations=list(marks))

    def save(self, path: Path | str) -> Path:
        """Write `results` as netCDF, which `periodic_lib.results.load` reads."""
        from periodic_lib.results import save

        return save(self.results, path)

    # -- resuming

    def state_dict(self) -> dict[str, object]:
        """Return what `load_state_dict` takes back, of plain numbers and tensors."""
        self._flush()
        kept = {"steps": self.steps, "groups": self.groups, "fails_below": self._fails_below}
        kept["sharpness"] = list(self._sharpness)
        history = self.history.state()
        history["levels"] = [torch.from_numpy(rows) for rows in history["levels"]]
        judged = [{name: _plain(value) for name, value in row.items()} for row in self._judged]
        return kept | {"judged": judged, "history": history}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from a state that `state_dict` returned.

        Raises
        ------
        ConfigError : if it is of other groups.
        """
        if [tuple(group) for group in state["groups"]] != self.groups:
            theirs, mine = len(state["groups"]), len(self.groups)
            raise ConfigError(
                f"`state` must be of the same groups; got one of {theirs} groups, this monitor has "
                f"{mine}. Make it with the groups of the state."
            )
        self.steps = state["steps"]
        if self._logs is not None:
            self._logs.last = self.steps
        self._judged = list(state["judged"])
        self._fails_below = list(state["fails_below"])
        self._sharpness = list(state["sharpness"])
        self.history.load(state["history"])


def _plain(value: object) -> object:
    """Return a NumPy scalar as Python's, which every checkpoint can hold."""
    return value.item() if isinstance(value, np.generic) else value
