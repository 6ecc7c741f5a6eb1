"""One process trains a run, the others that want it wait and read it."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from periodic_lib import project
from periodic_lib.project import ConfigError
from periodic_lib.storage import index

CLAIMS, GATE = ".claims", "gate.lock"
POLL_SECONDS = 0.2  # between looks at who else trains


@dataclass
class _Claim:
    """Runs that a process is training now: a file that says which, and a lock that dies with it."""

    path: Path

    @property
    def lock(self) -> FileLock:
        """The lock that the process holds."""
        return FileLock(self.path.with_suffix(".lock"))

    def is_held(self) -> bool:
        """Whether its process lives."""
        try:
            with self.lock.acquire(timeout=0):
                return False
        except (Timeout, OSError):
            return True

    def content(self) -> dict:
        """Return what it says; nothing if it cannot be read."""
        try:
            return json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return {}

    def remove(self) -> None:
        """Remove both files."""
        for path in (self.path, self.path.with_suffix(".lock")):
            path.unlink(missing_ok=True)


@contextmanager
def claimed(keys: Sequence[str], what: str = "", anew: bool = False) -> Iterator[list[str]]:
    """Yield those of `keys` that are not stored, to be trained by this process and no other.

    While another process trains any of them, this one waits, saying once who it waits for; then it
    looks again. A process that was killed holds nothing.

    Parameters
    ----------
    what : how a message calls it.
    anew : yield all, stored or not.

    Raises
    ------
    ConfigError : if the folder cannot be written to.
    """
    told = False
    while True:
        with _gate():
            left = list(keys) if anew else index.missing(keys)
            other = _other(left)
            if other is None:
                mine, lock = _claim(left, what)
                break
        if not told:
            told = True
            project.print_progress(
                f"{what or 'this'} is being made by {_who(other)}; waiting for it."
            )
        with other.lock.acquire(poll_interval=POLL_SECONDS):
            pass
    try:
        yield left
    finally:
        mine.remove()  # before its lock is free: none can take it for a live one
        lock.release()


def _who(claim: _Claim) -> str:
    facts = claim.content()
    if "process" not in facts:
        return "another process"
    return f"process {facts['process']} on {facts['machine']} since {facts['since']}"


@contextmanager
def _gate() -> Iterator[None]:
    """Let one process at a time look at the claims and make one."""
    place = index.folder() / CLAIMS
    _check_mounted(index.folder())
    with index.writable():
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / GATE):
            yield


def _check_mounted(place: Path) -> None:
    """Raise `ConfigError` if the folder that was chosen is in one that is not there."""
    if project.variable("PERIODIC_CACHE") and not place.parent.exists():
        raise ConfigError(
            f"PERIODIC_CACHE names {str(place)!r}, but there is no {str(place.parent)!r}: is its "
            "disk mounted? If the folder is new, make it first."
        )


def living() -> Iterator[dict]:
    """Yield what claims of living processes say: `process`, `machine`, `since`, `what`, `keys`."""
    for path in sorted((index.folder() / CLAIMS).glob("*.json")):
        claim = _Claim(path)
        facts = claim.content()
        if facts and claim.is_held():
            yield facts


def _other(keys: Iterable[str]) -> _Claim | None:
    """Return the claim of a living process on any of these runs; remove those of dead ones."""
    wanted = set(keys)
    for path in sorted((index.folder() / CLAIMS).glob("*.json")):
        claim = _Claim(path)
        try:
            with claim.lock.acquire(timeout=0):
                claim.remove()
        except Timeout:
            if wanted & set(claim.content().get("keys", ())):
                return claim
    _remove_locks_without_claim()
    return None


def _remove_locks_without_claim() -> None:
    """Remove locks whose process was killed before it said what for; none is made meanwhile."""
    for path in (index.folder() / CLAIMS).glob("*.lock"):
        if path.name != GATE and not path.with_suffix(".json").exists():
            with suppress(Timeout), FileLock(path, timeout=0):
                path.unlink(missing_ok=True)


def _claim(keys: Sequence[str], what: str) -> tuple[_Claim, FileLock]:
    """Claim runs: hold a lock, then say what for."""
    claim = _Claim(index.folder() / CLAIMS / f"{uuid.uuid4().hex}.json")
    facts = {"process": os.getpid(), "machine": socket.gethostname(), "what": what}
    facts |= {"since": datetime.now(UTC).isoformat(timespec="seconds"), "keys": list(keys)}
    lock = claim.lock
    lock.acquire()
    try:
        project.write_whole(claim.path, json.dumps(facts))
    except BaseException:
        claim.remove()
        lock.release()
        raise
    return claim, lock
