"""Answers to exercises: what is asked, and whether what was given is right.

A notebook for students carries its `Key`, packed so that nobody reads an answer by accident; it is
no secret. Needs the installed library alone, no project folder.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from periodic_lib.checks import known_names, number, one_of, shown
from periodic_lib.project import ConfigError

Answer = str | list[float]  # one of the choices, or numbers

KEY_BYTES = 2**20  # of an unpacked answer key


@dataclass(frozen=True)
class Verdict:
    """What is said of an answer; its text form is what a notebook cell shows."""

    right: bool
    text: str

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Question:
    """What is asked: by numbers, each right within a relative `tolerance`, or by one of `choices`.

    `wrong`: pairs of an answer that is expected and wrong, and the misconception it comes from.
    """

    answer: Answer
    hint: str = ""
    tolerance: float = 0.02
    choices: tuple[str, ...] = ()
    wrong: tuple[tuple[Answer, str], ...] = ()

    def form(self) -> str:
        """Return in words what an answer must be.

        >>> Question([1.0, 2.0]).form(), Question("yes", choices=("yes", "no")).form()
        ('a list of 2 numbers', "one of 'yes', 'no'")
        """
        if self.choices:
            return "one of " + ", ".join(map(repr, self.choices))
        return "a number" if len(self.answer) == 1 else f"a list of {len(self.answer)} numbers"

    def judge(self, given: object) -> Verdict:
        """Return whether an answer is right; if it is an expected wrong one, what was missed.

        |given - answer| <= tolerance |answer|, for each number; <= tolerance if the answer is 0.

        >>> Question([2.0]).judge(2.01).right, Question([2.0]).judge(1).right
        (True, False)
        """
        try:
            value = self._read(given)
        except ConfigError as error:
            return Verdict(False, str(error))
        if value is None:
            return Verdict(False, f"Not answered yet: put {self.form()} in place of the dots.")
        if self._same(value, self.answer):
            return Verdict(True, "Right.")
        missed = [why for answer, why in self.wrong if self._same(value, answer)]
        return Verdict(False, " ".join(["Not right.", *missed[:1], f"Hint: {self.hint}"]))

    def _read(self, given: object) -> Answer | None:
        """Return what was given as text or numbers; None where it still has the dots."""
        import numpy as np

        if given is None or given is ...:
            return None
        if self.choices:
            word = given.strip().lower() if isinstance(given, str) else shown(given)
            return one_of("answer", word, self.choices)
        values = np.ravel(np.asarray(given, dtype=object)).tolist()
        if any(value is ... for value in values):
            return None
        if len(values) != len(self.answer):
            raise ConfigError(f"`answer` must be {self.form()}; got {shown(given)}.")
        every = float("inf")
        return [number("answer", v, self.form(), -every, every, low_open=True) for v in values]

    def _same(self, value: Answer, answer: Answer) -> bool:
        if self.choices:
            return value == answer
        pairs = zip(value, answer, strict=True)
        return all(abs(one - other) <= self.tolerance * (abs(other) or 1) for one, other in pairs)


class Key:
    """The questions of a notebook by label; called with a label and an answer, it judges.

    >>> check = Key({"01.1": Question([2.0], hint="Try one.")})
    >>> check("01.1", 2)
    01.1: Right.
    >>> Key.read(check.packed())("01.1", ...)
    01.1: Not answered yet: put a number in place of the dots.
    """

    def __init__(self, questions: Mapping[str, Question]):
        self.questions = dict(questions)

    def __call__(self, label: str, given: object) -> Verdict:
        """Return the verdict on the answer to the question with this label.

        Raises
        ------
        ConfigError : if no question has it.
        """
        known_names("question", [label], tuple(self.questions))
        verdict = self.questions[label].judge(given)
        return Verdict(verdict.right, f"{label}: {verdict.text}")

    def packed(self) -> str:
        """Return the questions as one word of letters and digits."""
        content = {label: asdict(question) for label, question in self.questions.items()}
        return base64.b64encode(zlib.compress(json.dumps(content).encode(), 9)).decode()

    @classmethod
    def read(cls, text: str) -> Key:
        """Return what `packed` packed.

        Raises
        ------
        ConfigError : if the text is damaged.
        """
        try:
            packed = base64.b64decode(text, validate=True)
            unpacking = zlib.decompressobj()
            content = json.loads(unpacking.decompress(packed, KEY_BYTES))
            if not unpacking.eof:  # its checksum stands at its end
                raise ValueError("cut off")
            questions = {label: Question(**values) for label, values in content.items()}
        except (ValueError, TypeError, AttributeError, RecursionError, zlib.error) as error:
            raise ConfigError(
                f"the answer key of this notebook is damaged ({error}); take a fresh copy of it."
            ) from None
        return cls(questions)
