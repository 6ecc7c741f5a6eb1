"""The regime of a run, and the run table: what became of each run. NumPy and pandas only."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib.analysis.periods import balance_ratio, find_destabilizations, late
from periodic_lib.analysis.spreads import variation
from periodic_lib.glossary import MISSING

GUESSING_SHARE = 9 / 10  # of guessing's error
BUDGET_BORDER = 0.53  # of the window budget, by the design labels: tests/labelled/README.md
WINDOW = 0.1  # of ln rho^2: what weight decay takes in the window of the budget
UNDECIDED = 0.1  # margin below which a run's regime is not decided
REGULAR = 0.7  # coefficient of variation of the spacings of breaks
FEW_BREAKS = ("convergence", "one break", "two breaks")  # by their number
REGIMES = ("divergence", "equilibrium", "periodic", "irregular breaks", *FEW_BREAKS)
ALWAYS_SHOWN = ("lr", "weight_decay", "init_seed")  # in the run table; others if they vary


def classify_regime(results: xr.Dataset) -> xr.DataArray:
    """Return the regime of every run, a word of `REGIMES`.

    In this order:

    - "divergence": a loss of the whole record is not finite, or training is no better than
      guessing: the median training error of the second half of the record (`late`) is at least 9/10
      of guessing's, which is 1 - 1 / classes;
    - "equilibrium": the norm holds over a fraction of its memory: the window budget of the second
      half (`window_budget`) is at least 0.53;
    - by the breaks of the whole record (`find_destabilizations`) and the spacings between them:
      "periodic", at least three whose spacings have a coefficient of variation below 0.7;
      "irregular breaks", at least three else; "two breaks"; "one break";
    - "convergence": no break. The norm shrinks (or stands still, without weight decay), so far.

    The words are a convention on numbers that have no gap: `summarize` has the numbers, and how far
    a run is from another word. The border of the budget was chosen on runs labelled by eye; on 112
    others, of networks and data off the map, labelled before the judge was run on them, it agrees
    with the eye on 98, and on 70 of the 71 that the eye had decided (tests/labelled).

    The training error is that of the late evaluations, `train_error` (run, eval_step); the number
    of classes is `results.attrs["classes"]`. Where either is missing only a loss that is not finite
    tells divergence: a high one does not, since the loss of a network that guesses depends on the
    norm of its last layer (3.65 nats at norm 10, not ln 10). Where weight decay does not set the
    pace (Adam with the decay in its gradient, a fixed norm) breaks alone decide.
    """
    return _along_runs(_judge(results)["regime"].to_numpy(str), results, "regime")


def _judge(results: xr.Dataset) -> pd.DataFrame:
    """Return `regime` of every run, `margin`, how far it is from another one, and what both rest
    on: `window_budget` and `spacings`, those of its breaks, an array (nan without a break).

    The margin is the smallest |value / border - 1| of the criteria that had to be looked at.
    """
    spacings = find_destabilizations(_finite(results)).groupby("run")["start"].apply(np.diff)
    table = pd.DataFrame(index=pd.Index(results.run.values, name="run"))
    table["window_budget"] = window_budget(results).values
    table["spacings"] = spacings.reindex(table.index)
    rows = zip(_error_over_guessing(results), table.window_budget, table.spacings, strict=True)
    words = pd.DataFrame(
        [_word_and_margin(*row) for row in rows], table.index, ["regime", "margin"]
    )
    return words.join(table)


def _word_and_margin(guesses: float, budget: float, spacings: object) -> tuple[str, float]:
    """Return one run's regime and margin; `spacings`: of its breaks, nan without any."""
    margins = [abs(guesses - 1), abs(budget / BUDGET_BORDER - 1)]
    if guesses >= 1:
        return "divergence", margins[0]
    if budget / BUDGET_BORDER >= 1:
        return "equilibrium", float(np.nanmin(margins))
    breaks = _number(spacings)
    borders = np.array([0.5, 1.5, 2.5])
    margins.append(np.abs(breaks / borders - 1).min())
    if breaks < len(FEW_BREAKS):
        return FEW_BREAKS[breaks], float(np.nanmin(margins))
    irregular = variation(spacings) / REGULAR
    margins.append(abs(irregular - 1))
    return "periodic" if irregular < 1 else "irregular breaks", float(np.nanmin(margins))


def _number(spacings: object) -> int:
    """Return the number of breaks that have these spacings; nan: none."""
    return len(spacings) + 1 if isinstance(spacings, np.ndarray) else 0


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

    Its index is `run`; its columns are

    - `lr`, `weight_decay`, `init_seed`, and other parameters in which the runs differ;
    - `lr_wd`, learning rate times weight decay;
    - `regime` (`classify_regime`) and `margin`, how far the run is from another regime: the
      smallest |value / border - 1| of the criteria up to the one that decided. It is inf for a loss
      that is not finite; a break that has not come yet is not seen;
    - `destabilizations`, their number (0 where the loss is not finite), `median_period` (steps; nan
      without a complete one) and `variation`, the coefficient of variation of the periods (nan with
      fewer than two);
    - `late_loss`, `late_norm`, `late_elr`: medians of training loss, weight norm and effective
      learning rate over the second half of the record (`late`);
    - `window_budget`, how much of what weight decay takes the norm gets back within a window
      (`window_budget`), and `balance`, the median of the squared balance ratio over late steps;
    - where evaluated `train_loss_full`, `train_error`, `test_error`, at the end.

    The balance holds for SGD without momentum: else it is nan. Where weight decay does not set the
    pace and nothing breaks, regime is "–" and margin nan.
    """
    second = late(results)
    runs = pd.Index(results.run.values, name="run")
    table = pd.DataFrame(_parameters(results), index=runs)
    table["lr_wd"] = (results.lr * results.weight_decay).values.round(12)
    judged = _judge(results)
    unknown = judged.window_budget.isna() & (judged.regime == "convergence") & (table.lr_wd > 0)
    table["regime"] = judged.regime.mask(unknown, MISSING)
    table["margin"] = judged.margin.mask(unknown)
    table["destabilizations"] = judged.spacings.map(_number)
    lengths = judged.spacings[table.destabilizations > 1]
    table["median_period"] = lengths.map(np.median).astype(float)
    table["variation"] = lengths[table.destabilizations > 2].map(variation).astype(float)
    for short, name in (("loss", "train_loss"), ("norm", "weight_norm"), ("elr", "elr")):
        table[f"late_{short}"] = second[name].median("step").values
    balance = np.square(balance_ratio(second)).median("step").values
    table["window_budget"] = judged.window_budget
    table["balance"] = pd.Series(balance, runs).where(_is_plain_sgd(results))
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
