"""The pack for a class: answers that are judged, notebooks that run, archives that verify."""

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from periodic_lib import experiments, find_periods, theory
from periodic_lib.cli import main
from periodic_lib.project import ConfigError
from periodic_lib.publishing import notebooks, printing
from periodic_lib.teaching import classroom, exercises, lessons
from periodic_lib.teaching.answers import Key, Question
from periodic_lib.theory import toys

ROOT = Path(__file__).parents[2]
RECORDS = {"03_periodic_behavior": {"numbers": {"period_fast": 500.0}}}
BY_HAND = {  # on paper, without the library; words: what solutions print, tested below if that is quick
    "01.1": [0.002],
    "01.2": "never",
    "01.3": [2, 0.000125],
    "02.1": [1.414, 1],
    "02.2": [0.0224],
    "02.3": "longer",
    "02.4": [1.0412],
    "03.1": "later",
    "03.2": [1],
    "03.3": "rises",
    "05.1": "always too short",
    "05.2": [10.5, 105],
    "05.3": [4],
    "05.4": [1.07],
    "07.1": [2],
    "07.2": [333],
    "07.3": [8],
    "11.1": [0.64, 64],
    "11.2": "median turn",
    "11.3": "a part",
    "12.1": [45_800, 91.6],
    "12.2": [2.718],
    "12.3": [2.236, 0.2236],
}
LOADED = [one for chapter in exercises.declared() for one in exercises.load(chapter, RECORDS)]
CHAPTERS = list(exercises.declared())


def check_sums(listed: str, read):
    lines = [line.split("  ", 1) for line in listed.splitlines()]
    assert lines
    for digest, name in lines:
        assert hashlib.sha256(read(name)).hexdigest() == digest, name
    return {name for _, name in lines}


