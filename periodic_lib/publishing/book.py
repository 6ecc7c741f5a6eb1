"""The book: executed chapters, pages and the scorecard, rendered by Jupyter Book."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from periodic_lib import glossary
from periodic_lib.project import ConfigError, print_message, root, write_whole
from periodic_lib.publishing import claims, copies, scorecard
from periodic_lib.publishing.execution import copy_of, execute
from periodic_lib.publishing.notebooks import (
    ChapterError,
    build_folder,
    chapters,
    error_outputs,
    read,
    source,
)

MARKUP = re.compile(r"([\\`*_$<\[\]{}])")  # what MyST would read as more than a character


def build_book(profile: str = "classroom", strict: bool = False) -> Path:
    """Execute what is out of date, render the book, and return the page to open.

    A measured verdict that is not the acknowledged one is marked on the scorecard and printed:
    another processor rounds otherwise, and may measure one. `strict` makes it an error, after
    rendering.

    Raises
    ------
    ChapterError : if a chapter fails or the book has a warning; if `strict`, for such a verdict.
    """
    execute(None, profile)
    stage(profile)
    page = _render(build_folder(profile))
    changed = claims.changed(claims.read_records(build_folder(profile) / "records"))
    for line in changed:
        print_message(line)
    if changed and strict:
        raise ChapterError(
            f"verdicts other than the acknowledged ones: {len(changed)}; "
            f"the book is rendered: {page}"
        )
    return page


def _render(folder: Path, builder: str = "html") -> Path:
    """Run Jupyter Book on the staged sources; return the first page.

    `builder`: of Sphinx. Return the folder that it wrote, for another than "html".
    """
    start = "from jupyter_book.cli.main import main; main()"  # the package has no __main__
    command = [sys.executable, "-c", start, "build", folder / "source"]
    command += ["--path-output", folder / builder, "-W", "-n", "--keep-going", "--quiet"]
    command += [] if builder == "html" else ["--builder", "custom", "--custom-builder", builder]
    places = {"PERIODIC_RECORDS": str(folder / "records"), "PERIODIC_ROOT": str(root())}
    environment = {**os.environ, **places}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        # so that the warnings come again next time
        shutil.rmtree(folder / builder / "_build" / ".doctrees", ignore_errors=True)
        raise ChapterError(
            f"the book has warnings or errors:\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        )
    written = folder / builder / "_build" / builder
    return written / "index.html" if builder == "html" else written


def build_as(builder: str, profile: str) -> Path:
    """Run another builder of Sphinx on the executed book: "epub", "gettext"; return its folder.

    Raises
    ------
    ConfigError : if a chapter was not executed.
    ChapterError : if the book has a warning.
    """
    missing = [name for name in chapters() if not copy_of(name, profile).exists()]
    if missing:
        raise ConfigError(
            f"{len(missing)} chapters were not executed at profile {profile!r} "
            f"({missing[0]} is the first): `make book` does it."
        )
    stage(profile)
    written = build_folder(profile) / builder / "_build" / builder
    shutil.rmtree(written, ignore_errors=True)  # what lies there would be taken into an EPUB
    return _render(build_folder(profile), builder)


def stage(profile: str) -> Path:
    """Lay out what Jupyter Book reads: pages, executed chapters, the scorecard, figures, MathJax.

    A file is written only if its content changed, so that Sphinx re-reads only what did.
    """
    folder, wanted = build_folder(profile) / "source", _sources(profile)
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder) not in wanted:
            path.unlink()
    for name, content in wanted.items():
        target = folder / name
        if not target.exists() or target.read_bytes() != content:
            write_whole(target, content)
    return folder


def _sources(profile: str) -> dict[Path, bytes]:
    """Return the files that Jupyter Book reads: path below its source folder -> content."""
    book, records = root() / "book", build_folder(profile) / "records"
    found: dict[Path, bytes] = {}
    for path in book.rglob("*"):
        name = path.relative_to(book)
        hidden = any(part.startswith((".", "__pycache__")) for part in name.parts)
        if path.is_file() and path.suffix != ".ipynb" and not hidden:
            found[name] = path.read_bytes()
    for name in chapters():
        found[Path(f"{name}.ipynb")] = rendered(read(copy_of(name, profile)))
    for path in (records / "figures").glob("*.png"):
        found[Path("figures") / path.name] = path.read_bytes()
    found[Path("scorecard.md")] = scorecard.page(claims.read_records(records)).encode()
    found[Path("glossary.md")] = glossary.page().encode()
    found[Path("_vendor/mathjax/tex-svg-full.js")] = mathjax()
    return found


def rendered(notebook: dict) -> bytes:
    """Return an executed notebook as the book shows it.

    A figure is numbered, with its text alternative, the one that the chapter gave it, as its
    caption, which no table beside it gets; standard error is left out.

    Raises
    ------
    ChapterError : if a cell failed.
    """
    errors = error_outputs(notebook)
    if errors:
        raise ChapterError(f"an executed chapter has errors in its outputs: {errors}")
    cells = []
    for cell in notebook["cells"]:
        cell["metadata"].pop("papermill", None)
        cell["metadata"].pop("execution", None)
        if cell["cell_type"] == "code":
            cell["outputs"] = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]
            cells += _apart(cell)
        else:
            cells.append(cell)
    for cell in cells:
        if cell["cell_type"] == "code":
            _present(cell)
    notebook["metadata"].pop("papermill", None)
    return json.dumps(notebook | {"cells": cells}, indent=1).encode()


def _apart(cell: dict) -> list[dict]:
    """Return a code cell, each of its figures as a cell of its own: a caption belongs to a cell.

    The cells added have a source, removed from the page: the builder drops cells without one.
    """
    pieces: list[list[dict]] = []
    for output in cell["outputs"]:
        figure = _alt(output) is not None
        if figure or not pieces or _alt(pieces[-1][-1]) is not None:
            pieces.append([])
        pieces[-1].append(output)
    first, *others = pieces or [[]]
    bare = {"cell_type": "code", "execution_count": None, "source": "# shown apart"}
    return [cell | {"outputs": first}] + [
        bare
        | {"id": f"{cell.get('id', 'cell')}-{place}", "outputs": outputs}
        | {"metadata": {"tags": ["remove-input", copies.APART]}}
        for place, outputs in enumerate(others, 1)
    ]


def _alt(output: dict) -> str | None:
    """Return the text alternative of a figure; None of other outputs."""
    return output.get("metadata", {}).get("image/png", {}).get("alt")


def _present(cell: dict) -> None:
    """Set how the book shows a code cell: caption and number of its figure, name of its code."""
    tags, look = cell["metadata"].get("tags", []), cell["metadata"].setdefault("mystnb", {})
    for alt in filter(None, map(_alt, cell["outputs"])):
        caption = MARKUP.sub(r"\\\1", alt)
        look.update({"image": {"alt": alt}, "figure": {"caption": caption}})
    folded = folded_name(cell)
    if "injected-parameters" in tags:
        cell["metadata"]["tags"] = [*tags, "remove-cell"]
    elif folded:
        look.update({"code_prompt_show": folded, "code_prompt_hide": folded})
    elif "hide-input" in tags:
        cell["metadata"]["tags"] = ["remove-input" if t == "hide-input" else t for t in tags]


def folded_name(cell: dict) -> str:
    """Return what a bar over a cell's folded code says; nothing if the cell shows nothing.

    >>> folded_name({"metadata": {"tags": ["solution"]}, "source": "print(1)", "outputs": []})
    'Solution'
    """
    shown = "".join(json.dumps(output.get("data", {})) for output in cell["outputs"])
    names = {
        "Solution": "solution" in cell["metadata"].get("tags", []),
        "Code of the figure": '"image/png"' in shown,
        "Code of the check": 'class=\\"claim' in shown,
        "Code of the table": '"text/html"' in shown,
        "Code of the output": bool(cell["outputs"]),
        "Packages and data": "\nimport " in f"\n{source(cell)}",
    }
    return next((name for name, true in names.items() if true), "")


def mathjax() -> bytes:
    """Return MathJax as one file, from the package that ships it."""
    distribution = importlib.metadata.distribution("sphinx-mathjax-offline")
    found = [file for file in distribution.files or [] if file.name == "tex-svg-full.js"]
    if not found:
        raise ChapterError(
            "no tex-svg-full.js in sphinx-mathjax-offline: `make setup` reinstalls it."
        )
    return Path(distribution.locate_file(found[0])).read_bytes()
