"""Every command that a page or the README shows is run, or at least read by the program it names."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from periodic_lib import cli, experiments, exports, project
from periodic_lib.publishing import claims, execution, notebooks

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHELL = [
    line.split("#")[0].strip() for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()
]
MAKE = [line.split()[1] for line in SHELL if line.startswith("make")]
PERIODIC = [shlex.split(line)[1:] for line in SHELL if line.startswith(".venv/bin/periodic")]


def pages():
    yield from (ROOT / "book").glob("*.md")
    yield from (ROOT / "book").glob("*.ipynb")


def shown_commands():
    """All `periodic run ...` in the book's text."""
    for path in pages():
        text = path.read_text()
        if path.suffix == ".ipynb":
            text = "\n".join(
                notebooks.source(c) for c in notebooks.read(path)["cells"] if c["cell_type"] == "markdown"
            )
        for command in re.findall(r"`periodic (run [^`]*)`", text):
            yield pytest.param(command, id=f"{path.stem}: {command}")


def test_the_readme_shows_commands():
    assert MAKE == ["book", "test"]
    assert len(PERIODIC) >= 3


def test_the_readme_lists_every_environment_variable():
    rows = re.findall(r"^\| `(PERIODIC_\w+)` \| (.*) \| (.*) \|$", README, re.MULTILINE)
    assert {name: (what, default) for name, what, default in rows} == project.VARIABLES
    read = "\n".join(path.read_text() for path in (ROOT / "periodic_lib").rglob("*.py"))
    assert set(re.findall(r"PERIODIC_[A-Z_]+", read)) == set(project.VARIABLES)


@pytest.mark.parametrize("arguments", PERIODIC, ids=" ".join)
def test_readme_commands_run(arguments, capsys):
    assert cli.main(arguments) == 0


def test_readme_python_runs():
    codes = re.findall(r"```python\n(.*?)```", README, re.S)
    command = [sys.executable, "-W", "error", "-c"]
    done = [subprocess.run([*command, code], capture_output=True, text=True, cwd=ROOT) for code in codes]
    assert [one.returncode for one in done] == [0, 0], [one.stderr[-2000:] for one in done]
    medians = [float(line.split()[1]) for line in done[0].stdout.splitlines() if re.match(r"^\d", line)]
    assert len(medians) >= 2  # periods were found, as the text promises
    assert "1 scale-invariant groups" in done[1].stdout


@pytest.mark.parametrize("command", list(shown_commands()))
def test_commands_in_the_book_are_understood(command):
    options = cli._parser().parse_args(shlex.split(command))
    experiments.plan(options.experiment, options.profile, cli.parse_overrides(options.set))


def test_make_targets_exist_and_help_lists_them():
    help_text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in (*MAKE, "class", *exports.FORMS, "setup", "lint", "bench", "clean"):
        assert re.search(rf"^  {target} ", help_text, re.M)


@pytest.mark.parametrize("form", exports.FORMS)
def test_the_target_of_a_form_builds_the_book_and_writes_it(form):
    command = ["make", "-n", form, "PROFILE=smoke"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    built, written = (f".venv/bin/periodic {words} --profile smoke" for words in ("book", f"export {form}"))
    assert lines.index(built) < lines.index(written)


def test_the_page_on_forms_to_take_away_lists_the_targets():
    rows = re.findall(r"^\| `make (\w+)` \| `([\w./]+)`", (ROOT / "book" / "again.md").read_text(), re.MULTILINE)
    assert {target for target, _ in rows} == {*exports.FORMS, "class"}
    makefile = (ROOT / "Makefile").read_text()
    for target, written in rows:
        assert f"build/{written.rstrip('/')}" in re.search(rf"^{target}: .*", makefile, re.MULTILINE)[0]


def test_the_readmes_results_are_the_declared_ones():
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| ([^|]+) \| `([\w-]+)` \|$", README, re.MULTILINE)
    declared = claims.declared()
    assert len(rows) >= 10
    assert {verdict for _, verdict, _ in rows} >= {"holds", "fails", "mixed"}  # what failed is shown, too
    for published, verdict, claim in rows:
        entry = declared[claim]
        assert (published, verdict) == (" ".join(entry["paper_value"].split()), entry["verdict"])
        assert entry["kind"] in claims.COUNTED
        assert "Lobacheva et al. 2021" in entry["source"]


def test_the_readme_says_how_long_the_experiments_train():
    plans = {p.name: p for name in notebooks.chapters() for p in execution.experiments_of(name, "classroom")}
    (said,) = re.findall(r"trains for about (\d+) minutes", README)
    assert abs(int(said) - sum(plan.minutes or 0 for plan in plans.values())) < 1


def test_paths_in_the_readme_exist():
    for path in re.findall(r"`([\w./-]+/|[\w.-]+\.(?:md|cff|yml|lock))`", README):
        name = path.rstrip("/")
        assert (ROOT / name).exists() or name == "build" or list((ROOT / "book").glob(name)), path


def test_one_lock_file_serves_pip_and_conda():
    pins = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    assert {"torch==2.13.0", "torchvision==0.28.0", "jupyter-book==1.0.4.post1"} <= set(pins)
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert "--constraint requirements.lock" in conda["dependencies"][-1]["pip"]
    setup = (ROOT / ".ci" / "setup").read_text()
    (extras,) = re.findall(r"-c requirements.lock -e '([^']+)'", setup)
    assert f"--editable {extras}" in conda["dependencies"][-1]["pip"]  # so both install the same, in the same versions
    (python,) = [line.split("=")[1] for line in conda["dependencies"][:-1] if line.startswith("python=")]
    assert python in ("3.11", "3.12", "3.13")
    assert all(isinstance(line, dict) or line in ("pip", f"python={python}") for line in conda["dependencies"])


def test_the_lock_is_what_is_installed():
    from importlib.metadata import version

    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if not line.startswith("#"):
            name, pinned = line.split("==")
            assert version(name).split("+")[0] == pinned, name


def test_no_file_is_large_and_the_repository_is_small():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    sizes = [(ROOT / name).stat().st_size for name in files if name and (ROOT / name).is_file()]
    assert max(sizes) < 1_000_000
    assert sum(sizes) < 8_000_000
