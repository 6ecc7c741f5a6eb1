"""The boundary where what comes from outside becomes values: YAML, .npz, HDF5, JSON.

Whoever wrote a file, reading it runs no code of its own and takes no more memory than its limits
say: sizes are looked at before anything is unpacked. What is not as it must be is a `ConfigError`
or `Refused`, in one line. Imports nothing of the library but the ground floor.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from periodic_lib.project import ConfigError

if TYPE_CHECKING:
    import h5py
    import numpy as np
    import pandas as pd

TEXT_BYTES = 4 * 2**20  # of a YAML or JSON file
YAML_DEPTH = 40  # brackets inside each other
YAML_NODES = 100_000  # values, with aliases written out
MEMBERS = 1000  # arrays of an .npz file, variables of a result file
STRINGS_BYTES = 16 * 2**20  # of the texts of a variable
ATTRIBUTE_VALUES = 10_000  # of one attribute
ATTRIBUTE_POINTERS = 32  # of one attribute whose values may all point to one long one
UNPACKED_BYTES, UNPACKED_RATIO = 2**26, 2000  # of an HDF5 file: deflate makes at most 1032 of one
HEADER_BYTES = 10_000  # of an array in an .npz file
FILTERS = {"gzip", "shuffle", "fletcher32"}  # of HDF5; others are plug-ins
SPARE = 0.9  # of the memory there is


class Refused(ValueError):
    """A file whose content may not be read: damaged, hostile, or too large."""


# ---------------------------------------------------------------- memory


def available_memory() -> int:
    """Return the bytes of memory that this process may still take: of the machine, of its control
    group (as in containers), of its own limit.
    """
    import resource

    import psutil

    found = [psutil.virtual_memory().available]
    with suppress(OSError, ValueError):  # no control group, or "max"
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        found.append(limit - int((group / "memory.current").read_text()))
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        found.append(limit - psutil.Process().memory_info().vms)
    return max(0, min(found))


def require_memory(size: float, what: str, instead: str) -> None:
    """Raise `ConfigError` unless `size` bytes are there; `instead`: the cheapest way out.

    >>> require_memory(1e18, "the record", "Set neurons: false.")
    Traceback (most recent call last):
    periodic_lib.project.ConfigError: the record would take 1,000,000,000.0 GB of memory; ...
    """
    there = SPARE * available_memory()
    if size > there:
        raise ConfigError(
            f"{what} would take {size / 1e9:,.1f} GB of memory; {there / 1e9:,.1f} GB are there. "
            f"{instead}"
        )


# ---------------------------------------------------------------- YAML and JSON


def read_yaml(path: Path) -> dict:
    """Return the mapping in a YAML file.

    Raises
    ------
    ConfigError : naming the file and the line, if it cannot be read or is no mapping.
    """
    content = parse_yaml(_text(path), str(path))
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ConfigError(f"{path}, line 1: must be a mapping of names to entries; got {kind}.")
    return content


def _text(path: Path) -> str:
    """Return the text of a file of at most `TEXT_BYTES`."""
    try:
        with path.open("rb") as stream:
            content = stream.read(TEXT_BYTES + 1)
        if len(content) > TEXT_BYTES:
            raise ConfigError(f"{path} must be at most {TEXT_BYTES // 2**20} MB of text.")
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {' '.join(str(error).split())}.") from error


@lru_cache(maxsize=8)
def parse_yaml(text: str, where: str) -> object:
    """Return what a YAML text says: numbers, texts, lists and mappings, nothing else.

    Not to be changed: whoever reads the same text gets the same object. Whole numbers are decimal
    (010 is ten), and 1:30 and dates are texts.

    Raises
    ------
    ConfigError : naming `where` and the line: for what is no YAML, a name given twice, or more than
        `YAML_NODES` values (aliases written out) or `YAML_DEPTH` brackets inside each other.

    >>> parse_yaml("{lr: [0.03, 010], when: 1:30}", "a text")
    {'lr': [0.03, '010'], 'when': '1:30'}
    """
    import yaml

    try:
        _check_size(text)
        return yaml.load(text, _loader())  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}" if mark else "unknown line"
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"{where}, {line}: {problem[:300]}.") from error
    except (ValueError, OverflowError, AttributeError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ConfigError(f"{where}: a value cannot be read ({reason}).") from error


def _check_size(text: str) -> None:
    """Raise a YAML error for too many values, or too many inside each other: before any is made."""
    import yaml

    sizes: dict[str, int] = {}  # of anchors
    open_: list[tuple[str | None, int]] = []
    nodes, loader = 0, getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for event in yaml.parse(text, loader):
        if isinstance(event, yaml.AliasEvent):
            nodes += sizes.get(event.anchor, YAML_NODES)  # of itself: without end
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            sizes |= {anchor: nodes - before} if anchor else {}
        elif isinstance(event, yaml.NodeEvent):
            nodes += 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_.append((event.anchor, nodes - 1))
            elif event.anchor:
                sizes[event.anchor] = 1
        if nodes > YAML_NODES or len(open_) > YAML_DEPTH:
            problem = (
                f"more than {YAML_NODES:,} values"
                if nodes > YAML_NODES
                else f"more than {YAML_DEPTH} brackets inside each other"
            )
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


@lru_cache(maxsize=1)
def _loader() -> type:
    """Return a loader of YAML in which a name is a text and given once, and 1:30 is no number."""
    import yaml

    base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # compiled: ten times faster
    ours = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp")}

    class Loader(base):
        def construct_mapping(self, node, deep=False):
            seen = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    problem = "a name must be a text, not a list or a mapping"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                if key.value in seen:
                    problem = f"{key.value!r} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if tag not in ours]
        for first, pairs in base.yaml_implicit_resolvers.items()
    }
    _add_numbers(Loader)
    return Loader


def _add_numbers(loader: type) -> None:
    """Let a loader know decimal numbers, as YAML 1.1 writes them but for base 60 and base 8."""
    import re

    signs, digits = list("-+"), list("0123456789")
    whole = re.compile(r"[-+]?(0|[1-9][0-9_]*)$")
    point = r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?"
    special = r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    broken = re.compile(rf"({point}|{special})$")
    loader.add_implicit_resolver("tag:yaml.org,2002:float", broken, [*signs, *digits, "."])
    loader.add_implicit_resolver("tag:yaml.org,2002:int", whole, [*signs, *digits])


def read_json(path: Path) -> object:
    """Return what a JSON file says.

    Raises
    ------
    ConfigError : in one line, if it cannot be read, or is too large or too deep.
    """
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())[:100]
        raise ConfigError(f"{path} is no JSON: {reason}.") from error


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Return a CSV file that has exactly these columns.

    Raises
    ------
    ConfigError : if it cannot be read, or has others.
    """
    import pandas as pd

    try:
        found = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}.") from error
    if tuple(found.columns) != tuple(columns):
        legal, given = ", ".join(columns), ", ".join(found.columns)
        raise ConfigError(f"{path} must have the columns {legal}; got {given}.")
    return found


