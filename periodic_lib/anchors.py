"""Published values, from data/published, and ours beside them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from periodic_lib.checks import known_names
from periodic_lib.glossary import MISSING
from periodic_lib.project import ConfigError, root


def published(name: str) -> pd.DataFrame:
    """Return a table of published values, data/published/<name>.csv; data/README.md says where each
    comes from.

    >>> published("lobacheva2021_jumps").groupby("learning_rate").size().to_dict()
    {0.01: 4, 0.03: 15}
    """
    return pd.read_csv(root() / "data" / "published" / f"{name}.csv")


def beside(chapter: str, ours: Mapping[str, float], within: float = 0.1) -> pd.DataFrame:
    """Return the published values that a chapter is held against, beside ours, a row for each.

    Parameters
    ----------
    chapter : as in data/published/anchors.csv, whose rows have the ends `low` and `high` of what
        was published for a `quantity`.
    ours : quantity -> our value.
    within : by so much of an end a value may lie outside: what is read off a figure is no exacter.

    Returns
    -------
    table with `finding`, `published` and `ours` as text, `agrees` ("yes" or "no"; "–" without a
    value of ours), `source`.

    Raises
    ------
    ConfigError : if `ours` has a quantity that is not published, or lacks one that is.

    >>> names = published("anchors").quantity[:6]  # border, upper, decades, ...
    >>> ours = dict.fromkeys(names, 2.0)
    >>> beside("15_on_the_sphere", ours).agrees.tolist()
    ['no', 'no', 'yes', 'no', 'no', 'yes']
    """
    table = published("anchors").query("chapter == @chapter").reset_index(drop=True)
    known_names("quantity in `ours`", ours, tuple(table.quantity))
    missing = set(table.quantity) - set(ours)
    if missing:
        raise ConfigError(
            f"`ours` must have every quantity of {chapter!r} in anchors.csv; "
            f"{', '.join(sorted(missing))} is missing. Give it, or nan."
        )
    values = table.quantity.map(ours).astype(float)
    low, high = table.low - within * table.low.abs(), table.high + within * table.high.abs()
    agrees = np.where(values.between(low, high), "yes", "no")
    return pd.DataFrame(
        {
            "finding": table.finding,
            "published": list(map(_range, table.low, table.high)),
            "ours": [MISSING if np.isnan(value) else f"{value:.2g}" for value in values],
            "agrees": np.where(values.isna(), MISSING, agrees),
            "source": table.source,
        }
    )


def _range(low: float, high: float) -> str:
    """Return the words for a range.

    >>> _range(1, 1), _range(0, 0.5), _range(1, float("inf"))
    ('1', '0 to 0.5', '1 or more')
    """
    if low == high:
        return f"{low:g}"
    return f"{low:g} or more" if np.isinf(high) else f"{low:g} to {high:g}"
