"""Chapters: papermill executes each in a fresh process; Jupyter Book renders the executed copies.

Sources in book/ stay as they are, without outputs. Under build/<profile>/ lie `chapters/` (executed copies),
`records/` (claims, numbers, figures), `stamps/` (what each copy was made from), `source/` and `html/` (the book).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from periodic_lib import claims, experiments, glossary, results
from periodic_lib.config import ConfigError, known_names, root

ERROR_EXCERPT = 30  # lines of a failed notebook's traceback that are shown
TOOLS = {"__init__", "__main__", "cli", "notebooks", "benchmarks"}  # modules that no chapter uses
DEAD_KERNEL = 138  # papermill's exit status when the kernel died
QUIET_REPORT_SECONDS = 15  # how often progress is printed where there is no terminal


class ChapterError(RuntimeError):
    """A chapter that could not be executed or a book that could not be built."""


def build_folder(profile: str) -> Path:
    """Return the folder of everything built at a profile."""
    return root() / "build" / profile


def chapters() -> list[str]:
    """Return the names of all chapter notebooks, in order."""
    return sorted(path.stem for path in (root() / "book").glob("[0-9]*.ipynb"))


def read(path: Path) -> dict:
    """Return a notebook as a dictionary."""
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: Mapping) -> str:
    """Return the text of a cell, which notebooks store whole or as a list of lines."""
    return "".join(cell["source"])


def normalize(notebook: dict) -> dict:
    """Return the form in which a chapter is kept in git: no outputs, no execution traces, ids by position.

    >>> cell = {"cell_type": "code", "source": ["1 + 1"], "outputs": ["2"], "execution_count": 4, "metadata": {}}
    >>> normalize({"cells": [cell]})["cells"][0]["outputs"]
    []
    """
    cells = []
    for number, cell in enumerate(notebook["cells"], start=1):
        metadata = {key: value for key, value in cell["metadata"].items() if key in ("tags", "mystnb")}
        clean = {"cell_type": cell["cell_type"], "id": f"cell-{number:02d}", "metadata": metadata}
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


def write(notebook: dict, path: Path) -> None:
    """Write a notebook in its normal form."""
    path.write_text(json.dumps(normalize(notebook), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- executing


def execute(names: Iterable[str] | None = None, profile: str = "classroom", force: bool = False) -> list[str]:
    """Execute the chapters whose copy is missing or out of date; return the names of those that ran.

    A copy is up to date if it was made from the same chapter, profile, library code, experiments and claims, and the
    chapter was not touched since.

    Raises
    ------
    ConfigError : for an unknown chapter.
    ChapterError : if a chapter fails; the others are executed all the same, and are kept.
    """
    known = chapters()
    names = known if names is None else list(names)
    known_names("chapter", names, tuple(known))
    ran, failed = [], []
    for name in names:
        if not force and is_current(name, profile):
            experiments.print_message(f"{name}: up to date")
            continue
        try:
            _execute_one(name, profile)
            ran.append(name)
        except ChapterError as error:
            failed.append(str(error))
    if failed:
        raise ChapterError("\n".join(failed))
    return ran


def is_current(name: str, profile: str) -> bool:
    """Whether the executed copy of a chapter is there and was made from what is there now."""
    copy, stamp = _copy(name, profile), _stamp(name, profile)
    origin = root() / "book" / f"{name}.ipynb"
    return (
        copy.exists()
        and stamp.exists()
        and copy.stat().st_mtime_ns >= origin.stat().st_mtime_ns
        and stamp.read_text(encoding="utf-8") == fingerprint(name, profile)
        and all(experiments.state(todo)[0] == "ready" for todo in _experiments_of(name, profile))
    )


def fingerprint(name: str, profile: str) -> str:
    """Return the SHA-256 of all that an executed chapter is made from."""
    stated = {claim: entry for claim, entry in claims.declared().items() if entry["chapter"] == name}
    declared = [[claim, {k: v for k, v in entry.items() if k != "verdict"}] for claim, entry in stated.items()]
    library = sorted({path.stem for path in Path(__file__).parent.glob("*.py")} - TOOLS)
    parts = [
        (root() / "book" / f"{name}.ipynb").read_text(encoding="utf-8"),
        profile,
        results.code_digest(tuple(library)),
        [todo.settings for todo in _experiments_of(name, profile)],
        declared,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _experiments_of(name: str, profile: str) -> list[experiments.Plan]:
    return [
        experiments.plan(experiment, profile)
        for experiment, entry in experiments.declared().items()
        if entry.get("chapter") == name and profile in entry["profiles"]
    ]


def _copy(name: str, profile: str) -> Path:
    return build_folder(profile) / "chapters" / f"{name}.ipynb"


def _stamp(name: str, profile: str) -> Path:
    return build_folder(profile) / "stamps" / name


def _execute_one(name: str, profile: str) -> None:
    """Run papermill on one chapter in a process of its own, showing the progress of the training inside it."""
    copy, stamp = _copy(name, profile), _stamp(name, profile)
    origin = root() / "book" / f"{name}.ipynb"
    records = build_folder(profile) / "records"
    for folder in (copy.parent, stamp.parent, records):
        folder.mkdir(parents=True, exist_ok=True)
    check_parameters(origin, ["profile", "overrides"])
    stamp.unlink(missing_ok=True)
    made_from = fingerprint(name, profile)  # taken before: a change during execution must not pass as current
    partial = copy.with_suffix(".partial.ipynb")
    command = [sys.executable, "-m", "papermill", origin, partial, "-p", "profile", profile, "-k", "python3"]
    command += ["--cwd", root() / "book", "--no-progress-bar", "--log-level", "WARNING", "--start-timeout", "180"]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        progress, log = Path(folder) / "progress", Path(folder) / "log"
        environment = {**os.environ, "PERIODIC_PROGRESS": str(progress), "PERIODIC_RECORDS": str(records)}
        environment |= {"MPLBACKEND": "agg", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
        with log.open("w") as stream:
            process = subprocess.Popen(list(map(str, command)), env=environment, stdout=stream, stderr=stream)
            try:
                _follow(process, name, progress)
            except BaseException:  # Ctrl-C above all: leave no kernel training behind
                process.terminate()
                process.wait()
                partial.unlink(missing_ok=True)
                raise
        _report_failure(name, process.returncode, partial, log.read_text(encoding="utf-8"))
    os.replace(partial, copy)
    stamp.write_text(made_from, encoding="utf-8")
    experiments.print_message(f"{name}: executed in {time.perf_counter() - started:.0f} s")


def check_parameters(path: Path, names: Iterable[str]) -> None:
    """Raise `ConfigError` unless the one `parameters` cell assigns each of `names`: papermill would only warn."""
    cells = [cell for cell in read(path)["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise ConfigError(f"{path.name} must have exactly one cell tagged `parameters`; it has {len(cells)}.")
    assigned = [line.split("=")[0].split(":")[0].strip() for line in source(cells[0]).splitlines() if "=" in line]
    known_names(f"parameter of {path.name}", names, tuple(assigned))


def _follow(process: subprocess.Popen, name: str, progress: Path) -> None:
    """Wait for the process, passing on the last line of progress: in place on a terminal, now and then in a log."""
    terminal = sys.stderr.isatty()
    shown, last_report = "", time.monotonic()
    while process.poll() is None:
        time.sleep(0.2)
        line = _last_line(progress) or "running"
        if terminal and line != shown:
            print(f"\r\x1b[K{name}: {line}", end="", file=sys.stderr, flush=True)
        elif not terminal and time.monotonic() - last_report > QUIET_REPORT_SECONDS:
            last_report = time.monotonic()
            print(f"{name}: {line}", file=sys.stderr, flush=True)
        shown = line
    if terminal:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _last_line(path: Path) -> str:
    try:
        pieces = path.read_text(encoding="utf-8", errors="replace").replace("\n", "\r").split("\r")
    except OSError:
        return ""
    return next((piece.strip() for piece in reversed(pieces) if piece.strip()), "")


def _report_failure(name: str, status: int, partial: Path, log: str) -> None:
    """Raise `ChapterError` if papermill failed or left an error in an output; keep the failed copy to look at."""
    if status == 0 and not error_outputs(read(partial)):
        return
    if status in (DEAD_KERNEL, -9):
        raise ChapterError(f"{name}: the kernel died, probably out of memory. Try a smaller profile.")
    failed = partial.with_name(f"{name}.failed.ipynb")
    if partial.exists():
        os.replace(partial, failed)
    excerpt = "\n".join(log.strip().splitlines()[-ERROR_EXCERPT:])
    raise ChapterError(f"{name}: failed (exit {status}); the executed copy is {failed}\n{excerpt}")


def error_outputs(notebook: Mapping) -> list[str]:
    """Return the errors shown in a notebook's outputs."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return [f"{output['ename']}: {output['evalue']}" for output in outputs if output["output_type"] == "error"]


