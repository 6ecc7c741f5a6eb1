"""The regime of a run, and the run table: what became of each run. NumPy and pandas only."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib.glossary import MISSING
from periodic_lib.periods import (
    balance_ratio,
    count_by_run,
    find_destabilizations,
    find_periods,
    late,
)

EQUILIBRIUM_SHARE = 1 / 2  # of the growth that would balance weight decay
WINDOW = 0.1  # of ln rho^2: what weight decay takes in the window of the budget
GUESSING_SHARE = 9 / 10  # of guessing's error
ALWAYS_SHOWN = ("lr", "weight_decay", "init_seed")  # in the run table; others if they vary


def classify_regime(results: xr.Dataset) -> xr.DataArray:
    """Return the regime of every run: "convergence", "periodic", "equilibrium" or "divergence".

    Judged on the second half of the record (`late`), in this order:

    - "divergence": a loss of the whole record is not finite, or training is no better than
      guessing: the median training error is at least 9/10 of guessing's, which is 1 - 1 / classes;
    - "equilibrium": the typical step pays its share, that is, makes the norm grow by at least half
      of what weight decay takes from it: the median of the squared balance ratio is at least 1/2;
    - "periodic": the whole record has a destabilization (a new period began);
    - "equilibrium", too: without one, the norm holds all the same: growth, summed over the steps,
      made up for at least half of the decay;
    - "convergence": none of these; the norm shrinks (or stands still, without weight decay) and the
      loss falls, so far.

    The training error is that of the late evaluations, `train_error` (run, eval_step); the number
    of classes is `results.attrs["classes"]`. Where either is missing only a loss that is not finite
    tells divergence: a high one does not, since the loss of a network that guesses depends on the
    norm of its last layer (3.65 nats at norm 10, not ln 10).

    Periods become shorter and shallower as lr * weight_decay grows, without a gap before
    equilibrium: one half is where we cut. On runs labelled by eye it agrees with the eye
    (tests/labelled), except where a network cannot lower its loss far: then no break raises it by
    the factor that counts, and what the eye calls periods is "equilibrium"; and where a high loss
    looks like guessing, but the error says that the network tells more than that.
    """
    return _along_runs(_judge(results)["regime"].to_numpy(str), results, "regime")


def _judge(results: xr.Dataset) -> pd.DataFrame:
    """Return `regime` and `margin` of every run: the first criterion that is met decides.

    The margin is the smallest |ln(value / threshold)| of the criteria that had to be looked at.
    """
    names = {"guesses": "divergence", "balanced": "equilibrium", "breaks": "periodic"}
    names |= {"holds": "equilibrium"}
    values = _criteria(results)
    met = values >= 1
    regimes = np.select([met[name] for name in names], [*names.values()], default="convergence")
    decided_before = met.cumsum(axis=1).shift(axis=1, fill_value=0) > 0
    with np.errstate(divide="ignore"):
        distances = np.log(values).abs().mask(decided_before)
    return pd.DataFrame({"regime": regimes, "margin": distances.min(axis=1)}, index=values.index)


def _criteria(results: xr.Dataset) -> pd.DataFrame:
    """Return what decides on a run's regime, in order, each over its threshold (nan: not known)."""
    second, decays = late(results), results.lr * results.weight_decay > 0
    balance = np.square(balance_ratio(second)).median("step").where(decays)
    holds = _growth_over_decay(second).clip(min=0).where(decays)
    breaks = count_by_run(find_destabilizations(_finite(results)), results)
    return pd.DataFrame(
        {
            "guesses": _error_over_guessing(results),
            "balanced": balance.values / EQUILIBRIUM_SHARE,
            "breaks": breaks / 0.5,  # one is enough: the threshold lies between none and one
            "holds": holds.values / EQUILIBRIUM_SHARE,
        },
        index=breaks.index,
    )


def _error_over_guessing(results: xr.Dataset) -> np.ndarray:
    """Return late training error over its threshold; inf after a loss that is not finite."""
    second, classes = late(results), results.attrs.get("classes")
    known = classes and "train_error" in second and second.sizes["eval_step"]
    share = np.full(results.sizes["run"], np.nan)
    if known:
        share = second.train_error.median("eval_step") / (GUESSING_SHARE * (1 - 1 / classes))
    return np.where(np.isfinite(results.train_loss).all("step"), share, np.inf)


def _finite(results: xr.Dataset) -> xr.Dataset:
    """Return the runs whose losses are all finite: in others there is nothing to look for."""
    return results.isel(run=np.isfinite(results.train_loss).all("step").values)


