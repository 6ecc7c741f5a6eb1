r"""Can the regime of a run be told from its first steps? Signs, and how well they rank runs.

Every sign is written so that *larger speaks for equilibrium*. A score is judged by the area under
the curve (AUC): the chance that of two runs, one in equilibrium and one not, it ranks the first
higher; 1/2 is guessing. Intervals draw settings, not runs: seeds of one setting share their fate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib import theory
from periodic_lib.analysis.equilibria import rms
from periodic_lib.analysis.periods import balance_ratio, find_destabilizations
from periodic_lib.analysis.regimes import UNDECIDED, summarize, window_budget
from periodic_lib.analysis.spreads import area_under_curve

SLOWEST = 1e-5  # e-foldings of the gradient a step: its fall is not told from none
SIGNS = ("lr × wd", "balance ratio", "balance ratio, trend", "l / L", "loss", "loss, trend", "race")
HELD = "window budget"  # persistence: what decides the regime later, taken early


def outcomes(name: str, data: xr.Dataset) -> pd.DataFrame:
    """Return what became of every run: the run table, and what an early sign has to tell.

    Added are `set` (`name`), `setting` (set, learning rate and weight decay), `held` (the regime is
    "equilibrium"), `decided` (its margin is at least 0.1) and `first`, the step of the first break.
    """
    table = summarize(data).assign(set=name)
    pairs = zip(table.lr, table.weight_decay, strict=True)
    table["setting"] = [f"{name} {lr:g} {wd:g}" for lr, wd in pairs]
    table["held"] = table.regime == "equilibrium"
    table["decided"] = ~(table.margin < UNDECIDED)
    table["first"] = find_destabilizations(data).groupby("run")["start"].min()
    return table


def signs(data: xr.Dataset, seen: int) -> pd.DataFrame:
    r"""Return the signs of every run in its first `seen` steps, and `window budget`.

    With medians over the second half of these steps, and as "trend" those of the last quarter over
    those of the second: the balance ratio; the loss of the batches; l / L, the smallest over the
    largest effective gradient norm, averaged over epochs; "race", 2 eta lambda over the rate at
    which ln g~ falls. At balance rho^4 ~ g~^2, and rho^4 cannot fall faster than exp(-4 eta lambda
    t): the norm follows a falling gradient only if the race is above 1. The window budget
    (`window_budget`) is that of the second half.
    """
    first = data.isel(step=slice(0, seen))
    lr_wd = (data.lr * data.weight_decay).values

    def level(values: xr.DataArray, begin: float, end: float = 1) -> np.ndarray:
        return values.isel(step=slice(int(begin * seen), int(end * seen))).median("step").values

    def trend(values: xr.DataArray) -> np.ndarray:
        return level(values, 0.75) / level(values, 0.25, 0.5)

    ratio, loss = balance_ratio(first), first.train_loss
    epochs = first.eff_grad_norm.rolling(step=min(seen, data.attrs["steps_per_epoch"])).mean()
    falls = -np.log(trend(epochs)) / (seen / 2)  # a step
    found = (
        *(lr_wd, level(ratio, 0.5), trend(ratio), (epochs.min("step") / epochs.max("step")).values),
        *(level(loss, 0.5), trend(loss), 2 * lr_wd / np.maximum(falls, SLOWEST)),
    )
    table = pd.DataFrame(dict(zip(SIGNS, found, strict=True)), data.run.values)
    return table.assign(**{HELD: window_budget(first).values})


def early_chi(short: xr.Dataset, seen: int) -> pd.DataFrame:
    r"""Return 1 / chi after `seen` steps, with the parameters of each run to merge by.

    chi = sqrt(2 eta lambda) h / (2 G), with the sharpness measured last and G the root mean square
    effective gradient norm of the second half of the steps.
    """
    gradient = rms(short.eff_grad_norm.isel(step=slice(seen // 2, seen)))
    sharpness = short.sharpness.isel(curvature_step=-1)
    chi = theory.balance_to_edge(short.lr, short.weight_decay, gradient, sharpness)
    parameters = {n: short[n].values for n in ("lr", "weight_decay", "init_seed")}
    return pd.DataFrame(parameters | {"1 / χ": 1 / chi})


def collect(sets: Mapping[str, xr.Dataset], seen: int, undecided: bool = False) -> pd.DataFrame:
    """Return outcomes and signs of the runs of some results that had not broken by then.

    Runs whose regime is undecided are left out unless `undecided`.
    """
    tables = [outcomes(name, data).join(signs(data, seen)) for name, data in sets.items()]
    table = pd.concat(tables, ignore_index=True)
    return table[(table.decided | undecided) & ~(table["first"] < seen)].reset_index(drop=True)


def counts(known: pd.DataFrame, left: pd.DataFrame, seen: int) -> pd.DataFrame:
    """Return a row per set: how many runs it has, and what became of them.

    `known`: `outcomes` of all; `left`: those that `collect` kept. Columns `set`, `runs`, `broken`
    (within `seen` steps), `undecided`, and of those kept `equilibrium` and `not`.

    >>> known = pd.DataFrame({"set": ["a"] * 3, "first": [5, 99, np.nan], "decided": True})
    >>> left = pd.DataFrame({"set": ["a"] * 2, "held": [True, False]})
    >>> counts(known, left, seen=80).values.tolist()
    [['a', 3, 1, 0, 1, 1]]
    """
    flags = {"runs": 1, "broken": known["first"] < seen, "undecided": ~known["decided"]}
    table = known[["set"]].assign(**flags).groupby("set", sort=False).sum()
    kept = left[["set"]].assign(equilibrium=left["held"], **{"not": ~left["held"]})
    return table.join(kept.groupby("set").sum()).reset_index()


def together(fit: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
    """Return the log odds of equilibrium of the runs of `test`, set on those of `fit`.

    Logistic regression on the standardized logarithms of `SIGNS`. Where all of `fit` share one
    outcome there is nothing to learn: zeros.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if fit.held.nunique() < 2:
        return np.zeros(len(test))
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(np.log(fit[[*SIGNS]]), fit.held)
    return model.decision_function(np.log(test[[*SIGNS]]))


