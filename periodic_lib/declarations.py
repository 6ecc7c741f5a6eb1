"""What book/experiments.yml declares, read and checked: names, profiles, setups, grids, records."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from periodic_lib.checks import known_names, number, optional, shown
from periodic_lib.config import Record, Setup
from periodic_lib.outside import read_yaml
from periodic_lib.project import ConfigError, root

PROFILES = ("smoke", "classroom", "paper")
ENTRY_KEYS = ("chapter", "also", "question", "setup", "vary", "grid", "record", "profiles")
PROFILE_KEYS = ("setup", "vary", "grid", "record", "minutes")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")  # it becomes the name of a folder


def declared(file: Path | None = None) -> dict[str, dict]:
    """Return every declared experiment: name -> entry of book/experiments.yml, or of `file`.

    The entries made by `vary` follow the entry that declares it, under its name and the changed
    parameter and value, for example `conditions_width_8`; their key `part_of` is (its name,
    parameter, value).

    Raises
    ------
    ConfigError : naming the experiment, for anything that is not of the kind it must be.
    """
    path = file or root() / "book" / "experiments.yml"
    found = {}
    for name, entry in read_yaml(path).items():
        _check_entry(name, entry, path.name)
        found |= _with_variants(name, entry)
    for name in found:
        _check_name(name, path.name)
    return found


def names() -> list[str]:
    """Return the names of all experiments but those that `vary` makes of one."""
    return [name for name, entry in declared().items() if "part_of" not in entry]


def _check_entry(name: object, entry: object, file: str) -> None:
    """Raise `ConfigError` unless an entry and its profiles are of the kinds they must be."""
    _check_name(name, file)
    where = f"experiment {name!r} in {file}"
    if not isinstance(entry, dict) or not isinstance(entry.get("profiles"), dict):
        raise ConfigError(f"{where} must be a mapping that has `profiles`.")
    known_names(f"key of {where}", entry, ENTRY_KEYS)
    known_names(f"profile of {where}", entry["profiles"], PROFILES)
    for key in ("chapter", "question"):
        if not isinstance(entry.get(key, ""), str):
            raise ConfigError(f"`{key}` of {where} must be a text; got {shown(entry[key])}.")
    also = entry.get("also", [])
    if not isinstance(also, list) or not all(isinstance(one, str) for one in also):
        raise ConfigError(f"`also` of {where} must be a list of chapters; got {shown(also)}.")
    _check_sections(entry, where)
    for profile, chosen in entry["profiles"].items():
        where = f"profile {profile!r} of experiment {name!r} in {file}"
        _check_mapping(where, chosen)
        known_names(f"key of {where}", chosen or {}, PROFILE_KEYS)
        _check_sections(chosen or {}, where)
        minutes, meaning = (chosen or {}).get("minutes"), "a number of minutes from 0"
        optional(f"minutes` of {where}, `minutes", minutes, number, meaning, 0, float("inf"))


def _check_name(name: object, file: str) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(
            f"the name of an experiment in {file} must be letters, digits and . _ + -, at most "
            f"100, and begin with none of . + -; got {shown(name)}."
        )


def _check_sections(entry: Mapping, where: str) -> None:
    """Raise `ConfigError` unless setup, record, vary and grid are of their kinds."""
    for key in ("setup", "record", "vary"):
        _check_mapping(f"`{key}` of {where}", entry.get(key))
    for key, legal in (("setup", Setup.names()), ("record", Record.names())):
        known_names(f"parameter in `{key}` of {where}", entry.get(key) or {}, legal)
    known_names(f"parameter in `vary` of {where}", entry.get("vary") or {}, Setup.names())
    for parameter, values in (entry.get("vary") or {}).items():
        if not isinstance(values, list) or any(isinstance(one, list | dict) for one in values):
            raise ConfigError(
                f"`vary` of {where}: `{parameter}` must be a list of values; got {shown(values)}."
            )
    grids = entry.get("grid", {})
    for grid in grids if isinstance(grids, list) else [grids]:
        _check_mapping(f"a grid of {where}", grid)
    if grids == []:
        raise ConfigError(f"`grid` of {where} must have at least one grid; got [].")


def _check_mapping(what: str, value: object) -> None:
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{what} must be a mapping of names to values; got {shown(value)}.")


def _with_variants(name: str, entry: dict) -> dict[str, dict]:
    """Return the entry and one for each value that it varies, in the profiles that vary it."""
    found = {name: entry}
    for profile, chosen in entry["profiles"].items():
        for parameter, values in ((chosen or {}).get("vary", entry.get("vary")) or {}).items():
            for value in values:
                setup = {**((chosen or {}).get("setup") or {}), parameter: value}
                key = f"{name}_{parameter}_{str(value).lower()}"
                new = {**entry, "part_of": (name, parameter, value), "profiles": {}}
                found.setdefault(key, new)["profiles"][profile] = {**(chosen or {}), "setup": setup}
    return found
