"""Nothing wrong is served, and nothing trained is lost: each of these failed before its mend."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from periodic_lib import Record, Run, Setup, experiments, results, train
from periodic_lib import project as ground
from periodic_lib.engine.stack import Stack
from periodic_lib.project import ConfigError
from periodic_lib.storage import store

DECLARATION = """
    own:
      chapter: 01_scale_invariance
      question: What do my data say?
      setup: {dataset: DATA, width: 8, depth: 1, steps: 12, batch_size: 16}
      grid: {lr: 0.1, weight_decay: 1e-2}
      profiles: {smoke: {record: {evaluate_every: null}}}
"""


def write_data(path, seed):
    rng, labels = np.random.default_rng(seed), np.arange(48) % 3
    arrays = {f"x_{part}": rng.normal(size=(48, 6)) for part in ("train", "test")}
    np.savez(path, y_train=labels, y_test=labels, **arrays)


@pytest.fixture
def home(tmp_path, monkeypatch, project_of):
    """A project whose one experiment trains on a file of one's own, under ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    project_of(DECLARATION.replace("DATA", "~/mine.npz"))
    write_data(tmp_path / "mine.npz", seed=0)
    return tmp_path


def trained():
    return experiments.run_experiment("own", "smoke", progress=False)


def test_own_data_under_the_home_folder_that_were_replaced_are_trained_on_anew(home):
    first = trained()
    write_data(home / "mine.npz", seed=1)
    second = trained()
    assert (second.train_loss.values != first.train_loss.values).any()
    assert trained().identical(second)


def test_own_data_replaced_while_training_do_not_get_the_old_result(home, monkeypatch):
    original = Stack.step

    def step(stack, *arguments):
        if stack.steps_done == 5:
            write_data(home / "mine.npz", seed=1)
        return original(stack, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Stack, "step", step)
        old = trained()
    new = trained()
    assert (new.train_loss.values != old.train_loss.values).any()


def test_own_data_replaced_within_one_tick_of_the_clock_are_noticed(home):
    path = home / "mine.npz"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    first = trained()
    write_data(path, seed=1)
    os.utime(path, ns=times)
    assert (trained().train_loss.values != first.train_loss.values).any()


def test_a_place_that_cannot_be_written_to_is_noticed_before_training(home, monkeypatch):
    monkeypatch.setattr(Stack, "step", lambda *_: pytest.fail("trained"))
    (home / "file").write_text("")
    for place in ("/dev/null/x", "/proc/x", str(home / "file")):
        monkeypatch.setenv("PERIODIC_CACHE", place)
        with pytest.raises(ConfigError, match="cannot be written"):
            trained()


def test_a_cache_under_the_home_folder_is_under_the_home_folder(home, monkeypatch):
    monkeypatch.setenv("PERIODIC_CACHE", "~/results")
    trained()
    assert (home / "results" / "own" / "smoke.nc").exists()


def test_too_small_a_disk_is_noticed_before_training(home):
    """A limit on the size of files stands for a full disk: both end a write half-way."""
    code = "import sys; from periodic_lib.cli import main; sys.exit(main(['run', 'own', '--profile', 'smoke']))"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=limit, cwd=home)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(home.rglob("*.partial"))


def test_a_result_that_cannot_be_written_after_all_is_kept_elsewhere(home, monkeypatch, capsys, tmp_path):
    original, second = results.write_whole, tmp_path / "second"
    second.mkdir()

    def full(path, content):
        if "cache" in path.parts:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, content)

    monkeypatch.setattr(results, "write_whole", full)
    monkeypatch.setattr("tempfile.tempdir", str(second))
    dataset = trained()
    kept = list(second.rglob("smoke.nc"))
    assert results.load(kept[0]).identical(dataset)
    assert "No space left" in capsys.readouterr().err


