"""What a monitor costs: a CIFAR-shaped ResNet-18 with and without it, step by step in one run.

    python tests/benchmarks/monitor_cost.py [--pairs 8] [--batch 64] [--write]

Steps with the monitor and without alternate on one network, so that both see the same machine; processor time, which
others on the machine disturb less than the clock. `hooks_share` is the time spent in the monitor's own code over that
of a whole step, `paired_ratio` the median over pairs of (with - without) / without, `read_share` that of reading and
judging, once in 100 steps. With --write the rows go to data/benchmarks/monitor.csv.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch
from tables import of_processor
from torch import nn

from periodic_lib.monitor import Monitor, gauges
from periodic_lib.project import root

sys.path.append(str(Path(__file__).resolve().parent.parent))

from plain_networks import PlainResNet

PATH = "data/benchmarks/monitor.csv"
WATCHED = ("_before", "_after", "_take_loss", "_flush")


@contextmanager
def timed(spent: dict[str, float]):
    """Add the processor time of the monitor's outermost calls to `spent`."""
    whole = {name: getattr(Monitor, name) for name in WATCHED}

    def wrap(name, method):
        def call(self, *arguments, **options):
            outer, spent["depth"] = spent["depth"] == 0, spent["depth"] + 1
            start = time.process_time()
            try:
                return method(self, *arguments, **options)
            finally:
                spent["depth"] -= 1
                if outer:
                    spent["seconds"] += time.process_time() - start

        setattr(Monitor, name, call)

    for name, method in whole.items():
        wrap(name, method)
    try:
        yield
    finally:
        for name, method in whole.items():
            setattr(Monitor, name, method)


def measure(kind: str, pairs: int, batch: int) -> dict[str, object]:
    torch.manual_seed(0)
    model = PlainResNet((3, 32, 32), 64, affine=True)
    invariant = [[name] for name, p in model.named_parameters() if p.dim() == 4]
    make = {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW}[kind]
    optimizer = make(model.parameters(), lr=1e-3, weight_decay=1e-2)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    spent, times = {"seconds": 0.0, "depth": 0}, {True: [], False: []}

    def step(watched: bool) -> None:
        if watched:
            monitor._handles = [
                optimizer.register_step_pre_hook(monitor._before),
                optimizer.register_step_post_hook(monitor._after),
            ]
        start = time.process_time()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        if watched:
            monitor.loss = loss
        optimizer.step()
        optimizer.zero_grad()
        times[watched].append(time.process_time() - start)
        monitor.detach()

    with timed(spent):
        monitor = Monitor(model, optimizer, groups=invariant)
        monitor.detach()
        step(False)
        step(True)
        spent["seconds"], times[True], times[False] = 0.0, [], []
        for pair in range(pairs):
            for watched in (pair % 2 == 0, pair % 2 == 1):
                step(watched)
        hooks = spent["seconds"] / pairs
        monitor.steps += gauges.ROWS - monitor.steps % gauges.ROWS  # as if the ring were full
        spent["seconds"] = 0.0
        monitor._flush()
    without = statistics.median(times[False])
    ratios = [a / b - 1 for a, b in zip(times[True], times[False], strict=True)]
    return {
        "optimizer": kind,
        "weights": sum(p.numel() for p in model.parameters()),
        "batch": batch,
        "pairs": pairs,
        "step_seconds": round(without, 4),
        "hooks_share": round(hooks / without, 5),
        "read_share": round(spent["seconds"] / gauges.ROWS / without, 5),
        "paired_ratio": round(statistics.median(ratios), 5),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--pairs", type=int, default=8)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--write", action="store_true")
    asked = options.parse_args()
    torch.set_num_threads(1)
    table = pd.DataFrame([measure(kind, asked.pairs, asked.batch) for kind in ("SGD", "AdamW")])
    print(table.to_string(index=False))
    if asked.write:
        of_processor(table).to_csv(root() / PATH, index=False)


if __name__ == "__main__":
    main()
