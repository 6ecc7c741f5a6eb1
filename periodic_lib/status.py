"""What is made, what is being made, what failed: results, sweeps and running processes."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil

from periodic_lib import experiments
from periodic_lib.project import ConfigError
from periodic_lib.storage import store, turns
from periodic_lib.sweeping import journals

COLUMNS = ("what", "state", "time", "file")
WORDS = {"ready": "done", "out of date": "stale", "damaged": "damaged", "not made": "not made"}


def rows(everything: bool = False) -> list[tuple[str, str, str, str]]:
    """Return `COLUMNS` of each result that is there or under way, of each sweep and process.

    `everything`: results that are not made, too.
    """
    found = [*running(), *swept()]
    for name, entry in experiments.declared().items():
        for profile in entry["profiles"]:
            row = result(name, profile)
            if everything or row[1] != "not made":
                found.append(row)
    return found


def result(name: str, profile: str) -> tuple[str, str, str, str]:
    """Return the row of a declared experiment: done, stale, damaged, unfinished or not made."""
    todo = experiments.plan(name, profile)
    try:
        word, seconds = experiments.state(todo)
    except ConfigError as error:  # of a newer format, say
        return f"{name} ({profile})", "unreadable", "", f"{todo.path}: {error}"
    unfinished = todo.path.with_suffix(".resume.npz")
    state, path = WORDS[word], todo.path
    if word == "not made" and unfinished.exists():
        state, path = "unfinished", unfinished
    return f"{name} ({profile})", state, duration(seconds), str(path)


def running() -> Iterator[tuple[str, str, str, str]]:
    """Yield the rows of what processes train now, by the locks that they hold."""
    for facts in turns.living():
        since = datetime.now(UTC) - datetime.fromisoformat(facts["since"])
        who = f"process {facts['process']} on {facts['machine']}"
        what = facts.get("what") or f"{len(facts['keys'])} runs"
        yield what, "running", duration(since.total_seconds()), who


def swept() -> Iterator[tuple[str, str, str, str]]:
    """Yield the rows of the sweeps that this folder of results has seen, by their journals."""
    for path, facts in _journals():
        lost = facts["failed_runs"]
        text = f"{facts['state']}, {facts['stored']} of {facts['runs']} runs"
        text += f", {lost} failed" if lost else ""
        if facts["state"] == "running" and not _lives(facts):
            text = text.replace("running", "interrupted")
        yield f"sweep {facts['name']}", text, duration(facts["seconds"]), str(path)


def failures() -> list[str]:
    """Return what stacks of sweeps have failed of, as the journals say."""
    journals = [facts for _, facts in _journals()]
    return [f"sweep {one['name']}: {message}" for one in journals for message in one["failed"]]


def duration(seconds: float | None) -> str:
    """Return a time in words.

    >>> duration(42.3), duration(3700), duration(200000), duration(None)
    ('42 s', '1.0 h', '2.3 d', '')
    """
    if seconds is None:
        return ""
    units = ((86400, "d"), (3600, "h"), (60, "min"))
    for length, unit in units:
        if seconds >= 1.5 * length or (unit == "h" and seconds >= length):
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _journals() -> Iterator[tuple[Path, dict]]:
    """Yield the file and the content of every journal of a sweep that can be read."""
    for path in sorted((store.folder() / journals.FOLDER).glob("*.json")):
        with suppress(OSError, ValueError):
            yield path, json.loads(path.read_text(encoding="utf-8"))


def _lives(facts: dict) -> bool:
    """Whether a sweep's process lives; of another machine, which cannot be seen from here, it is
    taken for granted.
    """
    return facts["machine"] != socket.gethostname() or psutil.pid_exists(facts["process"])
