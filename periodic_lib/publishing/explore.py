"""What a reader explores on a page: a run step by step, and guesses of its next break.

Plain numbers and text, which `Chapter.embed` keeps and the book's script explore.js shows.
"""

from __future__ import annotations

import json

import numpy as np
import xarray as xr

from periodic_lib import glossary
from periodic_lib.analysis import forecasts
from periodic_lib.analysis.levels import passages
from periodic_lib.analysis.periods import label_phases
from periodic_lib.checks import integer
from periodic_lib.project import ConfigError

SERIES = ("train_loss", "weight_norm", "eff_grad_norm", "elr")
DIGITS = 4  # significant ones that a page gets
LARGEST = 30_000  # characters of what is embedded


def step_by_step(results: xr.Dataset, first: int, last: int) -> dict:
    """Return loss, weight norm, effective gradient norm and effective learning rate of one run.

    Parameters
    ----------
    results : data set of one run, every step recorded.
    first, last : the steps that are shown, both included.

    Returns
    -------
    `first`; `phases`, a letter per step ("-": none); `series`, a list of `label` and `values`.

    Raises
    ------
    ConfigError : if there is not exactly one run, or a step was not recorded.

    >>> norm = np.exp(-0.01 * np.arange(5.0))
    >>> runs = {"run": [0], "step": np.arange(5), "lr": ("run", [0.1])}
    >>> data = xr.Dataset({name: (("run", "step"), [norm]) for name in SERIES}, runs)
    >>> step_by_step(data, 1, 3)["series"][1]["values"]
    [0.99, 0.9802, 0.9704]
    """
    _one_run(results)
    steps = np.arange(first, last + 1)
    missing = np.setdiff1d(steps, results.step)
    if not steps.size or missing.size:
        low, high = int(results.step.min()), int(results.step.max())
        raise ConfigError(
            f"`first` and `last` must lie within the steps recorded, {low} to {high}; "
            f"got {first} and {last}."
        )
    phases = label_phases(results)[0].sel(step=steps).values
    shown = results.isel(run=0).sel(step=steps)
    series = [{"label": glossary.label(n), "values": rounded(shown[n].values)} for n in SERIES]
    return {"first": first, "phases": "".join(p or "-" for p in phases), "series": series}


def next_breaks(results: xr.Dataset, rounds: int = 6, points: int = 600) -> dict:
    """Return what is asked of a reader at the start of each of the next passages of one run.

    Parameters
    ----------
    results : data set of one run, every step recorded.
    rounds : how many passages are asked for, at most: the first that have a forecast.
    points : of the weight norm shown, about.

    Returns
    -------
    `step` and `norm`, from the first passage to the end of the last one asked for; `rounds`, a list
    of `begin` and `length` of the passage, and the forecasts made at its begin (steps): `clock`, as
    long as the passages before, `level` and `not_before` (`forecasts.back_test`).

    Raises
    ------
    ConfigError : if there is not exactly one run, or `rounds` or `points` is none from 1 on.
    """
    _one_run(results)
    rounds = integer("rounds", rounds, "a whole number from 1 on", 1)
    points = integer("points", points, "a whole number from 1 on", 1)
    made = forecasts.back_test_runs(results)
    made = made[made.fraction == 0].head(rounds)
    found = passages(results).dropna(subset="next").reset_index()
    begins = found.end[made.number.astype(int)].to_numpy()
    asked = made[["length", "clock", "level", "not_before"]].round(1).to_dict("records")
    asked = [{"begin": int(at), **one} for at, one in zip(begins, asked, strict=True)]
    if not asked:
        return {"step": [], "norm": [], "rounds": []}
    end = asked[-1]["begin"] + int(asked[-1]["length"])
    stride = max(1, (end - int(found.end[0])) // points)
    ends = np.concatenate([found.end, found.end + found.steps]).astype(int)
    steps = np.union1d(np.arange(int(found.end[0]), end, stride), ends[ends <= end])
    norm = results.weight_norm.isel(run=0).sel(step=steps).values
    return {"step": steps.tolist(), "norm": rounded(norm), "rounds": asked}


def rounded(values: np.ndarray, digits: int = DIGITS) -> list[float]:
    """Return numbers rounded to significant digits.

    >>> rounded(np.array([0.00123456, 12345.6]))
    [0.001235, 12350.0]
    """
    return [float(f"{value:.{digits}g}") for value in np.asarray(values, float)]


def as_text(data: dict) -> str:
    """Return what is embedded, as JSON without blanks.

    Raises
    ------
    ConfigError : if a number is not finite, or the text is longer than `LARGEST`.

    >>> as_text({"norm": [1.5, 2.0]})
    '{"norm":[1.5,2.0]}'
    """
    try:
        text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise ConfigError("`data` must have finite numbers only, for a page.") from error
    if len(text) > LARGEST:
        raise ConfigError(
            f"`data` must have at most {LARGEST} characters, for a page; got {len(text)}: "
            "take fewer steps or points."
        )
    return text


def _one_run(results: xr.Dataset) -> None:
    if results.sizes["run"] != 1:
        raise ConfigError(f"`results` must have exactly one run; got {results.sizes['run']}.")
