"""Files from strangers: loading them runs no code, and takes no memory that they only claim to need.

The hostile files are made here. Each is read in a child process that says what came of it and by how much its
peak of memory grew.
"""

import base64
import io
import json
import os
import pickle
import random
import subprocess
import sys
import tracemalloc
import zipfile
import zlib

import h5py
import numpy as np
import pytest

from periodic_lib import Record, Run, Setup, cli, experiments, outside, project, results, train
from periodic_lib.engine.stack import Stack
from periodic_lib.project import ConfigError
from periodic_lib.publishing import notebooks
from periodic_lib.teaching import answers

MEGABYTES = 60  # that reading a refused file may take at its peak


class Bomb:
    """What a pickle can hold: code that runs when it is loaded."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


# ---------------------------------------------------------------- hostile .npz files


def npy(values):
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def npy_header(text):
    text = text.encode() + b" " * (117 - len(text) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def zipped(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def says_large(path):  # its directory says 40 GB
    zipped(path, {"x_train.npy": npy(np.zeros(8))})
    content = bytearray(path.read_bytes())
    where = content.find(b"PK\x01\x02") + 24
    content[where : where + 4] = (0xFFFFFFF0).to_bytes(4, "little")
    path.write_bytes(content * 1)


def shape_of(text, descr="<f8"):
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {text}, }}"
    return lambda path: zipped(path, {"x_train.npy": npy_header(header) + bytes(64)})


def with_pickle(path):
    pickled = npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }")
    zipped(path, {"x_train.npy": pickled + pickle.dumps(Bomb(path.with_name("ran")))})


def encrypted(path):
    zipped(path, {"x_train.npy": npy(np.zeros(8))})
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.find(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


NPZ = {
    "a directory that says 4 GB of a few bytes": says_large,
    "an array that says 8 TB": shape_of("(1000000000000,)"),
    "sizes whose product overflows": shape_of("(4294967296, 4294967296)"),
    "a negative size": shape_of("(-1,)"),
    "a header that is code": shape_of("(__import__('os').getpid(),)"),
    "a header of 60,000 brackets": shape_of("(" * 60_000),
    "a dtype of records of objects": shape_of("(1,)", [("a", "|O")]),
    "a pickle": with_pickle,
    "an encrypted member": encrypted,
    "a member packed by lzma": lambda path: zipped(path, {"x_train.npy": npy(np.zeros(9))}, zipfile.ZIP_LZMA),
    "2,000 members": lambda path: zipped(path, {f"a{i}.npy": b"" for i in range(2000)}),
    "a member that is no array": lambda path: zipped(path, {"x_train.npy": b"hello"}),
    "a member cut short": lambda path: zipped(path, {"x_train.npy": npy(np.zeros(900))[:-5]}),
    "no zip file": lambda path: path.write_bytes(b"PK hello"),
}


# ---------------------------------------------------------------- hostile result files


def hdf5(make):
    def write(path):
        with h5py.File(path, "w") as file:
            file.attrs["sha256"] = "x"
            make(file)

    return write


def virtual(file):
    layout = h5py.VirtualLayout(shape=(4,), dtype="f8")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=(4,))
    file.create_virtual_dataset("x", layout)


def external(file):
    file.create_dataset("x", (16,), "u1", external=[("/etc/passwd", 0, 16)])


def many_attributes(file):
    for number in range(1500):
        file.attrs[f"a{number}"] = 1


def many_variables(file):
    for number in range(1500):
        file[f"a{number}"] = 1


HDF5 = {
    "8 TB of nothing": hdf5(lambda file: file.create_dataset("x", (10**12,), "f8", chunks=(1024,))),
    "2 GB in a few kB": hdf5(lambda file: file.create_dataset("x", (2**28,), "f8", chunks=(2**20,), compression=9)),
    "a chunk of 3 GB": hdf5(lambda file: file.create_dataset("x", (1,), "u1", maxshape=(None,), chunks=(3 * 10**9,))),
    "a text of 1 GB": hdf5(lambda file: file.create_dataset("x", (1,), "S1000000000", chunks=(1,))),
    "texts of 20 MB": hdf5(lambda file: file.create_dataset("x", data=["a" * 10**6] * 20, dtype=h5py.string_dtype())),
    "a link to another file": hdf5(lambda file: file.__setitem__("x", h5py.ExternalLink("/etc/passwd", "x"))),
    "a link to itself": hdf5(lambda file: file.__setitem__("x", h5py.SoftLink("/x"))),
    "values in other files, virtually": hdf5(virtual),
    "values in other files": hdf5(external),
    "a group": hdf5(lambda file: file.create_group("x").create_group("y")),
    "a group in itself": hdf5(lambda file: file.create_group("x").__setitem__("x", file)),
    "a compound type": hdf5(lambda file: file.create_dataset("x", (2,), [("a", "f8"), ("b", "i4")])),
    "references": hdf5(lambda file: file.create_dataset("x", (2,), h5py.ref_dtype)),
    "lists of numbers": hdf5(lambda file: file.create_dataset("x", (2,), h5py.vlen_dtype("f8"))),
    "opaque bytes": hdf5(lambda file: file.create_dataset("x", data=np.void(b"hello"))),
    "a filter that is no usual one": hdf5(lambda file: file.create_dataset("x", (9,), "f8", compression="lzf")),
    "an attribute of many values": hdf5(lambda file: file.attrs.create("a", [0] * 60_000, dtype="u1")),
    "an attribute of many texts": hdf5(lambda file: file.attrs.create("a", ["x"] * 100, dtype=h5py.string_dtype())),
    "1,500 attributes": hdf5(many_attributes),
    "1,500 variables": hdf5(many_variables),
    "no values at all": hdf5(lambda file: file.create_dataset("x", data=h5py.Empty("f8"))),
    "no HDF5 file": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500)),
    "an endless file": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": os.mkfifo,
    "a hole of 1 TB": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 2**40),
}

# ---------------------------------------------------------------- hostile YAML and notebooks

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
YAML = {
    "a billion laughs": LAUGHS,
    "a billion laughs, merged": LAUGHS.replace("x, x", "{b: 1}, x") + "m: {<<: *a11}\n",
    "an alias of itself": "a: &a [*a]\n",
    "200,000 brackets": "a: " + "[" * 200_000,
    "200,000 braces": "{a: " * 200_000,
    "3,000 indents": "".join(f"{' ' * i}a:\n" for i in range(3000)),
    "200,000 values": "a: [" + "1," * 200_000 + "]",
    "10 MB of text": "a: " + "x" * 10**7,
    "Python code": "a: !!python/object/apply:os.mkdir [MARKER]",
    "a Python name": "a: !!python/name:os.system",
    "a Python module": "a: !!python/module:antigravity",
    "5,000 digits": "a: " + "1" * 5000,
    "a day that is none": "a: !!timestamp 2001-99-99",
    "a list as a name": "? [a, b]\n: 1",
    "a mapping as a name": "? {a: b}\n: 1",
    "a NUL": "a: \0",
    "no text": "\ud800",
    "a tab": "a:\n\t- b",
    "not closed": "a: {b",
    "not a mapping": "- a",
}
NOTEBOOKS = {
    "100,000 brackets": "[" * 100_000,
    "no cells": "{}",
    "a list": "[]",
    "cells that are numbers": '{"cells": [1, 2]}',
    "a source that is a number": '{"cells": [{"cell_type": "code", "source": 3}]}',
    "5,000 digits": '{"cells": [' + "1" * 5000 + "]}",
    "no text": "\ud800",
}

READ = """
import json, resource, sys, time
from pathlib import Path
import numpy as np, xarray, h5netcdf, h5py, psutil, yaml
from periodic_lib import outside, results
from periodic_lib.engine import sources
from periodic_lib.publishing import notebooks

