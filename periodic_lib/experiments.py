"""Experiments, declared once in book/experiments.yml and run from a notebook, the command line or a cluster alike.

experiment -> profile -> setup (shared by the stack) + grid (what differs between runs) + record. A result is loaded
if it is present and *true*: made with the same settings by the same code. Otherwise it is made, shown as it goes.
An experiment may `vary` its setup, one value at a time: each value makes an experiment of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from periodic_lib import results
from periodic_lib.config import SEED, ConfigError, Record, Run, Setup, grid, known_names, one_of, root

if TYPE_CHECKING:
    import xarray as xr

PROFILES = ("smoke", "classroom", "paper")
ENTRY_KEYS = ("chapter", "question", "setup", "vary", "grid", "record", "profiles")
PROFILE_KEYS = ("setup", "vary", "grid", "record", "minutes")


@dataclass(frozen=True)
class Plan:
    """One experiment at one profile, fully resolved and checked: what will be trained and what kept."""

    name: str
    profile: str
    chapter: str
    question: str
    setup: Setup
    runs: tuple[Run, ...]
    record: Record
    minutes: float | None
    overrides: Mapping

    @cached_property
    def settings(self) -> dict:
        """Everything that determines the result, ready for JSON, without the code."""
        return results.settings_of(self.setup, self.runs, self.record)

    @property
    def path(self) -> Path:
        """The one place of this result; other overrides have another place, so that they never replace it."""
        suffix = f"-{results.digest(self.settings)[:8]}" if self.overrides else ""
        return cache_folder() / self.name / f"{self.profile}{suffix}.nc"

    def why_not(self, dataset: xr.Dataset) -> str | None:
        """Return why `dataset` is not the result of this plan by the present code; None if it is."""
        if dataset.attrs.get("settings") != results.digest(self.settings):
            return "other settings"
        if dataset.attrs.get("code") != results.code_digest():
            return "the library's training code has changed"
        return None


def cache_folder() -> Path:
    """Return the folder of results made on this machine: $PERIODIC_CACHE, else data/cache (not in git)."""
    return Path(os.environ.get("PERIODIC_CACHE") or root() / "data" / "cache")


# ---------------------------------------------------------------- reading the declaration


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # compiled where there is LibYAML: ten times faster
    """YAML in which a name given twice is an error, not a silent choice."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key_node.value!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


@lru_cache(maxsize=8)
def _parsed(text: str) -> object:
    """Return what a YAML text says; not to be changed, as everybody who reads the same text gets the same object."""
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader


def read_yaml(path: Path) -> dict:
    """Return the mapping in a YAML file.

    Raises
    ------
    ConfigError : naming the file and the line, if it cannot be read or is no mapping.
    """
    try:
        content = _parsed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "unknown line"
        raise ConfigError(f"{path}, {where}: {getattr(error, 'problem', None) or error}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}, line 1: must be a mapping of names to entries; got {type(content).__name__}.")
    return content


def declared() -> dict[str, dict]:
    """Return every declared experiment: name -> entry of book/experiments.yml.

    The entries made by `vary` follow the entry that declares it, under its name and the changed parameter and value,
    for example `conditions_width_8`; their key `part_of` is (its name, parameter, value).
    """
    path = root() / "book" / "experiments.yml"
    entries = read_yaml(path)
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("profiles"), dict):
            raise ConfigError(f"{path}: experiment {name!r} must be a mapping that has `profiles`.")
        known_names(f"key of experiment {name!r} in {path.name}", entry, ENTRY_KEYS)
        known_names(f"profile of experiment {name!r} in {path.name}", entry["profiles"], PROFILES)
    return {key: one for name, entry in entries.items() for key, one in _with_variants(name, entry).items()}


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


def plan(name: str, profile: str = "classroom", overrides: Mapping | None = None) -> Plan:
    """Return the checked plan of an experiment at a profile.

    Parameters
    ----------
    name, profile : as declared in book/experiments.yml.
    overrides : values that replace declared ones; parameters of `Setup`, `Run` (a list makes a grid), `Record`, or
        `seed`.

    Raises
    ------
    ConfigError : for an unknown name or a value that cannot be used, before anything is computed.
    """
    entries = declared()
    known_names("experiment", [name], tuple(entries))
    entry, overrides = entries[name], dict(overrides or {})
    one_of("profile", profile, tuple(entry["profiles"]))
    chosen = entry["profiles"][profile] or {}
    known_names(f"key of profile {profile!r} of {name!r}", chosen, PROFILE_KEYS)
    known_names("parameter", overrides, (*Setup.names(), *Run.names(), SEED, *Record.names()))

    def merged(section: str, names: tuple[str, ...]) -> dict:
        values = {**(entry.get(section) or {}), **(chosen.get(section) or {})}
        known_names(f"parameter in `{section}` of {name!r}", values, names)
        return {**values, **{key: value for key, value in overrides.items() if key in names}}

    return Plan(
        name=name,
        profile=profile,
        chapter=entry.get("chapter", ""),
        question=" ".join(entry.get("question", "").split()),
        setup=Setup(**merged("setup", Setup.names())),
        runs=tuple(_runs(chosen.get("grid", entry.get("grid", {})), overrides)),
        record=Record(**merged("record", Record.names())),
        minutes=chosen.get("minutes"),
        overrides=overrides,
    )


def _runs(grids: Mapping | list, overrides: Mapping) -> list[Run]:
    """Return the runs of one grid, or of several after each other; an override replaces the declared values in all."""
    changed = {key: value for key, value in overrides.items() if key in (*Run.names(), SEED)}
    if SEED in changed:
        replaced = {"init_seed", "data_seed"}
    else:
        replaced = {SEED} if {"init_seed", "data_seed"} & set(changed) else set()
    grids = grids if isinstance(grids, list) else [grids]
    runs = []
    for one in grids:
        kept = {key: value for key, value in one.items() if key not in replaced}
        runs += [run for run in grid(**{**kept, **changed}) if run not in runs]
    return runs


