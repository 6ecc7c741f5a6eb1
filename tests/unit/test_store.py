import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from periodic_lib import Record, Setup, experiments, grid, results, train
from periodic_lib.project import ConfigError
from periodic_lib.storage import index, store, turns

SETUP = Setup(width=8, depth=1, steps=6)
RECORD = Record(evaluate_every=3, layers=True, neurons=True)
RUNS = grid(lr=[0.125, 0.3, 1.0], weight_decay=1e-2, seed=[0, 1])
KEYS = store.run_keys(SETUP, RUNS, RECORD)
OF_MACHINE = ("seconds", "created", "sources", "stack")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Several threads cut sums where the size of the stack says: then numbers are the same to rounding only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(_one_thread):
    return train(SETUP, RUNS, RECORD, progress=False)


def trained(*places):
    return train(SETUP, [RUNS[place] for place in places], RECORD, progress=False)


def assert_same(one, other):
    facts = [{key: value for key, value in data.attrs.items() if key not in OF_MACHINE} for data in (one, other)]
    assert facts[0] == facts[1]
    assert one.drop_attrs().identical(other.drop_attrs())
    assert all(one[name].attrs == other[name].attrs for name in one.variables)
    assert all(one[name].dtype == other[name].dtype for name in one.data_vars)


def test_runs_of_several_stacks_are_one_result_as_if_trained_in_one_go(whole):
    for places in ((4, 1), (0,), (5, 3, 2)):
        store.put(trained(*places))
    assert store.missing(KEYS) == []
    taken = store.take(KEYS)
    assert_same(taken, whole)
    assert len(taken.attrs["sources"].split("; ")) == 3
    some = store.take([KEYS[3], KEYS[0]])
    assert (some.train_loss.values == whole.train_loss.values[[3, 0]]).all()
    assert store.keys_of(some) == [KEYS[3], KEYS[0]]


SHAPES = [
    Setup(width=33, depth=2, steps=2),
    Setup(width=8, depth=1, steps=2, dtype="float64"),
    Setup(network="convnet", width=6, depth=2, steps=2, train_size=40, batch_size=20),
    Setup(network="transformer", dataset="moby_dick", width=16, depth=1, steps=2, train_size=40, batch_size=20),
]


@pytest.mark.parametrize("setup", [SHAPES[0], SHAPES[1], SHAPES[3]], ids=lambda one: f"{one.network}, {one.dtype}")
def test_a_runs_numbers_do_not_depend_on_its_stack(setup):
    """Of 33 and more numbers torch takes vector instructions, of the rest others: `metrics.angle`."""
    runs = grid(lr=[0.1, 0.3, 0.5], weight_decay=[1e-3, 1e-2], seed=range(6))
    whole = train(setup, runs, RECORD, progress=False)
    for places in ([35], range(7), range(3, 36)):
        part = train(setup, [runs[place] for place in places], RECORD, progress=False)
        for name, values in part.data_vars.items():
            np.testing.assert_array_equal(values, whole[name].values[list(places)], name)


def test_a_convolutional_run_has_its_stack_in_its_address():
    setup, other = SHAPES[2], RUNS[1:3]
    pair, alone = store.run_keys(setup, RUNS[:2], RECORD), store.run_key(setup, RUNS[1], RECORD)
    assert len({pair[1], alone, store.run_keys(setup, other, RECORD)[0]}) == 3
    assert store.run_keys(SETUP, RUNS[:1], RECORD) == KEYS[:1]
    both = train(setup, RUNS[:2], RECORD, progress=False)
    assert store.keys_of(both.isel(run=[1])) == pair[1:]
    store.put(both)
    assert (store.take(pair[1:]).train_loss.values == both.train_loss.values[1:]).all()
    assert store.missing([alone]) == [alone]


