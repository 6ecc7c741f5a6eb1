"""Forms of the book to take away: PDF, EPUB, slides, all figures, texts to translate, an archive.

Each is made from the executed chapters or the rendered pages, and written to `build/`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from periodic_lib import experiments
from periodic_lib.checks import known_names
from periodic_lib.project import ConfigError, print_message, root, write_whole
from periodic_lib.publishing import book, claims, copies, execution, notebooks, printing, slides
from periodic_lib.publishing.notebooks import ChapterError
from periodic_lib.teaching import classroom

PRINTING_SECONDS = 240
DRAWER = "from periodic_lib.publishing import drawings\n\ndrawings.keep({folder!r})"
PARTS = {  # of the archive: everything that a chapter reads, and no results
    "book": "experiments.yml",
    "data/claims": "*",
    "data/published": "*",
    "data/results": "*",
    "data/text": "*",
}


def export(form: str, profile: str = "classroom") -> Path:
    """Write one of `FORMS`; return the file or folder.

    Raises
    ------
    ConfigError : for an unknown form, or one that needs what is not there yet.
    ChapterError : if the book has a warning, or a chapter fails.
    """
    known_names("form", [form], tuple(FORMS))
    known_names("profile", [profile], experiments.PROFILES[:2])
    folder = root() / "build"
    folder.mkdir(exist_ok=True)
    return FORMS[form](profile, folder)


def pdf(profile: str, folder: Path) -> Path:
    """Print the rendered book to `book.pdf`, with contents and bookmarks."""
    rendered = notebooks.build_folder(profile) / "html" / "_build" / "html"
    if not (rendered / "index.html").exists():
        raise ConfigError(f"no book is rendered at profile {profile!r}: `make book` renders it.")
    page, target = notebooks.build_folder(profile) / "print" / "book.html", folder / "book.pdf"
    write_whole(page, printing.one_page(rendered))
    if not printing.print_to_pdf(page, target, PRINTING_SECONDS):
        raise ConfigError(
            f"no Chromium printed the book: install Chromium or Chrome, or open {page} in another "
            "browser and print it to a file."
        )
    return target


def epub(profile: str, folder: Path) -> Path:
    """Write `book.epub`, with formulas as MathML."""
    made = book.build_as("epub", profile) / "book.epub"
    target, whole = folder / "book.epub", folder / "book.epub.partial"
    with zipfile.ZipFile(made) as origin, zipfile.ZipFile(whole, "w") as copy:
        for entry in origin.infolist():
            content = origin.read(entry)
            if entry.filename == "content.opf":
                content = _with_formulas(content.decode(), origin).encode()
            copy.writestr(entry, content)
    return whole.replace(target)


def _with_formulas(manifest: str, pages: zipfile.ZipFile) -> str:
    """Return an EPUB's manifest that says which pages have formulas, as the standard asks."""

    def declared(found: re.Match) -> str:
        return found[0] + (' properties="mathml"' if b"<math" in pages.read(found[1]) else "")

    return re.sub(r'href="([^"]+\.xhtml)"(?= media)', declared, manifest)


def texts(profile: str, folder: Path) -> Path:
    """Write the book's texts to be translated, a .pot file a page, to `gettext/`."""
    made = book.build_as("gettext", profile)
    target = folder / "gettext"
    shutil.rmtree(target, ignore_errors=True)
    for path in made.glob("*.pot"):
        write_whole(target / path.name, path.read_bytes())
    return target


def talk(profile: str, folder: Path) -> Path:
    """Write `slides.html`: the takeaways of executed chapters, each with its figure."""
    every = slides.of_book(profile)
    if not every:
        raise ConfigError(f"no chapter is executed at profile {profile!r}: `make book` does it.")
    write_whole(folder / "slides.html", every)
    return folder / "slides.html"


