"""The pack for a class: notebooks for students and teachers, solutions, results, plans, a handout.

All of it is made from the chapters, book/exercises.yml and book/lessons.yml; zip files and their
checksums depend on what is in them, not on when they were made.
"""

from __future__ import annotations

import hashlib
import html
import textwrap
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from periodic_lib import experiments, glossary
from periodic_lib.project import root, write_whole
from periodic_lib.publishing import claims, copies, execution, notebooks, printing, slides
from periodic_lib.publishing.book import mathjax
from periodic_lib.teaching import exercises, lessons
from periodic_lib.teaching.answers import Answer, Key
from periodic_lib.teaching.exercises import Exercise

WORDS = ("destabilization", "period", "convergence", "periodic", "equilibrium")  # on the handout


def pack(folder: Path, profile: str = "classroom") -> list[str]:
    """Write the pack into a folder; return a sentence for everything that is not in it.

    Raises
    ------
    ConfigError : if an exercise or a plan cannot be used.
    """
    records = claims.read_records(notebooks.build_folder(profile) / "records")
    chapters = {name: exercises.load(name, records) for name in exercises.declared()}
    every = [exercise for chapter in chapters.values() for exercise in chapter]
    missing = [f"Exercise {e.label} is not checked: {e.missing}." for e in every if e.missing]
    for name, some in chapters.items():
        chapter = notebooks.read(root() / "book" / f"{name}.ipynb")
        notebooks.write(student(notebooks.title(chapter), some), folder / f"student/{name}.ipynb")
        notebooks.write(instructor(chapter, some, records), folder / f"instructor/{name}.ipynb")
    printed = {
        "instructor/solutions": solutions(chapters, profile),
        "handout": handout(every),
        **{
            name: f"# {plan['title']}\n\n{lessons.plan(name)}"
            for name, plan in lessons.declared().items()
        },
    }
    write_whole(folder / "math.js", mathjax())
    for name, text in printed.items():
        write_whole(folder / f"{name}.md", text)
        write_whole(folder / f"{name}.html", page(text, "../" * name.count("/")))
    missing += _slides(folder / "slides.html", profile)
    missing += _print_handout(folder / "handout.html") + _archives(folder, list(chapters), profile)
    write_whole(folder / "README.md", README.format(missing=_bullets(missing or ["Nothing."])))
    write_whole(folder / "SHA256SUMS", checksums(folder))
    return missing


# ---------------------------------------------------------------- notebooks


def student(title: str, some: Iterable[Exercise]) -> dict:
    """Return a notebook of exercises: for each its text, a hint, code to start from, an answer."""
    cells = [_text(START.format(title=title)), _key_cell(some)]
    for one in some:
        head = f"## Exercise {one.label}\n\n*{_facts(one)}*\n\n{one.text}"
        cells.append(_text(f"{head}\n\n**To be answered:** {one.ask}{_hint(one)}"))
        cells.append(_code(one.stub)) if one.stub else None
        cells.append(_answer_cell(one))
    return {"cells": cells}


def instructor(chapter: Mapping, some: Iterable[Exercise], records: Mapping[str, dict]) -> dict:
    """Return a chapter with the answer to each exercise, checked, after its solution.

    Its text is plain: numbers that chapters published, names of sources (`copies.plain`).
    """
    waiting, cells = list(some), [_key_cell(some)]
    for cell in chapter["cells"]:
        if cell["cell_type"] == "markdown":
            cell = {**cell, "source": copies.plain(notebooks.source(cell), records)}
        cells.append(cell)
        if "solution" in cell["metadata"].get("tags", []):
            one = waiting.pop(0)
            cells.append(_text(_for_the_teacher(one)))
            if one.question:
                cells.append(_code(f'check("{one.label}", {one.question.answer!r})'))
    return {"cells": [cells[1], cells[0], *cells[2:]]}


def _key_cell(some: Iterable[Exercise]) -> dict:
    packed = Key({one.label: one.question for one in some if one.question}).packed()
    lines = "\n".join(f'    "{line}"' for line in textwrap.wrap(packed, 72))
    return _code(
        f"from periodic_lib.teaching.answers import Key\n\ncheck = Key.read(\n{lines}\n)",
        "hide-input",
    )


def _answer_cell(one: Exercise) -> dict:
    if one.question is None:
        return _text(f"Not checked here: {one.missing}. Compare with your neighbours.")
    numbers = 1 if one.question.choices else len(one.question.answer)
    dots = "..." if numbers == 1 else f"[{', '.join(['...'] * numbers)}]"
    return _code(f'# {one.question.form()}\nanswer = {dots}\ncheck("{one.label}", answer)')


def _facts(one: Exercise) -> str:
    return f"{one.kind}, level {one.level} of 3, {one.minutes} minutes"


