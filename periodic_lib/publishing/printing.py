"""Paper: a page printed to PDF by Chromium, and the rendered book as one page to be printed."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from periodic_lib.outside import read_yaml
from periodic_lib.project import print_message, root
from periodic_lib.publishing import notebooks

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DROPPED = "script, style, .headerlink, .claim-filter, summary .expanded, .claim .sd-card-body"
INTERNAL = re.compile(r"(?:([\w-]+)\.html)?(?:#(.*))?")


def print_to_pdf(source: Path, target: Path, seconds: int = 60) -> bool:
    """Print a page to a PDF file with bookmarks by Chromium, without a network; return whether.

    `seconds`: how long the page may take; half of it is given to its scripts.
    """
    target.unlink(missing_ok=True)
    found = [path for path in map(shutil.which, BROWSERS) if path]
    command = ["--headless", "--no-sandbox", "--disable-gpu"]
    command += [f"--virtual-time-budget={500 * seconds}", "--generate-pdf-document-outline"]
    command += ["--no-pdf-header-footer", f"--print-to-pdf={target}", source.as_uri()]
    if found:
        try:
            subprocess.run([found[0], *command], capture_output=True, timeout=seconds)
        except (OSError, subprocess.TimeoutExpired) as error:
            print_message(f"{found[0]} printed nothing: {error}.")
    return target.exists()


def markdown(text: str) -> str:
    """Return HTML of Markdown with tables and formulas, which MathJax is to find.

    >>> print(markdown("$x$ *grows*").strip())
    <p><span class="math inline">\\(x\\)</span> <em>grows</em></p>
    """
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    def formula(content: str, options: Mapping) -> str:
        left, right = (r"\[", r"\]") if options["display_mode"] else (r"\(", r"\)")
        return left + html.escape(content) + right

    reader = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin, renderer=formula)
    return reader.render(text)


def one_page(rendered: Path) -> str:
    """Return the rendered book as one page: a title, the contents, every page in their order.

    Links between pages lead to places of this one. Folded code is left out, but for solutions.
    `rendered`: the folder of the book's pages, from where pictures and MathJax are taken.
    """
    from bs4 import BeautifulSoup

    names = notebooks.table_of_contents()
    pages = {name: (rendered / f"{name}.html").read_text(encoding="utf-8") for name in names}
    soups = {name: BeautifulSoup(text, "html.parser") for name, text in pages.items()}
    config = read_yaml(root() / "book" / "_config.yml")
    return PAGE.format(
        title=html.escape(config["title"]),
        author=html.escape(config["author"]),
        contents=_contents({name: _heading(soup) for name, soup in soups.items()}),
        body="\n".join(_article(name, soup, rendered) for name, soup in soups.items()),
        pygments=(rendered / "_static" / "pygments.css").as_uri(),
        mathjax=(rendered / "mathjax" / "tex-svg-full.js").as_uri(),
    )


def _heading(soup: BeautifulSoup) -> str:
    heading = soup.select_one("article h1")
    for link in heading.select(".headerlink"):
        link.decompose()
    return heading.get_text().strip()


def _contents(titles: Mapping[str, str]) -> str:
    """Return the list of contents, part by part."""

    def entry(name: str) -> str:
        return f'<li><a href="#{name}">{html.escape(titles[name])}</a></li>'

    toc = read_yaml(root() / "book" / "_toc.yml")
    lines = [f"<ul>{entry(toc['root'])}</ul>"]
    for part in toc["parts"]:
        items = "".join(entry(chapter["file"]) for chapter in part["chapters"])
        lines.append(f"<p>{html.escape(part['caption'])}</p><ul>{items}</ul>")
    return "\n".join(lines)


def _article(name: str, soup: BeautifulSoup, rendered: Path) -> str:
    """Return a page's content, its places and links renamed for the page of all pages."""
    article = soup.select_one("article")
    for unwanted in article.select(DROPPED):
        unwanted.decompose()
    for folded in article.select("details"):
        _unfold(folded)
    for element in article.select("[id]"):
        element["id"] = f"{name}--{element['id']}"
    for link in article.select("a[href]"):
        link["href"] = _place(link["href"], name)
    for picture in article.select("img[src]"):
        picture["src"] = (rendered / picture["src"]).as_uri()
    return f'<section class="page" id="{name}">{article.decode_contents()}</section>'


