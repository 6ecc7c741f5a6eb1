"""Forms of the book to take away: what is written is whole, opens, and leads where it says."""

import csv
import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from periodic_lib import experiments, exports
from periodic_lib.cli import main
from periodic_lib.project import ConfigError
from periodic_lib.publishing import drawings, notebooks, printing, slides
from periodic_lib.publishing.chapters import Chapter
from periodic_lib.teaching import classroom

ROOT = Path(__file__).parents[2]
ALT = "A line that rises from three to four, and dots beside it, for a test of what is kept."


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project in which nothing was executed or rendered."""
    for name in ("book", "data", "periodic_lib", "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("PERIODIC_ROOT", str(tmp_path))
    monkeypatch.setenv("PERIODIC_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "pfd"], "unknown form 'pfd'; known: pdf, epub, slides, figures, gettext, archive. Did you mean"),
        (["export", "pdf", "--profile", "paper"], "unknown profile 'paper'; known: smoke, classroom"),
        (["export", "pdf"], "no book is rendered at profile 'classroom': `make book` renders it."),
        (["export", "slides"], "no chapter is executed at profile 'classroom': `make book` does it."),
        (
            ["export", "epub"],
            "19 chapters were not executed at profile 'classroom' (01_scale_invariance is the first)",
        ),
        (["export", "gettext"], "`make book` does it."),
    ],
)
def test_what_cannot_be_written_is_said_with_what_to_do(project, arguments, said, capsys):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
    assert not list((project / "build").rglob("*.partial")) if (project / "build").exists() else True


# ---------------------------------------------------------------- PDF


def rendered(folder):
    """Write a rendered book of three pages with what a page of all pages must mend."""
    page = '<html><article><h1 id="top">{name}<a class="headerlink" href="#top">#</a></h1>{body}</article></html>'
    bodies = dict.fromkeys(notebooks.table_of_contents(), "<p>Text.</p>")
    bodies["intro"] = '<a href="05_jumps.html#top">on</a><a href="#top">up</a><a href="https://a.org/b.html">out</a>'
    bodies["05_jumps"] = (
        '<details class="admonition hide above-input"><summary>Code of the figure</summary>draw()</details>'
        '<details class="admonition hide above-input"><summary>Solution</summary>solve()</details>'
        '<img src="_images/a.png"><script>alert()</script>'
    )
    for name, body in bodies.items():
        (folder / f"{name}.html").write_text(page.format(name=name.upper(), body=body))
    return folder


def test_the_page_of_all_pages_has_every_page_and_its_links_lead_into_it(tmp_path):
    text = printing.one_page(rendered(tmp_path))
    places = re.findall(r'id="([^"]+)"', text)
    assert len(places) == len(set(places))
    assert set(notebooks.table_of_contents()) <= set(places)
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(places)
    assert '<a href="#05_jumps--top">on</a><a href="#intro--top">up</a><a href="https://a.org/b.html">out</a>' in text
    assert '<a href="#05_jumps">05_JUMPS</a>' in text  # in the contents
    assert (tmp_path / "_images" / "a.png").as_uri() in text


def test_folded_code_is_left_out_of_print_and_solutions_are_open(tmp_path):
    text = printing.one_page(rendered(tmp_path))
    assert "draw()" not in text
    assert re.search(r"<details[^>]* open=[^>]*><summary>Solution</summary>solve\(\)", text)
    assert "alert" not in text


def test_without_chromium_the_command_says_what_to_install(project, monkeypatch, capsys):
    folder = project / "build" / "classroom" / "html" / "_build" / "html"
    folder.mkdir(parents=True)
    (rendered(folder) / "index.html").touch()
    monkeypatch.setattr(printing.shutil, "which", lambda name: None)
    assert main(["export", "pdf"]) == 2
    said = capsys.readouterr().err
    assert "no Chromium printed the book: install Chromium or Chrome, or open " in said
    assert Path(re.search(r"open (\S+) in another", said)[1]).exists()


@pytest.mark.skipif(not any(map(printing.shutil.which, printing.BROWSERS)), reason="needs Chromium")
def test_a_page_is_printed_with_bookmarks(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<h1>One</h1><p>Text.</p><h1 style='break-before: page'>Two</h1>")
    assert printing.print_to_pdf(page, tmp_path / "page.pdf")
    content = (tmp_path / "page.pdf").read_bytes()
    assert content.startswith(b"%PDF-")
    assert b"/Count 2" in content
    assert b"/Outlines" in content


# ---------------------------------------------------------------- EPUB, texts to translate


SPHINX = "import sys; from sphinx.cmd.build import main; raise SystemExit(main(sys.argv[1:]))"
PAGE = """# Title

Rises to {result}`01_scale_invariance.x:.1f`, with $\\rho'^2 = a^2\\rho^2$ and $\\tfrac23$.

$$
x &= \\dots \\\\
y &= 2
$$