def run(code: str, folder: Path, **environment):
    """Run code as a reader without a project would."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PERIODIC_")}
    clean |= {"OMP_NUM_THREADS": "1", "PERIODIC_OFFLINE": "1", **environment}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The pack of a project in which nothing was executed but one experiment, at smoke scale."""
    place = tmp_path_factory.mktemp("project")
    for name in ("book", "data", "periodic_lib", "pyproject.toml", "README.md", "LICENSE"):
        (place / name).symlink_to(ROOT / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERIODIC_ROOT", str(place))
        patch.setenv("PERIODIC_CACHE", str(place / "cache"))
        experiments.run_experiment("rescaling", "smoke", progress=False)
        assert main(["class", "--profile", "smoke"]) == 0
    return place / "build" / "class"


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("one", LOADED, ids=lambda one: one.label)
class TestExercise:
    def test_the_right_answer_is_accepted(self, one):
        assert one.question.judge(one.question.answer).right
        assert one.question.judge(BY_HAND[one.label]).right

    def test_expected_wrong_answers_are_refused_with_what_was_missed(self, one):
        assert len(one.question.wrong) >= 2
        for answer, why in one.question.wrong:
            verdict = one.question.judge(answer)
            assert not verdict.right
            assert why in verdict.text
            assert one.question.hint in verdict.text

    def test_an_answer_off_by_more_than_the_tolerance_is_refused(self, one):
        if not one.question.choices:
            for factor, right in ((1 + 0.9 * one.question.tolerance, True), (1 + 1.1 * one.question.tolerance, False)):
                assert one.question.judge([x * factor for x in one.question.answer]).right == right


def test_all_kinds_and_enough_are_checked():
    assert {one.kind for one in LOADED} == set(exercises.KINDS)
    assert {one.label for one in LOADED} == set(BY_HAND)
    assert len(LOADED) >= 15
    assert not [one for one in LOADED if one.missing]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_exercise_of_a_covered_chapter_is_declared_and_the_other_way_round(chapter):
    text = "\n".join(notebooks.source(c) for c in notebooks.read(ROOT / "book" / f"{chapter}.ipynb")["cells"])
    there = {int(count) for count in re.findall(r"^\*\*(\d+)\.\*\*", text, re.MULTILINE)}
    assert there == set(exercises.declared()[chapter])


def test_the_toy_says_that_easier_data_make_longer_periods():
    found = [find_periods(toys.SphereToy(lr_wd=1e-2, margin=m, seed=np.arange(4)).run(2000)) for m in (0.02, 0.3)]
    assert found[1].length.mean() > 1.5 * found[0].length.mean()


def test_random_numbers_say_that_the_median_turn_is_far_from_the_formula():
    norm, turns, norms = 10.0, [], []
    for step in range(6000):
        g = 200.0 if step % 500 == 499 else 1.0
        norms.append(norm)
        turns.append(float(theory.angular_update(1.0, 1e-3, norm, g)))
        norm = float(theory.next_norm(1.0, 1e-3, norm, g))
    turns, norms = np.array(turns[2000:]), np.array(norms[2000:])
    g = (1 + (200**2 - 1) / 500) ** 0.5
    mean, square = norms.mean() / (g**2 / (2 * 1e-3)) ** 0.25, (turns**2).mean() ** 0.5 / (2 * 1e-3) ** 0.5
    assert 0.8 < mean < 1.25
    assert 0.8 < square < 1.25
    assert np.median(turns) / (2 * 1e-3) ** 0.5 < 0.2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (..., "Not answered yet: put a list of 2 numbers in place of the dots"),
        ([1.0, ...], "Not answered yet"),
        (None, "Not answered yet"),
        ("one", "must be a list of 2 numbers; got 'one'"),
        ([1.0], "must be a list of 2 numbers; got [1.0]"),
        ([1.0, "two"], "must be a list of 2 numbers; got 'two'"),
        ([1.0, float("nan")], "got nan"),
        ([True, 2.0], "got True"),
        ({"a": 1}, "must be a list of 2 numbers"),
        ([2.0, 1.0], "Not right. Swapped. Hint: Sort."),
        ([5.0, 5.0], "Not right. Hint: Sort."),
        (np.array([1.0, 2.0]), "Right."),
        (("1e0", 2), "Right."),
    ],
)
def test_what_is_given_is_judged_or_said_to_be_unreadable(given, said):
    question = Question([1.0, 2.0], hint="Sort.", wrong=(([2.0, 1.0], "Swapped."),))
    verdict = question.judge(given)
    assert said in verdict.text
    assert verdict.right == (said == "Right.")


def test_words_may_be_written_in_any_case_and_must_be_among_the_choices():
    question = Question("yes", choices=("yes", "no"))
    assert question.judge(" Yes ").right
    for other in ("perhaps", 1, ["yes"], np.array(["yes", "no"])):
        assert "`answer` must be one of 'yes', 'no'; got" in question.judge(other).text


def test_a_key_survives_packing_and_says_when_it_is_damaged_or_asked_for_another_question():
    check = Key.read(Key({one.label: one.question for one in LOADED}).packed())
    for label, answer in BY_HAND.items():
        assert check(label, answer).right
    with pytest.raises(ConfigError, match=r"unknown question '01.1.'; known: 01.1, .*Did you mean '01.1'"):
        check("01.1.", 2)
    for text in ("", "abc", check.packed()[:-8], "eJyrBgABNQC5"):
        with pytest.raises(ConfigError, match=r"damaged .*; take a fresh copy"):
            Key.read(text)


# ---------------------------------------------------------------- the declaration


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').getcwd()",
        "theory.__class__",
        "theory.np",
        "[p for p in (1, 2)]",
        "(lambda: 1)()",
        "open('x')",
        "ln(0)",
        "1 +",
        "'word'",
        "theory.effective_lr(0.1)",
    ],
)
def test_expressions_that_are_no_numbers_are_refused(expression):
    with pytest.raises(ConfigError, match=r"`answer` must be numbers, or an expression of exp, ln, sqrt, theory"):
        exercises.evaluate(expression, result=float)


