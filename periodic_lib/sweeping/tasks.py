r"""Sweeps in pieces: runs that share a setup and a record become tasks, each one stack of runs.

How large a stack? A larger one does more runs a second, up to a point; a smaller one leaves less to
wait for at the end. With t(R) seconds a step of R runs, n runs and W workers, a list of tasks takes
at most n t(R) / (R W) + (1 - 1/W) t(R) seconds a step [Graham, "Bounds on multiprocessing timing
anomalies", 1969]. The size is the one that makes this bound smallest and fits into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np

from periodic_lib.config import Record, Run, Setup
from periodic_lib.project import ConfigError, digest
from periodic_lib.storage import store

Group = tuple[Setup, Record, tuple[Run, ...]]  # runs that share a setup and a record


@dataclass(frozen=True)
class Task:
    """One stack of runs, to be trained as a whole.

    Parameters
    ----------
    setup, record, runs : what is trained and kept, as of `training.train`.
    data : digest of a data file of your own, None of other data.

    >>> task = Task(Setup(steps=100), Record(), (Run(0.1, 0.0), Run(0.3, 0.0)))
    >>> task.run_steps, [len(half.runs) for half in task.halves()]
    (200, [1, 1])
    """

    setup: Setup
    record: Record
    runs: tuple[Run, ...]
    data: str | None = None

    @cached_property
    def keys(self) -> list[str]:
        """The addresses of its runs in the store."""
        return store.run_keys(self.setup, self.runs, self.record, self.data)

    @property
    def key(self) -> str:
        """All that determines its numbers, as 20 characters."""
        return digest(self.keys)[:20]

    @property
    def whole(self) -> bool:
        """Whether its runs belong together: with convolutions numbers depend on the stack."""
        return is_whole(self.setup)

    @property
    def run_steps(self) -> int:
        """Runs times steps: the amount of work."""
        return len(self.runs) * self.setup.steps

    def halves(self) -> tuple[Task, Task]:
        """Return two tasks of half the runs each, for a machine whose memory is too small."""
        middle = -(-len(self.runs) // 2)
        return replace(self, runs=self.runs[:middle]), replace(self, runs=self.runs[middle:])

    def named(self) -> str:
        """Return what a message calls it: data, network, width, number of runs and steps."""
        one = self.setup
        return (
            f"{len(self.runs)} runs of {one.steps} steps of {one.network} {one.width} "
            f"on {one.dataset}"
        )


def is_whole(setup: Setup) -> bool:
    """Whether an experiment of this setup is one stack, which cannot be cut (`store.run_key`)."""
    return setup.network in store.CONVOLUTIONAL


def groups(plans: Iterable[object]) -> list[Group]:
    """Return the runs that plans ask for, by what they share, each once; a plan with convolutions
    is a group of its own, since its numbers are those of its stack, to rounding.

    >>> from types import SimpleNamespace
    >>> one, other = Run(0.1, 0.0), Run(0.3, 0.0)
    >>> asked = [one], [one, other]
    >>> plans = [SimpleNamespace(setup=Setup(), record=Record(), runs=runs) for runs in asked]
    >>> [[run.lr for run in runs] for _, _, runs in groups(plans)]
    [[0.1, 0.3]]
    """
    found: dict[object, tuple[Setup, Record, dict[Run, None]]] = {}
    for plan in plans:
        runs = tuple(plan.runs)
        name = (plan.setup, plan.record, runs if is_whole(plan.setup) else None)
        _, _, kept = found.setdefault(name, (plan.setup, plan.record, {}))
        kept.update(dict.fromkeys(runs))
    return [(setup, record, tuple(runs)) for setup, record, runs in found.values()]


def cut(
    wanted: Iterable[Group],
    size_of: Callable[[Setup, Record], int],
    data_of: Callable[[str], str | None] = lambda dataset: None,
) -> Iterator[Task]:
    """Yield the tasks of groups, at most `size_of(setup, record)` runs each, as equal as can be.

    One at a time: a sweep of any length takes the memory of a few tasks.
    """
    for setup, record, runs in wanted:
        left, source = iter(runs), data_of(setup.dataset)
        size = len(runs) if is_whole(setup) else size_of(setup, record)
        for number in even(len(runs), size):
            yield Task(setup, record, tuple(islice(left, number)), source)


def even(n: int, size: int) -> list[int]:
    """Return the sizes of the fewest parts of n that are at most `size`, equal to within one.

    >>> even(10, 4), even(3, 8), even(0, 8)
    ([4, 3, 3], [3], [])
    """
    parts = -(-n // max(1, size))
    return [n // parts + (part < n % parts) for part in range(parts)]


def best_size(seconds: Mapping[int, float], runs: int, workers: int, fits: float) -> int:
    r"""Return the number of runs a stack that makes Graham's bound smallest, and fits into memory.

    n t(R) / (R W) + (1 - 1/W) t(R), with t straight between the sizes that were measured.

    Parameters
    ----------
    seconds : R -> t(R), seconds a step of a stack of R runs, measured.
    runs, workers : n of the whole sweep and W.
    fits : runs that fit into a worker's memory.

    Raises
    ------
    ConfigError : if not even one run fits.

    >>> best_size({1: 1.0, 2: 1.1, 4: 2.0, 8: 4.0}, runs=64, workers=2, fits=100)
    4
    >>> best_size({1: 1.0, 2: 1.1, 4: 2.0, 8: 4.0}, runs=64, workers=2, fits=3.5)
    3
    """
    if fits < 1:
        raise ConfigError(
            f"`memory` of a worker must hold at least one run; got room for {fits:.2g}. Take "
            "fewer steps, a larger `every`, or workers with more memory."
        )
    largest = int(min(fits, max(seconds), runs))
    sizes = np.arange(1, largest + 1)
    t = np.interp(sizes, sorted(seconds), [seconds[size] for size in sorted(seconds)])
    bound = runs * t / (sizes * workers) + (1 - 1 / workers) * t
    return int(sizes[np.argmin(bound)])
