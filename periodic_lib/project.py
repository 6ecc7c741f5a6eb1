"""What is of the project and not of its science: where it is, what its environment says,
messages, files, digests.

The ground floor: imports nothing of the library.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

VARIABLES = {  # of the environment: what each is for, what holds without it; also in README
    "PERIODIC_ROOT": ("the project folder", "found upwards of the working directory"),
    "PERIODIC_CACHE": ("folder of results made on this machine", "`data/cache`"),
    "PERIODIC_DATA": ("folder of torchvision's data sets", "`data/downloads`"),
    "PERIODIC_OFFLINE": ("`1`: download nothing", "what is absent is downloaded"),
    "PERIODIC_RECORDS": (
        "folder of what chapters say: claims, numbers, figures",
        "`build/interactive`",
    ),
    "PERIODIC_PROGRESS": ("file that gets the progress bar, for another process", "standard error"),
    "PERIODIC_SEED_SHIFT": ("added to every seed of an experiment", "`0`"),
}
ABANDONED_SECONDS = 5  # a file being written is younger than this before its owner has locked it


class ConfigError(ValueError):
    """A parameter that cannot be used; the message is one line that says which, why, and what would
    be legal.
    """


class Unfinished(RuntimeError):
    """Training that stopped because its budget was used up; its state is saved.

    `dataset` is what was recorded so far, as of a training of `done` steps.
    """

    def __init__(self, done: int, steps: int, dataset: object = None):
        super().__init__(
            f"stopped after {done:,} of {steps:,} steps, as the budget was used up; "
            "the state is saved"
        )
        self.done, self.steps, self.dataset = done, steps, dataset


def lazily(package: str, places: Mapping[str, str]) -> Callable[[str], object]:
    """Return the `__getattr__` of a package: its public names are imported at their first use.

    `places`: name -> module of the package that defines it.
    """

    def find(name: str) -> object:
        if name in places:
            return getattr(importlib.import_module(f"{package}.{places[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find


# ---------------------------------------------------------------- where the project is


def variable(name: str) -> str | None:
    """Return one of `VARIABLES` of the environment; None where it is not set, or empty."""
    if name not in VARIABLES:
        raise KeyError(name)
    return os.environ.get(name) or None


def folder(name: str, *default: str) -> Path:
    """Return the folder that an environment variable names, with ~ expanded; else `default` in the
    project.
    """
    chosen = variable(name)
    return Path(chosen).expanduser() if chosen else root().joinpath(*default)


def root() -> Path:
    """Return the project folder: $PERIODIC_ROOT, else the nearest folder upwards that has
    book/experiments.yml.

    The search starts in the working directory, then at the library itself.

    Raises
    ------
    ConfigError : if there is none.
    """
    if variable("PERIODIC_ROOT"):
        return Path(variable("PERIODIC_ROOT")).expanduser()
    here = Path.cwd()
    for place in (here, *here.parents, Path(__file__).resolve().parent.parent):
        if (place / "book" / "experiments.yml").is_file():
            return place
    raise ConfigError(
        f"no project folder: {here} and the folders above it have no book/experiments.yml. "
        "Change into the cloned project, or set PERIODIC_ROOT to it."
    )


def print_message(text: str) -> None:
    """Print a line to standard error."""
    print(f"periodic: {text}", file=sys.stderr, flush=True)


def print_progress(text: str) -> None:
    """Print a line about work that goes on: where progress goes, the file $PERIODIC_PROGRESS if it
    is set. What is printed in a chapter would become part of its page, in one build and not in
    the next.
    """
    target = variable("PERIODIC_PROGRESS")
    if target is None:
        print_message(text)
        return
    with open_progress("a") as stream:
        stream.write(f"{text}\n")


def open_progress(mode: str) -> TextIO:
    """Open the file that $PERIODIC_PROGRESS names.

    Raises
    ------
    ConfigError : if it cannot be written.
    """
    target = variable("PERIODIC_PROGRESS")
    try:
        return open(target, mode, encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"PERIODIC_PROGRESS names {target!r}, which cannot be written: {reason}."
        ) from None


# ---------------------------------------------------------------- interruptions


@contextmanager
def whole_interruptions() -> Iterator[None]:
    """Let an interruption that compiled code has turned into a `SystemError` be one again.

    >>> try:
    ...     with whole_interruptions():
    ...         raise SystemError("an exception was set") from KeyboardInterrupt()
    ... except KeyboardInterrupt:
    ...     print("interrupted")
    interrupted
    """
    try:
        yield
    except SystemError as error:
        if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


# ---------------------------------------------------------------- files, all or nothing


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file so that it is there whole or not at all; its folder is made where it is missing.

    The bytes go to a file of a unique name beside `path`, which then takes its place. What a killed
    process left behind under such a name is removed: its lock, held while writing, went with the
    process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
            os.fchmod(stream.fileno(), 0o666 & ~_umask())
            os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def discard(*paths: Path) -> None:
    """Remove files that are no longer needed; where that is not possible, say so."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            print_message(f"{path} is no longer needed and cannot be removed: {error.strerror}.")


def check_writable(path: Path, size: int) -> None:
    """Raise `ConfigError` unless `size` bytes can be written at `path`; tried, before computing.

    Raises
    ------
    ConfigError : saying why they cannot.
    """
    probe = path.with_name(f"{path.name}.probe")
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        write_whole(probe, bytes(size))
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"{max(1, size // 2**20)} MB cannot be written to {path}: {reason}. Free some space, "
            "or choose another place (of results: PERIODIC_CACHE)."
        ) from None


def _remove_abandoned(path: Path) -> None:
    """Remove half-written files whose process is gone: of `path`, and others in its folder that
    have the form of such names.
    """
    mine = path.parent.glob(f".{glob.escape(path.name)}.*.partial")
    for partial in {*mine, *path.parent.glob(".*.????????.partial")}:
        try:
            with partial.open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - partial.stat().st_mtime > ABANDONED_SECONDS:
                    partial.unlink(missing_ok=True)
        except OSError:  # its owner is alive, or it is gone already
            continue


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# ---------------------------------------------------------------- digests


def digest(content: object) -> str:
    """Return the SHA-256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def digest_of_arrays(content: object) -> str:
    """Return the SHA-256 of nested mappings and sequences of arrays: names, dtypes, shapes and
    values.

    >>> import numpy as np
    >>> one, other = {"a": np.zeros(2), "b": None}, {"b": None, "a": np.zeros(2)}
    >>> digest_of_arrays(one) == digest_of_arrays(other)
    True
    >>> digest_of_arrays(np.zeros(2)) == digest_of_arrays(np.zeros((2, 1)))
    False
    """
    state = hashlib.sha256()
    _add(state, content)
    return state.hexdigest()


def _add(state, value: object) -> None:
    if isinstance(value, Mapping):
        for name in sorted(value):
            state.update(f"{name}:".encode())
            _add(state, value[name])
    elif isinstance(value, tuple):
        for item in value:
            _add(state, item)
    elif value is None:
        state.update(b"none")
    else:
        import numpy as np

        array = np.ascontiguousarray(value.detach().cpu() if hasattr(value, "detach") else value)
        state.update(f"{array.dtype.str}{array.shape}".encode())
        state.update(array.tobytes())
