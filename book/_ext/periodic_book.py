"""Sphinx extension of this book: measured numbers in the text, chapters' figures on other pages, the simulator.

    ```{claims} fails                                   the claims with that verdict, as a list
    ```{verdicts}                                       a table: how many findings of a topic have which verdict
    ```{other-seeds}                                    tables: the verdicts when all seeds were replaced
    ```{claim-filter}                                   which claims of the scorecard are shown
    ```{takeaways}                                      the takeaways of all chapters, chapter by chapter
    ```{faults}                                         the table of what was broken on purpose, and where it is from
    ```{lesson} module                                  a plan for lessons, from book/lessons.yml
    {count}`fails`                                      how many findings have that verdict; `findings`, `claims`: all
    {result}`03_periodic_behavior.periods_slow:.0f`     a number that a chapter published, formatted
    {measured}`sweeps.graph.seconds:.0f`                a number of a benchmark, data/benchmarks/sweeps.json
    ```{chapter-figure} 03_periodic_behavior/one_run    a figure that a chapter showed, with its description
    ```
    ```{simulator} 03_periodic_behavior/one_run         the live simulator; the figure where no script runs
    ```{explore} 04_one_period/break                    numbers that a chapter embedded, to step through or guess at
    ```{drawing} loop.svg                               a drawing in the page's own colours
    ```

They read the records that the chapters wrote when they were executed ($PERIODIC_RECORDS). A key that no chapter
published is a warning, and so fails the build.
"""

import json
import re
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from periodic_lib import glossary
from periodic_lib.project import root
from periodic_lib.publishing import (
    claims,
    copies,
    faults,
    notebooks,
    scorecard,
)
from periodic_lib.teaching import lessons
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

logger = logging.getLogger(__name__)


def record(env, chapter):
    """Return what a chapter said, or None; the page that asks is read again when the record changes."""
    path = claims.record_path(chapter)
    env.note_dependency(str(path))
    return claims.read_record(path) if path.exists() else None


def all_records(env):
    """Return what every chapter said; the page that asks is read again when one of them, or a claim, changes."""
    env.note_dependency(str(claims.file()))
    said = {name: record(env, name) for name in notebooks.chapters()}
    return {name: found for name, found in said.items() if found}


class ResultRole(SphinxRole):
    """A published number: `<chapter>.<name>:<format>`; the format is Python's, and may be left out."""

    def run(self):
        key, _, form = self.text.partition(":")
        chapter = key.partition(".")[0]
        said = record(self.env, chapter)
        number = claims.published(key, {chapter: said} if said else {})
        if number is None:
            logger.warning(
                "no chapter published the result %r",
                key,
                location=self.get_location(),
                type="periodic",
            )
            return [nodes.strong(text="?")], []
        node = nodes.inline(text=format(number, form), classes=["result"])
        return [node], []


class MeasuredRole(SphinxRole):
    """A number of a committed benchmark: `<file>.<part>.<name>:<format>`, of data/benchmarks/<file>.json."""

    def run(self):
        key, _, form = self.text.partition(":")
        name, *rest = key.split(".")
        path = root() / "data" / "benchmarks" / f"{name}.json"
        self.env.note_dependency(str(path))
        value = (
            json.loads(path.read_text(encoding="utf-8"))
            if path.exists()
            else {}
        )
        for part in rest:
            value = value.get(part, {})
        if value == {}:
            where = self.get_location()
            logger.warning(
                "no benchmark has %r", key, location=where, type="periodic"
            )
            return [nodes.strong(text="?")], []
        return [
            nodes.inline(text=format(value, form), classes=["result"])
        ], []


