"""Where the arrays of a data set come from, as they are there: `Setup.dataset` names the source.

- "digits", "breast_cancer": embedded in scikit-learn.
- "moby_dick": the first chapters of the novel, in the project's data/text, as "pictures" of 4 x 4
  characters, each a 1 in its letter's channel; the class is the character that follows.
- "cifar10", "cifar100", "fashion_mnist": torchvision's, in $PERIODIC_DATA, else in the project's
  data/downloads. What is absent is downloaded, unless PERIODIC_OFFLINE=1; Fashion-MNIST is also
  taken from Debian's package dataset-fashion-mnist.
- The path of your own file `name.npz`, with exactly these arrays:
  `x_train`, `x_test`: pictures (n, height, width) or (n, height, width, channels) with 1 or 3
  channels, or features (n, d), which become pictures of 1 x d pixels. uint8 (0 to 255) is divided
  by 255 when standardized; floats are taken as they are.
  `y_train`, `y_test`: whole numbers (n,) from 0 to classes - 1, every class at least once in both.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import sys
import warnings
import zlib
from functools import cache
from http.client import HTTPException
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from periodic_lib import outside, project
from periodic_lib.checks import known_names
from periodic_lib.project import ConfigError

DIGITS_TEST_SIZE, BREAST_CANCER_TEST_SIZE = 360, 114
ALPHABET = "abcdefghijklmnopqrstuvwxyz "  # of text: everything else is a space
CONTEXT = 16  # characters by which the next one is told, 4 x 4
TEXT_SIZES = (4000, 1000)  # places in the first nine tenths of a text, and in the last
SPLIT_SEED = 0  # of the embedded data
MAX_BYTES = 8 * 10**9  # of your own file, and of its arrays when unpacked

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of dataset-fashion-mnist
TORCHVISION = {  # data set -> class in torchvision.datasets, what must be there, what it comes from
    "cifar10": ("CIFAR10", "cifar-10-batches-py", "cifar-10-python.tar.gz"),
    "cifar100": ("CIFAR100", "cifar-100-python", "cifar-100-python.tar.gz"),
    "fashion_mnist": (
        "FashionMNIST",
        "FashionMNIST/raw",
        ", ".join(f"{name}.gz" for name in IDX_FILES),
    ),
}
OPERATORS = {  # compiled ones that `import torchvision` registers something for, there or not
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


class Arrays(NamedTuple):
    """A data set as its source has it."""

    x_train: np.ndarray  # (n, channels, height, width), uint8 or float
    y_train: np.ndarray  # (n,), int64
    x_test: np.ndarray
    y_test: np.ndarray


def read(dataset: str) -> tuple[Arrays, str | None]:
    """Return the arrays of a data set, and the SHA-256 of the file they are from if it is your own.

    Both are of the same bytes, whatever becomes of the file meanwhile.

    Raises
    ------
    ConfigError : if files are absent, unreadable, or not as the head of this module says.

    >>> arrays, digest = read("breast_cancer")
    >>> arrays.x_train.shape, digest
    ((455, 1, 1, 30), None)
    """
    if dataset in EMBEDDED:
        return EMBEDDED[dataset](), None
    if dataset in TORCHVISION:
        folder = project.folder("PERIODIC_DATA", "data", "downloads").resolve()
        return _torchvision(dataset, folder), None
    return _own(dataset)


def own_data_digest(dataset: str) -> str | None:
    """Return the SHA-256 of your own file's content; None if `dataset` names no file to be read.

    >>> own_data_digest("digits") is None
    True
    """
    if dataset in EMBEDDED or dataset in TORCHVISION:
        return None
    try:
        return hashlib.sha256(_content(dataset)).hexdigest()
    except ConfigError:  # `read` tells why
        return None


# ---------------------------------------------------------------- embedded data


@cache
def _digits() -> Arrays:
    """scikit-learn's digits (its copy of the UCI test set), 1,437 + 360, stratified; 0 to 16."""
    from sklearn.datasets import load_digits

    return _split(*load_digits(return_X_y=True), DIGITS_TEST_SIZE, (1, 8, 8))


