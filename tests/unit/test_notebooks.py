import json
import re
import textwrap
from pathlib import Path

import pytest

from periodic_lib import experiments
from periodic_lib.cli import main
from periodic_lib.project import ConfigError
from periodic_lib.publishing import book as the_book
from periodic_lib.publishing import claims, execution, notebooks
from periodic_lib.publishing.notebooks import ChapterError

EXPERIMENTS = """
tiny:
  chapter: 01_one
  setup: {width: 8, depth: 1, steps: 10}
  grid: {lr: 0.1, weight_decay: 0}
  profiles: {smoke: {}, classroom: {}}
"""
CLAIMS = """
runs:
  chapter: 01_one
  statement: It runs.
  source: us
  paper_value: yes
  rule: it did
  topic: mechanism
  kind: measured
  fixed: before
  setting: here
  verdict: holds
"""
BODY = """
    from periodic_lib import Chapter, run_experiment
    chapter = Chapter("01_one", profile)
    data = run_experiment("tiny", profile, overrides=overrides)
    chapter.publish(last=float(data.train_loss[0, -1]))
    chapter.check("runs", {"run 0": True}, "ran")
"""


def cell(text, *tags, kind="code"):
    return {"cell_type": kind, "metadata": {"tags": list(tags)}, "source": textwrap.dedent(text).strip()}


def chapter(path, *bodies, parameters='profile = "classroom"\noverrides = {}'):
    cells = [cell("# One", kind="markdown"), cell(parameters, "parameters"), *map(cell, bodies)]
    notebooks.write({"cells": cells}, path)


@pytest.fixture
def project(tmp_path, monkeypatch):
    book = tmp_path / "book"
    book.mkdir()
    (book / "experiments.yml").write_text(EXPERIMENTS)
    (tmp_path / "data" / "claims").mkdir(parents=True)
    (tmp_path / "data" / "claims" / "claims.yml").write_text(CLAIMS)
    chapter(book / "01_one.ipynb", BODY)
    chapter(book / "02_two.ipynb", "print(6 * 7)")
    monkeypatch.setenv("PERIODIC_ROOT", str(tmp_path))
    return tmp_path


def test_only_what_is_out_of_date_runs(project, monkeypatch):
    assert execution.execute(profile="smoke") == ["01_one", "02_two"]
    assert execution.execute(profile="smoke") == []
    records = claims.read_records(project / "build" / "smoke" / "records")
    assert records["01_one"]["claims"]["runs"]["verdict"] == "not tested"
    chapter(project / "book" / "02_two.ipynb", "print(6 * 9, 'speed.csv, stability.csv')")
    assert execution.execute(profile="smoke") == ["02_two"]
    (project / "book" / "01_one.ipynb").touch()
    assert execution.execute(profile="smoke") == ["01_one"]
    (project / "data" / "benchmarks").mkdir()
    (project / "data" / "benchmarks" / "speed.csv").write_text("ms\n1")
    (project / "data" / "benchmarks" / "other.csv").write_text("ms\n1")
    assert execution.execute(profile="smoke") == ["02_two"]  # it names the first
    (project / "data" / "claims" / "stability.csv").write_text("claim,shift,verdict")
    assert execution.execute(profile="smoke") == ["02_two"]
    (project / "book" / "experiments.yml").write_text(EXPERIMENTS.replace("steps: 10", "steps: 12"))
    assert execution.execute(profile="smoke") == ["01_one"]
    (project / "data" / "claims" / "claims.yml").write_text(CLAIMS.replace("It runs.", "It ran."))
    assert execution.execute(profile="smoke") == ["01_one"]
    monkeypatch.setattr(execution.fingerprints, "code_digest", lambda *_: "library changed")
    assert not execution.is_current("02_two", "smoke")
    source = json.loads((project / "book" / "01_one.ipynb").read_text())
    assert all(not c.get("outputs") for c in source["cells"])  # the source stays as it is