# ---------------------------------------------------------------- the book


def build_book(profile: str = "classroom") -> Path:
    """Execute what is out of date, render the book, and return the page to open.

    Raises
    ------
    ChapterError : if a chapter fails, a verdict is not the acknowledged one, or the book has a warning.
    """
    execute(None, profile)
    surprises = claims.changed(claims.read_records(build_folder(profile) / "records"))
    if surprises:
        raise ChapterError("the book's claims and its measurements disagree:\n" + "\n".join(surprises))
    stage(profile)
    folder = build_folder(profile)
    start = "from jupyter_book.cli.main import main; main()"  # the package has no __main__
    command = [sys.executable, "-c", start, "build", folder / "source", "--path-output", folder / "html"]
    command += ["-W", "-n", "--keep-going", "--quiet"]
    environment = {**os.environ, "PERIODIC_RECORDS": str(folder / "records"), "PERIODIC_ROOT": str(root())}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        shutil.rmtree(folder / "html" / "_build" / ".doctrees", ignore_errors=True)  # so that warnings come again
        raise ChapterError(f"the book has warnings or errors:\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
    return folder / "html" / "_build" / "html" / "index.html"


def stage(profile: str) -> Path:
    """Lay out what Jupyter Book reads: book/'s pages, executed chapters, the scorecard, figures, MathJax.

    A file is written only if its content changed, so that Sphinx re-reads only what did.
    """
    folder, book = build_folder(profile) / "source", root() / "book"
    records = claims.read_records(build_folder(profile) / "records")
    wanted: dict[Path, bytes] = {}
    for path in book.rglob("*"):
        hidden = any(part.startswith((".", "__pycache__")) for part in path.relative_to(book).parts)
        if path.is_file() and path.suffix != ".ipynb" and not hidden:
            wanted[path.relative_to(book)] = path.read_bytes()
    for name in chapters():
        wanted[Path(f"{name}.ipynb")] = rendered(read(_copy(name, profile)))
    wanted[Path("scorecard.md")] = claims.scorecard(records).encode()
    wanted[Path("glossary.md")] = glossary.page().encode()
    for path in (build_folder(profile) / "records" / "figures").glob("*.png"):
        wanted[Path("figures") / path.name] = path.read_bytes()
    wanted[Path("_vendor/mathjax/tex-svg-full.js")] = _mathjax()
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder) not in wanted:
            path.unlink()
    for name, content in wanted.items():
        target = folder / name
        if not target.exists() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    return folder