def declare(monkeypatch, change, chapter="01_scale_invariance", count=1):
    entries = json.loads(json.dumps(exercises.declared()[chapter]))
    entries = {int(key): value for key, value in entries.items()}
    change(entries, entries[count])
    monkeypatch.setattr(exercises, "read_yaml", lambda path: {chapter: entries})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda all_, one: one.update(wrong=one["wrong"][:1]), "`wrong` of exercise 01.1 must have at least two"),
        (lambda all_, one: one["wrong"].append({"answer": "0.00201", "why": "x"}), "01.1 accepts the wrong answer"),
        (lambda all_, one: one.update(kind="by heart"), "`kind of exercise 01.1` must be one of 'by hand'"),
        (lambda all_, one: one.update(level=4), "`level of exercise 01.1` must be from 1 to 3"),
        (lambda all_, one: one.update(minutes=0), "`minutes of exercise 01.1` must be from 1 to 90"),
        (lambda all_, one: one.update(tolerance=0), "`tolerance of exercise 01.1` must be a number between 0 and 1"),
        (lambda all_, one: one.update(choices=["a", "b"]), "`exercise 01.1` must be one of 'a', 'b'"),
        (lambda all_, one: one.update(hnit="x"), "unknown key of exercise 1 .*'hnit'.*Did you mean 'hint'"),
        (lambda all_, one: one.pop("hint"), r"must have kind, .*\['hint'\] missing"),
        (
            lambda all_, one: one["wrong"].append(3),
            "wrong answer of exercise 1 .* must be a mapping of answer, why; got 3",
        ),
        (lambda all_, one: one["wrong"][0].pop("why"), r"must have answer, why; \['why'\] missing"),
        (lambda all_, one: all_.update({1: "x"}), "exercise 1 of .* must be a mapping of kind, .*; got 'x'"),
        (lambda all_, one: all_.update({"2b": one}), "must be a mapping of numbers to exercises; got"),
        (lambda all_, one: all_.pop(2), r"has the exercises \[1, 2, 3\], and .* \[1, 3\]: they must be the same"),
        (lambda all_, one: all_.update({4: one}), r"and book/exercises.yml for it \[1, 2, 3, 4\]"),
    ],
)
def test_an_entry_that_cannot_be_used_is_refused(monkeypatch, change, said):
    declare(monkeypatch, change)
    with pytest.raises(ConfigError, match=said):
        exercises.load("01_scale_invariance", RECORDS)


def test_an_answer_that_needs_a_chapter_says_so_where_that_was_not_executed():
    one = exercises.load("12_instability_presumption", {})[0]
    assert one.question is None
    assert one.missing == (
        "its answer needs `03_periodic_behavior.period_fast`, which `periodic book 03_periodic_behavior` publishes"
    )


def test_plans_add_up_and_say_when_they_do_not(monkeypatch):
    plans = lessons.declared()
    assert [session["minutes"] for session in plans["module"]["sessions"]] == [90, 90, 90]
    assert sum(step["minutes"] for step in plans["lesson"]["sessions"][0]["steps"]) == 90
    assert "| 20 | 20 |" in lessons.plan("lesson")
    with pytest.raises(ConfigError, match="unknown plan 'course'; known: lesson, module"):
        lessons.plan("course")
    step = {"minutes": 30, "do": "x", "exercises": ["01.1"]}
    for steps, said in (
        ([step], "must take its 90 minutes; they take 30"),
        ([{**step, "minutes": 5}], "`minutes of a step of session 'S'` must be at least 6, for its exercises"),
        ([{**step, "exercises": ["01.9"]}], "unknown exercise of session 'S' '01.9'"),
        ([{**step, "trains": "04_x"}], "unknown chapter '04_x'"),
        ([{"minutes": 90}], r"a step of session 'S' must have minutes, do; \['do'\] missing"),
        ([{**step, "who": "x"}], "unknown key of a step of session 'S' 'who'"),
    ):
        session = {"title": "S", "minutes": 90, "steps": steps}
        entry = {"one": {"title": "T", "goals": [], "sessions": [session]}}
        monkeypatch.setattr(lessons, "read_yaml", lambda path, entry=entry: entry)
        with pytest.raises(ConfigError, match=said):
            lessons.declared()


