"""What becomes different on the way: the text, and what training does with it."""

import numpy as np
import pytest

from periodic_lib import ConfigError, Record, Run, Setup, train
from periodic_lib.changes import Change, parse_changes
from periodic_lib.project import Unfinished

SETUP = Setup(width=8, depth=2, steps=60, dtype="float64")
BASE = {"lr": 0.1, "weight_decay": 1e-2}
AT = 25


def trained(*changes, setup=SETUP, **options):
    runs = [Run(**BASE, changes=change) for change in changes]
    return train(setup, runs, Record(evaluate_every=None), progress=False, **options)


def test_the_text_is_read():
    assert parse_changes(None) == []
    assert parse_changes("1: lr 2, 1: hold,5:free") == [Change(1, "lr", 2.0), Change(1, "hold"), Change(5, "free")]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "weight_decay"),
        ("25", "25"),
        ("25: nothing", "nothing"),
        ("25: lr", "lr"),
        ("25: lr 0", "positive"),
        ("25: weight_decay -1", "from 0"),
        ("25: elr nan", "positive"),
        ("25: hold 3", "hold 3"),
        ("1.5: hold", "whole number"),
        ("30: hold, 20: free", "order"),
        (7, "7"),
    ],
)
def test_what_cannot_be_read_is_named(text, names):
    with pytest.raises(ConfigError, match="changes") as caught:
        Run(**BASE, changes=text)
    assert names in str(caught.value)


def test_up_to_a_change_a_run_is_the_run_without_it():
    data = trained(None, f"{AT}: weight_decay 0", f"{AT}: lr 0.3", f"{AT}: hold", f"{AT}: elr 0.05")
    base = data.train_loss.values[0]
    for other in data.train_loss.values[1:]:
        np.testing.assert_array_equal(other[:AT], base[:AT])
        assert other[AT] == pytest.approx(base[AT], rel=1e-3)  # of the same direction; epsilon sees the norm
        assert (other[AT + 2 :] != base[AT + 2 :]).all()


def test_what_follows_is_what_was_asked_for():
    free, no_decay, held, moved = trained(
        None, f"{AT}: weight_decay 0", f"{AT}: hold", f"{AT}: elr 0.05, 40: free"
    ).weight_norm.values
    grown = np.diff(no_decay[AT:])
    assert (grown >= 0).all()
    assert (np.diff(free) < 0).any()
    np.testing.assert_allclose(held[AT:], free[AT], rtol=1e-12)
    np.testing.assert_allclose(moved[AT + 1 : 41], np.sqrt(0.1 / 0.05), rtol=1e-12)
    assert np.ptp(moved[41:]) > 1e-3


def test_a_norm_set_on_the_way_is_training_from_the_rescaled_weights():
    """Only the effective learning rate changes: on the sphere this is training at another learning rate."""
    setup = Setup(width=8, depth=2, steps=30, dtype="float64", bn_eps=0, fixed_norm=1.0)
    on_sphere = train(setup, [Run(lr=0.05, weight_decay=0)], Record(evaluate_every=None), progress=False)
    free = Setup(width=8, depth=2, steps=30, dtype="float64", bn_eps=0)
    moved = train(
        free, [Run(lr=0.3, weight_decay=0, changes="0: elr 0.05")], Record(evaluate_every=None), progress=False
    )
    np.testing.assert_allclose(moved.train_loss, on_sphere.train_loss, rtol=1e-8)


def test_stopped_and_taken_up_after_every_step(tmp_path):
    changes = (f"{AT}: hold, 40: free", f"{AT}: lr 0.05")
    whole, stops = trained(*changes), 0
    while True:
        try:
            data = trained(*changes, resume=tmp_path / "state.npz", budget=1e-9)
            break
        except Unfinished:
            stops += 1
    assert stops == SETUP.steps - 1
    np.testing.assert_array_equal(data.weight_norm, whole.weight_norm)
    np.testing.assert_array_equal(data.train_loss, whole.train_loss)
