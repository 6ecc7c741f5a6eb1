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
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "setup", tmp_path / ".ci")
    return tmp_path


def fake(clone, output="", then="exit 1", version="3.12.1", real=sys.executable):
    path = clone / "python-fake"
    path.write_text(FAKE.format(what=output or "works", version=version, output=output, then=then, real=real))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def setup(clone, python):
    environment = {**os.environ, "PYTHON": str(python)}
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
        ("WARNING: Retrying after connection broken by 'NewConnectionError(...)'", "index cannot be reached"),
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