class CountRole(SphinxRole):
    """How many claims: of the findings those with a verdict, or all `findings`, all `claims`, or a kind."""

    def run(self):
        number = claims.number_of(self.text, all_records(self.env))
        return [nodes.inline(text=str(number), classes=["result"])], []


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

    Option `mode`: `sphere`, at an effective learning rate that a slider holds, instead of weight decay; `brief`, with one
    preset and one slider.
    """

    required_arguments = 0
    optional_arguments = 1
    option_spec: ClassVar = {
        "mode": lambda value: directives.choice(
            value, ("free", "sphere", "brief")
        )
    }

    def run(self):
        figure = super().run() if self.arguments else self.caption_alone()
        mode = self.options.get("mode", "free")
        return [
            raw_html(f'<div class="simulator" data-mode="{mode}">'),
            *figure,
            raw_html(f"</div>{script(self.env, 'simulator.js')}"),
        ]

    def caption_alone(self):
        """Return the body as text: other builders than HTML show nothing else."""
        holder = nodes.container(classes=["simulator-caption"])
        self.state.nested_parse(self.content, self.content_offset, holder)
        return [holder]


class Explored(SphinxDirective):
    """Numbers that a chapter embedded, `<chapter>/<name>`, to step through (`steps`) or to guess at (`guess`).

    The body is text that stands below, and alone where no script runs.
    """

    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {
        "kind": lambda value: directives.choice(value, ("steps", "guess"))
    }

    def run(self):
        chapter, _, name = self.arguments[0].partition("/")
        embedded = (record(self.env, chapter) or {}).get("embedded", {})
        if name not in embedded:
            logger.warning(
                "chapter %r embeds no %r",
                chapter,
                name,
                location=self.get_location(),
            )
            return []
        kind = self.options.get("kind", "steps")
        holder = nodes.container(classes=["explore-caption"])
        self.state.nested_parse(self.content, self.content_offset, holder)
        data = embedded[name].replace("<", "\\u003c")
        return [
            raw_html(
                f'<div class="explore explore-{kind}">'
                f'<script type="application/json">{data}</script>'
            ),
            holder,
            raw_html(f"</div>{script(self.env, 'explore.js')}"),
        ]


class Drawing(SphinxDirective):
    """A drawing of this folder, in the page's own colours: `loop.svg`. The body says the same in words."""

    required_arguments = 1
    has_content = True

    def run(self):
        path = Path(__file__).with_name(self.arguments[0])
        self.env.note_dependency(str(path))
        holder = nodes.container(classes=["drawing-caption"])
        self.state.nested_parse(self.content, self.content_offset, holder)
        drawn = path.read_text(encoding="utf-8")
        return [raw_html(f'<div class="drawing">{drawn}</div>'), holder]


def script(env, name):
    """Return a script of this folder as it stands in a page, which is read again when the script changes."""
    path = Path(__file__).with_name(name)
    env.note_dependency(str(path))
    return f"<script>\n{path.read_text(encoding='utf-8')}</script>"


def raw_html(text):
    """Return a node that HTML shows as it is and other builders leave out."""
    return nodes.raw("", text, format="html")


class ClaimFilter(SphinxDirective):
    """The scorecard's filter, which scorecard.js fills in; nothing where no script runs."""

    def run(self):
        return [
            raw_html(
                '<div class="claim-filter" role="search" aria-label="Claims shown" hidden>'
                f'<output aria-live="polite"></output></div>{script(self.env, "scorecard.js")}'
            )
        ]


class Written(SphinxDirective):
    """A directive that stands for lines of text (MyST)."""

    def parsed(self, lines):
        """Return the nodes of lines of text."""
        holder = nodes.Element()
        text = StringList(lines, source=self.env.docname)
        self.state.nested_parse(text, self.content_offset, holder)
        return holder.children


class Verdicts(Written):
    """A table: how many findings of a topic have which verdict."""

    def run(self):
        found = claims.checked(all_records(self.env))
        return self.parsed(scorecard.counts(found, by="topic").splitlines())


class OtherSeeds(Written):
    """Tables: what became of verdicts under other seeds, and which were another's on another processor."""

    def run(self):
        for path in (claims.file(), claims.stability_file()):
            self.env.note_dependency(str(path))
        return self.parsed(scorecard.other_seeds().splitlines())


class Faults(Written):
    """A table: what was broken on purpose, how often, and what became of it; where that was measured."""

    def run(self):
        self.env.note_dependency(str(faults.file()))
        return self.parsed(faults.page())


class Lesson(Written):
    """The plan for a lesson, by its name in book/lessons.yml."""

    required_arguments = 1

    def run(self):
        for name in ("lessons.yml", "exercises.yml"):
            self.env.note_dependency(str(root() / "book" / name))
        return self.parsed(lessons.plan(self.arguments[0]).splitlines())


class Takeaways(Written):
    """The takeaways of all chapters, in the order of the contents, under links to them."""

    def run(self):
        lines = []
        for name in notebooks.table_of_contents():
            path = root() / "book" / f"{name}.ipynb"
            if path.exists():
                self.env.note_dependency(str(path))
                lines += takeaways_of(name, notebooks.read(path))
        return self.parsed(lines or ["None."])