```{claim-filter}
```

<p>[a](b)</p>
"""


@pytest.fixture(scope="module")
def small_book(tmp_path_factory):
    """A book of one page, and the environment of a process that builds it."""
    place = tmp_path_factory.mktemp("small")
    source, records = place / "source", place / "records"
    source.mkdir()
    records.mkdir()
    (records / "01_scale_invariance.json").write_text('{"numbers": {"x": 2.25}, "claims": {}, "figures": {}}')
    (source / "index.md").write_text(PAGE)
    (source / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'book' / '_ext')!r})\n"
        "extensions = ['myst_nb', 'periodic_book', 'epub_book']\nmyst_enable_extensions = ['dollarmath', 'amsmath']\n"
        "project = epub_title = epub_description = 'Book'\nversion = '1'\nepub_copyright = author = 'A'\n"
        "epub_identifier = epub_uid = 'book'\nepub_scheme = 'name'\nlocale_dirs = ['locale']\n"
    )
    places = {"PERIODIC_ROOT": str(ROOT), "PERIODIC_RECORDS": str(records), "PYTHONPATH": str(ROOT)}
    return source, {**os.environ, **places}


def build(small_book, builder, target, *options):
    source, environment = small_book
    options = ("-q", "-W", "-d", f"{target}.doctrees", "-b", builder, *options)
    command = [sys.executable, "-c", SPHINX, *options, source, target]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return target


def test_pages_of_the_epub_can_be_parsed_and_have_formulas_without_a_script(small_book, tmp_path):
    made = build(small_book, "epub", tmp_path / "epub") / "Book.epub"
    with zipfile.ZipFile(made) as book:
        assert book.namelist()[0] == "mimetype"
        text = book.read("index.xhtml").decode()
        tree = ElementTree.fromstring(text)
        manifest = exports._with_formulas(book.read("content.opf").decode(), book)
    formulas = list(tree.iter("{http://www.w3.org/1998/Math/MathML}math"))
    assert len(formulas) == 3
    first = "".join("".join(formulas[0].itertext()).split())
    assert first == "ρ′2=a2ρ2"
    assert formulas[0].find(".//{*}msup/{*}mi").text == "ρ"  # the prime's square is the letter's
    assert "2.2" in "".join(tree.itertext())
    assert "<script" not in text
    assert "claim-filter" not in text
    assert re.search(r'href="index.xhtml" properties="mathml" media', manifest)
    assert 'href="nav.xhtml" media' in manifest


def test_a_translated_paragraph_keeps_its_numbers(small_book, tmp_path):
    template = (build(small_book, "gettext", tmp_path / "pot") / "index.pot").read_text()
    original = re.search(r'^msgid "(Rises to .*)"$', template, re.MULTILINE)[1]
    assert "{result}`01_scale_invariance.x:.1f`" in original
    folder = tmp_path / "locale" / "de" / "LC_MESSAGES"
    folder.mkdir(parents=True)
    german = original.replace("Rises to", "Steigt auf").replace("with", "mit")
    head = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\n'
    (folder / "index.po").write_text(f'{head}msgid "{original}"\nmsgstr "{german}"\n')
    options = ("-D", "language=de", "-D", f"locale_dirs={tmp_path / 'locale'}")
    shown = (build(small_book, "html", tmp_path / "html", *options) / "index.html").read_text()
    assert re.search(r'Steigt auf <span class="result">2\.\d</span>', shown)
    assert "Title" in shown  # not translated yet


# ---------------------------------------------------------------- slides


def test_a_takeaway_has_the_last_figure_before_it_and_one_without_is_no_slide():
    def picture(name):
        return {"data": {"image/png": name}, "metadata": {"image/png": {"alt": f"seen in {name}"}}}

    def box(text):
        return {"cell_type": "markdown", "source": f":::{{admonition}} Takeaway\n:class: takeaway\n{text}\n:::"}

    code = {"cell_type": "code", "source": "", "outputs": [picture("A"), picture("B")]}
    title = {"cell_type": "markdown", "source": "# Chapter"}
    numbers = {"01_x": {"numbers": {"n": 3}}}
    cells = [title, code, box("It is {result}`01_x.n`."), box("No figure."), code, box("Again.")]
    found = slides.of_chapter({"cells": cells}, numbers)
    assert [(one.takeaway, one.picture, one.alt) for one in found] == [
        ("It is 3.", "B", "seen in B"),
        ("Again.", "B", "seen in B"),
    ]
    page = slides.deck(found, "mathjax()")
    assert page.count("<section") == 3
    assert page.count('src="data:image/png;base64,B"') == 2
    assert not re.findall(r'(?:src|href)="https?:', page)


# ---------------------------------------------------------------- figures


@pytest.fixture
def figure():
    drawn = Figure(figsize=(3, 2))
    left, middle, right = drawn.subplots(1, 3)
    left.plot([1, 2], [3, 4], label="loss")
    left.scatter([1, 2], [5, 6], c=[0.1, 0.2], label="runs")
    left.bar([1], [7])
    left.set_xlabel("step")
    middle.pcolormesh([0, 1, 2], [0, 1], [[8, 9]])
    right.imshow([[1, 2], [3, np.nan]], origin="lower", extent=(0, 2, 0, 2))
    return drawn


def rows(text, kind, panel):
    every = csv.DictReader(io.StringIO(text))
    return [row for row in every if row["kind"] == kind and row["panel"] == str(panel)]


def test_the_data_of_a_figure_are_what_was_drawn(figure):
    text = drawings.data(figure).to_csv(index=False)
    assert [(r["series"], r["x"], r["y"], r["x_axis"]) for r in rows(text, "line", 1)] == [
        ("loss", "1.0", "3.0", "step"),
        ("loss", "2.0", "4.0", "step"),
    ]
    assert [(r["x"], r["y"], r["value"]) for r in rows(text, "dot", 1)] == [
        ("1.0", "5.0", "0.1"),
        ("2.0", "6.0", "0.2"),
    ]
    assert max(float(row["y"]) for row in rows(text, "outline", 1)) == 7
    assert [(r["x"], r["value"]) for r in rows(text, "cell", 2)] == [("0.5", "8.0"), ("1.5", "9.0")]
    assert [(r["x"], r["y"], r["value"]) for r in rows(text, "cell", 3)] == [
        ("0.5", "0.5", "1.0"),
        ("1.5", "0.5", "2.0"),
        ("0.5", "1.5", "3.0"),
        ("1.5", "1.5", ""),
    ]


def test_a_drawing_is_svg_with_its_words_as_text_and_the_same_twice(figure):
    drawn = drawings.svg(figure)
    assert drawn == drawings.svg(figure)
    words = [element.text for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert "step" in words


def test_what_a_chapter_shows_is_kept_beside_and_shown_as_before(figure, tmp_path, monkeypatch):
    monkeypatch.setenv("PERIODIC_RECORDS", str(tmp_path / "records"))
    monkeypatch.setattr(Chapter, "show", Chapter.show)  # restored afterwards
    drawings.keep(str(tmp_path / "kept"))
    Chapter("01_scale_invariance", "smoke").show(figure, "all", ALT)
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {
        f"01_scale_invariance-all.{ending}" for ending in ("svg", "csv", "py", "txt")
    }
    assert (tmp_path / "records" / "figures" / "01_scale_invariance-all.png").exists()
    assert f"| `01_scale_invariance-all` | {ALT} |" in exports._list_of_figures(tmp_path / "kept")


# ---------------------------------------------------------------- archive


def test_a_chapter_runs_in_the_archive_with_the_installed_library_and_no_clone(project, tmp_path):
    experiments.run_experiment("rescaling", "smoke", progress=False)
    written = exports.export("archive", "smoke")
    place, library = tmp_path / "unpacked", tmp_path / "library"
    with zipfile.ZipFile(written) as archive:
        archive.extractall(place)
        names = set(archive.namelist())
    assert {"data/cache/rescaling/smoke.nc", "book/05_jumps.ipynb", "data/claims/claims.yml", "README.md"} <= names
    assert not [name for name in names if "__pycache__" in name]
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", library, place], check=True, capture_output=True)
    assert (library / "periodic_lib" / "theory").is_dir()
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PERIODIC_")}
    clean |= {"PYTHONPATH": str(library), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1", "PERIODIC_OFFLINE": "1"}
    chapter = place / "elsewhere" / "01_scale_invariance.ipynb"  # as downloaded, anywhere in the folder
    chapter.parent.mkdir()
    (place / "book" / chapter.name).rename(chapter)
    command = [sys.executable, "-m", "papermill", chapter, place / "done.ipynb", "-p", "profile", "smoke"]
    command += ["-k", "python3", "--cwd", chapter.parent, "--no-progress-bar"]
    done = subprocess.run(list(map(str, command)), env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    executed = notebooks.read(place / "done.ipynb")
    assert not notebooks.error_outputs(executed)
    assert str(ROOT) not in str([cell.get("outputs") for cell in executed["cells"]])
    assert (place / "build" / "interactive" / "01_scale_invariance.json").exists()  # in the archive, not in the clone


def test_an_incomplete_archive_says_what_is_missing(project, monkeypatch, capsys):
    monkeypatch.setattr(exports.classroom, "archive", lambda path, files: None)
    exports.archive("smoke", project / "build")
    assert re.search(r"archive.zip has \d+ of \d+ results; `make book` trains the others", capsys.readouterr().err)


def test_an_unknown_form_is_refused():
    with pytest.raises(ConfigError, match="unknown form 'docx'"):
        exports.export("docx")
    assert set(classroom.library()) >= {"pyproject.toml", "periodic_lib/theory/motion.py", "LICENSE"}
