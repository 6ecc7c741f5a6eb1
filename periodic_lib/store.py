"""The store: every run that was ever trained here, found by what it was made from.

A run's address is a digest of all that determines its numbers (`run_key`). The store is the folder
of results: any result file in it, of a whole experiment or of one stack of a sweep, holds the runs
that its own labels say it holds. The index beside them is a cache of those labels: when it is
deleted, damaged or behind, it is made again from the files. Nothing is stored twice.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from filelock import FileLock, Timeout

from periodic_lib import project, results
from periodic_lib.checks import known_names
from periodic_lib.config import Record, Run, Setup
from periodic_lib.project import ConfigError

if TYPE_CHECKING:
    import pandas as pd

INDEX, STACKS, CLAIMS = ".index.jsonl", "stacks", ".claims"
INDEX_VERSION = 1  # lines of another are not read
POLL_SECONDS = 0.2  # between looks at who else trains
SOURCES_NAMED = 100  # files that a joined result names
CONVOLUTIONAL = ("convnet", "resnet18")
KEPT = ("created", "seconds", "device")  # of a file, in the listing
AGREE = ("setup", "record", "code", "data_digest", "classes", "steps_per_epoch", "steps_done")
"""Attributes in which the files of one joined result agree; other facts may differ."""


def folder() -> Path:
    """Return the folder of results made on this machine: $PERIODIC_CACHE, else data/cache (not in
    git).
    """
    return project.folder("PERIODIC_CACHE", "data", "cache")


# ---------------------------------------------------------------- addresses


def run_keys(
    setup: Setup, runs: Sequence[Run], record: Record, data_digest: str | None = None
) -> list[str]:
    """Return the addresses of runs that are trained as one stack (`run_key`)."""
    stack = results.stack_digest(runs)
    return [run_key(setup, run, record, data_digest, stack=stack) for run in runs]


def run_key(
    setup: Setup,
    run: Run,
    record: Record,
    data_digest: str | None = None,
    *,
    stack: str | None = None,
    code: str | None = None,
) -> str:
    """Return the address of a run: a digest of its settings, data and the code that trains it.

    On a CPU the numbers of a perceptron or a transformer are the same, bit by bit, whatever runs
    are beside it in its stack: its trajectory and all that is recorded of it. So such runs are
    shared between experiments and stacks. With convolutions they are not: a group alone is computed
    by other instructions than one of several, and the order of a sum over pictures depends on how
    many channels lie side by side. The address of such a run has that of its whole stack in it. The
    machine is not part of an address: between processors, and on a GPU between stacks, numbers
    agree to rounding only; every result says where it was made.

    Parameters
    ----------
    data_digest : of a data file of your own (`sources.own_data_digest`).
    stack : of the runs that it is trained with (`results.stack_digest`); None: it is alone.
    code : `results.code_digest` of the code that trained it; None: of this library.

    >>> len(run_key(Setup(), Run(lr=0.1, weight_decay=0), Record()))
    32
    """
    shared = {"setup": setup.to_dict(), "record": record.to_dict(), "data": data_digest or ""}
    shared["code"] = results.code_digest() if code is None else code
    if setup.network in CONVOLUTIONAL:
        shared["stack"] = results.stack_digest([run]) if stack is None else stack
    return project.digest([shared, run.to_dict()])[:32]


def keys_of(dataset: xr.Dataset) -> list[str]:
    """Return the addresses of the runs of a result, in their order.

    Raises
    ------
    ConfigError : if it is not the whole record of its runs: unfinished, or made smaller since.
    """
    facts, setup = dataset.attrs, results.setup_of(dataset)
    record = Record(**json.loads(facts["record"]))
    unit = int(facts["steps_per_epoch"]) if record.unit == "epoch" else 1
    rows = -(-setup.steps // (record.every * unit))
    if "covers" in dataset or dataset.sizes["step"] != rows or not _is_finished(facts):
        raise ConfigError("only whole records are stored; this one is unfinished or a part of one.")
    runs = results.runs_of(dataset)
    how = {"stack": facts.get("stack") or results.stack_digest(runs), "code": facts["code"]}
    data = facts.get("data_digest", "")
    return [run_key(setup, run, record, data, **how) for run in runs]


def _is_finished(facts: Mapping) -> bool:
    steps = json.loads(facts["setup"])["steps"]
    return int(facts.get("steps_done", steps)) == steps


# ---------------------------------------------------------------- writing and reading


def put(dataset: xr.Dataset) -> Path:
    """Write the result of one stack, under the address of its runs; return the file's path.

    Written once: a file that is there and undamaged stays as it is.

    Raises
    ------
    ConfigError : if it is not the whole record of its runs.
    OSError : if it cannot be written; what is stored is as it was.
    """
    address = project.digest(keys_of(dataset))[:32]
    path = folder() / STACKS / address[:2] / f"{address}.nc"
    try:
        results.load(path)
    except FileNotFoundError:
        results.save(dataset, path)
    except results.ResultsError as error:
        aside = results.set_aside(path)
        project.print_message(f"{error} Set aside as {aside.name}; written again.")
        results.save(dataset, path)
    _append([_entry(path)])
    return path


def missing(keys: Iterable[str]) -> list[str]:
    """Return those addresses that no stored file has, in their order."""
    there = _places()
    return [key for key in keys if key not in there]


def take(keys: Sequence[str]) -> xr.Dataset:
    """Return stored runs as one result, in the order of `keys`: as if trained as one stack.

    Values, labels and coordinates are the same, bit by bit (with convolutions: as in the stacks
    that they were trained in). Of facts in which the files differ all values stand in the
    attribute, and `sources` names the files; `seconds` is the runs' share.

    Raises
    ------
    KeyError : naming the addresses that are not stored.
    ResultsError : if a file turns out damaged: it is set aside, its runs are missing from now on.
    ConfigError : if the runs have no common setup, record and code.
    """
    there = _places()
    if absent := [key for key in keys if key not in there]:
        raise KeyError(f"not stored: {', '.join(absent[:3])}{' ...' * (len(absent) > 3)}")
    rows: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        rows.setdefault(there[key], []).append(place)
    parts = [_rows_of(name, [keys[place] for place in places]) for name, places in rows.items()]
    order = np.argsort([place for places in rows.values() for place in places])
    taken = _joined(parts, list(rows)).isel(run=order).assign_coords(run=np.arange(len(keys)))
    return taken.assign_attrs(settings=_settings(taken))


def _rows_of(name: str, keys: Sequence[str]) -> xr.Dataset:
    """Return the runs with these addresses of a file, and of its seconds their share."""
    path = folder() / name
    try:
        whole = results.load(path)
    except results.ResultsError as error:
        aside = results.set_aside(path)
        raise results.ResultsError(f"{error} Set aside as {aside.name}.") from None
    row = {key: number for number, key in enumerate(keys_of(whole))}
    if not set(keys) <= set(row):  # replaced since it was indexed
        raise results.ResultsError(f"{path} no longer holds the runs that it held.")
    share = float(whole.attrs["seconds"]) * len(keys) / len(row)
    return whole.isel(run=[row[key] for key in keys]).assign_attrs(seconds=share)


def _joined(parts: Sequence[xr.Dataset], names: Sequence[str]) -> xr.Dataset:
    """Return results of one setup after each other."""
    facts = [part.attrs for part in parts]
    for name in AGREE[:4]:
        if len({one.get(name, "") for one in facts}) > 1:
            raise ConfigError(f"runs of different {name} are no one result: take them apart.")
    joined = parts[0]
    if len(parts) > 1:
        how = {"data_vars": "minimal", "coords": "minimal", "compat": "equals", "join": "exact"}
        joined = xr.concat(parts, "run", combine_attrs="override", **how)
    texts = {name: _all(one.get(name) for one in facts) for name in facts[0] if name not in AGREE}
    agreed = {name: facts[0][name] for name in AGREE if name in facts[0]}
    numbers = {"seconds": sum(one["seconds"] for one in facts)}
    shown = [*names[:SOURCES_NAMED], *["..."] * (len(names) > SOURCES_NAMED)]
    joined.attrs = {**texts, **agreed, **numbers, "sources": "; ".join(shown)}
    return joined


def _all(values: Iterable[object]) -> object:
    """Return the value if there is one, else all as text, the first ones if they are many."""
    different = list(dict.fromkeys(values))
    if len(different) == 1:
        return different[0]
    shown = [str(value) for value in different[:SOURCES_NAMED] if value is not None]
    return "; ".join(shown) + " ..." * (len(different) > SOURCES_NAMED)


def _settings(dataset: xr.Dataset) -> str:
    """Return the digest of a result's settings (`results.settings_of`)."""
    record = Record(**json.loads(dataset.attrs["record"]))
    data = dataset.attrs.get("data_digest") or None
    runs = results.runs_of(dataset)
    return project.digest(results.settings_of(results.setup_of(dataset), runs, record, data))


