"""Speed and memory of stacked training against what a competent user writes in plain PyTorch.

The *reference loop* is that: `nn.Module`, `DataLoader` with torchvision-style transforms, `torch.optim.SGD`, `.item()`
for the loss and the norms at every step; one run after the other. It has a process of its own, as a user's script has:
the library's choice of how memory is freed would speed it up, too. Both are measured in turn, as medians of several
rounds; the ratio is what carries over to other machines. The *share of the limit* is the arithmetic of a step over its
time, against the best matrix product measured in the same run.
"""

from __future__ import annotations

import datetime
import itertools
import json
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from periodic_lib import datasets, networks
from periodic_lib.config import Setup, grid, root
from periodic_lib.training import Stack

ROUNDS = 5
SECONDS = 0.5  # about, of one timing


@dataclass(frozen=True)
class Case:
    """One row: a setup, how many runs are stacked, and whether the reference loop is measured beside it."""

    name: str
    setup: Setup
    stacks: tuple[int, ...]
    reference: bool = True
    shape: tuple[int, int, int] = (1, 8, 8)
    without_metrics: bool = False  # the last stack once more, with nothing measured but the loss
    workers: tuple[int, ...] = (0, 2)  # of the reference loop's loader
    cuda: bool = False  # measured on a CUDA device only


MLP = Setup(drop_last=True)
CONVNET = Setup(network="convnet", width=16, drop_last=True)
CASES = (
    Case("digits, MLP width 64", MLP, stacks=(1, 4, 64, 16), without_metrics=True),
    Case("digits, ConvNet width 16", CONVNET, stacks=(1, 4, 8, 16)),
    Case("CIFAR-shaped, ConvNet width 32", replace(CONVNET, width=32), stacks=(1,), shape=(3, 32, 32)),
    Case("CIFAR-shaped, ResNet-18 width 16", replace(CONVNET, network="resnet18"), stacks=(1,), shape=(3, 32, 32)),
    Case("digits, MLP width 256", replace(MLP, width=256), stacks=(16,), reference=False),
    Case("digits, MLP width 64, batch 32", replace(MLP, batch_size=32), stacks=(16,), reference=False),
    Case("digits, MLP width 64, batch 512", replace(MLP, batch_size=512), stacks=(16,), reference=False),
    Case(
        "CUDA: CIFAR-shaped, ConvNet width 32",
        replace(CONVNET, width=32),
        stacks=(1, 4, 8),
        shape=(3, 32, 32),
        workers=(4,),
        cuda=True,
    ),
)


