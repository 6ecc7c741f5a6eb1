"""A real scheduler started by hand, two workers in processes of their own: killed, and nothing is lost."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from periodic_lib.experiments import plan, run_experiment
from periodic_lib.project import ConfigError
from periodic_lib.storage import store
from periodic_lib.sweeping import sweeps

FILE = """
    some:
      setup: {width: 8, depth: 1, steps: 400}
      record: {evaluate_every: null}
      profiles:
        smoke: {grid: {lr: [0.1, 0.3, 0.5], weight_decay: 1.0e-2, seed: [0, 1]}}
"""


@pytest.fixture
def project(project_of, monkeypatch):
    folder = project_of(FILE)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("PERIODIC_CACHE", "PERIODIC_PROGRESS"):
        monkeypatch.delenv(name, raising=False)
    return folder


class Cluster:
    """A scheduler and workers, as the page on sweeps starts them."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address, self.workers = f"tcp://127.0.0.1:{port}", []
        address = ["--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
        self.scheduler = self.start("scheduler", *address)

    def start(self, kind, *options):
        command = [sys.executable, "-m", "dask", kind, *options]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def worker(self):
        options = ("--nthreads", "1", "--resources", "CPU=1", "--no-nanny", "--no-dashboard")
        self.workers.append(self.start("worker", self.address, *options))

    def close(self):
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(project):
    found = Cluster()
    yield found
    found.close()


def kill_at_the_first_result(process, monkeypatch):
    """Kill a process when the first stack has been stored."""
    count, killed = sweeps._count, []

    def then_kill(*arguments):
        count(*arguments)
        if not killed:
            killed.append(time.time())
            process.send_signal(signal.SIGKILL)

    monkeypatch.setattr(sweeps, "_count", then_kill)
    return killed


def test_a_worker_and_then_the_scheduler_are_killed(project, cluster, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("PERIODIC_CACHE", str(project / "other"))
        alone = run_experiment("some", "smoke", progress=False)
    cluster.worker()
    cluster.worker()
    todo = plan("some", "smoke")
    with monkeypatch.context() as once:
        killed = kill_at_the_first_result(cluster.workers[0], once)
        done = sweeps.sweep([todo], cluster.address, workers=2, size=2, progress=False)
    assert killed
    assert (done.done, done.failed) == (6, {})
    files = {path: path.stat().st_mtime_ns for path in store.folder().rglob("*.nc")}
    assert len(files) == 3
    found = run_experiment("some", "smoke", progress=False)
    for name in alone.data_vars:
        np.testing.assert_array_equal(found[name].values, alone[name].values)
    more = plan("some", "smoke", {"lr": [0.1, 0.3, 0.7, 0.9], "seed": [0]})
    with monkeypatch.context() as once:
        kill_at_the_first_result(cluster.scheduler, once)
        with pytest.raises(ConfigError, match=r"scheduler.*is gone.*the same command goes on"):
            sweeps.sweep([more], cluster.address, size=1, progress=False)
    assert len(store.missing(more.keys)) <= 1  # two runs were there, one was made before the kill
    again = sweeps.sweep([more], None, size=1, progress=False)
    assert again.found + again.done == 4
    assert all(path.stat().st_mtime_ns == made for path, made in files.items())


def test_a_stack_goes_on_from_its_state_on_another_worker(project, monkeypatch):
    """What a killed worker saved is used: with a budget of nothing a state is left after some steps."""
    from periodic_lib.engine import training
    from periodic_lib.project import Unfinished, digest
    from periodic_lib.sweeping import tasks

    todo = plan("some", "smoke")
    (task,) = tasks.cut(tasks.groups([todo]), lambda setup, record: 6)
    state = store.folder() / sweeps.FOLDER / f"{digest(task.keys)[:20]}.resume.npz"
    with pytest.raises(Unfinished) as stopped:
        training.train(task.setup, task.runs, task.record, progress=False, resume=state, budget=0.05)
    assert state.exists()
    assert stopped.value.done < 400
    loaded, load = [], training.Resume.load

    def noted(self):
        seconds = load(self)
        loaded.append(self.stack.steps_done)
        return seconds

    monkeypatch.setattr(training.Resume, "load", noted)
    assert sweeps.sweep([todo], size=6, progress=False).done == 6
    assert loaded == [stopped.value.done]
    assert not state.exists()
