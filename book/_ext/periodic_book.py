"""Sphinx extension of this book: measured numbers in the text, chapters' figures on other pages, the simulator.

    ```{claims} partly                                  the claims with that verdict, as a list
    {result}`03_periodic_behavior.periods_slow:.0f`     a number that a chapter published, formatted
    ```{chapter-figure} 03_periodic_behavior/one_run    a figure that a chapter showed, with its description
    ```
    ```{simulator} 03_periodic_behavior/one_run         the live simulator; the figure where no script runs
    ```

They read the records that the chapters wrote when they were executed ($PERIODIC_RECORDS). A key that no chapter
published is a warning, and so fails the build.
"""

from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from periodic_lib import claims
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

logger = logging.getLogger(__name__)


def record(env, chapter):
    """Return what a chapter said, or None; the page that asks is read again when the record changes."""
    path = claims.record_path(chapter)
    env.note_dependency(str(path))
    return claims.read_record(path) if path.exists() else None


class ResultRole(SphinxRole):
    """A published number: `<chapter>.<name>:<format>`; the format is Python's, and may be left out."""

    def run(self):
        key, _, form = self.text.partition(":")
        chapter, _, name = key.partition(".")
        numbers = (record(self.env, chapter) or {"numbers": {}})["numbers"]
        if name not in numbers:
            logger.warning(
                "no chapter published the result %r",
                key,
                location=self.get_location(),
                type="periodic",
            )
            return [nodes.strong(text="?")], []
        text = format(numbers[name], form)
        node = nodes.inline(text=text, classes=["result"])
        return [node], []


class ChapterFigure(SphinxDirective):
    """A figure of an executed chapter: `<chapter>/<figure>`, with its text alternative; the body is the caption."""

    required_arguments = 1
    has_content = True

    def run(self):
        chapter, _, name = self.arguments[0].partition("/")
        figures = (record(self.env, chapter) or {"figures": {}})["figures"]
        if name not in figures:
            logger.warning(
                "chapter %r shows no figure %r",
                chapter,
                name,
                location=self.get_location(),
            )
            return []
        entry = figures[name]
        figure = nodes.figure(
            "",
            nodes.image(uri=f"/figures/{entry['file']}", alt=entry["alt"]),
            align="center",
        )
        holder = nodes.Element()
        self.state.nested_parse(self.content, self.content_offset, holder)
        texts = [
            child
            for paragraph in holder.children
            for child in paragraph.children
        ]
        if texts:
            figure += nodes.caption("", "", *texts)
        return [figure]


class Simulator(ChapterFigure):
    """The live simulator. Its figure and caption are a chapter figure's, which simulator.js finds in its container.

    Option `mode: sphere`: at an effective learning rate that a slider holds, instead of weight decay.
    """

    required_arguments = 0
    optional_arguments = 1
    option_spec: ClassVar = {
        "mode": lambda value: directives.choice(value, ("free", "sphere"))
    }

    def run(self):
        figure = super().run() if self.arguments else self.caption_alone()
        script = Path(__file__).with_name("simulator.js")
        self.env.note_dependency(str(script))
        code = script.read_text(encoding="utf-8")
        mode = self.options.get("mode", "free")
        return [
            raw_html(f'<div class="simulator" data-mode="{mode}">'),
            *figure,
            raw_html(f"</div><script>\n{code}</script>"),
        ]

    def caption_alone(self):
        """Return the body as text: other builders than HTML show nothing else."""
        holder = nodes.container(classes=["simulator-caption"])
        self.state.nested_parse(self.content, self.content_offset, holder)
        return [holder]


def raw_html(text):
    """Return a node that HTML shows as it is and other builders leave out."""
    return nodes.raw("", text, format="html")


class Claims(SphinxDirective):
    """Claims as a list: the findings with a verdict, `holds` for example, or all of a kind, `identity`."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self):
        wanted, lines = self.arguments[0], []
        self.env.note_dependency(str(claims.file()))
        for claim, entry in claims.declared().items():
            chapter = entry["chapter"]
            said = record(self.env, chapter) or {"claims": {}}
            found = said["claims"].get(claim, {"verdict": "not tested"})
            counted = entry["kind"] in claims.COUNTED
            if wanted == (found["verdict"] if counted else entry["kind"]):
                statement = " ".join(entry["statement"].split())
                lines.append(f"- {statement} [{claim}]({chapter}.ipynb)")
        holder = nodes.Element()
        text = StringList(lines or ["None."], source=self.env.docname)
        self.state.nested_parse(text, self.content_offset, holder)
        return holder.children


def without_thebe(app, pagename, templatename, context, doctree):
    """Drop the scripts of sphinx-thebe, which Jupyter Book adds even when it is off: they name a CDN, twice."""
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe"
        not in f"{script.filename} {script.attributes.get('body')}".lower()
    ]


def setup(app):
    """Register the role and the directives."""
    app.connect("html-page-context", without_thebe, priority=999)
    app.add_role("result", ResultRole())
    app.add_directive("chapter-figure", ChapterFigure)
    app.add_directive("claims", Claims)
    app.add_directive("simulator", Simulator)
    return {
        "version": "1",
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