def test_a_failing_chapter_is_named_kept_and_stops_no_other(project):
    chapter(project / "book" / "01_one.ipynb", "1 / 0")
    with pytest.raises(ChapterError, match=r"01_one: failed[\s\S]*ZeroDivisionError"):
        execution.execute(profile="smoke")
    folder = project / "build" / "smoke" / "chapters"
    assert {path.name for path in folder.iterdir()} == {"01_one.failed.ipynb", "02_two.ipynb"}
    assert not execution.is_current("01_one", "smoke")


def test_a_dead_kernel_is_reported_as_such(project):
    chapter(project / "book" / "02_two.ipynb", "import os; os._exit(9)")
    with pytest.raises(ChapterError, match="02_two: the kernel died"):
        execution.execute(["02_two"], "smoke")


def test_unknown_chapters_and_parameters_are_refused_before_starting(project):
    with pytest.raises(ConfigError, match=r"unknown chapter '01_on'.*Did you mean '01_one'"):
        execution.execute(["01_on"], "smoke")
    chapter(project / "book" / "02_two.ipynb", "1", parameters='profil = "classroom"\noverrides = {}')
    with pytest.raises(ConfigError, match=r"unknown parameter of 02_two\.ipynb 'profile'"):
        execution.execute(["02_two"], "smoke")


def test_a_chapter_is_named_by_its_number_too(project):
    assert execution.chosen(None) == ["01_one", "02_two"]
    assert execution.chosen(["02", "01_one"]) == ["02_two", "01_one"]
    with pytest.raises(ConfigError, match="unknown chapter '0'"):
        execution.chosen(["0"])


def test_a_dry_run_says_what_would_be_trained_and_trains_nothing(project, capsys):
    assert main(["book", "01", "--profile", "smoke", "--dry-run"]) == 0
    assert capsys.readouterr().out == "01_one: would be executed; trains tiny (0 s)\n"
    assert not (project / "build").exists()


def test_a_chapter_needs_exactly_one_parameters_cell(tmp_path):
    notebooks.write({"cells": [cell("a = 1")]}, tmp_path / "x.ipynb")
    with pytest.raises(ConfigError, match=r"exactly one cell tagged `parameters`; it has 0"):
        notebooks.check_parameters(tmp_path / "x.ipynb", ["a"])


def test_an_error_in_an_output_is_not_rendered():
    failed = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
    with pytest.raises(ChapterError, match="ValueError: no"):
        the_book.rendered({"cells": [cell("x") | {"outputs": [failed]}], "metadata": {}})


def test_rendering_moves_text_alternatives_and_drops_noise():
    picture = {"output_type": "display_data", "data": {"image/png": ""}, "metadata": {"image/png": {"alt": "A line."}}}
    noise = {"output_type": "stream", "name": "stderr", "text": "progress"}
    injected = cell("profile = 'smoke'", "injected-parameters")
    executed = {"cells": [cell("x") | {"outputs": [picture, noise]}, injected], "metadata": {"papermill": {}}}
    shown = json.loads(the_book.rendered(executed))
    look = shown["cells"][0]["metadata"]["mystnb"]
    assert (look["image"]["alt"], look["figure"]["caption"]) == ("A line.", "A line.")
    assert len(shown["cells"][0]["outputs"]) == 1
    assert "remove-cell" in shown["cells"][1]["metadata"]["tags"]
    assert "papermill" not in shown["metadata"]


def test_the_normal_form_is_stable(tmp_path):
    dirty = {
        "cells": [cell("x = 1\n\n") | {"outputs": [1], "execution_count": 7, "id": "random"}],
        "metadata": {"x": 1},
    }
    notebooks.write(dirty, tmp_path / "a.ipynb")
    clean = notebooks.read(tmp_path / "a.ipynb")
    assert notebooks.normalize(clean) == clean
    assert (clean["cells"][0]["id"], clean["cells"][0]["outputs"]) == ("cell-01", [])


