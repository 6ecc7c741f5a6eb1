"""Speed and memory of stacked training against what a competent user writes in plain PyTorch.

    python tests/benchmarks/bench.py [--device cpu|cuda]

The *reference loop* is that: `nn.Module`, `DataLoader` with torchvision-style transforms,
`torch.optim.SGD`, `.item()` for the loss and the norms at every step; one run after the other. It
has a process of its own, as a user's script has: the library's choice of how memory is freed would
speed it up, too. Both are measured in turn, as medians of several rounds; the ratio is what carries
over to other machines. The *share of the peak* is the arithmetic of a step over its time, against
the best float32 matrix product measured in the same run: above 1 where a convolution needs fewer
operations than its definition has.

The rows go to data/benchmarks/training.json, each with its machine; rows of other machines stay.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from periodic_lib.config import Setup, grid
from periodic_lib.engine import datasets, networks
from periodic_lib.engine.losses import cross_entropy
from periodic_lib.engine.sources import import_torchvision
from periodic_lib.engine.stack import Stack
from periodic_lib.project import root, write_whole

sys.path.append(str(Path(__file__).resolve().parent.parent))  # a script has only its own folder

from plain_networks import PLAIN

ROUNDS = 5
SECONDS = 0.5  # about, of one timing
WARM_UP_STEPS = 2
WORKER_STEPS = 50  # at least, with workers: more than they have loaded in advance
MACHINE = ("device", "processor", "instruction_set")  # what tells the rows of two machines apart


@dataclass(frozen=True)
class Case:
    """What is measured: a setup, the sizes of the stacks, and the reference loops beside them."""

    name: str
    setup: Setup
    stacks: tuple[int, ...]
    workers: tuple[int | None, ...] = (0, 2)  # of the reference loops' loaders; None: no loader
    shape: tuple[int, int, int] = (1, 8, 8)
    without_metrics: bool = False  # the last stack once more, with nothing measured but the loss
    cuda: bool = False  # measured on a CUDA device only


MLP = Setup(drop_last=True)
CONVNET = Setup(network="convnet", width=16, drop_last=True)
PAPER = replace(CONVNET, width=32, batch_size=128)  # of Lobacheva et al. 2021
RESNET = replace(CONVNET, network="resnet18")
CIFAR = (3, 32, 32)
STEP = Case("step of the paper's ConvNet", PAPER, stacks=(1,), workers=(None,), shape=CIFAR)
CASES = (
    Case("digits, MLP width 64", MLP, stacks=(1, 4, 64, 16), without_metrics=True),
    Case("digits, ConvNet width 16", CONVNET, stacks=(1, 4, 8, 16)),
    STEP,
    Case("CIFAR-shaped, ConvNet width 32", PAPER, stacks=(1,), shape=CIFAR),
    Case("CIFAR-shaped, ResNet-18 width 16", RESNET, stacks=(1,), shape=CIFAR),
    Case("digits, MLP width 256", replace(MLP, width=256), stacks=(16,), workers=()),
    Case("digits, MLP width 64, batch 32", replace(MLP, batch_size=32), stacks=(16,), workers=()),
    Case("digits, MLP width 64, batch 512", replace(MLP, batch_size=512), stacks=(16,), workers=()),
    Case(
        "CUDA: CIFAR-shaped, ConvNet width 32",
        PAPER,
        stacks=(1, 4, 8),
        workers=(4,),
        shape=CIFAR,
        cuda=True,
    ),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every device that there is, or the one that is asked for, and print the tables."""
    parser = argparse.ArgumentParser(description="measure speed against plain PyTorch")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="only this one; default: all")
    chosen = parser.parse_args(arguments).device
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    if chosen not in (None, *devices):
        parser.error(f"`--device` must be one of {devices} on this machine; got {chosen!r}.")
    for device in [chosen] if chosen else devices:
        print(run(CASES, device))


def run(cases: tuple[Case, ...] = CASES, device: str = "cpu") -> str:
    """Measure all cases on a device, put the rows into the file, and return them as a table."""
    peak, rows = best_product(device), []
    for case in tqdm(cases, desc=f"cases, {device}", unit="case"):
        rows += not_measured(case) if case.cuda and device == "cpu" else measure(case, peak, device)
    machine = machine_of(device) | {"peak_gflops": round(peak / 1e9, 1)}
    path = root() / "data" / "benchmarks" / "training.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    new = [row if "note" in row else row | machine for row in rows]
    write_whole(path, json.dumps({"rows": merged(kept, new)}, indent=1) + "\n")
    table = pd.DataFrame(rows).to_string(index=False, na_rep="-")
    return f"{machine}\n{table}\n{path}"


def not_measured(case: Case) -> list[dict]:
    """Return the rows of a case for which the device is missing."""
    row = {"case": case.name, "device": "cuda", "note": "not measured"}
    return [row | {"loop": f"stack of {runs}"} for runs in case.stacks]


