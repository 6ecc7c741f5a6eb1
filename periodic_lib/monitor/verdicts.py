r"""What happened in a monitored training: its loss spikes, their causes, the state of each group.
NumPy and pandas only; everything is computed from arrays of one run at successive steps.

Definitions
-----------
*Spike*: the logarithm of the loss exceeds the median of the last `WINDOW` steps by the larger of
ln 10 and 4 of its deviations, 1.48 median distances from that median. It is over when, for `CALM`
steps, the loss has stayed below half that bound. So one that begins in the first `WINDOW` steps is
not seen, and a slow rise is none.

*Cause* of a spike, the first whose signature it has:

- "outlier batch": the loss is highest in the first step, by ln 20 and 6 deviations, comes from a
  batch before it that was as usual (loss and gradient), and loses a third of that height in the
  very next step: the weights were good, the batch was not;
- "learning rate": the learning rate was raised by half and more in the `WINDOW` steps before, and
  by more than the norm or the state raised the step;
- "norm-driven": scale-invariant weights under weight decay had lost `FALL` of ln rho^2 since their
  last rise (or the highest norm on record), and the spike gives `KICK` of it back; the second
  moments had not raised the step by ln 4 more than the norm had;
- "optimizer state": Adam's second moments had fallen since their last peak, by `STATE_FALL` of the
  logarithm of the step that they allow (by ln 4 more than the norm, where decay had shrunk it), and
  the spike's gradient is larger than they expect: by a factor e the ratio |g| / sqrt(sum v) exceeds
  its usual value;
- "unknown": none of these.

Adam's step on the sphere, lr / (rho sqrt(v~)) with v~ = rho^2 v, has the three parts in it: the
learning rate, the norm, and the state. Of SGD it is lr / rho^2.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from periodic_lib.analysis.periods import MIN_RISE

WINDOW = 100  # steps of the recent level of the loss
CALM = 20  # steps below half the bound that end a spike
LONGEST = 200  # steps after which a spike is judged, over or not
RISE, DEVIATIONS = np.log(10), 4.0
OUTLIER_RISE, OUTLIER_DEVIATIONS = np.log(20), 6.0
DROP = 1 / 3  # of the height, lost in the step after an outlier
USUAL, USUAL_GRADIENT = 1.5, 3.0  # nats by which the batch before may exceed the level
FALL, KICK = 0.2, MIN_RISE  # of ln rho^2
STATE_FALL = 0.1  # of the step that second moments allow
MARGIN = np.log(4)  # by which the state must have raised the step more than the norm
NEAR = 20  # steps before a spike in which the norm has its minimum
SURPRISE = 1.0  # of ln(|g| / sqrt(sum v)) over its median
RAISED = np.log(1.5)  # of the learning rate

CAUSES = ("norm-driven", "outlier batch", "optimizer state", "learning rate", "unknown")
SPIKE_COLUMNS = ["start", "peak", "end", "height", "over"]
VERDICT_COLUMNS = [
    *SPIKE_COLUMNS,
    "cause",
    "group",
    "norm_fall",
    "norm_kick",
    "state_fall",
    "first_drop",
]


# ---------------------------------------------------------------- spikes of the loss


def log_loss(loss: ArrayLike) -> NDArray:
    """Return ln(loss), bounded: a loss that is not finite counts as e^30, a missing one as nan.

    >>> log_loss([1.0, np.inf, np.nan]).tolist()
    [0.0, 30.0, nan]
    """
    loss = np.asarray(loss, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip(np.log(loss), -30, 30)


def bound(level: NDArray) -> tuple[NDArray, NDArray]:
    """Return, for every step, the median of the `WINDOW` values before it, and the deviation."""
    values = pd.Series(level)
    median = values.rolling(WINDOW, min_periods=WINDOW // 2).median().shift(1)
    distance = (values - median).abs().rolling(WINDOW, min_periods=WINDOW // 4).median()
    return median.to_numpy(), 1.4826 * distance.shift(1).to_numpy()


def find_spikes(loss: ArrayLike) -> pd.DataFrame:
    """Return one row per spike of the loss (definition above), as indices.

    Returns
    -------
    table with `start`, `peak`, `end` (the first index after it, or one past the last), `height`
    (of ln loss over its level) and `over`, whether it has ended.

    >>> loss = np.r_[np.ones(200), 50.0, 20.0, np.ones(100)]
    >>> find_spikes(loss)[["start", "peak", "end", "over"]].values.tolist()
    [[200, 200, 202, True]]
    """
    level = log_loss(loss)
    median, deviation = bound(level)
    least = np.maximum(RISE, DEVIATIONS * deviation)
    rows, at = [], WINDOW
    starts = np.flatnonzero(level - median > least)
    while (ahead := starts[starts >= at]).size:
        start = int(ahead[0])
        calm = level[start:] - median[start] < least[start] / 2
        quiet = pd.Series(calm).rolling(CALM).sum().to_numpy() == CALM
        over = bool(quiet[:LONGEST].any())
        length = int(quiet.argmax()) - CALM + 1 if over else min(LONGEST, len(calm))
        end = start + max(1, length)
        peak = start + int(np.nanargmax(level[start:end]))
        rows.append((start, peak, end, level[peak] - median[start], over))
        at = end + CALM
    return pd.DataFrame(rows, columns=SPIKE_COLUMNS)


# ---------------------------------------------------------------- the cause of a spike


def judge(loss: ArrayLike, groups: Mapping[str, Mapping[str, ArrayLike]]) -> pd.DataFrame:
    """Return the spikes of a loss with the cause of each (definition above).

    Parameters
    ----------
    loss : (steps,), nan where it was not given.
    groups : name -> its arrays (steps,): `weight_norm`, `eff_grad_norm`, `grad_norm`,
        `second_moment` (nan without), `lr`, `weight_decay`, and `invariant`, whether its weights
        are scale-invariant.

    Returns
    -------
    table of `VERDICT_COLUMNS`: the spike; `cause`, one of `CAUSES`; `group`, the one with the
    largest kick, or the first; and the numbers it rests on: `norm_fall` and `norm_kick` (of ln
    rho^2), `state_fall` (of ln step, by Adam's second moments), `first_drop` (share of the height
    that the step after the start lost).
    """
    level = log_loss(loss)
    median, deviation = bound(level)
    rows = []
    for spike in find_spikes(loss).itertuples(index=False):
        facts = [_facts(name, one, spike) for name, one in groups.items()]
        drop = _first_drop(level, median, deviation, spike, groups)
        row = {"first_drop": drop} | _verdict(facts, drop)
        rows.append(spike._asdict() | row)
    return pd.DataFrame(rows, columns=VERDICT_COLUMNS)


def _facts(name: str, one: Mapping[str, ArrayLike], spike) -> dict[str, object]:
    """Return what one group did before and in a spike."""
    start, inside = spike.start, slice(spike.start, spike.end + CALM)
    recent = slice(max(0, start - WINDOW), start)
    with np.errstate(divide="ignore", invalid="ignore"):
        squares = 2 * np.log(np.asarray(one["weight_norm"], float))
        moments = np.log(np.asarray(one["second_moment"], float)) + squares / 2
        surprise = np.log(one["grad_norm"]) - np.log(one["second_moment"])
        rate = np.log(np.asarray(one["lr"], float))
    low = max(0, start - NEAR) + int(np.argmin(squares[max(0, start - NEAR) : start + 1]))
    before = moments[max(0, start - 10 * WINDOW) : low + 1]
    adaptive = bool(np.isfinite(before[-1]))
    return {
        "group": name,
        "decays": bool(one["invariant"] and one["lr"][start] * one["weight_decay"][start] > 0),
        "adaptive": adaptive,
        "norm_fall": float(squares[last_kick(squares[: low + 1])] - squares[low]),
        "norm_kick": float(np.nanmax(squares[inside]) - squares[low]),
        "state_fall": _fall(before) if adaptive else np.nan,
        "surprise": float(np.nanmax(surprise[inside]) - np.nanmedian(surprise[recent]))
        if adaptive
        else np.nan,
        "raised": float(rate[start] - rate[recent].min()),
    }


def _fall(values: NDArray) -> float:
    """Return how far the last value is below the largest; nan where nothing is known."""
    return float(np.nanmax(values) - values[-1]) if np.isfinite(values).any() else np.nan


def last_kick(squares: NDArray) -> int:
    """Return the index of the largest ln rho^2 since it was last as low as at the end.

    >>> last_kick(np.array([0.0, 3.0, 1.0, 2.0, 1.5]))
    3
    """
    below = np.flatnonzero(squares[:-1] <= squares[-1])
    first = int(below[-1]) if below.size else 0
    return first + int(np.argmax(squares[first:]))


def _first_drop(level, median, deviation, spike, groups) -> float:
    """Return what share of its height an outlier loses in the step after; nan for no outlier."""
    start, base = spike.start, median[spike.start]
    height = level[start] - base
    least = max(OUTLIER_RISE, OUTLIER_DEVIATIONS * deviation[start])
    usual = level[start - 1] - base < USUAL
    for one in groups.values():
        gradient = np.log(np.asarray(one["grad_norm"], float))
        excess = gradient[start - 1] - np.nanmedian(gradient[start - WINDOW : start])
        usual &= bool(excess < USUAL_GRADIENT)
    late = spike.peak != start or start + 1 >= len(level)
    if late or height < least or not usual:
        return np.nan
    return float((level[start] - level[start + 1]) / height)


def _verdict(facts: list[dict], drop: float) -> dict[str, object]:
    """Return the cause, and the numbers of the group that it rests on."""
    decaying = [fact for fact in facts if fact["decays"]]
    one = max(decaying or facts, key=lambda fact: fact["norm_kick"])
    state, surprise = (
        max((fact[name] for fact in facts if fact["adaptive"]), default=0.0)
        for name in ("state_fall", "surprise")
    )
    part = one["norm_fall"] * (0.5 if one["adaptive"] else 1.0) if decaying else 0.0
    kicked = decaying and one["norm_fall"] >= FALL and one["norm_kick"] >= KICK
    if drop >= DROP:
        cause = "outlier batch"
    elif one["raised"] >= max(RAISED, part, state):
        cause = "learning rate"
    elif kicked and state <= part + MARGIN:
        cause = "norm-driven"
    elif state >= (part + MARGIN if part >= FALL / 2 else STATE_FALL) and surprise >= SURPRISE:
        cause = "optimizer state"
    else:
        cause = "unknown"
    kept = {name: one[name] for name in ("group", "norm_fall", "norm_kick")}
    return {"cause": cause, "state_fall": state} | kept
