"""How fast and how large is a stack of runs on this machine? Measured once, in a second or two.

What is measured is kept beside the results, by processor, threads, versions and kind of setup.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from periodic_lib import fingerprints
from periodic_lib.config import Record, Run, Setup
from periodic_lib.engine.recording import Recorder
from periodic_lib.engine.stack import Stack
from periodic_lib.project import digest, write_whole

SIZES = (1, 2, 4, 8, 16, 32, 64)  # runs of the stacks that are timed
WARM_UP, TIMED, REPEATS = 2, 3, 3  # steps; the least of the repeats counts: others disturb it only
LONGEST = 1.0  # seconds that a repeat may take before larger stacks are left out
COPIES = 6  # of the state: weights, gradient, momentum, update, a state being saved, its bytes
ACTIVATIONS = 2  # what backward needs, and its gradients
KEPT = 3  # of the tables: recorded, in the data set, in the file's bytes
NO_COST = ("steps", "sample_seed", "label_noise", "reshuffle_every", "last_layer_norm", "bn_eps")


def kind(setup: Setup, record: Record, device: str) -> str:
    """Return what the speed of a step depends on, as a digest: setup, record, machine, versions."""
    costly = {name: value for name, value in setup.to_dict().items() if name not in NO_COST}
    costly["fresh_label_noise"] = setup.fresh_label_noise > 0
    machine = [platform.node(), device_name(device), torch.get_num_threads(), torch.__version__]
    return digest([costly, record.to_dict(), machine, fingerprints.code_digest()])[:20]


def device_name(device: str) -> str:
    """Return the name of a device: the GPU's, or the processor's instruction set."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    return torch.backends.cpu.get_cpu_capability()


def measured(setup: Setup, record: Record, folder: Path, device: str = "cpu") -> dict:
    """Return the `speed` of a kind of setup: from `folder` if it was measured before, else now."""
    path = folder / "speeds" / f"{kind(setup, record, device)}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {**found, "seconds": {int(size): t for size, t in found["seconds"].items()}}
    except (OSError, ValueError, KeyError, AttributeError):  # not there, or damaged: measured anew
        found = speed(setup, record, device)
    write_whole(path, json.dumps(found))
    return found


def speed(setup: Setup, record: Record, device: str = "cpu") -> dict:
    """Return `seconds`, those of a step by the runs of its stack, and the bytes of memory that they
    take: `fixed`, `per_run` and `per_step`, of every run and step.

    A stack of R runs and T steps takes about fixed + R (per_run + T per_step).
    """
    seconds, short = {}, replace(setup, steps=WARM_UP + REPEATS * TIMED)
    for size in SIZES:
        seconds[size] = _seconds(short, record, size, device)
        if seconds[size] * TIMED > LONGEST:
            break
    return {"seconds": seconds, **_bytes(short, record, device)}


def _seconds(setup: Setup, record: Record, size: int, device: str) -> float:
    stack = Stack(setup, _runs(size), device)
    order, least = stack.batch_order(), float("inf")
    parts = Recorder(stack, record, order.steps_per_epoch).parts
    clock = _clock(device)
    for repeat in range(REPEATS + 1):
        _wait(device)
        started = clock()
        for _ in range(TIMED if repeat else WARM_UP):
            stack.step(order.next(), parts)
        _wait(device)
        if repeat:
            least = min(least, (clock() - started) / TIMED)
    return least


def _clock(device: str) -> Callable[[], float]:
    """Return the clock: of one thread on a CPU its own time, which others on the machine do not
    disturb; else the wall's.
    """
    alone = device == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone else time.perf_counter


def _bytes(setup: Setup, record: Record, device: str) -> dict[str, float]:
    """Return the bytes of one run: what autograd keeps of a step, the state, rows of the tables."""
    stack, kept = Stack(setup, _runs(1), device), []
    order = stack.batch_order()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.nbytes) or x, lambda x: x
    ):
        stack.step(order.next(), None)
    state = sum(value.nbytes for value in stack.state().values())
    keep = Recorder(stack, record, order.steps_per_epoch)
    rows = sum(table[0].nbytes for table in keep.tables.values()) / keep.every
    data = sum(x.nbytes for x in (stack.data.x_train, stack.data.x_test))
    per_run = COPIES * state + ACTIVATIONS * sum(kept)
    return {"fixed": 2 * data, "per_run": per_run, "per_step": KEPT * rows}


def fitting(found: dict, setup: Setup, memory: float) -> float:
    """Return how many runs of a setup fit into `memory` bytes, by what `speed` found.

    >>> fitting({"fixed": 10, "per_run": 20, "per_step": 1}, Setup(steps=30), 110)
    2.0
    """
    return (memory - found["fixed"]) / (found["per_run"] + setup.steps * found["per_step"])


def _runs(number: int) -> list[Run]:
    return [Run(0.1, 1e-3, init_seed=seed, data_seed=seed) for seed in range(number)]


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
