"""Which module may import which, and that importing has no effect and is quick to do."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import periodic_lib
from periodic_lib import results

FOLDER = Path(periodic_lib.__file__).parent
FLOOR = {"project", "outside", "checks", "config", "glossary"}  # may be imported by every module above
ALLOWED = {  # module -> modules of the library that it may import beside those, lazily or not
    "project": set(),
    "outside": {"project"},
    "glossary": set(),
    "checks": {"project"},
    "changes": {"project", "checks"},
    "config": {"project", "checks", "changes"},
    "toys": set(),
    "theory": {"theory.motion", "theory.equilibrium", "theory.jumps", "theory.edge"},
    "theory.motion": set(),
    "theory.equilibrium": {"theory.motion"},
    "theory.jumps": {"theory.motion"},
    "theory.edge": {"theory.motion"},
    "optimizers": {"changes"},
    "sources": set(),
    "datasets": {"sources"},
    "batches": set(),
    "normalization": set(),
    "networks": {"normalization"},
    "metrics": set(),
    "results": set(),
    "devices": set(),
    "guards": set(),
    "losses": set(),
    "evaluation": {"batches", "metrics", "networks", "normalization"},
    "stack": {"batches", "datasets", "devices", "evaluation", "guards", "losses", "networks", "optimizers", "metrics"},
    "recording": {"stack", "metrics", "results"},
    "training": {"stack", "recording", "batches", "results"},
    "preactivations": {"stack", "normalization"},
    "periods": {"theory"},
    "regimes": {"periods", "spreads"},
    "rotation": {"theory", "equilibria", "periods"},
    "transfer": {"equilibria"},
    "sphere": {"periods", "regimes"},
    "stability": {"theory", "breaks", "minima", "periods"},
    "minima": {"periods", "results", "stack"},
    "successive": {"minima", "results"},
    "plasticity": {"breaks", "periods", "results"},
    "use_plots": {"clipping", "plots"},
    "clipping": {"periods"},
    "conditions": {"theory", "periods", "regimes", "words"},
    "use_plots": {"clipping", "periods", "plots"},
    "clipping": {"guards", "periods"},
    "conditions": {"theory", "periods", "regimes"},
    "pairs": {"budgets", "periods", "stack"},
    "practice": {"theory", "periods", "regimes", "optimizers", "conditions", "spreads"},
    "panels": {"periods", "plots", "spreads"},
    "breaks": {"spreads"},
    "controls": {"changes", "periods", "regimes", "spreads"},
    "anatomy": {"theory", "budgets", "periods", "breaks"},
    "levels": {"theory", "changes", "periods", "regimes"},
    "forecasts": {"theory", "levels"},
    "bounds": {"theory", "periods"},
    "edges": {"theory", "periods", "toys"},
    "long_runs": set(),
    "equilibria": {"theory", "periods", "regimes", "stack", "words"},
    "approaches": {"theory", "budgets", "periods"},
    "plane": {"theory", "budgets", "equilibria", "periods", "regimes", "toys"},
    "early_signs": {"theory", "equilibria", "periods", "regimes", "spreads"},
    "presumption_plots": {"theory", "budgets", "periods", "plots", "approaches", "equilibria"},
    "experiments": {"results", "sources", "training", "recording", "periods", "successive"},
    "store": {"index", "results", "turns"},
    "index": {"results"},
    "turns": {"index"},
    "declarations": set(),
    "experiments": {"declarations", "results", "sources", "store", "training", "recording", "periods", "sweeps"},
    "experiments": {"declarations", "results", "sources", "store", "sweeps", "training", "recording", "periods"},
    "tasks": {"store"},
    "speeds": {"recording", "results", "stack"},
    "schedulers": set(),
    "sweeps": {"results", "schedulers", "sources", "speeds", "store", "tasks", "training"},
    "makespans": set(),
    "plans": {"experiments"},
    "widths": {"plane", "regimes"},
    "status": {"experiments", "store", "sweeps", "turns"},
    "doctor": {"sources", "store"},
    "claims": set(),
    "spreads": set(),
    "words": {"spreads"},
    "course_plots": {"theory", "bounds", "budgets", "long_runs", "plots"},
    "powers": set(),
    "probes": set(),
    "jacobians": {"powers", "probes"},
    "symmetries": {"powers", "probes", "jacobians"},
    "invariance": set(),
    "random_gradients": {"theory"},
    "histories": set(),
    "logs": set(),
    "gauges": set(),
    "verdicts": {"periods"},
    "outlook": {"theory", "forecasts", "levels", "periods", "regimes"},
    "monitor": {
        "adapters",
        "gauges",
        "histories",
        "logs",
        "outlook",
        "plots",
        "readings",
        "results",
        "symmetries",
        "verdicts",
    },
    "readings": set(),
    "adapters": set(),
    "budgets": {"periods"},
    "scorecard": {"claims"},
    "chapters": {"claims", "experiments", "explore"},
    "explore": {"forecasts", "levels", "periods"},
    "plots": {"results", "theory", "periods", "regimes"},
    "notebooks": {"experiments"},
    "execution": {"experiments", "claims", "results", "notebooks"},
    "book": {"claims", "scorecard", "notebooks", "execution"},
    "answers": set(),
    "exercises": {"theory", "answers", "notebooks"},
    "lessons": {"execution", "exercises", "notebooks"},
    "copies": {"notebooks"},
    "printing": {"notebooks"},
    "slides": {"book", "claims", "copies", "execution", "notebooks", "printing"},
    "drawings": {"chapters"},
    "classroom": {"answers", "claims", "execution", "exercises", "experiments", "lessons", "notebooks"}
    | {"book", "copies", "printing", "slides"},
    "exports": {"book", "claims", "classroom", "copies", "execution", "experiments", "notebooks", "printing", "slides"}
    | {"drawings"},
    "cli": {"experiments", "regimes", "notebooks", "execution", "book", "claims", "classroom", "exports"},
    "faults": set(),
    "classroom": {"answers", "book", "claims", "execution", "exercises", "experiments", "lessons", "notebooks"},
    "cli": {
        "book",
        "claims",
        "classroom",
        "doctor",
        "execution",
        "experiments",
        "notebooks",
        "plans",
        "regimes",
        "status",
        "store",
        "sweeps",
    },
    "__init__": set(),
    "__main__": {"cli"},
}
TORCH = {"batches", "datasets", "devices", "networks", "normalization", "optimizers", "metrics", "stack"}
TORCH |= {"recording", "training", "guards", "evaluation", "losses"}
TORCH |= {"preactivations", "probes", "jacobians", "symmetries", "monitor", "gauges", "adapters", "readings"}
TORCH |= {"preactivations", "probes", "jacobians", "speeds", "symmetries", "monitor", "gauges", "adapters"}
NO_TORCH = sorted(set(ALLOWED) - TORCH - {"__main__", "__init__"})


def imported(module: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(results.SOURCES[module])):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("periodic_lib"):
            tail = node.module.removeprefix("periodic_lib").strip(".")
            found |= {tail} if tail else {alias.name for alias in node.names}
    return found & set(ALLOWED)


def test_every_module_is_listed():
    assert set(results.SOURCES) == set(ALLOWED)
    assert len(results.SOURCES) == len(list(FOLDER.rglob("*.py")))


@pytest.mark.parametrize("module", ALLOWED)
def test_imports_go_one_way(module):
    above = set() if module in FLOOR else FLOOR
    assert imported(module) <= ALLOWED[module] | above


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("module", NO_TORCH)
def test_no_torch(module):
    assert python(f"import sys, periodic_lib.{module}; print('torch' in sys.modules)") == "False"


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
