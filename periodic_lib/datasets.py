"""Data sets as tensors on the device, the order in which each run sees its examples, and their augmentation.

Sources (`Setup.dataset`): the embedded digits and breast-cancer measurements; torchvision's CIFAR-10, CIFAR-100 and
Fashion-MNIST; your own file `name.npz` with exactly these arrays:

- `x_train`, `x_test`: pictures (n, height, width) or (n, height, width, channels) with 1 or 3 channels, or features
  (n, d), which become pictures of 1 x d pixels. uint8 (0 to 255) is divided by 255; floats are taken as they are.
- `y_train`, `y_test`: whole numbers (n,) from 0 to classes - 1, every class at least once in both.

torchvision's files live in $PERIODIC_DATA, else in the project's data/downloads. What is absent is downloaded, unless
PERIODIC_OFFLINE=1; Fashion-MNIST is also taken from Debian's package dataset-fashion-mnist.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
import zipfile
import zlib
from dataclasses import dataclass, fields, replace
from functools import cache
from http.client import HTTPException
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch

from periodic_lib.config import ConfigError, Setup, known_names, root

DIGITS_TEST_SIZE, BREAST_CANCER_TEST_SIZE = 360, 114
SPLIT_SEED = 0  # of the embedded data
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # of pixels from 0 to 1
MAX_SHIFT = 4  # pixels, up, down, left or right
SUBSET, NOISE, AUGMENT = 1, 2, 7  # so that draws for different purposes with one seed are independent

IDX_FILES = tuple(
    f"{part}-ubyte" for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
)
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
TORCHVISION = {  # data set -> its class in torchvision.datasets, what must be in the folder, what that comes from
    "cifar10": ("CIFAR10", "cifar-10-batches-py", "cifar-10-python.tar.gz"),
    "cifar100": ("CIFAR100", "cifar-100-python", "cifar-100-python.tar.gz"),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw", ", ".join(f"{name}.gz" for name in IDX_FILES)),
}
OPERATORS = {  # compiled operators that `import torchvision` registers something for, whether or not they are there
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@dataclass(frozen=True)
class Data:
    """One data set on one device: standardized pictures and integer labels, shared by all runs."""

    x_train: torch.Tensor  # (examples, channels, height, width)
    y_train: torch.Tensor  # (examples,)
    x_test: torch.Tensor
    y_test: torch.Tensor
    classes: int
    black: torch.Tensor  # (channels,), the standardized value of a pixel that is 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a picture."""
        return tuple(self.x_train.shape[1:])

    def to(self, device: str | torch.device) -> Data:
        """Return the same data on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "classes"}
        return replace(self, **{name: tensor.to(device) for name, tensor in moved.items()})


class _Arrays(NamedTuple):
    """A data set as its source has it: pictures (n, channels, height, width), uint8 or float; int64 labels (n,)."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load(setup: Setup, device: str | torch.device = "cpu") -> Data:
    """Return the data set that `setup` names, standardized, in its dtype, on `device`.

    x <- (x - mean) / std for each channel: the published mean and std for CIFAR, else those of the full training set,
    also when `train_size` takes a part of it. `train_size` and `label_noise` are drawn by `sample_seed` (a smaller
    subset is part of a larger one). The test set is as it is, followed, with `test_on_rest`, by the training examples
    that the subset leaves out, in order, with their true labels.

    Raises
    ------
    ConfigError : if files are absent, unreadable or not as the head of this module says, if `train_size` exceeds the
        training set or `batch_size` what is trained on, or if `augment` is asked for data that are not pictures.

    >>> load(Setup(train_size=200)).x_train.shape
    torch.Size([200, 1, 8, 8])
    """
    arrays = _arrays(setup.dataset)
    classes = int(arrays.y_train.max()) + 1
    chosen = _subset(setup, arrays.y_train)
    check_batch_size(setup, len(chosen))
    if setup.augment and 1 in arrays.x_train.shape[2:]:
        raise ConfigError(f"`augment` needs pictures; {setup.dataset!r} holds features. Set it to false.")
    mean, std = _mean_and_std(setup.dataset, arrays.x_train)
    dtype = getattr(torch, setup.dtype)
    rest = np.setdiff1d(np.arange(len(arrays.y_train)), chosen) if setup.test_on_rest else []
    x_test = np.concatenate([arrays.x_test, arrays.x_train[rest]]) if len(rest) else arrays.x_test
    y_test = np.concatenate([arrays.y_test, arrays.y_train[rest]]) if len(rest) else arrays.y_test

    def tensor(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        return torch.as_tensor(values, dtype=dtype, device=device)

    return Data(
        x_train=tensor(_standardized(arrays.x_train[chosen], mean, std, setup.dtype), dtype),
        y_train=tensor(_with_noise(setup, arrays.y_train[chosen], classes), torch.int64),
        x_test=tensor(_standardized(x_test, mean, std, setup.dtype), dtype),
        y_test=tensor(y_test, torch.int64),
        classes=classes,
        black=tensor(-mean / std, dtype),
    )


def check_batch_size(setup: Setup, examples: int) -> None:
    """Raise `ConfigError` if a batch of `setup` cannot be drawn from `examples` training examples."""
    if setup.batch_size is not None and setup.batch_size > examples:
        raise ConfigError(
            f"`batch_size` must be at most {examples}, the training examples of {setup.dataset!r}, or None (full "
            f"batch); got {setup.batch_size}."
        )


def _subset(setup: Setup, labels: np.ndarray) -> np.ndarray:
    """Return the indices, in order, of `train_size` examples, the classes as equally often as they allow."""
    size = len(labels) if setup.train_size is None else setup.train_size
    if size > len(labels):
        raise ConfigError(
            f"`train_size` must be at most {len(labels)}, the training examples of {setup.dataset!r}, or None (all); "
            f"got {size}."
        )
    shuffled = np.random.default_rng([setup.sample_seed, SUBSET]).permutation(len(labels))
    rank = np.empty_like(shuffled)  # the how-manieth of its class, in the shuffled order
    for label in np.unique(labels):
        of_class = labels[shuffled] == label
        rank[of_class] = np.arange(of_class.sum())
    return np.sort(shuffled[np.argsort(rank, kind="stable")[:size]])


def _with_noise(setup: Setup, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the labels, round(label_noise * examples) of them replaced by a different class, uniformly drawn."""
    draw = np.random.default_rng([setup.sample_seed, NOISE])
    wrong = draw.choice(len(labels), round(setup.label_noise * len(labels)), replace=False)
    noisy = labels.copy()
    noisy[wrong] = (labels[wrong] + draw.integers(1, classes, len(wrong))) % classes
    return noisy


def _mean_and_std(dataset: str, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and std (channels,) of the pixels, those of uint8 pictures on the scale from 0 to 1."""
    if dataset in ("cifar10", "cifar100"):
        return np.array(CIFAR_MEAN), np.array(CIFAR_STD)
    channels = [pictures[:, channel] for channel in range(pictures.shape[1])]
    if any(channel.min() == channel.max() for channel in channels):
        raise ConfigError(f"`x_train` of {dataset!r} cannot be standardized: all pixels of a channel are equal.")
    mean, std = np.array([[pixels.mean(), pixels.std()] for pixels in map(_pixels, channels)]).T
    return mean, std


def _pixels(channel: np.ndarray) -> np.ndarray:
    return channel / 255.0 if channel.dtype == np.uint8 else channel.astype(np.float64)


def _standardized(pictures: np.ndarray, mean: np.ndarray, std: np.ndarray, dtype: str) -> np.ndarray:
    """Return (pictures - mean) / std, computed in float64 on the CPU, so that every device gets the same numbers."""
    result = np.empty(pictures.shape, dtype)
    for channel in range(pictures.shape[1]):  # one at a time to save memory
        result[:, channel] = (_pixels(pictures[:, channel]) - mean[channel]) / std[channel]
    return result


# ---------------------------------------------------------------- sources


def _arrays(dataset: str) -> _Arrays:
    if dataset in EMBEDDED:
        return EMBEDDED[dataset]()
    if dataset in TORCHVISION:
        folder = os.environ.get("PERIODIC_DATA") or root() / "data" / "downloads"
        return _torchvision(dataset, Path(folder).expanduser().resolve())
    path = Path(dataset).expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"`dataset`: there is no file {path}; write it with numpy.savez_compressed.")
    return _npz(path, path.stat().st_mtime_ns)


@cache
def _digits() -> _Arrays:
    """scikit-learn's digits (its copy of the UCI test set), 1,437 + 360, stratified; float64 from 0 to 16."""
    from sklearn.datasets import load_digits

    return _split(*load_digits(return_X_y=True), DIGITS_TEST_SIZE, (1, 8, 8))


@cache
def _breast_cancer() -> _Arrays:
    """scikit-learn's breast-cancer measurements, 455 + 114, stratified; features standardized one by one."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.preprocessing import StandardScaler

    arrays = _split(*load_breast_cancer(return_X_y=True), BREAST_CANCER_TEST_SIZE, (30,))
    scaler = StandardScaler().fit(arrays.x_train)  # areas are 10,000 times as large as fractal dimensions
    train, test = (scaler.transform(x).reshape(-1, 1, 1, 30) for x in (arrays.x_train, arrays.x_test))
    return arrays._replace(x_train=train, x_test=test)


def _split(x: np.ndarray, y: np.ndarray, test_size: int, shape: tuple[int, ...]) -> _Arrays:
    """Return examples in a fixed split, stratified by class, each in `shape`."""
    from sklearn.model_selection import train_test_split

    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=test_size, random_state=SPLIT_SEED, stratify=y)
    return _Arrays(x_train.reshape(-1, *shape), y_train, x_test.reshape(-1, *shape), y_test)


EMBEDDED = {"digits": _digits, "breast_cancer": _breast_cancer}


@cache
def _npz(path: Path, _changed: int) -> _Arrays:
    """Read and check your own file; `_changed` is its time of change, so that a new version is read again."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:  # a pickle could run any code
            found = dict(file)
    except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path} is not a readable .npz file of plain arrays: {_one_line(error)}") from None
    known_names(f"array in {path}:", found, _Arrays._fields)
    for name in _Arrays._fields:
        if name not in found:
            raise ConfigError(f"{path} must have the arrays {', '.join(_Arrays._fields)}; `{name}` is missing.")
    return _checked(path, _Arrays(**found))


