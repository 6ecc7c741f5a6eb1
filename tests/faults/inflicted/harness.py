"""Faults by seed: a place to work in, ways to strike, and what must be true afterwards.

A `Place` is a small project of its own, with results that are finished. What is struck runs in a child of a server
that has imported everything already, so that a fault costs a tenth of a second. A strike is a function that the child
calls before the command: it breaks something then, or lays a trap. `Place.survives` asks the same after every fault:
nothing finished is lost, nothing wrong was served, the next run is bit for bit the undisturbed one, and what happened
is said in one line.
"""

import io
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize
from pathlib import Path

import numpy as np

HERE = str(Path(__file__).parent)
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of the server, too: see `warm`
os.environ["PYTHONPATH"] = os.pathsep.join([HERE, *filter(None, [os.environ.get("PYTHONPATH")])])
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["warm"])
LIMIT = 120  # seconds of a child: more is a hang
MINUTE = 60  # what was left behind is looked at as if so many seconds had passed
EXPERIMENTS = """
tiny:
  chapter: 01_tiny
  setup: {width: 8, depth: 1, steps: 24, batch_size: 64, train_size: 200}
  grid: {lr: [0.1, 0.5], weight_decay: 1.0e-2}
  record: {evaluate_every: 8}
  profiles: {smoke: {}}
half:
  chapter: 01_tiny
  setup: {width: 8, depth: 1, steps: 24, batch_size: 64, train_size: 200}
  grid: {lr: 0.5, weight_decay: 1.0e-2}
  record: {evaluate_every: 8}
  profiles: {smoke: {}}
many:
  chapter: 01_tiny
  setup: {width: 8, depth: 1, steps: 24, batch_size: 64, train_size: 200}
  grid: {lr: [0.02, 0.04, 0.06, 0.08, 0.12, 0.14], weight_decay: 1.0e-2}
  profiles: {smoke: {}}
finished:
  chapter: 01_tiny
  setup: {width: 8, depth: 1, steps: 12, batch_size: 64, train_size: 200}
  grid: {lr: 0.3, weight_decay: 1.0e-2}
  profiles: {smoke: {}}
own:
  chapter: 01_tiny
  setup: {dataset: own.npz, width: 8, depth: 1, steps: 16, batch_size: 16}
  grid: {lr: [0.1, 0.5], weight_decay: 1.0e-2}
  profiles: {smoke: {}}
"""


@dataclass(frozen=True)
class Fault:
    """One fault: the same kind and seed strike the same way."""

    kind: str
    seed: int

    def draw(self) -> np.random.Generator:
        """Return the random numbers of this fault."""
        return np.random.default_rng([zlib.crc32(self.kind.encode()), self.seed])


@dataclass
class Ended:
    """How a child ended: exit status (negative: a signal), what it printed, which results it served, its seconds."""

    status: int
    text: str
    served: dict[str, str]
    seconds: float


@dataclass
class Outcome:
    """What became of a fault, a line of the table's source."""

    kind: str
    seed: int
    how: str = ""
    said: str = ""
    recovery: float = float("nan")
    wrong: list[str] = field(default_factory=list)  # served, and not what the undisturbed run has
    lost: list[str] = field(default_factory=list)  # finished, and not there any more, or not to be made again
    unclear: list[str] = field(default_factory=list)  # what was said

    @property
    def problems(self) -> list[str]:
        """Everything that is not as it must be."""
        return [f"{name}: {text}" for name in ("wrong", "lost", "unclear") for text in getattr(self, name)]


# ---------------------------------------------------------------- children


def fingerprint(dataset) -> str:
    """Return the SHA-256 of all that was measured, bit for bit: names, values, labels, but not when and where."""
    from periodic_lib import results

    bare = dataset.copy()
    bare.attrs = {}
    return results.checksum(bare)


def command(arguments: Sequence[str]) -> int:
    """Run the command `periodic`; say what results it served."""
    from periodic_lib import cli, experiments

    original = experiments.run_experiment

    def noting(name, *given, **options):
        dataset = original(name, *given, **options)
        print(f"served {name} {fingerprint(dataset)}", flush=True)
        return dataset

    experiments.run_experiment = noting
    try:
        return cli.main(list(arguments))
    finally:
        experiments.run_experiment = original


def next_run(arguments: Sequence[str]) -> int:
    """Run the command again, as after a fault, then ask for the finished result; say the seconds of the first."""
    began = time.perf_counter()
    status = command(arguments)
    print(f"took {time.perf_counter() - began}", flush=True)
    return max(status, command(["run", "finished", "--profile", "smoke"]))