def listing(**select: object) -> pd.DataFrame:
    """Return a table of the stored runs, by their address: what they are, `path`, `created`,
    `seconds` (the run's share of its stack's), `device`, and `current`: by the present code.

    Parameters
    ----------
    select : values of columns; numbers are compared to 9 digits.

    Raises
    ------
    ConfigError : for a column that there is not.
    """
    import pandas as pd

    table = pd.DataFrame([row for entry in _index().values() for row in _table_rows(entry)])
    if table.empty:
        return table
    table = table.drop_duplicates("key").set_index("key")
    known_names("column", select, tuple(table.columns))
    for name, value in select.items():
        found = table[name]
        numeric = isinstance(value, int | float) and found.dtype.kind in "fi"
        same = np.isclose(found, value, rtol=1e-9, atol=0) if numeric else found == value
        table = table[same]
    return table


def _table_rows(entry: Mapping) -> Iterator[dict]:
    """Yield the rows of the listing of a file."""
    facts = {name: entry[name] for name in KEPT}
    facts |= {"path": str(folder() / entry["path"])}
    facts |= {"seconds": entry["seconds"] / max(1, len(entry["keys"]))}
    facts |= {"current": entry["code"] == results.code_digest()}
    for key, *values in zip(entry["keys"], *entry["runs"].values(), strict=True):
        run = dict(zip(entry["runs"], values, strict=True))
        yield {"key": key, **entry["setup"], **entry["record"], **run, **facts}


