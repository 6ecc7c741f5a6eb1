import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

from periodic_lib import Record, Setup, fingerprints, grid, results, train
from periodic_lib.project import ConfigError


@pytest.fixture(scope="module")
def dataset():
    runs = grid(lr=[0.1, 0.3], weight_decay=1e-2, seed=[0, 1])
    return train(Setup(width=8, depth=1, steps=12), runs, Record(evaluate_every=6), progress=False)


def test_what_is_saved_is_what_is_loaded(dataset, tmp_path):
    path = results.save(dataset, tmp_path / "deep" / "one.nc")
    assert results.load(path).identical(dataset)
    assert results.setup_of(results.load(path)) == Setup(width=8, depth=1, steps=12)
    assert [p.name for p in path.parent.iterdir()] == ["one.nc"]


@pytest.mark.parametrize("damage", ["truncated", "one byte", "other file", "empty"])
def test_a_damaged_file_is_noticed(dataset, tmp_path, damage):
    path = results.save(dataset, tmp_path / "one.nc")
    content = bytearray(path.read_bytes())
    if damage == "one byte":  # in the middle of a variable's data
        where = content.find(dataset.lr.values.tobytes())
        content[where + 3] ^= 1
    path.write_bytes(
        {"truncated": content[: len(content) // 2], "other file": b"hello", "empty": b""}.get(damage, content)
    )
    with pytest.raises(results.ResultsError, match="damaged"):
        results.load(path)


def test_a_changed_attribute_is_noticed(dataset, tmp_path):
    assert results.checksum(dataset) != results.checksum(dataset.assign_attrs(seconds=0.0))


def test_a_missing_file_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="periodic run"):
        results.load(tmp_path / "none.nc")


def test_an_interrupted_write_leaves_nothing(dataset, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        results.save(dataset, tmp_path / "one.nc")
    assert list(tmp_path.iterdir()) == []


def test_setting_aside_keeps_the_content(tmp_path):
    path = tmp_path / "one.nc"
    path.write_bytes(b"precious")
    aside = results.set_aside(path)
    assert not path.exists()
    assert aside.read_bytes() == b"precious"
    assert aside.name.startswith("one.nc.damaged-")


def test_selection_is_by_value(dataset):
    assert results.sel(dataset, lr=0.3).sizes["run"] == 2
    assert results.sel(dataset, lr=0.1 + 1e-17, init_seed=1).sizes["run"] == 1
    with pytest.raises(ConfigError, match=r"no run with .*0.2.*\[0.1, 0.3\]"):
        results.sel(dataset, lr=0.2)
    with pytest.raises(ConfigError, match="no `wd`"):
        results.sel(dataset, wd=0.2)


def test_provenance_is_one_line(dataset):
    line = results.provenance(dataset)
    assert "\n" not in line
    assert "4 runs of 12 steps" in line


def test_labels_and_units_are_in_the_checksum(dataset):
    other = dataset.copy()
    other.weight_norm.attrs = {**dataset.weight_norm.attrs, "units": "bits"}
    assert results.checksum(other) != results.checksum(dataset)


def test_a_result_knows_its_classes_and_processor(dataset):
    assert dataset.attrs["classes"] == 10
    assert dataset.attrs["instructions"]


def test_two_files_set_aside_in_one_second_are_both_kept(tmp_path):
    path, kept = tmp_path / "one.nc", []
    for content in (b"first", b"second"):
        path.write_bytes(content)
        kept.append(results.set_aside(path))
    assert [aside.read_bytes() for aside in kept] == [b"first", b"second"]


def test_a_result_that_may_not_be_read_is_not_taken_for_damaged(tmp_path, monkeypatch):
    path = tmp_path / "one.nc"
    path.mkdir()  # what reading says of a folder; root may read everything else
    with pytest.raises(ConfigError, match="cannot be read"):
        results.load(path)


def test_what_a_result_depends_on_follows_from_the_imports():
    found = set(fingerprints.depends_on())
    trained = {"datasets", "networks", "optimizers", "metrics", "stack", "training"}
    assert {"config", *(f"engine.{name}" for name in trained)} <= found
    assert not {"theory", "experiments", "cli"} & found
    assert {name.partition(".")[0] for name in found} <= {"engine", "config", "changes", "checks"}


def test_code_edited_after_import_does_not_relabel_what_runs(tmp_path):
    """A copy of the library, edited between its import and the first digest: the digest is the old code's."""
    copy = tmp_path / "periodic_lib"
    shutil.copytree(Path(results.__file__).parent, copy)
    code = (
        "import pathlib, sys; from periodic_lib import fingerprints; "
        "path = pathlib.Path(fingerprints.__file__).with_name('engine') / 'optimizers.py'; "
        "sys.argv[1] == 'edit' and path.write_text(path.read_text() + chr(10) + 'x = 1'); "
        "print(fingerprints.code_digest())"
    )
    digests = [
        subprocess.run([sys.executable, "-c", code, word], cwd=tmp_path, capture_output=True, text=True, check=True)
        for word in ("leave", "edit", "leave")
    ]
    before, during, after = (done.stdout for done in digests)
    assert before == during != after


def test_joined_results_are_those_of_one_stack(dataset):
    parts = [results.sel(dataset, lr=0.1), results.sel(dataset, lr=0.3).isel(step=slice(10))]
    joined = results.join(*parts, steps=8)
    assert (joined.train_loss.values == dataset.train_loss.values[:, :8]).all()
    assert joined.lr.values.tolist() == dataset.lr.values.tolist()
    assert results.setup_of(joined) == results.setup_of(dataset)
    with pytest.raises(ConfigError, match="the shortest has 10"):
        results.join(*parts, steps=12)


def test_an_interruption_inside_of_compiled_code_is_no_damage(tmp_path, monkeypatch):
    path = results.save(xr.Dataset({"x": ("run", [0.0])}), tmp_path / "one.nc")

    def interrupted(*_):
        raise SystemError("returned a result with an exception set") from KeyboardInterrupt()

    monkeypatch.setattr("periodic_lib.outside.check_hdf5", interrupted)
    with pytest.raises(KeyboardInterrupt):
        results.load(path)
    assert path.exists()
