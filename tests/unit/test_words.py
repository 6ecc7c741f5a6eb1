import numpy as np
import pandas as pd
import pytest

from periodic_lib.analysis import words

RUNS = pd.DataFrame(
    {
        "lr": [1.0, 1.0, 0.1, 0.1],
        "seed": [0, 1, 0, 1],
        "loss": [3.0, 1.0, 0.25, 0.75],
        "regime": ["periodic", "convergence", "periodic", "periodic"],
    }
)


def test_each_row_is_told_by_name_and_by_place():
    by_hand = [f"lr {lr:g}, seed {seed}: {loss:.2f}" for lr, seed, loss, _ in RUNS.values]
    assert words.each(RUNS, "lr {lr:g}, seed {seed}: {loss:.2f}") == by_hand
    indexed = RUNS.set_index(["lr", "seed"]).loss
    assert words.each(indexed, "lr {:g}, seed {}: {:.2f}") == by_hand
    assert words.each(indexed.rename(None), "{value:g}") == ["3", "1", "0.25", "0.75"]
    assert words.listed({"a": True, "b": None}, "{} {}", "; ") == "a True; b None"
    assert words.listed({}, "{}") == ""
    with pytest.raises(KeyError):
        words.each(RUNS, "{no_such_column}")


def test_outcomes_are_plain_and_in_order():
    met = RUNS.set_index(["lr", "seed"]).loss < 1
    found = words.outcomes(met, "{:g}, {}")
    assert found == {"1, 0": False, "1, 1": False, "0.1, 0": True, "0.1, 1": True}
    assert all(type(value) is bool for value in found.values())
    assert words.outcomes(np.array([True] * 4), "{lr:g}, {seed}", RUNS) == dict.fromkeys(found, True)


def test_no_outcome_is_a_failure_and_as_many_rows_are_needed():
    assert words.outcomes(RUNS.loss[:0] < 1, "{}") == {"none": False}
    with pytest.raises(ValueError, match="zip"):
        words.outcomes([True], "{lr:g}", RUNS)


def test_groups_are_told_column_by_column():
    forms = {"loss": ".2f", "regime": "words", "seed": "max"}
    found = words.by_group(RUNS, "lr", forms)
    assert list(found) == ["lr", *forms]
    assert found.values.tolist() == [
        [0.1, "0.50 (0.25 to 0.75)", "periodic", 1],
        [1.0, "2.00 (1.00 to 3.00)", "convergence, periodic", 1],
    ]
    assert words.by_group(RUNS, "lr", forms, sort=False).lr.tolist() == [1.0, 0.1]
    none = words.by_group(RUNS.assign(loss=np.nan), ["lr", "regime"], {"loss": ".2f"})
    assert none.loss.tolist() == ["–"] * 3
