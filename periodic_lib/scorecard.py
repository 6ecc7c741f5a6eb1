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
    verdicts = [one["verdict"] for one in found.values()]
    counts = {word: verdicts.count(word) for word in claims.VERDICTS if word in verdicts}
    stayed = claims.stayed(found) if len(claims.stability()) else {}
    return PAGE.format(
        summary=", ".join(f"{word}: {count}" for word, count in counts.items()),
        seeds=SEEDS if stayed else "",
        sections="\n".join(_section(topic, found, stayed) for topic in claims.TOPICS),
    )


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
    mark = f" ⚠ acknowledged: {entry['verdict']}" if claims.differs(entry, found) else ""
    return [
        f"[{claim}]({entry['chapter']}.ipynb): {entry['statement'].strip()} "
        f"*Setting: {entry['setting'].strip()}. Rule: {entry['rule'].strip()}.*",
        f"{entry['paper_value']} ({entry['source']})",
        found["measured"] + at_scale,
        f"**{found['verdict']}** ({claims.share(found)}){mark}",
    ]


HEAD = ["Claim, setting and rule", "Published value", "Measured here", "Verdict"]
WIDTHS = "42 20 26 12"
SEEDS_HEAD = "Same with other seeds"
SEEDS_WIDTHS = "38 19 23 11 9"
SECTION = """
## {topic}

```{{list-table}}
:header-rows: 1
:widths: {widths}
{rows}
```
"""
SEEDS = """
The last column says how often the acknowledged verdict came out again when all seeds were replaced
by others.
"""
PAGE = """# Scorecard

Every claim that a chapter tests, with what was measured when this book was built: {summary}. A
verdict follows from its rule alone: *holds* if every seed (or run) meets the rule, *does not
hold* if none does, *partly* otherwise. Rules are fixed in advance, in `data/claims/claims.yml`; a
claim that fails is shown as failed. The verdicts stand in that file, too: where this build
measured another one, as another processor may, the row is marked ⚠ and says which verdict was
acknowledged. What was measured at the paper's scale is added where a result is kept; so far
everything here was measured at the `classroom` scale. Numbers in brackets, "(1 to 3)", are the
lowest and the highest over seeds or runs, with the median before them; for means, and for shares
of runs told rightly, they are the 95 % interval.
{seeds}{sections}"""
