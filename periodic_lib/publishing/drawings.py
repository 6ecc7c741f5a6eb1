"""Figures for other uses: each as SVG, with its data as CSV and the code that drew it.

`keep` is called once in a process that executes a chapter; from then on, what the chapter shows is
written to a folder, too.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from periodic_lib.project import write_whole

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("panel", "title", "x_axis", "y_axis", "kind", "series", "x", "y", "value")


def keep(folder: str | Path) -> None:
    """Write each figure that chapters show from now on to a folder: `<chapter>-<name>.svg` etc."""
    from periodic_lib.publishing.chapters import Chapter

    folder, show = Path(folder), Chapter.show

    def show_and_keep(chapter: Chapter, figure: Figure, name: str, alt: str) -> None:
        stem = f"{chapter.name}-{name}"
        write_whole(folder / f"{stem}.svg", svg(figure))
        write_whole(folder / f"{stem}.csv", data(figure).to_csv(index=False))
        write_whole(folder / f"{stem}.py", f"{_cell()}\n")
        write_whole(folder / f"{stem}.txt", f"{alt}\n")
        show(chapter, figure, name, alt)

    Chapter.show = show_and_keep


def _cell() -> str:
    """Return the code of the cell that runs; nothing outside of a notebook."""
    from IPython import get_ipython

    shell = get_ipython()
    return shell.user_ns["In"][-1] if shell else ""


def svg(figure: Figure) -> str:
    """Return a figure as SVG with its text as text; the same figure gives the same file."""
    import matplotlib

    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "periodic"}):
        figure.savefig(drawn, format="svg", bbox_inches="tight", metadata={"Date": None})
    return drawn.getvalue()


def data(figure: Figure) -> pd.DataFrame:
    """Return what a figure shows, in long form: a row per point, corner or cell (`COLUMNS`).

    `panel` counts axes from 1; `value` is a map's; decoration, such as rules across a panel, is
    data as well, since the figure does not tell them apart.

    >>> from matplotlib.figure import Figure
    >>> figure = Figure()
    >>> _ = figure.add_subplot().plot([1, 2], [3, 4], label="loss")
    >>> data(figure)[["panel", "kind", "series", "x", "y"]].values.tolist()
    [[1, 'line', 'loss', 1.0, 3.0], [1, 'line', 'loss', 2.0, 4.0]]
    """
    import pandas as pd

    rows = []
    for panel, axes in enumerate(figure.axes, start=1):
        head = (panel, axes.get_title(), axes.get_xlabel(), axes.get_ylabel())
        rows += [(*head, *row) for row in _rows(axes)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(axes: Axes) -> Iterator[tuple]:
    """Yield kind, series, x, y and value of everything drawn in one panel."""
    for line in axes.lines:
        yield from _points("line", line, line.get_xdata(orig=False), line.get_ydata(orig=False))
    for collection in axes.collections:
        yield from _collected(collection)
    for patch in axes.patches:
        corners = patch.get_patch_transform().transform_path(patch.get_path()).vertices
        yield from _points("outline", patch, *corners.T)
    for image in axes.images:
        yield from _cells(image, image.get_array(), image.get_extent())


def _collected(collection: object) -> Iterator[tuple]:
    """Yield the rows of dots, of a coloured mesh, or of the corners of filled shapes."""
    from matplotlib.collections import LineCollection, PathCollection, PolyCollection, QuadMesh

    if isinstance(collection, PathCollection):
        x, y = collection.get_offsets().T
        values = collection.get_array()
        yield from _points("dot", collection, x, y, values if values is not None else None)
    elif isinstance(collection, QuadMesh):
        corners, values = collection.get_coordinates(), collection.get_array()
        middles = (corners[:-1, :-1] + corners[1:, 1:]) / 2
        x, y = middles.reshape(-1, 2).T
        yield from _points("cell", collection, x, y, values.reshape(len(x), -1)[:, 0])
    elif isinstance(collection, LineCollection | PolyCollection):
        kind = "segment" if isinstance(collection, LineCollection) else "outline"
        for path in collection.get_paths():
            yield from _points(kind, collection, *path.vertices.T)


def _cells(image: object, values: object, extent: tuple) -> Iterator[tuple]:
    """Yield the rows of a picture: middles of its cells, and values (or colours)."""
    import numpy as np

    left, right, bottom, top = extent
    height, width = values.shape[:2]
    x = left + (np.arange(width) + 0.5) * (right - left) / width
    y = bottom + (np.arange(height) + 0.5) * (top - bottom) / height
    rows = values if image.origin == "lower" else values[::-1]
    for row, height in zip(rows, y, strict=True):
        for cell, place in zip(row, x, strict=True):
            yield "cell", _series(image), place, height, _plain(cell)


def _points(kind: str, artist: object, x: object, y: object, values: object = None) -> Iterator:
    label, missing = _series(artist), [None] * len(x)
    for row in zip(x, y, missing if values is None else values, strict=True):
        yield (kind, label, *map(_plain, row))


def _series(artist: object) -> str:
    """Return the label of a series; matplotlib's own names are none."""
    label = str(artist.get_label())
    return "" if label.startswith("_") else label


def _plain(value: object) -> object:
    """Return a number, or text for a colour; None where it is masked."""
    import numpy as np

    if value is None or np.ma.is_masked(value):
        return None
    return float(value) if np.ndim(value) == 0 else " ".join(f"{part:g}" for part in value)