def test_what_the_page_folds_is_folded_in_jupyter_too(tmp_path):
    cells = [cell("x", "hide-input"), cell("x", "solution", "hide-cell"), cell("x"), cell("x", "other")]
    cells[2]["metadata"]["jupyter"] = {"source_hidden": True}  # folded by hand: no part of the normal form
    once = notebooks.normalize({"cells": cells})
    folded = [c["metadata"].get("jupyter") for c in once["cells"]]
    assert folded == [{"source_hidden": True}, {"source_hidden": True}, None, None]
    assert notebooks.normalize(once) == once
    notebooks.write(once, tmp_path / "a.ipynb")
    text = (tmp_path / "a.ipynb").read_text()
    notebooks.write(notebooks.read(tmp_path / "a.ipynb"), tmp_path / "a.ipynb")
    assert (tmp_path / "a.ipynb").read_text() == text


def test_shifted_seeds_are_built_in_a_folder_of_their_own(project, monkeypatch):
    plain = notebooks.build_folder("classroom")
    (before,) = experiments.plan("tiny", "classroom").runs
    monkeypatch.setenv("PERIODIC_SEED_SHIFT", "100")
    assert notebooks.build_folder("classroom") == plain.with_name("classroom-seeds100")
    (after,) = experiments.plan("tiny", "classroom").runs
    assert after.init_seed == before.init_seed + 100


def test_mathjax_comes_from_its_package():
    assert len(the_book.mathjax()) > 2_000_000


# ---------------------------------------------------------------- the rendered book


@pytest.fixture
def book(project):
    """The project with what Jupyter Book needs: configuration, extension, pages."""
    import shutil

    ours = Path(__file__).parents[2] / "book"
    for name in ("_config.yml", "references.bib"):
        shutil.copy(ours / name, project / "book")
    shutil.copytree(ours / "_ext", project / "book" / "_ext", ignore=shutil.ignore_patterns("__pycache__"))
    toc = (
        "format: jb-book\nroot: intro\nparts:\n- chapters:\n  - file: 01_one\n  - file: 02_two\n  - file: scorecard\n"
        "  - file: changelog\n"
    )
    (project / "book" / "_toc.yml").write_text(toc)
    (project / "book" / "intro.md").write_text("# Book\n\nThe loss is {result}`01_one.last:.3f`, $x^2$.\n")
    (project / "book" / "changelog.md").write_text("# What changed\n\nNothing.\n")
    return project


def output(**data):
    return [{"output_type": "display_data", "data": data, "metadata": {}}]


@pytest.mark.parametrize(
    ("tag", "text", "outputs", "name"),
    [
        (
            "hide-input",
            "chapter.show(figure)",
            output(**{"image/png": "", "text/plain": "A line."}),
            "Code of the figure",
        ),
        ("hide-input", "check()", output(**{"text/html": '<div class="claim verdict-holds">'}), "Code of the check"),
        ("hide-input", "chapter.tabulate(x)", output(**{"text/html": "<table>"}), "Code of the table"),
        ("hide-input", "print(1)", [{"output_type": "stream", "name": "stdout", "text": "1"}], "Code of the output"),
        ("hide-input", "from x import y\n\nimport z", [], "Packages and data"),
        ("hide-cell", "print(1)", output(**{"text/html": "<table>"}), "Code of the table"),
    ],
)
def test_folded_code_says_what_it_is(tag, text, outputs, name):
    shown = the_book.rendered({"cells": [cell(text, tag) | {"outputs": outputs}], "metadata": {}})
    metadata = json.loads(shown)["cells"][0]["metadata"]
    assert metadata["mystnb"]["code_prompt_show"] == name
    assert metadata["tags"] == [tag]


