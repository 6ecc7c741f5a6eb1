"""How well does a monitor say when the next break comes? Trainings in plain PyTorch, forecast at moments of them.

    python tests/benchmarks/waits.py [--seeds 200 ...] [--write]

At 25, 50 and 75 % of every passage between two breaks the monitor's record is cut, so that nothing later is known, and
asked: before which step no break comes (`outlook.not_before`), when it is due (`outlook.due`), and whether an interval
would have been given (`outlook.interval`). Beside it the baseline, "as long as before", in the same table and with an
interval made in the same way. What would pass by mistake? A bound that is never later than now, and an interval wide
enough: so the share of the wait that the bound excludes, and widths, are there, too.

The table `CASES` and the claims `monitor-not-before` and `monitor-interval` (data/claims/claims.yml) were fixed on
seeds below 200; the judging seeds are `JUDGED`, run afterwards. With --write the rows go to data/benchmarks/waits.csv,
one for each moment, in steps.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from tables import dated
from torch import nn
from torch.nn.functional import cross_entropy

from periodic_lib.monitor import Monitor, outlook
from periodic_lib.project import root

JUDGED = (200,)
PATH = "data/benchmarks/waits.csv"
MOMENTS = (0.25, 0.5, 0.75)  # of a passage
EXAMPLES, BATCH = 1500, 64
METHODS = ("clock", "level", "thresholds")


@dataclass(frozen=True)
class Case:
    """A training: network, optimizer, learning rate, weight decay, steps."""

    network: str
    optimizer: str
    lr: float
    weight_decay: float
    steps: int = 2500


CASES = [
    Case(network, optimizer, lr, weight_decay, steps)
    for network, steps in (("perceptron", 3200), ("convnet", 2400))
    for optimizer, lr, weight_decay in (
        ("sgd", 0.3, 1e-2),
        ("sgd", 1.0, 3e-3),
        ("momentum", 0.1, 1e-2),
        ("momentum", 0.05, 1e-2),
        ("adamw", 3e-3, 1.0),
        ("adamw", 5e-3, 1.0),
    )
]


def network(name: str) -> nn.Sequential:
    """Three normalized layers of width 32, or of 12 channels; the last layer is frozen at norm 10."""
    layers: list[nn.Module] = []
    if name == "perceptron":
        for inputs, outputs in itertools.pairwise([64, 32, 32, 32]):
            layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
        last = nn.Linear(32, 10)
    else:
        layers += [nn.Unflatten(1, (1, 8, 8))]
        for inputs, outputs, stride in ((1, 12, 1), (12, 12, 2), (12, 12, 2)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers, last = [*layers, nn.Flatten()], nn.Linear(48, 10)
    with torch.no_grad():
        last.weight *= 10 / last.weight.norm()
    last.weight.requires_grad_(False)
    return nn.Sequential(*layers, last)


def train(case: Case, seed: int) -> Monitor:
    """Return the monitor of one training; decay is on the scale-invariant weights."""
    torch.manual_seed(seed)
    chance, model = torch.Generator().manual_seed(seed), network(case.network)
    pictures, labels = (torch.as_tensor(part[:EXAMPLES]) for part in load_digits(return_X_y=True))
    pictures = pictures.float() / 16 - 0.3
    mine = {name: p for name, p in model.named_parameters() if p.dim() > 1 and p.requires_grad}
    others = [p for name, p in model.named_parameters() if name not in mine and p.requires_grad]
    parts = [{"params": list(mine.values())}, {"params": others, "weight_decay": 0.0}]
    kind, options = torch.optim.SGD, {"momentum": 0.9 * (case.optimizer == "momentum")}
    if case.optimizer == "adamw":
        kind, options = torch.optim.AdamW, {}
    optimizer = kind(parts, lr=case.lr, weight_decay=case.weight_decay, **options)
    monitor = Monitor(model, optimizer, groups=[[name] for name in mine], total_steps=case.steps)
    for _ in range(case.steps):
        at = torch.randint(EXAMPLES, (BATCH,), generator=chance)
        loss = cross_entropy(model(pictures[at]), labels[at])
        optimizer.zero_grad()
        loss.backward()
        monitor.loss = loss
        optimizer.step()
    return monitor


def forecasts(case: Case, seed: int) -> list[dict]:
    """Return one row for each moment of each passage of a training, with what was said then."""
    results = train(case, seed).results
    facts = {name: getattr(case, name) for name in ("network", "optimizer", "lr", "weight_decay")} | {"seed": seed}
    rows = []
    for number, passage in enumerate(outlook.breaks_and_passages(results).dropna().itertuples()):
        for moment in MOMENTS:
            now = int(passage.end + moment * passage.steps)
            known = outlook.until(results, now)
            row = facts | {"passage": number, "moment": moment, "begin": passage.end, "now": now}
            row |= {"break": passage.end + passage.steps, "not_before": outlook.not_before(known)}
            due, given = outlook.due(known), outlook.interval(known)
            for name, column in itertools.product(METHODS, ("point", "low", "high")):
                row[f"{name}_{column}"] = due[column].get(name, np.nan)
            rows.append(row | {"given": given["by"] if given else ""})
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, nargs="+", default=JUDGED)
    options.add_argument("--cases", type=int, nargs="+", default=range(len(CASES)), help="places in the table")
    options.add_argument("--write", action="store_true")
    asked = options.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed, case in itertools.product(asked.seeds, [CASES[place] for place in asked.cases]):
        found = forecasts(case, seed)
        print(f"{case}, seed {seed}: {len(found) // len(MOMENTS)} passages", flush=True)
        rows += found
    table = pd.DataFrame(rows)
    if asked.write:
        whole = [name for name in table if name.endswith(("_point", "_low", "_high", "begin", "break", "not_before"))]
        table[whole] = table[whole].round().astype("Int64")
        dated(table).to_csv(root() / PATH, index=False)


if __name__ == "__main__":
    main()
