"""Is everything here that training needs? Each check says ok, or what to do."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from periodic_lib import project
from periodic_lib.config import NETWORKS
from periodic_lib.engine import sources
from periodic_lib.project import ConfigError, digest_of_arrays, root
from periodic_lib.storage import store

ENOUGH_DISK = 2e9  # bytes free, for results of one build of the book
TRAINING_SECONDS = 120  # that a tiny training may take, the start of Python included
DIGITS = 6  # behind the point that processors agree in
DATA = {  # digests of the embedded arrays as they should be
    "digits": "c32f6804f5e35517",
    "breast_cancer": "8583b14d5948579e",
    "moby_dick": "dd093b45addf2530",
}
TRAIN = """
from periodic_lib import Run, Setup, train
width = {"transformer": 16, "convnet": 4, "resnet18": 2}.get(%(network)r, 8)
setup = Setup(network=%(network)r, width=width, steps=2, batch_size=16, train_size=64)
runs = [Run(lr=0.1, weight_decay=1e-3), Run(lr=0.2, weight_decay=1e-3)]
loss = train(setup, runs, progress=False, device=%(device)r).train_loss
assert bool((loss > 0).all()), loss.values
"""


class Finding(NamedTuple):
    """One line of the doctor: what was looked at, whether it is well, and what was found, or what
    to do.
    """

    name: str
    ok: bool
    text: str

    def line(self) -> str:
        """Return it as printed."""
        return f"{'ok  ' if self.ok else 'MEND'}  {self.name}: {self.text}"


def findings(lock: Path | None = None) -> Iterator[Finding]:
    """Yield what every check finds, as it finds it. A check that raises is a finding, too."""
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("Python", python),
        ("packages", lambda: packages(lock or root() / "requirements.lock")),
        ("processor", processor),
        ("device", device),
        ("disk", disk),
        ("folder of results", writable),
    ]
    checks += [(f"data {name}", lambda name=name: data(name)) for name in DATA]
    checks += [(f"training {name}", lambda name=name: training(name)) for name in NETWORKS]
    for name, check in checks:
        try:
            yield check()
        except Exception as error:
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            yield Finding(name, False, text)


def python() -> Finding:
    """Look at the version of Python and where it is."""
    fits = (3, 11) <= sys.version_info[:2] < (3, 14)
    text = f"{platform.python_version()}, {sys.executable}"
    return Finding("Python", fits, text if fits else f"{text}; install 3.11, 3.12 or 3.13.")


def packages(lock: Path) -> Finding:
    """Compare what is installed with the lock; a package that is not needed here may be absent."""
    wanted = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;+]+)", lock.read_text("utf-8"), re.M))
    other, absent = [], []
    for name, version in wanted.items():
        try:
            found = metadata.version(name).split("+")[0]  # torch 2.13.0+cpu is 2.13.0
        except metadata.PackageNotFoundError:
            absent.append(name)
            continue
        if found != version:
            other.append(f"{name} {found}, not {version}")
    needed = [name for name in _needed() if name in absent]
    wrong = [*other, *(f"no {name}" for name in needed)]
    if wrong:
        return Finding("packages", False, f"{', '.join(wrong[:8])}; run `make setup`.")
    left = f", {len(absent)} optional ones absent" if absent else ""
    return Finding("packages", True, f"{len(wanted) - len(absent)} as in {lock.name}{left}")


def _needed() -> list[str]:
    """Return the packages that the library itself asks for."""
    asked = metadata.requires("periodic-lib") or []
    return [re.split(r"[\s;<>=!~\[(]", one)[0] for one in asked if "extra ==" not in one]


def processor() -> Finding:
    """Name the processor, its instruction set as torch uses it, cores and threads."""
    import torch

    name = platform.processor() or platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8") as stream:
        names = re.findall(r"^model name\s*:\s*(.*)$", stream.read(), re.M)
    told = names[0] if names else name
    capability = torch.backends.cpu.get_cpu_capability()
    text = f"{told}, {capability}, {len(names)} cores, {torch.get_num_threads()} threads of torch"
    return Finding("processor", True, text)


def device() -> Finding:
    """Name the CUDA devices, or say that training is on the CPU; try one product there."""
    import torch

    if not torch.cuda.is_available():
        return Finding("device", True, f"CPU (torch {torch.__version__} sees no CUDA device)")
    found = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    square = torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")
    return Finding("device", bool((square == 8).all()), ", ".join(found))


def disk() -> Finding:
    """Look at the space where results go."""
    place = store.folder()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    text = f"{free / 1e9:.1f} GB free at {place}"
    more = f"; free some: {ENOUGH_DISK / 1e9:.0f} GB, or set PERIODIC_CACHE to another place."
    return Finding("disk", free >= ENOUGH_DISK, text if free >= ENOUGH_DISK else text + more)


def writable() -> Finding:
    """Write a file where results go, and remove it."""
    place = store.folder()
    try:
        project.check_writable(place / "doctor", 1)
    except ConfigError as error:
        return Finding("folder of results", False, str(error))
    return Finding("folder of results", True, f"{place} can be written to")


def data(name: str) -> Finding:
    """Compare embedded data with what they should be."""
    arrays = sources.EMBEDDED[name]()
    found = digest_of_arrays(tuple(np.round(one, DIGITS) + 0 for one in arrays))[:16]
    if found != DATA[name]:
        text = f"{found}, should be {DATA[name]}; run `make setup`, or `git checkout data`."
        return Finding(f"data {name}", False, text)
    return Finding(f"data {name}", True, f"arrays as they should be ({found})")


def training(network: str, where: str | None = None) -> Finding:
    """Train a tiny network for two steps in a process of its own, with a limit on its time."""
    command = [sys.executable, "-c", TRAIN % {"network": network, "device": where}]
    name = f"training {network}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRAINING_SECONDS)
    except subprocess.TimeoutExpired:
        text = f"no end in {TRAINING_SECONDS} s; try OMP_NUM_THREADS=1, or look at the load."
        return Finding(name, False, text)
    if done.returncode < 0:
        text = f"killed by signal {-done.returncode}; try ONEDNN_MAX_CPU_ISA=AVX2, `make setup`."
        return Finding(name, False, text)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding(name, False, f"{last[:200]}; run `make setup`.")
    return Finding(name, True, "two steps, two runs")