def _hint(one: Exercise) -> str:
    hint = one.question.hint if one.question else ""
    return f"\n\n<details><summary>Hint</summary>{html.escape(hint)}</details>" if hint else ""


def _for_the_teacher(one: Exercise) -> str:
    """Return the answer to an exercise, and the wrong ones to be expected (Markdown)."""
    head = f"**{one.label}** ({_facts(one)}). {one.ask}"
    if one.question is None:
        return f"{head}\n\nNot checked: {one.missing}."
    within = "" if one.question.choices else f", within {one.question.tolerance:.1%}"
    rows = [f"| {said(answer)} | {why} |" for answer, why in one.question.wrong]
    table = "\n".join(["| Wrong answer | What was missed |", "|---|---|", *rows])
    return f"{head}\n\nAnswer: **{said(one.question.answer)}**{within}.\n\n{table}"


def said(answer: Answer) -> str:
    """Return an answer as it is printed.

    >>> said([0.5, 1234.5]), said("never")
    ('0.5; 1234', 'never')
    """
    if isinstance(answer, str):
        return answer
    return "; ".join(f"{x:.0f}" if 1000 <= abs(x) < 1e6 else f"{x:.3g}" for x in answer)


def _text(source: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def _code(source: str, *tags: str) -> dict:
    return {"cell_type": "code", "metadata": {"tags": list(tags)} if tags else {}, "source": source}


# ---------------------------------------------------------------- on paper


def solutions(chapters: Mapping[str, Iterable[Exercise]], profile: str) -> str:
    """Return all solutions on one page (Markdown), with what they printed if that is up to date."""
    parts = ["# Solutions"]
    for name, some in chapters.items():
        parts.append(f"## {notebooks.title(notebooks.read(root() / 'book' / f'{name}.ipynb'))}")
        printed = _printed(name, profile)
        for one in some:
            parts += [f"### Exercise {one.label}", one.text, f"```python\n{one.solution}\n```"]
            if printed.get(one.label):
                parts.append(f"```text\n{printed[one.label]}\n```")
            parts.append(_for_the_teacher(one))
    return "\n\n".join(parts) + "\n"


def _printed(chapter: str, profile: str) -> dict[str, str]:
    """Return what each solution printed when its chapter was executed; nothing if that is old."""
    if not execution.is_current(chapter, profile):
        return {}
    executed = exercises.texts(notebooks.read(execution.copy_of(chapter, profile)))
    return {
        f"{chapter[:2]}.{count}": "".join(
            "".join(out.get("text", "")) for out in cell["outputs"] if out.get("name") == "stdout"
        ).strip()
        for count, (_, cell) in executed.items()
    }


def handout(every: Iterable[Exercise]) -> str:
    """Return the handout (Markdown): what to know, and the exercises of the plan `lesson`."""
    steps = [
        step for session in lessons.declared()["lesson"]["sessions"] for step in session["steps"]
    ]
    labels = [label for step in steps for label in step.get("exercises", [])]
    asked = [f"**{e.label}** {e.text}\n\n*{e.ask}*\n\n{LINES}" for e in every if e.label in labels]
    words = _bullets(f"*{glossary.TERMS[w].term}*: {glossary.TERMS[w].definition}" for w in WORDS)
    text = (root() / "book" / "handout.md").read_text(encoding="utf-8")
    return text.replace("TERMS", words).replace("EXERCISES", "\n\n".join(asked))


def page(text: str, up: str = "") -> str:
    """Return a page of HTML from Markdown with formulas, tables and rules, on A4 when printed.

    `up`: the way to the folder of math.js.
    """
    title = text.splitlines()[0].removeprefix("# ")
    return PAGE.format(title=html.escape(title), up=up, body=printing.markdown(text))


def _print_handout(source: Path) -> list[str]:
    """Print the handout to a PDF file beside it; return a sentence if that cannot be done."""
    if printing.print_to_pdf(source, source.with_suffix(".pdf")):
        return []
    return ["handout.pdf is not there: no Chromium printed it. Print handout.html in a browser."]


def _slides(target: Path, profile: str) -> list[str]:
    """Write the slides; return a sentence if no chapter is executed."""
    every = slides.of_book(profile)
    target.unlink(missing_ok=True)
    if not every:
        return ["slides.html is not there: `make book` executes the chapters; then again."]
    write_whole(target, every)
    return []


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


# ---------------------------------------------------------------- archives


def _archives(folder: Path, chapters: list[str], profile: str) -> list[str]:
    """Write the zip files; return a sentence for each that is not complete."""
    results, missing = trained(chapters, profile)
    declaration = {"book/experiments.yml": root() / "book" / "experiments.yml"}
    published = {**files("data/published"), **files("data/text")}
    rendered = notebooks.build_folder(profile) / "html" / "_build" / "html"
    book = {str(p.relative_to(rendered)): p for p in sorted(rendered.rglob("*")) if p.is_file()}
    if "index.html" not in book:
        book = {}
        missing.append("book.zip is not there: `make book` renders the book; then again.")
    contents = {"results.zip": declaration | results, "data.zip": published}
    for name, some in {**contents, "library.zip": library(), "book.zip": book}.items():
        (folder / name).unlink(missing_ok=True)
        if some:
            archive(folder / name, some)
    return missing


def trained(chapters: Iterable[str], profile: str) -> tuple[dict[str, Path], list[str]]:
    """Return the results that chapters read, by their place in a project, and what is missing."""
    plans = {p.name: p for c in chapters for p in execution.experiments_of(c, profile)}
    waits = [p for p in plans.values() if experiments.state(p)[0] != "ready"]
    ready = [p for name, p in plans.items() if p not in waits]
    origins = [origin for p in ready for origin in experiments.files(p)]
    cache = experiments.store.folder()
    found = {f"data/cache/{origin.relative_to(cache)}": origin for origin in origins}
    if not waits:
        return found, []
    some = ", ".join(p.name for p in waits[:3]) + (", ..." if len(waits) > 3 else "")
    minutes = sum(p.minutes or 0 for p in waits)
    return found, [
        f"results.zip has {len(ready)} of {len(plans)} results; `make book` trains the others "
        f"({some}; about {minutes:.1f} minutes on two cores), then again."
    ]


def library() -> dict[str, Path]:
    """Return the files from which pip installs the library, by their path in the project."""
    top = ("pyproject.toml", "README.md", "LICENSE")
    return files("periodic_lib", "*.py") | {name: root() / name for name in top}


def files(folder: str, pattern: str = "*") -> dict[str, Path]:
    """Return the files below a folder of the project, by their path in the project."""
    found = (root() / folder).rglob(pattern)
    return {str(p.relative_to(root())): p for p in sorted(found) if p.is_file()}


def archive(path: Path, files: Mapping[str, Path]) -> None:
    """Write a zip file with a list of checksums in it, SHA256SUMS; equal contents, equal bytes."""
    sums, whole = [], path.with_suffix(".partial")
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for name, origin in files.items():
            content = origin.read_bytes()
            sums.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
            target.writestr(_entry(name), content)
        target.writestr(_entry("SHA256SUMS"), "".join(sums))
    whole.replace(path)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)  # dated 1980
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    return entry