@pytest.mark.parametrize(
    "other",
    [
        {"setup": Setup(width=8, depth=1, steps=7)},
        {"record": Record(evaluate_every=4)},
        {"data_digest": "x"},
        {"code": "x"},
        {"run": RUNS[1]},
    ],
)
def test_an_address_says_all_that_matters(other):
    same = {"setup": SETUP, "run": RUNS[0], "record": RECORD}
    assert store.run_key(**{**same, **other}) != store.run_key(**same) == KEYS[0]


def test_only_whole_records_are_stored(whole):
    part = whole.isel(step=slice(3))
    with pytest.raises(ConfigError, match="only whole records"):
        store.put(part)
    with pytest.raises(ConfigError, match="only whole records"):
        store.put(whole.assign_attrs(steps_done=3))


def test_nothing_is_written_twice_and_a_damaged_file_is_written_again(whole, capsys):
    path = store.put(whole)
    before = path.stat().st_mtime_ns
    assert store.put(whole) == path
    assert path.stat().st_mtime_ns == before
    path.write_bytes(path.read_bytes()[:1000])
    assert store.missing(KEYS) == KEYS
    store.put(whole)
    assert "Set aside as" in capsys.readouterr().err
    assert store.missing(KEYS) == []
    assert store.describe() == {"files": 1, "runs": 6, "unusable": 0}


def test_a_file_damaged_after_it_was_indexed_is_set_aside_and_its_runs_are_missing(whole):
    path = store.put(whole)
    stamp, content = path.stat().st_mtime_ns, bytearray(path.read_bytes())
    where = content.find(whole.lr.values.tobytes())
    content[where + 3] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stamp, stamp))
    with pytest.raises(results.ResultsError, match="damaged"):
        store.take(KEYS)
    assert store.missing(KEYS) == KEYS
    assert len(list(path.parent.glob("*.damaged-*"))) == 1


INDEX_FAULTS = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(os.urandom(3000)),
    "torn": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "of another version": lambda path: path.write_bytes(path.read_bytes().replace(b'"index": 1', b'"index": 9')),
    "wrong kinds": lambda path: path.write_text('{"index": 1, "path": 3}\n[1]\n3\nnull\n' + "[" * 100_000),
}


@pytest.mark.parametrize("fault", INDEX_FAULTS)
def test_the_index_is_made_again_from_the_files(whole, fault):
    store.put(whole)
    INDEX_FAULTS[fault](store.folder() / index.INDEX)
    assert store.missing(KEYS) == []
    assert len(store.listing()) == 6
    assert store.missing(KEYS) == []  # by the index, now


def test_a_file_that_went_takes_its_runs_with_it(whole):
    store.put(whole).unlink()
    assert store.missing(KEYS) == KEYS
    with pytest.raises(KeyError, match="not stored"):
        store.take(KEYS)


def test_the_listing_shows_and_selects(whole):
    assert store.listing().empty
    path = store.put(whole)
    table = store.listing()
    assert list(table.index) == KEYS
    assert table.lr.tolist() == [run.lr for run in RUNS]
    assert set(table.path) == {str(path)}
    assert table.seconds.sum() == pytest.approx(whole.attrs["seconds"])
    assert table.current.all()
    assert list(store.listing(lr=0.3, init_seed=1).index) == [KEYS[3]]
    assert store.listing(network="convnet").empty
    with pytest.raises(ConfigError, match=r"unknown column 'lrs'.*Did you mean 'lr'"):
        store.listing(lrs=1)


# ---------------------------------------------------------------- experiments that share runs

FILE = """
    small:
      question: Is it small?
      setup: {width: 8, depth: 1, steps: 10}
      record: {evaluate_every: 5}
      profiles:
        smoke: {grid: {lr: [0.1, 0.3], weight_decay: 1e-2, seed: [0, 1]}}
    larger:
      question: Is it larger?
      setup: {width: 8, depth: 1, steps: 10}
      record: {evaluate_every: 5}
      profiles:
        smoke: {grid: {lr: [0.1, 0.3, 1], weight_decay: 1e-2, seed: [0, 1]}}
"""


@pytest.fixture
def home(project_of):
    return project_of(FILE)


