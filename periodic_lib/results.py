"""Results: one labelled `xarray.Dataset` in one netCDF file that explains itself and knows when it is damaged.

A file is written beside its place and then moved there, so that an interrupted write leaves nothing behind. It
carries the setup, versions, device, seeds, git revision, wall time, and a checksum of all values and attributes.
"""

from __future__ import annotations

import ast
import datetime
import hashlib
import io
import json
import os
import platform
import subprocess
import tokenize
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib.config import ConfigError, Record, Run, Setup, root
from periodic_lib.glossary import TERMS

CODE = ("config", "datasets", "networks", "optimizers", "metrics", "training")  # modules a result depends on
MEASURED = ("train_loss", "weight_norm", "elr", "grad_norm", "eff_grad_norm", "angular_update", "sharpness")
LABELS = {name: (TERMS[name].term, TERMS[name].unit) for name in MEASURED} | {  # variable -> (what it is, unit)
    "train_loss_full": ("training loss (full set)", "nats"),
    "train_error": ("training error", "1"),
    "test_loss": ("test loss", "nats"),
    "test_error": ("test error", "1"),
    "direction": ("scale-invariant weights over their norm", "1"),
    "test_logits": ("logits of the test examples", "1"),
    "diverged_at": ("step at which a run left the finite numbers", "steps"),
    "layer_weight_norm": ("weight norm of a layer", "1"),
    "layer_grad_norm": ("gradient norm of a layer", "1"),
    "layer_angular_update": ("angular update of a layer", "radians"),
    "neuron_weight_norm": ("weight norm of a neuron", "1"),
    "neuron_grad_norm": ("gradient norm of a neuron", "1"),
    "neuron_angular_update": ("angular update of a neuron", "radians"),
}


class ResultsError(ValueError):
    """A result file that cannot be used."""


def with_provenance(
    dataset: xr.Dataset, setup: Setup, runs: Sequence[Run], record: Record, seconds: float, **facts: object
) -> xr.Dataset:
    """Return `dataset` with labels and units on its variables and its origin in its attributes."""
    for name, variable in dataset.data_vars.items():
        variable.attrs["long_name"], variable.attrs["units"] = LABELS[name]
    created = datetime.datetime.now(datetime.UTC)
    return dataset.assign_attrs(
        setup=json.dumps(setup.to_dict()),
        record=json.dumps(record.to_dict()),
        settings=digest(settings_of(setup, runs, record)),
        code=code_digest(),
        seconds=seconds,
        created=created.isoformat(timespec="seconds"),
        git_revision=_git_revision(),
        python_version=platform.python_version(),
        numpy_version=np.__version__,
        xarray_version=xr.__version__,
        **facts,
    )


def _git_revision() -> str:
    """Return the revision of the project, with "+" if files were changed since; "unknown" outside of git."""
    try:
        command = ["git", "-C", str(root()), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError, ConfigError):
        return "unknown"


# ---------------------------------------------------------------- fingerprints


def digest(content: object) -> str:
    """Return the SHA-256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def settings_of(setup: Setup, runs: Sequence[Run], record: Record) -> dict:
    """Return everything that determines a result, without the code, ready for JSON."""
    settings = {"setup": setup.to_dict(), "runs": [run.to_dict() for run in runs], "record": record.to_dict()}
    own = Path(setup.dataset)
    if own.suffix == ".npz" and own.is_file():  # your own data: its content counts, not its name
        settings["data"] = hashlib.sha256(own.read_bytes()).hexdigest()
    return settings


@cache
def code_digest(modules: tuple[str, ...] = CODE) -> str:
    """Return the SHA-256 of what the modules do: their source without comments, docstrings and blank lines.

    A better comment makes no result untrue.
    """
    folder = Path(__file__).parent
    return digest([bare_source((folder / f"{module}.py").read_text(encoding="utf-8")) for module in modules])


def bare_source(source: str) -> str:
    r"""Return Python source without comments, docstrings and blank lines.

    >>> bare_source('"Doc."\nx = 1  # one\n\ndef f():\n    "doc"\n    return "#"\n')
    'x = 1\ndef f():\n    return "#"'
    """
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
                for row in range(first.lineno, first.end_lineno + 1):
                    lines[row - 1] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())


# ---------------------------------------------------------------- files


@contextmanager
def all_or_nothing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the place of `path` at the end, or is gone if that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save(dataset: xr.Dataset, path: Path | str) -> Path:
    """Write `dataset` to `path` (netCDF 4, compressed) with its checksum, all or nothing; return the path."""
    path = Path(path)
    packing = {name: {"zlib": True, "complevel": 1, "shuffle": True} for name in dataset.data_vars}
    with all_or_nothing(path) as partial:
        dataset.assign_attrs(sha256=checksum(dataset)).to_netcdf(partial, engine="h5netcdf", encoding=packing)
    return path


def load(path: Path | str) -> xr.Dataset:
    """Read a file that `save` wrote, into memory, and verify its checksum.

    Raises
    ------
    FileNotFoundError : if there is none.
    ResultsError : if it cannot be read, or its values are not those that were written.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no results at {path}: make them with `periodic run`.")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as stored:
            dataset = stored.load()
    except Exception as error:  # h5py, h5netcdf and xarray raise many kinds for a damaged file
        raise ResultsError(f"{path} cannot be read ({type(error).__name__}): damaged or not a result file.") from error
    written = dataset.attrs.pop("sha256", None)
    if written != checksum(dataset):
        raise ResultsError(f"{path} is damaged: its values do not match its checksum.")
    return dataset


def checksum(dataset: xr.Dataset) -> str:
    """Return the SHA-256 of all names, values and attributes of `dataset`."""
    digest = hashlib.sha256()
    for name in sorted(map(str, dataset.variables)):
        variable = dataset.variables[name]
        values = np.ascontiguousarray(variable.values)
        digest.update(f"{name}{variable.dims}{values.dtype.str}{values.shape}".encode())
        digest.update(values.tobytes())
    attributes = {name: str(value) for name, value in dataset.attrs.items()}
    digest.update(json.dumps(attributes, sort_keys=True).encode())
    return digest.hexdigest()


def set_aside(path: Path) -> Path:
    """Rename a damaged file so that nothing is lost; return its new path."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    os.replace(path, aside)
    return aside


# ---------------------------------------------------------------- selecting and reshaping


def setup_of(dataset: xr.Dataset) -> Setup:
    """Return the `Setup` that `dataset` was made with."""
    return Setup(**json.loads(dataset.attrs["setup"]))


def provenance(dataset: xr.Dataset) -> str:
    """Return in one line where, when and with what `dataset` was made."""
    facts = dataset.attrs
    return (
        f"{dataset.sizes['run']} runs of {setup_of(dataset).steps} steps on {facts['device']} in "
        f"{facts['seconds']:.1f} s, {facts['created']}, revision {facts['git_revision']}, "
        f"torch {facts['torch_version']}, numpy {facts['numpy_version']}, "
        f"seeds {np.unique(dataset.init_seed).tolist()}"
    )


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


def tidy(dataset: xr.Dataset, *names: str) -> pd.DataFrame:
    """Return a long table for seaborn: one row per run and step, the runs' parameters as columns."""
    return dataset[list(names)].to_dataframe().reset_index()


def published(name: str) -> pd.DataFrame:
    """Return a table of published values, data/published/<name>.csv; data/README.md says where each comes from.

    >>> published("lobacheva2021_jumps").groupby("learning_rate").size().to_dict()
    {0.01: 4, 0.03: 15}
    """
    return pd.read_csv(root() / "data" / "published" / f"{name}.csv")
