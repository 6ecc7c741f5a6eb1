import numpy as np
import pytest

from periodic_lib import Record, Setup, grid, results, train
from periodic_lib.config import ConfigError


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

    monkeypatch.setattr(results.os, "replace", interrupted)
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


def test_the_tidy_table_has_a_row_per_run_and_step(dataset):
    table = results.tidy(dataset, "train_loss", "weight_norm")
    assert len(table) == 4 * 12
    assert {"lr", "init_seed", "step", "train_loss"} <= set(table.columns)
    assert np.isclose(table.train_loss.iloc[0], dataset.train_loss[0, 0])


def test_provenance_is_one_line(dataset):
    line = results.provenance(dataset)
    assert "\n" not in line
    assert "4 runs of 12 steps" in line
