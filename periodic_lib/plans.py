"""The plans of a sweep: of an experiment and its variants, or of all in a file of your own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from periodic_lib.experiments import Plan, declared, plan, variants
from periodic_lib.project import ConfigError


def plans_of(name: str, profile: str = "classroom", overrides: Mapping | None = None) -> list[Plan]:
    """Return the plans of an experiment and its variants, or of all in a file.

    `name` : of an experiment, or the path of a file in the format of book/experiments.yml (.yml).

    Raises
    ------
    ConfigError : as `plan`; if a file declares nothing at the profile.
    """
    file = Path(name).expanduser() if name.endswith((".yml", ".yaml")) else None
    if file is None:
        first = plan(name, profile, overrides)
        return [first, *(plan(key, profile, overrides) for key in variants(name, profile))]
    found = [key for key, one in declared(file).items() if profile in one["profiles"]]
    if not found:
        raise ConfigError(f"{file} declares no experiment at profile {profile!r}.")
    return [plan(key, profile, overrides, file) for key in found]
