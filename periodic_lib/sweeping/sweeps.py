"""Sweeps: many runs as stacks, here or on a Dask cluster; each is stored once, whoever trains it.

What is stored is never trained again, so the same command goes on after anything: Ctrl-C, a killed
worker, a scheduler that is gone. Every stack has its own resume state beside the results.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from periodic_lib import fingerprints, project
from periodic_lib.checks import integer, optional
from periodic_lib.config import Record, Setup
from periodic_lib.engine.sources import own_data_digest
from periodic_lib.outside import available_memory
from periodic_lib.project import ConfigError, digest, discard, print_message
from periodic_lib.storage import index, store
from periodic_lib.sweeping import journals, schedulers, tasks
from periodic_lib.sweeping.journals import FOLDER, Sweep
from periodic_lib.sweeping.tasks import Task

RETRIES = 2  # of a stack whose training raised an error, on any worker
AHEAD = 2  # stacks that wait for each that is trained: what the scheduler knows at once
MEMORY_SHARE = 0.5  # of a worker's memory that a stack may take, by the estimate
LOOK_SECONDS = 1  # between looks at which workers there are
DONE, TOO_LARGE, FAILED, REFUSED = "done", "too large", "failed", "refused"


def sweep(
    plans: Sequence[object],
    scheduler: object = None,
    *,
    workers: int | None = None,
    threads: int = 1,
    size: int | None = None,
    progress: bool = True,
    name: str | None = None,
) -> Sweep:
    """Train the runs of `plans` that are not stored, and store them; return what was done.

    Parameters
    ----------
    plans : of `experiments.plan`.
    scheduler : None: here, one stack after the other; "local": worker processes on this machine; an
        address, "tcp://...", of a Dask scheduler; or a `distributed.Client`.
    workers, threads : see `schedulers.client_of`; threads that a stack trains with.
    size : runs a stack; None: by memory and measured speed (`tasks.best_size`).
    progress : show runs done, run-steps a second, the time left, failures.
    name : what messages and `periodic status` call it; None: the first plan's name.

    A stack for which memory is too small is tried in halves; one that fails on a cluster is tried
    `RETRIES` times more, then named in `failed`; the others go on.

    Raises
    ------
    ConfigError : for a parameter that cannot be used; workers with other code, or without the
        folder of results; a scheduler that is lost. What was finished by then is stored.
    """
    threads = integer("threads", threads, "a whole number of at least 1", 1)
    workers = optional("workers", workers, integer, "a whole number of at least 1, or None", 1)
    size = optional("size", size, integer, "a whole number of at least 1, or None", 1)
    wanted, left = _left(plans)
    number = sum(len(runs) for _, _, runs in left)
    done = Sweep(name or plans[0].name, wanted, wanted - number)
    if not number:
        return done
    with _place(done, scheduler, workers, threads) as place, journals.shown(done, progress) as show:
        size_of = place.sizes(left, number) if size is None else (lambda setup, record: size)
        queue = _Queue(tasks.cut(left, size_of, own_data_digest))
        for task, outcome in place.work(queue):
            _count(done, queue, task, outcome)
            show()
    return done


def stored(
    plan: object,
    scheduler: object,
    workers: int | None = None,
    progress: bool = True,
    **alone: object,
) -> None:
    """Train and store the runs of one plan, all of them, or say what failed.

    Raises
    ------
    ConfigError : if a run failed; for what makes sense without a scheduler only, `alone`.
    """
    for name, value in alone.items():
        if value:
            raise ConfigError(
                f"`{name}` does not go with a scheduler: what is stored is not trained again, and "
                f"a sweep can be stopped at any time; got {value!r}."
            )
    done = sweep([plan], scheduler, workers=workers, progress=progress)
    if done.failed:
        first = next(iter(done.failed.values()))
        raise ConfigError(f"{done.lost_runs} of {done.runs} runs of {plan.name} failed: {first}")


def _left(plans: Sequence[object]) -> tuple[int, list[tasks.Group]]:
    """Return the number of runs that the plans ask for, and in groups those that are not stored."""
    groups = tasks.groups(plans)
    data = {setup.dataset: own_data_digest(setup.dataset) for setup, _, _ in groups}
    keys = [
        store.run_keys(setup, runs, record, data[setup.dataset]) for setup, record, runs in groups
    ]
    absent = set(store.missing(key for some in keys for key in some))
    left = []
    for (setup, record, runs), some in zip(groups, keys, strict=True):
        missing = tuple(store.with_keys(runs, some, absent))
        if missing:
            left.append((setup, record, runs if tasks.is_whole(setup) else missing))
    return sum(map(len, keys)), left


def preview(plans: Sequence[object], size: int | None = None) -> list[str]:
    """Return what a sweep of these plans would train, a line for each group."""
    wanted, left = _left(plans)
    size = optional("size", size, integer, "a whole number of at least 1, or None", 1)
    number, lines = sum(len(runs) for _, _, runs in left), []
    for setup, record, runs in left:
        cut = size and not tasks.is_whole(setup)
        parts = f" in stacks of at most {size}" if cut else ""
        fresh = f", {setup.fresh_label_noise:g} wrong labels" if setup.fresh_label_noise else ""
        lines.append(f"{Task(setup, record, runs).named()}{fresh}{parts}")
    return [*lines, f"{number} of {wanted} runs are to be trained, {wanted - number} are stored"]


class _Queue:
    """Tasks to do: those put back first, then those of a source, one at a time."""

    def __init__(self, source: Iterator[Task]):
        self.source, self.back = source, deque()

    def take(self) -> Task | None:
        """Return the next task, or None."""
        return self.back.popleft() if self.back else next(self.source, None)


def _count(done: Sweep, queue: _Queue, task: Task, outcome: dict) -> None:
    """Add up what became of a task; put its halves back if it was too large."""
    status, message = outcome["status"], outcome.get("message", "")
    if status == REFUSED:
        raise ConfigError(message)
    if status == TOO_LARGE and len(task.runs) > 1 and not task.whole:
        print_message(f"{task.named()}: {message}; tried in halves.")
        done.split += 1
        discard(_state(task.keys))
        queue.back.extend(task.halves())
    elif status == DONE:
        done.stacks += 1
        done.done += len(task.runs)
        done.trained += outcome["run_steps"]
        done.busy += outcome["seconds"]
        done.training += outcome["training"]
    else:
        print_message(f"{task.named()} failed: {message}")
        done.failed[task.key] = f"{task.named()}: {message}"
        done.lost_runs += len(task.runs)


# ---------------------------------------------------------------- one stack, wherever it is


def attempt(task: Task, threads: int, device: str | None, folder: str, token: str) -> dict:
    """Train a stack and store it; return `status` and its `seconds`, `run_steps` or `message`.

    Runs that were stored meanwhile are not trained again; if another process trains them now, this
    one waits. Errors of training are raised: the scheduler tries again.
    """
    os.environ.setdefault("PERIODIC_CACHE", folder)
    code, _, sign = token.partition(":")
    where = f"the worker on {socket.gethostname()}"
    if code != fingerprints.code_digest():
        return {"status": REFUSED, "message": f"{where} has other training code: update it."}
    if not (store.folder() / FOLDER / sign).exists():
        message = f"{where} does not see {folder}: share that folder, or set PERIODIC_CACHE there."
        return {"status": REFUSED, "message": message}
    try:
        return _trained(task, threads, device)
    except ConfigError as error:
        return {"status": FAILED, "message": str(error)}
    except (MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        return {"status": TOO_LARGE, "message": f"memory was too small on {socket.gethostname()}"}


def _trained(task: Task, threads: int, device: str | None) -> dict:
    import torch

    from periodic_lib.engine.training import train

    torch.set_num_threads(threads)
    started, training = time.perf_counter(), 0.0
    with store.claimed(task.keys, task.named()) as left:
        runs = store.with_keys(task.runs, task.keys, set(left))
        runs = task.runs if runs and task.whole else runs
        if runs:
            state = _state(left)
            how = {"device": device, "progress": False, "resume": state}
            before = time.thread_time()
            dataset = train(task.setup, runs, task.record, **how)
            training = time.thread_time() - before  # of this thread alone
            store.put(dataset)
            discard(state)
    facts = {"seconds": time.perf_counter() - started, "training": training}
    return {"status": DONE, "run_steps": len(runs) * task.setup.steps, **facts}


def _state(keys: Sequence[str]) -> Path:
    """Return the place of the resume state of a stack of these runs."""
    return store.folder() / FOLDER / f"{digest(keys)[:20]}.resume.npz"


def is_memory(error: BaseException) -> bool:
    """Whether an error says that memory was too small.

    >>> is_memory(MemoryError()), is_memory(RuntimeError("CUDA out of memory. Tried to ..."))
    (True, True)
    >>> is_memory(RuntimeError("shapes do not match"))
    False
    """
    words = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


# ---------------------------------------------------------------- where stacks are trained


@contextmanager
def _place(
    done: Sweep, scheduler: object, workers: int | None, threads: int
) -> Iterator[_Here | _Cluster]:
    """Yield where a sweep's stacks are trained: in this process, or on a cluster."""
    sign = f"{uuid.uuid4().hex}.sign"
    folder, path = str(store.folder().absolute()), store.folder().absolute() / FOLDER / sign
    with index.writable():
        project.write_whole(path, "")
    token = f"{fingerprints.code_digest()}:{sign}"
    try:
        if scheduler is None:
            yield _Here(threads, folder, token)
        else:
            with schedulers.client_of(scheduler, workers, threads) as client:
                yield _Cluster(client, threads, folder, token)
    finally:
        path.unlink(missing_ok=True)