# ---------------------------------------------------------------- running


def run_experiment(
    name: str,
    profile: str = "classroom",
    *,
    overrides: Mapping | None = None,
    force: bool = False,
    progress: bool = True,
    budget: float | None = None,
) -> xr.Dataset:
    """Return the result of an experiment: loaded if present and true, else trained, saved and returned.

    Parameters
    ----------
    name, profile, overrides : see `plan`.
    force : train even if the result is there.
    progress : show the training.
    budget : seconds of training after which it stops with `Unfinished`, its state saved; None: no limit.

    A damaged result file is set aside (never deleted), with a message, and the result is made again. An interrupted
    training leaves its resume state beside the result's place, and the next call goes on from there.
    """
    todo = plan(name, profile, overrides)
    if not force:
        present = _load_if_true(todo, say=print_message)
        if present is not None:
            return present
    from periodic_lib.training import train

    unfinished = todo.path.with_suffix(".resume.npz")
    dataset = train(todo.setup, todo.runs, todo.record, progress=progress, resume=unfinished, budget=budget)
    dataset = dataset.assign_attrs(experiment=name, profile=profile)
    results.save(dataset, todo.path)
    unfinished.unlink(missing_ok=True)
    return dataset


def run_variants(
    name: str, profile: str = "classroom", *, overrides: Mapping | None = None, progress: bool = True
) -> dict[tuple[str, object], xr.Dataset]:
    """Return the results of an experiment and of its variants: (parameter, value) -> result, as `run_experiment`.

    The unchanged setup stands under each varied parameter, too, with the value it has there: (width, 64), say.

    Raises
    ------
    ConfigError : if the experiment varies nothing at this profile, or if a parameter that it varies is overridden.
    """
    entries, base = declared(), plan(name, profile, overrides).setup.to_dict()
    parts = {key: one["part_of"] for key, one in entries.items() if one.get("part_of", ("",))[0] == name}
    parts = {key: part[1:] for key, part in parts.items() if profile in entries[key]["profiles"]}
    varied = dict.fromkeys(parameter for parameter, _ in parts.values())
    if not varied:
        raise ConfigError(f"experiment {name!r} varies nothing at profile {profile!r}; use run_experiment.")
    fixed = set(varied) & set(overrides or {})
    if fixed:
        raise ConfigError(f"`{fixed.pop()}` is varied by experiment {name!r}: it cannot be overridden, too.")
    unchanged = run_experiment(name, profile, overrides=overrides, progress=progress)
    found = {(parameter, base[parameter]): unchanged for parameter in varied}
    for key, (parameter, _) in parts.items():
        value = getattr(plan(key, profile, overrides).setup, parameter)  # 2e-1 is text in YAML
        found[parameter, value] = run_experiment(key, profile, overrides=overrides, progress=progress)
    return found


def kept_path(name: str, profile: str = "paper") -> Path:
    """Return where the result of a long run is kept in git: data/results/<profile>/<name>.nc."""
    return root() / "data" / "results" / profile / f"{name}.nc"


def keep(dataset: xr.Dataset, todo: Plan) -> Path:
    """Write a result to its place in git, and return that; another copy of the declared data is the only change.

    Raises
    ------
    ConfigError : if anything but `dataset` was overridden.
    """
    if set(todo.overrides) - {"dataset"}:
        raise ConfigError(
            f"only a declared result is kept, with no other change than `dataset`; got {', '.join(todo.overrides)}."
        )
    path = kept_path(todo.name, todo.profile)
    results.save(dataset.assign_attrs(declared=_declared_digest(todo)), path)
    return path


def kept(name: str, profile: str = "paper") -> xr.Dataset | None:
    """Return the result of an experiment that is kept in git, or None if it has not been run yet.

    It was made by the code that its provenance names, on a device that few readers have; so, unlike a result of
    `run_experiment`, it is not made again when the training code changes.

    Raises
    ------
    ResultsError : if the file is damaged or was made with other settings than book/experiments.yml declares now.
    """
    path = kept_path(name, profile)
    if not path.exists():
        return None
    dataset = results.load(path)
    if dataset.attrs.get("declared") != _declared_digest(plan(name, profile)):
        raise results.ResultsError(f"{path} was made with other settings than are declared; run it again.")
    return dataset


def _declared_digest(todo: Plan) -> str:
    settings = todo.settings
    setup = {key: value for key, value in settings["setup"].items() if key != "dataset"}
    return results.digest({"setup": setup, "runs": settings["runs"], "record": settings["record"]})


def state(todo: Plan) -> tuple[str, float | None]:
    """Return ("ready" | "out of date" | "damaged" | "not made", seconds it took, if it is there)."""
    try:
        dataset = results.load(todo.path)
    except FileNotFoundError:
        return "not made", None
    except results.ResultsError:
        return "damaged", None
    return ("ready" if todo.why_not(dataset) is None else "out of date"), float(dataset.attrs["seconds"])


def print_message(text: str) -> None:
    """Print a line to standard error."""
    print(f"periodic: {text}", file=sys.stderr, flush=True)


def _load_if_true(todo: Plan, say) -> xr.Dataset | None:
    try:
        dataset = results.load(todo.path)
    except FileNotFoundError:
        return None
    except results.ResultsError as error:
        aside = results.set_aside(todo.path)
        say(f"{error} Set aside as {aside.name}; making it again.")
        return None
    reason = todo.why_not(dataset)
    if reason:
        say(f"{todo.name} ({todo.profile}) is out of date ({reason}); making it again.")
        return None
    return dataset
