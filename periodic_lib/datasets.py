"""Data sets as tensors on the device, and what each run sees of them at each step.

First a data set: what `periodic_lib.sources` has read, standardized, a part of it if asked for,
with label noise. Then its mini-batches: the order of the examples, and their augmentation.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from periodic_lib import sources
from periodic_lib.config import Setup
from periodic_lib.project import ConfigError

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)  # of pixels from 0 to 1
CIFAR_STD = (0.2023, 0.1994, 0.2010)
MAX_SHIFT = 4  # pixels, up, down, left or right
SUBSET, NOISE, AUGMENT = 1, 2, 7  # so that draws for different purposes with one seed differ


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

    x <- (x - mean) / std for each channel: the published mean and std for CIFAR, else those of the
    full training set, also when `train_size` takes a part of it. `jpeg` comes first.
    `train_size` and `label_noise` are drawn by `sample_seed` (a smaller subset is part of a larger
    one). The test set is as it is, followed, with `test_on_rest`, by the training examples that the
    subset leaves out, in order, with their true labels.

    Raises
    ------
    ConfigError : if files are absent, unreadable or not as `periodic_lib.sources` says, if
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


# ---------------------------------------------------------------- what each run sees


class BatchOrder:
    """The examples of each run's next mini-batch.

    Every epoch is a permutation of the training set drawn from (data_seed, epoch), so that the
    order of a run depends on its own seed only, not on its neighbours, the device, or where
    training was resumed. The last, shorter batch of an epoch is kept unless `drop_last`.

    >>> order = BatchOrder(data_seeds=[0, 7], examples=5, batch_size=2)
    >>> [tuple(order.next().shape) for _ in range(4)]
    [(2, 2), (2, 2), (2, 1), (2, 2)]
    """

    def __init__(
        self,
        data_seeds: list[int],
        examples: int,
        batch_size: int | None,
        drop_last: bool = False,
        device="cpu",
    ):
        self.data_seeds, self.examples, self.device = data_seeds, examples, device
        self.batch_size = examples if batch_size is None else batch_size
        self.steps_per_epoch = (
            examples // self.batch_size if drop_last else -(-examples // self.batch_size)
        )
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
        """Return the order of an epoch, (runs, examples); runs of one seed have the same."""
        if self.batch_size == self.examples:  # full batch: the order does not matter
            return torch.arange(self.examples, device=self.device).expand(len(self.data_seeds), -1)
        rows = {
            seed: np.random.default_rng([seed, epoch]).permutation(self.examples)
            for seed in set(self.data_seeds)
        }
        return torch.as_tensor(
            np.stack([rows[seed] for seed in self.data_seeds]), device=self.device
        )


class FixedOrder:
    """An explicit order of examples, the same for every run; what `BatchOrder` is when drawn.

    Parameters
    ----------
    batches : (steps, batch) indices of training examples, from 0.
    examples : of the training set.
    steps : of the training; more rows are not used.
    runs : of the stack.

    Raises
    ------
    ConfigError : if `batches` is no such array, or its batches do not have 2 to `examples` indices.

    >>> FixedOrder([[0, 2], [1, 1]], examples=3, steps=2, runs=3).next()
    tensor([[0, 2],
            [0, 2],
            [0, 2]])
    """

    def __init__(
        self,
        batches: object,
        examples: int,
        steps: int,
        runs: int,
        device: str | torch.device = "cpu",
    ):
        index = _checked_batches(batches, examples, steps)
        self._index, self._runs, self._step = torch.as_tensor(index, device=device), runs, 0

    def seek(self, step: int) -> None:
        """Make `step` (from 0) the next one, so that training goes on where it stopped."""
        self._step = step

    def next(self) -> torch.Tensor:
        """Return the indices of the next mini-batch, shape (runs, batch)."""
        self._step += 1
        return self._index[self._step - 1].expand(self._runs, -1)


def _checked_batches(batches: object, examples: int, steps: int) -> np.ndarray:
    """Return `batches` as int64 (steps, batch); raise `ConfigError` if they are not that."""
    meaning = (
        f"`batches` must be an integer array (steps, batch) with at least {steps} rows of 2 to "
        f"{examples} indices of training examples"
    )
    try:
        index = np.asarray(batches.cpu() if isinstance(batches, torch.Tensor) else batches)
    except ValueError:
        raise ConfigError(f"{meaning}; got rows of different lengths.") from None
    sizes_fit = index.ndim == 2 and len(index) >= steps and 2 <= index.shape[1] <= examples
    if index.dtype.kind not in "iu" or not sizes_fit:
        raise ConfigError(f"{meaning}; got shape {index.shape} of {index.dtype}.")
    if index.min() < 0 or index.max() >= examples:
        raise ConfigError(
            f"`batches` must index the {examples} training examples from 0; got {index.min()} to "
            f"{index.max()}."
        )
    return index.astype(np.int64)


def augment(
    pictures: torch.Tensor, seeds: list[int], step: int, black: torch.Tensor
) -> torch.Tensor:
    """Return each picture shifted by up to 4 pixels and, every second time, mirrored left to right.

    As torchvision's RandomCrop(padding=4) and RandomHorizontalFlip, for every example by itself.
    What comes in from outside is `black`, as when raw pictures are padded with 0. The draw of a run
    depends only on its seed and `step`: not on its neighbours, the device, or where training was
    resumed.

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
    """Draw top and left of the crop (0 to 8; 4: no shift) and flip (0 or 1) of each example.

    Returns
    -------
    (3, runs, batch) : integers.

    >>> draw_shifts([0, 1], step=3, batch=5).shape
    (3, 2, 5)
    """

    def of_run(seed: int) -> np.ndarray:
        draw = np.random.default_rng([seed, step, AUGMENT])
        return np.concatenate(
            [draw.integers(0, 2 * MAX_SHIFT + 1, (2, batch)), draw.integers(0, 2, (1, batch))]
        )

    drawn = {seed: of_run(seed) for seed in set(seeds)}
    return np.stack([drawn[seed] for seed in seeds], axis=1)


def shift_and_flip(
    pictures: torch.Tensor, drawn: torch.Tensor, black: torch.Tensor
) -> torch.Tensor:
    """Return crops of the padded pictures, some mirrored: what `draw_shifts` drew, on their device.

    >>> picture = torch.arange(6.0).view(1, 1, 1, 2, 3)  # (runs, batch, channels, height, width)
    >>> shift_and_flip(picture, torch.tensor([5, 4, 1]).view(3, 1, 1), black=torch.zeros(1))
    tensor([[[[[5., 4., 3.],
               [0., 0., 0.]]]]])
    """
    runs, batch, channels, height, width = pictures.shape
    padded_size = (height + 2 * MAX_SHIFT, width + 2 * MAX_SHIFT)
    padded = black[:, None, None].expand(runs, batch, channels, *padded_size).clone()
    padded[..., MAX_SHIFT : MAX_SHIFT + height, MAX_SHIFT : MAX_SHIFT + width] = pictures

    top, left, flip = drawn[..., None]  # (runs, batch, 1) each
    row, column = (torch.arange(size, device=pictures.device) for size in (height, width))
    rows = top + row  # (runs, batch, height)
    columns = left + torch.where(flip == 1, column.flip(0), column)  # (runs, batch, width)
    pixel = (
        rows[..., :, None] * padded_size[1] + columns[..., None, :]
    )  # (runs, batch, height, width)
    pixel = pixel.flatten(2).unsqueeze(2).expand(runs, batch, channels, -1)  # (..., height * width)
    return padded.flatten(3).gather(3, pixel).view(pictures.shape)