def run(name, **more):
    return experiments.run_experiment(name, "smoke", progress=False, **more)


def test_only_runs_that_are_not_stored_are_trained(home, monkeypatch):
    asked, original = [], experiments._trained
    monkeypatch.setattr(experiments, "_trained", lambda *a: asked.append(a[1]) or original(*a))
    run("small")
    shared = run("larger")
    assert [len(runs) for runs in asked] == [4, 2]
    assert {run.lr for run in asked[1]} == {1.0}
    assert experiments.state(experiments.plan("larger", "smoke"))[0] == "ready"
    assert run("larger").identical(shared)
    assert [len(runs) for runs in asked] == [4, 2]
    places = [experiments.plan(name, "smoke").path for name in ("small", "larger")]
    assert experiments.files(experiments.plan("small", "smoke")) == places[:1]
    assert experiments.files(experiments.plan("larger", "smoke")) == [
        places[0],
        *store.folder().rglob("stacks/*/*.nc"),
    ]
    assert_same(run("larger", force=True), shared)
    assert experiments.files(experiments.plan("larger", "smoke")) == places[1:]


def test_a_damaged_file_of_another_experiment_is_no_obstacle(home, capsys):
    run("small")
    before = run("larger")
    path = experiments.plan("small", "smoke").path
    path.write_bytes(path.read_bytes()[:2000])
    assert experiments.state(experiments.plan("larger", "smoke"))[0] == "not made"
    assert_same(run("larger"), before)


def test_a_file_found_damaged_when_it_is_read_is_set_aside_and_made_again(home, capsys):
    run("small")
    before = run("larger")
    path = experiments.plan("small", "smoke").path
    content = bytearray(path.read_bytes())
    content[content.find(before.lr.values[:4].tobytes()) + 3] ^= 1
    old = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert_same(run("larger"), before)
    assert "Set aside as smoke.nc.damaged-" in capsys.readouterr().err


# ---------------------------------------------------------------- two at once

HOLD = """
import sys, time
from periodic_lib.storage import store
with store.claimed(sys.argv[1:], "it") as left:
    print(len(left), flush=True)
    time.sleep(60)
"""


def test_a_killed_process_holds_nothing_and_a_living_one_is_named(capfd):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, "a", "b"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "2\n"
    with store.claimed(["c"]) as left:
        assert left == ["c"]
    waiter = subprocess.Popen([sys.executable, "-c", HOLD, "b"], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    said = ""
    while "waiting" not in said:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        said += capfd.readouterr().err
    assert f"it is being made by process {holder.pid} on" in said
    holder.send_signal(signal.SIGKILL)
    assert waiter.stdout.readline() == "1\n"
    waiter.kill()
    for process in (holder, waiter):
        process.wait()
        process.stdout.close()
    with store.claimed(["a", "b"]) as left:
        assert left == ["a", "b"]
    assert capfd.readouterr().err.count("waiting") == 0
    assert [path.name for path in (store.folder() / turns.CLAIMS).iterdir()] == ["gate.lock"]


def test_a_newer_format_is_refused_and_left_alone_and_an_older_one_is_read(whole, tmp_path, monkeypatch):
    path = tmp_path / "one.nc"
    with monkeypatch.context() as patch:
        patch.setattr(results, "FORMAT", 3)
        results.save(whole, path)
    for read in (results.load, results.attributes):
        with pytest.raises(ConfigError, match=r"is of format 3; this version of the library reads 1 to 2. Update"):
            read(path)
    old = whole.copy()
    old.attrs = {key: value for key, value in whole.attrs.items() if key not in ("data_digest", "stack")}
    packed = old.assign_attrs(sha256=results.checksum(old))
    path.write_bytes(bytes(packed.to_netcdf(engine="h5netcdf")))
    assert results.load(path).identical(old)
    assert store.keys_of(results.load(path)) == KEYS
    assert json.loads(results.load(path).attrs["setup"])["width"] == 8