def test_a_state_that_cannot_be_saved_does_not_end_the_training(tmp_path, monkeypatch, capsys):
    original = ground.write_whole

    def full(path, content):
        if path.suffix == ".npz":  # not the probe before training
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, content)

    monkeypatch.setattr("periodic_lib.engine.training.RESUME_SECONDS", 0)
    monkeypatch.setattr(ground, "write_whole", full)
    setup = Setup(width=8, depth=1, steps=5)
    done = train(setup, [Run(0.1, 1e-2)], Record(evaluate_every=None), resume=tmp_path / "s.npz", progress=False)
    assert done.sizes["step"] == 5
    assert "the state cannot be saved" in capsys.readouterr().err


def test_a_state_in_the_place_of_a_folder_is_refused_before_training(tmp_path):
    with pytest.raises(ConfigError, match="it is a folder"):
        train(Setup(steps=2), [Run(0.1, 0)], resume=tmp_path, progress=False)


def test_a_pipe_in_the_place_of_a_state_is_not_waited_for(tmp_path):
    def ends(*_):
        raise AssertionError("waits")

    os.mkfifo(tmp_path / "state.npz")
    before = signal.signal(signal.SIGALRM, ends)
    signal.alarm(5)
    try:
        train(Setup(width=8, depth=1, steps=2), [Run(0.1, 0)], resume=tmp_path / "state.npz", progress=False)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_dropped_state_says_so(tmp_path, capsys):
    path = tmp_path / "state.npz"
    for content, word in ((b"not a state", "is damaged"), (None, "belongs to other settings")):
        path.write_bytes(content) if content else np.savez(path, key="of another training")
        train(Setup(width=8, depth=1, steps=2), [Run(0.1, 0)], resume=path, progress=False)
        assert word in capsys.readouterr().err


