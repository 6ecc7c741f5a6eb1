"""The monitor as a callback of Lightning and of Hugging Face's trainer.

Both make a `Monitor` when training begins, hand it each batch's loss, and keep it for checkpoints.
The libraries are imported when a callback is made, and nowhere else.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from periodic_lib.project import ConfigError

FIRST = "first batch"  # as `example`: probe the model with what the training sees first
STATE_FILE = "periodic_monitor.pt"


class _Carrier:
    """What both callbacks share: when the monitor is made, and that it never stops a training."""

    def __init__(self, make: Callable, options: Mapping[str, object]):
        if options.get("example") is None and options.get("groups") is None:
            raise ConfigError(
                "one of `example` and `groups` must be given; got neither. Write "
                f"example={FIRST!r} to probe the model with the first batch."
            )
        self._make, self._options = make, dict(options)
        self._restored: Mapping[str, object] | None = None
        self.monitor = None

    @property
    def _waits(self) -> bool:
        """Whether the first batch is needed to make the monitor."""
        return isinstance(self._options.get("example"), str) and self._options["example"] == FIRST

    def _begin(self, model, optimizer, total_steps: int | None, example: object = None) -> None:
        options = {"total_steps": total_steps} | self._options
        if self._waits:
            options["example"] = example
        if self._restored is not None:  # its groups are known
            options |= {"groups": self._restored["groups"], "example": None}
        self.monitor = self._make(model, optimizer, **options)
        if self._restored is not None:
            self.monitor.load_state_dict(self._restored)
            self._restored = None

    def _state(self) -> dict[str, object]:
        return {} if self.monitor is None else self.monitor.state_dict()


def guarded(method: Callable) -> Callable:
    """Let a method that the training calls never raise: it warns once and disables the monitor."""

    @functools.wraps(method)
    def call(self, *arguments, **options):
        if self.failure is not None:
            return None
        try:
            return method(self, *arguments, **options)
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"
            self.detach()
            warnings.warn(
                f"the monitor failed at step {self.steps} and is off from here; the training goes "
                f"on as it would without it. {self.failure}",
                RuntimeWarning,
                stacklevel=3,
            )
            return None

    return call


def carefully(method: Callable) -> Callable:
    """Let a callback's method never raise: it warns once, and the callback does nothing more."""

    @functools.wraps(method)
    def call(self, *arguments, **options):
        if getattr(self, "failed", False):
            return None
        try:
            return method(self, *arguments, **options)
        except Exception as error:
            self.failed = True
            if self.monitor is not None:
                self.monitor.detach()
            words = f"the monitor failed and is off; the training goes on. {error}"
            warnings.warn(words, RuntimeWarning, stacklevel=2)
            return None

    return call


def example_of(batch: object) -> object:
    """Return the inputs of a batch: of a mapping without its labels, of a pair the first.

    >>> example_of({"pixel_values": 1, "labels": 2}), example_of((3, 4)), example_of(5)
    ({'pixel_values': 1}, 3, 5)
    """
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name not in ("labels", "label")}
    return batch[0] if isinstance(batch, (tuple, list)) else batch


def lightning_callback(make: Callable, **options: object):
    """Return a `lightning.pytorch.Callback` whose `monitor` is made by `make` at the first batch.

    The loss is that which `training_step` returns, times the number of accumulated batches, which
    Lightning has divided it by. Its state goes with the checkpoints. It watches the first
    optimizer.

    Raises
    ------
    ConfigError : without `example` and `groups`, or without Lightning.
    """
    lightning = _imported("lightning.pytorch", "lightning")

    class MonitorCallback(_Carrier, lightning.Callback):
        """Hands the losses of a Lightning training to a monitor."""

        @carefully
        def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
            if self.monitor is None:
                total = trainer.estimated_stepping_batches
                total = int(total) if total not in (-1, float("inf")) else None
                optimizer = trainer.optimizers[0]
                self._begin(
                    module, getattr(optimizer, "optimizer", optimizer), total, example_of(batch)
                )

        @carefully
        def on_before_backward(self, trainer, module, loss) -> None:
            if self.monitor is not None:
                self.monitor.loss = loss * trainer.accumulate_grad_batches

        @carefully
        def on_train_end(self, trainer, module) -> None:
            if self.monitor is not None:
                self.monitor.detach()

        def state_dict(self) -> dict[str, object]:
            return self._state()

        def load_state_dict(self, state_dict: Mapping[str, object]) -> None:
            self._restored = dict(state_dict) or None

    return MonitorCallback(make, options)


class _ForHuggingFace(_Carrier):
    """Hands the losses of a Hugging Face training to a monitor."""

    @carefully
    def on_train_begin(self, args, state, control, model=None, optimizer=None, **more) -> None:
        optimizer = getattr(optimizer, "optimizer", optimizer)  # as accelerate wraps it
        self._hook_to(model)
        self._parts = model, optimizer, state.max_steps
        self._resume(args, state)
        if not self._waits or self._restored is not None:
            self._begin(*self._parts)

    def _hook_to(self, model) -> None:
        self._hook = model.register_forward_hook(self._read, with_kwargs=True)

    def _resume(self, args, state) -> None:
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE_FILE
        if state.global_step and path.exists():
            self._restored = torch.load(path, weights_only=True)

    @carefully
    def _read(self, model, arguments, options, output) -> None:
        if not model.training:
            return
        if self.monitor is None:
            self._hook.remove()  # the probe's copy of the model must not call this
            self._begin(*self._parts, example_of(options or arguments))
            self._hook_to(model)
        loss = output.get("loss") if isinstance(output, Mapping) else output[0]
        if isinstance(loss, torch.Tensor) and loss.dim() == 0:
            self.monitor.loss = loss

    @carefully
    def on_save(self, args, state, control, **more) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.monitor is not None and folder.is_dir():
            torch.save(self._state(), folder / STATE_FILE)

    @carefully
    def on_train_end(self, args, state, control, **more) -> None:
        self._hook.remove()
        if self.monitor is not None:
            self.monitor.detach()


def huggingface_callback(make: Callable, **options: object):
    """Return a `transformers.TrainerCallback` whose `monitor` is made by `make`.

    The loss is the model's own output, read by a forward hook in training mode. The state is
    written beside each checkpoint (`periodic_monitor.pt`) and read when training resumes from one.
    With the `example` "first batch" the monitor begins with the first forward pass.

    Raises
    ------
    ConfigError : without `example` and `groups`, or without transformers.
    """
    transformers = _imported("transformers", "transformers")

    class MonitorCallback(_ForHuggingFace, transformers.TrainerCallback):
        """Hands the losses of a Hugging Face training to a monitor."""

    return MonitorCallback(make, options)


def _imported(module: str, package: str):
    """Import a library that only an adapter needs.

    Raises
    ------
    ConfigError : if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"this adapter needs the package {package!r}, which is not installed ({error}). "
            f"Install it: pip install periodic-lib[{package}]; or use `Monitor` in your own loop."
        ) from None