# ---------------------------------------------------------------- .npz


def read_npz(
    source: Path | io.BytesIO, limit: float, names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file, or those of `names` that it has.

    Parameters
    ----------
    limit : bytes of all arrays together, as the zip directory and each array's header say; both are
        looked at before anything is unpacked.

    Raises
    ------
    Refused : if it is no .npz file of plain arrays, or larger than `limit`.
    OSError : if it cannot be read.
    """
    if isinstance(source, Path) and source.exists() and not (source.is_file() or source.is_dir()):
        raise Refused("it is no file but a pipe or a device")
    try:
        with zipfile.ZipFile(source) as archive:
            members = _checked_members(archive, limit)
            wanted = [one for one in members if names is None or one in names]
            return {one: _array(archive, members[one]) for one in wanted}
    except (Refused, OSError):
        raise
    except Exception as error:  # zipfile and NumPy raise many kinds for a damaged file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Refused(reason) from None


def _checked_members(archive: zipfile.ZipFile, limit: float) -> dict[str, zipfile.ZipInfo]:
    """Return array name -> member; raise `Refused` for too many, too large, or other ones."""
    members = archive.infolist()
    if len(members) > MEMBERS:
        raise Refused(f"{len(members):,} arrays; at most {MEMBERS:,} are read")
    size = sum(one.file_size for one in members)
    if size > limit:
        raise TooLarge(size, limit)
    for one in members:
        if one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refused(f"{one.filename!r} is compressed in another way than deflate")
        if one.flag_bits & 1:
            raise Refused(f"{one.filename!r} is encrypted")
    return {one.filename.removesuffix(".npy"): one for one in members}


class TooLarge(Refused):
    """A file that would take more memory than it may; `size` and `limit` in bytes."""

    def __init__(self, size: float, limit: float):
        super().__init__(f"{size / 1e9:,.2f} GB unpacked; at most {limit / 1e9:,.2f} GB are read")
        self.size, self.limit = size, limit


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Return one array, if its header says as many bytes as the member has."""
    import numpy as np

    with archive.open(member) as stream:
        try:
            version = np.lib.format.read_magic(stream)
        except ValueError:
            raise Refused(f"{member.filename!r} is no array") from None
        if version not in ((1, 0), (2, 0)):
            raise Refused(f"{member.filename!r} is an array of version {version}")
        one = np.lib.format.read_array_header_1_0
        read = one if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream, max_header_size=HEADER_BYTES)
        if dtype.hasobject:
            raise Refused(f"{member.filename!r} holds Python objects, which could run code")
        said = math.prod(shape) * dtype.itemsize + stream.tell()
        if min(shape, default=0) < 0 or said != member.file_size:
            raise Refused(f"{member.filename!r} says it has {said:,} bytes, not its size")
    with archive.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False, max_header_size=HEADER_BYTES)


