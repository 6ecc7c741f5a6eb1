"""Data sets as tensors on the device: what `periodic_lib.engine.sources` has read, as JPEG if asked
for, standardized, a part of it, with label noise.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from periodic_lib.config import Setup
from periodic_lib.engine import sources
from periodic_lib.project import ConfigError

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)  # of pixels from 0 to 1
CIFAR_STD = (0.2023, 0.1994, 0.2010)
SUBSET, NOISE = 1, 2  # so that draws for different purposes with one seed differ (`batches`)


@dataclass(frozen=True)
class Data:
    """One data set on one device: standardized pictures and integer labels, shared by all runs."""

    x_train: torch.Tensor  # (examples, channels, height, width)
    y_train: torch.Tensor  # (examples,)
    x_test: torch.Tensor
    y_test: torch.Tensor
    classes: int
    black: torch.Tensor  # (channels,), the standardized value of a pixel that is 0
    digest: str | None = None  # SHA-256 of the file that was read, if it is your own

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a picture."""
        return tuple(self.x_train.shape[1:])

    def to(self, device: str | torch.device) -> Data:
        """Return the same data on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: x for name, x in values.items() if isinstance(x, torch.Tensor)}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})


def load(setup: Setup, device: str | torch.device = "cpu") -> Data:
    """Return the data set that `setup` names, standardized, in its dtype, on `device`.

    x <- (x - mean) / std for each channel: the published mean and std for CIFAR, 0 and 1 for text,
    else those of the full training set, also when `train_size` takes a part. `jpeg` comes first.
    `train_size` and `label_noise` are drawn by `sample_seed` (a smaller subset is part of a larger
    one). The test set is as it is, followed, with `test_on_rest`, by the training examples that the
    subset leaves out, in order, with their true labels.

    Raises
    ------
    ConfigError : if files are absent, unreadable or not as `periodic_lib.engine.sources` says, if
        `train_size` exceeds the training set, if `batch_size` does not fit what is trained on
        (`check_batch_size`), if `augment` is asked for data that are not pictures, or if values
        are too large, too small or too equal to be standardized.

    >>> load(Setup(train_size=200)).x_train.shape
    torch.Size([200, 1, 8, 8])
    """
    arrays, digest = sources.read(setup.dataset)
    if setup.jpeg is not None:
        arrays = _jpeg(setup, arrays)
    classes = int(arrays.y_train.max()) + 1
    chosen = _subset(setup, arrays.y_train)
    check_batch_size(setup, len(chosen))
    if setup.augment and 1 in arrays.x_train.shape[2:]:
        raise ConfigError(
            f"`augment` needs pictures; {setup.dataset!r} holds features. Set it to false."
        )
    mean, std = _mean_and_std(setup.dataset, arrays.x_train)
    x_test, y_test = _test_set(setup, arrays, chosen)
    y_train = _with_noise(setup, arrays.y_train[chosen], classes)
    x_train = _standardized(arrays.x_train[chosen], mean, std, setup.dtype)
    x_test = _standardized(x_test, mean, std, setup.dtype)
    _check_standardized(setup, x_train, x_test)
    return Data(
        x_train=torch.as_tensor(x_train, device=device),
        y_train=torch.as_tensor(y_train, dtype=torch.int64, device=device),
        x_test=torch.as_tensor(x_test, device=device),
        y_test=torch.as_tensor(y_test, dtype=torch.int64, device=device),
        classes=classes,
        black=torch.as_tensor(-mean / std, dtype=getattr(torch, setup.dtype), device=device),
        digest=digest,
    )


def check_batch_size(setup: Setup, examples: int) -> None:
    """Refuse a `batch_size` that gives no batch, or one of a single example, of `examples`.

    Batch norm makes 0 of a single example, whatever its weights: there is no gradient.

    Raises
    ------
    ConfigError : if `batch_size` exceeds `examples`, or an epoch's last batch has one example.

    >>> check_batch_size(Setup(batch_size=4, drop_last=True), examples=9)
    >>> check_batch_size(Setup(batch_size=4), examples=9)
    Traceback (most recent call last):
    periodic_lib.project.ConfigError: `batch_size` 4 leaves one of the 9 training examples ...
    """
    if examples == 1:
        raise ConfigError(
            f"`train_size` must leave at least 2 training examples of {setup.dataset!r}; got 1, of "
            "which batch norm makes 0. Take more."
        )
    if setup.batch_size is not None and setup.batch_size > examples:
        raise ConfigError(
            f"`batch_size` must be at most {examples}, the training examples of {setup.dataset!r}, "
            f"or None (full batch); got {setup.batch_size}."
        )
    if setup.batch_size is not None and not setup.drop_last and examples % setup.batch_size == 1:
        raise ConfigError(
            f"`batch_size` {setup.batch_size} leaves one of the {examples} training examples of "
            f"{setup.dataset!r} for the last batch of an epoch, of which batch norm makes 0. "
            "Set drop_last: true, or take another batch_size."
        )


def _subset(setup: Setup, labels: np.ndarray) -> np.ndarray:
    """Return indices, in order, of `train_size` examples, the classes as equal as they allow."""
    size = len(labels) if setup.train_size is None else setup.train_size
    if size > len(labels):
        raise ConfigError(
            f"`train_size` must be at most {len(labels)}, the training examples of "
            f"{setup.dataset!r}, or None (all); got {size}."
        )
    shuffled = np.random.default_rng([setup.sample_seed, SUBSET]).permutation(len(labels))
    rank = np.empty_like(shuffled)  # the how-manieth of its class, in the shuffled order
    for label in np.unique(labels):
        of_class = labels[shuffled] == label
        rank[of_class] = np.arange(of_class.sum())
    return np.sort(shuffled[np.argsort(rank, kind="stable")[:size]])


def _test_set(
    setup: Setup, arrays: sources.Arrays, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures and labels to test on: with `test_on_rest` also those that are not chosen."""
    rest = np.setdiff1d(np.arange(len(arrays.y_train)), chosen)
    if not setup.test_on_rest or not len(rest):
        return arrays.x_test, arrays.y_test
    x_test = np.concatenate([arrays.x_test, arrays.x_train[rest]])
    return x_test, np.concatenate([arrays.y_test, arrays.y_train[rest]])