# ---------------------------------------------------------------- the index


def _places() -> dict[str, str]:
    """Return address -> name of a file that has it."""
    return {key: name for name, entry in _index().items() for key in entry["keys"]}


def _index() -> dict[str, dict]:
    """Return name -> labels of every result file in the folder, as it is now.

    Only files that the index does not know as they are (by size and time) are opened.
    """
    lines, entries = _lines()
    known = {entry["path"]: entry for entry in entries}
    found, new = {}, []
    for path, stamp in sorted(_files(folder())):
        name = str(path.relative_to(folder()))
        entry = known.get(name)
        if entry is None or entry["stamp"] != stamp:
            entry = _entry(path)
            new.append(entry)
        found[name] = entry
    if lines + len(new) > 2 * len(found) + 10:  # mostly lines of what is no longer there
        _write_index(found.values())
    elif new:
        _append(new)
    return found


def _files(place: Path) -> Iterator[tuple[Path, list[int]]]:
    """Yield every result file in a folder and its subfolders, with its size and time."""
    try:
        inside = list(os.scandir(place))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ConfigError(f"the folder {place} cannot be read: {error.strerror}.") from None
    for one in inside:
        if one.name.startswith("."):
            continue
        if one.is_dir(follow_symlinks=False):
            yield from _files(Path(one.path))
        elif one.name.endswith(".nc"):
            try:
                facts = one.stat()
            except OSError:  # removed meanwhile, or a link to nothing
                continue
            yield Path(one.path), [facts.st_size, facts.st_mtime_ns]