def takeaways_of(name, notebook):
    """Return the lines (MyST) for one chapter: its title as a link, a list of its takeaways; or none."""
    found = notebooks.takeaways(notebook)
    head = [f"**[{notebooks.title(notebook)}]({name}.ipynb)**", ""]
    return (
        [*head, *(f"- {sentence}" for sentence in found), ""]
        if found
        else []
    )


class Claims(Written):
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
        return self.parsed(lines or ["None."])


def without_thebe(app, pagename, templatename, context, doctree):
    """Drop the scripts of sphinx-thebe, which Jupyter Book adds even when it is off: they name a CDN, twice."""
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe"
        not in f"{script.filename} {script.attributes.get('body')}".lower()
    ]


def follow_the_reader(app, pagename, templatename, context, doctree):
    """Start light or dark as the reader's system is; without this the theme logs that it has no mode."""
    context["default_mode"] = "auto"


CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)([\w(]?)")
BOLD = "\0"  # stands for ** until other asterisks are escaped
LITERAL = re.compile(r"(``[^`]+``|>>>.*)")
ITEM = re.compile(r"(\S.*?) : (.*)")


def in_rst(app, what, name, object_, options, lines):
    """Let a docstring, which is written for readers of the source, say the same in reStructuredText.

    Its sections (`Parameters`, `Raises`, ...) become bold words and lists, `code` becomes code, and |x| and * are no
    markup.
    """
    text = "\n".join(sections_in_rst(lines))
    text = CODE.sub(
        lambda m: f"``{m[1]}``" + (f"\\ {m[2]}" if m[2] else ""), text
    )
    parts = LITERAL.split(text)
    parts[::2] = [re.sub(r"([|*])", r"\\\1", part) for part in parts[::2]]
    lines[:] = "".join(parts).replace(BOLD, "**").split("\n")


def sections_in_rst(lines):
    """Yield the lines with every `name : text` of a section as an item of a list."""
    inside, indent, rule = False, "", re.compile("-{3,}")
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        item = ITEM.fullmatch(line)
        if rule.fullmatch(after):
            inside, indent = True, ""
            yield f"{BOLD}{line}{BOLD}"
        elif rule.fullmatch(line):
            yield ""
        elif line.startswith(">>>"):
            inside = False
            yield line
        elif inside and item:
            indent = "  "
            yield f"- {BOLD}{item[1]}{BOLD}: {item[2]}"
        elif inside and line.startswith("    "):
            yield indent + line.strip()
        else:
            yield line


# Words of the glossary that a page uses in their everyday sense, too, or in every paragraph.
TOO_PLAIN = {
    "step",
    "run",
    "epoch",
    "setup",
    "direction",
    "lr",
    "span",
    "undecided",
    "period",
    "weight_decay",
    "overshoot",
}
FORMS = {
    "equilibrium": ["equilibria"],
    "destabilization": ["broke"],
    "lr_wd": ["lr × wd"],
}
NO_LINKS = (
    nodes.title,
    nodes.reference,
    nodes.literal,
    nodes.literal_block,
    nodes.math,
    nodes.math_block,
    nodes.raw,
    nodes.caption,
    nodes.table,
    nodes.comment,
)


def words_of_terms():
    """Return what is looked for on a page: word in lower case -> name of its entry in the glossary."""
    found = {}
    for name, term in glossary.TERMS.items():
        if name not in TOO_PLAIN:
            words = [*term.term.split(", "), *FORMS.get(name, [])]
            found |= {word.lower(): name for word in words}
    return found


def link_terms(app, doctree, docname):
    """Link a chapter's first use of each word of the glossary to its entry there."""
    if not re.match(r"\d\d_", docname):
        return
    words, seen = words_of_terms(), set()
    longest_first = sorted(words, key=len, reverse=True)
    pattern = re.compile(
        rf"(?<![\w-])({'|'.join(map(re.escape, longest_first))})(?:s|es)?(?![\w-])",
        re.IGNORECASE,
    )
    target = app.builder.get_relative_uri(docname, "glossary")
    for text in list(doctree.findall(nodes.Text)):
        if not within(text, NO_LINKS) and within(text, nodes.paragraph):
            parts = with_links(text.astext(), pattern, words, seen, target)
            if len(parts) > 1:
                text.parent.replace(text, parts)


def within(node, kinds):
    """Whether a node lies in one of these kinds."""
    while node := node.parent:
        if isinstance(node, kinds):
            return True
    return False


def with_links(text, pattern, words, seen, target):
    """Return a text as nodes, words of the glossary that are not in `seen` as links; they are put there."""
    parts, end = [], 0
    for match in pattern.finditer(text):
        name = words[match[1].lower()]
        if name not in seen:
            seen.add(name)
            link = nodes.reference(
                "",
                match[0],
                refuri=f"{target}#term-{name}",
                internal=True,
                classes=["term"],
            )
            link["reftitle"] = glossary.TERMS[name].definition
            parts += [nodes.Text(text[end : match.start()]), link]
            end = match.end()
    return [*parts, nodes.Text(text[end:])]


def name_terms(app, doctree):
    """Give every row of the glossary the name that links go to."""
    if app.env.docname == "glossary":
        for row in doctree.findall(nodes.row):
            for literal in list(row.findall(nodes.literal))[:1]:
                row["ids"].append(f"term-{literal.astext()}")


def outdated_by_styles(app, env, added, changed, removed):
    """Name the first page if a style or script changed: Sphinx copies them only when it writes a page."""
    copies = Path(app.outdir) / "_static"
    for path in (Path(app.srcdir) / "_static").glob("*"):
        copy = copies / path.name
        if not copy.exists() or copy.read_bytes() != path.read_bytes():
            return [app.config.root_doc]
    return []


MENDED = {
    # fonts loaded in advance, which a browser refuses to a page opened from a folder
    re.compile(r'<link rel="preload" as="font"[^>]*>\n?'): "",
    # roles that no longer exist
    re.compile(
        r' role="(doc-biblioentry|doc-backlink|list(?=" class="citation-list))"'
    ): "",
    # the search page's own field, beside the one that the theme has on every page
    re.compile(
        r'(id="search-input".*)id="search-input"', re.S
    ): r'\1id="search-page-input"',
}


def mend_pages(app, error):
    """Change in the written pages what the theme offers no setting for."""
    for page in Path(app.outdir).glob("*.html"):
        text = mended = page.read_text(encoding="utf-8")
        for pattern, instead in MENDED.items():
            mended = pattern.sub(instead, mended)
        if mended != text:
            page.write_text(mended, encoding="utf-8")


UNUSED = (
    "*.map",
    "*.ttf",
)  # of the theme: maps for its makers, fonts twice


def lighten(app, error):
    """Take from the written book what no reader's browser asks for; a downloaded chapter is a copy for readers."""
    for pattern in UNUSED:
        for path in (Path(app.outdir) / "_static").rglob(pattern):
            path.unlink()
    records = claims.read_records(claims.records_folder())
    for path in (Path(app.outdir) / "_sources").glob("*.ipynb"):
        notebook = notebooks.read(path)
        if any(cell.get("outputs") for cell in notebook["cells"]):
            notebooks.write(copies.readable(notebook, records), path)


def setup(app):
    """Register the role and the directives."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("html-page-context", without_thebe, priority=999)
    app.connect("html-page-context", follow_the_reader, priority=999)
    app.connect("autodoc-process-docstring", in_rst)
    app.connect("env-get-outdated", outdated_by_styles)
    app.connect("doctree-read", name_terms)
    app.connect("doctree-resolved", link_terms)
    app.connect("build-finished", mend_pages)
    app.connect("build-finished", lighten)
    app.add_role("result", ResultRole())
    app.add_role("measured", MeasuredRole())
    app.add_role("count", CountRole())
    app.add_directive("chapter-figure", ChapterFigure)
    app.add_directive("claim-filter", ClaimFilter)
    app.add_directive("claims", Claims)
    app.add_directive("drawing", Drawing)
    app.add_directive("explore", Explored)
    app.add_directive("faults", Faults)
    app.add_directive("lesson", Lesson)
    app.add_directive("other-seeds", OtherSeeds)
    app.add_directive("verdicts", Verdicts)
    app.add_directive("takeaways", Takeaways)
    app.add_directive("simulator", Simulator)
    return {
        "version": "1",
        "env_version": 2,  # a higher one: every page is read again
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