@dataclass
class _Here:
    """This process: one stack after the other."""

    threads: int
    folder: str
    token: str

    def sizes(self, left: Iterable[tasks.Group], number: int):
        """Return the function that says how many runs a stack has."""
        found: dict = {}

        def size_of(setup: Setup, record: Record) -> int:
            if (setup, record) not in found:
                import torch

                torch.set_num_threads(self.threads)
                speed = _speed(setup, record, self.folder)
                found[setup, record] = _size(speed, setup, number, 1, available_memory())
            return found[setup, record]

        return size_of

    def work(self, queue: _Queue) -> Iterator[tuple[Task, dict]]:
        """Yield every task and what became of it."""
        while (task := queue.take()) is not None:
            try:
                yield task, attempt(task, self.threads, None, self.folder, self.token)
            except RuntimeError as error:
                yield task, {"status": FAILED, "message": f"{type(error).__name__}: {error}"}


def _speed(setup: Setup, record: Record, folder: str, device: str | None = None) -> dict:
    import torch

    from periodic_lib.sweeping import speeds

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return speeds.measured(setup, record, Path(folder) / FOLDER, device)


def _size(speed: dict, setup: Setup, number: int, workers: int, memory: float) -> int:
    from periodic_lib.sweeping import speeds

    fits = speeds.fitting(speed, setup, MEMORY_SHARE * memory)
    return tasks.best_size(speed["seconds"], number, workers, fits)


