"""Copies of chapters that can be read in JupyterLab: numbers, citations and boxes as plain text.

A chapter's text has roles and directives that only the book's builder understands. A copy that a
reader downloads has what they stand for, no outputs, and folds the code that the page folds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from periodic_lib.project import root
from periodic_lib.publishing import claims, notebooks

APART = "apart"  # tag of a cell that holds outputs of the one before it
ROLE = re.compile(r"\{([\w:-]+)\}`([^`]*)`")
BOX = re.compile(
    r"^(?P<fence>:{3,}|`{3,})\{(?P<kind>[\w-]+)\} *(?P<title>.*)\n"
    r"(?P<options>(?::[\w-]+:.*\n)*)(?P<body>(?:.*\n)*?)(?P=fence)$",
    re.MULTILINE,
)
PAGE_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)[\w./-]+\.md(?:#[\w-]+)?\)")
LABEL = re.compile(r"^\([\w-]+\)=\n", re.MULTILINE)
WITH_TARGET = re.compile(r"(.+?)\s*<[^>]+>")


def readable(notebook: Mapping, records: Mapping[str, dict]) -> dict:
    """Return a chapter's copy for readers, in normal form; `records`: what chapters published."""
    cells = []
    for cell in notebook["cells"]:
        if {"injected-parameters", APART} & set(cell["metadata"].get("tags", [])):
            continue
        if cell["cell_type"] == "markdown":
            cell = {**cell, "source": plain(notebooks.source(cell), records)}
        cells.append(cell)
    return notebooks.normalize({"cells": cells})


def plain(text: str, records: Mapping[str, dict]) -> str:
    r"""Return a text in which roles, boxes and labels of the book's builder are plain Markdown.

    A number that no chapter published is "?".

    >>> records = {"01_a": {"numbers": {"b": 2}}}
    >>> plain("{result}`01_a.b:.1f` steps {cite}`lobacheva2021`", records)
    '2.0 steps (Lobacheva et al., 2021)'
    >>> print(plain(":::{admonition} Takeaway\n:class: takeaway\nThe norm holds.\n:::", {}))
    > **Takeaway.** The norm holds.
    """
    text = LABEL.sub("", BOX.sub(_quoted, text))
    text = ROLE.sub(lambda found: _said(found[1], found[2], records), text)
    return PAGE_LINK.sub(r"\1", text)


def _quoted(box: re.Match) -> str:
    """Return a box as a quotation; a picture or a simulator, which the book has, as its caption."""
    title, body = box["title"].strip(), BOX.sub(_quoted, box["body"].strip())
    if box["kind"] != "admonition":
        title = f"In the book: {box['kind'].replace('-', ' ')}"
    lines = f"**{title}.** {body}".splitlines()
    return "\n".join(f"> {line}".rstrip() for line in lines)


def _said(role: str, text: str, records: Mapping[str, dict]) -> str:
    """Return what the book shows for a role."""
    if role == "result":
        return _number(text, records)
    if role.startswith("cite"):
        names = [_citation(key.strip(), role == "cite:t") for key in text.split(",")]
        return "; ".join(names) if role == "cite:t" else f"({'; '.join(names)})"
    return WITH_TARGET.sub(r"\1", text)


def _number(text: str, records: Mapping[str, dict]) -> str:
    key, _, form = text.partition(":")
    number = claims.published(key, records)
    return "?" if number is None else format(number, form)


def _citation(key: str, in_text: bool) -> str:
    """Return authors and year of an entry of book/references.bib; `in_text`: as in a sentence."""
    authors, year = _references()[key]
    return f"{authors} ({year})" if in_text else f"{authors}, {year}"


@lru_cache(maxsize=1)
def _references() -> dict[str, tuple[str, str]]:
    """Return key -> authors, year of book/references.bib."""
    from pybtex.database import parse_file

    entries = parse_file(str(root() / "book" / "references.bib")).entries
    return {key: (_authors(entry), entry.fields["year"]) for key, entry in entries.items()}


def _authors(entry: object) -> str:
    people = [" ".join([*p.prelast_names, *p.last_names]) for p in entry.persons["author"]]
    names = [re.sub(r"[{}]", "", name) for name in people]
    return f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
