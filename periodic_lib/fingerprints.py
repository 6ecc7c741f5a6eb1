"""Fingerprints: what determines a result, its settings and the code that trains it, as digests."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from periodic_lib.config import Record, Run, Setup
from periodic_lib.project import digest

ENTRY = "engine.training"  # the module whose imports say what a result depends on
# imported there, too: words, files, labels, and this
NO_NUMBERS = {"fingerprints", "glossary", "outside", "project", "results"}


def settings_of(
    setup: Setup, runs: Sequence[Run], record: Record, data_digest: str | None = None
) -> dict:
    """Return everything that determines a result, without the code, ready for JSON.

    `data_digest`: of a data file of your own, whose content counts, not its name
    (`sources.own_data_digest`).
    """
    settings = {
        "setup": setup.to_dict(),
        "runs": [run.to_dict() for run in runs],
        "record": record.to_dict(),
    }
    return settings if data_digest is None else settings | {"data": data_digest}


def stack_digest(runs: Sequence[Run]) -> str:
    """Return a digest of the runs that are trained as one stack, in their order."""
    return digest([run.to_dict() for run in runs])[:32]


def _sources() -> dict[str, str]:
    """Return module -> source of the whole library, as it was when this module was imported."""
    folder, found = Path(__file__).parent, {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        package = len(parts) > 1 and parts[-1] == "__init__"
        found[".".join(parts[:-1] if package else parts)] = path.read_text(encoding="utf-8")
    return found


SOURCES = _sources()  # now: what is edited later is not what runs


@cache
def code_digest(modules: tuple[str, ...] | None = None) -> str:
    """Return the SHA-256 of what modules do: their source without comments and docstrings.

    None: the modules that a result depends on. A better comment makes no result untrue.
    """
    modules = depends_on() if modules is None else modules
    return digest([bare_source(SOURCES[module]) for module in modules])


@cache
def depends_on(entry: str = ENTRY) -> tuple[str, ...]:
    """Return the modules that determine what `entry` computes: itself and all that it imports, and
    so on.

    >>> "engine.networks" in depends_on(), "figures.plots" in depends_on()
    (True, False)
    """
    found, to_read = set(), [entry]
    while to_read:
        module = to_read.pop()
        if module not in found | NO_NUMBERS:
            found.add(module)
            to_read += imported(SOURCES[module])
    return tuple(sorted(found))


def imported(source: str) -> list[str]:
    """Return the modules of the library that a Python source imports, anywhere in it.

    >>> imported("from periodic_lib import theory, config")
    ['theory', 'config']
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("periodic_lib"):
            tail = node.module.removeprefix("periodic_lib").strip(".")
            found += [tail, *(f"{tail}.{alias.name}".strip(".") for alias in node.names)]
    return [module for module in found if module in SOURCES]


def bare_source(source: str) -> str:
    r"""Return Python source without comments, docstrings and blank lines, in one form.

    >>> bare_source('"Doc."\nx = 1  # one\n\ndef f():\n    "doc"\n    return "#"\n')
    "x = 1\n\ndef f():\n    return '#'"
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        has_body = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if has_body and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
