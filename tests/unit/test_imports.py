"""Which part of the library may import which, and that importing has no effect and is quick to do."""

import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import periodic_lib
from periodic_lib import fingerprints

FOLDER = Path(periodic_lib.__file__).parent
# may be imported by all that stands above
FLOOR = {"project", "outside", "checks", "changes", "config", "glossary", "fingerprints"}
ALLOWED = {  # package, or module at the top -> what it may import beside itself and the floor, lazily or not
    "anchors": set(),
    "theory": set(),
    "results": set(),
    "engine": {"results"},
    "symmetries": set(),
    "analysis": {"theory", "results", "engine"},
    "figures": {"theory", "results", "analysis"},
    "monitor": {"theory", "results", "analysis", "figures", "symmetries"},
    "storage": {"results"},
    "sweeping": {"results", "engine", "storage"},
    "declarations": set(),
    "experiments": {"declarations", "results", "engine", "analysis", "storage", "sweeping"},
    "plans": {"experiments"},
    "status": {"experiments", "storage", "sweeping"},
    "doctor": {"engine", "storage"},
    "publishing": {"results", "analysis", "experiments"},
    "teaching": {"theory", "experiments", "publishing"},
    "exports": {"experiments", "publishing", "teaching"},
    "cli": {
        "analysis",
        "doctor",
        "experiments",
        "exports",
        "storage",
        "plans",
        "publishing",
        "status",
        "sweeping",
        "teaching",
    },
    "__main__": {"cli"},
    "__init__": set(),
}
TORCH = {
    "analysis.preactivations",
    "monitor.adapters",
    "monitor.gauges",
    "monitor.readings",
    "monitor.watching",
    "sweeping.speeds",
}
TORCH |= {"symmetries.jacobians", "symmetries.probes", "symmetries.search", "__main__"}


def part(module: str) -> str:
    return module.partition(".")[0]


def imported(module: str) -> set[str]:
    return set(fingerprints.imported(fingerprints.SOURCES[module])) - {module}


def needs_torch(module: str) -> bool:
    return module in TORCH or (part(module) == "engine" and module not in {"engine", "engine.sources"})


def test_every_module_has_a_place():
    assert {part(module) for module in fingerprints.SOURCES} == set(ALLOWED) | FLOOR
    assert len(fingerprints.SOURCES) == len(list(FOLDER.rglob("*.py")))


@pytest.mark.parametrize("module", fingerprints.SOURCES)
def test_imports_go_one_way(module):
    mine = part(module)
    allowed = FLOOR if mine in FLOOR else FLOOR | ALLOWED[mine] | {mine}
    assert {part(other) for other in imported(module)} <= allowed


def test_no_modules_import_each_other():
    graph = {module: imported(module) for module in fingerprints.SOURCES}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(graph)


def test_how_to_add_names_every_part():
    page = (FOLDER.parent / "book" / "adding.md").read_text()
    assert all(f"`{name}`" in page for name in {*ALLOWED, *FLOOR} - {"__init__", "__main__"})


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_no_torch():
    """One process imports one module after the other, and names the first after which PyTorch is there."""
    modules = [module for module in fingerprints.SOURCES if not needs_torch(module)]
    assert len(modules) > 60
    look = "importlib.import_module(name); 'torch' not in sys.modules or sys.exit(print(name))"
    names = [f"periodic_lib.{module}" for module in modules]
    assert python(f"import importlib, sys\nfor name in {names}: {look}") == ""


def test_importing_loads_nothing_heavy_and_has_no_effect():
    code = "import sys; before = set(sys.modules); import periodic_lib; print(*sorted(set(sys.modules) - before))"
    loaded = set(python(code).split())
    assert not loaded & {"torch", "xarray", "numpy", "pandas", "matplotlib", "seaborn", "yaml"}


def test_public_names_are_there():
    for name in periodic_lib.__all__:
        assert getattr(periodic_lib, name) is not None
        assert name in dir(periodic_lib)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = periodic_lib.trian
