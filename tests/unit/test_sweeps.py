"""Sweeps in this process and on a real LocalCluster: every run once, the numbers of one process, failures named."""

import json

import numpy as np
import pytest

from periodic_lib import ConfigError, Record, Setup, cli, fingerprints, grid, plans
from periodic_lib.experiments import plan, run_experiment
from periodic_lib.storage import store
from periodic_lib.sweeping import schedulers, sweeps
from periodic_lib.sweeping.tasks import Task

FILE = """
    tiny:
      setup: {width: 8, depth: 1, steps: 20}
      vary: {width: [16]}
      record: {evaluate_every: 10}
      profiles:
        smoke: {grid: {lr: [0.1, 0.3], weight_decay: 1.0e-2, seed: [0, 1]}}
    overlapping:
      setup: {width: 8, depth: 1, steps: 20}
      record: {evaluate_every: 10}
      profiles:
        smoke: {grid: {lr: [0.1, 0.3, 0.5], weight_decay: 1.0e-2, seed: [0, 1]}}
"""


@pytest.fixture
def project(project_of, monkeypatch):
    monkeypatch.delenv("PERIODIC_CACHE", raising=False)
    monkeypatch.delenv("PERIODIC_PROGRESS", raising=False)
    return project_of(FILE)


def alone(name, monkeypatch, place):
    """The result that one process gives, in a folder of its own."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("PERIODIC_CACHE", str(place))
        return run_experiment(name, "smoke", progress=False)


def same(one, other):
    assert set(one.data_vars) == set(other.data_vars)
    for name in one.data_vars:
        np.testing.assert_array_equal(one[name].values, other[name].values, err_msg=name)
    assert one.lr.values.tolist() == other.lr.values.tolist()


def test_every_run_is_trained_once_and_is_that_of_one_stack(project, monkeypatch):
    todo = plans.plans_of("tiny", "smoke")
    assert [one.name for one in todo] == ["tiny", "tiny_width_16"]
    done = sweeps.sweep(todo, size=3, progress=False)
    assert (done.runs, done.found, done.done, done.stacks, done.failed) == (8, 0, 8, 4, {})
    again = sweeps.sweep([*todo, plan("overlapping", "smoke")], size=3, progress=False)
    assert (again.runs, again.found, again.done) == (10, 8, 2)  # four of its six runs are tiny's
    whole = run_experiment("overlapping", "smoke", progress=False)
    same(whole, alone("overlapping", monkeypatch, project / "other"))


def test_a_size_is_measured_and_kept(project):
    done = sweeps.sweep([plan("tiny", "smoke")], progress=False)
    assert done.done == 4
    (path,) = (store.folder() / sweeps.FOLDER / "speeds").glob("*.json")
    seconds = json.loads(path.read_text())["seconds"]
    assert all(0 < value < 1 for value in seconds.values())
    assert {"1", "2", "4"} <= set(seconds)


def test_the_estimate_of_memory_is_about_what_a_result_takes():
    from periodic_lib import train
    from periodic_lib.sweeping import speeds

    setup = Setup(width=8, depth=1, steps=3000)
    found = speeds.speed(setup, Record(evaluate_every=None))
    result = train(setup, grid(lr=0.1, weight_decay=0.0), Record(evaluate_every=None), progress=False)
    rows = sum(one.nbytes for one in result.data_vars.values() if "step" in one.dims)
    assert found["per_step"] * setup.steps == pytest.approx(speeds.KEPT * rows, rel=0.2)
    assert speeds.fitting(found, setup, 1e9) > 100


def test_a_stack_too_large_for_memory_is_tried_in_halves(project, monkeypatch):
    tried, trained = [], sweeps._trained

    def small_machine(task, threads, device):
        tried.append(len(task.runs))
        if len(task.runs) > 1:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return trained(task, threads, device)

    monkeypatch.setattr(sweeps, "_trained", small_machine)
    done = sweeps.sweep([plan("tiny", "smoke")], size=4, progress=False)
    assert (done.done, done.split, done.failed) == (4, 3, {})
    assert tried == [4, 2, 2, 1, 1, 1, 1]


def test_a_run_that_does_not_fit_alone_fails_and_the_others_go_on(project, monkeypatch, capsys):
    trained = sweeps._trained

    def small_machine(task, threads, device):
        if any(run.lr == 0.3 and run.init_seed == 1 for run in task.runs):
            raise MemoryError
        return trained(task, threads, device)

    monkeypatch.setattr(sweeps, "_trained", small_machine)
    assert cli.main(["sweep", "tiny", "--profile", "smoke", "--size", "4"]) == 1
    said = capsys.readouterr().err
    assert "tried in halves" in said
    assert "2 runs failed; `periodic status` says of what" in said
    assert cli.main(["status"]) == 0
    told = capsys.readouterr().out
    assert "failed, 6 of 8 runs, 2 failed" in told
    assert "memory was too small" in told
    monkeypatch.setattr(sweeps, "_trained", trained)
    assert cli.main(["sweep", "tiny", "--profile", "smoke"]) == 0
    assert "8 of 8 runs stored, 2 of them now" in capsys.readouterr().out


def test_another_error_fails_that_stack_alone(project, monkeypatch):
    trained = sweeps._trained

    def faulty(task, threads, device):
        if task.setup.width == 16:
            raise RuntimeError("shapes do not match")
        return trained(task, threads, device)

    monkeypatch.setattr(sweeps, "_trained", faulty)
    done = sweeps.sweep(plans.plans_of("tiny", "smoke"), size=4, progress=False)
    assert (done.done, done.lost_runs) == (4, 4)
    assert "shapes do not match" in next(iter(done.failed.values()))


def test_after_ctrl_c_the_same_command_goes_on(project, monkeypatch, capsys):
    trained, calls = sweeps._trained, []

    def interrupted(task, threads, device):
        calls.append(task)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return trained(task, threads, device)

    monkeypatch.setattr(sweeps, "_trained", interrupted)
    arguments = ["sweep", "tiny", "--profile", "smoke", "--size", "2"]
    assert cli.main(arguments) == cli.INTERRUPTED
    assert cli.main(["status"]) == 0
    assert "interrupted, 4 of 8 runs" in capsys.readouterr().out
    monkeypatch.setattr(sweeps, "_trained", trained)
    assert cli.main(arguments) == 0
    assert "8 of 8 runs stored, 4 of them now" in capsys.readouterr().out


def test_a_worker_with_other_code_or_another_folder_is_refused(project):
    task = Task(Setup(width=8, depth=1, steps=5), Record(), tuple(grid(lr=0.1, weight_decay=0.0)))
    code = fingerprints.code_digest()
    other = sweeps.attempt(task, 1, "cpu", str(project), "0123:sign")
    assert other["status"] == sweeps.REFUSED
    assert "other training code" in other["message"]
    lost = sweeps.attempt(task, 1, "cpu", str(project), f"{code}:no-such-sign")
    assert "PERIODIC_CACHE" in lost["message"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], ["unknown experiment 'nothing'", "tiny"]),
        (["no/such.yml"], ["no/such.yml"]),
        (["tiny", "--workers", "0"], ["`workers`", "at least 1", "'0'"]),
        (["tiny", "--size", "many"], ["`size`", "'many'"]),
        (["tiny", "--scheduler", "there"], ["`scheduler`", '"local"', "tcp://", "'there'"]),
        (["tiny", "--scheduler", "tcp://127.0.0.1:9"], ["cannot be reached", "dask scheduler"]),
        (["tiny", "--set", "lr=2.0", "--set", "weight_decay=1"], ["below 1"]),
    ],
)
def test_bad_requests_end_in_one_line(project, capsys, monkeypatch, arguments, words):
    monkeypatch.setattr(schedulers, "CONNECT_SECONDS", 1)
    assert cli.main(["sweep", *arguments, "--profile", "smoke"]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert "Traceback" not in said


def test_without_dask_the_message_has_the_command(project, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    assert cli.main(["sweep", "tiny", "--profile", "smoke", "--scheduler", "local"]) == 2
    assert "pip install 'periodic-lib[sweeps]'" in capsys.readouterr().err


def test_a_dry_run_trains_nothing(project, capsys):
    assert cli.main(["sweep", "tiny", "--profile", "smoke", "--size", "3", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "4 runs of 20 steps of mlp 8 on digits in stacks of at most 3" in said
    assert "8 of 8 runs are to be trained, 0 are stored" in said
    assert not store.folder().exists()


def test_a_file_of_ones_own(project, capsys):
    mine = project / "mine.yml"
    mine.write_text("own:\n  setup: {width: 8, depth: 1, steps: 5}\n  profiles:\n    smoke:\n")
    mine.write_text(mine.read_text() + "      grid: {lr: 0.1, weight_decay: 0.0}\n")
    assert cli.main(["sweep", str(mine), "--profile", "smoke"]) == 0
    assert "1 of 1 runs stored, 1 of them now" in capsys.readouterr().out
    assert run_experiment("own", "smoke", file=mine).sizes["run"] == 1
    with pytest.raises(ConfigError, match="declares no experiment at profile 'paper'"):
        plans.plans_of(str(mine), "paper")


def test_on_a_local_cluster_the_numbers_are_those_of_one_process(project, monkeypatch, capsys):
    before = alone("tiny", monkeypatch, project / "other")
    done = sweeps.sweep([plan("tiny", "smoke")], "local", workers=2, size=2, progress=False)
    assert (done.done, done.stacks, done.failed) == (4, 2, {})
    assert "dashboard: http://" in capsys.readouterr().err
    same(run_experiment("tiny", "smoke", scheduler="local", progress=False), before)  # all are stored


def test_what_makes_no_sense_with_a_scheduler_is_refused(project):
    with pytest.raises(ConfigError, match=r"`budget`.*scheduler"):
        run_experiment("tiny", "smoke", scheduler="local", budget=1.0)
    with pytest.raises(ConfigError, match=r"`force`.*scheduler"):
        run_experiment("tiny", "smoke", scheduler="local", force=True)
