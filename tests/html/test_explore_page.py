"""What readers explore on rendered pages: run after `make book`, in headless Chromium."""

import json
import re

import pytest
from browser import needs_chromium, opened, opened_narrow, printed
from test_book import CONTENT, HTML, soup

STEPS, GUESS = HTML / "04_one_period.html", HTML / "05_jumps.html"
FRAMES = "<script>window.requestAnimationFrame = (draw) => setTimeout(() => draw(performance.now()), 16);</script>"

pytestmark = pytest.mark.skipif(not CONTENT, reason="the book is not built: make book")


def data(page):
    return json.loads(soup(page).select_one(".explore script").get_text())


def test_without_scripts_its_text_is_there():
    for page in (STEPS, GUESS):
        assert len(soup(page).select_one(".explore .explore-caption").get_text(strip=True)) >= 40
        assert len(soup(page).select_one(".explore script").get_text()) < 30_000


@needs_chromium
def test_a_step_says_its_numbers(tmp_path):
    run = data(STEPS)
    step = run["first"] + 40
    act = f"""const slider = document.querySelector(".explore input");
        slider.value = {step}; slider.dispatchEvent(new Event("input"));"""
    page, log = opened(STEPS, tmp_path, act=act)
    place = page.select_one(".explore")
    said = place.select_one("output[aria-live=polite]").get_text()
    assert said.startswith(f"Step {step}, phase {run['phases'][40]}: ")
    for one in run["series"]:
        number = float(said.split(one["label"] + " ")[1].split(", ")[0].removesuffix("."))
        assert number == pytest.approx(one["values"][40], rel=6e-3)
    assert place.select_one("label")["for"] == place.select_one("input")["id"]
    assert len(place.select("svg[role=img][aria-label]")) == 4
    assert "Uncaught" not in log


@needs_chromium
def test_a_guess_is_scored_beside_the_forecasts(tmp_path):
    first, second = data(GUESS)["rounds"][:2]
    press = 'document.querySelector(".explore button").click();'
    act = f"""const slider = document.querySelector(".explore input");
        slider.value = 300; slider.dispatchEvent(new Event("input")); {3 * press}"""
    page, log = opened(GUESS, tmp_path, act=act)
    place = page.select_one(".explore")
    rows = [[cell.get_text() for cell in row.select("td")] for row in place.select("tbody tr")]
    wanted = [
        [str(k), *(f"{abs(s / one['length'] - 1):.0%}".replace("%", " %") for s in (300, one["clock"], one["level"]))]
        for k, one in enumerate((first, second), start=1)
    ]
    assert [row[:4] for row in rows] == wanted
    assert [row[4] for row in rows] == [f"{one['length']:.0f}" for one in (first, second)]
    said = place.select_one("output[aria-live=polite]").get_text()
    assert f"It began after {second['length']:.0f} steps. You said 300" in said
    assert "Median error so far: you " in said
    assert "Uncaught" not in log


@needs_chromium
def test_on_a_phone_the_plots_stay_in_view_while_a_slider_moves(tmp_path):
    act = """addEventListener("load", () => setTimeout(() => {
        const plots = getComputedStyle(document.querySelector(".simulator-plots"));
        const sliders = [...document.querySelectorAll(".simulator input[type=range]")];
        const low = Math.min(...sliders.map((slider) => slider.clientHeight));
        parent.postMessage(JSON.stringify([plots.position, plots.height, low]), "*");
    }, 2000));"""
    told = opened_narrow(HTML / "02_norm_dynamics.html", tmp_path, 375, FRAMES, act)
    position, height, low = json.loads(told)
    assert position == "sticky"
    assert float(height.removesuffix("px")) <= 400
    assert low >= 24


@needs_chromium
def test_the_cheat_sheet_is_one_printed_page(tmp_path):
    sheet = printed(HTML / "cheat_sheet.html", tmp_path)
    assert len(re.findall(rb"/Type\s*/Page\b", sheet)) == 1
