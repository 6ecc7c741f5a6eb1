"""The live simulator on the rendered page: run after `make book`, in headless Chromium where there is one."""

import browser
import pytest
from browser import needs_chromium
from test_book import CONTENT, HTML, soup

PAGES = [page for page in CONTENT if soup(page).select(".simulator")]
REGIMES = {"converges": "convergence", "periodic": "periodic", "equilibrium": "equilibrium"}
SLIDERS = ["learning rate", "head gain", "margin", "flipped labels", "batch size", "epsilon", "steps per frame"]

# Frames at the pace of the page's own clock, which a headless browser advances without waiting.
FRAMES = "window.requestAnimationFrame = (draw) => setTimeout(() => draw(performance.now()), 16);"

pytestmark = pytest.mark.skipif(not PAGES, reason="no page with the simulator is built: make book")


def opened(page, folder, act=""):
    """Return the page after 8 seconds in a browser, of which `act` is run at the start, and the browser's log."""
    document, log = browser.opened(page, folder, f"<script>{FRAMES}</script>", act)
    return document.select_one(".simulator"), log


def press(label):
    return f"""[...document.querySelectorAll(".simulator button")].find((b) => b.textContent === "{label}").click();"""


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    return opened(PAGES[0], tmp_path_factory.mktemp("simulator"))


def test_without_scripts_a_picture_and_its_text_are_there():
    for page in PAGES:
        place = soup(page).select_one(".simulator")
        assert len(place.select_one("img")["alt"]) >= 40
        assert place.get_text(strip=True)


def test_its_script_is_inside_the_page():
    for page in PAGES:
        script = soup(page).select_one(".simulator").find_next_sibling("script")
        assert not script.has_attr("src")
        assert len(script.get_text()) > 10_000


@needs_chromium
def test_every_control_has_a_name(running):
    place, _ = running
    labels = {label["for"]: label.get_text() for label in place.select("label")}
    inputs = place.select("input")
    assert all(labels[element["id"]] for element in inputs)
    sliders = [labels[element["id"]] for element in inputs if element["type"] == "range"]
    assert len(sliders) == len(SLIDERS)
    assert all(word in label for word, label in zip(SLIDERS, sliders, strict=True))
    buttons = [button.get_text() for button in place.select("button[type=button]")]
    assert buttons == [*REGIMES, "pause", "one step", "restart"]
    assert all(canvas["role"] == "img" and len(canvas["aria-label"]) > 10 for canvas in place.select("canvas"))
    assert place.select_one("img").has_attr("hidden")


@needs_chromium
@pytest.mark.parametrize(("preset", "regime"), REGIMES.items())
def test_a_preset_shows_its_regime(preset, regime, tmp_path):
    place, log = opened(PAGES[0], tmp_path, press(preset))
    assert place.select_one("[data-reading=regime]").get_text() == regime
    assert f"Regime: {regime}" in place.select_one("[aria-live=polite]").get_text()
    assert int(place.select_one("[data-reading=step]").get_text().replace(",", "")) > 1000
    assert "Uncaught" not in log


@needs_chromium
def test_one_step_is_one_step(tmp_path):
    place, log = opened(PAGES[0], tmp_path, 3 * press("one step"))
    assert place.select_one("[data-reading=step]").get_text() == "3"
    assert "play" in [button.get_text() for button in place.select("button")]
    assert "Uncaught" not in log


@needs_chromium
def test_the_first_page_has_one_slider_and_breaks_are_counted(tmp_path):
    place, log = opened(HTML / "intro.html", tmp_path)
    assert len(place.select("input")) == 1
    assert [button.get_text() for button in place.select("button")] == ["pause", "restart"]
    assert int(place.select_one("[data-reading=count]").get_text()) >= 3
    assert place.select_one("[data-reading=regime]").get_text() == "periodic"
    assert "Uncaught" not in log
