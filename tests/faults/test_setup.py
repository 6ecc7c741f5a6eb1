"""`make setup` where something is missing: one clear line each. A fake Python stands in for the broken machine."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAKE = """#!/bin/sh
# A Python whose environments have a pip that {what}.
case "$*" in
  --version) echo "Python {version}" ;;
  *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  *"pip --version"*) ;;
  *"pip install"*) echo "{output}" >&2; {then} ;;
  *) exec {real} "$@" ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    for name in ("requirements.lock", "pyproject.toml", "environment.yml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "setup", tmp_path / ".ci")
    return tmp_path


def fake(clone, output="", then="exit 1", version="3.12.1", real=sys.executable):
    path = clone / "python-fake"
    path.write_text(FAKE.format(what=output or "works", version=version, output=output, then=then, real=real))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def setup(clone, python, **conda):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CONDA", "MAMBA"))}
    environment |= {"PYTHON": str(python)} if python else {}
    environment |= {name: str(value) for name, value in conda.items()}
    return subprocess.run(["bash", ".ci/setup"], cwd=clone, env=environment, capture_output=True, text=True)


def test_no_python(clone):
    done = setup(clone, "/nowhere/python3")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no Python found" in done.stderr
    assert "PYTHON=" in done.stderr


def test_a_python_too_old(clone):
    done = setup(clone, fake(clone, version="3.8.18", real="false"))
    assert done.returncode == 1
    assert "Python 3.11 to 3.13 is needed, found Python 3.8.18" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "the disk is full",
        ),
        ("WARNING: Retrying after connection broken by 'NewConnectionError(...)'", "package index cannot be reached"),
        ("ERROR: Failed building wheel for x", "installing failed: ERROR: Failed building wheel for x"),
    ],
)
def test_an_installation_that_fails_says_why_and_is_repaired_later(clone, output, line):
    done = setup(clone, fake(clone, output))
    assert done.returncode == 1
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (clone / ".venv" / "complete").exists()
    shutil.copy(fake(clone, then="true"), clone / ".venv" / "bin" / "python")
    again = setup(clone, clone / "python-fake")
    assert again.returncode == 0, again.stderr
    assert (clone / ".venv" / "complete").exists()


def test_a_half_made_environment_is_made_anew(clone):
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "rubbish").touch()
    done = setup(clone, fake(clone, then="true"))
    assert done.returncode == 0, done.stderr
    assert "repairing" in done.stdout
    assert not (clone / ".venv" / "rubbish").exists()


def test_nothing_is_done_when_nothing_changed(clone):
    programs = "for p in periodic jupyter-book; do touch .venv/bin/$p && chmod +x .venv/bin/$p; done"
    python = fake(clone, then=programs)
    assert "installing" in setup(clone, python).stdout
    assert setup(clone, python).stdout == ""
    with (clone / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    assert "installing" in setup(clone, python).stdout


# ---------------------------------------------------------------- where conda is active: a stub stands in for it

CONDA = """#!/bin/sh
# Makes an environment as conda does: a Python, and the folder conda-meta.
echo "$@" >>conda-was-asked
{fails}
mkdir -p "$5/bin" "$5/conda-meta" && cp {python} "$5/bin/python"
"""


def fake_conda(clone, fails=""):
    path = clone / "conda-fake"
    path.write_text(CONDA.format(fails=fails, python=fake(clone, then="true")))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def active(clone, name):
    """Return what is in the environment of a process where conda's environment `name` is active."""
    prefix = clone / "conda" / name
    (prefix / "bin").mkdir(parents=True)
    (prefix / "conda-meta").mkdir()
    shutil.copy(fake(clone, then="true"), prefix / "bin" / "python")
    return {"CONDA_PREFIX": prefix, "CONDA_EXE": fake_conda(clone)}


def test_the_active_environment_of_the_project_is_used_and_no_second_one_made(clone):
    conda = active(clone, "periodic")
    done = setup(clone, None, **conda)
    assert done.returncode == 0, done.stderr
    assert "using the active conda environment" in done.stdout
    assert (clone / ".venv").readlink() == conda["CONDA_PREFIX"]
    assert (clone / ".venv" / "complete").exists()  # the packages of the lock were checked by pip
    assert not (clone / "conda-was-asked").exists()


def test_where_another_environment_is_active_conda_makes_one_from_the_projects_file(clone):
    conda = active(clone, "base")
    done = setup(clone, None, **conda)
    assert done.returncode == 0, done.stderr
    asked = (clone / "conda-was-asked").read_text().split()
    assert asked == ["env", "create", "--quiet", "--prefix", str(clone / ".venv"), "--file", "environment.yml"]
    assert (clone / ".venv" / "conda-meta").is_dir()
    assert not list((conda["CONDA_PREFIX"]).glob("complete"))  # the other environment is left as it is
    again = setup(clone, None, **conda)
    assert again.returncode == 0
    assert (clone / "conda-was-asked").read_text().count("\n") == 1


def test_conda_that_fails_says_why_and_leaves_nothing(clone):
    conda = active(clone, "base")
    conda["CONDA_EXE"] = fake_conda(clone, "echo 'CondaHTTPError: HTTP 000 CONNECTION FAILED'; exit 1")
    done = setup(clone, None, **conda)
    assert done.returncode == 1
    assert "the package index cannot be reached" in done.stderr
    assert not (clone / ".venv").exists()


def test_an_environment_that_was_removed_is_replaced(clone):
    conda = active(clone, "periodic")
    (clone / ".venv").symlink_to(clone / "conda" / "gone")
    assert setup(clone, None, **conda).returncode == 0
    assert (clone / ".venv").readlink() == conda["CONDA_PREFIX"]


def test_a_python_that_is_named_is_used_even_where_conda_is_active(clone):
    done = setup(clone, fake(clone, then="true"), **active(clone, "periodic"))
    assert done.returncode == 0, done.stderr
    assert not (clone / ".venv").is_symlink()
