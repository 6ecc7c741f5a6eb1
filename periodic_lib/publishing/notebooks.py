"""Notebooks as files: the form in which chapters are kept, what is in them, where builds lie.

Sources in book/ stay as they are, without outputs. Under build/<profile>/ lie `chapters/` (executed
copies), `records/` (claims, numbers, figures), `stamps/` (what each copy was made from), `source/`
and `html/` (the book).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from periodic_lib import experiments
from periodic_lib.checks import known_names
from periodic_lib.outside import read_yaml
from periodic_lib.project import ConfigError, root, write_whole

HIDDEN = {"hide-input", "hide-cell"}  # tags of cells whose code the page folds
TAKEAWAY = re.compile(
    r"^:::\{admonition\} Takeaway\n:class: takeaway\n(.+?)\n:::$", re.MULTILINE | re.DOTALL
)


class ChapterError(RuntimeError):
    """A chapter that could not be executed or a book that could not be built."""


def build_folder(profile: str) -> Path:
    """Return the folder of everything built at a profile; shifted seeds have one of their own."""
    shift = experiments.seed_shift()
    return root() / "build" / (f"{profile}-seeds{shift}" if shift else profile)


def chapters() -> list[str]:
    """Return the names of all chapter notebooks, in order."""
    return sorted(path.stem for path in (root() / "book").glob("[0-9]*.ipynb"))


def read(path: Path) -> dict:
    """Return a notebook as a dictionary; nothing in it is executed.

    Raises
    ------
    ConfigError : if it cannot be read, or is no notebook.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(source(cell), str) and "cell_type" in cell for cell in found["cells"]):
            return found
        reason = "a cell has no type"
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
    raise ConfigError(f"{path} is no notebook that can be read: {reason}.")


def source(cell: Mapping) -> str:
    """Return the text of a cell, which notebooks store whole or as a list of lines."""
    return "".join(cell["source"])


def normalize(notebook: dict) -> dict:
    """Return the form in which a chapter is kept in git: no outputs, no traces, ids by position.

    JupyterLab folds the code that the page folds (metadata `jupyter.source_hidden`).

    >>> cell = {"cell_type": "code", "source": ["1 + 1"], "outputs": ["2"], "execution_count": 4}
    >>> normalize({"cells": [cell | {"metadata": {}}]})["cells"][0]["outputs"]
    []
    """
    cells = []
    for number, cell in enumerate(notebook["cells"], start=1):
        clean = {"cell_type": cell["cell_type"], "id": f"cell-{number:02d}"}
        clean["metadata"] = _normal_metadata(cell["metadata"])
        if cell["cell_type"] == "code":
            clean |= {"execution_count": None, "outputs": []}
        cells.append(clean | {"source": source(cell).rstrip().splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _normal_metadata(metadata: Mapping) -> dict:
    kept = {key: metadata[key] for key in ("tags", "mystnb") if key in metadata}
    hidden = HIDDEN & set(kept.get("tags", []))
    return kept | {"jupyter": {"source_hidden": True}} if hidden else kept


def write(notebook: dict, path: Path) -> None:
    """Write a notebook in its normal form."""
    write_whole(path, json.dumps(normalize(notebook), indent=1, ensure_ascii=False) + "\n")


def check_parameters(path: Path, names: Iterable[str]) -> None:
    """Check that the one `parameters` cell assigns each of `names`: papermill would only warn.

    Raises
    ------
    ConfigError : if it does not, or if there is not exactly one such cell.
    """
    tagged = [c for c in read(path)["cells"] if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ConfigError(
            f"{path.name} must have exactly one cell tagged `parameters`; it has {len(tagged)}."
        )
    lines = [line for line in source(tagged[0]).splitlines() if "=" in line]
    assigned = [line.split("=")[0].split(":")[0].strip() for line in lines]
    known_names(f"parameter of {path.name}", names, tuple(assigned))


def error_outputs(notebook: Mapping) -> list[str]:
    """Return the errors shown in a notebook's outputs."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    errors = [output for output in outputs if output["output_type"] == "error"]
    return [f"{error['ename']}: {error['evalue']}" for error in errors]


def takeaways(notebook: Mapping) -> list[str]:
    """Return the sentences of a chapter's takeaways, in their order: boxes of the form

        :::{admonition} Takeaway
        :class: takeaway
        One sentence.
        :::

    >>> box = ":::{admonition} Takeaway\\n:class: takeaway\\nThe norm\\nholds.\\n:::"
    >>> cell = {"cell_type": "markdown", "source": [f"Text.\\n\\n{box}\\n"]}
    >>> takeaways({"cells": [cell, {"cell_type": "code", "source": box}]})
    ['The norm holds.']
    """
    texts = [source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    return [" ".join(found.split()) for text in texts for found in TAKEAWAY.findall(text)]


def title(notebook: Mapping) -> str:
    """Return the first heading of a notebook.

    >>> title({"cells": [{"cell_type": "markdown", "source": "# One period\\n\\nText."}]})
    'One period'
    """
    return source(notebook["cells"][0]).splitlines()[0].removeprefix("# ")


def table_of_contents() -> list[str]:
    """Return the files that book/_toc.yml names, without ending."""
    content = read_yaml(root() / "book" / "_toc.yml")
    parts = content.get("parts", [])
    return [content["root"], *(chapter["file"] for part in parts for chapter in part["chapters"])]