readers = {"npz": lambda path: sources.read(str(path)), "nc": results.load}
readers |= {"yml": outside.read_yaml, "ipynb": notebooks.read}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
for path in map(Path, sys.argv[1:]):
    before, started = peak(), time.perf_counter()
    try:
        readers[path.suffix[1:]](path)
        said = "accepted"
    except (outside.ConfigError, results.ResultsError, FileNotFoundError) as error:
        said = str(error)
    except BaseException as error:
        said = f"{type(error).__name__}\\nunclear"
    facts = {"file": path.name, "said": said, "grown": peak() - before, "seconds": time.perf_counter() - started}
    print(json.dumps(facts), flush=True)
"""


def write_text(text):
    return lambda path: path.write_bytes(
        text.replace("MARKER", str(path.with_name("ran"))).encode(errors="surrogatepass")
    )


HOSTILE = {(name, ".npz"): make for name, make in NPZ.items()}
HOSTILE |= {(name, ".nc"): make for name, make in HDF5.items()}
HOSTILE |= {(name, ".yml"): write_text(text) for name, text in YAML.items()}
HOSTILE |= {(name, ".ipynb"): write_text(text) for name, text in NOTEBOOKS.items()}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What came of every hostile file: name -> message, growth of the peak in MB, seconds."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = []
    for number, ((_, suffix), make) in enumerate(HOSTILE.items()):
        paths.append(folder / f"{number}{suffix}")
        make(paths[-1])
    command = [sys.executable, "-c", READ, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-500:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert not (folder / "ran").exists()  # no code ran
    return dict(zip(HOSTILE, found, strict=True))


@pytest.mark.parametrize("which", HOSTILE, ids=lambda which: f"{which[1]}: {which[0]}")
def test_a_hostile_file_is_refused_in_one_line_before_memory_is_taken(which, outcomes):
    said = outcomes[which]
    assert said["said"] != "accepted"
    assert "\n" not in said["said"], said
    assert len(said["said"]) < 600
    assert said["grown"] < MEGABYTES, said
    assert said["seconds"] < 20


def test_a_damaged_or_hostile_result_beside_good_ones_is_no_obstacle_for_the_index(tmp_path):
    from periodic_lib.storage import store

    good = train(Setup(width=8, depth=1, steps=3), [Run(0.1, 1e-2)], progress=False)
    store.put(good)
    for number, make in enumerate(HDF5.values()):
        make(store.folder() / f"{number}.nc")
    deep = good.assign_attrs(setup="[" * 100_000)
    results.save(deep, store.folder() / "deep.nc")
    assert store.missing(store.keys_of(good)) == []
    assert store.describe()["runs"] == 1


def test_a_bomb_in_the_place_of_a_state_is_not_unpacked(tmp_path, capsys):
    path, setup = tmp_path / "state.npz", Setup(width=8, depth=1, steps=2)
    zipped(path, {"key.npy": npy(np.array("x")), "state_weights.npy": npy(np.zeros(40_000_000))})
    tracemalloc.start()
    train(setup, [Run(0.1, 0)], Record(evaluate_every=None), resume=path, progress=False)
    assert tracemalloc.get_traced_memory()[1] < MEGABYTES * 2**20
    tracemalloc.stop()
    assert "training starts anew" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [{"state_weights": np.zeros((9, 9))}, {"table_step": np.zeros(3)}, {"state_weights": None}]
)
def test_a_forged_state_with_the_right_checksum_is_one_line(tmp_path, change, monkeypatch):
    path, how = tmp_path / "state.npz", {"resume": tmp_path / "state.npz", "progress": False}
    job = Setup(width=8, depth=1, steps=3000), [Run(0.1, 0)], Record(evaluate_every=None)
    with pytest.raises(project.Unfinished):
        train(*job, budget=1e-6, **how)
    content = outside.read_npz(path, 10**9)
    key, _ = content.pop("key"), content.pop("sha256")
    content |= {name: value for name, value in change.items() if value is not None}
    content = {name: value for name, value in content.items() if change.get(name, value) is not None}
    np.savez(path, key=key, sha256=project.digest_of_arrays(content), **content)
    with pytest.raises(ConfigError, match="does not fit this training"):
        train(*job, **how)


def test_a_notebook_is_executed_on_request_only(tmp_path, monkeypatch):
    """Reading, checking and writing leave code as text."""
    marker = tmp_path / "ran"
    code = {
        "cell_type": "code",
        "metadata": {"tags": ["parameters"]},
        "source": f"profile = 1\nopen({str(marker)!r}, 'w')",
    }
    path = tmp_path / "strangers.ipynb"
    path.write_text(json.dumps({"cells": [code], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    notebooks.check_parameters(path, ["profile"])
    notebooks.write(notebooks.read(path), path)
    assert not marker.exists()


def test_an_answer_key_that_is_a_bomb_is_refused():
    bomb = base64.b64encode(zlib.compress(b"[" + b"1," * 50_000_000 + b"1]", 9)).decode()
    tracemalloc.start()
    with pytest.raises(ConfigError, match="damaged"):
        answers.Key.read(bomb)
    assert tracemalloc.get_traced_memory()[1] < MEGABYTES * 2**20
    tracemalloc.stop()


# ---------------------------------------------------------------- memory is asked for before it is taken


@pytest.mark.parametrize(
    ("setup", "record", "words"),
    [
        (
            Setup(steps=20_000, width=512, depth=6),
            Record(neurons=True),
            ["the record", "Set neurons: false; it takes"],
        ),
        (Setup(steps=10**9, width=8), Record(layers=True), ["the record", "Set every: "]),
        (Setup(steps=10, width=10**6), Record(), ["networks of", "weights", "Take a smaller `width`"]),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_made(setup, record, words, monkeypatch):
    monkeypatch.setattr(outside, "available_memory", lambda: 4 * 10**9)
    runs = [Run(0.1, 1e-2, init_seed=seed) for seed in range(64 if setup.width < 10**6 else 1)]
    with pytest.raises(ConfigError) as caught:
        train(setup, runs, record, progress=False)
    assert all(word in str(caught.value) for word in ["GB of memory", *words]), caught.value


# ---------------------------------------------------------------- drawn at random: one line each, or accepted

FILE = """
small:
  chapter: 01_scale_invariance
  question: Is it small?
  setup: {width: 8, depth: 1, steps: 3, batch_size: 32}
  vary: {width: [4]}
  record: {evaluate_every: 5}
  grid: {lr: [0.1], weight_decay: 1e-2}
  profiles:
    smoke: {minutes: 1, setup: {steps: 2}}
