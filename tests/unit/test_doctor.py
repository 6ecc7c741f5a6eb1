"""The doctor sees what is wrong and says what to do; status sees what is there."""

import numpy as np
import pytest

from periodic_lib import cli, doctor, experiments, status
from periodic_lib.doctor import Finding
from periodic_lib.engine import sources
from periodic_lib.storage import store


def test_every_check_is_well_here_or_names_a_package(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PERIODIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "NETWORKS", ("mlp",))  # a child process each: one will do
    found = {one.name: one for one in doctor.findings()}
    bad = [one.line() for name, one in found.items() if not one.ok and name != "packages"]
    assert not bad
    assert {"Python", "packages", "processor", "device", "disk", "folder of results", "training mlp"} < set(found)
    assert {f"data {name}" for name in sources.EMBEDDED} < set(found)


def test_a_version_that_is_not_the_locks_is_named(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"# versions\nnumpy=={np.__version__}\nno-such-package==1.0\n")
    found = doctor.packages(lock)
    assert found.ok
    assert "1 as in requirements.lock, 1 optional ones absent" in found.text
    lock.write_text("numpy==0.0.1\n")
    found = doctor.packages(lock)
    assert not found.ok
    assert f"numpy {np.__version__}, not 0.0.1; run `make setup`" in found.text


def test_changed_data_are_seen(monkeypatch):
    right = sources.EMBEDDED["digits"]()
    wrong = right.x_train.copy()
    wrong[3, 0, 2, 2] += 1
    monkeypatch.setitem(sources.EMBEDDED, "digits", lambda: right._replace(x_train=wrong))
    found = doctor.data("digits")
    assert not found.ok
    assert "should be" in found.text
    monkeypatch.setitem(sources.EMBEDDED, "digits", lambda: right._replace(x_train=right.x_train + 1e-9))
    assert doctor.data("digits").ok  # another processor rounds otherwise


def test_a_full_disk_and_a_folder_that_is_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("PERIODIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "ENOUGH_DISK", 1e30)
    found = doctor.disk()
    assert not found.ok
    assert "PERIODIC_CACHE" in found.text
    (tmp_path / "cache").write_text("a file")
    assert not doctor.writable().ok


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ValueError('no such operator')", "no such operator; run `make setup`"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "killed by signal 4"),
        ("import time; time.sleep(60)", "no end in 1 s"),
    ],
)
def test_training_that_raises_dies_or_hangs_is_one_line(monkeypatch, code, words):
    monkeypatch.setattr(doctor, "TRAIN", code + "  # %(network)r %(device)r")
    monkeypatch.setattr(doctor, "TRAINING_SECONDS", 1 if "sleep" in code else 60)
    found = doctor.training("mlp")
    assert not found.ok
    assert words in found.text
    assert "\n" not in found.line()


def test_a_check_that_raises_is_a_finding_and_the_status_is_1(monkeypatch, capsys):
    def broken():
        raise OSError("no such\nthing")

    monkeypatch.setattr(doctor, "processor", broken)
    monkeypatch.setattr(doctor, "NETWORKS", ())
    monkeypatch.setattr(doctor, "packages", lambda lock: Finding("packages", True, "well"))
    assert cli.main(["doctor"]) == 1
    assert "MEND  processor: OSError: no such thing" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "processor", lambda: Finding("processor", True, "well"))
    assert cli.main(["doctor"]) == 0


def test_status_says_what_is_done_stale_running_and_unfinished(monkeypatch, project_of, capsys):
    project_of(
        "one:\n  setup: {width: 8, depth: 1, steps: 20}\n  profiles:\n    smoke: {grid: {lr: 0.1, weight_decay: 0}}\n"
    )
    monkeypatch.delenv("PERIODIC_CACHE", raising=False)
    todo = experiments.plan("one", "smoke")
    assert status.result("one", "smoke")[1] == "not made"
    assert not status.rows()
    todo.path.parent.mkdir(parents=True)
    todo.path.with_suffix(".resume.npz").write_bytes(b"")
    assert status.result("one", "smoke")[1] == "unfinished"
    todo.path.with_suffix(".resume.npz").unlink()
    experiments.run_experiment("one", "smoke", progress=False)
    assert cli.main(["status"]) == 0
    assert "done" in capsys.readouterr().out
    with store.claimed(["0" * 32], "something"):
        (row,) = status.running()
        assert row[:2] == ("something", "running")
    assert not list(status.running())
    monkeypatch.setattr(experiments.fingerprints, "code_digest", lambda *_: "other")
    assert status.result("one", "smoke")[1] in ("stale", "not made")