def _checked(path: Path, found: _Arrays) -> _Arrays:
    x_train, x_test = (_pictures(path, name, getattr(found, name)) for name in ("x_train", "x_test"))
    if x_train.shape[1:] != x_test.shape[1:] or x_train.dtype != x_test.dtype:
        raise ConfigError(
            f"{path}: `x_train` and `x_test` must have pictures of one shape and dtype; got "
            f"{found.x_train.shape} {x_train.dtype} and {found.x_test.shape} {x_test.dtype}."
        )
    for name, labels, examples in (("y_train", found.y_train, x_train), ("y_test", found.y_test, x_test)):
        if labels.dtype.kind not in "iu" or labels.shape != (len(examples),):
            raise ConfigError(
                f"{path}: `{name}` must be {len(examples)} whole numbers, one for each of `x{name[1:]}`; got shape "
                f"{labels.shape}, {labels.dtype}."
            )
        present, highest = np.unique(labels), max(1, found.y_train.max())
        if present.tolist() != list(range(int(highest) + 1)):
            raise ConfigError(
                f"{path}: `{name}` must have every class from 0 to {highest} (the highest of `y_train`, at least 1) "
                f"and no other; got {len(present)} different labels from {present[0]} to {present[-1]}."
            )
    return _Arrays(x_train, found.y_train.astype(np.int64), x_test, found.y_test.astype(np.int64))


