"""Seconds to list, select, look up and join 5,000 stored runs, in files of 16.

    python tests/benchmarks/store_speed.py [--write]

The files are copies of one trained stack with other seeds in them, in a folder of their own. "first
listing" makes the index from the files; the others read it. `--write` keeps the table in
data/benchmarks/store.csv.
"""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from periodic_lib import Record, Setup, grid, results, train
from periodic_lib.project import root, write_whole
from periodic_lib.storage import index, store

RUNS, SIZE, JOINED = 5000, 16, 64
PATH = "data/benchmarks/store.csv"


def main() -> None:
    """Measure, print, and keep the table if asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"keep it in {PATH}")
    options = parser.parse_args()
    table = measured(RUNS, SIZE)
    table["processor"], table["date"] = processor(), datetime.datetime.now(datetime.UTC).date().isoformat()
    print(table.to_string(index=False))
    if options.write:
        write_whole(root() / PATH, table.to_csv(index=False))


def measured(runs: int, size: int) -> pd.DataFrame:
    """Return the times for so many runs in files of `size` runs."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PERIODIC_CACHE"] = folder
        fill(runs, size)
        times = {"first listing, without an index": seconds(store.listing), "listing": seconds(store.listing)}
        times["selecting one seed"] = seconds(lambda: store.listing(init_seed=7))
        keys = list(store.listing().index)
        times["which of all are missing"] = seconds(lambda: store.missing(keys))
        first = list(store.listing().sort_values("init_seed").index[:JOINED])
        times[f"joining {len(first)}"] = seconds(lambda: store.take(first))
    rows = [{"what": what, "seconds": round(value, 3)} for what, value in times.items()]
    return pd.DataFrame(rows).assign(runs=len(keys), runs_in_a_file=size)


def fill(runs: int, size: int) -> None:
    """Store copies of one stack under other seeds; only those that are joined have right checksums."""
    setup, record, ours = Setup(width=8, depth=1, steps=20), Record(evaluate_every=10), np.arange(size) + 10**6
    stack = train(setup, grid(lr=0.1, weight_decay=1e-2, seed=range(size)), record, progress=False)
    stack = stack.assign_coords(init_seed=("run", ours))
    content = results.save(stack, store.folder() / "one.nc").read_bytes()
    (store.folder() / "one.nc").unlink()
    for number in range(-(-runs // size)):
        path, seeds = store.folder() / f"{number % 256:02x}" / f"{number:06d}.nc", number * size + np.arange(size)
        if number * size < JOINED:
            results.save(stack.assign_coords(init_seed=("run", seeds)), path)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content.replace(ours.tobytes(), seeds.tobytes(), 1))


def seconds(call: Callable[[], object]) -> float:
    """Return the time of a call that finds nothing in this process's memory."""
    index._parsed.cache_clear()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def processor() -> str:
    """Return the processor as this project's tables name it."""
    from bench import processor as name

    return name()


if __name__ == "__main__":
    main()