def rendered(notebook: dict) -> bytes:
    """Return an executed notebook as the book shows it: text alternatives where MyST-NB reads them, no stderr.

    Raises
    ------
    ChapterError : if a cell failed.
    """
    errors = error_outputs(notebook)
    if errors:
        raise ChapterError(f"an executed chapter has errors in its outputs: {errors}")
    for cell in notebook["cells"]:
        outputs = [out for out in cell.get("outputs", []) if out.get("name") != "stderr"]
        if cell["cell_type"] == "code":
            cell["outputs"] = outputs
        for output in outputs:
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:
                cell["metadata"].setdefault("mystnb", {})["image"] = {"alt": alt}
        tags = cell["metadata"].get("tags", [])
        if "injected-parameters" in tags:
            cell["metadata"]["tags"] = [*tags, "remove-cell"]
        cell["metadata"].pop("papermill", None)
        cell["metadata"].pop("execution", None)
    notebook["metadata"].pop("papermill", None)
    return json.dumps(notebook, indent=1).encode()


def _mathjax() -> bytes:
    """Return MathJax as one file, from the package that ships it."""
    distribution = importlib.metadata.distribution("sphinx-mathjax-offline")
    found = [file for file in distribution.files or [] if file.name == "tex-svg-full.js"]
    if not found:
        raise ChapterError("sphinx-mathjax-offline has no tex-svg-full.js: reinstall it (`make setup`).")
    return Path(distribution.locate_file(found[0])).read_bytes()


def table_of_contents() -> list[str]:
    """Return the files that book/_toc.yml names, without ending."""
    content = yaml.safe_load((root() / "book" / "_toc.yml").read_text(encoding="utf-8"))
    parts = content.get("parts", [])
    return [content["root"], *(chapter["file"] for part in parts for chapter in part["chapters"])]
