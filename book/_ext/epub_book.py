"""Sphinx extension for the EPUB: formulas as MathML, pages as XHTML that a reading program can parse."""

import html
import re
import shutil
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from myst_nb.sphinx_ import HideCodeCellNode

STYLE = "epub-book.css"
NAMED = re.compile(
    r"&(?!amp;|lt;|gt;|quot;)\w+;"
)  # characters that XML has no name for
PAGE = re.compile(r'(href="[\w-]+)\.html')
SCRIPT = re.compile(r"<script.*?</script>", re.DOTALL)
INSTEAD = {  # TeX that docutils does not know, or misplaces, in TeX that it does
    re.compile(r"\\dots\b"): r"\\ldots",
    re.compile(r"\\tfrac(\d)(\d)"): r"\\tfrac{\1}{\2}",
    re.compile(r"'\^(\{[^{}]*\}|[^{}])"): r"^{\\prime \1}",
    re.compile("'"): r"^{\\prime}",
}


def mathml(tex, as_block=False):
    """Return TeX as MathML."""
    for unknown, instead in INSTEAD.items():
        tex = unknown.sub(instead, tex)
    written = tex2mathml(tex, as_block=as_block)
    return NAMED.sub(lambda found: html.unescape(found[0]), written)


def visit_formula(writer, node):
    """Write a formula within a line."""
    writer.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def visit_block(writer, node):
    """Write a formula on lines of its own."""
    writer.body.append(
        f'<div class="math">{mathml(node.astext(), True)}</div>'
    )
    raise nodes.SkipNode


def prepare(app):
    """Let the EPUB builder write MathML, which reading programs display without a script, in a style for them."""
    if app.builder.name == "epub":
        app.config.html_math_renderer = "mathml"
        app.config.html_extra_path = []  # MathJax
        static = Path(app.outdir) / "_static"
        static.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(__file__).with_name(STYLE), static)
        app.add_css_file(STYLE)


def only_code(node):
    """Whether a node is folded code over its output, which reading programs could not fold."""
    return (
        isinstance(node, HideCodeCellNode)
        and "above-input" in node["classes"]
        and not any(
            "cell_output" in part["classes"]
            for part in node.findall(nodes.container)
        )
    )


def mend_html(app, doctree, docname):
    """Drop code folded over its output, scripts, and what only they fill; let links of tables and boxes lead to pages of the EPUB."""
    if app.builder.name != "epub":
        return
    for part in list(doctree.findall(nodes.Element)):
        part.children = [
            child for child in part.children if not only_code(child)
        ]
    for node in list(doctree.findall(nodes.raw)):
        text = PAGE.sub(r"\1.xhtml", SCRIPT.sub("", node.astext()))
        if "claim-filter" in text:
            node.parent.remove(node)
        elif text != node.astext():
            node.replace_self(nodes.raw("", text, format="html"))


def choose_styles(app, pagename, templatename, context, doctree):
    """Leave out the styles that are for the site alone."""
    if app.builder.name == "epub":
        names = ("pygments.css", "epub.css", STYLE)
        found = [
            style
            for style in context["css_files"]
            if Path(str(style.filename)).name in names
        ]
        context["css_files"] = found


def setup(app):
    """Register the renderer of formulas, and the clearing of pages."""
    app.add_html_math_renderer(
        "mathml", (visit_formula, None), (visit_block, None)
    )
    app.connect("builder-inited", prepare, priority=100)
    app.connect("doctree-resolved", mend_html)
    app.connect("html-page-context", choose_styles, priority=999)
    return {
        "version": "1",
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