def _child(output: Connection, folder: Path, environment: dict, strikes: Sequence[Callable], work, arguments):
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    streams = [io.FileIO(stream, "w", closefd=False) for stream in (1, 2)]
    sys.stdout, sys.stderr = (io.TextIOWrapper(stream, line_buffering=True) for stream in streams)
    os.chdir(folder)
    os.environ.update(environment)
    tempfile.tempdir = None
    for strike in strikes:
        strike()
    sys.exit(work(arguments))


class Running:
    """A child at work."""

    def __init__(self, folder, environment, strikes, work, arguments):
        self.began = time.perf_counter()
        self.output, theirs = SERVER.Pipe(duplex=False)
        given = (theirs, folder, environment, tuple(strikes), work, arguments)
        self.process = SERVER.Process(target=_child, args=given)
        self.process.start()
        theirs.close()
        self.read = b""

    def end(self) -> Ended:
        """Wait until it ends; kill what hangs."""
        deadline = self.began + LIMIT
        while time.perf_counter() < deadline:
            ready = wait([self.output, self.process.sentinel], timeout=1)
            if self.output in ready:
                new = os.read(self.output.fileno(), 2**16)
                self.read += new
                if not new:
                    break
            elif ready:
                break
        self.process.join(max(0.0, deadline - time.perf_counter()))
        hung = self.process.is_alive()
        if hung:
            self.process.kill()
            self.process.join()
        seconds, text = time.perf_counter() - self.began, self.read.decode(errors="replace")
        served = dict(re.findall(r"^served (\w+) (\w+)$", text, re.M))
        took = re.findall(r"^took (\S+)$", text, re.M)
        seconds = float(took[-1]) if took else seconds
        text = re.sub(r"^(served|took) .*\n", "", text, flags=re.M)
        return Ended(self.process.exitcode, text + hung * "\nhung", served, seconds)


# ---------------------------------------------------------------- strikes


def kill_at_event(number: int, signal: int, only: Sequence[str] = ()) -> None:
    """Lay a trap: at the `number`th call or return of a Python or C function, the process is sent a signal.

    `only`: count calls and returns of C functions of these names.
    """
    seen, mine = 0, os.getpid()

    def look(frame, event, argument):
        nonlocal seen
        seen += _counts(event, argument, only)
        if seen == number and os.getpid() == mine:
            seen += 1
            os.kill(mine, signal)

    sys.setprofile(look)


def count_events(path: str, only: Sequence[str] = ()) -> None:
    """Count what `kill_at_event` counts; the number is written to a file at the end."""
    seen = 0

    def look(frame, event, argument):
        nonlocal seen
        seen += _counts(event, argument, only)

    def note():
        sys.setprofile(None)
        Path(path).write_text(str(seen))

    Finalize(None, note, exitpriority=10)
    sys.setprofile(look)


def _counts(event: str, argument: object, only: Sequence[str]) -> bool:
    return not only or (event.startswith("c_") and argument.__name__ in only)


def at_step(step: int, act: Callable[[], object]) -> None:
    """Lay a trap: `act` is called when training comes to a step."""
    from periodic_lib.engine.stack import Stack

    original = Stack.step

    def struck(stack, *arguments):
        if stack.steps_done == step:
            act()
        return original(stack, *arguments)

    Stack.step = struck


def save_every_step() -> None:
    """Let training save its state at every step, so that a kill often hits a save."""
    from periodic_lib.engine import training

    training.RESUME_SECONDS = 0


FILE_CALLS = ("mkstemp", "open", "write", "flush", "fsync", "fchmod", "replace", "rename", "unlink", "mkdir", "flock")


# ---------------------------------------------------------------- the place