# ---------------------------------------------------------------- the pack


def test_the_pack_is_whole(packed):
    listed = check_sums((packed / "SHA256SUMS").read_text(), lambda name: (packed / name).read_bytes())
    assert listed == {str(p.relative_to(packed)) for p in packed.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    assert {f"{who}/{chapter}.ipynb" for who in ("student", "instructor") for chapter in CHAPTERS} <= listed
    assert {"lesson.md", "module.html", "handout.html", "instructor/solutions.html", "data.zip"} <= listed
    missing = (packed / "README.md").read_text().split("Not in this pack:")[1]
    assert re.search(r"results.zip has 1 of \d+ results; `make book` trains the others \(.*about [\d.]+ min", missing)
    assert "book.zip is not there: `make book` renders the book" in missing
    assert "Exercise 12.1 is not checked: its answer needs" in missing
    assert "slides.html is not there: `make book` executes the chapters" in missing


def test_archives_verify_and_do_not_depend_on_when_they_were_made(packed, tmp_path):
    for path in packed.glob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            names = check_sums(archive.read("SHA256SUMS").decode(), archive.read)
            assert names == set(archive.namelist()) - {"SHA256SUMS"}
    assert "data/cache/rescaling/smoke.nc" in zipfile.ZipFile(packed / "results.zip").namelist()
    files = {"a/b": ROOT / "LICENSE", "c": ROOT / "README.md"}
    classroom.archive(tmp_path / "one.zip", files)
    os.utime(tmp_path / "one.zip", (0, 0))
    classroom.archive(tmp_path / "other.zip", files)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "other.zip").read_bytes()


def test_the_book_is_packed_where_it_is_rendered(packed, tmp_path, monkeypatch):
    monkeypatch.setenv("PERIODIC_ROOT", str(packed.parents[1]))
    page = packed.parents[1] / "build" / "smoke" / "html" / "_build" / "html" / "_static" / "a.css"
    page.parent.mkdir(parents=True)
    for path in (page, page.parents[1] / "index.html"):
        path.write_text(path.name)
    assert not [line for line in classroom._archives(tmp_path, [], "smoke") if "book.zip" in line]
    with zipfile.ZipFile(tmp_path / "book.zip") as archive:
        assert check_sums(archive.read("SHA256SUMS").decode(), archive.read) == {"_static/a.css", "index.html"}


def test_results_are_loaded_where_the_archives_are_unpacked(packed, tmp_path):
    for name in ("library.zip", "results.zip", "data.zip"):
        zipfile.ZipFile(packed / name).extractall(tmp_path)
    code = "from periodic_lib import anchors, experiments\n"
    code += "print(experiments.state(experiments.plan('rescaling', 'smoke'))[0])\n"
    code += "print(len(anchors.published('lobacheva2021_jumps')))"
    state, rows = run(code, tmp_path, PYTHONPATH=str(tmp_path)).split()
    assert state == "ready"
    assert int(rows) > 0