def run(cases: tuple[Case, ...] = CASES, device: str | None = None) -> str:
    """Measure all cases, write data/benchmarks/training.json, and return the table."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    peak = _peak(device)
    rows = []
    for case in tqdm(cases, desc="cases", unit="case"):
        if case.cuda and device == "cpu":
            rows += [{"case": case.name, "loop": f"stack of {n}", "note": "not measured"} for n in case.stacks]
        else:
            rows += _measure(case, peak, device)
    content = {"machine": _machine(device), "peak_gflops": round(peak / 1e9, 1), "rows": rows}
    path = root() / "data" / "benchmarks" / "training.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    table = pd.DataFrame(rows).to_string(index=False, na_rep="-")
    return f"{table}\npeak of a matrix product: {peak / 1e9:.0f} GFLOP/s\n{path}"


def _machine(device: str) -> dict:
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _peak(device: str) -> float:
    """Return the FLOP/s of the best of several large float32 matrix products."""
    best = 0.0
    for size in (1024, 2048, 3072):
        a, b = (torch.randn(size, size, device=device) for _ in range(2))
        for _ in range(4):
            started = time.perf_counter()
            a @ b
            _wait(device)
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


# ---------------------------------------------------------------- one case


def _measure(case: Case, peak: float, device: str) -> list[dict]:
    """Return the rows of one case: reference loops and stacks, timed in turn."""
    pictures, labels = _pictures(case)
    with ExitStack() as processes:
        timers: dict[str, Callable[[int], float]] = {}
        for workers in case.workers if case.reference else ():
            timers[f"reference, {workers} workers"] = processes.enter_context(_elsewhere(case, workers, device))
        return _rows(case, timers, pictures, labels, peak, device)


def _rows(case: Case, timers: dict, pictures, labels, peak: float, device: str) -> list[dict]:
    memory = {}
    for runs in case.stacks:
        before = _memory()
        timers[f"stack of {runs}"] = _stacked(case, pictures, labels, runs, device)
        memory[f"stack of {runs}"] = max(0.0, _memory() - before)
    if case.without_metrics:
        timers[f"stack of {runs}, no metrics"] = _stacked(case, pictures, labels, runs, device, parts=None)
    measured: dict[str, list[float]] = {name: [] for name in timers}
    steps = {name: max(2, round(SECONDS / timer(2))) for name, timer in timers.items()}  # warms up, too
    for _ in range(ROUNDS):
        for name, timer in timers.items():
            measured[name].append(timer(steps[name]))
    medians = {name: statistics.median(values) for name, values in measured.items()}
    references = [value for name, value in medians.items() if name.startswith("reference")]
    flops = _flops(case)
    return [
        {
            "case": case.name,
            "loop": name,
            "ms_per_run_step": round(1e3 * value, 3),
            "spread": round((max(measured[name]) - min(measured[name])) / value, 2),
            "speedup": round(min(references) / value, 2) if references else None,
            "share_of_peak": round(flops / value / peak, 2),
            "memory_mb": round(memory[name]) if name in memory else None,
        }
        for name, value in medians.items()
    ]


def _memory() -> float:
    """Return the most memory that this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _pictures(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 pictures (n, h, w, c) and labels: the digits, or random ones of the case's shape."""
    channels, height, width = case.shape
    if (channels, height, width) == (1, 8, 8):
        data = datasets.load(case.setup)
        x = data.x_train.permute(0, 2, 3, 1).numpy()
        return (255 * (x - x.min()) / (x.max() - x.min())).astype(np.uint8), data.y_train.numpy()
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (4096, height, width, channels), np.uint8), rng.integers(0, 10, 4096)


def _flops(case: Case) -> float:
    """Return the floating-point operations of one run's step (products and convolutions, forward and backward)."""
    network = networks.build(case.setup, case.shape, classes=10)
    values = {name: v.float()[None].requires_grad_() for name, v in network.initialize(0).items()}
    trained = [values[p.name] for p in network.parameters if p.scale_invariant]
    with FlopCounterMode(display=False) as counter:
        x = torch.randn(1, case.setup.batch_size, *case.shape)
        loss = networks.cross_entropy(network.logits(values, x), torch.zeros(1, len(x[0]), dtype=torch.long))
        torch.autograd.grad(loss.sum(), trained)
    return float(counter.get_total_flops())


def _stacked(case: Case, pictures, labels, runs: int, device: str, parts=()) -> Callable[[int], float]:
    """Return a timer of `runs` stacked runs: seconds per run and step, all metrics measured unless parts is None."""
    stack = Stack(case.setup, grid(lr=0.01, weight_decay=1e-2, seed=range(runs)), device, data=_data(pictures, labels))
    order = stack.batch_order()

    def timer(steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            stack.step(order.next(), parts)
        _wait(device)
        return (time.perf_counter() - started) / steps / runs

    return timer


def _data(pictures: np.ndarray, labels: np.ndarray) -> datasets.Data:
    x = torch.as_tensor(pictures).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.25).contiguous()
    y = torch.as_tensor(labels, dtype=torch.int64)
    return datasets.Data(x, y, x[:10], y[:10], classes=10, black=torch.full((x.shape[1],), -2.0))


# ---------------------------------------------------------------- the reference loop