class Place:
    """A small project with finished results, in which faults strike."""

    def __init__(self, folder: Path, expected: dict[str, str]):
        self.folder, self.expected, self.kept = folder, expected, {}

    @property
    def cache(self) -> Path:
        """The folder of results."""
        return self.folder / "cache"

    def lay_out(self) -> "Place":
        """Write the project's files."""
        for name in ("book", "cache", "temporary", "data/claims"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "book" / "experiments.yml").write_text(EXPERIMENTS)
        write_own_data(self.folder / "own.npz")
        return self

    def copy(self, folder: Path) -> "Place":
        """Return a place of the same content."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        new = Place(folder, self.expected)
        new.kept = new.files("finished")
        return new

    def files(self, experiment: str) -> dict[Path, bytes]:
        """Return the result files of an experiment."""
        return {path: path.read_bytes() for path in sorted(self.cache.glob(f"{experiment}/*.nc"))}

    def start(self, *arguments: str, strikes=(), work=command, **environment: str) -> Running:
        """Start a command in a child, after strikes."""
        own = {
            "PERIODIC_ROOT": str(self.folder),
            "PERIODIC_CACHE": str(self.cache),
            "PERIODIC_RECORDS": str(self.folder / "records"),
            "PERIODIC_PROGRESS": str(self.folder / "progress"),
            "TMPDIR": str(self.folder / "temporary"),
            "HOME": str(self.folder),
        }
        return Running(self.folder, own | environment, strikes, work, arguments)

    def run(self, experiment: str, *options: str, strikes=(), **environment: str) -> Ended:
        """Run an experiment by the command `periodic`, and wait."""
        return self.start("run", experiment, "--profile", "smoke", *options, strikes=strikes, **environment).end()

    # -- after a fault

    def survives(
        self,
        outcome: Outcome,
        struck: Ended | Sequence[Ended] = (),
        *,
        experiment: str = "tiny",
        status: Sequence[int] = (),
        says: str = "",
        again_says: str = "",
        work: Callable | None = None,
        left: str = "partial|probe|resume",
    ) -> Ended:
        """Note in `outcome` whether all is as it must be; return how the next run ended.

        `status`: how struck processes may have ended, beside 0. `says`, `again_says`: what they, and the next run,
        must say, as regular expressions; who ended with 0 or was killed need say nothing. `work`: the next run.
        `left`: what must not be left behind.
        """
        for one in [struck] if isinstance(struck, Ended) else struck:
            self._look_at(outcome, one, (0, *status), says)
        self._wait_a_minute()
        again = self.start("run", experiment, "--profile", "smoke", work=work or next_run).end()
        outcome.recovery, outcome.said = again.seconds, outcome.said or one_line(again.text)
        if not re.search(again_says, again.text):
            outcome.unclear.append(f"the next run does not say {again_says!r}: {again.text[-500:]}")
        for name in (experiment, "finished"):
            if name not in again.served or again.status:
                outcome.lost.append(f"{name}: the next run ended with {again.status}: {again.text[-2000:]}")
            elif again.served[name] != self.expected[name]:
                outcome.wrong.append(f"{name}: the next run has other numbers")
        if self.files("finished") != self.kept:
            outcome.lost.append("the file of a finished result is gone or changed")
        names = self._left_behind(left)
        if names:
            time.sleep(1)  # a process that was not struck, a worker of a cluster, may be writing at this moment
            names &= self._left_behind(left)
        if names:
            outcome.unclear.append(f"left behind: {sorted(names)}")
        return again

    def _look_at(self, outcome, struck: Ended, status, says) -> None:
        outcome.said = outcome.said or one_line(struck.text)
        if any(self.expected[name] != found for name, found in struck.served.items()):
            outcome.wrong.append("the struck run served other numbers")
        if struck.status not in status:
            outcome.unclear.append(f"exit status {struck.status}: {struck.text[-2000:]}")
        if "Traceback" in struck.text:
            outcome.unclear.append(f"a traceback: {struck.text[-2000:]}")
        if struck.status > 0 and not re.search(says, struck.text):
            outcome.unclear.append(f"it does not say {says!r}: {struck.text[-500:]}")

    def _wait_a_minute(self) -> None:
        """Make everything older, instead of waiting: what is being written is left alone for some seconds."""
        for path in self.cache.rglob("*.partial"):
            with suppress(FileNotFoundError):  # written whole in the meantime, by a process that was not struck
                seconds = path.stat().st_mtime - MINUTE
                os.utime(path, (seconds, seconds))

    def _left_behind(self, pattern: str) -> set[str]:
        return {path.name for path in self.cache.rglob("*") if re.search(pattern, path.name)}


def one_line(text: str) -> str:
    """Return the last line that the command said, without paths and what differs from run to run."""
    said = [line for line in text.splitlines() if line.startswith("periodic: ")]
    return re.sub(r"/\S*/", "", said[-1]) if said else ""


def write_own_data(path: Path, seed: int = 0, **changed: np.ndarray) -> None:
    """Write a file of data of one's own; `changed` arrays take the place of good ones."""
    generator, labels = np.random.default_rng(seed), np.arange(48) % 3
    good = {f"x_{part}": generator.normal(size=(48, 6)) for part in ("train", "test")}
    np.savez(path, **(good | {"y_train": labels, "y_test": labels} | changed))
