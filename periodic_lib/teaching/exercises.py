"""Exercises: their texts and solutions stand in the chapters, all else in book/exercises.yml.

An answer that is a number is computed when the pack for the classroom is made, by an expression
over `theory`, arithmetic, and the numbers that chapters published.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from periodic_lib import theory
from periodic_lib.checks import integer, known_names, number, one_of, shown
from periodic_lib.outside import read_yaml
from periodic_lib.project import ConfigError, root
from periodic_lib.publishing import claims, notebooks
from periodic_lib.teaching.answers import Answer, Question

KINDS = ("by hand", "by slider", "by code")
NEEDED = ("kind", "level", "minutes", "ask", "hint", "answer", "wrong")
OPTIONAL = ("choices", "tolerance", "stub")
TEXT = re.compile(r"^\*\*(\d+)\.\*\* (.*?)(?=^\*\*\d+\.\*\*|^#|\Z)", re.MULTILINE | re.DOTALL)
FUNCTIONS = {"exp": math.exp, "ln": math.log, "sqrt": math.sqrt}
NODES = (ast.Expression, ast.Constant, ast.List, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop)
NODES += (ast.Call, ast.keyword, ast.Name, ast.Attribute, ast.Subscript, ast.expr_context)


class NotPublished(LookupError):
    """A number that no chapter has published yet."""


@dataclass(frozen=True)
class Exercise:
    """One exercise: from the chapter its text and solution, from book/exercises.yml the rest.

    `question` is None where the answer needs a number that no chapter has published: `missing`.
    """

    label: str
    text: str
    solution: str
    kind: str
    level: int
    minutes: int
    ask: str
    stub: str
    question: Question | None
    missing: str = ""


def declared() -> dict[str, dict[int, dict]]:
    """Return chapter -> number -> entry of book/exercises.yml, its keys checked.

    Raises
    ------
    ConfigError : for an unknown chapter or key, or one that is missing.
    """
    path = root() / "book" / "exercises.yml"
    content = read_yaml(path)
    known_names(f"chapter in {path.name}", content, notebooks.chapters())
    for chapter, entries in content.items():
        if not isinstance(entries, Mapping) or not all(type(count) is int for count in entries):
            raise ConfigError(
                f"{chapter} in {path.name} must be a mapping of numbers to exercises; "
                f"got {shown(entries)}."
            )
        for count, entry in entries.items():
            where = f"exercise {count} of {chapter} in {path.name}"
            check_keys(where, entry, NEEDED, OPTIONAL)
            for wrong in entry["wrong"]:
                check_keys(f"wrong answer of {where}", wrong, ("answer", "why"))
    return content


def check_keys(
    where: str, entry: object, needed: Sequence[str], optional: Sequence[str] = ()
) -> None:
    """Raise `ConfigError` unless an entry is a mapping that has all of `needed`, and nothing but
    these and `optional`.
    """
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where} must be a mapping of {', '.join(needed)}; got {shown(entry)}.")
    known_names(f"key of {where}", entry, (*needed, *optional))
    missing = [key for key in needed if key not in entry]
    if missing:
        raise ConfigError(f"{where} must have {', '.join(needed)}; {missing} missing.")


def texts(notebook: Mapping) -> dict[int, tuple[str, dict]]:
    """Return number -> text and solution cell of the exercises in a chapter's notebook.

    >>> text = {"cell_type": "markdown", "source": "**1.** How long?\\n\\n## Next"}
    >>> cell = {"cell_type": "code", "metadata": {"tags": ["solution"]}, "source": "5"}
    >>> texts({"cells": [text, cell]})[1][0]
    'How long?'
    """
    found, waiting = {}, []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            waiting += [(int(n), text.strip()) for n, text in TEXT.findall(notebooks.source(cell))]
        elif "solution" in cell["metadata"].get("tags", []) and waiting:
            count, text = waiting.pop(0)
            found[count] = (text, cell)
    return found


def load(chapter: str, records: Mapping[str, dict]) -> list[Exercise]:
    """Return the exercises of a chapter, answers computed; `records`: what the chapters published.

    Raises
    ------
    ConfigError : if book/exercises.yml and the chapter have not the same exercises, if a value
    cannot be used, or if an expected wrong answer would be accepted.
    """
    there = texts(notebooks.read(root() / "book" / f"{chapter}.ipynb"))
    entries = declared()[chapter]
    if set(entries) != set(there):
        raise ConfigError(
            f"{chapter} has the exercises {sorted(there)}, and book/exercises.yml for it "
            f"{sorted(entries)}: they must be the same."
        )
    return [_exercise(chapter, n, entries[n], *there[n], records) for n in sorted(there)]


def _exercise(
    chapter: str,
    count: int,
    entry: Mapping,
    text: str,
    solution: Mapping,
    records: Mapping[str, dict],
) -> Exercise:
    label, question, missing = f"{chapter[:2]}.{count}", None, ""
    try:
        question = _question(label, entry, lambda key: published(key, records))
    except NotPublished as error:
        missing = str(error.args[0])
    return Exercise(
        label=label,
        text=text,
        solution=notebooks.source(solution),
        kind=one_of(f"kind of exercise {label}", entry["kind"], KINDS),
        level=integer(f"level of exercise {label}", entry["level"], "from 1 to 3", 1, 3),
        minutes=integer(f"minutes of exercise {label}", entry["minutes"], "from 1 to 90", 1, 90),
        ask=" ".join(str(entry["ask"]).split()),
        stub=str(entry.get("stub", "")).strip(),
        question=question,
        missing=missing,
    )


def _question(label: str, entry: Mapping, result: Callable[[str], float]) -> Question:
    """Return the question, checked: its answer is accepted, each expected wrong one refused."""
    where, choices = f"exercise {label}", tuple(entry.get("choices", ()))
    if len(entry["wrong"]) < 2:
        raise ConfigError(f"`wrong` of {where} must have at least two; got {entry['wrong']!r}.")

    def read(value: object) -> Answer:
        return one_of(where, value, choices) if choices else evaluate(value, result)

    bound = "a number between 0 and 1"
    question = Question(
        answer=read(entry["answer"]),
        hint=" ".join(str(entry["hint"]).split()),
        tolerance=number(f"tolerance of {where}", entry.get("tolerance", 0.02), bound, 0, 1, True),
        choices=choices,
        wrong=tuple((read(wrong["answer"]), str(wrong["why"])) for wrong in entry["wrong"]),
    )
    for answer, why in question.wrong:
        if question.judge(answer).right:
            raise ConfigError(f"{where} accepts the wrong answer {answer} ({why}).")
    return question


def published(key: str, records: Mapping[str, dict]) -> float:
    """Return a number that a chapter published, by `chapter.name`.

    Raises
    ------
    NotPublished : if there is none.
    """
    found = claims.published(key, records)
    if found is None:
        chapter = key.partition(".")[0]
        raise NotPublished(f"its answer needs `{key}`, which `periodic book {chapter}` publishes")
    return float(found)


def evaluate(expression: object, result: Callable[[str], float]) -> list[float]:
    """Return the numbers of an expression: numbers, lists, arithmetic, exp, ln, sqrt,
    theory.<function>(...), result("chapter.name").

    Raises
    ------
    ConfigError : for anything else.

    >>> evaluate("[2 * sqrt(4), theory.effective_lr(0.1, 2)]", result=None)
    [4.0, 0.025]
    """
    import numpy as np

    names = {**FUNCTIONS, "theory": theory, "result": result}
    try:
        tree = ast.parse(str(expression).strip(), mode="eval")
        for node in ast.walk(tree):
            _check_node(node, names)
        value = eval(compile(tree, "answer", "eval"), {"__builtins__": {}}, names)  # noqa: S307
        return [float(one) for one in np.ravel(value)]
    except NotPublished:
        raise
    except Exception as error:
        raise ConfigError(
            f"`answer` must be numbers, or an expression of {', '.join(names)}; got "
            f"{shown(expression)} ({type(error).__name__}: {error})."
        ) from None


def _check_node(node: ast.AST, names: Mapping) -> None:
    """Raise `ValueError` for a part of an expression that is none of those allowed."""
    if not isinstance(node, NODES):
        raise ValueError(f"{type(node).__name__} is not allowed")
    if isinstance(node, ast.Name) and node.id not in names:
        raise ValueError(f"unknown name {node.id}")
    if isinstance(node, ast.Attribute) and node.attr not in theory.__all__:
        raise ValueError(f"theory has no {node.attr}")
