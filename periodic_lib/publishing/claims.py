"""Claims: what is declared in data/claims/claims.yml, beside what the chapters measured.

A claim is declared once, with its rule and the rule's numbers; a chapter only supplies what it
measured (`periodic_lib.publishing.chapters`), in one JSON file, its record. The verdict that a
reader last acknowledged is declared, too, so that a build that measures another one can say so.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from periodic_lib.checks import known_names, number, one_of
from periodic_lib.outside import read_table, read_yaml
from periodic_lib.project import ConfigError, folder, root, write_whole

if TYPE_CHECKING:
    import pandas as pd

VERDICTS = ("holds", "mostly holds", "mixed", "mostly fails", "fails", "not tested")
MOSTLY = 0.8  # of the outcomes
FEW = 5  # fewer outcomes say little
KINDS = ("measured", "predicted", "definition", "identity", "withdrawn")
COUNTED = ("measured", "predicted")  # kinds that are findings
TOPICS = ("mechanism", "conditions", "presumptions", "practice", "scale", "beyond")
CLAIM_KEYS = (
    "chapter", "topic", "kind", "fixed", "statement", "source", "setting", "paper_value", "rule",
    "verdict",
)  # fmt: skip
LIMITS = "limits"  # optional key: name -> number of the rule, which quotes it as {name}
NOTE = "note"  # optional key: what a reader must know to weigh the claim
ELSEWHERE = "elsewhere"  # optional key: verdict -> the processor on which it was measured instead
OWN_SEEDS = "own_seeds"  # optional key: why other seeds say nothing about the claim
STABILITY_COLUMNS = ("claim", "shift", "verdict")
NOT_TESTED = {"verdict": "not tested", "outcomes": {}, "measured": "", "paper_scale": "not run"}


# ---------------------------------------------------------------- what is declared


def file() -> Path:
    """Return where claims are declared."""
    return root() / "data" / "claims" / "claims.yml"


def declared() -> dict[str, dict]:
    """Return every declared claim: id -> `CLAIM_KEYS` and `limits`; its rule quotes their numbers.

    Raises
    ------
    ConfigError : if a claim lacks a key or has an unknown one, for an unknown topic or verdict, for
        a limit that is no number, or for a rule that quotes a limit that is not there.
    """
    return {claim: _checked_entry(claim, entry) for claim, entry in read_yaml(file()).items()}


def _checked_entry(claim: str, entry: Mapping) -> dict:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{file()}: claim {claim!r} must be a mapping; got {entry!r}.")
    legal = (*CLAIM_KEYS, LIMITS, NOTE, ELSEWHERE, OWN_SEEDS)
    known_names(f"key of claim {claim!r} in {file().name}", entry, legal)
    missing = [key for key in CLAIM_KEYS if key not in entry]
    if missing:
        keys = ", ".join(CLAIM_KEYS)
        raise ConfigError(f"{file()}: claim {claim!r} must have {keys}; {missing} missing.")
    one_of(f"topic of claim {claim}", entry["topic"], TOPICS)
    one_of(f"kind of claim {claim}", entry["kind"], KINDS)
    one_of(f"verdict of claim {claim}", entry["verdict"], VERDICTS)
    elsewhere = entry.get(ELSEWHERE) or {}
    for word in elsewhere:
        one_of(f"verdict elsewhere of claim {claim}", word, VERDICTS)
    limits = _checked_limits(claim, entry.get(LIMITS) or {})
    rule = _filled(claim, str(entry["rule"]), limits)
    return {**entry, LIMITS: limits, ELSEWHERE: elsewhere, "rule": rule}


def _checked_limits(claim: str, limits: object) -> dict[str, float]:
    """Return name -> number: whole numbers as int, others (also text such as 1e-3) as float."""
    if not isinstance(limits, Mapping) or not all(str(name).isidentifier() for name in limits):
        raise ConfigError(
            f"{file()}: `limits` of claim {claim!r} must be a mapping of names, as in Python, to "
            f"numbers; got {limits!r}."
        )
    return {name: _checked_limit(claim, name, value) for name, value in limits.items()}


def _checked_limit(claim: str, name: str, value: object) -> float:
    where, every = f"limit {name} of claim {claim}", float("inf")
    checked = number(where, value, "a number", low=-every, high=every, low_open=True)
    return value if isinstance(value, int) else checked


def _filled(claim: str, rule: str, limits: Mapping[str, float]) -> str:
    """Return the rule with the numbers that it quotes, as {name} or {name:.0%}.

    >>> _filled("budget", "growth over decay within {within:.0%} of 1", {"within": 0.1})
    'growth over decay within 10% of 1'
    """
    try:
        return rule.format_map(limits)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        names = ", ".join(limits) or "none"
        raise ConfigError(
            f"{file()}: the rule of claim {claim!r} must quote its limits as {{name}} or "
            f"{{name:format}}; known: {names}; got {type(error).__name__}: {error}."
        ) from None


# ---------------------------------------------------------------- what was measured


def verdict(outcomes: Mapping[str, bool]) -> str:
    """Return "holds" if every outcome is true, "fails" if none is; "mostly holds" from 80 % on,
    "mostly fails" below 20 %, else "mixed".

    Raises
    ------
    ConfigError : if there is no outcome: there is one per seed or run.

    >>> verdict({"seed 0": True, "seed 1": False})
    'mixed'
    """
    if not outcomes:
        raise ConfigError("`outcomes` must have at least one entry, one per seed or run; got none.")
    part = sum(map(bool, outcomes.values())) / len(outcomes)
    if part in (0, 1):
        return "holds" if part else "fails"
    return "mostly holds" if part >= MOSTLY else "mostly fails" if part < 1 - MOSTLY else "mixed"


def wilson(true: int, of: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share, `true` of `of` (Wilson 1927).

    >>> [round(end, 2) for end in wilson(5, 5)]
    [0.57, 1.0]
    """
    from scipy.stats import binomtest

    found = binomtest(true, of).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


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

    def _repr_html_(self) -> str:
        """Return a card: the claim, its verdict with the interval of its share, the numbers."""
        texts = {"claim": self.claim, "verdict": self.verdict, "measured": self.measured}
        texts["statement"] = " ".join(declared()[self.claim]["statement"].split())
        texts["share"] = _share(self.true, self.of)
        safe = {name: html.escape(text) for name, text in texts.items()}
        return CARD.format(kind=self.verdict.replace(" ", "-"), **safe)