def _pictures(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    """Return the pictures as (n, channels, height, width)."""
    if values.dtype != np.uint8 and values.dtype.kind != "f":
        raise ConfigError(f"{path}: `{name}` must be uint8 (0 to 255) or floating point; got {values.dtype}.")
    if values.ndim not in (2, 3, 4) or not values.size or (values.ndim == 4 and values.shape[3] not in (1, 3)):
        raise ConfigError(
            f"{path}: `{name}` must have the shape (n, height, width), (n, height, width, 1 or 3) or (n, features), "
            f"none of them 0; got {values.shape}."
        )
    if not np.isfinite(values).all():
        raise ConfigError(f"{path}: `{name}` must be finite; got nan or infinity.")
    if values.ndim == 4:
        return values.transpose(0, 3, 1, 2)
    return values[:, None] if values.ndim == 3 else values[:, None, None]


@cache
def _torchvision(name: str, folder: Path) -> _Arrays:
    """Read one of torchvision's data sets in `folder`; unpack or download it first where it is absent."""
    kind, expected, archive = TORCHVISION[name]
    make = getattr(_import_torchvision().datasets, kind)
    try:
        if name == "fashion_mnist":
            _unpack_fashion_mnist(folder / expected)
        with warnings.catch_warnings():  # of old pickles, and of tar files
            warnings.filterwarnings("ignore", r"dtype\(\): align", np.exceptions.VisibleDeprecationWarning)
            warnings.filterwarnings("ignore", "Python 3.14 will", DeprecationWarning)
            fetch = os.environ.get("PERIODIC_OFFLINE") != "1" or _is_packed(folder, make)
            parts = [make(folder, train=train, download=fetch) for train in (True, False)]
    except (
        *(RuntimeError, OSError, HTTPException, EOFError, zlib.error),
        *(ValueError, TypeError, KeyError, AssertionError),  # what a damaged idx file leads to
    ) as error:
        raise ConfigError(
            f"`dataset` {name!r} cannot be read from {folder}: put there the folder {expected} (from {archive}), set "
            f"PERIODIC_DATA to the folder that has it, or download it: go online without PERIODIC_OFFLINE=1. "
            f"Reason: {_one_line(error).removesuffix(' You can use download=True to download it')}"
        ) from None
    arrays = [values for part in parts for values in (np.asarray(part.data), np.asarray(part.targets))]
    x_train, x_test = (x.transpose(0, 3, 1, 2) if x.ndim == 4 else x[:, None] for x in arrays[::2])
    return _Arrays(x_train, arrays[1].astype(np.int64), x_test, arrays[3].astype(np.int64))


def _is_packed(folder: Path, make: type) -> bool:
    """Whether CIFAR's archive is in `folder`, undamaged: torchvision then unpacks it instead of downloading it."""
    from torchvision.datasets.utils import check_integrity

    return hasattr(make, "tgz_md5") and check_integrity(folder / make.filename, make.tgz_md5)


def _unpack_fashion_mnist(folder: Path) -> None:
    """Unpack the four files where they are packed: in `folder`, or where Debian's package puts them."""
    from torchvision.datasets.utils import extract_archive

    for packed in (folder, DEBIAN_FASHION_MNIST):
        have = all((packed / f"{name}.gz").is_file() for name in IDX_FILES)
        if have and not all((folder / name).is_file() for name in IDX_FILES):
            folder.mkdir(parents=True, exist_ok=True)
            for name in IDX_FILES:
                extract_archive(packed / f"{name}.gz", folder)


def _import_torchvision() -> ModuleType:
    """Import torchvision, also beside a torch that its compiled operators were not built for.

    torchvision's usual wheel for Linux is built against CUDA; beside a CPU-only torch its operators cannot load, and
    `import torchvision` fails with "operator torchvision::nms does not exist". Its data sets use no operator, so
    only then the names (not the work) of the missing ones are declared, and the import is tried again.

    Raises
    ------
    ConfigError : if torchvision is not installed or does not fit this torch in another way.
    """
    try:
        return _import_with_datasets()
    except ImportError as error:
        raise ConfigError(f"this `dataset` needs torchvision: install it. Reason: {_one_line(error)}") from None
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[module]  # half loaded
    for operator, schema in OPERATORS.items():
        torch.library.define(f"torchvision::{operator}", schema)
    try:
        return _import_with_datasets()
    except RuntimeError as error:
        raise ConfigError(f"torchvision does not fit torch {torch.__version__}: {_one_line(error)}") from None


def _import_with_datasets() -> ModuleType:
    importlib.import_module("torchvision.datasets")
    return sys.modules["torchvision"]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# ---------------------------------------------------------------- what each run sees


class BatchOrder:
    """The examples of each run's next mini-batch.

    Every epoch is a permutation of the training set drawn from (data_seed, epoch), so that the order of a run
    depends on its own seed only, not on its neighbours, the device, or where training was resumed. The last,
    shorter batch of an epoch is kept unless `drop_last`.

    >>> order = BatchOrder(data_seeds=[0, 7], examples=5, batch_size=2)
    >>> [tuple(order.next().shape) for _ in range(4)]
    [(2, 2), (2, 2), (2, 1), (2, 2)]
    """

    def __init__(
        self, data_seeds: list[int], examples: int, batch_size: int | None, drop_last: bool = False, device="cpu"
    ):
        self.data_seeds, self.examples, self.device = data_seeds, examples, device
        self.batch_size = examples if batch_size is None else batch_size
        self.steps_per_epoch = examples // self.batch_size if drop_last else -(-examples // self.batch_size)
        self.step, self._epoch = 0, None

    def seek(self, step: int) -> None:
        """Make `step` (from 0) the next one, so that training goes on where it stopped."""
        self.step = step

    def next(self) -> torch.Tensor:
        """Return the indices of the next mini-batch, shape (runs, batch)."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._permutations(epoch)
        self.step += 1
        return self._order[:, position * self.batch_size : (position + 1) * self.batch_size]

    def _permutations(self, epoch: int) -> torch.Tensor:
        if self.batch_size == self.examples:  # full batch: the order does not matter
            return torch.arange(self.examples, device=self.device).expand(len(self.data_seeds), -1)
        rows = {seed: np.random.default_rng([seed, epoch]).permutation(self.examples) for seed in set(self.data_seeds)}
        return torch.as_tensor(np.stack([rows[seed] for seed in self.data_seeds]), device=self.device)


def augment(pictures: torch.Tensor, seeds: list[int], step: int, black: torch.Tensor) -> torch.Tensor:
    """Return each picture shifted by up to 4 pixels and, every second time, mirrored left to right.

    As torchvision's RandomCrop(padding=4) and RandomHorizontalFlip, for every example by itself. What comes in from
    outside is `black`, as when raw pictures are padded with 0. The draw of a run depends only on its seed and `step`:
    not on its neighbours, the device, or where training was resumed.

    Parameters
    ----------
    pictures : (runs, batch, channels, height, width), standardized.
    seeds : the `data_seed` of every run.
    step : of the training, from 0.
    black : (channels,), the standardized value of a pixel that is 0 (`Data.black`).

    >>> augment(torch.zeros(2, 5, 1, 8, 8), [0, 1], step=3, black=torch.zeros(1)).shape
    torch.Size([2, 5, 1, 8, 8])
    """
    drawn = torch.as_tensor(draw_shifts(seeds, step, pictures.shape[1]), device=pictures.device)
    return shift_and_flip(pictures, drawn, black)


def draw_shifts(seeds: list[int], step: int, batch: int) -> np.ndarray:
    """Draw top and left of the crop (0 to 8; 4: no shift) and flip (0 or 1) of each example: (3, runs, batch)."""

    def of_run(seed: int) -> np.ndarray:
        draw = np.random.default_rng([seed, step, AUGMENT])
        return np.concatenate([draw.integers(0, 2 * MAX_SHIFT + 1, (2, batch)), draw.integers(0, 2, (1, batch))])

    drawn = {seed: of_run(seed) for seed in set(seeds)}
    return np.stack([drawn[seed] for seed in seeds], axis=1)


def shift_and_flip(pictures: torch.Tensor, drawn: torch.Tensor, black: torch.Tensor) -> torch.Tensor:
    """Apply what `draw_shifts` drew, (3, runs, batch), to `pictures` on their device: a crop of the padded ones."""
    runs, batch, channels, height, width = pictures.shape
    padded_size = (height + 2 * MAX_SHIFT, width + 2 * MAX_SHIFT)
    padded = black[:, None, None].expand(runs, batch, channels, *padded_size).clone()
    padded[..., MAX_SHIFT : MAX_SHIFT + height, MAX_SHIFT : MAX_SHIFT + width] = pictures

    top, left, flip = drawn[..., None]  # (runs, batch, 1) each
    row, column = (torch.arange(size, device=pictures.device) for size in (height, width))
    rows = top + row  # (runs, batch, height)
    columns = left + torch.where(flip == 1, column.flip(0), column)  # (runs, batch, width)
    pixel = rows[..., :, None] * padded_size[1] + columns[..., None, :]  # (runs, batch, height, width)
    pixel = pixel.flatten(2).unsqueeze(2).expand(runs, batch, channels, -1)  # (..., height * width)
    return padded.flatten(3).gather(3, pixel).view(pictures.shape)
