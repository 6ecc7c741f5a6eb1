"""A public report of loss spikes, re-created in small: a VGG with batch normalization under AdamW, and one without.

    python tests/benchmarks/public_report.py [--seeds 300 301] [--write]

The report (facial expressions, October 2026) continued a VGG with batch normalization at lr x wd = 1e-4 after it had
memorized its 33,827 pictures: eleven loss spikes in 264,000 steps, 2.4 / (lr wd) a spike, "likely" by weight decay; no
norm was measured. A VGG without batch normalization had a norm that fell and jumped back, too, with the accuracy at
100 %: another mechanism. Here both are torchvision's, of three convolutions, on 256 digits, at lr x wd = 2e-3,
with decay on every parameter as AdamW has it by default. What could make the causes agree by mistake? A monitor that
calls every spike norm-driven: hence the network without normalization, and one with it but without decay.

The cases and the claim `monitor-public-report` (data/claims/claims.yml) were fixed on seeds below 300; with --write a
row per training is appended to data/benchmarks/public_report.csv.
"""

from __future__ import annotations

import argparse
import itertools

import pandas as pd
import torch
from sklearn.datasets import load_digits
from tables import dated
from torch import nn
from torch.nn.functional import cross_entropy

from periodic_lib.engine.sources import import_torchvision
from periodic_lib.monitor import Monitor, outlook
from periodic_lib.project import root

JUDGED = (300, 301)
PATH = "data/benchmarks/public_report.csv"
LAYERS = [8, "M", 16, "M", 16]
LR, STEPS, EXAMPLES, BATCH = 8e-3, 3600, 256, 32
CASES = {  # batch normalization, weight decay, steps
    "normalized": (True, 0.25, STEPS),
    "normalized, no decay": (True, 0.0, STEPS // 3),
    "not normalized": (False, 1e-2, STEPS // 2),
}


def network(normalized: bool) -> nn.Sequential:
    """Torchvision's VGG of these layers, with a single linear layer behind."""
    vgg = import_torchvision().models.vgg
    features = vgg.make_layers(LAYERS, batch_norm=normalized)
    return nn.Sequential(features, nn.Flatten(), nn.Linear(16 * 4 * 4, 10))


def train(name: str, seed: int) -> tuple[Monitor, float]:
    """Return the monitor of a training, and the accuracy on the training set over its last 500 steps."""
    normalized, decay, steps = CASES[name]
    torch.manual_seed(seed)
    model, chance = network(normalized), torch.Generator().manual_seed(seed)
    digits = load_digits()
    pictures = torch.tensor(digits.images[:EXAMPLES] / 16 - 0.3).float()[:, None]
    pictures = pictures.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)
    labels, right = torch.tensor(digits.target[:EXAMPLES]), []
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=decay)
    monitor = Monitor(model, optimizer, example=pictures[:16], total_steps=steps)
    for step in range(steps):
        at = torch.randint(EXAMPLES, (BATCH,), generator=chance)
        outputs = model(pictures[at])
        loss = cross_entropy(outputs, labels[at])
        loss.backward()
        monitor.loss = loss
        optimizer.step()
        optimizer.zero_grad()
        if step >= steps - 500:
            right.append((outputs.argmax(1) == labels[at]).float().mean())
    return monitor, float(torch.stack(right).mean())


def judged(name: str, seed: int) -> dict[str, object]:
    """Return what became of a training: spikes by cause, and lr x wd x steps per norm-driven spike."""
    monitor, accuracy = train(name, seed)
    spikes, (_, decay, steps) = monitor.spikes, CASES[name]
    driven = spikes[spikes.cause == "norm-driven"]
    others = spikes.cause[spikes.cause != "norm-driven"].value_counts()
    return {
        "case": name,
        "seed": seed,
        "lr": LR,
        "weight_decay": decay,
        "steps": steps,
        "groups": len(monitor.groups),
        "accuracy": round(accuracy, 4),
        "spikes": len(spikes),
        "norm_driven": len(driven),
        "breaks": len(outlook.breaks_and_passages(monitor.results)),
        "others": "; ".join(f"{cause} {count}" for cause, count in others.items()),
        "first": int(driven.start.iloc[0]) if len(driven) else -1,
        "last": int(driven.start.iloc[-1]) if len(driven) else -1,
        "highest_loss": round(float(monitor.results.train_loss_largest.values[0, 500:].max()), 3),
        "unit": round(LR * decay * driven.start.iloc[-1] / len(driven), 3) if len(driven) else float("nan"),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, nargs="+", default=JUDGED)
    options.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    options.add_argument("--write", action="store_true")
    asked = options.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed, name in itertools.product(asked.seeds, asked.cases):
        rows.append(judged(name, seed))
        print(rows[-1], flush=True)
    if asked.write:
        path = root() / PATH
        dated(pd.DataFrame(rows)).to_csv(path, index=False, mode="a", header=not path.exists())


if __name__ == "__main__":
    main()
