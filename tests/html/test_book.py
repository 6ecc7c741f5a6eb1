"""The rendered book: run after `make book`; skipped where it has not been built."""

import os
import re
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from periodic_lib.publishing import claims, notebooks

PROFILE = os.environ.get("PROFILE", "classroom")
HTML = Path(__file__).parents[2] / "build" / PROFILE / "html" / "_build" / "html"
PAGES = sorted(HTML.glob("*.html"))
CONTENT = [page for page in PAGES if page.stem not in ("search", "genindex", "py-modindex")]

MEGABYTES = 15  # of the whole book: it goes on a stick, and through a mail

pytestmark = pytest.mark.skipif(not PAGES, reason="the book is not built: make book")


def soup(page):
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def test_every_page_of_the_contents_is_there():
    assert {f"{name}.html" for name in notebooks.table_of_contents()} <= {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_nothing_is_loaded_from_elsewhere(page):
    for tag, attribute in (("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src")):
        for element in soup(page).find_all(tag):
            address = element.get(attribute, "")
            assert not address.startswith(("http:", "https:", "//")), address
    assert not any("http" in script.get_text() for script in soup(page).find_all("script"))


@pytest.mark.parametrize("page", CONTENT, ids=lambda page: page.stem)
def test_links_and_pictures_on_this_site_exist(page):
    content = soup(page)
    places = [link["href"] for link in content.find_all("a", href=True)] + [p["src"] for p in content.find_all("img")]
    for place in places:
        target = place.split("#")[0].split("?")[0]
        if target and not target.startswith(("http:", "https:", "mailto:", "data:")):
            assert (HTML / target).exists(), place


@pytest.mark.parametrize("name", notebooks.chapters())
def test_every_table_and_figure_of_an_executed_chapter_is_on_its_page(name):
    executed = notebooks.read(HTML.parents[2] / "chapters" / f"{name}.ipynb")
    shown = [output for cell in executed["cells"] for output in cell.get("outputs", []) if "data" in output]
    tables = sum("".join(one["data"].get("text/html", "")).count("<table") for one in shown)
    page = soup(HTML / f"{name}.html")
    assert len(page.select(".cell_output table")) == tables
    assert len(page.select(".cell_output figure")) == sum("image/png" in one["data"] for one in shown)


def test_links_to_a_place_on_a_page_lead_to_one_that_is_there():
    pages = {page.name: soup(page) for page in CONTENT}
    places = {name: {element["id"] for element in page.find_all(id=True)} for name, page in pages.items()}
    links = [(name, a["href"].split("?")[0]) for name, page in pages.items() for a in page.find_all("a", href=True)]
    inside = [(name, *link.partition("#")[::2]) for name, link in links if "#" in link and "://" not in link]
    assert len(inside) > len(CONTENT)
    lost = [(name, page, place) for name, page, place in inside if place and place not in places[page or name]]
    assert not lost, lost[:5]


@pytest.mark.parametrize("page", CONTENT, ids=lambda page: page.stem)
def test_every_picture_says_what_is_seen(page):
    for picture in soup(page).select("article img, main img"):
        alt = picture.get("alt", "")
        assert len(alt) >= 40, picture
        assert ".png" not in alt
        assert "nan" not in alt.split()


@pytest.mark.parametrize("page", CONTENT, ids=lambda page: page.stem)
def test_no_output_is_an_error_or_a_leftover(page):
    content = soup(page)
    assert not content.select(".output.text_plain"), "a cell ends with a value that is no output for readers"
    for example in content.select(".doctest"):  # may show an error that is meant
        example.decompose()
    text = content.get_text()
    assert "Traceback" not in text
    assert "{result}" not in text
    assert "step/s" not in text


def test_numbers_in_the_text_are_the_published_ones():
    records = claims.read_records(notebooks.build_folder(PROFILE) / "records")
    shown = [node.get_text() for node in soup(HTML / "03_periodic_behavior.html").select(".result")]
    assert f"{records['03_periodic_behavior']['numbers']['period_slow']:.0f}" in shown


def test_mathematics_is_rendered_by_the_local_mathjax():
    page = soup(HTML / "01_scale_invariance.html")
    (source,) = [s["src"] for s in page.find_all("script", src=True) if "mathjax" in s["src"].lower()]
    assert (HTML / source.split("?")[0]).stat().st_size > 2_000_000


def test_the_scorecard_lists_every_claim_and_its_verdict():
    text = soup(HTML / "scorecard.html").get_text()
    for name, record in claims.read_records(notebooks.build_folder(PROFILE) / "records").items():
        assert record["profile"] == PROFILE, name
        for claim in record["claims"]:
            assert claim in text


def test_the_short_path_takes_the_minutes_declared():
    """At 200 words a minute, and a minute a figure, without code and tables."""
    door = next(card for card in soup(HTML / "intro.html").select(".sd-card") if "The short path" in card.get_text())
    declared = [int(re.search(r"\((\d+) minutes\)", item.get_text())[1]) for item in door.select("li")]
    assert len(declared) == 3
    assert f"{sum(declared)} minutes" in door.get_text()
    for item, minutes in zip(door.select("li"), declared, strict=True):
        parts = [section(link["href"]) for link in item.select("a")]
        figures = sum(len(part.select("figure")) for part in parts)
        for place in [
            place for part in parts for place in part.select("pre, table, script, svg, summary, .headerlink")
        ]:
            place.decompose()
        words = sum(len(part.get_text(" ").split()) for part in parts)
        assert minutes - 2 <= words / 200 + figures <= minutes, item.get_text()


def section(place):
    page, _, name = place.partition("#")
    return soup(HTML / page).select_one(f"section#{name}")


def test_the_whole_book_is_light():
    sizes = {path: path.stat().st_size for path in HTML.rglob("*") if path.is_file()}
    heaviest = sorted(sizes, key=sizes.get)[-5:]
    assert sum(sizes.values()) < MEGABYTES * 1e6, heaviest


@pytest.mark.parametrize("name", notebooks.chapters())
def test_a_downloaded_chapter_is_its_text_in_plain_words_without_outputs(name):
    (link,) = {a["href"] for a in soup(HTML / f"{name}.html").select("a[href$='.ipynb']") if "_sources" in a["href"]}
    copy, origin = notebooks.read(HTML / link), notebooks.read(notebooks.root() / "book" / f"{name}.ipynb")
    code = [[notebooks.source(c) for c in book["cells"] if c["cell_type"] == "code"] for book in (copy, origin)]
    assert code[0] == code[1]
    assert not any(cell.get("outputs") for cell in copy["cells"])
    text = "\n".join(notebooks.source(c) for c in copy["cells"] if c["cell_type"] == "markdown")
    assert not re.findall(r"\{[\w:-]+\}`|^[:`]{3,}\{", text, re.MULTILINE)
    folded = [c for c in copy["cells"] if notebooks.HIDDEN & set(c["metadata"].get("tags", []))]
    assert folded
    assert all(c["metadata"]["jupyter"] == {"source_hidden": True} for c in folded)
