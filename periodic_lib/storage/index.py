"""The index of the store: which run is in which file, by its address.

The index is a cache of what the files say of themselves, a line of JSON for each: when it is
deleted, damaged or behind, it is made again from the files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from periodic_lib import fingerprints, project, results
from periodic_lib.config import Record, Run, Setup
from periodic_lib.project import ConfigError

if TYPE_CHECKING:
    import h5py

INDEX = ".index.jsonl"
INDEX_VERSION = 1  # lines of another are not read
KEPT = ("created", "seconds", "device")  # of a file, in the listing
CONVOLUTIONAL = ("convnet", "resnet18")


def folder() -> Path:
    """Return the folder of results made on this machine: $PERIODIC_CACHE, else data/cache (not in
    git).
    """
    return project.folder("PERIODIC_CACHE", "data", "cache")


@contextmanager
def writable() -> Iterator[None]:
    """Let a failure to write to the folder of results be a `ConfigError`, in one line."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"results cannot be written to {folder()}: {error.strerror or error}. Free some space, "
            "or choose another place: PERIODIC_CACHE."
        ) from None


# ---------------------------------------------------------------- addresses


def run_keys(
    setup: Setup, runs: Sequence[Run], record: Record, data_digest: str | None = None
) -> list[str]:
    """Return the addresses of runs that are trained as one stack (`run_key`)."""
    stack = fingerprints.stack_digest(runs)
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

    On a CPU, with one thread, the numbers of a perceptron or a transformer are the same, bit by
    bit, whatever runs are beside it in its stack: its trajectory and all that is recorded of it. So
    such runs are shared between experiments and stacks. (Chapters and workers of a sweep train so.
    Several threads cut sums where the size of the stack says.) With convolutions they are not: a
    group alone is computed by other instructions than one of several, and the order of a sum over
    pictures depends on how many channels lie side by side. The address of such a run has that of
    its whole stack in it. The machine is not part of an address, nor are its threads: between
    processors, with several threads, and on a GPU between stacks, numbers agree to rounding only;
    every result says where it was made, and with how many threads.

    Parameters
    ----------
    data_digest : of a data file of your own (`sources.own_data_digest`).
    stack : of the runs that it is trained with (`fingerprints.stack_digest`); None: it is alone.
    code : `fingerprints.code_digest` of the code that trained it; None: of this library.

    >>> len(run_key(Setup(), Run(lr=0.1, weight_decay=0), Record()))
    32
    """
    shared = {"setup": setup.to_dict(), "record": record.to_dict(), "data": data_digest or ""}
    shared["code"] = fingerprints.code_digest() if code is None else code
    if setup.network in CONVOLUTIONAL:
        shared["stack"] = fingerprints.stack_digest([run]) if stack is None else stack
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
    runs = runs_of(dataset)
    how = {"stack": facts.get("stack") or fingerprints.stack_digest(runs), "code": facts["code"]}
    data = facts.get("data_digest", "")
    return [run_key(setup, run, record, data, **how) for run in runs]


def _is_finished(facts: Mapping) -> bool:
    steps = json.loads(facts["setup"])["steps"]
    return int(facts.get("steps_done", steps)) == steps


def runs_of(dataset: xr.Dataset) -> list[Run]:
    """Return the `Run`s of `dataset`, from its coordinates: nan and an empty text are None.

    >>> runs_of(xr.Dataset(coords={"lr": ("run", [0.1]), "weight_decay": ("run", [0.0])}))[0].lr
    0.1
    """
    missing = {field.name for field in fields(Run) if field.default is None}
    columns = {name: dataset[name].values.tolist() for name in Run.names() if name in dataset}
    return [
        Run(**{n: None if n in missing and (v != v or v == "") else v for n, v in row.items()})
        for row in (
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        )
    ]


# ---------------------------------------------------------------- what a file says


def _labels(path: Path) -> xr.Dataset:
    """Return a file that `save` wrote with its attributes and coordinates alone, unverified; the
    values of other variables are not read.

    Raises
    ------
    FileNotFoundError, ResultsError, ConfigError : as `results.attributes`.
    """
    import h5py

    found = results.attributes(path)
    with h5py.File(path) as stored:
        sizes = {name: stored[name].shape[0] for name in ("run", "step") if name in stored}
        columns = {name: stored[name] for name in Run.names() if name in stored}
        coordinates = {name: ("run", _column(values)) for name, values in columns.items()}
        covers = {"covers": ((), 0)} if "covers" in stored else {}
    return xr.Dataset(covers, {n: np.arange(k) for n, k in sizes.items()} | coordinates, found)


def _column(values: h5py.Dataset) -> np.ndarray:
    return values.asstr()[:] if values.dtype.kind == "O" else values[:]


# ---------------------------------------------------------------- the index


def places() -> dict[str, str]:
    """Return address -> name of a file that has it."""
    return {key: name for name, entry in entries().items() for key in entry["keys"]}


def missing(keys: Iterable[str]) -> list[str]:
    """Return those addresses that no stored file has, in their order."""
    there = places()
    return [key for key in keys if key not in there]


def entries() -> dict[str, dict]:
    """Return name -> labels of every result file in the folder, as it is now.

    Only files that the index does not know as they are (by size and time) are opened.
    """
    lines, read = _lines()
    known = {entry["path"]: entry for entry in read}
    found, new = {}, []
    for path, stamp in sorted(_files(folder())):
        name = str(path.relative_to(folder()))
        entry = known.get(name)
        if entry is None or entry["stamp"] != stamp:
            entry = entry_of(path)
            new.append(entry)
        found[name] = entry
    if lines + len(new) > 2 * len(found) + 10:  # mostly lines of what is no longer there
        _write_index(found.values())
    elif new:
        append(new)
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


def entry_of(path: Path) -> dict:
    """Return the labels of a file as the index has them; without runs if it cannot be used."""
    facts = path.stat()
    name = str(path.relative_to(folder()))
    entry = {"index": INDEX_VERSION, "path": name, "stamp": [facts.st_size, facts.st_mtime_ns]}
    try:
        labels = _labels(path)
        return entry | {
            "keys": keys_of(labels),
            "runs": {key: labels[key].values.tolist() for key in Run.names() if key in labels},
            "setup": json.loads(labels.attrs["setup"]),
            "record": json.loads(labels.attrs["record"]),
            "code": labels.attrs["code"],
            **{key: _plain(labels.attrs[key]) for key in KEPT},
        }
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        RuntimeError,
    ) as error:  # its reader says it
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


def append(entries: Iterable[dict]) -> None:
    """Add lines to the index; where it cannot be written, it stays behind."""
    text = "".join(f"\n{json.dumps(entry)}" for entry in entries)  # after a torn line, too
    with suppress(OSError), (folder() / INDEX).open("ab", buffering=0) as stream:
        stream.write(text.encode())


def forget() -> None:
    """Remove the index, so that the next look makes it again from the files."""
    with suppress(OSError):
        (folder() / INDEX).unlink(missing_ok=True)


def _write_index(entries: Iterable[dict]) -> None:
    with suppress(OSError):
        project.write_whole(folder() / INDEX, "\n".join(map(json.dumps, entries)))