def _with_noise(setup: Setup, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the labels, round(label_noise * examples) of them changed to another, uniformly."""
    draw = np.random.default_rng([setup.sample_seed, NOISE])
    wrong = draw.choice(len(labels), round(setup.label_noise * len(labels)), replace=False)
    noisy = labels.copy()
    noisy[wrong] = (labels[wrong] + draw.integers(1, classes, len(wrong))) % classes
    return noisy


def _jpeg(setup: Setup, arrays: sources.Arrays) -> sources.Arrays:
    """Return the data with pictures as they come out of a JPEG file, uint8.

    Pictures of another type are first stretched: the training set's range to 0 to 255.
    """
    pictures = (arrays.x_train, arrays.x_test)
    if pictures[0].shape[1] not in (1, 3) or 1 in pictures[0].shape[2:]:
        shape = " x ".join(map(str, pictures[0].shape[1:]))
        raise ConfigError(
            f"`jpeg` needs pictures of 1 or 3 channels; {setup.dataset!r} holds {shape}. "
            "Set it to None."
        )
    if pictures[0].dtype != np.uint8:
        low, high = pictures[0].min(), pictures[0].max()
        stretched = (np.clip(255 * (x - low) / (high - low), 0, 255) for x in pictures)
        pictures = tuple(np.round(x).astype(np.uint8) for x in stretched)
    x_train, x_test = (
        np.stack([_through_jpeg(picture, setup.jpeg) for picture in x]) for x in pictures
    )
    return arrays._replace(x_train=x_train, x_test=x_test)


def _through_jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    """Return one picture (channels, height, width), uint8, encoded and decoded again."""
    from PIL import Image

    file, grey = io.BytesIO(), len(picture) == 1
    pixels = picture[0] if grey else picture.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=quality)
    decoded = np.asarray(Image.open(file))
    return decoded[None] if grey else decoded.transpose(2, 0, 1)


# ---------------------------------------------------------------- standardization


def _mean_and_std(dataset: str, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and std (channels,) of the pixels, of uint8 pictures on the scale from 0 to 1."""
    if dataset in ("cifar10", "cifar100"):
        return np.array(CIFAR_MEAN), np.array(CIFAR_STD)
    if dataset == "moby_dick":  # of a rare letter's channel, standardized, a 1 would be 40
        return np.zeros(pictures.shape[1]), np.ones(pictures.shape[1])
    channels = [pictures[:, channel] for channel in range(pictures.shape[1])]
    if any(channel.min() == channel.max() for channel in channels):
        raise ConfigError(
            f"`x_train` of {dataset!r} cannot be standardized: all pixels of a channel are equal."
        )
    with np.errstate(all="ignore"):  # refused below
        mean, std = np.array([[x.mean(), x.std()] for x in map(_pixels, channels)]).T
    float64 = np.finfo(np.float64)
    if not ((std > float64.tiny**0.5) & (std < float64.max**0.5)).all():  # squares are normal
        raise ConfigError(
            f"`x_train` of {dataset!r} cannot be standardized: its values, from "
            f"{pictures.min():.3g} to {pictures.max():.3g}, are too far apart or too close."
        )
    return mean, std


def _pixels(channel: np.ndarray) -> np.ndarray:
    """Return the pixels as float64, those of uint8 pictures from 0 to 1."""
    return channel / 255.0 if channel.dtype == np.uint8 else channel.astype(np.float64)


def _standardized(
    pictures: np.ndarray, mean: np.ndarray, std: np.ndarray, dtype: str
) -> np.ndarray:
    """Return (pictures - mean) / std, in float64 on the CPU, so that every device gets the same."""
    result = np.empty(pictures.shape, dtype)
    with np.errstate(over="ignore"):  # `_check_standardized` refuses what it leads to
        for channel in range(pictures.shape[1]):  # one at a time to save memory
            result[:, channel] = (_pixels(pictures[:, channel]) - mean[channel]) / std[channel]
    return result


def _check_standardized(setup: Setup, x_train: np.ndarray, x_test: np.ndarray) -> None:
    """Raise `ConfigError` if the standardized values are not finite or tell no pictures apart."""
    for name, x in (("x_train", x_train), ("x_test", x_test)):
        if not np.isfinite(x).all():
            raise ConfigError(
                f"`{name}` of {setup.dataset!r}, less the mean of `x_train` and over its std, must "
                f"be finite in {setup.dtype}; got infinity or nan. "
                "Remove or clip what lies so far out."
            )
    if x_train.min() == x_train.max():
        raise ConfigError(
            f"`x_train` of {setup.dataset!r}: all standardized values that are trained on are "
            f"{x_train.min():.3g} in {setup.dtype}. Look for values that are far off, or take a "
            "larger `train_size`."
        )