CARD = """<div class="claim verdict-{kind}">
<p>Claim <a href="scorecard.html#claim-{claim}">{claim}</a>: {statement}</p>
<p><strong>{verdict}</strong> ({share}). {measured}.</p>
</div>"""


def records_folder() -> Path:
    """Return where chapters write what they say: $PERIODIC_RECORDS, else build/interactive."""
    return folder("PERIODIC_RECORDS", "build", "interactive")


def record_path(chapter: str) -> Path:
    """Return the file of what a chapter says."""
    return records_folder() / f"{chapter}.json"


def published(key: str, records: Mapping[str, Mapping]) -> object | None:
    """Return a number that a chapter published, by `chapter.name`; None if it did not.

    >>> records = {"01_a": {"numbers": {"b": 2}}}
    >>> published("01_a.b", records), published("01_a.c", records), published("02_d.b", records)
    (2, None, None)
    """
    chapter, _, name = key.partition(".")
    return records.get(chapter, {"numbers": {}})["numbers"].get(name)


def read_record(path: Path) -> dict:
    """Return what a chapter said: its numbers, claims and figures.

    Raises
    ------
    ConfigError : if the file cannot be read, or is no record.
    """
    again = f"Execute the chapter again: `periodic book {path.stem} --force`."
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). {again}") from error
    if not isinstance(record, dict) or not {"numbers", "claims", "figures"} <= set(record):
        raise ConfigError(f"{path} is no record of a chapter. {again}")
    return record


def read_records(folder: Path) -> dict[str, dict]:
    """Return what the chapters said: chapter -> numbers, claims, figures.

    Raises
    ------
    ConfigError : if a file cannot be read, or is no record.
    """
    return {path.stem: read_record(path) for path in sorted(folder.glob("*.json"))}


def checked(records: Mapping[str, dict]) -> dict[str, dict]:
    """Return what was found on every claim: verdict, outcomes, measured, paper_scale.

    Raises
    ------
    ConfigError : if a chapter that ran did not check a claim declared for it.
    """
    found = {}
    for claim, entry in declared().items():
        record = records.get(entry["chapter"])
        if record is not None and claim not in record["claims"]:
            chapter = entry["chapter"]
            raise ConfigError(f"chapter {chapter!r} ran but did not check its claim {claim!r}.")
        found[claim] = record["claims"][claim] if record else NOT_TESTED
    return found


def number_of(word: str, records: Mapping[str, dict]) -> int:
    """Return how many claims a word names: a verdict, those of the findings with it; "findings",
    all of them; "claims", every declared one; or a kind, such as "identity".

    Raises
    ------
    ConfigError : for another word.
    """
    one_of("word", word, (*VERDICTS, "findings", "claims", *KINDS))
    entries, found = declared(), checked(records)
    findings = [claim for claim, entry in entries.items() if entry["kind"] in COUNTED]
    if word in VERDICTS:
        return sum(found[claim]["verdict"] == word for claim in findings)
    if word in KINDS:
        return sum(entry["kind"] == word for entry in entries.values())
    return len(findings if word == "findings" else entries)


