"""Experiments, declared once in book/experiments.yml and run from a notebook, the command line or a
cluster alike.

experiment -> profile -> setup (shared by the stack) + grid (what differs between runs) + record. A
result is loaded if it is present and *true*: made with the same settings by the same code.
Otherwise it is made, shown as it goes. An experiment may `vary` its setup, one value at a time:
each value makes an experiment of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from periodic_lib import fingerprints, results
from periodic_lib.checks import integer, known_names, one_of
from periodic_lib.config import SEED, Record, Run, Setup, grid
from periodic_lib.declarations import PROFILES, declared, names  # noqa: F401 - found here, too
from periodic_lib.engine.sources import own_data_digest
from periodic_lib.project import ConfigError, digest, discard, print_message, root, variable
from periodic_lib.storage import store

if TYPE_CHECKING:
    import xarray as xr

KEPT_ROWS = 10_000  # of a record that goes into git as it is


@dataclass(frozen=True)
class Plan:
    """One experiment at one profile, fully resolved and checked: what will be trained and what
    kept.
    """

    name: str
    profile: str
    chapter: str
    question: str
    setup: Setup
    runs: tuple[Run, ...]
    record: Record
    minutes: float | None
    overrides: Mapping
    file: Path | None = None  # where it is declared, if not in book/experiments.yml

    @cached_property
    def settings(self) -> dict:
        """Everything that determines the result, ready for JSON, without the code."""
        data = own_data_digest(self.setup.dataset)
        return fingerprints.settings_of(self.setup, self.runs, self.record, data)

    @cached_property
    def keys(self) -> list[str]:
        """The addresses of the runs in the store."""
        data = own_data_digest(self.setup.dataset)
        return store.run_keys(self.setup, self.runs, self.record, data)

    @property
    def path(self) -> Path:
        """The one place of this result; other overrides have another place, so that they never
        replace it.
        """
        suffix = f"-{digest(self.settings)[:8]}" if self.overrides else ""
        place = store.folder() / self.file.stem if self.file else store.folder()
        return place / self.name / f"{self.profile}{suffix}.nc"

    def stale_reason(self, attributes: Mapping) -> str | None:
        """Return why a result with these attributes is not this plan's by the present code; None if
        it is.
        """
        if attributes.get("settings") != digest(self.settings):
            return "other settings"
        if attributes.get("code") != fingerprints.code_digest():
            return "the library's training code has changed"
        return None


# ---------------------------------------------------------------- plans


def plan(
    name: str,
    profile: str = "classroom",
    overrides: Mapping | None = None,
    file: Path | None = None,
) -> Plan:
    """Return the checked plan of an experiment at a profile.

    Parameters
    ----------
    name, profile : as declared in book/experiments.yml.
    overrides : values that replace declared ones; parameters of `Setup`, `Run` (a list makes a
        grid), `Record`, or `seed`.
    file : of your own, in the same format; None: book/experiments.yml.

    Raises
    ------
    ConfigError : for an unknown name or a value that cannot be used, before anything is computed.
    """
    entries = declared(file)
    if name not in entries:
        known_names("experiment", [name], tuple(entries) if file else names())
    entry, overrides = entries[name], dict(overrides or {})
    one_of("profile", profile, tuple(entry["profiles"]))
    chosen = entry["profiles"][profile] or {}
    known_names("parameter", overrides, (*Setup.names(), *Run.names(), SEED, *Record.names()))

    def merged(section: str, legal: tuple[str, ...]) -> dict:
        values = {**(entry.get(section) or {}), **(chosen.get(section) or {})}
        return {**values, **{key: value for key, value in overrides.items() if key in legal}}

    return Plan(
        name=name,
        profile=profile,
        chapter=entry.get("chapter", ""),
        question=" ".join(entry.get("question", "").split()),
        setup=Setup(**merged("setup", Setup.names())),
        runs=_shifted(_runs(chosen.get("grid", entry.get("grid", {})), overrides), seed_shift()),
        record=Record(**merged("record", Record.names())),
        minutes=chosen.get("minutes"),
        overrides=overrides,
        file=file,
    )


def _runs(grids: Mapping | list, overrides: Mapping) -> list[Run]:
    """Return the runs of one grid, or of several after each other; an override replaces the
    declared values in all.
    """
    changed = {key: value for key, value in overrides.items() if key in (*Run.names(), SEED)}
    if SEED in changed:
        replaced = {"init_seed", "data_seed"}
    else:
        replaced = {SEED} if {"init_seed", "data_seed"} & set(changed) else set()
    grids = grids if isinstance(grids, list) else [grids]
    runs = []
    for one in grids:
        kept = {key: value for key, value in (one or {}).items() if key not in replaced}
        runs += grid(**{**kept, **changed})
    return list(dict.fromkeys(runs))


def seed_shift() -> int:
    """Return what $PERIODIC_SEED_SHIFT adds to every seed of a run: how stable is a result against
    other seeds?

    Raises
    ------
    ConfigError : if it is no whole number from 0.
    """
    return integer(
        "PERIODIC_SEED_SHIFT", variable("PERIODIC_SEED_SHIFT") or 0, "a whole number from 0", low=0
    )


def _shifted(runs: Sequence[Run], by: int) -> tuple[Run, ...]:
    return tuple(
        replace(run, init_seed=run.init_seed + by, data_seed=run.data_seed + by) for run in runs
    )


# ---------------------------------------------------------------- running


def run_experiment(
    name: str,
    profile: str = "classroom",
    *,
    overrides: Mapping | None = None,
    force: bool = False,
    progress: bool = True,
    budget: float | None = None,
    file: Path | None = None,
    scheduler: object = None,
    workers: int | None = None,
) -> xr.Dataset:
    """Return the result of an experiment: loaded if present and true, else trained, saved and
    returned.

    Parameters
    ----------
    name, profile, overrides, file : see `plan`.
    force : train even if the result is there.
    progress : show the training.
    budget : seconds of training after which it stops with `Unfinished`, its state saved; None: no
        limit.
    scheduler, workers : train the runs as stacks on a Dask cluster, "local", a scheduler's address
        or a `distributed.Client` (`sweeps.sweep`); None: as one stack, here.

    A damaged result file is set aside (never deleted), with a message, and the result is made
    again. An interrupted training leaves its resume state beside the result's place, and the next
    call goes on from there.
    """
    todo = plan(name, profile, overrides, file)
    if scheduler is not None:
        from periodic_lib.sweeping import sweeps

        sweeps.stored(todo, scheduler, workers, progress, force=force, budget=budget)
    present = None if force else _load_if_true(todo)
    if present is not None:
        return present
    import h5netcdf  # noqa: F401 - what saving needs: its lack must not be noticed after training

    with store.claimed(todo.keys, f"{todo.name} ({todo.profile})", anew=force) as left:
        shared = todo.setup.network not in store.CONVOLUTIONAL
        if len(left) == len(todo.keys) or (left and not shared):
            return _train(todo, progress, budget)
        if left:
            _train_rest(todo, left, progress, budget)
    # from the store, or made by another process by now; what turns out damaged is made again
    how = {"overrides": overrides, "progress": progress, "budget": budget, "file": file}
    return run_experiment(name, profile, **how)


def _train(todo: Plan, progress: bool, budget: float | None) -> xr.Dataset:
    """Train a plan from its resume state, if there is one, and save the result."""
    unfinished = todo.path.with_suffix(".resume.npz")
    dataset = _trained(todo, todo.runs, unfinished, progress, budget)
    dataset = dataset.assign_attrs(experiment=todo.name, profile=todo.profile)
    _save(dataset, todo.path)
    discard(unfinished)
    return dataset


def _train_rest(todo: Plan, left: list[str], progress: bool, budget: float | None) -> None:
    """Train the runs of a plan that are not stored, as `_train`, and store them."""
    runs = store.with_keys(todo.runs, todo.keys, set(left))
    unfinished = todo.path.with_suffix(f".{digest(left)[:8]}.resume.npz")
    dataset = _trained(todo, runs, unfinished, progress, budget)
    try:
        store.put(dataset)
    except OSError as error:
        raise ConfigError(
            f"the result cannot be written to {store.folder()} ({error.strerror}). Free some "
            "space; the same command goes on from the last saved state."
        ) from None
    discard(unfinished, todo.path.with_suffix(".resume.npz"))


def _trained(
    todo: Plan, runs: Sequence[Run], resume: Path, progress: bool, budget: float | None
) -> xr.Dataset:
    """Return what training gives of some runs of a plan."""
    from periodic_lib.engine.training import train

    how = {"progress": progress, "resume": resume, "budget": budget}
    return train(todo.setup, runs, todo.record, **how)


def _save(dataset: xr.Dataset, path: Path) -> None:
    """Save a result; where that fails after all, in the folder for temporary files, and say so."""
    try:
        results.save(dataset, path)
    except OSError as error:
        second = Path(tempfile.mkdtemp(prefix="periodic-")) / path.name
        print_message(f"the result cannot be written to {path} ({error.strerror}).")
        try:
            results.save(dataset, second)
        except OSError as again:
            raise ConfigError(
                f"the result cannot be written to {second} either ({again.strerror}). Free some "
                "space; the same command goes on from the last saved state."
            ) from None
        print_message(f"the result is in {second}: move it to {path}.")


def variants(name: str, profile: str) -> dict[str, str]:
    """Return the variants that an experiment has at a profile: name -> the parameter varied."""
    parts = {key: one for key, one in declared().items() if "part_of" in one}
    return {
        key: one["part_of"][1]
        for key, one in parts.items()
        if one["part_of"][0] == name and profile in one["profiles"]
    }


def run_variants(
    name: str,
    profile: str = "classroom",
    *,
    overrides: Mapping | None = None,
    progress: bool = True,
) -> dict[tuple[str, object], xr.Dataset]:
    """Return the results of an experiment and of its variants: (parameter, value) -> result, as
    `run_experiment`.

    The unchanged setup stands under each varied parameter, too, with the value it has there:
    (width, 64), say.

    Raises
    ------
    ConfigError : if the experiment varies nothing at this profile, or if a parameter that it varies
    is overridden.
    """
    parts, base = variants(name, profile), plan(name, profile, overrides).setup.to_dict()
    varied = dict.fromkeys(parts.values())
    if not varied:
        raise ConfigError(
            f"experiment {name!r} varies nothing at profile {profile!r}; use run_experiment."
        )
    fixed = set(varied) & set(overrides or {})
    if fixed:
        raise ConfigError(
            f"`{fixed.pop()}` is varied by experiment {name!r}: it cannot be overridden, too."
        )
    unchanged = run_experiment(name, profile, overrides=overrides, progress=progress)
    found = {(parameter, base[parameter]): unchanged for parameter in varied}
    for key, parameter in parts.items():
        value = getattr(plan(key, profile, overrides).setup, parameter)  # 2e-1 is text in YAML
        found[parameter, value] = run_experiment(
            key, profile, overrides=overrides, progress=progress
        )
    return found


def kept_path(name: str, profile: str = "paper") -> Path:
    """Return where the result of a long run is kept in git: data/results/<profile>/<name>.nc."""
    return root() / "data" / "results" / profile / f"{name}.nc"


def check_keepable(overrides: Mapping) -> None:
    """Raise a ConfigError if a result made with these overrides, here, is not the declared one."""
    if set(overrides) - {"dataset"}:
        raise ConfigError(
            "only a declared result is kept: with `--keep`, `--set` may change only `dataset`; "
            f"got {', '.join(overrides)}."
        )
    if seed_shift():
        raise ConfigError(
            f"only a declared result is kept: unset PERIODIC_SEED_SHIFT, which is {seed_shift()}."
        )


def keep(dataset: xr.Dataset, todo: Plan) -> Path:
    """Write a result, or what is there of it so far, to its place in git, and return that.

    Another copy of the declared data is the only change that is allowed. Of a record of more than
    `KEPT_ROWS` steps, an epoch becomes a row (`recording.thin`), except around destabilizations.
    Of networks that were kept, what they are worth remains (`successive.condensed`).

    Raises
    ------
    ConfigError : if anything but `dataset` was overridden, or the seeds are shifted.
    """
    check_keepable(todo.overrides)
    from periodic_lib.analysis.periods import find_destabilizations
    from periodic_lib.analysis.successive import condensed
    from periodic_lib.engine.recording import thin

    if "snapshot_step" in dataset.dims:
        dataset = condensed(dataset)
    if dataset.sizes["step"] > KEPT_ROWS:
        breaks = find_destabilizations(dataset).start
        dataset = thin(dataset, every=dataset.attrs["steps_per_epoch"], around=breaks)
    path = kept_path(todo.name, todo.profile)
    facts = {"experiment": todo.name, "profile": todo.profile, "declared": _declared_digest(todo)}
    results.save(dataset.assign_attrs(facts), path)
    return path


def kept(name: str, profile: str = "paper") -> xr.Dataset | None:
    """Return the result of an experiment that is kept in git, or None if it has not been run yet.

    It was made by the code that its provenance names, on a device that few readers have; so, unlike
    a result of `run_experiment`, it is not made again when the training code changes.

    Raises
    ------
    ResultsError : if the file is damaged or was made with other settings than book/experiments.yml
    declares now.
    """
    path = kept_path(name, profile)
    if not path.exists():
        return None
    dataset = results.load(path)
    if dataset.attrs.get("declared") != _declared_digest(plan(name, profile)):
        raise results.ResultsError(
            f"{path} was made with other settings than are declared; run it again."
        )
    return dataset


def _declared_digest(todo: Plan) -> str:
    """Return the digest of what is declared, in so far as it is not the default: a parameter that
    is new in the library makes no kept result untrue, and neither does a shift of the seeds.
    """
    runs = [_changed(run) for run in _shifted(todo.runs, -seed_shift())]
    setup = {key: value for key, value in _changed(todo.setup).items() if key != "dataset"}
    return digest({"setup": setup, "runs": runs, "record": _changed(todo.record)})


def _changed(settings: Setup | Run | Record) -> dict:
    """Return the settings that are not the default."""
    default = {field.name: field.default for field in fields(settings)}
    return {key: value for key, value in settings.to_dict().items() if value != default[key]}


def files(todo: Plan) -> list[Path]:
    """Return the files that a result which is ready is read from: its own, or some of the store;
    none if it is not stored.
    """
    with suppress(FileNotFoundError, results.ResultsError):
        if todo.stale_reason(results.attributes(todo.path)) is None:
            return [todo.path]
    return [] if store.missing(todo.keys) else store.files(todo.keys)


def state(todo: Plan) -> tuple[str, float | None]:
    """Return "ready", "out of date", "damaged" or "not made", and the seconds it took, if any.

    By the attributes alone: values are verified by who reads them.
    """
    try:
        attributes = results.attributes(todo.path)
        word = "ready" if todo.stale_reason(attributes) is None else "out of date"
    except FileNotFoundError:
        attributes, word = {}, "not made"
    except results.ResultsError:
        attributes, word = {}, "damaged"
    if word in ("not made", "out of date") and not store.missing(todo.keys):
        return "ready", float(store.listing().loc[todo.keys, "seconds"].sum())
    return word, float(attributes["seconds"]) if attributes else None


def _load_if_true(todo: Plan) -> xr.Dataset | None:
    """Return the result from its own file, else from the store; None, saying why."""
    reason = None
    try:
        dataset = results.load(todo.path)
        reason = todo.stale_reason(dataset.attrs)
        if reason is None:
            return dataset
    except FileNotFoundError:
        pass
    except results.ResultsError as error:
        aside = results.set_aside(todo.path)
        print_message(f"{error} Set aside as {aside.name}; making it again.")
    if not store.missing(todo.keys):
        try:
            return _taken(todo)
        except results.ResultsError as error:
            print_message(f"{error} Making its runs again.")
    elif reason:
        print_message(f"{todo.name} ({todo.profile}) is out of date ({reason}); making it again.")
    return None


def _taken(todo: Plan) -> xr.Dataset:
    """Return the result from the store, from the files of several stacks or experiments."""
    dataset = store.take(todo.keys)
    return dataset.assign_attrs(experiment=todo.name, profile=todo.profile)
