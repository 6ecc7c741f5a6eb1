"""The table of what was broken on purpose: at least 200 faults, nothing lost, nothing wrong served; its page."""

import pytest

from periodic_lib.project import ConfigError
from periodic_lib.publishing import faults

ORIGIN = {"date": "2026-11-30", "revision": "abc", "processor": "a processor"}


def outcome(kind, seed, **changed):
    plain = {"kind": kind, "seed": seed, "said": "", "recovery": 1.0 + seed, "lost": [], "wrong": [], "unclear": []}
    return plain | changed


def test_the_kept_table_says_that_nothing_was_lost():
    table = faults.table()
    assert table.seeds.sum() >= 200
    assert (table.survived == table.seeds).all()
    assert not table[["lost", "wrong", "unclear"]].any(axis=None)
    assert table.kind.is_unique
    assert len(table.kind) >= 20
    recovered = table.median_seconds.notna()
    assert recovered.sum() >= 15
    assert (table.median_seconds <= table.largest_seconds)[recovered].all()


def test_a_fault_that_was_not_survived_is_counted_once_and_under_each_complaint():
    rows = [outcome("one", 0), outcome("one", 1, lost=["a", "b"], wrong=["c"]), outcome("two", 0, unclear=["d"])]
    table = faults.summary(rows, **ORIGIN).set_index("kind")
    assert table.loc["one", ["seeds", "survived", "lost", "wrong", "unclear"]].tolist() == [2, 1, 1, 1, 0]
    assert table.loc["two", ["seeds", "survived", "lost", "wrong", "unclear"]].tolist() == [1, 0, 0, 0, 1]
    assert table.loc["one", ["median_seconds", "largest_seconds"]].tolist() == [1.5, 2.0]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("PERIODIC_ROOT", str(tmp_path))
    path = tmp_path / "data" / "faults" / "faults.csv"
    path.parent.mkdir(parents=True)
    return path


def test_the_page_has_a_row_for_each_kind_a_total_and_the_origin(kept):
    rows = [
        outcome("disk full", 0, said="periodic: error: `it` is full."),
        outcome("killed", 0, recovery=float("nan")),
    ]
    kept.write_text(faults.summary(rows, **ORIGIN).to_csv(index=False))
    page = "\n".join(faults.page())
    assert (
        "* - Disk full\n  - 1\n  - 1\n  - 0\n  - 0\n  - 0\n  - 1, at most 1\n  - `` error: `it` is full. ``\n" in page
    )
    assert "* - Killed\n  - 1\n  - 1\n  - 0\n  - 0\n  - 0\n  - \n  - \n" in page
    assert "* - All\n  - 2\n  - 2\n  - 0\n  - 0\n  - 0\n" in page
    assert page.endswith("Measured 2026-11-30, revision abc, a processor.")


@pytest.mark.parametrize("text", ["kind,seeds\na,1\n", "", None])
def test_a_file_that_is_no_such_table_is_refused(kept, text):
    if text is not None:
        kept.write_text(text)
    with pytest.raises(ConfigError, match=r"faults\.csv"):
        faults.table()