class _Cluster:
    """The workers of a Dask scheduler."""

    do = staticmethod(attempt)  # what workers do with a task

    def __init__(self, client: object, threads: int, folder: str, token: str):
        self.client, self.threads, self.folder, self.token = client, threads, folder, token
        self.needs = schedulers.demand(self._workers(), threads)
        self.device = "cpu" if "CPU" in self.needs else None
        self._looked, self._slots = float("-inf"), 1

    def _workers(self) -> dict:
        return self.client.scheduler_info(n_workers=-1)["workers"]

    @property
    def slots(self) -> int:
        """Stacks that are trained at once, by the workers there are, looked up once a second."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._slots = max(1, schedulers.slots(self._workers(), self.needs))
            self._looked = time.monotonic()
        return self._slots

    def sizes(self, left: Iterable[tasks.Group], number: int):
        """Return the function that says how many runs a stack has; workers measure the speeds."""
        workers = self._workers()
        memory = schedulers.memory(workers, self.needs) or available_memory()
        groups = {_costs(setup, record): (setup, record) for setup, record, _ in left}
        how = {"resources": self.needs, "pure": False, "retries": RETRIES}
        asked = {
            costs: self.client.submit(_speed, *group, self.folder, self.device, **how)
            for costs, group in groups.items()
        }
        found = {costs: future.result() for costs, future in asked.items()}

        def size_of(setup: Setup, record: Record) -> int:
            return _size(found[_costs(setup, record)], setup, number, self.slots, memory)

        return size_of

    def work(self, queue: _Queue) -> Iterator[tuple[Task, dict]]:
        """Yield every task and what became of it, as they end; a few for each worker are known to
        the scheduler at a time.
        """
        flight, known = schedulers.dask().as_completed(), {}
        try:
            self._feed(queue, flight, known)
            while known:
                future = next(flight)
                _, task = known.pop(future.key)
                yield task, self._outcome(future)
                self._feed(queue, flight, known)
        except OSError as error:  # Dask's lost connections are such
            raise self._gone() from error
        finally:
            with suppress(Exception):  # of a scheduler that is gone
                self.client.cancel([future for future, _ in known.values()])

    def _feed(self, queue: _Queue, flight: object, known: dict) -> None:
        while len(known) < (1 + AHEAD) * self.slots and (task := queue.take()) is not None:
            key = f"stack-{task.key}-{uuid.uuid4().hex[:6]}"
            how = {"key": key, "resources": self.needs, "retries": RETRIES, "pure": False}
            more = (self.threads, self.device, self.folder, self.token)
            future = self.client.submit(self.do, task, *more, **how)
            known[future.key] = future, task
            flight.add(future)

    def _outcome(self, future: object) -> dict:
        if future.status == "finished":
            return future.result()
        if future.status != "error":  # cancelled or lost
            raise self._gone()
        error = future.exception()
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        killed = isinstance(error, schedulers.dask().scheduler.KilledWorker)
        status = TOO_LARGE if killed or is_memory(error) else FAILED
        return {"status": status, "message": "its workers died" if killed else message}

    def _gone(self) -> ConfigError:
        return ConfigError(
            "`scheduler` is gone; what was finished is stored. Start it again: the same command "
            "goes on."
        )


def _costs(setup: Setup, record: Record) -> str:
    """Return what the speed of a setup depends on, before any machine is known."""
    from periodic_lib.sweeping import speeds

    return speeds.kind(setup, record, "cpu")