def differs(entry: Mapping, found: Mapping) -> bool:
    """Whether a claim was tested and its measured verdict is not an acknowledged one.

    Acknowledged are its `verdict`, and those that were measured on another processor.
    """
    return found["verdict"] not in ("not tested", entry["verdict"], *entry[ELSEWHERE])


def changed(records: Mapping[str, dict]) -> list[str]:
    """Return a line for every claim whose measured verdict is not the acknowledged one."""
    entries = declared()
    return [
        f"claim {claim!r}: measured {found['verdict']!r} ({found['measured']}), acknowledged "
        f"{entries[claim]['verdict']!r}. If that is right, change its `verdict` in {file().name}."
        for claim, found in checked(records).items()
        if differs(entries[claim], found)
    ]


def share(found: Mapping) -> str:
    """Return how many outcomes of a claim were true, with the 95 % interval of their share.

    As "4 of 5, 38% to 96%"; with "few" before it where there are fewer than five.
    """
    return _share(sum(found["outcomes"].values()), len(found["outcomes"]))


def _share(true: int, of: int) -> str:
    if not of:
        return "none"
    low, high = wilson(true, of)
    few = "few: " if of < FEW else ""
    return f"{few}{true} of {of}, {low:.0%} to {high:.0%}"


def table(records: Mapping[str, dict]) -> list[dict[str, str]]:
    """Return one row of text per claim: claim, topic, kind, chapter, verdict, acknowledged,
    measured.
    """
    entries = declared()
    return [
        {
            "claim": claim,
            "topic": entries[claim]["topic"],
            "kind": entries[claim]["kind"],
            "chapter": entries[claim]["chapter"],
            "verdict": f"{found['verdict']} ({share(found)})",
            "acknowledged": entries[claim]["verdict"],
            "measured": found["measured"],
        }
        for claim, found in checked(records).items()
    ]


# ---------------------------------------------------------------- under other seeds


def stability_file() -> Path:
    """Return where the verdicts under other seeds are kept."""
    return root() / "data" / "claims" / "stability.csv"


def stability() -> pd.DataFrame:
    """Return the verdicts measured when all seeds were shifted: columns claim, shift, verdict.

    Empty as long as none was kept.

    Raises
    ------
    ConfigError : if the file is no such table.
    """
    import pandas as pd

    path = stability_file()
    if not path.exists():
        return pd.DataFrame(columns=list(STABILITY_COLUMNS))
    return read_table(path, STABILITY_COLUMNS)


def stability_table(records_by_shift: Mapping[int, Mapping[str, dict]]) -> pd.DataFrame:
    """Return the verdict of every claim by the records made at each shift of the seeds.

    Claims that wait for runs at the paper's scale, acknowledged as "not tested", and those about
    which other seeds say nothing (`OWN_SEEDS`) are left out.

    Raises
    ------
    ConfigError : if another claim was not tested.
    """
    import pandas as pd

    rows = [
        (claim, shift, found["verdict"])
        for shift, records in records_by_shift.items()
        for claim, found in checked(records).items()
    ]
    entries = declared()
    out = {
        claim
        for claim, entry in entries.items()
        if entry["verdict"] == "not tested" or OWN_SEEDS in entry
    }
    rows = [row for row in rows if row[0] not in out]
    missing = [claim for claim, _, word in rows if word == "not tested"]
    if missing:
        some = ", ".join(missing[:3])
        raise ConfigError(
            f"all claims must have been tested; {len(missing)} were not: {some}. "
            "Execute their chapters at profile classroom first."
        )
    return pd.DataFrame(rows, columns=list(STABILITY_COLUMNS))


def save_stability(shift: int, records: Mapping[str, dict]) -> Path:
    """Write the verdicts measured at one shift of the seeds, in place of its former ones.

    Returns the file, data/claims/stability.csv.

    Raises
    ------
    ConfigError : if a claim was not tested.
    """
    import pandas as pd

    new, kept = stability_table({shift: records}), stability()
    found = pd.concat([kept[kept["shift"] != shift], new]).sort_values("shift", kind="stable")
    write_whole(stability_file(), found.to_csv(index=False))
    return stability_file()


def stayed(claims: Iterable[str]) -> dict[str, str]:
    """Return how often a claim's acknowledged verdict came out under other seeds: "k of n"; or why
    that was not asked.
    """
    entries, kept = declared(), stability()
    found = {}
    for claim in claims:
        words = kept.loc[kept["claim"] == claim, "verdict"]
        same = int((words == entries[claim]["verdict"]).sum())
        found[claim] = f"{same} of {len(words)}" if len(words) else "not measured"
        if reason := entries[claim].get(OWN_SEEDS):
            found[claim] = f"not asked: {reason}"
    return found
