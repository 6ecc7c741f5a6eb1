"""The training loop, its progress bar, and the state from which unfinished training goes on."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from periodic_lib import fingerprints, outside, project
from periodic_lib.checks import number
from periodic_lib.config import Record, Run, Setup
from periodic_lib.engine.batches import FixedOrder
from periodic_lib.engine.recording import Recorder
from periodic_lib.engine.stack import Stack
from periodic_lib.project import ConfigError, Unfinished

LOG_SECONDS = 15  # between progress lines in a log
RESUME_SECONDS = 60  # between writes of the resume state
OVERHEAD = 2**20  # bytes of a state's or result's file beside its numbers


def train(
    setup: Setup,
    runs: Sequence[Run],
    record: Record | None = None,
    *,
    device: str | None = None,
    progress: bool = True,
    resume: Path | str | None = None,
    budget: float | None = None,
    initial: Mapping[str, object] | None = None,
    batches: object | None = None,
    compiled: bool = False,
) -> xr.Dataset:
    """Train `runs` as one stacked network and return what was measured.

    Parameters
    ----------
    setup, runs, record : what to train (see `Setup`, `Run`, `grid`) and what to keep (default:
        every step, evaluation every 100 steps).
    device : "cpu", "cuda", ...; None takes CUDA where there is one.
    progress : show steps per second, the median loss of the runs, and the time left.
    resume : file for the state of unfinished training, overwritten about every minute. If it is
        there and belongs to the same settings and code, training goes on from it, to the same
        numbers as if it had never stopped.
    budget : seconds after which training stops, with its state saved in `resume`, by raising
        `Unfinished`; the next call goes on from there. None: no limit.
    initial : initial parameters by name, in PyTorch's layout: shape (runs, *shape), or (*shape) for
        all runs alike. Names that are missing keep their default initialization.
    batches : integer array (steps, batch): the training examples of each step, the same for all
        runs.
    compiled : pass the loss through `torch.compile` (needs a C++ compiler on a CPU). PyTorch 2.13
        keeps what it compiles under names that do not tell processors apart: where machines with
        and without AVX-512 share a home or temporary folder, give each kind its own
        `TORCHINDUCTOR_CACHE_DIR`, or losses come out wrong.

    Returns
    -------
    xarray.Dataset with dimensions `run`, `step`, `eval_step`, `curvature_step`, `snapshot_step`;
        coordinates of `run` are the fields of `Run`. Its variables are the table
        `metrics.MEASURES`, with the glossary's words and units. Of every recorded step t, (run,
        step), of the weights before the step but for the angle: `train_loss`, in nats;
        `weight_norm`, the norm of all scale-invariant weights together; `elr`, learning rate over
        squared weight norm: the step that the direction of the weights feels; `grad_norm`, without
        the decay term; `angular_update`, in radians; `eff_grad_norm`, gradient norm times weight
        norm: the gradient norm on the unit sphere; `radial_cosine`, of gradient and weights: 0
        where the invariance is exact. With `Record.layers`, `Record.neurons` norm, gradient norm
        and angle also have an axis `layer` or `neuron`. With `Record.average` all are means. With
        `Record.batch_sharpness`, that of every recorded step's batch, too. Shape (run, eval_step):
        `train_loss_full`, `train_error` over the training set in mini-batches, in
        training mode, and `test_loss`, `test_error` with batch-normalization statistics
        re-estimated in the same pass. Shape (run, curvature_step): `sharpness`, the spherical
        sharpness (`metrics.sharpness`) of the loss on the first 2,048 training examples, as one
        batch. With `Record.snapshot_every`, in float32 whatever the dtype: `direction` (run,
        snapshot_step, weight), the scale-invariant weights over their norm, in the order of the
        network's parameters, and `test_logits` (run, snapshot_step, example, class), evaluated as
        `test_error` is; `label` (example) are the true classes. A step index of S means the weights
        after S updates. `diverged_at` (run) is the step at which a run left the finite numbers; it
        is frozen from there on, and its values are nan. nan in `diverged_at`: it never did.

    Raises
    ------
    ConfigError : before any training, for a parameter that cannot be used.
    Unfinished : when `budget` is used up.

    >>> small = Setup(width=8, depth=1, steps=20)
    >>> runs, record = [Run(lr=0.1, weight_decay=1e-2)], Record(evaluate_every=20)
    >>> out = train(small, runs, record, progress=False)
    >>> dict(out.sizes)
    {'run': 1, 'step': 20, 'eval_step': 2}
    """
    record = Record() if record is None else record
    if not runs:
        raise ConfigError(
            "`runs` must have at least one Run; got none. "
            "Make them with grid(lr=..., weight_decay=...)."
        )
    budget = _checked_budget(budget, resume)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    stack = Stack(setup, list(runs), device, initial, compiled=compiled)
    order = stack.batch_order()
    keep = Recorder(stack, record, order.steps_per_epoch)
    if batches is not None:
        order = FixedOrder(batches, len(stack.data.x_train), setup.steps, len(runs), device)
    state = Resume(Path(resume), stack, keep, (initial, batches)) if resume is not None else None
    called = time.perf_counter()
    started = called - (state.load() if state else 0.0)

    def so_far() -> xr.Dataset:
        return keep.dataset(time.perf_counter() - started, stack.data.digest)

    order.seek(stack.steps_done)
    with _progress_bar(setup.steps, stack.steps_done, progress) as bar:
        for step in range(stack.steps_done, setup.steps):
            keep.look(step)
            measured = stack.step(order.next(), keep.parts if keep.records(step) else None)
            if keep.records(step):
                keep.add_step(step, measured)
            bar.advance(step, measured[0])
            if state:
                state.save_now_and_then(time.perf_counter() - started)
                out_of_time = time.perf_counter() - called > budget and step + 1 < setup.steps
                if out_of_time and state.save(time.perf_counter() - started):
                    raise Unfinished(step + 1, setup.steps, so_far())
        keep.look(setup.steps)
    return so_far()


def _checked_budget(budget: object, resume: object) -> float:
    """Return the seconds that training may take."""
    if budget is None:
        return float("inf")
    if resume is None:
        raise ConfigError(
            "`budget` needs `resume`, a file for the state from which the next call goes on."
        )
    meaning = "a positive number of seconds, or None"
    return number("budget", budget, meaning, 0, float("inf"), low_open=True)


# ---------------------------------------------------------------- resuming


class Resume:
    """The state of unfinished training in one file, overwritten now and then, all or nothing, with
    a checksum.

    Parameters
    ----------
    path : of the file.
    stack, keep : what is trained and recorded.
    explicit : what else determines the numbers: explicit initial values and batches.

    Raises
    ------
    ConfigError : if the file cannot be written, tried with as many bytes as it may come to.
    """

    def __init__(self, path: Path, stack: Stack, keep: Recorder, explicit: tuple):
        state = sum(value.nbytes for value in stack.state().values())
        size = OVERHEAD + state + sum(keep.sizes.values())
        project.check_writable(path, size)
        self.limit = 2 * size  # of what is read back
        self.path, self.stack, self.keep = path, stack, keep
        device = str(stack.device)
        name = torch.cuda.get_device_name() if device.startswith("cuda") else device
        settings = fingerprints.settings_of(stack.setup, stack.runs, keep.record, stack.data.digest)
        facts = [settings, fingerprints.code_digest(), name, project.digest_of_arrays(explicit)]
        self.key = project.digest([*facts, str(torch.__version__)])
        self.last = time.monotonic()

    def load(self) -> float:
        """Go to the stored state if there is one of the same training; return the seconds that it
        took so far.
        """
        content = self._read()
        if content is None:
            return 0.0
        prefix = "state_"
        kept = {n: value for n, value in content.items() if not n.startswith(prefix)}
        mine = {n: value for n, value in content.items() if n.startswith(prefix)}
        state = {n.removeprefix(prefix): torch.as_tensor(value) for n, value in mine.items()}
        try:
            if absent := set(self.stack.state()) - set(state):
                raise KeyError(min(absent))
            self.keep.load_arrays(kept)
            self.stack.load_state(state)
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:100]
            raise ConfigError(
                f"the saved state {self.path} does not fit this training ({reason}): delete it, "
                "and run again."
            ) from None
        return float(content.get("seconds", 0))

    def _read(self) -> dict[str, np.ndarray] | None:
        """Return what the file holds; None, with a message, if it is no state of this one."""
        try:
            if str(outside.read_npz(self.path, self.limit, ["key"]).get("key")) != self.key:
                return self._dropped("belongs to other settings, code or versions")
            content = outside.read_npz(self.path, self.limit)
        except FileNotFoundError:
            return None
        except (outside.Refused, OSError) as error:
            return self._dropped(f"is damaged ({error})")
        content.pop("key")
        if str(content.pop("sha256", "")) != project.digest_of_arrays(content):
            return self._dropped("is damaged")
        return content

    def _dropped(self, reason: str) -> None:
        project.print_message(f"the saved state {self.path.name} {reason}: training starts anew.")

    def save_now_and_then(self, seconds: float) -> None:
        """Write the state if the last time is long ago."""
        if time.monotonic() - self.last >= RESUME_SECONDS:
            self.save(seconds)
            self.last = time.monotonic()

    def save(self, seconds: float) -> bool:
        """Write the state; return whether that was possible. If not, say so: training can go on
        without.
        """
        content = {
            f"state_{name}": value.cpu().numpy() for name, value in self.stack.state().items()
        }
        content |= self.keep.arrays() | {"seconds": np.array(seconds)}
        packed = io.BytesIO()
        np.savez(packed, key=self.key, sha256=project.digest_of_arrays(content), **content)
        try:
            project.write_whole(self.path, packed.getvalue())
        except OSError as error:
            project.print_message(
                f"the state cannot be saved to {self.path} ({error.strerror}): training goes on."
            )
            return False
        return True


# ---------------------------------------------------------------- progress


class _Bar:
    """A tqdm bar that looks at the loss only when it is drawn, so that the device is never waited
    for in between.
    """

    REDRAWS = 200

    def __init__(self, bar: tqdm, steps: int):
        self.bar, self.stride, self.steps = bar, max(1, steps // self.REDRAWS), steps

    def advance(self, step: int, measured: torch.Tensor) -> None:
        """Count one step; now and then redraw."""
        done = step + 1
        if done % self.stride == 0 or done == self.steps:
            if not self.bar.disable:
                self.bar.set_postfix_str(
                    f"loss {float(measured[0].nanmedian()):.2g}", refresh=False
                )
            self.bar.update(done - self.bar.n)


@contextmanager
def _progress_bar(steps: int, done: int, show: bool):
    """Yield a progress bar on standard error, or in the file that $PERIODIC_PROGRESS names, for
    another process.
    """
    target = project.variable("PERIODIC_PROGRESS")
    with project.open_progress("w") if show and target else nullcontext(sys.stderr) as stream:
        live = target or stream.isatty()  # in a log, a line now and then
        style = (
            {"dynamic_ncols": True}
            if live
            else {"mininterval": LOG_SECONDS, "ascii": True, "ncols": 100}
        )
        options = {
            "total": steps,
            "initial": done,
            "unit": "step",
            "disable": not show,
            "leave": False,
        }
        with tqdm(file=stream, **options, **style) as bar:
            yield _Bar(bar, steps)
