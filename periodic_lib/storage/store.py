"""The store: every run that was ever trained here, found by what it was made from.

A run's address is a digest of all that determines its numbers (`run_key`). The store is the folder
of results: any result file in it, of a whole experiment or of one stack of a sweep, holds the runs
that its own labels say it holds. The index beside them is a cache of those labels: when it is
deleted, damaged or behind, it is made again from the files. Nothing is stored twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from periodic_lib import fingerprints, project, results
from periodic_lib.checks import known_names
from periodic_lib.config import Record, Run
from periodic_lib.project import ConfigError
from periodic_lib.storage import index
from periodic_lib.storage.index import (
    CONVOLUTIONAL,
    KEPT,
    folder,
    keys_of,
    missing,
    run_key,
    run_keys,
)
from periodic_lib.storage.turns import claimed

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CONVOLUTIONAL",
    "claimed",
    "describe",
    "files",
    "folder",
    "keys_of",
    "listing",
    "missing",
    "put",
    "run_key",
    "run_keys",
    "take",
]

STACKS = "stacks"
SOURCES_NAMED = 100  # files that a joined result names
AGREE = ("setup", "record", "code", "data_digest", "classes", "steps_per_epoch", "steps_done")
"""Attributes in which the files of one joined result agree; other facts may differ."""


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
    index.append([index.entry_of(path)])
    return path


def files(keys: Iterable[str]) -> list[Path]:
    """Return the files that hold stored runs, each once.

    Raises
    ------
    KeyError : if one is not stored.
    """
    there = index.places()
    return [folder() / name for name in dict.fromkeys(there[key] for key in keys)]


def with_keys(runs: Sequence[Run], keys: Sequence[str], wanted: Set[str]) -> list[Run]:
    """Return the runs whose address, the entry of `keys` beside theirs, is one of `wanted`.

    >>> with_keys(["a", "b", "c"], ["1", "2", "3"], {"3", "1"})
    ['a', 'c']
    """
    return [run for run, key in zip(runs, keys, strict=True) if key in wanted]


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
    there = index.places()
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
    if not set(keys) <= set(row):  # replaced since it was indexed, or the index is wrong
        index.forget()
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
    """Return the digest of a result's settings (`fingerprints.settings_of`)."""
    record = Record(**json.loads(dataset.attrs["record"]))
    data = dataset.attrs.get("data_digest") or None
    runs = index.runs_of(dataset)
    return project.digest(fingerprints.settings_of(results.setup_of(dataset), runs, record, data))


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

    table = pd.DataFrame([row for entry in index.entries().values() for row in _table_rows(entry)])
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
    facts |= {"current": entry["code"] == fingerprints.code_digest()}
    for key, *values in zip(entry["keys"], *entry["runs"].values(), strict=True):
        run = dict(zip(entry["runs"], values, strict=True))
        yield {"key": key, **entry["setup"], **entry["record"], **run, **facts}


def describe() -> dict[str, int]:
    """Return how many files and runs are stored, and how many files cannot be used."""
    entries = index.entries().values()
    count = Counter(bool(entry.get("problem")) for entry in entries)
    runs = len({key for entry in entries for key in entry["keys"]})
    return {"files": count[False], "runs": runs, "unusable": count[True]}
