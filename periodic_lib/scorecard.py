"""The book's scorecard page (MyST): every declared claim beside what was measured, by topic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from periodic_lib import claims


def page(records: Mapping[str, dict]) -> str:
    """Return the page: a row for every declared claim, with what was measured.

    A verdict that is not the acknowledged one is marked. The last column, how often the
    acknowledged verdict came out under other seeds, is there once that was measured.

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
    """Return one topic's table; nothing if it has no claim."""
    entries = claims.declared()
    rows = [
        [*_row(claim, entry, found[claim]), *([stayed[claim]] if stayed else [])]
        for claim, entry in entries.items()
        if entry["topic"] == topic
    ]
    if not rows:
        return ""
    head, widths = ([*HEAD, SEEDS_HEAD], SEEDS_WIDTHS) if stayed else (HEAD, WIDTHS)
    return SECTION.format(topic=topic.capitalize(), widths=widths, rows=_list_table([head, *rows]))


def _list_table(rows: Sequence[Sequence[str]]) -> str:
    r"""Return the body of a `list-table`.

    >>> _list_table([["a", "b\n  c"]])
    '* - a\n  - b c'
    """
    return "\n".join("* - " + "\n  - ".join(" ".join(cell.split()) for cell in row) for row in rows)


def _row(claim: str, entry: Mapping, found: Mapping) -> list[str]:
    """Return what is claimed, the published value, what was measured, and the verdict."""
    scale = found["paper_scale"]
    at_scale = "" if scale == "not run" else f" At the paper's scale: {scale}"
    note = f" {entry[claims.NOTE].strip()}" if claims.NOTE in entry else ""
    mark = f" ⚠ acknowledged: {entry['verdict']}" if claims.differs(entry, found) else ""
    return [
        f"[{claim}]({entry['chapter']}.ipynb): {entry['statement'].strip()} "
        f"*{entry['kind'].capitalize()}. Setting: {entry['setting'].strip()}. Rule: "
        f"{entry['rule'].strip()}. Fixed: {entry['fixed'].strip()}.*" + note,
        f"{entry['paper_value']} ({entry['source']})",
        found["measured"] + at_scale,
        f"**{found['verdict']}** ({claims.share(found)}){mark}",
    ]


HEAD = ["Claim, setting and rule", "Published value", "Measured here", "Verdict"]
WIDTHS = "42 20 26 12"
SEEDS_HEAD = "Same with other seeds"
SEEDS_WIDTHS = "38 19 23 11 9"
TABLE = """
```{{list-table}}
:header-rows: 1
:widths: {widths}
{rows}
```
"""
SECTION = (
    """
## {topic}
"""
    + TABLE
)
SEEDS = """
The last column says how often the acknowledged verdict came out again when all seeds were replaced
by others. That was measured by the judge of regimes before this one, and some rules have changed
since ([What changed](changelog.md)): it tells how much verdicts scatter, not this book's own.
"""
PAGE = """# Scorecard

Every claim that a chapter tests, with what was measured when this book was built. Only two kinds
are findings: *measured*, what could have come out otherwise, and *predicted*, whose rule was
written down before the runs that judge it. A *definition* follows, or nearly, from how its words
are defined; an *identity* is a theorem or a check of the code, and can fail only by a bug;
*withdrawn* are claims whose rule turned out to test something else: their rows say what.

{counts}

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
{seeds}{sections}"""
