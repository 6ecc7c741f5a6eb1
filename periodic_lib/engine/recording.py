"""What a `Record` keeps of a training: preallocated tables, and their labelled form.

A quantity is declared once, in `metrics.MEASURES`; here it gets a row at every kept step, or a
place in a list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, prod

import numpy as np
import torch
import xarray as xr

from periodic_lib import outside, results
from periodic_lib.config import Record, Run
from periodic_lib.engine import metrics
from periodic_lib.engine.stack import Stack
from periodic_lib.project import ConfigError

PARTS = ("layer", "neuron")
COPIES = 3  # of a record in memory, while it is saved
SNAPSHOT_BYTES = 4e9  # of all snapshots of a record together


class Recorder:
    """What is kept of one training.

    Parameters
    ----------
    stack, record : what is trained and what to keep of it.
    steps_per_epoch : the length of an epoch, where `record.unit` is one.

    Raises
    ------
    ConfigError : if the record would not fit into memory, naming the cheapest way out.
    """

    def __init__(self, stack: Stack, record: Record, steps_per_epoch: int):
        self.stack, self.record, self.steps_per_epoch = stack, record, steps_per_epoch
        unit = steps_per_epoch if record.unit == "epoch" else 1
        self.every = record.every * unit
        asked = {  # when -> how many units apart, how it is measured
            "evaluation": (record.evaluate_every, stack.evaluate),
            "curvature": (record.curvature_every, stack.sharpness),
            "snapshot": (record.snapshot_every, stack.snapshot),
        }
        self._schedule = {
            when: (apart * unit, how) for when, (apart, how) in asked.items() if apart
        }
        self._check_snapshots()
        wanted = {"layer": record.layers, "neuron": record.neurons, "batch": record.batch_sharpness}
        self.parts = tuple(part for part, keep in wanted.items() if keep)
        shapes, how = self._shapes(), stack.weights
        self.sizes = self._sizes(shapes)  # bytes of all that is kept, by what it is kept of
        _check_memory(self.sizes, record)
        self.tables = {
            name: torch.zeros(shape, dtype=how.dtype, device=stack.device)
            for name, shape in shapes.items()
        }
        self.sums = {name: torch.zeros_like(table[0]) for name, table in self.tables.items()}
        # when -> step -> one tensor for each measure
        self.looks: dict[str, dict[int, tuple[torch.Tensor, ...]]] = {when: {} for when in asked}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Return (rows, measures, runs) for "step" and "batch", and (rows, measures, runs, parts)
        for each kind of part.
        """
        stack, runs = self.stack, len(self.stack.runs)
        neurons = sum(shape[0] for shape in stack.shapes.values())
        more = {"layer": (len(stack.shapes),), "neuron": (neurons,)}
        rows = -(-stack.setup.steps // self.every)
        return {
            name: (rows, len(_kept(name)), runs, *more.get(name, ()))
            for name in ("step", *self.parts)
        }

    def _sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Return the bytes of the tables of these shapes, and of what `look` will keep."""
        stack = self.stack
        sizes = {name: prod(shape) * stack.weights.element_size() for name, shape in shapes.items()}
        logits = len(stack.data.y_test) * stack.data.classes
        numbers = {"snapshot": stack.n_invariant + logits}  # of a run, in one look
        for when, (every, _) in self._schedule.items():
            looks = -(-stack.setup.steps // every) + 1
            each = 4 * numbers[when] if when in numbers else 8 * len(metrics.measures(when))
            sizes[when] = looks * len(stack.runs) * each
        return sizes

    def _check_snapshots(self) -> None:
        if "snapshot" not in self._schedule:
            return
        stack, (every, _) = self.stack, self._schedule["snapshot"]
        numbers = stack.n_invariant + len(stack.data.y_test) * stack.data.classes  # of a run
        snapshots = len(stack.runs) * (-(-stack.setup.steps // every) + 1)
        if 4 * numbers * snapshots > SNAPSHOT_BYTES:
            raise ConfigError(
                f"`snapshot_every` must leave at most {SNAPSHOT_BYTES / 1e9:g} GB of snapshots; "
                f"got {self.record.snapshot_every}: {snapshots} of {4 * numbers / 1e6:.2g} MB. "
                "Take fewer."
            )

    # -- while training

    def records(self, step: int) -> bool:
        """Whether this step is measured."""
        return self.record.average or step % self.every == 0

    def look(self, step: int) -> None:
        """Evaluate, measure the curvature, keep a snapshot before this step, if asked for, and
        after the last.
        """
        last = step == self.stack.setup.steps
        for when, (every, measure) in self._schedule.items():
            kept = self.looks[when]
            if (last or step % every == 0) and step not in kept:
                measured = measure()
                kept[step] = (measured,) if when == "curvature" else tuple(measured)

    def add_step(self, step: int, measured: Sequence[torch.Tensor]) -> None:
        """Keep what `Stack.step` measured, without waiting for the device."""
        row = step // self.every
        for (name, table), values in zip(self.tables.items(), measured, strict=True):
            if self.record.average:
                self._add(name, values, first=step % self.every == 0)
                table[row] = self.sums[name] / (step % self.every + 1)
            else:
                table[row] = values

    def _add(self, name: str, values: torch.Tensor, first: bool) -> None:
        """Add to the sums of an interval; of a `squared` measure its square."""
        values = values.clone()
        for place in self._squared(name):
            values[place].square_()
        if first:
            self.sums[name].zero_()
        self.sums[name].add_(values)

    @staticmethod
    def _squared(name: str) -> list[int]:
        """Return the places, in a table, of the measures that are averaged as a root of the mean
        square.
        """
        return [place for place, measure in enumerate(_kept(name)) if measure.squared]

    # -- resuming

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what was kept so far, for a resume state."""
        rows = self._rows
        found = {f"table_{name}": table[:rows].cpu().numpy() for name, table in self.tables.items()}
        found |= {f"sums_{name}": values.cpu().numpy() for name, values in self.sums.items()}
        for when, kept in self.looks.items():
            found[f"{when}_steps"] = np.array(list(kept), dtype=np.int64)
            for place, measure in enumerate(metrics.measures(when)):
                if kept:
                    rows = [values[place].cpu() for values in kept.values()]
                    found[f"{when}_{measure.name}"] = torch.stack(rows).numpy()
        return found

    def load_arrays(self, found: Mapping[str, np.ndarray]) -> None:
        """Take back what `arrays` returned."""
        for name, table in self.tables.items():
            rows = found[f"table_{name}"]
            table[: len(rows)] = torch.as_tensor(rows)
            self.sums[name].copy_(torch.as_tensor(found[f"sums_{name}"]))
        for when, kept in self.looks.items():
            device = self.stack.device if when == "evaluation" else "cpu"  # where each is kept
            names = [f"{when}_{measure.name}" for measure in metrics.measures(when)]
            for place, step in enumerate(found[f"{when}_steps"].tolist()):
                kept[step] = tuple(
                    torch.as_tensor(found[name][place], device=device) for name in names
                )

    # -- the result

    def dataset(self, seconds: float, data_digest: str | None) -> xr.Dataset:
        """Return everything kept so far as one labelled data set, with its provenance."""
        stack = self.stack
        cuda = str(stack.device).startswith("cuda")
        return results.with_provenance(
            xr.Dataset(self._variables(), self._coordinates()),
            stack.setup,
            stack.runs,
            self.record,
            data_digest=data_digest,
            classes=stack.data.classes,
            steps_per_epoch=self.steps_per_epoch,
            steps_done=stack.steps_done,
            seconds=seconds,
            device=torch.cuda.get_device_name() if cuda else str(stack.device),
            instructions=torch.backends.cpu.get_cpu_capability(),
            torch_version=str(torch.__version__),
            threads=torch.get_num_threads(),
        )

    @property
    def _rows(self) -> int:
        """Number of rows that are filled."""
        return -(-self.stack.steps_done // self.every)

    def _coordinates(self) -> dict[str, object]:
        runs, steps = self.stack.runs, np.arange(self._rows) * self.every
        found = {"run": np.arange(len(runs)), "step": steps}
        found |= {name: ("run", _column(runs, name)) for name in Run.names()}
        found |= {part: self._part_names(part) for part in self.parts if part in PARTS}
        for when, kept in self.looks.items():
            if kept:
                found[metrics.DIMENSIONS[when][1]] = np.array(list(kept))
        if self.looks["snapshot"]:
            found["label"] = ("example", self.stack.data.y_test.cpu().numpy())
        return found

    def _variables(self) -> dict[str, tuple]:
        """Return name -> (dimensions, values) of all that was kept."""
        found = {}
        for name, table in self.tables.items():
            prefix, more = (f"{name}_", (name,)) if name in PARTS else ("", ())
            for place, measure in enumerate(_kept(name)):
                values = table[: self._rows, place].transpose(0, 1).cpu().numpy()  # (run, step, ..)
                if self.record.average and measure.squared:
                    values = np.sqrt(values)
                found[prefix + measure.name] = (measure.dims + more, values)
        for when, kept in self.looks.items():
            for place, measure in enumerate(metrics.measures(when)):
                if kept:
                    values = torch.stack(
                        [row[place] for row in kept.values()]
                    )  # (looks, runs, ...)
                    found[measure.name] = (measure.dims, values.transpose(0, 1).cpu().numpy())
        alive = self.stack.alive.squeeze(1).cpu().numpy()
        lived = self.stack.steps_alive.cpu().numpy()
        return found | {"diverged_at": ("run", np.where(alive, np.nan, lived))}

    def _part_names(self, part: str) -> list[str]:
        shapes = self.stack.shapes
        if part == "layer":
            return list(shapes)
        return [f"{name}[{row}]" for name, shape in shapes.items() for row in range(shape[0])]


def _check_memory(sizes: Mapping[str, int], record: Record) -> None:
    """Raise `ConfigError` unless a record of these sizes fits into memory `COPIES` times."""
    need, there = COPIES * sum(sizes.values()), outside.SPARE * outside.available_memory()
    less = COPIES * (sum(sizes.values()) - sizes.get("neuron", 0))
    if record.neurons and less <= there:
        instead = f"Set neurons: false; it takes {less / 1e9:,.2g} GB then."
    else:
        every = ceil(record.every * need / max(there, 1))
        instead = f"Set every: {every}, or take fewer runs at once."
    outside.require_memory(need, "the record", instead)


def _kept(table: str) -> tuple[metrics.Measure, ...]:
    """Return the measures that are the columns of a table."""
    if table in PARTS:
        return metrics.measures("step", parts=True)
    return metrics.measures(table)


def _column(runs: Sequence[Run], name: str) -> list:
    """Return one parameter of all runs; a missing number is nan, as NetCDF knows no None, and a
    missing text is empty.
    """
    missing = "" if name == "changes" else np.nan
    values = [getattr(run, name) for run in runs]
    return [missing if value is None else value for value in values]


# ---------------------------------------------------------------- long records


def thin(
    dataset: xr.Dataset, *, every: int, around: Iterable[int] = (), margin: int = 400
) -> xr.Dataset:
    """Return a record with one row for each `every` steps, but every step where something happens.

    Stretches from a multiple of `every` to the next that come within `margin` steps of one of the
    steps `around` stay as they are; of any other, one row at its first step remains, the mean over
    it (of the angular update the root mean square, as `Record.average` has it). `covers` (step)
    says how many recorded steps a row stands for, and `train_loss_median` (run, step) is the median
    over them, which a few bad batches do not move.

    Parameters
    ----------
    dataset : a result with dimensions `run` and `step`; what has no `step` stays as it is.
    every : steps of a row, an epoch for example.
    around : steps, as `find_destabilizations` finds them.

    >>> loss = ("run", "step"), [[4.0, 2.0, 3.0, 1.0]]
    >>> record = xr.Dataset({"train_loss": loss}, {"step": range(4)})
    >>> thin(record, every=2, around=[3], margin=0).train_loss.values.tolist()
    [[3.0, 3.0, 1.0]]
    """
    steps, events = dataset.step.values, np.asarray(list(around), float)
    block = steps // every
    near = np.abs(steps[:, None] - events).min(1, initial=np.inf) <= margin
    rows = np.where(np.isin(block, block[near]), steps, block * every)
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    weights = dataset.covers.values if "covers" in dataset else np.ones(len(steps), int)
    means = {
        name: (variable.dims, _row_means(name, variable, starts, weights), variable.attrs)
        for name, variable in dataset.data_vars.items()
        if {"run", "step"} <= set(variable.dims)
    }
    loss = dataset.get("train_loss_median", dataset.train_loss)
    pieces = np.split(loss.transpose("run", "step").values, starts[1:], axis=1)
    medians = np.stack([np.median(piece, axis=1) for piece in pieces], axis=1)
    means["train_loss_median"] = (("run", "step"), medians, loss.attrs)
    thinned = dataset.drop_dims("step").assign_coords(step=steps[starts]).assign(means)
    return thinned.assign(covers=("step", np.add.reduceat(weights, starts)))


def _row_means(
    name: str, variable: xr.DataArray, starts: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return the weighted means of stretches along the axis `step`, in the dtype of the values."""
    squared = any(one.squared and name.endswith(one.name) for one in metrics.measures("step"))
    axis = variable.dims.index("step")
    values = np.moveaxis(variable.values.astype(float), axis, -1)
    sums = np.add.reduceat(weights * (values**2 if squared else values), starts, axis=-1)
    means = np.moveaxis(sums / np.add.reduceat(weights, starts), -1, axis)
    return (np.sqrt(means) if squared else means).astype(variable.dtype)
