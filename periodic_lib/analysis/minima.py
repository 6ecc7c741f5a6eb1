"""Minima: where the loss of each stretch between destabilizations is lowest; compared, combined.

No torch at import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib.analysis.periods import as_table, find_destabilizations
from periodic_lib.config import grid
from periodic_lib.project import ConfigError
from periodic_lib.results import setup_of

if TYPE_CHECKING:
    from periodic_lib.engine.stack import Stack

MINIMUM_COLUMNS = [
    *("run", "number", "start", "end", "step", "snapshot"),
    *("train_loss", "test_error", "elr_start", "elr"),
]


def find_minima(results: xr.Dataset, **thresholds: float) -> pd.DataFrame:
    """Return one row per stretch between destabilizations: the lowest loss of the training set.

    Stretch 1 is from the start of training to the first destabilization; every other one is a
    period without its phase C. What the record cuts off, after the last destabilization, is left
    out.

    Parameters
    ----------
    results : data set with evaluations (`Record.evaluate_every`).
    thresholds : as `find_destabilizations`.

    Returns
    -------
    table with `run`; `number` of the stretch from 1; its `start` and `end` (steps); the evaluated
    `step` of the minimum, with `train_loss` (full training set) and `test_error`; `elr_start` and
    `elr`, the effective learning rates at the start of the stretch and at the minimum; `snapshot`,
    the snapshot step nearest to the minimum in the second half of the stretch, or nan if none is
    there.

    Raises
    ------
    ConfigError : if the results have no evaluations.
    """
    if "eval_step" not in results.dims:
        raise ConfigError("`results` must have evaluations; train with Record(evaluate_every=...).")
    breaks = find_destabilizations(results, **thresholds)
    rows = []
    for run in results.run.values:
        one, mine = results.sel(run=run), breaks[breaks["run"] == run]
        begins = [results.step.values[0], *mine["end"]]
        pairs = zip(begins, mine["start"], strict=False)
        for number, (start, end) in enumerate(pairs, start=1):
            evaluated = one.sel(eval_step=slice(start, end))
            if evaluated.sizes["eval_step"]:
                best = evaluated.isel(eval_step=int(evaluated.train_loss_full.values.argmin()))
                rows.append((run, number, start, end, *_minimum(one, start, end, best)))
    return as_table(rows, MINIMUM_COLUMNS)


def _minimum(one: xr.Dataset, start: float, end: float, best: xr.Dataset) -> tuple:
    """Return the last six entries of a row of `find_minima`."""
    step = int(best.eval_step)
    kept = one["snapshot_step"].values if "snapshot_step" in one.dims else np.empty(0)
    kept = kept[(kept >= (start + end) / 2) & (kept <= end)]
    snapshot = kept[np.abs(kept - step).argmin()] if len(kept) else np.nan
    elr_start, elr = (float(one.elr.sel(step=at, method="nearest")) for at in (start, step))
    return step, snapshot, float(best.train_loss_full), float(best.test_error), elr_start, elr


# ---------------------------------------------------------------- kept networks


def as_networks(results: xr.Dataset, run: int, directions: np.ndarray, norm: object) -> Stack:
    """Return networks with these directions (networks, weights) and this norm, as one stack.

    `norm`: one number, or one per network, (networks, 1). What is not scale-invariant is that of
    `run`, by its seed: for results whose other parameters are fixed.
    """
    import torch

    from periodic_lib.engine.stack import Stack

    runs = grid(lr=1, weight_decay=0, init_seed=int(results.init_seed.sel(run=run)))
    stack = Stack(setup_of(results), runs * len(directions))
    stack.invariant.copy_(torch.as_tensor(directions * norm))
    return stack


def with_sharpness(minima: pd.DataFrame, results: xr.Dataset) -> pd.DataFrame:
    """Return the minima near which a network was kept, with its `sharpness` and `elr_snapshot`.

    The spherical sharpness of the kept network, and the effective learning rate of its step.
    """
    kept = minima.dropna(subset="snapshot").astype({"snapshot": int})
    kept = kept.assign(sharpness=np.nan, elr_snapshot=np.nan)
    for run, group in kept.groupby("run"):
        one, at = results.sel(run=run), group["snapshot"].to_numpy()
        near = one.sel(step=at, method="nearest")
        directions = one.direction.sel(snapshot_step=at).values
        stack = as_networks(results, run, directions, near.weight_norm.values[:, None])
        kept.loc[group.index, "sharpness"] = stack.sharpness().numpy()
        kept.loc[group.index, "elr_snapshot"] = near.elr.values
    return kept


def directions_of(results: xr.Dataset) -> np.ndarray:
    """Return the directions of all kept networks, (networks, weights): runs one after the other."""
    return results.direction.values.reshape(-1, results.sizes["weight"])


def similarity(results: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return cosine and disagreement of all kept networks with each other, in that order.

    Disagreement: the share of test examples that two networks classify differently.
    """
    w = directions_of(results)
    guess = results.test_logits.values.argmax(axis=-1).reshape(len(w), -1)
    return w @ w.T, np.array([(row != guess).mean(axis=1) for row in guess])


