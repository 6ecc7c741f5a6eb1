"""What a chapter says with numbers: checked claims, published numbers, figures with a description.

A `Chapter` writes them to one JSON file as it goes; the book's scorecard, the `{result}` role and the figures on other
pages read that file. What is claimed is declared once, in data/claims/claims.yml; a chapter only supplies what it
measured. The verdict that a reader last acknowledged stands there, too: a build that measures another one fails.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from periodic_lib.config import ConfigError, known_names, one_of, root

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

VERDICTS = ("holds", "partly", "does not hold", "not tested")
TOPICS = ("mechanism", "conditions", "presumptions", "practice")
CLAIM_KEYS = ("chapter", "topic", "statement", "source", "setting", "paper_value", "rule", "verdict")


def records_folder() -> Path:
    """Return where chapters write what they say: $PERIODIC_RECORDS, else build/interactive (notebooks run by hand)."""
    return Path(os.environ.get("PERIODIC_RECORDS") or root() / "build" / "interactive")


def file() -> Path:
    """Return where claims are declared."""
    return root() / "data" / "claims" / "claims.yml"


def declared() -> dict[str, dict]:
    """Return every declared claim: id -> chapter, topic, statement, source, setting, paper_value, rule, verdict."""
    from periodic_lib.experiments import read_yaml

    path = file()
    entries = read_yaml(path)
    for claim, entry in entries.items():
        known_names(f"key of claim {claim!r} in {path.name}", entry, CLAIM_KEYS)
        missing = [key for key in CLAIM_KEYS if key not in entry]
        if missing:
            raise ConfigError(f"{path}: claim {claim!r} must have {', '.join(CLAIM_KEYS)}; {missing} missing.")
        one_of(f"topic of claim {claim}", entry["topic"], TOPICS)
        one_of(f"verdict of claim {claim}", entry["verdict"], VERDICTS)
    return entries


def verdict(outcomes: Mapping[str, bool]) -> str:
    """Return "holds" if every outcome (one per seed or run) is true, "does not hold" if none is, else "partly".

    >>> verdict({"seed 0": True, "seed 1": False})
    'partly'
    """
    if not outcomes:
        raise ConfigError("`outcomes` must have at least one entry, one per seed or run; got none.")
    true = sum(map(bool, outcomes.values()))
    return "holds" if true == len(outcomes) else "partly" if true else "does not hold"


@dataclass(frozen=True)
class Checked:
    """A claim beside what was measured; its text form is what a notebook cell shows."""

    claim: str
    verdict: str
    true: int
    of: int
    measured: str

    def __repr__(self) -> str:
        return f"{self.claim}: {self.verdict} ({self.true} of {self.of}). {self.measured}"

    def _repr_markdown_(self) -> str:
        return f"Claim *{self.claim}* **{self.verdict}** ({self.true} of {self.of}): {self.measured}."


class Chapter:
    """The record of one chapter at one profile.

    Parameters
    ----------
    name : the chapter's file name without ending, for example "03_periodic_behavior".
    profile : at "smoke" a claim is recorded as "not tested": seconds of training cannot decide it.
    """

    def __init__(self, name: str, profile: str):
        self.name, self.profile = name, profile
        self._content = {"chapter": name, "profile": profile, "numbers": {}, "claims": {}, "figures": {}}
        self._write()

    def publish(self, **numbers: float | int | str) -> None:
        """Make numbers available to the text of every page as {result}`<chapter>.<name>:<format>`."""
        for name, value in numbers.items():
            plain = value.item() if hasattr(value, "item") else value
            if not isinstance(plain, float | int | str):
                raise ConfigError(f"`{name}` must be one number or text; got {type(value).__name__}.")
            self._content["numbers"][name] = plain
        self._write()

    def check(self, claim: str, outcomes: Mapping[str, bool], measured: str, paper_scale: str = "not run") -> Checked:
        """Record what was measured on a declared claim; return it with its verdict.

        Parameters
        ----------
        claim : id in data/claims/claims.yml.
        outcomes : whether the claim's rule is met, one entry per seed or run.
        measured : the numbers behind it, with their spread over seeds, in a few words.
        paper_scale : the same at the paper's scale, where a result is kept.
        """
        entries = declared()
        known_names("claim", [claim], tuple(entries))
        if entries[claim]["chapter"] != self.name:
            raise ConfigError(f"claim {claim!r} belongs to chapter {entries[claim]['chapter']!r}; got {self.name!r}.")
        plain = {str(label): bool(value) for label, value in outcomes.items()}
        result = "not tested" if self.profile == "smoke" else verdict(plain)
        self._content["claims"][claim] = {
            "verdict": result,
            "outcomes": plain,
            "measured": measured,
            "paper_scale": paper_scale,
        }
        self._write()
        return Checked(claim, result, sum(plain.values()), len(plain), measured)

    def show(self, figure: Figure, name: str, alt: str) -> None:
        """Display `figure` with a text alternative, and keep both for other pages under `name`."""
        import io

        from IPython.display import display
        from matplotlib import pyplot

        if len(alt) < 40:
            raise ConfigError(
                f"`alt` must say what is seen, with its numbers, in at least 40 characters; got {alt!r}."
            )
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
        path = records_folder() / "figures" / f"{self.name}-{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png.getvalue())
        self._content["figures"][name] = {"file": path.name, "alt": alt}
        self._write()
        pyplot.close(figure)
        display({"image/png": png.getvalue(), "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}})

    @staticmethod
    def paper_scale(experiment: str) -> xr.Dataset | None:
        """Return the result at the paper's scale that is kept in git; if there is none, say so and how to make it."""
        from IPython.display import display

        from periodic_lib import experiments

        dataset = experiments.kept(experiment)
        if dataset is None:
            todo = experiments.plan(experiment, "paper")
            text = (
                f"**Not run yet at the paper's scale** ({todo.setup.network}, {todo.setup.dataset}, "
                f"{len(todo.runs)} runs of {todo.setup.steps:,} steps). On a machine with a GPU: "
                f"`periodic run {experiment} --profile paper --budget 1500 --keep`; the same command goes on where "
                "the time was used up, and the next build of this page shows the result."
            )
            display({"text/markdown": text, "text/plain": text}, raw=True)
        return dataset

    @staticmethod
    def tabulate(table: pd.DataFrame) -> None:
        """Display `table` without its index."""
        from IPython.display import display

        display({"text/html": table.to_html(index=False, border=0), "text/plain": table.to_string()}, raw=True)

    def _write(self) -> None:
        path = records_folder() / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self._content, indent=1), encoding="utf-8")
        os.replace(partial, path)


