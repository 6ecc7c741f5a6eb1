"""The command as a user meets it: exit status, messages, interruption."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from periodic_lib import cli, experiments, results
from periodic_lib.analysis import regimes
from periodic_lib.publishing import book, chapters, execution, notebooks

ROOT = Path(__file__).parents[2]
BAD = [
    (["nope"], "unknown experiment 'nope'"),
    ([], "`experiment` must be given"),
    (["periodic_behavior", "--profile", "tiny"], "`profile` must be one of 'smoke', 'classroom'"),
    (["periodic_behavior", "--set", "learning_rate=1"], "unknown parameter 'learning_rate'"),
    (["periodic_behavior", "--set", "lr=fast"], "`lr` must be a positive number"),
    (["periodic_behavior", "--set", "lr=-1"], "`lr` must be a positive number"),
    (["periodic_behavior", "--set", "lr=0"], "`lr` must be a positive number"),
    (["periodic_behavior", "--set", "lr=[]"], "the grid is empty"),
    (["periodic_behavior", "--set", "weight_decay=-1e-3"], "`weight_decay` must be a number from 0"),
    (["periodic_behavior", "--set", "steps=0"], "`steps` must be a whole number of at least 1"),
    (["periodic_behavior", "--set", "batch_size=1438"], "`batch_size` must be at most 1437"),
    (["periodic_behavior", "--set", "dataset=mnist"], "`dataset` must be one of 'digits'"),
    (["periodic_behavior", "--set", "network=vgg"], "`network` must be one of 'mlp'"),
    (["periodic_behavior", "--budget", "0"], "`budget` must be a positive number of seconds"),
    (["periodic_behavior", "--budget", "soon"], "`budget` must be a positive number of seconds"),
    (["periodic_behavior", "--keep", "--set", "lr=0.3"], "`--set` may change only `dataset`"),
    (["periodic_behavior", "--set", "lr"], "`--set` must be NAME=VALUE"),
    (["periodic_behavior", "--set", "lr=[1,"], "`--set lr` must be a number"),
    *(
        (["periodic_behavior", "--set", f"lr={text}"], "`lr` must be a positive number")
        for text in ("2001-99-99", "2001-01-01 99:00:00", "0b_", "0x_", "1:30", "1e-320")
    ),
    *(
        (["periodic_behavior", "--set", f"lr={text}"], "`--set lr` must be a number")
        for text in ("!!int x", "!!float abc", "!!timestamp x")
    ),
    (["periodic_behavior", "--set", "lr=" + 5000 * "1"], "`--set lr` must be a number"),
    (["periodic_behavior", "--set", "lr=" + 3000 * "["], "`--set lr` must be a number"),
    (["periodic_behavior", "--set", "lr={a: 1}"], "`lr` must be a positive number"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_one_line_and_exit_status_2(arguments, message, capsys, tmp_path):
    assert cli.main(["run", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("periodic: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert len(captured.err) < 2000  # a list of all experiments, but no 5,000 digits
    assert {path.name for path in (tmp_path / "cache").rglob("*")} <= {".claims", "gate.lock"}  # nothing was trained


def test_run_prints_a_row_per_run_and_the_file(capsys, tmp_path):
    command = ["run", "periodic_behavior", "--profile", "smoke", "--set", "lr=[3e-2]", "--set", "weight_decay=1e-2"]
    assert cli.main([*command, "--set", "steps=20"]) == 0
    out = capsys.readouterr().out
    assert "regime" in out
    assert out.count("0.03") == 2  # two seeds
    assert Path(out.strip().splitlines()[-1]).is_file()


def test_runs_whose_decay_is_in_adams_gradient_have_no_regime_without_a_break(capsys):
    assert cli.main(["run", "rescaling", "--profile", "smoke", "--set", "optimizer=adam", "--set", "steps=5"]) == 0
    assert " – " in capsys.readouterr().out


def test_a_result_is_kept_before_anything_is_printed(monkeypatch):
    order = []
    monkeypatch.setattr(experiments, "run_experiment", lambda *_, **__: "result")
    monkeypatch.setattr(experiments, "keep", lambda *_: order.append("kept"))
    monkeypatch.setattr(regimes, "summarize", lambda _: order.append("summarized") or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", "rescaling", "--profile", "smoke", "--keep"])
    assert order == ["kept", "summarized"]


def test_results_with_layers_and_curvature_are_summarized(capsys):
    for name in ("one_period", "one_period_curvature"):
        assert cli.main(["run", name, "--profile", "smoke", "--set", "steps=20", "--set", "init_seed=0"]) == 0
    assert "regime" in capsys.readouterr().out


def test_a_budget_is_kept_and_the_next_call_goes_on_to_the_same_numbers(capsys, monkeypatch):
    command = ["run", "periodic_behavior", "--profile", "smoke", "--set", "steps=300"]
    todo = experiments.plan("periodic_behavior", "smoke", {"steps": 300})
    calls = 0
    while cli.main([*command, "--budget", "0.05"]) == cli.UNFINISHED:
        calls += 1
        assert not todo.path.exists()
        assert todo.path.with_suffix(".resume.npz").exists()
    assert calls > 1
    assert "The same command goes on" in capsys.readouterr().err
    assert not todo.path.with_suffix(".resume.npz").exists()
    sliced = results.load(todo.path)
    assert cli.main([*command, "--force"]) == 0
    whole = results.load(todo.path)
    for name in whole.data_vars:
        assert whole[name].identical(sliced[name]), name


def test_list_shows_experiments_profiles_runs_and_time(capsys):
    assert cli.main(["run", "--list"]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.split()[0] == "periodic_behavior"]
    assert [row[1] for row in rows] == ["smoke", "classroom", "paper"]
    plan = experiments.plan("periodic_behavior")
    assert rows[1][2:4] == [str(len(plan.runs)), str(plan.setup.steps)]
    assert "estimated" in out
    assert "not made" in out


def test_no_project_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PERIODIC_ROOT", str(tmp_path))
    assert cli.main(["run", "--list"]) == 2
    assert "cannot read" in capsys.readouterr().err


def heed_interrupts():  # a shell that started this in the background may have told it to ignore them
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("request_to_end", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_training_leaves_nothing_and_the_next_call_starts_cleanly(tmp_path, request_to_end):
    progress = tmp_path / "progress"
    environment = {**os.environ, "PERIODIC_PROGRESS": str(progress)}
    command = [sys.executable, "-m", "periodic_lib", "run", "periodic_behavior", "--set", "steps=1000000"]
    options = {"cwd": ROOT, "env": environment, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=heed_interrupts, **options) as process:
        deadline = time.monotonic() + 120
        while not (progress.exists() and "step/s" in progress.read_text()):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(request_to_end)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert {path.name for path in (tmp_path / "cache").rglob("*.*")} == {".claims", "gate.lock"}
    again = subprocess.run([*command[:-1], "steps=5"], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert b"regime" in again.stdout


def test_an_interruption_that_python_drops_is_made_again(monkeypatch, capsys):
    class Removed:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    def work(*_, **__):
        Removed()
        for _ in range(100):  # as long as training that goes on
            time.sleep(0.1)

    monkeypatch.setattr(experiments, "run_experiment", work)
    assert cli.main(["run", "rescaling", "--profile", "smoke"]) == cli.INTERRUPTED
    assert "interrupted" in capsys.readouterr().err


def test_book_reports_a_failed_chapter_with_status_1(monkeypatch, capsys):
    def fails(*_, **__):
        raise notebooks.ChapterError("01_one: failed")

    monkeypatch.setattr(execution, "execute", fails)
    assert cli.main(["book", "--no-render", "--profile", "smoke"]) == 1
    assert "01_one: failed" in capsys.readouterr().err


def test_unknown_commands_are_argparse_errors():
    with pytest.raises(SystemExit) as caught:
        cli.main(["fly"])
    assert caught.value.code == 2


# ---------------------------------------------------------------- book and claims


CLAIM = (
    "{{chapter: {}, topic: mechanism, kind: measured, fixed: before, statement: s, source: s, setting: s, "
    "paper_value: 1, rule: r, verdict: {}}}"
)
CLAIMS = f"""
works: {CLAIM.format("01_one", "holds")}
a-longer-name: {CLAIM.format("02_two", "holds")}
"""


@pytest.fixture
def built(tmp_path, monkeypatch):
    """A project with two claims, measured at profile classroom; the second is not as acknowledged."""
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "experiments.yml").write_text("{}")
    (tmp_path / "data" / "claims").mkdir(parents=True)
    (tmp_path / "data" / "claims" / "claims.yml").write_text(CLAIMS)
    monkeypatch.setenv("PERIODIC_ROOT", str(tmp_path))
    say(tmp_path / "build" / "classroom", monkeypatch)
    return tmp_path


def say(folder, monkeypatch):
    monkeypatch.setenv("PERIODIC_RECORDS", str(folder / "records"))
    chapters.Chapter("01_one", "classroom").check("works", {"seed 0": True}, "√2 × ü,\nand more")
    chapters.Chapter("02_two", "classroom").check("a-longer-name", {"seed 0": True, "seed 1": False}, "x" * 200)


def test_claims_are_plain_lines_one_each_and_whole(built, capsys):
    assert cli.main(["claims"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "works          measured  holds (few: 1 of 1, 21% to 100%)  holds  √2 × ü, and more",
        "a-longer-name  measured  mixed (few: 1 of 2, 9% to 91%)    holds  " + "x" * 200,
    ]


def periodic(*arguments, **environment):
    command = [sys.executable, "-m", "periodic_lib", *arguments]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    return subprocess.Popen(command, env={**os.environ, **environment}, preexec_fn=heed_interrupts, **options)


@pytest.mark.parametrize("arguments", [["claims"], ["run", "--list"]])
def test_a_reader_who_has_seen_enough_is_no_error(built, arguments):
    with periodic(*arguments) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_what_the_terminal_cannot_show_is_replaced(built):
    with periodic("claims", PYTHONIOENCODING="ascii") as process:
        out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert r"\u221a2 \xd7 \xfc, and more" in out


def test_a_broken_record_is_one_line(built, capsys):
    (built / "build" / "classroom" / "records" / "01_one.json").write_text("{")
    assert cli.main(["claims"]) == 2
    err = capsys.readouterr().err
    assert "01_one.json cannot be read" in err
    assert err.count("\n") == 1


def test_verdicts_under_other_seeds_are_saved_from_the_chapters_built_with_them(built, capsys, monkeypatch):
    assert cli.main(["claims", "--save-stability"]) == 2
    assert "PERIODIC_SEED_SHIFT above 0" in capsys.readouterr().err
    monkeypatch.setenv("PERIODIC_SEED_SHIFT", "100")
    assert cli.main(["claims", "--save-stability"]) == 2  # what is built was built without it
    assert "no chapter has been executed" in capsys.readouterr().err
    say(built / "build" / "classroom-seeds100", monkeypatch)
    capsys.readouterr()
    assert cli.main(["claims", "--save-stability"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == built / "data" / "claims" / "stability.csv"
    assert path.read_text() == "claim,shift,verdict\nworks,100,holds\na-longer-name,100,mixed\n"


def test_a_strict_book_is_asked_for_by_its_option(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(book, "build_book", lambda profile, strict: asked.append((profile, strict)) or "page")
    assert cli.main(["book"]) == 0
    assert cli.main(["book", "--strict", "--profile", "smoke"]) == 0
    assert asked == [("classroom", False), ("smoke", True)]
    assert capsys.readouterr().out == 2 * "The book is ready. Open page\n"


@pytest.mark.parametrize("request_to_end", [signal.SIGINT, signal.SIGTERM])
def test_a_chapter_told_to_end_leaves_no_process_and_no_copy(tmp_path, built, request_to_end):
    started = tmp_path / "started"
    code = f"import os, pathlib, time; pathlib.Path({str(started)!r}).write_text(f'{{os.getpid()}} {{os.getppid()}}')"
    cells = [
        {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": "profile = 'smoke'\noverrides = {}"},
        {"cell_type": "code", "metadata": {}, "source": f"{code}; time.sleep(600)"},
    ]
    notebooks.write({"cells": cells}, built / "book" / "01_one.ipynb")
    with periodic("book", "01_one", "--profile", "smoke") as process:
        deadline = time.monotonic() + 120
        while not (started.exists() and " " in started.read_text()):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(request_to_end)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    kernel_and_papermill = list(map(int, started.read_text().split()))
    while any(map(alive, kernel_and_papermill)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not list((built / "build" / "smoke").rglob("*.ipynb"))


def alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_claims_are_listed_or_said_not_to_be_there(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(notebooks, "build_folder", lambda profile: tmp_path)
    assert cli.main(["claims"]) == 2
    assert "no chapter has been executed" in capsys.readouterr().err
    assert cli.main(["claims", "--profile", "huge"]) == 2
    assert "unknown profile 'huge'" in capsys.readouterr().err
    monkeypatch.setenv("PERIODIC_RECORDS", str(tmp_path / "records"))
    chapters.Chapter("05_nothing", "smoke").publish(x=1)
    assert cli.main(["claims"]) == 0
    assert all(claim in capsys.readouterr().out for claim in ["exact-motion"])