def test_two_writers_of_one_file_both_finish_and_one_content_stays(tmp_path):
    path, contents = tmp_path / "one", [bytes([i]) * 300_000 for i in range(8)]
    threads = [threading.Thread(target=ground.write_whole, args=(path, c)) for c in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert os.listdir(tmp_path) == ["one"]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    abandoned, foreign = tmp_path / ".one.abc.partial", tmp_path / ".other.abc.partial"
    for path in (abandoned, foreign):
        path.write_bytes(b"half")
        old = time.time() - 60
        os.utime(path, (old, old))
    ground.write_whole(tmp_path / "one", b"whole")
    assert not abandoned.exists()
    assert foreign.exists()


def test_what_a_killed_writer_of_another_file_left_is_removed_too(tmp_path):
    abandoned = tmp_path / ".a-state-that-is-not-written-again.abc12_9z.partial"
    abandoned.write_bytes(b"half")
    os.utime(abandoned, (0, 0))
    ground.write_whole(tmp_path / "one", b"whole")
    assert os.listdir(tmp_path) == ["one"]


def test_a_write_in_progress_is_left_alone(tmp_path):
    import fcntl

    partial = tmp_path / ".one.abc.partial"
    with partial.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        os.utime(partial, (0, 0))
        ground.write_whole(tmp_path / "one", b"whole")
        assert partial.exists()


def test_a_state_that_cannot_be_removed_does_not_end_a_training_that_is_done(home, monkeypatch):
    real = Path.unlink

    def refused(path, *given, **options):
        if path.name.endswith(".resume.npz"):
            raise PermissionError(errno.EACCES, "Permission denied")
        real(path, *given, **options)

    monkeypatch.setattr(Path, "unlink", refused)
    assert trained().sizes["run"] == 1


@pytest.mark.parametrize("change", [{"data_seed": "1e30"}, {"warmup": "1e30"}, {"init_seed": 1e30}])
def test_a_number_that_no_file_can_hold_is_refused(change):
    with pytest.raises(ConfigError, match="at most 1,000,000,000"):
        Run(lr=0.1, weight_decay=0, **change)


@pytest.mark.parametrize("make", [lambda: Setup(steps=1e30), lambda: Record(every="1e30")])
def test_a_number_of_steps_that_no_memory_can_hold_is_refused(make):
    with pytest.raises(ConfigError, match="at most 1,000,000,000"):
        make()


def test_a_number_of_four_hundred_digits_is_one_short_line():
    with pytest.raises(ConfigError) as caught:
        Run(lr=int("9" * 400), weight_decay=0)
    assert len(str(caught.value)) < 200


def test_parts_of_a_run_that_left_the_numbers_are_nan():
    runs = [Run(1e38, 0, init_scale=1e-18), Run(0.1, 1e-2)]
    record = Record(layers=True, neurons=True, evaluate_every=None)
    done = train(Setup(width=8, depth=1, steps=6), runs, record, progress=False)
    lost = int(done.diverged_at[0])
    for name in ("layer_weight_norm", "neuron_weight_norm", "layer_grad_norm"):
        assert np.isnan(done[name][0, lost:]).all()
        assert np.isfinite(done[name][1]).all()


def test_a_disk_that_is_not_mounted_is_noticed_before_training(home, monkeypatch):
    monkeypatch.setattr(Stack, "step", lambda *_: pytest.fail("trained"))
    monkeypatch.setenv("PERIODIC_CACHE", str(home / "mnt" / "results"))
    with pytest.raises(ConfigError, match="is its disk mounted"):
        trained()
    assert not (home / "mnt").exists()


def test_results_in_a_folder_that_is_read_only_are_read(home, monkeypatch):
    first, cache = trained(), experiments.store.folder()
    for path in (cache / ".index.jsonl", cache / ".claims" / "gate.lock"):
        path.unlink(missing_ok=True)

    def refuses(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.mkdir", refuses)
    monkeypatch.setattr(ground, "write_whole", refuses)
    assert trained().identical(first)
    with pytest.raises(ConfigError, match=r"cannot be written to .*Read-only file system"):
        experiments.run_experiment("own", "smoke", overrides={"steps": 3}, progress=False)


def test_a_disk_that_fills_up_leaves_earlier_results_intact(home, monkeypatch):
    first = trained()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ground, "write_whole", full)
        with pytest.raises(ConfigError, match=r"No space left on device.* Free some space"):
            experiments.run_experiment("own", "smoke", overrides={"steps": 3}, progress=False)
    assert trained().identical(first)
    assert experiments.run_experiment("own", "smoke", overrides={"steps": 3}, progress=False).sizes["step"] == 3


def test_a_progress_file_that_cannot_be_written_is_one_line(home, monkeypatch):
    monkeypatch.setenv("PERIODIC_PROGRESS", str(home / "none" / "progress"))
    with pytest.raises(ConfigError, match=r"PERIODIC_PROGRESS names .* which cannot be written"):
        experiments.run_experiment("own", "smoke")


def test_an_index_that_mixes_up_runs_is_made_again_once_that_is_noticed(home, tmp_path):
    plans = [experiments.plan("own", "smoke", {"lr": lr}) for lr in (0.1, 0.2)]
    for plan in plans:
        experiments.run_experiment("own", "smoke", overrides=plan.overrides, progress=False)
    store.listing()
    index = store.folder() / store.index.INDEX
    lines = [json.loads(line) for line in index.read_text().splitlines() if line]
    keys = [line["keys"] for line in lines]
    index.write_text("\n".join(json.dumps(line | {"keys": keys[i - 1]}) for i, line in enumerate(lines)))
    with pytest.raises(results.ResultsError, match="no longer holds the runs"):
        store.take(plans[0].keys)
    assert store.take(plans[0].keys).lr.item() == 0.1


def test_no_state_is_left_where_another_experiment_has_stored_a_run_meanwhile(home):
    both, one = {"lr": [0.1, 0.2]}, {"lr": 0.1}
    with pytest.raises(ground.Unfinished):
        experiments.run_experiment("own", "smoke", overrides=both, progress=False, budget=1e-9)
    experiments.run_experiment("own", "smoke", overrides=one, progress=False)
    experiments.run_experiment("own", "smoke", overrides=both, progress=False)
    assert not list(store.folder().rglob("*.resume.npz"))
