"""What the book's Sphinx extension writes into pages: takeaways, and counts of claims."""

import importlib.util
import json
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from periodic_lib.project import ConfigError
from periodic_lib.publishing import claims, notebooks, scorecard

EXTENSION = Path(__file__).parents[2] / "book" / "_ext" / "periodic_book.py"
CLAIM = """
{name}:
  chapter: 01_one
  topic: {topic}
  kind: {kind}
  fixed: before
  statement: The {name} claim.
  source: us
  setting: here
  paper_value: none
  rule: always
  verdict: holds
"""
KINDS = {"first": "measured", "second": "predicted", "third": "identity", "fourth": "measured"}
VERDICTS = {"first": "holds", "second": "fails", "third": "holds", "fourth": "holds"}


def box(sentence, word="Takeaway"):
    return f":::{{admonition}} {word}\n:class: takeaway\n{sentence}\n:::"


def chapter(*texts):
    cells = [{"cell_type": "markdown", "metadata": {}, "source": text.splitlines(keepends=True)} for text in texts]
    return {"cells": cells}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of one chapter that said something about three claims."""
    for name in ("PERIODIC_ROOT", "PERIODIC_RECORDS"):
        monkeypatch.setenv(name, str(tmp_path if name.endswith("ROOT") else tmp_path / "records"))
    entries = [CLAIM.format(name=n, kind=k, topic="scale" if n == "fourth" else "mechanism") for n, k in KINDS.items()]
    for path, text in {
        "pyproject.toml": "",
        "data/claims/claims.yml": "".join(entries),
        "book/_toc.yml": "format: jb-book\nroot: index\nparts:\n- chapters:\n  - file: 01_one\n",
        "records/01_one.json": json.dumps(
            {
                "numbers": {"size": 41.87},
                "figures": {},
                "claims": {
                    name: {"verdict": verdict, "outcomes": {"a": True}, "measured": "", "paper_scale": "not run"}
                    for name, verdict in VERDICTS.items()
                },
            }
        ),
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    content = chapter("# The one\n\nText.\n\n" + box("It is\n{result}`01_one.size:.0f` long."), box("And so on."))
    notebooks.write(content, tmp_path / "book" / "01_one.ipynb")
    return tmp_path


def test_takeaways_are_found_in_their_exact_form_only():
    both = "\n\n".join(["# One", box("It is so."), "Text.", box("And\nso.")])
    found = notebooks.takeaways(chapter(both, box("No.", "Note")))
    assert found == ["It is so.", "And so."]
    indented = box("x").replace("\n:::", "\n  :::")
    assert notebooks.takeaways(chapter(indented, box("x").replace("class: ", "class:"))) == []


def test_takeaways_are_listed_under_a_link_to_their_chapter():
    spec = importlib.util.spec_from_file_location("periodic_book", EXTENSION)
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    lines = extension.takeaways_of("01_one", chapter("# The one\n\nText.", box("It is so."), box("And so.")))
    assert lines == ["**[The one](01_one.ipynb)**", "", "- It is so.", "- And so.", ""]
    assert extension.takeaways_of("01_one", chapter("# The one")) == []


def test_counts_are_of_findings_but_by_kind_of_all(project):
    records = claims.read_records(claims.records_folder())
    numbers = {word: claims.number_of(word, records) for word in ("holds", "fails", "findings", "claims", "identity")}
    assert numbers == {"holds": 2, "fails": 1, "findings": 3, "claims": 4, "identity": 1}
    with pytest.raises(ConfigError, match=r"`word` must be one of .*'perhaps'"):
        claims.number_of("perhaps", records)
    table = scorecard.counts(claims.checked(records), by="topic")
    assert "* - Topic\n  - Holds\n  - Fails\n* - Mechanism\n  - 1\n  - 1\n* - Scale\n  - 1\n  - 0\n" in table
    assert "* - All\n  - 2\n  - 1" in table


def build(source, html, doctrees):
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    with patch_docutils(source), docutils_namespace():
        Sphinx(source, source, html, doctrees, "html", status=None, warningiserror=True).build()


def test_a_page_shows_them_with_the_numbers_of_the_build(project):
    source, html = project / "source", project / "html"
    source.mkdir()
    page = "# Page\n\n{count}`holds` of {count}`findings` hold.\n\n```{verdicts}\n```\n\n```{takeaways}\n```\n"
    (source / "index.md").write_text(page)
    (source / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(EXTENSION.parent)!r})\n"
        "extensions = ['myst_parser', 'periodic_book']\nsuppress_warnings = ['myst.xref_missing']\n"
    )
    build(source, html, project / "doctrees")
    shown = (html / "index.html").read_text()
    assert '<span class="result">2</span> of <span class="result">3</span> hold.' in shown
    assert "The one" in shown
    assert 'It is <span class="result">42</span> long.' in shown


DOCSTRING = """Do a thing to `x`s, where |x| < 1.

Parameters
----------
x : what it is done to, shape (n, *shape),
    or a number.