@cache
def _breast_cancer() -> Arrays:
    """scikit-learn's breast-cancer measurements, 455 + 114, each feature standardized by itself."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.preprocessing import StandardScaler

    arrays = _split(*load_breast_cancer(return_X_y=True), BREAST_CANCER_TEST_SIZE, (30,))
    scaler = StandardScaler().fit(arrays.x_train)  # areas are 10,000 times fractal dimensions
    train, test = (
        scaler.transform(x).reshape(-1, 1, 1, 30) for x in (arrays.x_train, arrays.x_test)
    )
    return arrays._replace(x_train=train, x_test=test)


def _split(x: np.ndarray, y: np.ndarray, test_size: int, shape: tuple[int, ...]) -> Arrays:
    """Return examples in a fixed split, stratified by class, each in `shape`."""
    from sklearn.model_selection import train_test_split

    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=test_size, random_state=SPLIT_SEED, stratify=y
    )
    return Arrays(x_train.reshape(-1, *shape), y_train, x_test.reshape(-1, *shape), y_test)


@cache
def _moby_dick() -> Arrays:
    """Places of Moby-Dick, 4,000 of the first nine tenths and 1,000 of the last tenth."""
    text = (project.root() / "data" / "text" / "moby_dick.txt").read_text(encoding="utf-8")
    letters = "".join(one if one in ALPHABET else " " for one in text.lower())
    codes = np.array([ALPHABET.index(one) for one in " ".join(letters.split())])
    generator, border = np.random.default_rng(SPLIT_SEED), 9 * len(codes) // 10
    halves = []
    for part, size in zip((codes[:border], codes[border:]), TEXT_SIZES, strict=True):
        places = generator.choice(len(part) - CONTEXT, size, replace=False)
        context = part[places[:, None] + np.arange(CONTEXT)]  # (n, 16)
        pictures = np.eye(len(ALPHABET), dtype=np.float32)[context]  # (n, 16, letters)
        shape = (size, len(ALPHABET), 4, 4)
        halves += [pictures.transpose(0, 2, 1).reshape(shape), part[places + CONTEXT]]
    return Arrays(*halves)


EMBEDDED = {"digits": _digits, "breast_cancer": _breast_cancer, "moby_dick": _moby_dick}


# ---------------------------------------------------------------- your own file

_kept: dict[str, Arrays] = {}  # SHA-256 of the file that was read last -> its arrays


def _own(dataset: str) -> tuple[Arrays, str]:
    """Return the arrays and the SHA-256 of your own file, unpacked only if its content is new."""
    content = _content(dataset)
    digest = hashlib.sha256(content).hexdigest()
    arrays = _kept.get(digest)
    if arrays is None:
        name = " ".join(dataset.split())  # of one line
        arrays = _checked(name, _unpacked(name, content))
        _kept.clear()
        _kept[digest] = arrays
    return arrays, digest


def _content(dataset: str) -> bytes:
    """Return the bytes of your own file, ~ expanded; raise `ConfigError` if it cannot be read."""
    try:
        path = Path(dataset).expanduser().resolve()
        found = path.is_file()  # a pipe or a device could go on for ever
        size = path.stat().st_size if found else 0
        outside.require_memory(
            min(size, MAX_BYTES), f"`dataset` {dataset!r}", "Take fewer examples."
        )
        content = path.read_bytes() if found and size <= MAX_BYTES else b""
    except ConfigError:
        raise
    except (
        OSError,
        RuntimeError,
        ValueError,
        MemoryError,
    ) as error:  # ~nobody, a loop of links, NUL
        raise ConfigError(f"`dataset` {dataset!r} cannot be read: {_one_line(error)}") from None
    if not found:
        raise ConfigError(
            f"`dataset`: there is no file {str(path)!r}; write it with numpy.savez_compressed."
        )
    _check_size(dataset, size)
    return content


def _check_size(name: str, size: int) -> None:
    """Raise `ConfigError` if so many bytes are too many for your own file, packed or unpacked."""
    if size > MAX_BYTES:
        raise ConfigError(
            f"`dataset` {name!r} must be at most {MAX_BYTES / 1e9:g} GB, also when unpacked; got "
            f"{size / 1e9:,.1f} GB. Take fewer examples, or uint8 or float32 pictures."
        )


def _unpacked(name: str, content: bytes) -> Arrays:
    """Return the arrays of an .npz file; raise `ConfigError` unless they are the four plain."""
    try:
        limit = min(MAX_BYTES, outside.SPARE * outside.available_memory())
        found = outside.read_npz(io.BytesIO(content), limit)
    except outside.TooLarge as error:
        _check_size(name, error.size)
        outside.require_memory(error.size, f"`dataset` {name!r}", "Take fewer examples.")
        raise ConfigError(f"`dataset` {name!r}: {_one_line(error)}.") from None
    except (outside.Refused, OSError) as error:
        raise ConfigError(
            f"{name} is not a readable .npz file of plain arrays: {_one_line(error)}"
        ) from None
    known_names(f"array in {name}:", found, Arrays._fields)
    for field in Arrays._fields:
        if field not in found:
            raise ConfigError(
                f"{name} must have the arrays {', '.join(Arrays._fields)}; `{field}` is missing."
            )
    return Arrays(**found)


def _checked(name: str, found: Arrays) -> Arrays:
    """Return the arrays of the file `name` as a source has them; raise `ConfigError` if wrong."""
    x_train, x_test = (
        _pictures(name, field, getattr(found, field)) for field in ("x_train", "x_test")
    )
    if x_train.shape[1:] != x_test.shape[1:] or x_train.dtype != x_test.dtype:
        raise ConfigError(
            f"{name}: `x_train` and `x_test` must have pictures of one shape and dtype; got "
            f"{found.x_train.shape} {x_train.dtype} and {found.x_test.shape} {x_test.dtype}."
        )
    _check_whole_numbers(name, "y_train", found.y_train, len(x_train))
    _check_whole_numbers(name, "y_test", found.y_test, len(x_test))
    highest = max(1, int(found.y_train.max()))
    for field in ("y_train", "y_test"):
        _check_classes(name, field, getattr(found, field), highest)
    return Arrays(x_train, found.y_train.astype(np.int64), x_test, found.y_test.astype(np.int64))


def _pictures(name: str, field: str, values: np.ndarray) -> np.ndarray:
    """Return the pictures as (n, channels, height, width); raise `ConfigError` if they are none."""
    if values.dtype != np.uint8 and values.dtype.kind != "f":
        raise ConfigError(
            f"{name}: `{field}` must be uint8 (0 to 255) or floating point; got {values.dtype}."
        )
    wrong_channels = values.ndim == 4 and values.shape[3] not in (1, 3)
    if values.ndim not in (2, 3, 4) or not values.size or wrong_channels:
        raise ConfigError(
            f"{name}: `{field}` must have the shape (n, height, width), (n, height, width, 1 or 3) "
            f"or (n, features), none of them 0; got {values.shape}."
        )
    if not np.isfinite(values).all():
        raise ConfigError(f"{name}: `{field}` must be finite; got nan or infinity.")
    if values.ndim == 4:
        return values.transpose(0, 3, 1, 2)
    return values[:, None] if values.ndim == 3 else values[:, None, None]


def _check_whole_numbers(name: str, field: str, labels: np.ndarray, examples: int) -> None:
    """Raise `ConfigError` unless there is one whole number for each example."""
    if labels.dtype.kind not in "iu" or labels.shape != (examples,):
        raise ConfigError(
            f"{name}: `{field}` must be {examples} whole numbers, one for each of `x{field[1:]}`; "
            f"got shape {labels.shape}, {labels.dtype}."
        )


def _check_classes(name: str, field: str, labels: np.ndarray, highest: int) -> None:
    """Raise `ConfigError` unless the labels are the classes 0 to `highest`, each at least once."""
    present = np.unique(labels)
    lowest, largest = int(present[0]), int(present[-1])
    if (lowest, largest, len(present)) != (0, highest, highest + 1):
        raise ConfigError(
            f"{name}: `{field}` must have every class from 0 to {highest} (the highest of "
            f"`y_train`, at least 1) and no other; got {len(present)} different labels from "
            f"{lowest} to {largest}."
        )


# ---------------------------------------------------------------- torchvision's data sets


@cache
def _torchvision(name: str, folder: Path) -> Arrays:
    """Read one of torchvision's data sets in `folder`; unpack or download it first if absent."""
    kind, expected, archive = TORCHVISION[name]
    make = getattr(import_torchvision().datasets, kind)
    try:
        if name == "fashion_mnist":
            _unpack_fashion_mnist(folder / expected)
        parts = _torchvision_parts(make, folder)
    except (
        *(RuntimeError, OSError, HTTPException, EOFError, zlib.error),
        *(ValueError, TypeError, KeyError, AssertionError),  # what a damaged idx file leads to
    ) as error:
        reason = _one_line(error).removesuffix(" You can use download=True to download it")
        raise ConfigError(
            f"`dataset` {name!r} cannot be read from {folder}: put there the folder {expected} "
            f"(from {archive}), set PERIODIC_DATA to the folder that has it, or download it: go "
            f"online without PERIODIC_OFFLINE=1. Reason: {reason}"
        ) from None
    (x_train, y_train), (x_test, y_test) = parts
    return Arrays(x_train, y_train, x_test, y_test)


