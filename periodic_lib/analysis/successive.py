"""Networks of one run put together: averaged predictions, averaged weights, from period to period.

The same is done with minima between breaks and with networks of runs that do not break. No torch
at import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib.analysis.minima import (
    as_networks,
    chances_of,
    directions_of,
    find_minima,
    judge_ensemble,
    with_places,
    with_sharpness,
)
from periodic_lib.results import setup_of

TOGETHER_COLUMNS = ["run", "single", "ensemble", "average", "average_train"]
MINIMUM = "minimum_"  # before the names of the columns of `find_minima`, in `condensed`


def equally_spaced(results: xr.Dataset, number: int) -> dict[int, np.ndarray]:
    """Return, of every run, the places of `number` of its kept networks in `chances_of`.

    Equally spaced over the second half of the run, the last one among them.

    >>> places = {"run": [0, 1], "snapshot_step": np.arange(9)}
    >>> [at.tolist() for at in equally_spaced(xr.Dataset(coords=places), 3).values()]
    [[4, 6, 8], [13, 15, 17]]
    """
    kept = results.sizes["snapshot_step"]
    at = np.linspace(kept // 2, kept - 1, number).round().astype(int)
    return {run: row * kept + at for row, run in enumerate(results.run.values)}


def last_minima(kept: pd.DataFrame, number: int) -> dict[int, np.ndarray]:
    """Return, of every run with so many, the places of its last `number` minima.

    `kept`: as `minima.with_places` returns.
    """
    ordered = kept.sort_values("number").groupby("run")["place"]
    return {run: at.to_numpy(int)[-number:] for run, at in ordered if len(at) >= number}


def put_together(results: xr.Dataset, places: Mapping[int, Sequence[int]]) -> pd.DataFrame:
    """Return test errors of a run's networks singly and together, one row per run.

    `places`: run -> places of its networks. `single`: their mean error; `ensemble`: that of their
    mean predicted probabilities; `average` and `average_train`: test and training error of the
    network at their mean direction, batch-normalization statistics estimated anew.
    """
    chances, truth, directions = (
        chances_of(results),
        results.label.values,
        directions_of(results),
    )
    rows = []
    for run, at in places.items():
        single = np.mean([judge_ensemble(chances[[place]], truth)[0] for place in at])
        together, _ = judge_ensemble(chances[list(at)], truth)
        mean = directions[list(at)].sum(axis=0, keepdims=True)
        norm = float(results.weight_norm.sel(run=run).median())
        found = as_networks(results, run, mean / np.linalg.norm(mean), norm).evaluate().mean(dim=1)
        rows.append((run, float(single), together, float(found[3]), float(found[1])))
    return pd.DataFrame(rows, columns=TOGETHER_COLUMNS)


def shuffled_within(table: pd.DataFrame, column: str, by: str, seed: int = 0) -> pd.DataFrame:
    """Return the table with the values of a column in random order inside every group.

    >>> rows = pd.DataFrame({"run": [0, 1, 1], "x": [5, 6, 7]})
    >>> shuffled_within(rows, "x", "run")["x"].sort_values().tolist()
    [5, 6, 7]
    """
    rng = np.random.default_rng(seed)
    return table.assign(
        **{column: table.groupby(by)[column].transform(lambda part: rng.permutation(part))}
    )


# ---------------------------------------------------------------- without the networks themselves


def with_disagreement(kept: pd.DataFrame, results: xr.Dataset) -> pd.DataFrame:
    """Return minima with their `disagreement` with the one before them in the run; nan for the
    first.

    The share of test examples that the two networks classify differently. `kept`: as
    `minima.with_places` returns.
    """
    guess = results.test_logits.values.argmax(axis=-1).reshape(-1, results.sizes["example"])
    kept = kept.sort_values(["run", "number"]).assign(disagreement=np.nan)
    for _, mine in kept.groupby("run"):
        at = guess[mine["place"].to_numpy(int)]
        kept.loc[mine.index[1:], "disagreement"] = (at[1:] != at[:-1]).mean(axis=1)
    return kept


def condensed(results: xr.Dataset, number: int = 5, every: int = 10) -> xr.Dataset:
    """Return a result without its networks, but with what they are worth: small enough to be kept.

    Parameters
    ----------
    results : with evaluations and snapshots.
    number : of networks that `put_together` judges: the last minima of a run or, where the norm is
        fixed, as many networks equally spaced.
    every : steps of which one stays.

    Returns
    -------
    the record at every so manieth step, the evaluations, the columns of `put_together` by `run`,
    and, where the norm is free, those of `find_minima`, with sharpness and disagreement, by `run`
    and `number`, their names after "minimum_" (`minima_of` makes a table of them).
    """
    small = results.drop_dims(["snapshot_step", "weight", "example", "class"], errors="ignore")
    small = small.isel(step=slice(None, None, every))
    if setup_of(results).fixed_norm is None:
        minima = find_minima(results)
        kept = with_places(with_sharpness(minima, results), results)
        places = last_minima(kept, number)
        found = with_disagreement(kept, results)[["sharpness", "disagreement"]]
        table = minima.join(found).set_index(["run", "number"]).to_xarray()
        table = table.rename({name: MINIMUM + name for name in table.data_vars})
        small = small.merge(table, join="outer")
    else:
        places = equally_spaced(results, number)
    return small.merge(put_together(results, places).set_index("run").to_xarray(), join="left")


def minima_of(small: xr.Dataset) -> pd.DataFrame:
    """Return the minima in a result of `condensed`, one a row, as `find_minima` names them."""
    ours = [name for name in map(str, small.data_vars) if name.startswith(MINIMUM)]
    table = small[ours].reset_coords(drop=True).to_dataframe().dropna(subset=f"{MINIMUM}step")
    return table.rename(columns=lambda name: name.removeprefix(MINIMUM)).reset_index()
