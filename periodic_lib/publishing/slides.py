"""Slides: the takeaways of all chapters, each with the figure before it, as one page of HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass

from periodic_lib.outside import read_yaml
from periodic_lib.project import root
from periodic_lib.publishing import claims, copies, execution, notebooks, printing
from periodic_lib.publishing.book import mathjax


@dataclass(frozen=True)
class Slide:
    """One slide: a takeaway (Markdown), its chapter, and a figure as base64 of a PNG, or none."""

    takeaway: str
    chapter: str
    picture: str = ""
    alt: str = ""


def of_book(profile: str) -> str:
    """Return the page of slides from the chapters that are executed; nothing if none has any."""
    records = claims.read_records(notebooks.build_folder(profile) / "records")
    executed = [execution.copy_of(name, profile) for name in notebooks.chapters()]
    found = [
        one
        for path in executed
        if path.exists()
        for one in of_chapter(notebooks.read(path), records)
    ]
    return deck(found, mathjax().decode()) if found else ""


def of_chapter(executed: Mapping, records: Mapping[str, dict]) -> list[Slide]:
    """Return a slide for every takeaway of an executed chapter that has a figure in its section.

    A section ends with its takeaway; its figure is the last one since the takeaway before.

    >>> box = ":::{admonition} Takeaway\\n:class: takeaway\\nThe norm holds.\\n:::"
    >>> picture = {"data": {"image/png": "iVBO"}, "metadata": {"image/png": {"alt": "A line."}}}
    >>> text = {"cell_type": "markdown", "source": "# Norms"}
    >>> code = {"cell_type": "code", "source": "", "outputs": [picture]}
    >>> of_chapter({"cells": [text, code, {"cell_type": "markdown", "source": box}]}, {})
    [Slide(takeaway='The norm holds.', chapter='Norms', picture='iVBO', alt='A line.')]
    """
    found, figure, chapter = [], None, notebooks.title(executed)
    for cell in executed["cells"]:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                figure = output
        if cell["cell_type"] != "markdown":
            continue
        for sentence in notebooks.takeaways({"cells": [cell]}):
            if figure:
                picture = "".join(figure["data"]["image/png"]).strip()
                alt = figure.get("metadata", {}).get("image/png", {}).get("alt", "")
                found.append(Slide(copies.plain(sentence, records), chapter, picture, alt))
            figure = None
    return found


def deck(slides: list[Slide], script: str) -> str:
    """Return the slides as one page, to be opened without a network: arrow keys, or printed.

    `script`: MathJax, which becomes part of the page.
    """
    title = read_yaml(root() / "book" / "_config.yml")["title"]
    shown = [SLIDE.format(number=n, **_parts(one)) for n, one in enumerate(slides, start=1)]
    return PAGE.format(
        title=html.escape(title), count=len(slides), slides="\n".join(shown), mathjax=script
    )


def _parts(slide: Slide) -> dict[str, str]:
    return {
        "takeaway": printing.markdown(slide.takeaway),
        "chapter": html.escape(slide.chapter),
        "picture": slide.picture,
        "alt": html.escape(slide.alt, quote=True),
    }


SLIDE = """<section id="{number}" aria-label="{number}"><h2>{takeaway}</h2>
<img src="data:image/png;base64,{picture}" alt="{alt}">
<footer><span>{chapter}</span><span>{number}</span></footer></section>"""
PAGE = r"""<!doctype html>
<html lang="en"><head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
@page {{ size: 297mm 167mm; margin: 0 }}
html {{ scroll-snap-type: y mandatory; background: #fff; color: #111 }}
body {{ margin: 0; font: clamp(16px, 2.1vw, 34px)/1.3 system-ui, sans-serif }}
section {{ height: 100vh; box-sizing: border-box; padding: 3vh 4vw; scroll-snap-align: start;
  display: flex; flex-direction: column; gap: 2vh; break-after: page; overflow: hidden }}
section.first {{ justify-content: center }}
h1 {{ font-size: 2em; margin: 0 }}
h2 {{ font-size: 1em; font-weight: 600; margin: 0 }}
h2 p, p {{ margin: 0 }}
img {{ flex: 1; min-height: 0; width: 100%; object-fit: contain }}
footer {{ display: flex; justify-content: space-between; font-size: .55em; color: #555 }}
mjx-container svg * {{ stroke: none }}
@media print {{ body {{ font-size: 17pt }} section {{ height: 166mm; width: 297mm }} }}
</style></head><body>
<section id="0" class="first"><h1>{title}</h1>
<p>{count} figures, and what each says. Arrow keys, space or a swipe go on.</p></section>
{slides}
<script>
"use strict";
const STEPS = {{ ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1,
  PageUp: -1, Home: -Infinity, End: Infinity }};
const sections = [...document.querySelectorAll("section")];
const current = () => Math.round(scrollY / innerHeight);
addEventListener("keydown", (event) => {{
  if (!(event.key in STEPS) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const next = Math.min(Math.max(current() + STEPS[event.key], 0), sections.length - 1);
  sections[next].scrollIntoView();
}});
</script>
<script>{mathjax}</script>
</body></html>
"""
