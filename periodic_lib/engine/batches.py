"""What each run sees of a data set at each step: the order of the examples, their augmentation, and
labels that are wrong anew every time.
"""

from __future__ import annotations

import numpy as np
import torch

from periodic_lib.project import ConfigError

MAX_SHIFT = 4  # pixels, up, down, left or right
AUGMENT, FRESH_NOISE = 7, 8  # so that draws for different purposes with one seed differ


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


def with_fresh_noise(
    labels: torch.Tensor, seeds: list[int], step: int, fraction: float, classes: int
) -> torch.Tensor:
    """Return labels (runs, batch) of which each is replaced, with probability `fraction`, by
    another class, uniformly.

    The draw of a run depends only on its seed and `step`. Drawn anew at every step, this noise
    cannot be learned by heart: it keeps the gradient from vanishing.

    >>> labels = torch.zeros(1, 1000, dtype=torch.long)
    >>> noisy = with_fresh_noise(labels, [0], step=3, fraction=0.2, classes=4)
    >>> round(float((noisy != labels).float().mean()), 1), int(noisy.max())
    (0.2, 3)
    """

    def of_run(seed: int) -> np.ndarray:
        draw = np.random.default_rng([seed, step, FRESH_NOISE])
        wrong = draw.random(labels.shape[1]) < fraction
        return wrong * draw.integers(1, classes, labels.shape[1])

    drawn = {seed: of_run(seed) for seed in set(seeds)}
    moved = torch.as_tensor(np.stack([drawn[seed] for seed in seeds]), device=labels.device)
    return (labels + moved) % classes
