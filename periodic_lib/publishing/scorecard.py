"""The book's scorecard page (MyST): every declared claim beside what was measured, by topic."""

from __future__ import annotations

import importlib.metadata
import platform
import textwrap
from collections.abc import Mapping, Sequence

from periodic_lib.publishing import claims


def page(records: Mapping[str, dict]) -> str:
    """Return the page: a row for every declared claim, that opens to what was measured.

    A verdict that is not the acknowledged one is marked. How often the acknowledged verdict came
    out under other seeds is there once that was measured.

    Raises
    ------
    ConfigError : if a chapter that ran did not check a claim declared for it.
    """
    found = claims.checked(records)
    stayed = claims.stayed(found) if len(claims.stability()) else {}
    return PAGE.format(
        counts=counts(found),
        seeds=SEEDS if stayed else "",
        sections="\n".join(_section(topic, found, stayed) for topic in claims.TOPICS),
    )


def counts(found: Mapping[str, dict], by: str = "kind") -> str:
    """Return a table (MyST) of how many claims have which verdict.

    Parameters
    ----------
    found : what was found on every claim (`claims.checked`).
    by : "kind", all claims; or "topic", those that are findings (`claims.COUNTED`), with a total.
    """
    rows = {name: [] for name in (claims.KINDS if by == "kind" else claims.TOPICS)}
    for claim, entry in claims.declared().items():
        if by == "kind" or entry["kind"] in claims.COUNTED:
            rows[entry[by]].append(found[claim]["verdict"])
    rows = {name.capitalize(): words for name, words in rows.items() if words}
    if by == "topic":
        rows["All"] = [word for words in rows.values() for word in words]
    shown = [word for word in claims.VERDICTS if any(word in words for words in rows.values())]
    lines = [[by.capitalize(), *(word.capitalize() for word in shown)]]
    lines += [[name, *(str(words.count(word)) for word in shown)] for name, words in rows.items()]
    widths = " ".join(["20", *["12"] * len(shown)])
    return TABLE.format(widths=widths, rows=_list_table(lines))


def _section(topic: str, found: Mapping[str, dict], stayed: Mapping[str, str]) -> str:
    """Return one topic's claims; nothing if it has none."""
    rows = [
        _row(claim, entry, found[claim], stayed.get(claim))
        for claim, entry in claims.declared().items()
        if entry["topic"] == topic
    ]
    return "\n".join([f"\n## {topic.capitalize()}", *rows]) if rows else ""


def _list_table(rows: Sequence[Sequence[str]]) -> str:
    r"""Return the body of a `list-table`.

    >>> _list_table([["a", "b\n  c"]])
    '* - a\n  - b c'
    """
    return "\n".join("* - " + "\n  - ".join(map(_one_line, row)) for row in rows)


def _row(claim: str, entry: Mapping, found: Mapping, stayed: str | None) -> str:
    """Return a row that opens: the claim and its verdict; inside, what it is judged by and on."""
    mark = f" ⚠ acknowledged: {entry['verdict']}" if claims.differs(entry, found) else ""
    scale = found["paper_scale"]
    others = {entry["verdict"]: "acknowledged"} | entry[claims.ELSEWHERE]
    others.pop(found["verdict"], None)
    lines = {
        "Measured here": found["measured"],
        "At the paper's scale": "" if scale == "not run" else scale,
        "Published value": f"{entry['paper_value']} ({entry['source']})",
        "Setting": entry["setting"],
        "Rule": entry["rule"],
        "Fixed": entry["fixed"],
        "Note": entry.get(claims.NOTE, ""),
        "On another processor": "; ".join(
            f"{verdict} ({where})" for verdict, where in others.items()
        )
        if entry[claims.ELSEWHERE]
        else "",
        SEEDS_HEAD: stayed or "",
    }
    return ROW.format(
        claim=claim,
        statement=_one_line(entry["statement"]),
        verdict=found["verdict"],
        share=claims.share(found),
        mark=mark,
        lines="\n".join(f"- *{name}*: {_one_line(text)}" for name, text in lines.items() if text),
        objection=objection(claim, entry, found),
        kind=entry["kind"].capitalize(),
        chapter=entry["chapter"],
        classes=f"claim kind-{entry['kind']} verdict-{found['verdict'].replace(' ', '-')}",
    )


def objection(claim: str, entry: Mapping, found: Mapping) -> str:
    """Return a text to copy for a reader who disagrees: the claim, what was found, by which rule,
    with which versions, and the command that repeats it.

    Parameters
    ----------
    claim : id in data/claims/claims.yml.
    entry : its declaration (`claims.declared`).
    found : what was found on it (`claims.checked`).
    """
    lines = {
        "Claim": f"{claim}: {entry['statement']}",
        "Found": f"{found['verdict']} ({claims.share(found)}); {found['measured']}",
        "Rule": entry["rule"],
        "Rule fixed": entry["fixed"],
        "Repeat": f"periodic book {entry['chapter'][:2]} --profile classroom --force",
        "Versions": versions(),
    }
    written = [
        textwrap.fill(f"{name}: {_one_line(text)}", WIDTH, subsequent_indent="  ")
        for name, text in lines.items()
    ]
    return "\n".join([*written, *QUESTIONS])