# ---------------------------------------------------------------- HDF5


def check_hdf5(file: h5py.File, size: int) -> None:
    """Raise `Refused` unless an open HDF5 file of `size` bytes is a flat list of plain variables
    that fit into memory, and are not more than deflate can make of so many bytes.

    Looked at are names, types, shapes and chunks, not values, but for texts, which are counted one
    by one: a file can say one long text a million times. Links to other files, virtual and external
    data, and filters that are plug-ins are refused: they would read or run what is not in the file.
    """
    limit = min(SPARE * available_memory(), UNPACKED_BYTES + UNPACKED_RATIO * size)
    if len(file) > MEMBERS:
        raise Refused(f"{len(file):,} variables; at most {MEMBERS:,} are read")
    _check_attributes("the file", file)
    total = 0
    for name in file:
        total += _checked_variable(file, name)
        if total > limit:
            raise TooLarge(total, limit)
    for name in file:
        if file[name].dtype.kind == "O":
            _check_texts(name, file[name])


def _checked_variable(file: h5py.File, name: str) -> int:
    """Return the bytes of a variable, or of its chunks if those are larger."""
    import h5py

    link = file.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise Refused(f"{name!r} is a link to elsewhere")
    variable = file[name]
    if not isinstance(variable, h5py.Dataset):
        raise Refused(f"{name!r} is no variable")
    if variable.is_virtual or variable.external:
        raise Refused(f"the values of {name!r} are in other files")
    text = h5py.check_string_dtype(variable.dtype) is not None
    if variable.shape is None or not (text or variable.dtype.kind in "fiub"):
        raise Refused(f"{name!r} is of type {variable.dtype}, neither numbers nor texts")
    if set(_filters(variable)) - FILTERS:
        raise Refused(f"{name!r} is packed by {', '.join(_filters(variable))}")
    _check_attributes(name, variable)
    shapes = (variable.shape, variable.chunks or ())
    return max(math.prod(map(int, shape)) for shape in shapes) * variable.dtype.itemsize


def _filters(variable: h5py.Dataset) -> list[str]:
    """Return the names of the filters that a variable went through; numbers if not known."""
    plan = variable.id.get_create_plist()
    known = {1: "gzip", 2: "shuffle", 3: "fletcher32"}
    codes = [plan.get_filter(number)[0] for number in range(plan.get_nfilters())]
    return [known.get(code, f"filter {code}") for code in codes]


def _check_attributes(name: str, owner: h5py.File | h5py.Dataset) -> None:
    """Raise `Refused` for attributes of many values, or of many texts."""
    if len(owner.attrs) > MEMBERS:
        raise Refused(f"{name!r} has {len(owner.attrs):,} attributes")
    for key in owner.attrs:
        one = owner.attrs.get_id(key)
        values = math.prod(map(int, one.shape or ()))
        most = ATTRIBUTE_POINTERS if one.dtype.kind == "O" else ATTRIBUTE_VALUES
        if values > most:
            raise Refused(f"attribute {key!r} of {name!r} has {values:,} values")


def _check_texts(name: str, variable: h5py.Dataset) -> None:
    """Raise `Refused` if the texts of a variable are long together."""
    import numpy as np

    size = 0
    for place in np.ndindex(variable.shape):
        size += len(variable[place])
        if size > STRINGS_BYTES:
            raise Refused(f"the texts of {name!r} are longer than {STRINGS_BYTES // 2**20} MB")