def spread(values: Iterable[float], form: str = ".2g") -> str:
    """Return "median (lowest to highest)" of values over seeds; "-" if one of them is missing.

    >>> spread([3, 1, 2]), spread([1, float("nan")])
    ('2 (1 to 3)', '-')
    """
    ordered = sorted(map(float, values))
    if any(value != value for value in ordered) or not ordered:
        return "-"
    middle = statistics.median(ordered)
    return f"{middle:{form}} ({ordered[0]:{form}} to {ordered[-1]:{form}})"


def interval(values: Iterable[float], level: float = 0.95) -> tuple[float, float, float]:
    """Return mean and confidence interval of the mean (Student's t), (mean, low, high), of values over seeds.

    For a comparison on the same seeds, pass the differences. The ends are nan for fewer than two values.

    >>> [round(end, 3) for end in interval([1, 2, 3])]
    [2.0, -0.484, 4.484]
    """
    from scipy.special import stdtrit

    values = list(map(float, values))
    if not values:
        return (float("nan"),) * 3
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return mean, float("nan"), float("nan")
    half = float(stdtrit(n - 1, (1 + level) / 2)) * statistics.stdev(values) / n**0.5
    return mean, mean - half, mean + half


def read_records(folder: Path) -> dict[str, dict]:
    """Return what the chapters said: chapter -> numbers, claims, figures."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def checked(records: Mapping[str, dict]) -> dict[str, dict]:
    """Return for every declared claim what its chapter found: verdict, outcomes, measured, paper_scale.

    Raises
    ------
    ConfigError : if a chapter that ran did not check a claim declared for it.
    """
    found = {}
    for claim, entry in declared().items():
        record = records.get(entry["chapter"])
        if record is not None and claim not in record["claims"]:
            raise ConfigError(f"chapter {entry['chapter']!r} ran but did not check its claim {claim!r}.")
        found[claim] = record["claims"][claim] if record else NOT_TESTED
    return found


NOT_TESTED = {"verdict": "not tested", "outcomes": {}, "measured": "", "paper_scale": "not run"}


def changed(records: Mapping[str, dict]) -> list[str]:
    """Return a line for every claim whose measured verdict is not the acknowledged one."""
    acknowledged = declared()
    return [
        f"claim {claim!r}: measured {found['verdict']!r} ({found['measured']}), acknowledged "
        f"{acknowledged[claim]['verdict']!r}. If that is right, change its `verdict` in data/claims/claims.yml."
        for claim, found in checked(records).items()
        if found["verdict"] not in ("not tested", acknowledged[claim]["verdict"])
    ]


def table(records: Mapping[str, dict]) -> list[dict[str, str]]:
    """Return the scorecard as rows of text: claim, topic, chapter, verdict, acknowledged, measured."""
    entries = declared()
    return [
        {
            "claim": claim,
            "topic": entries[claim]["topic"],
            "chapter": entries[claim]["chapter"],
            "verdict": f"{found['verdict']} ({_share(found)})",
            "acknowledged": entries[claim]["verdict"],
            "measured": found["measured"],
        }
        for claim, found in checked(records).items()
    ]


def _share(found: Mapping) -> str:
    outcomes = found["outcomes"].values()
    return f"{sum(outcomes)} of {len(outcomes)}"


def scorecard(records: Mapping[str, dict]) -> str:
    """Return the scorecard page (MyST): one table per topic, one row per declared claim, with what was measured.

    Raises
    ------
    ConfigError : if a chapter that ran did not check a claim declared for it.
    """
    entries, found = declared(), checked(records)
    verdicts = [one["verdict"] for one in found.values()]
    summary = ", ".join(f"{word}: {verdicts.count(word)}" for word in VERDICTS if word in verdicts)
    sections = []
    for topic in TOPICS:
        rows = [_row(claim, entry, found[claim]) for claim, entry in entries.items() if entry["topic"] == topic]
        if rows:
            lines = ["* - " + "\n  - ".join(" ".join(cell.split()) for cell in row) for row in [SCORECARD_HEAD, *rows]]
            sections.append(SCORECARD_SECTION.format(topic=topic.capitalize(), rows="\n".join(lines)))
    return SCORECARD_PAGE.format(summary=summary, sections="\n".join(sections))


def _row(claim: str, entry: Mapping, found: Mapping) -> list[str]:
    at_scale = found["paper_scale"]
    return [
        f"[{claim}]({entry['chapter']}.ipynb): {entry['statement'].strip()} *Setting: {entry['setting'].strip()}. "
        f"Rule: {entry['rule'].strip()}.*",
        f"{entry['paper_value']} ({entry['source']})",
        found["measured"] + ("" if at_scale == "not run" else f" At the paper's scale: {at_scale}"),
        f"**{found['verdict']}** ({_share(found)})",
    ]


SCORECARD_HEAD = ["Claim, setting and rule", "Published value", "Measured here", "Verdict"]
SCORECARD_SECTION = """
## {topic}

```{{list-table}}
:header-rows: 1
:widths: 42 20 26 12
{rows}
```
"""
SCORECARD_PAGE = """# Scorecard

Every claim that a chapter tests, with what was measured when this book was built: {summary}.
A verdict follows from its rule alone: *holds* if every seed (or run) meets the rule, *does not hold* if none does,
*partly* otherwise. Rules are fixed in advance, in `data/claims/claims.yml`; a claim that fails is shown as failed. The
verdicts stand in that file, too: a build that measures another verdict stops and says so. What was measured at the
paper's scale is added where a result is kept; so far everything here was measured at the `classroom` scale.
Numbers in brackets, "(1 to 3)", are the lowest and the highest over seeds or runs, with the median before them; for
means, and for shares of runs told rightly, they are the 95 % interval.
{sections}"""