def areas(
    table: pd.DataFrame,
    names: Sequence[str],
    against: Sequence[str] = (),
    level: float = 0.95,
    draws: int = 1000,
) -> pd.DataFrame:
    """Return the area under the curve of some scores, with bootstrap intervals.

    Parameters
    ----------
    table : columns `held`, `setting`, and the scores.
    against : for each of these scores, also the difference of every area to its area. The
        difference is taken draw by draw: both scores see the same settings.

    Returns
    -------
    table with index `names`, columns `area`, `low`, `high`, and for each of `against` "minus
    <score>", its `low` and `high` with the same words behind. A draw whose outcomes are all alike
    is left out.
    """
    groups = list(table.groupby("setting").indices.values())
    random, drawn = np.random.default_rng(0), []
    for _ in range(draws if table.held.nunique() == 2 else 0):
        picked = np.concatenate([groups[i] for i in random.integers(0, len(groups), len(groups))])
        part = table.iloc[picked]
        drawn.append(area_under_curve(part.held, part[[*names]]))
    drawn = pd.DataFrame(drawn, columns=list(names), dtype=float).dropna()
    found = pd.Series(area_under_curve(table.held, table[[*names]]), [*names])
    rows = pd.DataFrame({"area": found} | _ends("", drawn, level))
    for other in against:
        rows[f"minus {other}"] = found - found[other]
        ends = _ends(f"minus {other}, ", drawn.sub(drawn[other], axis=0), level)
        rows = rows.assign(**ends)
    return rows


def _ends(prefix: str, drawn: pd.DataFrame, level: float) -> dict[str, pd.Series]:
    tail = (1 - level) / 2
    return {f"{prefix}low": drawn.quantile(tail), f"{prefix}high": drawn.quantile(1 - tail)}


def said(row: pd.Series, against: str | None = None) -> str:
    """Return one row of `areas` in words: the area, or its difference to another score's.

    >>> said(pd.Series({"area": 0.9, "low": 0.8, "high": 0.95}))
    'AUC 0.90 (0.80 to 0.95)'
    """
    if against is None:
        return f"AUC {row.area:.2f} ({row.low:.2f} to {row.high:.2f})"
    name = f"minus {against}"
    ends = row[f"{name}, low"], row[f"{name}, high"]
    return f"{name} {row[name]:+.2f} ({ends[0]:+.2f} to {ends[1]:+.2f})"


def in_words(areas: pd.DataFrame, against: Sequence[str]) -> pd.DataFrame:
    """Return `areas` as a table of text: `score`, `AUC`, `95 % interval`, and the differences."""
    rows = []
    for name, row in areas.iterrows():
        interval = f"{row.low:.2f} to {row.high:.2f}"
        text = {"score": name, "AUC": f"{row.area:.2f}", "95 % interval": interval}
        for other in against:
            known = name != other and np.isfinite(row[f"minus {other}"])
            text[f"minus {other}"] = said(row, other).split(other)[1].strip() if known else None
        rows.append(text)
    return pd.DataFrame(rows)