"""
WORDS = [
    *("", "null", "true", "-1", "0", "1e30", "1e-320", "1e400", "-0.0", ".inf", ".nan", "9" * 5000, "0x10", "010"),
    *("1:30", "2001-99-99", "2001-01-01 99:00:00", "0b_", "[]", "[[]]", "[1, [2]]", "{a: 1}", "[1, a]", "!!int x"),
    *("!!float abc", "!!binary x", "!!python/name:os.system", "&a [*a]", "*b", "'", '"\\ud800"', "x" * 3000, "\0"),
    *("../../x.npz", "/dev/zero.npz", "~nobody/x.npz", "é", "1e3", "1_000", "sgd", "convnet", "[3, 3]", "- a", "a: b"),
]


@pytest.fixture
def home(project_of):
    return project_of(FILE)


class Trains(Exception):
    pass


PARAMETERS = [*Setup.names(), *Run.names(), *Record.names(), "seed", "nothing", ""]


@pytest.mark.parametrize("seed", range(7))
def test_any_value_of_set_is_one_line_or_accepted(home, monkeypatch, capsys, seed):
    """252 values at random."""

    def trains(*_):
        raise Trains

    monkeypatch.setattr(Stack, "step", trains)
    monkeypatch.setattr(outside, "available_memory", lambda: 4 * 10**9)
    draw, accepted = random.Random(seed), 0
    for _ in range(36):
        assignment = f"{draw.choice(PARAMETERS)}={draw.choice(WORDS)}"
        try:
            status = cli.main(["run", "small", "--profile", "smoke", "--set", assignment])
        except Trains:
            accepted += 1
            capsys.readouterr()  # the progress bar
            continue
        err = capsys.readouterr().err
        assert status == 2, assignment
        assert err.count("\n") == 1, (assignment, err)
        assert err.startswith("periodic: error: "), (assignment, err)
        assert len(err) < 2500, assignment
    assert accepted < 36


NODES = ["small", "01_scale_invariance", "Is it small?", "8", "{width: [4]}", "[4]", "{evaluate_every: 5}", "smoke"]
NODES += ["{lr: [0.1], weight_decay: 1e-2}", "[0.1]", "1e-2", "{minutes: 1, setup: {steps: 2}}", "minutes: 1", "setup"]
NAMES = ["..", "a/b", "../../../x", "1", "~", ".a", "a" * 200]


@pytest.mark.parametrize("seed", range(6))
def test_any_experiments_file_is_one_line_or_accepted(home, seed, capsys):
    """78 files at random: a value or a name in one that is right is replaced, cut off or doubled."""
    draw = random.Random(seed)
    for _ in range(13):
        node, word = draw.choice(NODES), draw.choice(WORDS + NAMES)
        text = FILE.replace(node, draw.choice([word, word, node + word, f"[{node}]"]), 1)
        text = text[: draw.randrange(len(text))] if draw.random() < 0.15 else text
        path = home / "book" / "experiments.yml"
        path.write_bytes(text.encode(errors="surrogatepass"))
        status = cli.main(["run", "--list"])
        err = capsys.readouterr().err
        assert status in (0, 2), text
        assert err.count("\n") == (status == 2), (text, err)
        assert len(err) < 2500
        if status == 0:
            for name in experiments.declared():
                assert experiments.store.folder() in (experiments.store.folder() / name).resolve().parents


def arrays(draw):
    """Return own data of which one array is wrong in some way, or none is."""
    rng = np.random.default_rng(draw.randrange(10**6))
    found = {f"x_{part}": rng.normal(size=(12, 6)) for part in ("train", "test")}
    found |= {f"y_{part}": np.arange(12) % 3 for part in ("train", "test")}
    name = draw.choice(list(found))
    values = found[name]
    wrong = [
        *(values[:0], values[:5], values.astype(str), values.astype(complex), values.astype("M8[s]"), values > 0),
        *(values[None, None, None], values.astype(np.uint64) - 5, values.astype(np.float16), values * 1e200),
        *(values * 1e-200, values * np.nan, np.full_like(values, 7), values + 10**9, values.astype(bytes), values * 0),
        *(np.float64(3), np.zeros((12, 4, 4, 2)), np.zeros((12, 0)), values.astype(np.longdouble) * 1e39),
    ]
    found[name] = draw.choice(wrong)
    if draw.random() < 0.1:
        found.pop(draw.choice(list(found)))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_any_own_data_are_one_line_or_finite(tmp_path, seed):
    """53 and more files at random: wrong arrays, and bytes changed in the file."""
    from periodic_lib.engine import datasets

    draw, path = random.Random(seed), tmp_path / "mine.npz"
    for _ in range(11):
        np.savez_compressed(path, **arrays(draw))
        if draw.random() < 0.4:
            content = bytearray(path.read_bytes())
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            path.write_bytes(content)
        said = ""
        try:
            data = datasets.load(Setup(dataset=str(path), batch_size=4))
            finite = np.isfinite(data.x_train.numpy()).all() and np.isfinite(data.x_test.numpy()).all()
        except ConfigError as error:
            said, finite = str(error), True
        assert finite
        assert "\n" not in said
        assert len(said) < 1000


def test_the_hostile_files_are_made_as_they_are_meant(tmp_path):
    """Read without limits, the pickle does run code, and the bomb does unpack."""
    with_pickle(tmp_path / "p.npz")
    with zipfile.ZipFile(tmp_path / "p.npz") as archive:
        np.lib.format.read_array(archive.open("x_train.npy"), allow_pickle=True)
    assert (tmp_path / "ran").is_dir()
    HDF5["2 GB in a few kB"](tmp_path / "b.nc")
    with h5py.File(tmp_path / "b.nc") as file:
        assert file["x"].nbytes == 2**31
    assert (tmp_path / "b.nc").stat().st_size < 20_000
