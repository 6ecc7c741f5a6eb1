"""Every rendered page as met on a phone without a network: run after `make book`, in headless Chromium."""

import json
from importlib.resources import files

import pytest
from browser import needs_chromium, opened_narrow
from test_book import PAGES as ALL

PAGES = [page for page in ALL if page.stem != "index"]  # which only leads to the first page
WIDTH = 375  # pixels, of a small phone

WATCH = """<script>
window.failures = [];
addEventListener("error", (event) => {
  failures.push(event.message || `${event.target.tagName} ${event.target.src || event.target.href}`);
}, true);
for (const name of ["error", "warn"])
  console[name] = (...words) => failures.push(`console.${name}: ${words.join(" ")}`);
</script>"""

REPORT = """
function enlarged() {
  const figure = document.querySelector("button.enlarge"), dialog = document.querySelector("dialog.enlarged");
  if (!figure) return null;
  figure.click();
  const widths = [figure.offsetWidth, dialog.querySelector("img").offsetWidth];
  dialog.click();
  return [...widths, dialog.open];
}
addEventListener("load", () => setTimeout(async () => {
  const found = await axe.run(document, { resultTypes: ["violations"] });
  const wide = [...document.querySelectorAll("main *")].filter((element) => {
    const box = element.getBoundingClientRect();
    return box.right > innerWidth + 1 && !element.closest("pre, .math, mjx-container, .output, table, .table-wrapper");
  });
  const report = {
    failures,
    width: document.documentElement.scrollWidth,
    wide: wide.slice(0, 3).map((element) => element.outerHTML.slice(0, 120)),
    formulas: document.querySelectorAll(".math").length,
    rendered: document.querySelectorAll("mjx-container").length,
    broken: document.querySelectorAll("mjx-merror").length,
    enlarged: enlarged(),
    violations: found.violations.map(({ id, nodes }) => [id, nodes.length, nodes[0].html.slice(0, 160)]),
  };
  parent.postMessage(JSON.stringify(report), "*");
}, 3000));
"""

pytestmark = [pytest.mark.skipif(not PAGES, reason="the book is not built: make book"), needs_chromium]


@pytest.fixture(scope="module", params=PAGES, ids=lambda page: page.stem)
def report(request, tmp_path_factory):
    axe = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    return json.loads(opened_narrow(request.param, tmp_path_factory.mktemp("page"), WIDTH, WATCH, axe + REPORT))


def test_nothing_fails_and_nothing_is_complained_about(report):
    assert report["failures"] == []


def test_mathematics_is_rendered(report):
    assert report["rendered"] >= report["formulas"]
    assert report["broken"] == 0


def test_a_phone_need_not_scroll_sideways(report):
    assert report["width"] <= WIDTH, report["wide"]


def test_a_figure_enlarged_is_wider_than_a_phone_and_closes_again(report):
    if report["enlarged"] is not None:
        small, large, still_open = report["enlarged"]
        assert small < WIDTH
        assert large >= 640
        assert not still_open


def test_axe_finds_no_violation(report):
    assert report["violations"] == []
