"""Tasks of reshuffled labels, on records with known answers."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from periodic_lib import Record, Run, Setup, train
from periodic_lib.analysis.plasticity import last_over_first, moved_gains, split_by_break, task_table
from periodic_lib.project import ConfigError


def record(errors, length=100, steps=300, every=20):
    """One run with the errors given at every evaluation, and a norm that breaks at steps 150 and 250."""
    step = np.arange(steps)
    norm = np.exp(-0.01 * ((step - 50) % 100))
    data = {
        "train_error": (("run", "eval_step"), [errors]),
        "weight_norm": (("run", "step"), [norm]),
        "train_loss": (("run", "step"), [np.ones(steps)]),
        "elr": (("run", "step"), [0.1 / norm**2]),
    }
    places = {"run": [4], "step": step, "eval_step": np.arange(0, steps + 1, every)}
    return xr.Dataset(data, places, {"setup": json.dumps(Setup(reshuffle_every=length, steps=steps).to_dict())})


def test_a_task_is_learned_at_the_first_evaluation_in_it_below_the_error():
    errors = np.ones(16)
    errors[5] = 0.0  # step 100: of the labels before the switch
    errors[8] = 0.1  # step 160
    table = task_table(record(errors))
    assert table.task.tolist() == [1, 2]
    assert table.start.tolist() == [100, 200]
    assert table.steps.iloc[0] == 60
    assert np.isnan(table.steps.iloc[1])  # never learned
    assert table.run.tolist() == [4, 4]


def test_a_task_knows_its_rate_and_the_break_before_it():
    table = task_table(record(np.zeros(16)))
    assert table.steps.tolist() == [20, 20]
    assert table.elr.tolist() == pytest.approx([0.1 * np.exp(1.0)] * 2)  # half a period of decay
    assert table.since.iloc[0] == 50  # norm is largest again at step 50
    assert table.since.iloc[1] == 50


def test_other_breaks_can_be_given():
    table = task_table(record(np.zeros(16)), breaks=pd.DataFrame({"run": [4], "end": [130]}))
    assert np.isnan(table.since.iloc[0])
    assert table.since.iloc[1] == 70


def test_results_without_tasks_are_refused():
    plain = train(
        Setup(width=8, depth=1, steps=4), [Run(lr=0.1, weight_decay=0.0)], Record(evaluate_every=2), progress=False
    )
    with pytest.raises(ConfigError, match=r"`results` must have reshuffled labels and evaluations; train with"):
        task_table(plain)


def test_a_trained_record_has_the_steps_of_its_own_evaluations():
    setup = Setup(width=16, depth=1, steps=90, reshuffle_every=30, train_size=40, batch_size=20)
    out = train(setup, [Run(lr=0.3, weight_decay=0.0)], Record(evaluate_every=1), progress=False)
    for row in task_table(out, error=0.5).itertuples():
        inside = out.train_error.sel(run=row.run, eval_step=slice(row.start + 1, row.start + 30))
        low = inside.eval_step.values[inside.values <= 0.5]
        assert (np.isnan(row.steps) and not len(low)) or row.steps == low[0] - row.start


def test_the_last_task_is_compared_with_the_first():
    rows = pd.DataFrame({"run": [0, 0, 1, 1], "task": [1, 2, 1, 2], "steps": [10.0, 30.0, 20.0, np.nan]})
    ratio = last_over_first(rows)
    assert ratio[0] == 3
    assert np.isnan(ratio[1])


def test_tasks_are_split_by_the_steps_since_a_break():
    since, runs = [1.0, 9.0, 2.0, 8.0, np.nan], [0, 0, 1, 1, 1]
    table = pd.DataFrame({"run": runs, "steps": [10.0, 50.0, 20.0, 40.0, 999.0], "elr": 1.0, "since": since})
    halves = split_by_break(table, 0.5, 0.5).steps
    assert (halves.late - halves.soon).tolist() == [40, 20]
    alone = split_by_break(table[table.run == 0].assign(run=[0, 7]), 0.5, 0.5)
    assert not len(alone)  # no run with both


def test_moved_breaks_give_a_gain_for_every_try():
    errors = np.ones((4, 51))
    errors[:, 3::5] = 0  # every task learned after 30 to 60 steps
    one = [record(row, steps=1000) for row in errors]
    runs = xr.concat([each.assign_coords(run=[i]) for i, each in enumerate(one)], "run")
    gains = moved_gains(runs, tries=3)
    assert gains.index.names == ["try", "run"]
    assert (gains == 0).all()  # each task takes as long: nothing to gain
