"""Which module may import which, and that importing has no effect and is quick to do."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import periodic_lib

FOLDER = Path(periodic_lib.__file__).parent
ALLOWED = {  # module -> modules of the library that it may import, lazily or not
    "config": set(),
    "glossary": set(),
    "toys": {"config"},
    "theory": {"config", "toys"},
    "optimizers": {"config"},
    "datasets": {"config"},
    "networks": {"config"},
    "metrics": set(),
    "results": {"config", "glossary"},
    "training": {"config", "datasets", "networks", "optimizers", "metrics", "results", "glossary"},
    "periods": {"config", "theory", "glossary"},
    "experiments": {"config", "results", "training"},
    "claims": {"config", "experiments"},
    "plots": {"results", "theory"},
    "notebooks": {"config", "experiments", "claims", "results", "glossary"},
    "benchmarks": {"config", "datasets", "networks", "training"},
    "cli": {"config", "experiments", "periods", "results", "notebooks", "benchmarks", "claims"},
    "__init__": {"config"},
    "__main__": {"cli"},
}
NO_TORCH = sorted(
    set(ALLOWED) - {"datasets", "networks", "optimizers", "metrics", "training", "benchmarks", "__main__", "__init__"}
)


def imported(module: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse((FOLDER / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("periodic_lib"):
            tail = node.module.removeprefix("periodic_lib").strip(".")
            found |= {tail} if tail else {alias.name for alias in node.names}
    return found & set(ALLOWED)


def test_every_module_is_listed():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(ALLOWED)


@pytest.mark.parametrize("module", ALLOWED)
def test_imports_go_one_way(module):
    assert imported(module) <= ALLOWED[module]


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