def test_code_that_shows_nothing_leaves_no_bar():
    hidden = cell("chapter.publish(a=1)", "hide-input") | {"outputs": []}
    shown = the_book.rendered({"cells": [hidden], "metadata": {}})
    assert json.loads(shown)["cells"][0]["metadata"]["tags"] == ["remove-input"]


def test_markup_in_a_caption_is_only_text():
    picture = {
        "output_type": "display_data",
        "data": {"image/png": ""},
        "metadata": {"image/png": {"alt": "a_b * <c>"}},
    }
    shown = the_book.rendered({"cells": [cell("x") | {"outputs": [picture]}], "metadata": {}})
    assert json.loads(shown)["cells"][0]["metadata"]["mystnb"]["figure"]["caption"] == r"a\_b \* \<c>"


def test_a_table_beside_a_figure_does_not_get_its_caption():
    def output(kind, **metadata):
        return {"output_type": "display_data", "data": {kind: ""}, "metadata": metadata}

    figures = [output("image/png", **{"image/png": {"alt": alt}}) for alt in ("one", "two")]
    outputs = [output("text/html"), figures[0], figures[1], output("text/html"), output("text/plain")]
    one = cell("x") | {"id": "a", "outputs": outputs}
    shown = json.loads(the_book.rendered({"cells": [one], "metadata": {}}))["cells"]
    assert [len(one["outputs"]) for one in shown] == [1, 1, 1, 2]
    captions = [one["metadata"]["mystnb"].get("figure", {}).get("caption") for one in shown]
    assert captions == [None, "one", "two", None]
    assert [one["source"] for one in shown] == ["x", *["# shown apart"] * 3]  # without one, the builder drops it
    assert ["remove-input" in one["metadata"]["tags"] for one in shown[1:]] == [True] * 3
    assert len({one["id"] for one in shown}) == 4


def test_a_book_is_built_with_its_numbers_and_again_only_where_it_changed(book):
    page = the_book.build_book("smoke")
    last = claims.read_records(book / "build" / "smoke" / "records")["01_one"]["numbers"]["last"]
    assert f'The loss is <span class="result">{last:.3f}</span>' in (page.parent / "intro.html").read_text()
    assert "It runs." in (page.parent / "scorecard.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in (book / "build" / "smoke" / "source").rglob("*.*")}
    the_book.build_book("smoke")
    assert before == {path: path.stat().st_mtime_ns for path in (book / "build" / "smoke" / "source").rglob("*.*")}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("# Book\n\n{result}`01_one.nothing`\n", "no chapter published the result '01_one.nothing'"),
        ("# Book\n\n```{chapter-figure} 01_one/nothing\n```\n", "shows no figure 'nothing'"),
        ("# Book\n\n[gone](nowhere.md)\n", "nowhere.md"),
    ],
)
def test_a_book_with_a_warning_is_not_built_even_the_second_time(book, text, word):
    (book / "book" / "intro.md").write_text(text)
    for _ in range(2):
        with pytest.raises(ChapterError, match=re.escape(word)):
            the_book.build_book("smoke")


def test_a_changed_verdict_is_printed_and_marked_and_stops_only_a_strict_book(book, capsys):
    line = "claim 'runs': measured 'holds' (ran), acknowledged 'mixed'"
    file = book / "data" / "claims" / "claims.yml"
    file.write_text(CLAIMS.replace("verdict: holds", "verdict: mixed"))
    page = the_book.build_book("classroom")
    assert line in capsys.readouterr().err
    assert "⚠ acknowledged: mixed" in (page.parent / "scorecard.html").read_text()
    with pytest.raises(ChapterError, match=r"verdicts other than the acknowledged ones: 1; .*index\.html"):
        the_book.build_book("classroom", strict=True)
    assert line in capsys.readouterr().err
    assert page.exists()
    file.write_text(CLAIMS)
    assert execution.execute(profile="classroom") == []  # only the verdict changed: nothing is trained again
    assert the_book.build_book("classroom", strict=True).exists()
    assert "acknowledged" not in capsys.readouterr().err
