"""What a sweep costs: two workers against one, what is spent beside training, 100,000 runs, a schedule of 64 GPUs.

    python tests/benchmarks/sweeping.py [efficiency] [graph] [schedule] [--pairs N] [--stacks N] [--steps N] [--write]

`efficiency`: the same stacks by one worker process and by two, in turn, on this machine. Where others use it, too, the
clock says little: beside its efficiency stands that of processor time, training a run-step with one worker over that
with two, and what all processes spend beside training, as a share of it. `graph`: the plan, the stacks and
the stream of 100,000 runs through a scheduler, with workers that train nothing. `schedule`: a simulation. With --write
the numbers go to data/benchmarks/sweeps.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from bench import processor

from periodic_lib import results
from periodic_lib.config import Record, Setup, grid
from periodic_lib.project import root, write_whole
from periodic_lib.sweeping import makespans, schedulers, sweeps, tasks

PATH = "data/benchmarks/sweeps.json"


class Asked:
    """What a sweep is asked for: runs of one setup."""

    def __init__(self, runs, setup, record=None):
        self.name, self.runs, self.setup, self.record = "bench", runs, setup, record or Record(evaluate_every=None)


def processor_seconds(processes) -> float:
    """Return the processor time of processes so far."""
    return sum(sum(one.cpu_times()[:2]) for one in processes)


@contextmanager
def empty_store():
    """Have results in a folder of their own, and remove it."""
    before = os.environ.get("PERIODIC_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PERIODIC_CACHE"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("PERIODIC_CACHE")
            if before:
                os.environ["PERIODIC_CACHE"] = before


def once(workers: int, seed: int, stacks: int, size: int, steps: int) -> dict:
    """Sweep `stacks` stacks with so many workers; return times from when the workers are there."""
    seeds = [seed + one for one in range(stacks * size)]
    asked = Asked(grid(lr=1.0, weight_decay=1e-2, seed=seeds), Setup(drop_last=True, steps=steps))
    with empty_store(), schedulers.client_of("local", workers) as client:
        client.run(lambda: __import__("periodic_lib.engine.training") and None)  # imported before the clock starts
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        before, started = processor_seconds(processes), time.perf_counter()
        done = sweeps.sweep([asked], client, size=size, progress=False)
        seconds, spent = time.perf_counter() - started, processor_seconds(processes) - before
    return {
        "seconds": seconds,
        "spent": spent,
        "training": done.training,
        "busy": done.busy,
        "run_steps": done.trained,
    }


def efficiency(pairs: int, stacks: int = 4, size: int = 16, steps: int = 3000) -> dict:
    """Return the efficiency of two workers against one, medians and ranges over interleaved pairs, and
    what is spent beside training: per stack, of one worker's sweeps."""
    ratios, by_processor, spent, waited, stack = [], [], [], [], []
    for pair in range(pairs):
        order = (1, 2) if pair % 2 else (2, 1)
        found = {workers: once(workers, 1000 * pair, stacks, size, steps) for workers in order}
        one, two = found[1], found[2]
        ratios.append(one["seconds"] / (2 * two["seconds"]))
        by_processor.append(one["training"] / two["training"])
        spent.append((one["spent"] - one["training"]) / stacks)
        waited.append((one["seconds"] - one["training"]) / stacks)
        stack.append(one["training"] / stacks)
        print(pair, {k: {n: round(v, 2) for n, v in one.items()} for k, one in found.items()}, flush=True)
    both = {"efficiency_clock": ratios, "efficiency_processor": by_processor}
    return {
        "pairs": pairs,
        "processor": processor(),
        "load": os.getloadavg()[1],
        **{name: statistics.median(values) for name, values in both.items()},
        **{f"{name}_least": min(values) for name, values in both.items()},
        **{f"{name}_most": max(values) for name, values in both.items()},
        "stack_seconds": statistics.median(stack),
        "beside_seconds": statistics.median(spent),
        "clock_beside_seconds": statistics.median(waited),
        "beside_training": statistics.median(spent) / statistics.median(stack),
        "clock_beside_training": statistics.median(waited) / statistics.median(stack),
    }


def nothing(task, *_) -> dict:
    """Train nothing: a stand-in for `sweeps.attempt`."""
    return {"status": sweeps.DONE, "run_steps": len(task.runs), "seconds": 0.0, "training": 0.0}


def graph(runs: int = 100_000, size: int = 16) -> dict:
    """Return seconds and memory of a sweep of so many runs whose workers train nothing."""
    started = time.perf_counter()
    rates = np.geomspace(1e-3, 1, runs // 100).tolist()
    asked = Asked(grid(lr=rates, weight_decay=1e-3, seed=list(range(100))), Setup())
    found = {"runs": len(asked.runs), "plan_seconds": time.perf_counter() - started}
    with empty_store():
        started = time.perf_counter()
        _, left = sweeps._left([asked])
        found["addresses_seconds"] = time.perf_counter() - started
        with schedulers.client_of("local", 2) as client:
            place = sweeps._Cluster(client, 1, "", "")
            place.do = nothing
            before = psutil.Process().memory_info().rss
            started, stacks, trained, known = time.perf_counter(), 0, 0, 0
            for _, outcome in place.work(sweeps._Queue(tasks.cut(left, lambda setup, record: size))):
                stacks, trained = stacks + 1, trained + outcome["run_steps"]
                if stacks % 500 == 0:
                    known = max(known, psutil.Process().memory_info().rss - before)
            found |= {"stream_seconds": time.perf_counter() - started, "stream_mb": known / 1e6}
    found |= {"stacks": stacks, "streamed": trained}
    return found | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}


def schedule(runs: int = 100_000, size: int = 16, machines: int = 64, hours: float = 1.0) -> dict:
    """Return what a simulated schedule of `runs` on GPUs that fail is like, beside its bounds."""
    draw = np.random.default_rng(0)
    lengths = 3600 * hours * draw.lognormal(0, 0.5, -(-runs // size))  # the median stack takes an hour
    low, high = makespans.bounds(lengths, machines)
    failures = makespans.drawn_failures(24 * 3600, machines, 3 * high)  # one a day and GPU
    calm = makespans.simulate(lengths, machines)
    hit = makespans.simulate(lengths, machines, failures, repair=600, saved_every=60)
    bare = makespans.simulate(lengths, machines, failures, repair=600)
    return {
        "machines": machines,
        "stacks": len(lengths),
        "days": calm.makespan / 86400,
        "over_bound": calm.makespan / low - 1,
        "graham_over": high / low - 1,
        "days_failing": hit.makespan / 86400,
        "failures": hit.failures,
        "lost_share": hit.lost / lengths.sum(),
        "days_without_states": bare.makespan / 86400,
        "lost_share_without_states": bare.lost / lengths.sum(),
    }


def main() -> None:
    """Measure what is asked for, print it, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=["efficiency", "graph", "schedule"])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--stacks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    parts = {
        "efficiency": lambda: efficiency(options.pairs, options.stacks, steps=options.steps),
        "graph": graph,
        "schedule": schedule,
    }
    path = root() / PATH
    for name in options.what:
        found = parts[name]() | {key: results.origin()[key] for key in ("created", "git_revision")}
        print(name, json.dumps(found, indent=1), flush=True)
        if options.write:
            kept = json.loads(path.read_text()) if path.exists() else {}
            write_whole(path, json.dumps(kept | {name: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
