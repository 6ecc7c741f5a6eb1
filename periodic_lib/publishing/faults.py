"""What was broken on purpose, and what became of it: the table that the fault tests write.

A row for each kind of fault: how many were tried, by seed; how many `survived`, that is, nothing
that was finished was lost, nothing wrong was served, the next run was bit for bit the undisturbed
one, and one line said what happened; how often something was `lost`, `wrong`, or `unclear`.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from periodic_lib.outside import read_table
from periodic_lib.project import root

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

VERDICTS = ("survived", "lost", "wrong", "unclear")
COLUMNS = ("kind", "seeds", *VERDICTS, "median_seconds", "largest_seconds", "says")
COLUMNS += ("date", "revision", "processor")
WIDTHS = "17 7 9 6 8 9 12 32"
LONGEST = 130  # characters of what is said
HEADS = ("Fault", "Tried", "Survived", "Lost", "Wrong", "Unclear", "Recovery (s)", "What is said")


def file() -> Path:
    """Return where the table is kept."""
    return root() / "data" / "faults" / "faults.csv"


def table() -> pd.DataFrame:
    """Return the table: a row for each kind of fault, in the order in which they were tried.

    Returns
    -------
    table with `kind`; `seeds`, the number of faults, of seeds 0, 1, ...; `survived`, `lost`,
    `wrong`, `unclear`, how many; `median_seconds` and `largest_seconds` of the next run, empty
    where there is none for each; `says`, a line that was said; `date`, `revision`, `processor`.

    Raises
    ------
    ConfigError : if the file is no such table.
    """
    return read_table(file(), COLUMNS)


def summary(outcomes: list[dict], **origin: str) -> pd.DataFrame:
    """Return the table of faults: one row for each kind.

    Parameters
    ----------
    outcomes : of single faults: `kind`, `seed`, `said`, `recovery` in seconds (nan: none), and
        lists of complaints `lost`, `wrong`, `unclear`.
    origin : `date`, `revision`, `processor`.

    >>> one = {"kind": "k", "seed": 0, "said": "", "recovery": 2.0}
    >>> one |= {"lost": [], "wrong": [], "unclear": []}
    >>> two = one | {"seed": 1, "recovery": 4.0, "lost": ["gone"], "said": "made again"}
    >>> row = summary([one, two], date="", revision="", processor="").iloc[0]
    >>> int(row.seeds), int(row.survived), int(row.lost), float(row.median_seconds), row.says
    (2, 1, 1, 3.0, 'made again')
    """
    import pandas as pd

    flat = pd.DataFrame(outcomes)
    for name in VERDICTS[1:]:
        flat[name] = flat[name].map(len) > 0
    flat["survived"] = ~flat[list(VERDICTS[1:])].any(axis=1)
    groups = flat.groupby("kind", sort=False)
    rows = groups.agg(
        seeds=("seed", "count"),
        **{name: (name, "sum") for name in VERDICTS},
        median_seconds=("recovery", "median"),
        largest_seconds=("recovery", "max"),
        says=("said", _most_frequent),
    )
    rows = rows.round({"median_seconds": 2, "largest_seconds": 2}).reset_index()
    return rows.assign(**origin)[list(COLUMNS)]


def _most_frequent(said: pd.Series) -> str:
    """Return the line that was said most often, silence aside."""
    spoken = said[said != ""]
    return spoken.mode().iloc[0] if len(spoken) else ""


def page() -> list[str]:
    """Return the table as the book shows it (MyST), and below it where it comes from."""
    found = table()
    rows = [HEADS, *map(_cells, found.itertuples())]
    total = found[["seeds", *VERDICTS]].sum()
    rows.append(("All", *map(str, total), "", ""))
    lines = ["```{list-table}", ":header-rows: 1", f":widths: {WIDTHS}", ":class: faults", ""]
    for cells in rows:
        lines += [f"{'* -' if first else '  -'} {cell}" for first, cell in _marked(cells)]
    origin = found.iloc[-1]
    return [
        *lines,
        "```",
        "",
        f"Measured {origin['date']}, revision {origin.revision}, {origin.processor}.",
    ]


def _marked(cells: tuple[str, ...]) -> list[tuple[bool, str]]:
    return [(number == 0, cell) for number, cell in enumerate(cells)]


def _cells(row: object) -> tuple[str, ...]:
    """Return a row's cells."""
    from math import isnan

    known = not isnan(row.median_seconds)
    seconds = f"{row.median_seconds:.2g}, at most {row.largest_seconds:.2g}" if known else ""
    said = "" if row.says != row.says else row.says.removeprefix("periodic: ")
    said = textwrap.shorten(said, LONGEST, placeholder=" ...")
    said = f"`` {said} ``" if said else ""  # it may have backticks inside
    kind = row.kind[0].upper() + row.kind[1:]
    return (kind, str(row.seeds), *(str(getattr(row, name)) for name in VERDICTS), seconds, said)