y, z : others.

Returns
-------
what came of it,
    and more.

>>> double(|2|)
4"""
IN_RST = r"""Do a thing to ``x``\ s, where \|x\| < 1.

**Parameters**

- **x**: what it is done to, shape (n, \*shape),
  or a number.
- **y, z**: others.

**Returns**

what came of it,
and more.

>>> double(|2|)
4"""


def test_a_docstring_says_the_same_on_its_page():
    spec = importlib.util.spec_from_file_location("periodic_book", EXTENSION)
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    lines = DOCSTRING.split("\n")
    extension.in_rst(None, "function", "double", None, {}, lines)
    assert "\n".join(lines) == IN_RST


CHAPTER = """# Periodic behaviour of an equilibrium

The *effective learning rate*, not the learning rate; `break` is code, $b$ is no break. Breaks again, and
[a break elsewhere](index.md), and the effective learning rate. Destabilizations are breaks. A break-even point.

## Window budget

| window budget |
|---|
| window budget |

It is the window budget. A batch edge share; equilibria, at last.

```python
convergence = 1
```
"""


def test_words_of_the_glossary_are_links_at_their_first_use(tmp_path, monkeypatch):
    from periodic_lib import glossary

    source, html = tmp_path / "source", tmp_path / "html"
    source.mkdir()
    for name, text in {
        "index": "# Index\n\nA break.\n\n```{toctree}\n01_one\nglossary\n```\n",
        "01_one": CHAPTER,
        "glossary": glossary.page(),
    }.items():
        (source / f"{name}.md").write_text(text)
    (source / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(EXTENSION.parent)!r})\n"
        "extensions = ['myst_parser', 'periodic_book']\nmyst_enable_extensions = ['dollarmath']\n"
    )
    build(source, html, tmp_path / "doctrees")
    page = BeautifulSoup((html / "01_one.html").read_text(), "html.parser")
    links = [(a.get_text(), a["href"].split("#term-")[1]) for a in page.select("a.term")]
    assert links == [
        ("effective learning rate", "elr"),
        ("break", "destabilization"),
        ("window budget", "window_budget"),
        ("batch edge share", "edge_share"),
        ("equilibria", "equilibrium"),
    ]
    assert page.select_one("a.term")["title"] == glossary.TERMS["elr"].definition
    assert not page.select("a a, h1 a.term, h2 a.term, table a.term, code a, pre a, .math a")
    entries = BeautifulSoup((html / "glossary.html").read_text(), "html.parser")
    assert all(entries.select_one(f"tr#term-{name}") for name in glossary.TERMS)
    assert not BeautifulSoup((html / "index.html").read_text(), "html.parser").select("a.term")


def test_every_drawing_says_what_is_seen():
    for path in EXTENSION.parent.glob("*.svg"):
        drawing = BeautifulSoup(path.read_text(), "html.parser").svg
        assert drawing["role"] == "img"
        named = drawing["aria-labelledby"].split()
        assert len(" ".join(drawing.select_one(f"#{name}").get_text() for name in named)) >= 40


def test_a_number_of_a_benchmark_is_formatted_and_a_missing_one_is_a_warning(monkeypatch, tmp_path):
    extension = importlib.util.module_from_spec(
        spec := importlib.util.spec_from_file_location("periodic_book", EXTENSION)
    )
    spec.loader.exec_module(extension)
    monkeypatch.setattr(extension, "root", lambda: tmp_path)
    (tmp_path / "data" / "benchmarks").mkdir(parents=True)
    (tmp_path / "data" / "benchmarks" / "speed.json").write_text(json.dumps({"one": {"share": 0.876, "zero": 0}}))
    noted, warned = [], []
    monkeypatch.setattr(extension.logger, "warning", lambda *text, **_: warned.append(text))

    def shown(text):
        role = extension.MeasuredRole()
        role.text, role.inliner = text, None
        monkeypatch.setattr(type(role), "env", type("Env", (), {"note_dependency": staticmethod(noted.append)})())
        monkeypatch.setattr(type(role), "get_location", lambda self: "here")
        (node,), _ = role.run()
        return node.astext()

    assert shown("speed.one.share:.0%") == "88%"
    assert shown("speed.one.zero") == "0"
    assert noted == [str(tmp_path / "data" / "benchmarks" / "speed.json")] * 2
    assert not warned
    assert shown("speed.two.share:.0%") == "?"
    assert shown("other.one") == "?"
    assert len(warned) == 2


def test_the_numbers_of_the_page_on_sweeps_are_measured():
    import re

    text = (EXTENSION.parents[1] / "sweeps.md").read_text()
    for key, form in re.findall(r"\{measured\}`([\w.]+):?([^`]*)`", text):
        name, *parts = key.split(".")
        value = json.loads((EXTENSION.parents[2] / "data" / "benchmarks" / f"{name}.json").read_text())
        for part in parts:
            value = value[part]
        assert format(value, form)