class _Transformed(Dataset):
    """Pictures as torchvision's data sets give them: one at a time, through transforms."""

    def __init__(self, pictures: np.ndarray, labels: np.ndarray):
        datasets._import_torchvision()
        from torchvision import transforms

        channels = pictures.shape[-1]
        self.pictures, self.labels = pictures, labels
        self.transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize([0.5] * channels, [0.25] * channels)]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.transform(self.pictures[index]), int(self.labels[index])


class _PlainMLP(nn.Sequential):
    def __init__(self, shape, width):
        sizes, layers = [int(np.prod(shape)), width, width, width], [nn.Flatten()]
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs, affine=False), nn.ReLU()]
        super().__init__(*layers, nn.Linear(width, 10))


class _PlainConvNet(nn.Sequential):
    def __init__(self, shape, width):
        sizes, layers = [shape[0]] + [width * 2**i for i in range(4)], []
        for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs, affine=False)]
            layers += [nn.ReLU()] + [nn.MaxPool2d(2)] * (i > 0)
        super().__init__(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], 10))


class _PlainBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        norm = lambda channels: nn.BatchNorm2d(channels, affine=False)  # noqa: E731
        self.body = nn.Sequential(
            norm(inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            norm(outputs), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        )  # fmt: skip
        same = stride == 1 and inputs == outputs
        shortcut = nn.Sequential(norm(inputs), nn.Conv2d(inputs, outputs, 1, stride, bias=False))
        self.shortcut = nn.Identity() if same else shortcut

    def forward(self, x):
        return self.body(x) + self.shortcut(x)


class _PlainResNet(nn.Sequential):
    def __init__(self, shape, width):
        layers, size = [nn.Conv2d(shape[0], width, 3, 1, 1, bias=False)], width
        for stage in range(4):
            for number in range(2):
                layers.append(_PlainBlock(size, width * 2**stage, 2 if stage and not number else 1))
                size = width * 2**stage
        layers += [nn.BatchNorm2d(size, affine=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*layers, nn.Linear(size, 10, bias=False))


PLAIN = {"mlp": _PlainMLP, "convnet": _PlainConvNet, "resnet18": _PlainResNet}


@contextmanager
def _elsewhere(case: Case, workers: int, device: str):
    """Yield the timer of the reference loop, which runs in a process of its own."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, case, workers, device))
    process.start()
    theirs.close()  # so that a dead process is noticed

    def timer(steps: int) -> float:
        mine.send(steps)
        return mine.recv()

    try:
        yield timer
    finally:
        with suppress(OSError):  # it may have died
            mine.send(0)
        process.join(30)
        process.kill()
        mine.close()


def _serve(pipe: Connection, case: Case, workers: int, device: str) -> None:
    """Answer numbers of steps with seconds per step, until asked for none."""
    timer = _reference(case, *_pictures(case), workers, device)
    while steps := pipe.recv():
        pipe.send(timer(steps))


def _reference(case: Case, pictures, labels, workers: int, device: str) -> Callable[[int], float]:
    """Return a timer of the reference loop: seconds per step of one run."""
    network = PLAIN[case.setup.network](case.shape, case.setup.width).to(device)
    network[-1].requires_grad_(False)
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.01, weight_decay=1e-2)
    options = {"shuffle": True, "drop_last": True, "num_workers": workers, "persistent_workers": workers > 0}
    if workers and "fork" in multiprocessing.get_all_start_methods():
        options["multiprocessing_context"] = "fork"  # as a script's workers start on Linux
    loader = DataLoader(_Transformed(pictures, labels), case.setup.batch_size, **options)

    def one_step(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float, float]:
        loss = nn.functional.cross_entropy(network(x.to(device)), y.to(device))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum(w.detach().square().sum() for w in weights)).item()
        gradient = torch.sqrt(sum(w.grad.square().sum() for w in weights)).item()
        optimizer.step()
        return loss.item(), norm, gradient

    def endless():
        while True:
            yield from loader

    batches = endless()
    next(batches)  # workers start outside of the timing

    def timer(steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            one_step(*next(batches))
        return (time.perf_counter() - started) / steps

    return timer