def archive(profile: str, folder: Path) -> Path:
    """Write `archive.zip`: all results, and what else chapters need to run without a clone."""
    trained, missing = classroom.trained(notebooks.chapters(), profile)
    for sentence in missing:
        print_message(sentence.replace("results.zip", "archive.zip"))
    files = classroom.library()
    for part, pattern in PARTS.items():
        files |= classroom.files(part, pattern)
    with tempfile.TemporaryDirectory() as place:
        files |= _copies(Path(place), profile)
        readme = Path(place) / "README.md"
        readme.write_text(ARCHIVE, encoding="utf-8")
        classroom.archive(folder / "archive.zip", files | trained | {"README.md": readme})
    return folder / "archive.zip"


def _copies(place: Path, profile: str) -> dict[str, Path]:
    """Write every chapter's copy for readers; return name in an archive -> file."""
    records = claims.read_records(notebooks.build_folder(profile) / "records")
    for name in notebooks.chapters():
        chapter = notebooks.read(root() / "book" / f"{name}.ipynb")
        notebooks.write(copies.readable(chapter, records), place / f"{name}.ipynb")
    return {f"book/{path.name}": path for path in sorted(place.glob("*.ipynb"))}


# ---------------------------------------------------------------- figures


def figures(profile: str, folder: Path) -> Path:
    """Write `figures.zip`: every figure as SVG, its data as CSV, its code and its description.

    Chapters are executed once more for it, from results that are there.
    """
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        with ThreadPoolExecutor(execution.workers()) as pool:
            list(pool.map(lambda name: _draw(name, profile, place), notebooks.chapters()))
        drawn = {f"figures/{p.name}": p for p in sorted((place / "figures").iterdir())}
        write_whole(place / "README.md", _list_of_figures(place / "figures"))
        classroom.archive(folder / "figures.zip", drawn | {"README.md": place / "README.md"})
    return folder / "figures.zip"


def _draw(name: str, profile: str, place: Path) -> None:
    """Execute a chapter in which every figure that it shows is kept.

    Raises
    ------
    ChapterError : if it fails.
    """
    chapter = notebooks.read(root() / "book" / f"{name}.ipynb")
    keeper = DRAWER.format(folder=str(place / "figures"))
    chapter["cells"].insert(0, {"cell_type": "code", "metadata": {}, "source": keeper})
    notebooks.write(chapter, place / f"{name}.ipynb")
    done = subprocess.run(
        execution.papermill(place / f"{name}.ipynb", place / f"{name}.done.ipynb", profile),
        env=execution.environment(profile, place / f"{name}.log")
        | {"PERIODIC_RECORDS": str(place / "records")},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ChapterError(f"{name}: failed (exit {done.returncode})\n{done.stderr[-3000:]}")
    print_message(f"{name}: drawn")


def _list_of_figures(folder: Path) -> str:
    """Return the archive's list of figures: file, and what is seen (Markdown)."""
    rows = [f"| `{p.stem}` | {p.read_text().strip()} |" for p in sorted(folder.glob("*.txt"))]
    return FIGURES.format(rows="\n".join(rows))


FORMS: Mapping[str, Callable[[str, Path], Path]] = {
    "pdf": pdf,
    "epub": epub,
    "slides": talk,
    "figures": figures,
    "gettext": texts,
    "archive": archive,
}
FIGURES = """# The figures

In `figures/` each figure has four files: `.svg`, the drawing; `.csv`, what is drawn, a row per
point, corner or cell of a map; `.py`, the cell that drew it, which needs the cells above it in its
chapter; `.txt`, what is seen.

| Figure | What is seen |
|---|---|
{rows}
"""
ARCHIVE = """# Chapters and results, without a clone

`book/` has every chapter, `data/` the trained results and all else that chapters read.

    python -m venv .venv && . .venv/bin/activate
    pip install . jupyterlab
    jupyter lab book

A chapter that was downloaded from the book runs anywhere in this folder; elsewhere, set
PERIODIC_ROOT to this folder. Nothing is trained that is here; other values are.
`sha256sum -c SHA256SUMS` says whether all came over whole.
"""