def with_places(kept: pd.DataFrame, results: xr.Dataset) -> pd.DataFrame:
    """Return minima with the `place` of their network in `similarity`, and that of a `middle`.

    The middle is the network kept nearest to the middle of the stretch, before that of the minimum;
    nan if there is none.
    """
    steps = results.snapshot_step.values
    rows = results.indexes["run"].get_indexer(kept["run"]) * len(steps)
    middles = [_middle(steps, row) for row in kept.itertuples()]
    place = rows + results.indexes["snapshot_step"].get_indexer(kept["snapshot"])
    return kept.assign(place=place, middle=rows + np.array(middles))


def _middle(steps: np.ndarray, row: tuple) -> float:
    inside = np.flatnonzero((steps > row.start) & (steps < row.snapshot))
    if not len(inside):
        return np.nan
    return float(inside[np.abs(steps[inside] - (row.start + row.end) / 2).argmin()])


def pair_up(
    kept: pd.DataFrame,
    measures: Mapping[str, np.ndarray],
    most: int = 6,
    others: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """Return pairs of networks, one a row: `run`, the `breaks` between them, and `measures`.

    `breaks`: 0, a minimum and the middle of its own period; 1, 2, ... two minima of a run (`most`:
    so many or more); "independent", a minimum and one of another run, `others` drawn for each.
    `measures`: name -> array (networks, networks), as `similarity` returns.
    """
    rng, inner = np.random.default_rng(seed), kept.dropna(subset="middle")
    rows = [(row.run, 0, row.middle, row.place) for row in inner.itertuples()]
    for run, mine in kept.groupby("run"):
        foreign = kept["place"][kept["run"] != run].to_numpy()
        for one in mine.itertuples():
            for other in mine[mine["number"] > one.number].itertuples():
                rows.append((run, min(other.number - one.number, most), one.place, other.place))
            chosen = rng.integers(0, len(foreign), others) if len(foreign) else []
            rows += [(run, "independent", one.place, foreign[i]) for i in chosen]
    pairs = as_table(rows, ["run", "breaks", "one", "other"])
    at = pairs["one"].to_numpy(int), pairs["other"].to_numpy(int)
    return pairs.assign(**{name: values[at] for name, values in measures.items()})


# ---------------------------------------------------------------- networks together


def chances_of(results: xr.Dataset) -> np.ndarray:
    """Return predicted probabilities of all kept networks, (networks, examples, classes)."""
    logits = results.test_logits.values
    chances = np.exp(logits - logits.max(axis=-1, keepdims=True))
    chances /= chances.sum(axis=-1, keepdims=True)
    return chances.reshape(-1, *chances.shape[2:])


def judge_ensemble(chances: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Return error and loss [nats] of the mean of predicted chances (networks, examples, classes).

    >>> error, loss = judge_ensemble(np.array([[[0.9, 0.1]], [[0.3, 0.7]]]), np.array([0]))
    >>> error, round(loss, 6)
    (0.0, 0.510826)
    """
    mean = chances.mean(axis=0)
    likelihood = mean[np.arange(len(truth)), truth]
    return float((mean.argmax(axis=1) != truth).mean()), float(
        -np.log(likelihood.clip(1e-30)).mean()
    )


def judge_ensembles(
    chances: np.ndarray,
    truth: np.ndarray,
    own: Mapping[int, Sequence[int]],
    sizes: Sequence[int] = tuple(range(1, 9)),
    draws: int = 30,
    seed: int = 1,
) -> pd.DataFrame:
    """Return error and loss of ensembles of minima: one row per ensemble.

    `own`: run -> places of its minima in `chances`. `members`: "one run", `draws` draws of n minima
    of a run (all of them singly for n = 1); "independent runs", ten times as many draws of n runs
    and a minimum of each (`run` is then None, but for n = 1).
    """
    rng, rows = np.random.default_rng(seed), []

    def add(n: int, members: str, run: object, chosen: Sequence[int]) -> None:
        rows.append((n, members, run, *judge_ensemble(chances[list(chosen)], truth)))

    for n in sizes:
        for run, pool in own.items():
            drawn = [
                rng.choice(pool, n, replace=False) for _ in range(draws if n <= len(pool) else 0)
            ]
            for chosen in [[place] for place in pool] if n == 1 else drawn:
                add(n, "one run", run, chosen)
                if n == 1:
                    add(n, "independent runs", run, chosen)
        for _ in range(10 * draws if 1 < n <= len(own) else 0):
            runs = rng.choice(list(own), n, replace=False)
            add(n, "independent runs", None, [rng.choice(own[run]) for run in runs])
    return pd.DataFrame(rows, columns=["n", "members", "run", "error", "loss"])


def judge_periods(
    chances: np.ndarray, truth: np.ndarray, kept: pd.DataFrame, results: xr.Dataset, most: int = 4
) -> pd.DataFrame:
    """Return the same of the last 1 to `most` networks of each period that has more than `most`.

    So that the first of them is no fresh break. `members` is "one period".
    """
    steps, rows = results.snapshot_step.values, []
    for row in kept.itertuples():
        first = results.indexes["run"].get_loc(row.run) * len(steps)
        at = first + np.flatnonzero((steps >= row.start) & (steps <= row.end))
        for n in range(1, most + 1) if len(at) > most else ():
            rows.append((n, "one period", row.run, *judge_ensemble(chances[at[-n:]], truth)))
    return pd.DataFrame(rows, columns=["n", "members", "run", "error", "loss"])


def judge_mean_directions(kept: pd.DataFrame, results: xr.Dataset) -> pd.DataFrame:
    """Return errors of the networks at mean directions, one a row: `run`, `mean direction`, errors.

    Of a minimum alone, with the middle of its period, with the next minimum, and of all minima of a
    run; batch-normalization statistics are re-estimated. Only minima that have a middle.
    """
    directions, rows = directions_of(results), []
    for run, group in kept.dropna(subset="middle").groupby("run"):
        w, before = directions[group["place"]], directions[group["middle"].astype(int)]
        means = {
            "a minimum": w,
            "with the middle of its period": w + before,
            "with the next minimum": w[:-1] + w[1:],
            "of all minima of a run": w.sum(axis=0, keepdims=True),
        }
        norm = float(results.weight_norm.sel(run=run).median())
        for name, mean in means.items():
            if len(mean):
                unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
                found = as_networks(results, run, unit, norm).evaluate().mean(dim=1)
                rows.append((run, name, float(found[1]), float(found[3])))
    return pd.DataFrame(rows, columns=["run", "mean direction", "training error", "test error"])
