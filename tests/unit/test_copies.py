"""A chapter's copy for readers: what they see in JupyterLab in place of the builder's roles and boxes."""

import re
from pathlib import Path

import pytest

from periodic_lib.publishing import copies, notebooks

ROOT = Path(__file__).parents[2]
RECORDS = {"03_periodic_behavior": {"numbers": {"peak": 2.345, "word": "twice"}}}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rose to {result}`03_periodic_behavior.peak:.1f`.", "rose to 2.3."),
        ("{result}`03_periodic_behavior.word`", "twice"),
        ("{result}`03_periodic_behavior.nothing:.0f` steps", "? steps"),
        ("{result}`99_none.peak`", "?"),
        ("as {cite:t}`lobacheva2021` say", "as Lobacheva et al. (2021) say"),
        ("known {cite}`liarora2020,vanlaarhoven2017`", "known (Li and Arora, 2020; van Laarhoven, 2017)"),
        ("the {term}`weight norm <norm>` and {term}`period`", "the weight norm and period"),
        ("[The scorecard](scorecard.md), [one row](scorecard.md#claim-x)", "The scorecard, one row"),
        ("[Jumps](05_jumps.ipynb), [out](https://a.md)", "[Jumps](05_jumps.ipynb), [out](https://a.md)"),
        ("(here)=\n## Title", "## Title"),
        ("$a_{b}$ and `code`", "$a_{b}$ and `code`"),
        (
            "Before.\n\n:::{admonition} Guess first\n:class: tip\nWhich?\n\nNone.\n:::\n\nAfter.",
            "Before.\n\n> **Guess first.** Which?\n>\n> None.\n\nAfter.",
        ),
        (
            "```{simulator} 02_norm_dynamics/toy_regimes\n:mode: sphere\nThe toy.\n```",
            "> **In the book: simulator.** The toy.",
        ),
        ("```python\nx = {1}\n```", "```python\nx = {1}\n```"),
        ("::::{admonition} A\n:::{admonition} B\nInside.\n:::\n::::", "> **A.** > **B.** Inside."),
    ],
)
def test_roles_and_boxes_become_plain_text(text, shown):
    assert copies.plain(text, RECORDS) == shown


@pytest.mark.parametrize("name", notebooks.chapters())
def test_no_chapter_keeps_markup_of_the_builder_and_its_code_stays(name):
    chapter = notebooks.read(ROOT / "book" / f"{name}.ipynb")
    copy = copies.readable(chapter, {})
    text = "\n".join(notebooks.source(c) for c in copy["cells"] if c["cell_type"] == "markdown")
    assert not re.findall(r"\{[\w:-]+\}`|^[:`]{3,}\{", text, re.MULTILINE)
    code = [[notebooks.source(c) for c in book["cells"] if c["cell_type"] == "code"] for book in (copy, chapter)]
    assert code[0] == code[1]


def test_an_executed_chapters_copy_has_neither_outputs_nor_the_injected_cell():
    injected = {"cell_type": "code", "metadata": {"tags": ["injected-parameters"]}, "source": 'profile = "smoke"'}
    shown = {"cell_type": "code", "metadata": {"tags": ["hide-input"]}, "source": "1", "outputs": ["1"]}
    apart = {"cell_type": "code", "metadata": {"tags": [copies.APART]}, "source": "# shown apart", "outputs": ["2"]}
    (cell,) = copies.readable({"cells": [injected, shown, apart]}, {})["cells"]
    assert cell["outputs"] == []
    assert cell["metadata"]["jupyter"] == {"source_hidden": True}


def test_an_unknown_source_is_an_error_and_not_a_blank():
    with pytest.raises(KeyError, match="nobody1999"):
        copies.plain("{cite}`nobody1999`", {})