@pytest.fixture(scope="module")
def library(packed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    zipfile.ZipFile(packed / "library.zip").extractall(folder)
    return folder


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_students_notebook_runs_unanswered_with_the_library_alone(packed, library, chapter, tmp_path):
    content = notebooks.read(packed / "student" / f"{chapter}.ipynb")
    cells = [notebooks.source(cell) for cell in content["cells"] if cell["cell_type"] == "code"]
    asked = [cell for cell in cells if "check(" in cell]
    lines = [cell.replace('check("', 'print(check("')[:-1] + "))" if "check(" in cell else cell for cell in cells]
    said = run("\n".join(lines), tmp_path, PYTHONPATH=str(library)).splitlines()
    assert len(asked) == len(exercises.declared()[chapter]) - (chapter[:2] == "12")  # whose number is not published
    assert len([line for line in said if "Not answered yet: put" in line]) == len(asked)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_students_notebook_gives_nothing_away(packed, chapter):
    text = (packed / "student" / f"{chapter}.ipynb").read_text()
    for one in LOADED:
        if one.label[:2] == chapter[:2]:
            assert f"Exercise {one.label}" in text
            assert not [line for line in one.solution.splitlines() if line.startswith("# ") and line in text]
            assert not [why for _, why in (one.question.wrong) if why in text]
    assert '"solution"' not in text
    assert "{result}" not in text


def papermill(source, target, folder, **environment):
    command = [sys.executable, "-m", "papermill", source, target, "-k", "python3", "--cwd", folder]
    command += ["--no-progress-bar"] + (["-p", "profile", "smoke"] if "instructor" in str(source) else [])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", **environment}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    content = notebooks.read(target)
    assert not notebooks.error_outputs(content)
    return "".join(json.dumps(cell.get("outputs", [])) for cell in content["cells"])


@pytest.mark.parametrize("chapter", ["01_scale_invariance", "12_instability_presumption"])
def test_a_teachers_notebook_runs_and_all_its_answers_are_right(packed, chapter, tmp_path):
    places = {"PERIODIC_ROOT": str(ROOT), "PYTHONPATH": str(ROOT)}
    shown = papermill(packed / "instructor" / f"{chapter}.ipynb", tmp_path / "done.ipynb", ROOT / "book", **places)
    checked = len(exercises.declared()[chapter]) - (chapter[:2] == "12")
    assert len(re.findall(r"\d\d\.\d: Right\.", shown)) == checked
    assert "Not right" not in shown


def test_a_students_notebook_is_executed_by_a_kernel(packed, library, tmp_path):
    source = packed / "student" / "01_scale_invariance.ipynb"
    shown = papermill(source, tmp_path / "done.ipynb", tmp_path, PYTHONPATH=str(library))
    assert shown.count("Not answered yet") == 3


def test_the_solutions_name_every_expected_wrong_answer(packed):
    text = (packed / "instructor" / "solutions.md").read_text()
    for one in LOADED:
        assert f"### Exercise {one.label}" in text
        assert one.solution in text
        if one.label != "12.1":
            for answer, why in one.question.wrong:
                assert f"| {classroom.said(answer)} | {why} |" in text


def test_the_handout_has_two_pages(packed):
    text = (packed / "handout.html").read_text()
    assert text.count('class="lines"') == 5
    assert r"\(\eta/\rho^2\)" in text
    assert not re.findall(r'(?:src|href)="https?:', text)
    if (packed / "handout.pdf").exists():
        assert b"/Count 2" in (packed / "handout.pdf").read_bytes()


def test_the_page_on_teaching_shows_both_plans(tmp_path):
    source, html = tmp_path / "source", tmp_path / "html"
    source.mkdir()
    (source / "index.md").write_text((ROOT / "book" / "teaching.md").read_text())
    (source / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'book' / '_ext')!r})\n"
        "extensions = ['myst_parser', 'periodic_book']\n"
    )
    code = f"from sphinx.cmd.build import main; raise SystemExit(main(['-W', '-q', {str(source)!r}, {str(html)!r}]))"
    run(code, tmp_path, PERIODIC_ROOT=str(ROOT), PYTHONPATH=str(ROOT))  # a process of its own: Sphinx leaves traces
    shown = (html / "index.html").read_text()
    assert shown.count("<table") == 4
    for text in ("The simulator of Norm dynamics, in pairs", "The presumption of equilibrium", "05.1, 05.2, 05.3"):
        assert text in shown


def test_without_a_browser_a_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(printing.shutil, "which", lambda name: None)
    (sentence,) = classroom._print_handout(tmp_path / "handout.html")
    assert sentence == "handout.pdf is not there: no Chromium printed it. Print handout.html in a browser."


def test_an_unknown_profile_is_refused(capsys):
    assert main(["class", "--profile", "paper"]) == 2
    assert "unknown profile 'paper'; known: smoke, classroom" in capsys.readouterr().err
