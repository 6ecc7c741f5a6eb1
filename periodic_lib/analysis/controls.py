"""Controls: runs from which one cause is taken away, judged by norm and by loss, seed by seed.

`judged` is a mapping from the name of a control to its table, as `judge` returns it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib.analysis.periods import as_table, count_by_run, find_excursions, late
from periodic_lib.analysis.regimes import summarize
from periodic_lib.analysis.spreads import spread
from periodic_lib.changes import parse_changes

CHANGED_COLUMNS = ["run", "init_seed", "step", "what", "value", "excursions", "delay"]
PER = 10_000  # steps, of the rates


def judge(results: xr.Dataset, window: int = 500, since: int = 0) -> pd.DataFrame:
    """Return the run table with a second count, of excursions of the loss: a norm may not move.

    Parameters
    ----------
    window : steps whose median loss is the recent level (`periods.find_excursions`); the loss is
        averaged over an epoch.
    since : only excursions that start at this step or later.

    Returns
    -------
    `summarize` by `init_seed`, with `excursions`; `lowest`, the lowest mean loss of an epoch;
    `error`, the mean test error of the late evaluations; `steps`, the length of the record.
    """
    epoch = results.attrs["steps_per_epoch"]
    excursions = find_excursions(results, window, smoothing=epoch)
    excursions = excursions[excursions["start"] >= since]
    table = summarize(results).assign(
        excursions=count_by_run(excursions, results),
        lowest=results.train_loss.rolling(step=epoch).mean().min("step").values,
        steps=results.sizes["step"],
    )
    if "test_error" in results:
        table["error"] = late(results).test_error.mean("eval_step").values
    return table.set_index("init_seed")


def after_change(results: xr.Dataset, window: int = 500, within: float = np.inf) -> pd.DataFrame:
    """Return one row per run: what its last change did to the loss (`Run.changes`).

    Parameters
    ----------
    window : of the excursions of the loss, as `judge`.
    within : steps after the change that count.

    Returns
    -------
    table with `run`, `init_seed`, `step`, `what`, `value` of the change, the number of
    `excursions` that start in the steps after it, and the `delay` of the first (nan: none).
    """
    epoch, rows = results.attrs["steps_per_epoch"], []
    starts = find_excursions(results, window, smoothing=epoch)[["run", "start"]]
    for run, seed, text in zip(
        results.run.values, results.init_seed.values, results.changes.values, strict=True
    ):
        change = parse_changes(str(text))[-1]
        delays = starts["start"][starts["run"] == run] - change.step
        delays = delays[(delays > 0) & (delays <= within)]
        facts = (run, seed, change.step, change.what, change.value)
        rows.append((*facts, len(delays), delays.min()))
    return as_table(rows, CHANGED_COLUMNS)


# ---------------------------------------------------------------- outcomes: "name, seed" -> whether


def broken(judged: Mapping[str, pd.DataFrame], names: Iterable[str], least: int) -> dict[str, bool]:
    """Return, seed by seed, whether a run has at least so many breaks.

    >>> judged = {"usual": pd.DataFrame({"destabilizations": [5, 1]}, index=[0, 1])}
    >>> broken(judged, ["usual"], least=2)
    {'usual, seed 0': True, 'usual, seed 1': False}
    """
    counts = _by_seed(judged, names, lambda table: table.destabilizations)
    return {label: bool(count >= least) for label, count in counts.items()}


def quiet(
    judged: Mapping[str, pd.DataFrame], names: Iterable[str], usual: str, share: float, breaks: int
) -> dict[str, bool]:
    """Return, seed by seed, whether nothing is left of the periods of the unmodified runs.

    No break, and at most `share` times the excursions of the unmodified run (`usual`) of the same
    seed, which has at least `breaks` breaks (else there was nothing to take away).
    """

    def true(table: pd.DataFrame) -> pd.Series:
        few = table.excursions <= share * judged[usual].excursions
        return (table.destabilizations == 0) & few & (judged[usual].destabilizations >= breaks)

    return _by_seed(judged, names, true)


def lifted(
    judged: Mapping[str, pd.DataFrame], names: Iterable[str], usual: str, times: float
) -> dict[str, bool]:
    """Return, seed by seed, whether nothing breaks, at `times` the unmodified lowest loss."""

    def true(table: pd.DataFrame) -> pd.Series:
        return (table.destabilizations == 0) & (table.lowest >= times * judged[usual].lowest)

    return _by_seed(judged, names, true)


def _by_seed(judged, names, of) -> dict:
    found = {name: of(judged[name]).reindex(judged[name].index) for name in names}
    return {
        f"{name}, seed {seed}": value.item() if hasattr(value, "item") else value
        for name, values in found.items()
        for seed, value in values.items()
    }


# ---------------------------------------------------------------- in words


def tell(values: Iterable[float], form: str = ".0f") -> str:
    """Return the values as one number where they look alike, else their spread.

    >>> tell([2, 2]), tell([1, 2, 4])
    ('2', '2 (1 to 4)')
    """
    plain = {f"{value:{form}}" for value in values}
    return plain.pop() if len(plain) == 1 else spread(values, form)


def counted(judged: Mapping[str, pd.DataFrame], *names: str) -> str:
    """Return the breaks and excursions of some controls, in words."""
    return "; ".join(
        f"{name}: {tell(judged[name].destabilizations)} breaks, "
        f"{tell(judged[name].excursions)} excursions"
        for name in names
    )


def overview(judged: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return one row of text per control: rates per 10,000 steps, losses, test error."""
    rows = [
        {
            "control": name,
            "breaks": tell(table.destabilizations * PER / table.steps),
            "excursions": tell(table.excursions * PER / table.steps),
            "median loss": tell(table.late_loss, ".1g"),
            "lowest loss": tell(table.lowest, ".1g"),
            "test error": f"{table.error.median():.1%}",
        }
        for name, table in judged.items()
    ]
    return pd.DataFrame(rows)