def _growth_over_decay(results: xr.Dataset) -> xr.DataArray:
    """Return growth over decay of the norm from first to last: 1 + (change of ln rho^2) / decay."""
    norm, steps = results.weight_norm, float(results.step[-1] - results.step[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        decay = -2 * steps * np.log1p(-results.lr * results.weight_decay)
        growth = norm.isel(step=-1, drop=True) / norm.isel(step=0, drop=True)
        return 1 + 2 * np.log(growth) / decay


def window_budget(results: xr.Dataset, span: float = WINDOW) -> xr.DataArray:
    r"""Return b, (run,): does the norm hold while weight decay takes a tenth of its square?

    b = median over t of 1 + (ln rho^2(t') - ln rho^2(t)) / (D(t') - D(t)),
    D(t) = -sum_{s<t} 2 ln(1 - eta_s lambda / (1 - mu)),
    over the second half of the record (`late`), with t' the first record by which weight decay
    alone would have taken `span` from ln rho^2. Near 1 in equilibrium, whatever the noise of single
    steps; near 0 while the norm decays freely, for most of a period therefore. Only the norm is
    needed, and it may be recorded now and then.

    A record in which weight decay takes less than twice the span is judged over half of itself. nan
    where weight decay does not set the pace: without it, at a fixed norm, and in Adam's gradient.

    >>> norm, zero = 3 * 0.999 ** np.arange(1000), ("run", [0.0])
    >>> free = xr.Dataset({"weight_norm": (("run", "step"), [norm])}, {"step": np.arange(1000)})
    >>> free = free.assign(elr=0.1 / free.weight_norm**2).assign_coords(momentum=zero)
    >>> abs(float(window_budget(free.assign_coords(weight_decay=("run", [0.01])))[0])) < 1e-9
    True
    """
    setup = json.loads(results.attrs.get("setup", "{}"))
    paced = setup.get("optimizer") != "adam" and setup.get("fixed_norm") is None
    second, budgets = late(results), np.full(results.sizes["run"], np.nan)
    momentum = results.get("momentum", xr.zeros_like(results.weight_decay))
    for run in range(results.sizes["run"]) if paced else ():
        one = second.isel(run=run)
        rate = one.elr * one.weight_norm**2 * one.weight_decay / (1 - momentum[run])
        budgets[run] = _budget(one.weight_norm.values, rate.values, one.step.values, span)
    return _along_runs(budgets, results, "window_budget")


def _budget(norm: np.ndarray, rate: np.ndarray, steps: np.ndarray, span: float) -> float:
    """Return the window budget of one run; `rate`: eta lambda / (1 - mu) of every record."""
    if not (np.isfinite(norm).all() and ((rate > 0) & (rate < 1)).all()):
        return np.nan
    taken = np.append(0, np.cumsum(-2 * np.log1p(-rate[:-1]) * np.diff(steps)))
    span = min(span, taken[-1] / 2)
    after = np.searchsorted(taken, taken + span * (1 - 1e-9))
    inside = np.flatnonzero(after < len(taken))
    after, level = after[inside], 2 * np.log(norm)
    return float(np.median(1 + (level[after] - level[inside]) / (taken[after] - taken[inside])))


def _along_runs(values: Sequence, results: xr.Dataset, name: str) -> xr.DataArray:
    """Return one value for every run, with the coordinates of the runs."""
    places = {key: one for key, one in results.coords.items() if one.dims == ("run",)}
    return xr.DataArray(np.asarray(values), places, "run", name=name)


# ---------------------------------------------------------------- the run table


def summarize(results: xr.Dataset) -> pd.DataFrame:
    """Return the run table: one row per run, its parameters and what became of it.

    Returns
    -------
    table with index `run` and the columns

    - `lr`, `weight_decay`, `init_seed`, and other parameters in which the runs differ;
    - `lr_wd`, learning rate times weight decay;
    - `regime` (`classify_regime`) and `margin`, how far the run is from another regime: the
      smallest |ln(value / threshold)| of the criteria up to the one that decided. It is inf for a
      loss that is not finite; a break that has not come yet is not seen;
    - `destabilizations`, their number (0 where the loss is not finite), and `median_period` (steps;
      nan without a complete one);
    - `late_loss`, `late_norm`, `late_elr`: medians of training loss, weight norm and effective
      learning rate over the second half of the record (`late`);
    - `balance`: that of the squared balance ratio; `window_budget`, how much of what weight decay
      takes the norm gets back within a window (`window_budget`);
    - where evaluated `train_loss_full`, `train_error`, `test_error`, at the end.

    The balance holds for SGD without momentum: else regime is "–", margin and balance are nan.
    """
    finite, second = _finite(results), late(results)
    runs = pd.Index(results.run.values, name="run")
    table = pd.DataFrame(_parameters(results), index=runs)
    table["lr_wd"] = (results.lr * results.weight_decay).values.round(12)
    plain = _is_plain_sgd(results)
    judged = _judge(results)
    table["regime"] = judged.regime.where(plain, MISSING)
    table["margin"] = judged.margin.where(plain)
    table["destabilizations"] = count_by_run(find_destabilizations(finite), results)
    table["median_period"] = find_periods(finite).groupby("run")["length"].median()
    for short, name in (("loss", "train_loss"), ("norm", "weight_norm"), ("elr", "elr")):
        table[f"late_{short}"] = second[name].median("step").values
    balance = np.square(balance_ratio(second)).median("step").values
    table["balance"] = pd.Series(balance, runs).where(plain)
    table["window_budget"] = window_budget(results).values
    for name in ("train_loss_full", "train_error", "test_error"):
        if name in results:
            table[name] = results[name].isel(eval_step=-1).values
    return table


def _parameters(results: xr.Dataset) -> dict[str, np.ndarray]:
    """Return the parameters that tell runs apart, and those that are always shown."""
    columns = {n: v.values for n, v in results.coords.items() if n != "run" and v.dims == ("run",)}
    first = {name: columns.pop(name) for name in ALWAYS_SHOWN if name in columns}
    columns.pop("lr_wd", None)
    return first | {n: v for n, v in columns.items() if pd.Series(v).nunique(dropna=False) > 1}


def _is_plain_sgd(results: xr.Dataset) -> np.ndarray:
    """Return, per run, whether the balance that regimes rest on holds: SGD without momentum."""
    optimizer = json.loads(results.attrs.get("setup", "{}")).get("optimizer", "sgd")
    momentum = results["momentum"].values if "momentum" in results.coords else 0.0
    return np.broadcast_to((np.asarray(momentum) == 0) & (optimizer == "sgd"), results.run.shape)
