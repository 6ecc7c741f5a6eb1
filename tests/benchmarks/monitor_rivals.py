"""What other tools that watch a training cost, beside the monitor: one ResNet-18 of CIFAR's shape, all in one run.

    python tests/benchmarks/monitor_rivals.py [--rounds 6] [--batch 64] [--write]

Every round makes one step without a tool and one with each, in turn, of networks that start alike; processor time.
`own_share` is the time spent in the tool's own code over that of a step without (a median),
`paired_ratio` the median of (with - without) / without, which sees also what a tool makes others wait for, and noise.

- monitor: by default: norms at every step, a copy of the weights at every tenth, neurons at every hundredth.
- trainscope: by default: gradient and weight norms at every step, activations at every fifth, histograms at every
  fiftieth. Of both, `own_share` is the mean over such a cycle, from the rounds of each kind;
  with fewer than 11 rounds the monitor's first, the dearest, stands for those with a copy.
- lightning: `SpikeDetection` of Lightning's Fabric, which compares the loss with its running mean.

A tool that is not installed has a row that says so. None is a dependency: `pip install --no-deps --target FOLDER` and
PYTHONPATH serve. With --write the rows go to data/benchmarks/monitor_rivals.csv.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pandas as pd
import torch
from monitor_cost import WATCHED
from tables import of_processor
from torch import nn

from periodic_lib.engine.sources import import_torchvision
from periodic_lib.monitor import Monitor
from periodic_lib.project import root

sys.path.append(str(Path(__file__).resolve().parent.parent))

from plain_networks import PlainResNet

PATH = "data/benchmarks/monitor_rivals.csv"
CYCLES = {"trainscope": (50, 5), "monitor": (100, 10)}  # steps until all repeats, and until some of it does


class Tool:
    """A training that a tool watches; this one has none. `spent`: seconds in the tool's own code."""

    package = "torch"

    def __init__(self, batch: int):
        torch.manual_seed(0)
        self.model = PlainResNet((3, 32, 32), 64, affine=True)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=1e-2)
        self.x, self.y = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
        self.steps, self.spent, self.attached = 0, 0.0, False

    def timed(self, function):
        def call(*arguments, **options):
            start = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                self.spent += time.process_time() - start

        return call

    def attach(self) -> None:
        pass

    def watch(self, loss: torch.Tensor) -> None:
        """After the backward pass."""

    def step(self) -> tuple[float, float]:
        """Return the seconds of a step and of the tool's part in it."""
        self.spent, start = 0.0, time.process_time()
        loss = nn.functional.cross_entropy(self.model(self.x), self.y)
        loss.backward()
        if self.attached:
            self.watch(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        return time.process_time() - start, self.spent


class OurMonitor(Tool):
    package = "periodic-lib"

    def attach(self) -> None:
        groups = [[name] for name, p in self.model.named_parameters() if p.dim() == 4]
        for name in WATCHED[:3]:
            setattr(Monitor, name, self.timed_method(getattr(Monitor, name)))
        self.monitor = Monitor(self.model, self.optimizer, groups=groups)

    def timed_method(self, method):
        return lambda monitor, *arguments: self.timed(method)(monitor, *arguments)

    def watch(self, loss: torch.Tensor) -> None:
        self.monitor.loss = loss


class TrainScope(Tool):
    package = "trainscope"

    def attach(self) -> None:
        import trainscope

        self.folder = tempfile.TemporaryDirectory()
        options = trainscope.TrainScopeConfig(run_dir=self.folder.name)
        self.scope = trainscope.TrainScope(self.model, self.optimizer, config=options).attach()
        for module in self.model.modules():
            for key, hook in module._forward_hooks.items():
                module._forward_hooks[key] = self.timed(hook)

    def watch(self, loss: torch.Tensor) -> None:
        self.timed(lambda: self.scope.step(loss.item(), batch_index=self.steps))()


class LightningSpikes(Tool):
    package = "lightning"

    def attach(self) -> None:
        import_torchvision()
        from lightning.fabric import Fabric
        from lightning.fabric.utilities.spike import SpikeDetection

        self.fabric, self.spikes = Fabric(accelerator="cpu", devices=1), SpikeDetection()

    def watch(self, loss: torch.Tensor) -> None:
        self.timed(self.spikes.on_train_batch_end)(self.fabric, loss.detach(), None, self.steps)


TOOLS = {
    "none": Tool,
    "monitor": OurMonitor,
    "trainscope": TrainScope,
    "lightning": LightningSpikes,
}


def weights_of(name: str, rounds: int) -> list[float]:
    """Return how many steps of a tool's cycle each round stands for."""
    if name not in CYCLES:
        return [1.0] * rounds
    whole, part = CYCLES[name]
    kinds = ["all" if i == 0 else "rest" if i % part else "some" for i in range(rounds)]
    count = {"all": 1, "some": whole // part - 1, "rest": whole - whole // part}
    if "some" not in kinds:
        count["all"] += count["some"]
    return [count[kind] / kinds.count(kind) for kind in kinds]


def measure(rounds: int, batch: int) -> pd.DataFrame:
    tools, rows = {}, []
    for name, kind in TOOLS.items():
        tool = kind(batch)
        tool.step()  # to warm up
        try:
            with contextlib.redirect_stderr(None), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tool.attach()
                tool.steps, tool.attached = 0, True
        except ImportError as error:
            rows.append({"tool": name, "note": f"not installed: {error}"})
            continue
        tools[name] = tool
    times = {name: [] for name in tools}
    for turn in range(rounds):
        order = [*tools][turn % len(tools) :] + [*tools][: turn % len(tools)]
        for name in order:
            times[name].append(tools[name].step())
        print(turn, {name: [round(t, 3) for t in times[name][-1]] for name in order}, flush=True)
    plain = [seconds for seconds, _ in times["none"]]
    for name, found in times.items():
        shares = [own / statistics.median(plain) for _, own in found]
        ratios = [seconds / other - 1 for (seconds, _), other in zip(found, plain, strict=True)]
        weights = weights_of(name, rounds)
        share = sum(map(float.__mul__, shares, weights)) / sum(weights)
        row = {"tool": name, "version": importlib.metadata.version(TOOLS[name].package), "rounds": rounds}
        row |= {"step_seconds": round(statistics.median(plain), 3), "own_share": round(share, 5)}
        rows.append(row | {"paired_ratio": round(statistics.median(ratios), 4), "note": ""})
    return pd.DataFrame(rows).assign(batch=batch, optimizer="AdamW")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=6)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--write", action="store_true")
    asked = options.parse_args()
    torch.set_num_threads(1)
    table = measure(asked.rounds, asked.batch)
    print(table.to_string(index=False))
    if asked.write:
        of_processor(table).to_csv(root() / PATH, index=False)


if __name__ == "__main__":
    main()
