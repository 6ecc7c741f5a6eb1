"""What a chapter says of tables: a text per row, an outcome per run, a row per group of runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from periodic_lib.analysis.spreads import spread

if TYPE_CHECKING:
    import pandas as pd

    Table = pd.DataFrame | pd.Series | Mapping

VARIED = {  # parameter that a setup differs in -> its words, with a value after them
    "width": "width",
    "depth": "hidden layers",
    "train_size": "training examples",
    "label_noise": "wrong labels",
    "batch_size": "batch size",
    "last_layer_norm": "last layer",
}
SWITCHED = {"drop_last": "short last batch", "dataset": "breast cancer"}  # words alone


def variant(parameter: str, value: float | None) -> str:
    """Return in words what a setup of `experiments.run_variants` differs in from the others.

    >>> variant("label_noise", 0.05), variant("depth", 1), variant("drop_last", False)
    ('wrong labels 0.05', 'hidden layers 1', 'short last batch')
    """
    return SWITCHED.get(parameter) or f"{VARIED[parameter]} {value:g}"


def each(table: Table, form: str) -> list[str]:
    """Return a text per row: `form` filled with index and columns, by place or by name.

    A series or a mapping is a table with one column, `value` unless the series has a name.

    >>> each({0.1: 3, 1.0: 4}, "{1} breaks at {0:g}")
    ['3 breaks at 0.1', '4 breaks at 1']
    >>> import pandas as pd
    >>> each(pd.DataFrame({"lr": [0.1], "loss": [2.34]}), "{lr:g}: loss {loss:.1f}")
    ['0.1: loss 2.3']
    """
    import pandas as pd

    if isinstance(table, Mapping):
        table = pd.Series(table, dtype=object)
    if isinstance(table, pd.Series):
        table = table.to_frame(table.name or "value")
    rows = table.reset_index()
    names = [str(name) for name in rows.columns]
    found = rows.itertuples(index=False, name=None)
    return [form.format(*row, **dict(zip(names, row, strict=True))) for row in found]


def listed(table: Table, form: str, between: str = ", ") -> str:
    """Return the texts of `each` row in one, with `between` them.

    >>> listed({"here": 2, "there": 3}, "{}: {}")
    'here: 2, there: 3'
    """
    return between.join(each(table, form))


def outcomes(
    met: pd.Series | Sequence[bool], form: str, of: pd.DataFrame | None = None
) -> dict[str, bool]:
    """Return the outcomes of a claim, by the words of each row; none of them: {"none": False}.

    Parameters
    ----------
    met : whether the claim's rule is met, one entry per row.
    form : as in `each`, filled with the index of `met`, or with the rows of `of`.
    of : a table with as many rows as `met`, in the same order.

    >>> import pandas as pd
    >>> outcomes(pd.Series([True, False]), "seed {}")
    {'seed 0': True, 'seed 1': False}
    >>> outcomes(pd.Series(dtype=bool), "seed {}")
    {'none': False}
    """
    words = each(met if of is None else of, form)
    return dict(zip(words, map(bool, met), strict=True)) or {"none": False}


def by_group(
    table: pd.DataFrame, by: str | list[str], forms: Mapping[str, str | Callable], sort: bool = True
) -> pd.DataFrame:
    """Return a row per group, each column in words over the group's runs.

    Parameters
    ----------
    table : a row per run.
    by : column, or columns, whose equal values make a group; they come first.
    forms : column -> how its values are told. A format such as ".2g": `spreads.spread`; "words":
        those that occur; what else pandas' `agg` takes, such as "median" or a function.
    sort : groups in the order of their values; else of the table.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"lr": [1, 1], "loss": [0.5, 1.5], "regime": ["periodic"] * 2})
    >>> by_group(table, "lr", {"loss": ".1f", "regime": "words"}).values.tolist()
    [[1, '1.0 (0.5 to 1.5)', 'periodic']]
    """
    columns = {name: _teller(form) for name, form in forms.items()}
    return table.groupby(by, sort=sort).agg(columns).reset_index()


def _teller(form: str | Callable) -> str | Callable:
    if form == "words":
        return lambda found: ", ".join(sorted(set(found)))
    is_format = isinstance(form, str) and form.startswith(".")
    return partial(spread, form=form) if is_format else form