def versions() -> str:
    """Return the versions that a number of this book depends on, in one line."""
    names = ("periodic-lib", "torch", "numpy")
    packages = [f"{name} {importlib.metadata.version(name)}" for name in names]
    return ", ".join([*packages, f"Python {platform.python_version()}"])


def other_seeds() -> str:
    """Return how many verdicts came out again under other seeds, and two tables (MyST): verdicts by
    the acknowledged one, and what moved.

    The second lists each claim that got another verdict under some seeds, or on another processor.
    """
    entries, kept = claims.declared(), claims.stability()
    kept = kept[kept["claim"].isin(entries)]
    own = kept["claim"].map(lambda claim: entries[claim]["verdict"])
    words = [word for word in claims.VERDICTS if word in {*own, *kept["verdict"]}]
    counts = [["Acknowledged", *(f"Then: {word}" for word in words)]]
    for word in (word for word in words if word in set(own)):
        then = kept.loc[own == word, "verdict"]
        counts.append([word.capitalize(), *(str(int((then == other).sum())) for other in words)])
    moved = [["Claim", "Acknowledged", "Under other seeds", "On another processor"]]
    for claim, entry in entries.items():
        then = list(kept.loc[kept["claim"] == claim, "verdict"])
        there = "; ".join(f"{word} ({where})" for word, where in entry[claims.ELSEWHERE].items())
        if there or set(then) - {entry["verdict"]}:
            link = f"{{ref}}`{claim} <claim-{claim}>`"
            moved.append([link, entry["verdict"], ", ".join(then) or "–", there or "–"])
    tables = [(" ".join(["20", *["14"] * len(words)]), counts), ("34 18 34 26", moved)]
    tables = [TABLE.format(widths=w, rows=_list_table(rows)) for w, rows in tables]
    same = kept["verdict"] == own
    each = same.groupby(kept["claim"]).all()
    return AGAIN.format(same.sum(), len(same), each.sum(), len(each)) + MOVED.join(tables)


def _one_line(text: str) -> str:
    return " ".join(text.split())


WIDTH = 76  # characters of a line to copy
QUESTIONS = ("My processor and versions: ", "What I found: ", "Why I disagree: ")
AGAIN = "{:,} of {:,} verdicts came out again; {:,} of {:,} claims kept theirs each time.\n"
MOVED = "\nClaims whose verdict moved:\n"
SEEDS_HEAD = "Same verdict with other seeds"
TABLE = """
```{{list-table}}
:header-rows: 1
:widths: {widths}
{rows}
```
"""
ROW = """
::::{{dropdown}} **{verdict}**{mark} {statement}
:class-container: {classes}
:name: claim-{claim}
{kind} in [{claim}]({chapter}.ipynb): **{verdict}** ({share}){mark}

{lines}

:::{{dropdown}} Disagree with this claim: a text to copy
```text
{objection}
```
:::
::::
"""
SEEDS = """
An opened row says how often the acknowledged verdict came out again when all seeds were replaced
by others, three times ([again](again.md)). Long runs, whose results are kept, were not repeated.
"""
PAGE = """# Scorecard

Every claim that a chapter tests, with what was measured when this book was built; a row opens to
its numbers, its rule and its source. Only two kinds
are findings: *measured*, what could have come out otherwise, and *predicted*, whose rule was
written down before the runs that judge it. A *definition* follows, or nearly, from how its words
are defined; an *identity* is a theorem or a check of the code, and can fail only by a bug;
*withdrawn* are claims whose rule turned out to test something else: their rows say what.

{counts}

```{{claim-filter}}
```

:::{{dropdown}} How to read it: verdicts, intervals, and when a rule was fixed
A verdict follows from its rule alone: *holds* if every outcome (a seed, a run, a value) meets the
rule, *fails* if none does; *mostly holds* from 80 % on, *mostly fails* below 20 %, *mixed*
between. Beside it stand how many did, and the 95 % interval of their share (Wilson): five of five
leave room for 57 %. A claim that fails is shown as failed.

Not all rules were fixed in advance. Each row says when its rule was: only *before the runs* means
that it was committed before the runs that judge it had been trained or looked at. Most others were
written with their chapter, when the seeds shown may have been seen. Three things changed after
claims had been judged, for all of them: what a break is (first a loss ten times as high was asked
for, now the norm alone counts), the border between periods and equilibrium (a balance ratio of 1/3,
then 0.71, then a window budget of 0.53, the last chosen on runs labelled by eye), and the words of
verdicts. Some settings changed as well (weight decay 1.5e-2 instead of 1e-2, half as many steps).
What came out otherwise by it: [What changed](changelog.md).

Rules and acknowledged verdicts stand in `data/claims/claims.yml`: where this build measured
another one, as another processor may, the row is marked ⚠ and says which verdict was
acknowledged. Everything outside the topic *scale* was measured at the `classroom` scale. Numbers in
brackets, "(1 to 3)", are the lowest and the highest over seeds or runs, with the median before
them; for means, and for shares of runs told rightly, they are the 95 % interval.
{seeds}
:::
{sections}
"""
