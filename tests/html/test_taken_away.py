"""Forms of the rendered book to take away: run after `make book`; a part of it in headless Chromium."""

import re
import zipfile
from xml.etree import ElementTree

import pytest
from browser import needs_chromium, opened
from test_book import HTML, PAGES, PROFILE

from periodic_lib import exports
from periodic_lib.publishing import notebooks, printing

pytestmark = pytest.mark.skipif(not PAGES, reason="the book is not built: make book")


def test_every_link_inside_the_page_to_be_printed_leads_somewhere():
    text = printing.one_page(HTML)
    places = re.findall(r' id="([^"]+)"', text)
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(places)
    assert not [link for link in re.findall(r'href="([^"]+)"', text) if link.endswith(".html") and ":" not in link]
    assert len(re.findall(r"<img", text)) >= len(notebooks.chapters())
    assert text.count('<section class="page"') == len(notebooks.table_of_contents())


@needs_chromium
def test_the_book_is_printed():
    written = exports.export("pdf", PROFILE)
    content = written.read_bytes()
    assert len(re.findall(rb"/Type /Page\b", content)) > 5 * len(notebooks.chapters())
    assert len(content) < 30e6


def test_pages_of_the_epub_can_be_parsed_and_their_links_lead_somewhere():
    book = zipfile.ZipFile(exports.export("epub", PROFILE))
    names, places, links = set(book.namelist()), {}, []
    for name in names:
        if name.endswith((".xhtml", ".opf", ".ncx")):
            elements = list(ElementTree.fromstring(book.read(name)).iter())
            places[name] = {element.get("id") for element in elements}
            links += [(name, element.get(key)) for element in elements for key in ("href", "src")]
    assert {f"{name}.xhtml" for name in notebooks.table_of_contents()} <= names
    inside = [(name, link) for name, link in links if link and not link.startswith(("http", "mailto"))]
    assert len(inside) > 100
    for name, link in inside:
        page, _, anchor = link.partition("#")
        assert (page or name) in names, (name, link)
        assert not anchor or anchor in places[page or name], (name, link)


def test_there_is_a_text_to_translate_for_every_page():
    written = exports.export("gettext", PROFILE)
    assert {f"{name}.pot" for name in notebooks.table_of_contents()} <= {path.name for path in written.iterdir()}
    assert "{result}`05_jumps." in (written / "05_jumps.pot").read_text()


@needs_chromium
def test_slides_open_without_a_network_and_go_on_by_key(tmp_path):
    exports.export("slides", PROFILE)
    page = notebooks.root() / "build" / "slides.html"
    act = """for (const key of ["ArrowRight", "ArrowRight", "ArrowLeft"])
  dispatchEvent(new KeyboardEvent("keydown", { key }));
document.body.dataset.at = current();"""
    document, log = opened(page, tmp_path, act=act)
    assert document.body["data-at"] == "1"
    shown = document.select("section img")
    assert (
        len(shown)
        >= len(notebooks.chapters())
        == len({one.get_text() for one in document.select("footer span:first-child")})
    )
    assert all(len(picture["alt"]) >= 40 for picture in shown)
    assert document.select("mjx-container svg")
    assert "Uncaught" not in log
    assert "ERR_" not in log
