"""What is in a period, and in a break: per phase, per layer, per unit of intrinsic time."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib import theory
from periodic_lib.analysis import budgets
from periodic_lib.analysis.breaks import QUIET, around, take_off
from periodic_lib.analysis.periods import (
    PHASES,
    as_table,
    balance_ratio,
    find_destabilizations,
    find_periods,
    label_phases,
)

FIFTH = 5  # a phase's loss at an end is its mean over a fifth of it
PHASE_COLUMNS = ["run", "start", "phase", "steps", "change", "growth", "share"]
TIMES = np.geomspace(0.1, 20, 12)  # intrinsic time since a restart


def _per_step(results: xr.Dataset) -> dict[int, pd.DataFrame]:
    """Return, for every run, ln loss, ln rho^2, growth and phase of every step."""
    columns = {"log_loss": np.log(results.train_loss), "elr": results.elr}
    columns["growth"] = budgets.growth(results)
    columns |= {"level": 2 * np.log(results.weight_norm), "phase": label_phases(results)}
    data = xr.Dataset(columns).reset_coords(drop=True)
    return {run: data.sel(run=run).to_dataframe() for run in results.run.values}


def phase_table(results: xr.Dataset) -> pd.DataFrame:
    r"""Return one row per phase of every complete period.

    `run`; `start` of the period; `phase`; `steps` spent in it; `change`, of ln loss from the mean
    over its first fifth to that over its last; `growth`, its part of the outward side of the
    log-norm budget, sum of ln(1 + tan^2 alpha), and `share`, that over the whole period's.
    """
    steps, rows = _per_step(results), []
    for period in find_periods(results).itertuples():
        inside = steps[period.run].loc[period.start : period.end - 1]
        for phase, part in inside.groupby("phase"):
            n = max(1, len(part) // FIFTH)
            change = part.log_loss[-n:].mean() - part.log_loss[:n].mean()
            grown = part.growth.sum()
            share = grown / inside.growth.sum()
            rows.append((period.run, period.start, phase, len(part), change, grown, share))
    return as_table(rows, PHASE_COLUMNS)


def has_three_phases(counted: pd.DataFrame) -> pd.Series:
    """Return, per run, whether its median period is long in A and falls, rises in B, is short in C.

    `counted`: a `phase_table`. A takes more steps than B, B more than C, and the loss falls in A
    and rises in B.
    """
    steps, change = (_by_phase(counted, of, "median") for of in ("steps", "change"))
    order = (steps.A > steps.B) & (steps.B > steps.C)
    return order & (change.A < 0) & (change.B > 0)


def phase_c(counted: pd.DataFrame) -> pd.DataFrame:
    """Return, per run, phase C's shares of the `steps` and of the `growth` of its periods."""
    parts = {of: _by_phase(counted, of, "sum") for of in ("steps", "growth")}
    return pd.DataFrame({of: part.C / part.sum(axis=1) for of, part in parts.items()})


def _by_phase(counted: pd.DataFrame, of: str, how: str) -> pd.DataFrame:
    """Return a column of a `phase_table`, one row a run, one column a phase."""
    wide = counted.pivot_table(of, "run", "phase", how) if len(counted) else pd.DataFrame()
    return wide.reindex(columns=PHASES).astype(float)


