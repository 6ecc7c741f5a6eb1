"""Results: one labelled `xarray.Dataset` in one netCDF file that explains itself and knows when it
is damaged.

A file is written beside its place and then moved there, so that an interrupted write leaves nothing
behind. It carries the setup, versions, device, seeds, git revision, wall time, and a checksum of
all values and attributes.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import os
import platform
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xarray as xr

from periodic_lib import fingerprints, outside
from periodic_lib.config import Record, Run, Setup
from periodic_lib.glossary import LABELS
from periodic_lib.project import ConfigError, digest, root, whole_interruptions, write_whole

FORMAT = 2  # of the files: 2 since they say `format`, `data_digest` and `stack`


class ResultsError(ValueError):
    """A result file that cannot be used."""


def with_provenance(
    dataset: xr.Dataset,
    setup: Setup,
    runs: Sequence[Run],
    record: Record,
    *,
    data_digest: str | None,
    seconds: float,
    **facts: object,
) -> xr.Dataset:
    """Return `dataset` with labels and units on its variables and its origin in its attributes.

    `data_digest` is that of the data as they were loaded, if they came from a file of your own.
    """
    for name, variable in dataset.data_vars.items():
        variable.attrs["long_name"], variable.attrs["units"] = LABELS[str(name)]
    return dataset.assign_attrs(
        setup=json.dumps(setup.to_dict()),
        record=json.dumps(record.to_dict()),
        settings=digest(fingerprints.settings_of(setup, runs, record, data_digest)),
        code=fingerprints.code_digest(),
        data_digest=data_digest or "",
        stack=fingerprints.stack_digest(runs),
        seconds=seconds,
        **origin(),
        **facts,
    )


def origin() -> dict[str, str]:
    """Return when and with what something is made now, for its attributes."""
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_revision": _git_revision(),
        "python_version": platform.python_version(),
        "numpy_version": np.__version__,
        "xarray_version": xr.__version__,
    }


def _git_revision() -> str:
    """Return the revision of the project, with "+" if files were changed since; "unknown" outside
    of git.
    """
    try:
        command = [
            "git",
            "-C",
            str(root()),
            "describe",
            "--always",
            "--abbrev=12",
            "--exclude=*",
            "--dirty=+",
        ]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError, ConfigError):
        return "unknown"


# ---------------------------------------------------------------- files


def save(dataset: xr.Dataset, path: Path | str) -> Path:
    """Write `dataset` to `path` (netCDF 4, compressed) with its checksum, all or nothing; return
    the path.

    Raises
    ------
    OSError : if it cannot be written; the file that was there is as it was.
    """
    path = Path(path).expanduser()
    packing = {name: {"zlib": True, "complevel": 1, "shuffle": True} for name in dataset.data_vars}
    dataset = dataset.assign_attrs(format=FORMAT)
    marked = dataset.assign_attrs(sha256=checksum(dataset))
    # to memory first: HDF5 does not survive a disk that fills up while it writes
    with _lock_of_this_process():
        content = bytes(marked.to_netcdf(engine="h5netcdf", encoding=packing))
    write_whole(path, content)
    return path


@contextmanager
def _lock_of_this_process() -> Iterator[None]:
    """Let xarray take no lock of a Dask cluster, where there is one, for bytes in memory."""
    if "dask" not in sys.modules:
        yield
        return
    import dask

    with dask.config.set(scheduler="threads"):
        yield


def load(path: Path | str) -> xr.Dataset:
    """Read a file that `save` wrote, into memory, and verify its checksum.

    Raises
    ------
    FileNotFoundError : if there is none.
    ConfigError : if it may not be read.
    ResultsError : if it is damaged: it is no result, or its values are not those that were written.
    """
    import h5py

    path = Path(path).expanduser()
    content = _content(path)
    try:
        with whole_interruptions(), h5py.File(io.BytesIO(content)) as stored:
            outside.check_hdf5(stored, len(content))
        memory = io.BytesIO(content)
        with whole_interruptions(), xr.open_dataset(memory, engine="h5netcdf") as stored:
            dataset = stored.load()
    except Exception as error:  # h5py, h5netcdf and xarray raise many kinds for a damaged file
        kind = str(error) if isinstance(error, outside.Refused) else type(error).__name__
        raise ResultsError(
            f"{path} cannot be read ({kind}): damaged or not a result file."
        ) from error
    written = dataset.attrs.pop("sha256", None)
    if written != checksum(dataset):
        raise ResultsError(f"{path} is damaged: its values do not match its checksum.")
    return _migrated(dataset, path)


def _content(path: Path) -> bytes:
    """Return the bytes of a file, if it is one and fits into memory."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # a pipe or a device could go on for ever
            raise ConfigError(f"{path} cannot be read: it is no file.")
        outside.require_memory(2 * facts.st_size, str(path), "Move it away.")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"no results at {path}: make them with `periodic run`.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None


def _migrated(dataset: xr.Dataset, path: Path) -> xr.Dataset:
    """Return a result of any format as one of the present; the file stays as it is.

    1, before files said their format: without `data_digest`, which for data that are no file of
    your own is empty, and `stack`, which follows from their runs.
    """
    check_format(dataset.attrs, path)
    dataset.attrs.pop("format", None)
    return dataset


def check_format(attributes: Mapping, path: Path) -> None:
    """Raise `ConfigError` if a file is of a newer format than this library knows."""
    found = attributes.get("format", 1)
    if found not in range(1, FORMAT + 1):
        raise ConfigError(
            f"{path} is of format {found}; this version of the library reads 1 to {FORMAT}. Update "
            "the library, or move the file away and run again."
        )