def _entry(path: Path) -> dict:
    """Return the labels of a file as the index has them; without runs if it cannot be used."""
    facts = path.stat()
    name = str(path.relative_to(folder()))
    entry = {"index": INDEX_VERSION, "path": name, "stamp": [facts.st_size, facts.st_mtime_ns]}
    try:
        labels = results.labels(path)
        return entry | {
            "keys": keys_of(labels),
            "runs": {key: labels[key].values.tolist() for key in Run.names() if key in labels},
            "setup": json.loads(labels.attrs["setup"]),
            "record": json.loads(labels.attrs["record"]),
            "code": labels.attrs["code"],
            **{key: _plain(labels.attrs[key]) for key in KEPT},
        }
    except (OSError, ValueError, KeyError, TypeError) as error:  # its reader says it
        return entry | {"keys": [], "runs": {}, "problem": str(error)[:200]} | _NOTHING


_NOTHING = {"setup": {}, "record": {}, "code": "", "created": "", "seconds": 0.0, "device": ""}


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def _lines() -> tuple[int, list[dict]]:
    """Return the number of lines of the index and those that can be used."""
    path = folder() / INDEX
    try:
        facts = path.stat()
    except OSError:
        return 0, []
    return _parsed(path, facts.st_size, facts.st_mtime_ns, facts.st_ino)


@lru_cache(maxsize=1)
def _parsed(path: Path, *_: int) -> tuple[int, list[dict]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return 0, []
    return len(lines), [entry for line in lines if (entry := _checked_line(line)) is not None]


def _checked_line(line: bytes) -> dict | None:
    """Return the entry of a line of the index, or None if torn or of another version."""
    try:
        entry = json.loads(line)
        right = entry["index"] == INDEX_VERSION and {*_NOTHING, "path", "stamp", "keys"} <= set(
            entry
        )
        return entry if right and isinstance(entry["keys"], list) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _append(entries: Iterable[dict]) -> None:
    """Add lines to the index; where it cannot be written, it stays behind."""
    text = "".join(f"\n{json.dumps(entry)}" for entry in entries)  # after a torn line, too
    with suppress(OSError), (folder() / INDEX).open("ab", buffering=0) as stream:
        stream.write(text.encode())


def _write_index(entries: Iterable[dict]) -> None:
    with suppress(OSError):
        project.write_whole(folder() / INDEX, "\n".join(map(json.dumps, entries)))


# ---------------------------------------------------------------- one trains, the others wait


@dataclass
class _Claim:
    """Runs that a process is training now: a file that says which, and a lock that dies with it."""

    path: Path

    @property
    def lock(self) -> FileLock:
        """The lock that the process holds."""
        return FileLock(self.path.with_suffix(".lock"))

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
            left = list(keys) if anew else missing(keys)
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
    place = folder() / CLAIMS
    try:
        place.mkdir(parents=True, exist_ok=True)
        gate = FileLock(place / "gate.lock")
        gate.acquire()
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"results cannot be written to {folder()}: {reason}. Choose another place: "
            "PERIODIC_CACHE."
        ) from None
    try:
        yield
    finally:
        gate.release()


def _other(keys: Iterable[str]) -> _Claim | None:
    """Return the claim of a living process on any of these runs; remove those of dead ones."""
    wanted = set(keys)
    for path in sorted((folder() / CLAIMS).glob("*.json")):
        claim = _Claim(path)
        try:
            with claim.lock.acquire(timeout=0):
                claim.remove()
        except Timeout:
            if wanted & set(claim.content().get("keys", ())):
                return claim
    return None


def _claim(keys: Sequence[str], what: str) -> tuple[_Claim, FileLock]:
    """Claim runs: hold a lock, then say what for."""
    claim = _Claim(folder() / CLAIMS / f"{uuid.uuid4().hex}.json")
    facts = {"process": os.getpid(), "machine": socket.gethostname(), "what": what}
    facts |= {"since": datetime.now(UTC).isoformat(timespec="seconds"), "keys": list(keys)}
    lock = claim.lock
    lock.acquire()
    project.write_whole(claim.path, json.dumps(facts))
    return claim, lock


def describe() -> dict[str, int]:
    """Return how many files and runs are stored, and how many files cannot be used."""
    entries = _index().values()
    count = Counter(bool(entry.get("problem")) for entry in entries)
    runs = len({key for entry in entries for key in entry["keys"]})
    return {"files": count[False], "runs": runs, "unusable": count[True]}