def checksums(folder: Path) -> str:
    """Return a line for each file of a folder, as `sha256sum -c` reads them."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "SHA256SUMS")
    return "".join(
        f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(folder)}\n" for p in files
    )


START = """# {title}: exercises

Read the chapter, then answer here. Put your answer in place of the dots and run the cell: it says
whether that is right. Run the folded cell below first."""
LINES = '<div class="lines"></div>'
README = """# A pack for a class

| File | For |
|---|---|
| `student/` | a notebook of exercises for each chapter, which checks answers: give copies |
| `instructor/` | the chapters with answers in place; all solutions on one page |
| `lesson.html`, `module.html` | plans: one lesson, three sessions; `.md` is the same as text |
| `handout.html`, `handout.pdf` | two pages to be printed |
| `slides.html` | the figures, each with what it says: arrow keys, or printed |
| `library.zip` | the library, all that a student's notebook needs |
| `results.zip`, `data.zip` | trained results, published values: unpack both into one folder |
| `book.zip` | the book, to be opened without a network: `index.html` |
| `SHA256SUMS` | whether all came over whole; each zip file has its own |

Students: `pip install ./library.zip jupyterlab` and `jupyter lab`, once, with a network. Then
`sha256sum -c SHA256SUMS` says "OK" of every file, and no network is needed any more.

Teachers: unpack `results.zip` into a clone. The notebooks of `instructor/` are executed there, and
train nothing then but what a solution trains itself.

Not in this pack:

{missing}
"""
PAGE = r"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
@page {{ size: A4; margin: 15mm }}
body {{ font: 10.5pt/1.4 system-ui, sans-serif; max-width: 48em; margin: auto; padding: 0 1em }}
table {{ border-collapse: collapse }}
td, th {{ border: 1px solid #999; padding: 2px 6px; text-align: left; vertical-align: top }}
pre {{ background: #f4f4f4; padding: 6px; white-space: pre-wrap }}
hr {{ border: 0; break-after: page }}
.lines {{ height: 18mm; border-bottom: 1px solid #999 }}
h2, h3 {{ break-after: avoid }}
</style>
<script src="{up}math.js"></script>
{body}
</html>
"""