def _torchvision_parts(make: type, folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return pictures (n, channels, height, width) and labels (n,), of training and of testing."""
    with warnings.catch_warnings():  # of old pickles, and of tar files
        visible = np.exceptions.VisibleDeprecationWarning
        warnings.filterwarnings("ignore", r"dtype\(\): align", visible)
        warnings.filterwarnings("ignore", "Python 3.14 will", DeprecationWarning)
        fetch = project.variable("PERIODIC_OFFLINE") != "1" or _is_packed(folder, make)
        parts = [make(folder, train=train, download=fetch) for train in (True, False)]
    pictures = [np.asarray(part.data) for part in parts]
    pictures = [x.transpose(0, 3, 1, 2) if x.ndim == 4 else x[:, None] for x in pictures]
    labels = [np.asarray(part.targets).astype(np.int64) for part in parts]
    return list(zip(pictures, labels, strict=True))


def _is_packed(folder: Path, make: type) -> bool:
    """Whether CIFAR's archive is in `folder`, undamaged: torchvision unpacks, not downloads it."""
    from torchvision.datasets.utils import check_integrity

    return hasattr(make, "tgz_md5") and check_integrity(folder / make.filename, make.tgz_md5)


def _unpack_fashion_mnist(folder: Path) -> None:
    """Unpack the four files where they are packed: in `folder`, or where Debian puts them."""
    from torchvision.datasets.utils import extract_archive

    for packed in (folder, DEBIAN_FASHION_MNIST):
        have = all((packed / f"{name}.gz").is_file() for name in IDX_FILES)
        if have and not all((folder / name).is_file() for name in IDX_FILES):
            folder.mkdir(parents=True, exist_ok=True)
            for name in IDX_FILES:
                extract_archive(packed / f"{name}.gz", folder)


def import_torchvision() -> ModuleType:
    """Import torchvision, also beside a torch that its compiled operators were not built for.

    torchvision's usual wheel for Linux is built against CUDA; beside a CPU-only torch its operators
    cannot load, and `import torchvision` fails with "operator torchvision::nms does not exist". Its
    data sets use no operator, so only then the names (not the work) of the missing ones are
    declared, and the import is tried again.

    Raises
    ------
    ConfigError : if torchvision is not installed or does not fit this torch in another way.
    """
    try:
        return _import_with_datasets()
    except ImportError as error:
        raise ConfigError(
            f"this `dataset` needs torchvision: install it. Reason: {_one_line(error)}"
        ) from None
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    import torch

    for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[module]  # half loaded
    for operator, schema in OPERATORS.items():
        torch.library.define(f"torchvision::{operator}", schema)
    try:
        return _import_with_datasets()
    except RuntimeError as error:
        raise ConfigError(
            f"torchvision does not fit torch {torch.__version__}: {_one_line(error)}"
        ) from None


def _import_with_datasets() -> ModuleType:
    """Return torchvision with its data sets loaded."""
    importlib.import_module("torchvision.datasets")
    return sys.modules["torchvision"]


def _one_line(error: Exception) -> str:
    """Return an error's message, or its kind if it has none, in one line of 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
