"""Does a monitor name the causes of loss spikes? Small trainings in plain PyTorch whose cause is known.

    python tests/benchmarks/causes.py [--seeds 100 101 ...] [--write]

The table `KINDS`, what may be said of the spikes of each kind, and the rules of `periodic_lib.monitor.verdicts` were
fixed on seeds below 100; the judging seeds are `JUDGED`, run afterwards. With --write the counts go to
data/benchmarks/spike_causes.csv: a row for each kind, cause said, and number of spikes.

What passes by mistake? A rule that says one cause always is right in that kind only: every kind has its own row. Of a
kind without known cause every named spike is wrong.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass

import pandas as pd
import torch
from sklearn.datasets import load_digits
from tables import dated
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from periodic_lib.monitor import Monitor
from periodic_lib.monitor.verdicts import CAUSES
from periodic_lib.project import root

JUDGED = tuple(range(100, 105))
PATH = "data/benchmarks/spike_causes.csv"
NAMED = CAUSES[:-1]
NEAR = 3  # steps: a spike this close after a corrupted batch is its spike


@dataclass(frozen=True)
class Kind:
    """A kind of training, and `cause`, what its spikes come from ("" if they have none to name)."""

    cause: str
    optimizer: str = "SGD"
    lr: float = 0.1
    weight_decay: float = 0.0
    momentum: float = 0.0
    beta2: float = 0.999
    width: int = 32
    normalized: bool = True
    steps: int = 2000
    examples: int = 1500
    batch: int | None = 128  # None: all examples
    squares: bool = False  # loss: squared error, not cross-entropy
    corrupted_every: int = 0
    noisy_labels: float = 0.0
    raised: float = 1.0  # factor of the learning rate from the middle on
    held: bool = False  # norms of scale-invariant weights


KINDS = {
    "decay, SGD": Kind("norm-driven", lr=0.3, weight_decay=1e-2),
    "decay, SGD, wide": Kind("norm-driven", lr=0.3, weight_decay=5e-3, width=64),
    "decay, SGD, large rate": Kind("norm-driven", lr=1.0, weight_decay=2e-3),
    "decay, momentum": Kind("norm-driven", lr=0.1, weight_decay=1e-3, momentum=0.9, width=64),
    "decay, AdamW": Kind("norm-driven", "AdamW", lr=3e-3, weight_decay=0.5, width=64),
    "corrupted, SGD": Kind("outlier batch", corrupted_every=250),
    "corrupted, SGD with decay": Kind("outlier batch", weight_decay=1e-3, corrupted_every=250),
    "corrupted, momentum": Kind("outlier batch", lr=0.01, momentum=0.9, corrupted_every=250),
    "corrupted, Adam": Kind("outlier batch", "Adam", lr=1e-3, corrupted_every=250),
    "slingshot": Kind("optimizer state", "Adam", lr=1e-2, normalized=False, examples=200, batch=None, squares=True),
    "slingshot, wide": Kind(
        "optimizer state", "Adam", lr=1e-2, width=64, normalized=False, examples=200, batch=None, squares=True
    ),
    "rate raised": Kind("learning rate", lr=0.02, raised=100),
    "rate raised, with decay": Kind("learning rate", lr=0.02, weight_decay=1e-3, raised=100),
    "rate too high": Kind("", lr=1.5, normalized=False),
    "noisy labels": Kind("", lr=0.3, weight_decay=1e-2, noisy_labels=0.2),
    "norm held": Kind("", lr=0.1, weight_decay=1e-2, held=True),
    "nothing": Kind("", lr=0.1),
}


def network(kind: Kind) -> nn.Sequential:
    """Three hidden layers; with batch norms the last layer is frozen at norm 10."""
    sizes, layers = [64, *[kind.width] * 3], []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, bias=not kind.normalized)]
        layers += [nn.BatchNorm1d(outputs)] if kind.normalized else []
        layers += [nn.ReLU()]
    last = nn.Linear(kind.width, 10)
    if kind.normalized:
        with torch.no_grad():
            last.weight *= 10 / last.weight.norm()
        last.weight.requires_grad_(False)
    return nn.Sequential(*layers, last)


def data(kind: Kind, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = (torch.as_tensor(part[: kind.examples]) for part in load_digits(return_X_y=True))
    x = (x.float() - x.float().mean(0)) / (x.float().std(0) + 1.6)
    noisy = torch.rand(len(y), generator=chance) < kind.noisy_labels
    return x, torch.where(noisy, torch.randint(10, y.shape, generator=chance), y)


def invariant(model: nn.Sequential, kind: Kind) -> dict[str, nn.Parameter]:
    """The weights before each batch norm."""
    named = dict(model.named_parameters())
    return {name: p for name, p in named.items() if kind.normalized and p.dim() == 2 and p.requires_grad}


def optimizer_of(model: nn.Sequential, kind: Kind) -> torch.optim.Optimizer:
    mine = invariant(model, kind)
    others = [p for name, p in model.named_parameters() if name not in mine and p.requires_grad]
    parts = [{"params": list(mine.values()), "weight_decay": kind.weight_decay}] if mine else []
    parts += [{"params": others, "weight_decay": 0.0}]
    if kind.optimizer == "SGD":
        return torch.optim.SGD(parts, kind.lr, kind.momentum)
    return getattr(torch.optim, kind.optimizer)(parts, kind.lr, betas=(0.9, kind.beta2))


def train(kind: Kind, seed: int) -> tuple[Monitor, list[int]]:
    """Return the monitor of one training, and the steps of its corrupted batches."""
    torch.manual_seed(seed)
    chance, model = torch.Generator().manual_seed(seed), network(kind)
    x, y = data(kind, chance)
    optimizer, mine = optimizer_of(model, kind), invariant(model, kind)
    monitor, corrupted = Monitor(model, optimizer, groups=[[name] for name in mine], total_steps=kind.steps), []
    lengths = [float(p.detach().norm()) for p in mine.values()]
    for step in range(kind.steps):
        if step == kind.steps // 2:
            for part in optimizer.param_groups:
                part["lr"] *= kind.raised
        at = slice(None) if kind.batch is None else torch.randint(len(y), (kind.batch,), generator=chance)
        labels = y[at]
        if kind.corrupted_every and step > 400 and step % kind.corrupted_every == 0:
            corrupted.append(step)
            labels = torch.randint(10, labels.shape, generator=chance)
        outputs = model(x[at])
        loss = mse_loss(outputs, one_hot(labels, 10).float()) if kind.squares else cross_entropy(outputs, labels)
        optimizer.zero_grad()
        loss.backward()
        monitor.loss = loss
        optimizer.step()
        if kind.held:
            with torch.no_grad():
                for p, length in zip(mine.values(), lengths, strict=True):
                    p *= length / p.norm()
    return monitor, corrupted


def judged(name: str, seed: int) -> list[dict]:
    """Return one row for each spike of a training: what it came from and what was said.

    Where batches were corrupted, their spikes have that cause and all others none; the same where the rate was raised.
    """
    kind = KINDS[name]
    monitor, corrupted = train(kind, seed)
    rows, spikes = [], monitor.spikes
    for spike in spikes.itertuples():
        cause = kind.cause
        if cause == "outlier batch" and not any(0 <= spike.start - step < NEAR for step in corrupted):
            cause = ""
        if cause == "learning rate" and not 0 <= spike.start - kind.steps // 2 < NEAR:
            cause = ""
        rows.append({"kind": name, "seed": seed, "cause": cause, "said": spike.cause, "start": spike.start})
    return rows or [{"kind": name, "seed": seed, "cause": kind.cause, "said": "no spike", "start": -1}]


def confusion(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the number of spikes by kind, cause and what was said, with the number of trainings."""
    counts = rows.groupby(["kind", "cause", "said"], sort=False).size().rename("spikes").reset_index()
    return counts.assign(trainings=counts.kind.map(rows.groupby("kind").seed.nunique()))


def share_right(counts: pd.DataFrame) -> tuple[float, int, int]:
    """Return the share of named spikes whose name is right, their number, and that of unknown ones."""
    named, unknown = counts[counts.said.isin(NAMED)], counts[counts.said == "unknown"]
    right = named[named.said == named.cause].spikes.sum()
    return float(right / named.spikes.sum()), int(named.spikes.sum()), int(unknown.spikes.sum())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, nargs="+", default=JUDGED)
    options.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    options.add_argument("--write", action="store_true")
    asked = options.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in asked.seeds:
        for name in asked.kinds:
            rows += judged(name, seed)
            said = pd.Series([row["said"] for row in rows if row["kind"] == name and row["seed"] == seed])
            print(f"{name} {seed}: {said.value_counts().to_dict()}", flush=True)
    counts = confusion(pd.DataFrame(rows))
    print(counts.to_string(index=False))
    print("right of named: {:.3f} of {}, unknown {}".format(*share_right(counts)))
    if asked.write:
        seeds = f"{min(asked.seeds)}-{max(asked.seeds)}"
        dated(counts.assign(seeds=seeds)).to_csv(root() / PATH, index=False)


if __name__ == "__main__":
    main()
