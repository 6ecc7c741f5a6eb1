"""Forms of the rendered book to take away: run after `make book`; a part of it in headless Chromium."""

import re

import pytest
from browser import needs_chromium, opened
from test_book import HTML, PAGES, PROFILE

from periodic_lib import exports, notebooks, printing

pytestmark = pytest.mark.skipif(not PAGES, reason="the book is not built: make book")


def test_every_link_inside_the_page_to_be_printed_leads_somewhere():
    text = printing.one_page(HTML)
    places = re.findall(r' id="([^"]+)"', text)
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(places)
    assert not [link for link in re.findall(r'href="([^"]+)"', text) if link.endswith(".html") and ":" not in link]
    assert len(re.findall(r"<img", text)) >= len(notebooks.chapters())
    assert text.count('<section class="page"') == len(notebooks.table_of_contents())


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
