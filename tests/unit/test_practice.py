"""The clock of chapter 09, on runs whose breaks are put where the clock has known values."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from periodic_lib.analysis import practice

LR, WD, STEPS = 0.1, 0.02, 1000


def runs(schedules=("constant", "step", "cosine"), momentum=0.0, length=250):
    """Free decay, and breaks every `length` steps."""
    n = len(schedules)
    norm = np.tile(0.998 ** (np.arange(STEPS) % length), (n, 1))
    variables = {name: (("run", "step"), values) for name, values in (("weight_norm", norm), ("elr", LR / norm**2))}
    for name in ("train_loss", "eff_grad_norm", "angular_update"):
        variables[name] = ("run", "step"), np.full(norm.shape, 0.5)
    places = {"lr": np.full(n, LR), "weight_decay": np.full(n, WD), "momentum": np.full(n, momentum)}
    places |= {"init_seed": np.zeros(n, int), "warmup": np.zeros(n, int), "schedule": np.array(schedules)}
    coordinates = {name: ("run", values) for name, values in places.items()}
    return xr.Dataset(variables, {"run": np.arange(n), "step": np.arange(STEPS)} | coordinates)


def test_free_decay_takes_all_of_a_free_period():
    table = practice.on_the_clock(runs(("constant",)), "lab")
    assert table.median_period.item() == 250
    assert table.decay_time.item() == pytest.approx(250 * 2 * LR * WD)
    assert table.free_decay.item() == pytest.approx(1, abs=0.01)  # the break itself takes a step
    assert table.shortest.item() == pytest.approx(-2 * 249 * np.log(0.998))
    assert practice.on_the_clock(runs(("constant",), 0.5), "m").decay_time.item() == pytest.approx(250 * 4 * LR * WD)


def test_breaks_by_the_clock_are_those_before_its_largest_value():
    by_word = practice.by_what_differs(runs())
    assert list(by_word) == ["laboratory", "step", "cosine"]
    lab, scheduled = by_word["laboratory"], {k: by_word[k] for k in ("step", "cosine")}
    tables = {name: practice.on_the_clock(one, name) for name, one in by_word.items()}
    found = practice.against_the_clock(lab, scheduled, tables).set_index("rung")
    for name, one in scheduled.items():
        rates = practice.learning_rates(one)
        clock = 2 * WD * np.cumsum(rates) + np.log(rates / rates.max())
        assert found.largest_clock[name] == pytest.approx(clock.max())
        assert found.decay_time[name] == pytest.approx(2 * WD * rates.sum())
        expected = sum(2 * LR * WD * step <= clock.max() for step in (249, 499, 749))
        assert found.by_clock[name] == expected
        assert found.off[name] == 3 - expected
    turn = int((2 * WD * np.cumsum(rates) + np.log(rates / rates.max())).argmax())
    assert practice.after_the_turn(scheduled["cosine"]).tolist() == [249 - turn, 499 - turn, 749 - turn]
    assert practice.schedule_table(found.reset_index()).measured.tolist() == ["3 (3 to 3)"] * 2


def test_the_deepest_break_is_the_one_that_raises_the_norm_most():
    one = runs(("constant",))
    one["weight_norm"][:, 750:] *= 3
    assert practice.deepest_breaks(one).tolist() == [0.749]


def test_words():
    tables = {"a": practice.on_the_clock(runs(("constant",)), "a")}
    assert practice.counts(tables) == "a 3"
    row = practice.tabulated(tables, ["destabilizations"]).iloc[0]
    assert row.to_dict() == {"runs": "a", "regimes": "P", "breaks": "3 (3 to 3)"}
    assert practice.at_least(pd.concat(tables.values()), 4) == {"a, seed 0": False}
