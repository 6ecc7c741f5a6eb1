"""Speed of stacked training against what a competent user writes in plain PyTorch, one run after the other.

Both are measured in one process, interleaved, as medians; only their ratio is meant to carry over to other machines.
"""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import time

import pandas as pd
import torch
from tqdm import tqdm

from periodic_lib import datasets
from periodic_lib.config import Setup, grid, root
from periodic_lib.training import Stack

STACKS = (1, 4, 16)
ROUNDS, STEPS = 7, 60


def run() -> str:
    """Measure, write data/benchmarks/digits_mlp.json, and return the table."""
    setup = Setup(drop_last=True)
    timers = {"reference loop": _reference(setup)} | {f"stack of {runs}": _stacked(setup, runs) for runs in STACKS}
    timers["stack of 16, no metrics"] = _stacked(setup, 16, measure=False)
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for _ in tqdm(range(ROUNDS), desc="rounds", unit="round"):
        for name, timer in timers.items():
            seconds[name].append(timer())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [
        {
            "loop": name,
            "ms_per_run_step": round(1e3 * value, 4),
            "speedup": round(medians["reference loop"] / value, 2),
            "spread": round((max(seconds[name]) - min(seconds[name])) / value, 2),
        }
        for name, value in medians.items()
    ]
    path = root() / "data" / "benchmarks" / "digits_mlp.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    content = {"what": "digits, MLP 64-64-64-64, batch 128, float32", "machine": machine, "rows": rows}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return f"{pd.DataFrame(rows).to_string(index=False)}\n{path}"


def _reference(setup: Setup):
    """Return a timer of a plain loop: nn.Module, DataLoader, torch.optim.SGD, loss and norms read every step."""
    data = datasets.load(setup)
    layers = []
    for _ in range(3):
        layers += [torch.nn.Linear(64, 64, bias=False), torch.nn.BatchNorm1d(64, affine=False), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(64, data.classes))
    network[-1].requires_grad_(False)
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.1, weight_decay=1e-2)
    examples = torch.utils.data.TensorDataset(data.x_train, data.y_train)
    loader = torch.utils.data.DataLoader(examples, setup.batch_size, shuffle=True, drop_last=True)

    def one_step(x, y) -> tuple[float, float, float]:
        loss = torch.nn.functional.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum(w.detach().square().sum() for w in weights)).item()
        gradient = torch.sqrt(sum(w.grad.square().sum() for w in weights)).item()
        optimizer.step()
        return loss.item(), norm, gradient

    def timer() -> float:
        steps, started = 0, time.perf_counter()
        while steps < STEPS:
            for x, y in loader:
                one_step(x, y)
                steps += 1
        return (time.perf_counter() - started) / steps

    return timer


def _stacked(setup: Setup, runs: int, measure: bool = True):
    """Return a timer of `runs` stacked runs: seconds per run and step, all metrics measured every step."""
    stack = Stack(setup, grid(lr=0.1, weight_decay=1e-2, seed=range(runs)))
    order = stack.batch_order()

    def timer() -> float:
        started = time.perf_counter()
        for _ in range(STEPS):
            stack.step(order.next(), measure)
        return (time.perf_counter() - started) / STEPS / runs

    return timer