def quiet_decay(results: xr.Dataset) -> pd.DataFrame:
    """Return, per complete period, the decay of ln rho^2 in the second half of phase A.

    `decay`, the slope of a straight line, is in units of free decay, 2 lr wd a step: 1 if no
    gradient pays anything back. Columns `run`, `decay`.
    """
    steps, rows = _per_step(results), []
    lr_wd = (results.lr * results.weight_decay).to_series()
    for period in find_periods(results).itertuples():
        inside = steps[period.run].loc[period.start : period.end - 1]
        quiet = inside.level[inside.phase == "A"]
        quiet = quiet[len(quiet) // 2 :]
        if len(quiet) > 1:
            slope = np.polyfit(quiet.index, quiet, 1)[0]
            rows.append((period.run, -slope / (2 * lr_wd[period.run])))
    return as_table(rows, ["run", "decay"])


def loss_against_time(results: xr.Dataset, edges: Iterable[float] = TIMES) -> pd.DataFrame:
    r"""Return geometric means of loss and intrinsic time tau, in bins of tau, for every period.

    tau = sum of the effective learning rate over the steps since the break that opened the period
    was over. Columns `period`, `bin`, `loss`, `tau`, `product`; bins with fewer than three steps
    are left out.
    """
    steps, rows, edges = _per_step(results), [], np.asarray(list(edges))
    ends = find_destabilizations(results).set_index(["run", "start"])["end"]
    for period in find_periods(results).itertuples():
        after = steps[period.run].loc[ends[period.run, period.start] : period.end - 1]
        tau = theory.intrinsic_time(after.elr.to_numpy())
        path = pd.DataFrame({"loss": after.log_loss.to_numpy(), "tau": np.log(tau)})
        bins = path.groupby(np.digitize(tau, edges))
        means = np.exp(bins.mean())[bins.size() > 2].loc[1 : len(edges) - 1]
        rows += [(period.Index, *row, row[1] * row[2]) for row in means.itertuples()]
    return as_table(rows, ["period", "bin", "loss", "tau", "product"])


def break_table(results: xr.Dataset, breaks: pd.DataFrame) -> pd.DataFrame:
    """Return one row per break: when loss and gradient take off, how fast, and in which layer.

    `loss`, `gradient`, `first_layer`, `last_layer` (by their turn): the first step from the norm's
    minimum beyond all of the quiet 50 (those 60 to 11 steps before); `growth`, of the angular
    update per step, from the step before the minimum to the one after; `lead`, how far the first
    layer turns in units of the last one's turn at the minimum; `lead_before`, the median of that
    over the quiet 50.
    """
    turns, near = results.layer_angular_update, range(-10, 11)
    lead = turns.isel(layer=0) / turns.isel(layer=-1)
    total = around(balance_ratio(results), breaks, [-1, 1])
    return pd.DataFrame(
        {
            "run": breaks["run"].to_numpy(int),
            "loss": take_off(results.train_loss, breaks, near).values,
            "gradient": take_off(results.eff_grad_norm, breaks, near).values,
            "first_layer": take_off(turns.isel(layer=0), breaks, near).values,
            "last_layer": take_off(turns.isel(layer=-1), breaks, near).values,
            "growth": np.sqrt(total.isel(shift=1) / total.isel(shift=0)).values,
            "lead": around(lead, breaks, [0]).isel(shift=0).values,
            "lead_before": around(lead, breaks, QUIET).median("shift").values,
        }
    )


def layer_rises(results: xr.Dataset, breaks: pd.DataFrame) -> pd.DataFrame:
    r"""Return, per break, by how much it raises the ln rho_l^2 of every layer l.

    One row per break, one column per layer: 2 ln(rho_l(end) / rho_l(start)), from the minimum of
    the norm of all scale-invariant weights to the end of its rise. Needs `Record(layers=True)`.
    """
    levels = 2 * np.log(results.layer_weight_norm)
    at = xr.Dataset.from_dataframe(breaks[["run", "start", "end"]].reset_index(drop=True))
    rises = levels.sel(run=at.run, step=at.end) - levels.sel(run=at.run, step=at.start)
    return pd.DataFrame(rises.transpose("index", "layer").values, columns=results.layer.values)


def cosine_distance(direction: xr.DataArray) -> xr.DataArray:
    """Return 1 - cos of the angle from each snapshot to the next, (run, snapshot_step).

    `direction`: unit vectors (run, snapshot_step, weight), as a result keeps them. The last
    snapshot has no next one and is left out.

    >>> turned = xr.DataArray([[[1.0, 0.0], [0.0, 1.0]]], dims=("run", "snapshot_step", "weight"))
    >>> cosine_distance(turned.assign_coords(snapshot_step=[0, 5])).values.tolist()
    [[1.0]]
    """
    after = direction.shift(snapshot_step=-1).isel(snapshot_step=slice(None, -1))
    return 1 - (direction.astype(float) * after).sum("weight")