def merged(kept: list[dict], new: list[dict]) -> list[dict]:
    """Return new rows in place of the same case's on the same machine, beside all others.

    >>> old = [{"case": "a", "device": "cpu", "ms": 9}, {"case": "a", "device": "H100", "ms": 2}]
    >>> merged(old, [{"case": "a", "device": "cpu", "ms": 8}])
    [{'case': 'a', 'device': 'H100', 'ms': 2}, {'case': 'a', 'device': 'cpu', 'ms': 8}]

    That a case was not measured is said only as long as no machine has measured it:

    >>> merged(old, [{"case": "a", "device": "cuda", "note": "not measured"}]) == old
    True
    """

    def key(row: dict) -> tuple:
        return (row["case"], *(row.get(name) for name in MACHINE))

    renewed = {key(row) for row in new}
    rows = [row for row in kept if key(row) not in renewed] + new
    measured = {row["case"] for row in rows if "note" not in row}
    return [row for row in rows if "note" not in row or row["case"] not in measured]


# ---------------------------------------------------------------- the machine


def machine_of(device: str) -> dict:
    """Return what a row says of its machine."""
    return {
        "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(),
        "processor": processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def processor() -> str:
    """Return the processor's name, as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = (line.split(":")[1] for line in lines if line.startswith("model name"))
            return next(names).strip()
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def best_product(device: str) -> float:
    """Return the FLOP/s of the best of several large float32 matrix products."""
    best = 0.0
    for size in (1024, 2048, 3072) if device == "cpu" else (4096, 8192):
        a, b = (torch.randn(size, size, device=device) for _ in range(2))
        for _ in range(4):
            wait(device)
            started = time.perf_counter()
            a @ b
            wait(device)
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def wait(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device != "cpu":
        torch.cuda.synchronize()


def memory(device: str) -> float:
    """Return the most memory that was held so far, in MB: of the card, or of this process."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # given in KB


# ---------------------------------------------------------------- one case


@dataclass
class Loop:
    """One way to train: `timer(steps)` returns the seconds that one step of all `runs` took.

    >>> loop = Loop("two runs, 4 ms a step", lambda steps: 4e-3, runs=2)
    >>> loop.prepare()
    >>> loop.steps, loop.timings
    (125, [])
    """

    name: str
    timer: Callable[[int], float]
    runs: int = 1
    workers: int = 0  # of its data loader
    memory_mb: float | None = None
    steps: int = 0
    timings: list[float] = field(default_factory=list)  # seconds per run and step, a round each

    def prepare(self) -> None:
        """Warm up, untimed; then choose how many steps take about `SECONDS`."""
        self.timer(WARM_UP_STEPS)
        least = WORKER_STEPS if self.workers else 2
        self.steps = max(least, round(SECONDS / self.timer(WARM_UP_STEPS)))

    def measure(self) -> None:
        """Add one timing."""
        self.timings.append(self.timer(self.steps) / self.runs)

    def seconds(self) -> float:
        """Return the median of seconds per run and step."""
        return statistics.median(self.timings)


def measure(case: Case, peak: float, device: str) -> list[dict]:
    """Return the rows of one case: reference loops and stacks, timed in turn."""
    with ExitStack() as processes:
        references = [reference_loop(case, workers, device) for workers in case.workers]
        loops = [processes.enter_context(reference) for reference in references]
        loops += [stacked_loop(case, runs, device) for runs in case.stacks]
        if case.without_metrics:
            loops.append(stacked_loop(case, case.stacks[-1], device, metrics=False))
        for loop in loops:
            loop.prepare()
        for _ in range(ROUNDS):
            for loop in loops:
                loop.measure()
        return rows_of(case, loops, peak)


def rows_of(case: Case, loops: list[Loop], peak: float) -> list[dict]:
    """Return what was measured of each loop."""
    references = [loop.seconds() for loop in loops if loop.name.startswith("reference")]
    operations = operations_of(case)
    return [
        {
            "case": case.name,
            "loop": loop.name,
            "ms_per_run_step": round(1e3 * loop.seconds(), 3),
            "spread": round((max(loop.timings) - min(loop.timings)) / loop.seconds(), 2),
            "speedup": round(min(references) / loop.seconds(), 2) if references else None,
            "gflop_per_run_step": float(f"{operations / 1e9:.3g}"),
            "share_of_peak": round(operations / loop.seconds() / peak, 2),
            "memory_mb": None if loop.memory_mb is None else round(loop.memory_mb),
        }
        for loop in loops
    ]


def operations_of(case: Case) -> float:
    """Return the operations of one run's step: products and convolutions, forward and backward."""
    network = networks.build(case.setup, case.shape, classes=10)
    drawn = network.initialize(0)
    values = {name: value.float()[None].requires_grad_() for name, value in drawn.items()}
    trained = [values[p.name] for p in network.parameters if p.scale_invariant]
    x = torch.randn(1, case.setup.batch_size, *case.shape)
    labels = torch.zeros(1, case.setup.batch_size, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        loss = cross_entropy(network.logits(values, x), labels)
        torch.autograd.grad(loss.sum(), trained)
    return float(counter.get_total_flops())


def examples(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 pictures (n, h, w, c) and labels: digits, or random ones of the case's shape."""
    channels, height, width = case.shape
    if case.shape == (1, 8, 8):
        data = datasets.load(case.setup)
        x = data.x_train.permute(0, 2, 3, 1).numpy()
        grey = 255 * (x - x.min()) / (x.max() - x.min())
        return grey.astype(np.uint8), data.y_train.numpy()
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (4096, height, width, channels), np.uint8)
    return pictures, rng.integers(0, 10, len(pictures))


# ---------------------------------------------------------------- the stack


def stacked_loop(case: Case, runs: int, device: str, metrics: bool = True) -> Loop:
    """Return the library's loop over `runs` stacked runs, and what memory it took to warm up."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    before = memory(device)
    stack = Stack(case.setup, runs_of(runs), device, data=standardized(*examples(case)))
    order, parts = stack.batch_order(), () if metrics else None

    def timer(steps: int) -> float:
        wait(device)
        started = time.perf_counter()
        for _ in range(steps):
            stack.step(order.next(), parts)
        wait(device)
        return (time.perf_counter() - started) / steps

    timer(WARM_UP_STEPS)
    name = f"stack of {runs}" if metrics else f"stack of {runs}, no metrics"
    return Loop(name, timer, runs, memory_mb=max(0.0, memory(device) - before))


def runs_of(number: int) -> list:
    """Return runs that differ in their seeds."""
    return grid(lr=0.01, weight_decay=1e-2, seed=range(number))


def standardized(pictures: np.ndarray, labels: np.ndarray) -> datasets.Data:
    """Return pictures as the reference loop's transforms make them."""
    x = torch.as_tensor(pictures).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.25)
    x, y = x.contiguous(), torch.as_tensor(labels, dtype=torch.int64)
    black = torch.full((x.shape[1],), -2.0)
    return datasets.Data(x, y, x[:10], y[:10], classes=10, black=black)


# ---------------------------------------------------------------- the reference loop


@contextmanager
def reference_loop(case: Case, workers: int | None, device: str) -> Iterator[Loop]:
    """Yield the reference loop, which runs in a process of its own."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, case, workers, device))
    process.start()
    theirs.close()  # so that a dead process is noticed

    def timer(steps: int) -> float:
        mine.send(steps)
        return mine.recv()

    name = "reference, no loader" if workers is None else f"reference, {workers} workers"
    try:
        yield Loop(name, timer, workers=workers or 0)
    finally:
        with suppress(OSError):  # it may have died
            mine.send(0)
        process.join(30)
        process.kill()
        mine.close()


def serve(pipe: Connection, case: Case, workers: int | None, device: str) -> None:
    """Answer numbers of steps with seconds per step, until asked for none."""
    reference = Reference(case, workers, device)
    while steps := pipe.recv():
        pipe.send(reference.time(steps))


class Reference:
    """One run in plain PyTorch."""

    def __init__(self, case: Case, workers: int | None, device: str):
        self.device = device
        self.network = PLAIN[case.setup.network](case.shape, case.setup.width).to(device)
        self.network.last.requires_grad_(False)
        self.weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.SGD(self.weights, lr=0.01, weight_decay=1e-2)
        self.batches = batches(case, workers, device)
        next(self.batches)  # workers start outside of the timing

    def step(self, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float, float]:
        """Train one step; return loss, weight norm and gradient norm before the update."""
        loss = nn.functional.cross_entropy(self.network(x.to(self.device)), y.to(self.device))
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum(w.detach().square().sum() for w in self.weights)).item()
        gradient = torch.sqrt(sum(w.grad.square().sum() for w in self.weights)).item()
        self.optimizer.step()
        return loss.item(), norm, gradient

    def time(self, steps: int) -> float:
        """Return the seconds that a step takes."""
        wait(self.device)
        started = time.perf_counter()
        for _ in range(steps):
            self.step(*next(self.batches))
        wait(self.device)
        return (time.perf_counter() - started) / steps


def batches(case: Case, workers: int | None, device: str) -> Iterator[tuple]:
    """Yield a loader's batches for ever; with workers None one batch, which is on the device."""
    count = workers or 0
    options = {"shuffle": True, "drop_last": True, "num_workers": count}
    if count:
        options["persistent_workers"] = True
        if "fork" in multiprocessing.get_all_start_methods():
            options["multiprocessing_context"] = "fork"  # as a script's workers start on Linux
    loader = DataLoader(Transformed(*examples(case)), case.setup.batch_size, **options)
    if workers is None:
        x, y = next(iter(loader))
        yield from itertools.repeat((x.to(device), y.to(device)))
    while True:
        yield from loader


class Transformed(Dataset):
    """Pictures as torchvision's data sets give them: one at a time, through transforms."""

    def __init__(self, pictures: np.ndarray, labels: np.ndarray):
        import_torchvision()
        from torchvision import transforms

        centre, spread = [0.5] * pictures.shape[-1], [0.25] * pictures.shape[-1]
        self.pictures, self.labels = pictures, labels
        normalize = transforms.Normalize(centre, spread)
        self.transform = transforms.Compose([transforms.ToTensor(), normalize])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.pictures[index]), int(self.labels[index])


if __name__ == "__main__":
    main()
