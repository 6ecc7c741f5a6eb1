"""Rotational equilibrium: does every neuron turn as fast as weight decay and learning rate say?

For weights that are scale-invariant neuron by neuron, each neuron's norm has a balance of its own,
and in it a turn per step that no gradient enters (Kosson et al. 2023, arXiv 2305.17212).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib import theory
from periodic_lib.analysis.equilibria import rms
from periodic_lib.analysis.periods import late


def expected_turn(results: xr.Dataset) -> xr.DataArray:
    """Return the equilibrium's turn per step of every run, (run,), in radians.

    `theory.equilibrium_angle` for SGD, with momentum; `theory.equilibrium_angle_adamw` for AdamW.
    Adam with the decay in its gradient has no such number: there the AdamW formula is returned, to
    be compared with.

    >>> run = {"lr": ("run", [1.0]), "weight_decay": ("run", [1e-3]), "momentum": ("run", [0.0])}
    >>> round(float(expected_turn(xr.Dataset(coords=run))[0]), 6)
    0.044725
    """
    optimizer = json.loads(results.attrs.get("setup", "{}")).get("optimizer", "sgd")
    if optimizer in ("adam", "adamw"):
        turn = theory.equilibrium_angle_adamw(results.lr, results.weight_decay, results.beta1)
    else:
        turn = theory.equilibrium_angle(results.lr, results.weight_decay, results.momentum)
    return results.lr.copy(data=np.asarray(turn)).rename("expected_turn")


def neuron_turns(results: xr.Dataset) -> pd.DataFrame:
    """Return how every neuron turned over the second half of the record, one row for each.

    Parameters
    ----------
    results : with `neuron_angular_update` and `neuron_weight_norm` (run, step, neuron), as
        `Record(neurons=True)` keeps them.

    Returns
    -------
    table with `run`, `neuron`, `layer` (its name up to the bracket), `turn`, the root mean square
    of the angular update, `typical`, their median over it, `ratio`, `turn` over the run's
    `expected_turn`, and `held`, how far ln of the squared norm moved from the third to the fourth
    quarter of the record.
    """
    second = late(results)
    angle = second.neuron_angular_update.astype(float)
    turn = rms(angle)
    level = 2 * np.log(second.neuron_weight_norm.astype(float))
    half = level.sizes["step"] // 2
    held = level.isel(step=slice(half, None)).mean("step") - level.isel(step=slice(half)).mean(
        "step"
    )
    typical = angle.median("step") / turn
    ratio = turn / expected_turn(results)
    found = xr.Dataset({"turn": turn, "typical": typical, "ratio": ratio, "held": held})
    table = found.reset_coords(drop=True).to_dataframe().reset_index()
    table["layer"] = table.neuron.str.split("[", regex=False).str[0]
    return table[["run", "neuron", "layer", "turn", "typical", "ratio", "held"]]


def turns_by_kind(variants: Mapping[tuple[str, object], xr.Dataset]) -> pd.DataFrame:
    """Return `neuron_turns` of a varied experiment in one table.

    Parameters
    ----------
    variants : (parameter, value) -> result, as `experiments.run_variants` returns it.

    Returns
    -------
    the columns of `neuron_turns`, a column named as the parameter with its value, and `kind`, the
    name of the layer after its last point: "queries" of "block0.queries".
    """
    tables = [
        neuron_turns(each).assign(**{parameter: value})
        for (parameter, value), each in variants.items()
    ]
    both = pd.concat(tables, ignore_index=True)
    return both.assign(kind=both.layer.str.split(".").str[-1])


def share_within(ratio: pd.Series, within: float) -> float:
    """Return the share of ratios in [1 - within, 1 + within].

    >>> share_within(pd.Series([0.8, 0.95, 1.0, 1.2]), 0.1)
    0.5
    """
    return float(ratio.between(1 - within, 1 + within).mean())


def shares_within(
    turns: Mapping[str, pd.DataFrame], names: Sequence[str], within: float
) -> pd.Series:
    """Return `share_within` of every run, indexed by (name, run), of `neuron_turns` tables.

    >>> table = pd.DataFrame({"run": [0, 0, 1], "ratio": [1.0, 1.5, 1.0]})
    >>> shares_within({"SGD": table}, ["SGD"], 0.1).to_dict()
    {('SGD', 0): 0.5, ('SGD', 1): 1.0}
    """
    groups = {name: turns[name].groupby("run").ratio for name in names}
    return pd.concat({name: group.apply(share_within, within) for name, group in groups.items()})


def growth(
    values: xr.DataArray, early: float, late_share: float, window: int = 100
) -> xr.DataArray:
    """Return, for each run, the median of `values` (run, step) around one place over another's.

    The places are shares of the record; the medians are over `window` recorded steps, or a tenth of
    a shorter record.

    >>> line = xr.DataArray([np.arange(1.0, 1001)], dims=("run", "step"))
    >>> growth(line, 0.2, 0.8).round(2).values.tolist()
    [3.99]
    """
    steps = values.sizes["step"]
    half = max(1, min(window, steps // 10) // 2)

    def around(share: float) -> xr.DataArray:
        place = round(share * steps)
        return values.isel(step=slice(place - half, place + half)).median("step")

    return around(late_share) / around(early)
