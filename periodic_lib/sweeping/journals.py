"""What a sweep has done: counted, shown as it goes, and kept in a journal for `periodic status`."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from periodic_lib import project
from periodic_lib.storage import store

FOLDER = ".sweeps"  # beside the results: journals, speeds, states of unfinished stacks
JOURNAL_SECONDS = 2  # between writes of a journal


@dataclass
class Sweep:
    """What a sweep has done: runs wanted, found in the store, done now; `failed`, message by stack;
    `trained` run-steps in `busy` seconds of all workers together, of which their processors spent
    `training` in the training threads; tasks `split` for lack of memory.
    """

    name: str
    runs: int
    found: int
    done: int = 0
    trained: int = 0
    busy: float = 0.0
    training: float = 0.0
    stacks: int = 0
    split: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    lost_runs: int = 0
    started: float = field(default_factory=time.time)

    @property
    def seconds(self) -> float:
        """Seconds since it was started."""
        return time.time() - self.started

    def summary(self) -> str:
        """Return one line: runs, time, speed, failures."""
        rate = self.trained / max(self.seconds, 1e-9)
        failed = f"; {self.lost_runs} runs failed" if self.failed else ""
        how = f"{self.stacks} stacks and {self.seconds:.0f} s, {rate:,.0f} run-steps/s"
        stored = f"{self.found + self.done} of {self.runs} runs stored"
        return f"{self.name}: {stored}, {self.done} of them now, in {how}{failed}"


@contextmanager
def shown(done: Sweep, progress: bool):
    """Yield a function that shows and keeps what has been done so far."""
    from tqdm import tqdm

    target = project.variable("PERIODIC_PROGRESS")
    with project.open_progress("w") if progress and target else nullcontext() as stream:
        bar = tqdm(
            total=done.runs, initial=done.found, unit="run", disable=not progress, file=stream
        )
        bar.set_description(done.name)
        last = [0.0]

        def show() -> None:
            rate = done.trained / max(done.seconds, 1e-9)
            text = f"{rate:,.0f} run-steps/s, {done.lost_runs} failed"
            bar.set_postfix_str(text, refresh=False)
            bar.update(done.found + done.done - bar.n)
            if time.monotonic() - last[0] > JOURNAL_SECONDS:
                last[0] = time.monotonic()
                write(done, "running")

        write(done, "running")
        state = "interrupted"
        try:
            yield show
            state = "failed" if done.failed else "done"
        finally:
            bar.close()
            write(done, state)


def write(done: Sweep, state: str) -> None:
    """Write what a sweep says of itself, for `periodic status`; nothing where it cannot be."""
    facts = {
        "name": done.name,
        "state": state,
        "runs": done.runs,
        "stored": done.found + done.done,
        "failed": list(done.failed.values())[:100],
        "failed_runs": done.lost_runs,
        "started": datetime.fromtimestamp(done.started, UTC).isoformat(timespec="seconds"),
        "seconds": done.seconds,
        "run_steps": done.trained,
        "busy": done.busy,
        "process": os.getpid(),
        "machine": socket.gethostname(),
    }
    with suppress(OSError):
        name = "".join(c if c.isalnum() or c in "-_" else "_" for c in done.name)
        project.write_whole(store.folder() / FOLDER / f"{name}.json", json.dumps(facts, indent=1))
