"""The command as a user meets it: exit status, messages, interruption."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from periodic_lib import claims, cli, experiments, notebooks, results

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
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_one_line_and_exit_status_2(arguments, message, capsys, tmp_path):
    assert cli.main(["run", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("periodic: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "cache").exists()  # nothing was trained


def test_run_prints_a_row_per_run_and_the_file(capsys, tmp_path):
    command = ["run", "periodic_behavior", "--profile", "smoke", "--set", "lr=[3e-2]", "--set", "weight_decay=1e-2"]
    assert cli.main([*command, "--set", "steps=20"]) == 0
    out = capsys.readouterr().out
    assert "regime" in out
    assert out.count("0.03") == 2  # two seeds
    assert Path(out.strip().splitlines()[-1]).is_file()


def test_momentum_runs_have_no_regime_yet(capsys):
    assert cli.main(["run", "rescaling", "--profile", "smoke", "--set", "momentum=0.9", "--set", "steps=5"]) == 0
    assert " - " in capsys.readouterr().out


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


def test_interrupting_training_leaves_nothing_and_the_next_call_starts_cleanly(tmp_path):
    progress = tmp_path / "progress"
    environment = {**os.environ, "PERIODIC_PROGRESS": str(progress)}
    command = [sys.executable, "-m", "periodic_lib", "run", "periodic_behavior", "--set", "steps=1000000"]

    def heed_interrupts():  # a shell that started this in the background may have told it to ignore them
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    options = {"cwd": ROOT, "env": environment, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=heed_interrupts, **options) as process:
        deadline = time.monotonic() + 120
        while not (progress.exists() and "step/s" in progress.read_text()):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not list((tmp_path / "cache").rglob("*.*"))
    again = subprocess.run([*command[:-1], "steps=5"], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert b"regime" in again.stdout


def test_book_reports_a_failed_chapter_with_status_1(monkeypatch, capsys):
    def fails(*_, **__):
        raise notebooks.ChapterError("01_one: failed")

    monkeypatch.setattr(notebooks, "execute", fails)
    assert cli.main(["book", "--no-render", "--profile", "smoke"]) == 1
    assert "01_one: failed" in capsys.readouterr().err


def test_unknown_commands_are_argparse_errors():
    with pytest.raises(SystemExit) as caught:
        cli.main(["fly"])
    assert caught.value.code == 2


def test_claims_are_listed_or_said_not_to_be_there(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(notebooks, "build_folder", lambda profile: tmp_path)
    assert cli.main(["claims"]) == 2
    assert "no chapter has been executed" in capsys.readouterr().err
    assert cli.main(["claims", "--profile", "huge"]) == 2
    assert "unknown profile 'huge'" in capsys.readouterr().err
    monkeypatch.setenv("PERIODIC_RECORDS", str(tmp_path / "records"))
    claims.Chapter("05_nothing", "smoke").publish(x=1)
    assert cli.main(["claims"]) == 0
    assert all(claim in capsys.readouterr().out for claim in ["exact-motion"])
