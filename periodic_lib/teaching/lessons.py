"""Plans for lessons (MyST), from book/lessons.yml: who does what, for how many minutes."""

from __future__ import annotations

from collections.abc import Mapping

from periodic_lib.checks import integer, known_names
from periodic_lib.outside import read_yaml
from periodic_lib.project import ConfigError, root
from periodic_lib.publishing import execution, notebooks
from periodic_lib.teaching import exercises

KEYS = ("title", "goals", "sessions")
SESSION_KEYS = ("title", "minutes", "steps")
STEP_KEYS, STEP_OPTIONAL = ("minutes", "do"), ("exercises", "trains")
HEAD = "| From minute | Minutes | What | Exercises | Training, if there are no results |"


def declared() -> dict[str, dict]:
    """Return the plans of book/lessons.yml, their minutes and exercises checked.

    Raises
    ------
    ConfigError : for an unknown key or exercise, or minutes that do not add up.
    """
    plans = read_yaml(root() / "book" / "lessons.yml")
    known = _minutes_of_exercises()
    for name, entry in plans.items():
        exercises.check_keys(f"plan {name!r}", entry, KEYS)
        for session in entry["sessions"]:
            exercises.check_keys(f"a session of plan {name!r}", session, SESSION_KEYS)
            _check_minutes(f"session {session['title']!r}", session, known)
    return plans


def _minutes_of_exercises() -> dict[str, int]:
    """Return the minutes of every exercise, by its label."""
    return {
        f"{chapter[:2]}.{count}": entry["minutes"]
        for chapter, entries in exercises.declared().items()
        for count, entry in entries.items()
    }


def _check_minutes(where: str, session: Mapping, known: Mapping[str, int]) -> None:
    total = 0
    for step in session["steps"]:
        exercises.check_keys(f"a step of {where}", step, STEP_KEYS, STEP_OPTIONAL)
        labels = step.get("exercises", [])
        known_names("chapter", filter(None, [step.get("trains")]), notebooks.chapters())
        known_names(f"exercise of {where}", labels, tuple(known))
        need = max(1, sum(known[label] for label in labels))
        meaning = f"at least {need}, for its exercises"
        total += integer(f"minutes of a step of {where}", step["minutes"], meaning, need)
    if total != session["minutes"]:
        raise ConfigError(
            f"the steps of {where} must take its {session['minutes']} minutes; they take {total}."
        )


def plan(name: str) -> str:
    """Return a plan (MyST): its goals, and a table for each session.

    Raises
    ------
    ConfigError : for an unknown name.
    """
    plans = declared()
    known_names("plan", [name], tuple(plans))
    entry = plans[name]
    goals = "\n".join(f"- {goal}" for goal in entry["goals"])
    sessions = "\n\n".join(map(_session, entry["sessions"]))
    return f"Afterwards students can\n\n{goals}\n\n{sessions}\n"


def _session(session: Mapping) -> str:
    title = f"**{session['title']}**, {session['minutes']} minutes"
    rows, at = [title, "", HEAD, "|---|---|---|---|---|"], 0
    for step in session["steps"]:
        labels = ", ".join(step.get("exercises", []))
        cells = (at, step["minutes"], step["do"], labels, _training(step.get("trains")))
        rows.append(f"| {' | '.join(map(str, cells))} |")
        at += step["minutes"]
    return "\n".join(rows)


def _training(chapter: str | None) -> str:
    """Return how long a chapter's own experiments train on two cores, as they declare it."""
    if chapter is None:
        return ""
    plans = execution.experiments_of(chapter, "classroom", own=True)
    minutes = sum(one.minutes or 0 for one in plans)
    return f"{minutes:.1f} min" if plans else "none of its own"