def _unfold(folded: Tag) -> None:
    """Open what is folded; drop it if it is code that only makes what is shown below it."""
    summary = folded.find("summary")
    code = "hide" in folded.get("class", []) and "Solution" not in summary.get_text()
    if code and not folded.select(".cell_output"):
        folded.decompose()
    else:
        folded["open"] = ""


def _place(address: str, name: str) -> str:
    """Return where a link of page `name` leads in the page of all pages.

    >>> _place("#a", "x"), _place("y.html", "x"), _place("y.html#b", "x"), _place("https://c", "x")
    ('#x--a', '#y', '#y--b', 'https://c')
    """
    found = INTERNAL.fullmatch(address)
    if not found:
        return address
    page, anchor = found[1] or name, found[2]
    return f"#{page}--{anchor}" if anchor else f"#{page}"


PAGE = r"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<link rel="stylesheet" href="{pygments}">
<style>
@page {{ size: A4; margin: 20mm 18mm;
  @bottom-center {{ content: counter(page); font: 9pt serif }} }}
@page :first {{ @bottom-center {{ content: none }} }}
body {{ font: 10.5pt/1.45 "DejaVu Serif", Georgia, serif; margin: 0; color: #000 }}
h1, h2, h3, h4, .admonition-title, .caption-text, .title, summary {{
  font-family: "DejaVu Sans", sans-serif }}
h1 {{ font-size: 20pt; line-height: 1.2 }}
h2 {{ font-size: 14pt; margin-top: 1.6em }}
h3 {{ font-size: 11.5pt }}
h1, h2, h3, .admonition-title {{ break-after: avoid }}
p {{ orphans: 3; widows: 3 }}
a {{ color: #0b4f8a; text-decoration: none }}
.title {{ height: 230mm; display: flex; flex-direction: column; justify-content: center }}
.title h1 {{ font-size: 34pt; margin: 0 }}
.contents p {{ font-weight: bold; margin: .7em 0 0 }}
.contents ul {{ margin: 0; list-style: none; padding-left: 1.2em }}
.page, .contents {{ break-before: page }}
mjx-container svg * {{ stroke: none }}
img, svg {{ max-width: 100%; height: auto }}
figure {{ margin: 1em 0; text-align: center; break-inside: avoid }}
figcaption, .caption {{ font-size: 9pt; text-align: left; line-height: 1.35 }}
table {{ border-collapse: collapse; font-size: 8.5pt; margin: .8em 0; max-width: 100% }}
td, th {{ border-bottom: .5pt solid #999; padding: 2pt 5pt; text-align: left; vertical-align: top }}
th {{ border-bottom: 1pt solid #000 }}
tr {{ break-inside: avoid }}
td p, li p {{ margin: .1em 0 }}
pre {{ font: 8pt/1.35 "DejaVu Sans Mono", monospace; white-space: pre-wrap; margin: 0;
  background: #f5f5f5; padding: 5pt; overflow-wrap: anywhere }}
code {{ font-family: "DejaVu Sans Mono", monospace; font-size: .85em; overflow-wrap: anywhere }}
div.cell, div.highlight {{ margin: .7em 0 }}
.admonition, aside.topic {{ border-left: 3pt solid #888; padding: .1em 0 .1em .9em; margin: 1em 0;
  break-inside: avoid }}
.admonition-title {{ font-weight: bold; margin: 0 }}
.takeaway {{ border-color: #0b4f8a }}
details {{ margin: .6em 0 }}
summary {{ list-style: none }}
dl.py > dt {{ font-size: 9pt; margin-top: 1em }}
</style>
<script>window.MathJax = {{
  svg: {{ fontCache: "global" }},
  options: {{ ignoreHtmlClass: "tex2jax_ignore", enableMenu: false,
    processHtmlClass: "tex2jax_process|mathjax_process|math|output_area" }}
}};</script>
<script src="{mathjax}"></script>
<div class="title"><h1>{title}</h1><p>{author}</p></div>
<div class="contents"><h1>Contents</h1>
{contents}
</div>
{body}
</html>
"""
