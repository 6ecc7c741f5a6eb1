r"""A sweep's schedule in simulation: stacks of known lengths on machines that fail.

As a sweep does: a machine that is free takes the next stack; a stack whose machine fails is put
back first, and goes on from its last saved state. Without failures the time to the last end is
between max(sum/m, longest) and sum/m + (1 - 1/m) longest [Graham, 1969].
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from math import inf

import numpy as np


@dataclass(frozen=True)
class Schedule:
    """What became of a schedule: `makespan`, the last end; `lost`, seconds of work done again;
    `failures` that met a stack; `ends`, of every stack.
    """

    makespan: float
    lost: float
    failures: int
    ends: tuple[float, ...]


def bounds(seconds: Sequence[float], machines: int) -> tuple[float, float]:
    """Return between which times a schedule without failures ends, whatever the order.

    >>> bounds([3, 3, 2, 2, 2], 2)
    (6.0, 7.5)
    """
    even, longest = sum(seconds) / machines, max(seconds, default=0.0)
    return float(max(even, longest)), float(even + (1 - 1 / machines) * longest)


def drawn_failures(
    mean_seconds: float, machines: int, horizon: float, seed: int = 0
) -> list[tuple[float, int]]:
    """Return (time, machine) of failures up to `horizon`, of every machine one in `mean_seconds` in
    the mean, independent of each other.
    """
    draw = np.random.default_rng(seed)
    number = draw.poisson(machines * horizon / mean_seconds)
    times, places = draw.uniform(0, horizon, number), draw.integers(machines, size=number)
    return sorted(zip(times.tolist(), places.tolist(), strict=True))


def simulate(
    seconds: Sequence[float],
    machines: int,
    failures: Iterable[tuple[float, int]] = (),
    repair: float = 0.0,
    saved_every: float = inf,
) -> Schedule:
    """Return the schedule of stacks of these lengths.

    Parameters
    ----------
    seconds : of each stack, in the order in which they are taken.
    machines : their number.
    failures : (time, machine); a machine that is down already does not fail again.
    repair : seconds that a machine is down.
    saved_every : seconds between the states that a stack saves; inf: none.

    By hand: stacks of 3, 3, 2, 2, 2 on two machines end at 7; if the first machine fails at 2, is
    back at 3, and states are saved every second, the work of no second is lost, but one of waiting.

    >>> simulate([3, 3, 2, 2, 2], 2).makespan
    7.0
    >>> one = simulate([3, 3, 2, 2, 2], 2, [(2.5, 0)], repair=1.0, saved_every=1.0)
    >>> one.makespan, one.lost
    (7.5, 0.5)
    """
    return _Machines(seconds, machines, failures, repair, saved_every).run()


class _Machines:
    """The state of a simulation: what waits, what each machine does, what happens next."""

    def __init__(self, seconds, machines, failures, repair, saved_every):
        self.waiting = deque((stack, float(length)) for stack, length in enumerate(seconds))
        self.ends = [0.0] * len(self.waiting)
        self.free, self.busy, self.down = list(range(machines)), {}, set()
        self.repair, self.saved_every = repair, saved_every
        self.order, self.lost, self.failures = count(), 0.0, 0
        self.events = [(time, next(self.order), "fail", place, None) for time, place in failures]
        heapq.heapify(self.events)

    def run(self) -> Schedule:
        """Play until the last stack has ended."""
        self._assign(0.0)
        while self.waiting or self.busy:
            now, _, kind, machine, what = heapq.heappop(self.events)
            if kind == "end" and self.busy.get(machine) == what:
                self.ends[what[0]] = now
                del self.busy[machine]
                heapq.heappush(self.free, machine)
            elif kind == "fail" and machine not in self.down:
                self._fail(now, machine)
            elif kind == "up":
                self.down.discard(machine)
                heapq.heappush(self.free, machine)
            self._assign(now)
        return Schedule(max(self.ends, default=0.0), self.lost, self.failures, tuple(self.ends))

    def _assign(self, now: float) -> None:
        while self.free and self.waiting:
            machine = heapq.heappop(self.free)
            stack, left = self.waiting.popleft()
            self.busy[machine] = what = (stack, left, now)
            heapq.heappush(self.events, (now + left, next(self.order), "end", machine, what))

    def _fail(self, now: float, machine: int) -> None:
        if machine in self.busy:
            stack, left, started = self.busy.pop(machine)
            done = now - started
            kept = 0.0 if self.saved_every == inf else done - done % self.saved_every
            self.lost, self.failures = self.lost + done - kept, self.failures + 1
            self.waiting.appendleft((stack, left - kept))
        else:
            self.free.remove(machine)
            heapq.heapify(self.free)
        self.down.add(machine)
        heapq.heappush(self.events, (now + self.repair, next(self.order), "up", machine, None))