def attributes(path: Path) -> dict:
    """Return the attributes of a file that `save` wrote, without its values.

    Raises
    ------
    FileNotFoundError : if there is none.
    ResultsError : if it is no such file.
    """
    import h5py

    if not path.is_file():
        raise FileNotFoundError(f"no results at {path}: make them with `periodic run`.")
    try:
        with h5py.File(path) as stored:
            outside.check_hdf5(stored, path.stat().st_size)
            found = {name: np.asarray(value) for name, value in stored.attrs.items()}
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # as h5py calls it
        raise ResultsError(f"{path} cannot be read: damaged or not a result file.") from error
    if "sha256" not in found:
        raise ResultsError(f"{path} is not a result file.")
    found = {name: value.item() if value.size == 1 else value for name, value in found.items()}
    check_format(found, path)
    return found


def checksum(dataset: xr.Dataset) -> str:
    """Return the SHA-256 of all names, values, labels and attributes of `dataset`."""
    state = hashlib.sha256()
    for name in sorted(map(str, dataset.variables)):
        variable = dataset.variables[name]
        values = np.ascontiguousarray(variable.values)
        state.update(f"{name}{variable.dims}{values.dtype.str}{values.shape}".encode())
        state.update(values.tobytes())
        state.update(_text(variable.attrs))
    state.update(_text(dataset.attrs))
    return state.hexdigest()


def _text(attributes: dict) -> bytes:
    """Return attributes in one form, whatever order and types a file gives them."""
    return json.dumps(
        {name: str(value) for name, value in attributes.items()}, sort_keys=True
    ).encode()


def set_aside(path: Path) -> Path:
    """Rename a damaged file so that nothing is lost; return its new path."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
    aside = path.with_name(f"{path.name}.damaged-{stamp}-{uuid.uuid4().hex[:6]}")
    os.replace(path, aside)
    return aside


# ---------------------------------------------------------------- selecting and reshaping


def setup_of(dataset: xr.Dataset) -> Setup:
    """Return the `Setup` that `dataset` was made with."""
    stored = json.loads(dataset.attrs["setup"])
    if "qk_norm" not in stored and stored["network"] != "transformer":
        stored.pop("normalization", None)  # of older results: a transformer's, and without effect
    return Setup(**stored)


def provenance(dataset: xr.Dataset) -> str:
    """Return in one line where, when and with what `dataset` was made."""
    facts = dataset.attrs
    return (
        f"{dataset.sizes['run']} runs of {_steps(dataset)} steps on {facts['device']} "
        f"({facts.get('instructions', 'instructions not kept')}) in "
        f"{facts['seconds']:.1f} s, {facts['created']}, revision {facts['git_revision']}, "
        f"torch {facts['torch_version']}, numpy {facts['numpy_version']}, "
        f"seeds {np.unique(dataset.init_seed).tolist()}"
    )


def _steps(dataset: xr.Dataset) -> str:
    """Return the number of steps, or how many of them have been done so far."""
    steps = json.loads(dataset.attrs["setup"])["steps"]
    done = int(dataset.attrs.get("steps_done", steps))
    return f"{steps}" if done == steps else f"{done} (so far, of {steps})"


def sel(dataset: xr.Dataset, **values: float) -> xr.Dataset:
    """Return the runs whose coordinates have these values (numbers, compared to 9 digits).

    >>> data = xr.Dataset(coords={"lr": ("run", [0.1, 1.0, 0.1]), "init_seed": ("run", [0, 0, 1])})
    >>> int(sel(data, lr=0.1).sizes["run"])
    2
    """
    chosen = np.ones(dataset.sizes["run"], bool)
    for name, value in values.items():
        if name not in dataset.coords or dataset[name].dims != ("run",):
            raise ConfigError(f"runs have no `{name}`; they have {', '.join(Run.names())}.")
        chosen &= np.isclose(dataset[name], value, rtol=1e-9, atol=0)
    if not chosen.any():
        present = {name: np.unique(dataset[name].values).tolist() for name in values}
        raise ConfigError(f"no run with {values}; the results have {present}.")
    return dataset.isel(run=chosen)


def join(*datasets: xr.Dataset, steps: int | None = None) -> xr.Dataset:
    """Return the runs of several results as one, with what all of them recorded at every step, up
    to `steps`.

    None: as many steps as the shortest has. `seconds` adds up; other attributes stay where all
    agree.

    Raises
    ------
    ConfigError : if they were not recorded at the same steps, or one is shorter than `steps`.

    >>> one = xr.Dataset({"train_loss": (("run", "step"), [[3.0, 2.0, 1.0]])}, {"step": [0, 1, 2]})
    >>> two = one.isel(step=slice(2)).assign_attrs(seconds=1.0)
    >>> join(one.assign_attrs(seconds=2.0), two).train_loss.shape
    (2, 2)
    """
    shortest = min(int(one.step[-1]) + 1 for one in datasets)
    steps = shortest if steps is None else steps
    parts = [one.drop_dims(set(one.dims) - {"run", "step"}) for one in datasets]
    parts = [one.sel(step=slice(0, steps - 1)) for one in parts]
    if steps > shortest or any(not one.step.equals(parts[0].step) for one in parts):
        raise ConfigError(
            f"`datasets` must be recorded at the same steps, up to {steps}; "
            f"the shortest has {shortest}."
        )
    joined = xr.concat(
        parts, "run", data_vars="minimal", combine_attrs="drop_conflicts", join="exact"
    )
    seconds = sum(one.attrs["seconds"] for one in datasets)
    return joined.assign_coords(run=np.arange(joined.sizes["run"])).assign_attrs(seconds=seconds)
