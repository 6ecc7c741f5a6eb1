"""Controls: two counts, seed by seed, against cases with a known answer."""

import numpy as np
import pandas as pd
import xarray as xr

from periodic_lib.analysis import controls


def result(loss, norm=None, **coordinates):
    loss = np.atleast_2d(loss)
    steps = np.arange(loss.shape[1])
    norm = np.exp(-1e-3 * (steps % 1000)) if norm is None else norm
    norm = np.broadcast_to(norm, loss.shape)
    values = {
        "train_loss": loss,
        "weight_norm": norm,
        "elr": 0.1 / norm**2,
        "angular_update": np.full(loss.shape, 1e-3),
    }
    data = xr.Dataset({n: (("run", "step"), v) for n, v in values.items()})
    data = data.assign_coords(run=np.arange(len(loss)), step=steps).assign_attrs(steps_per_epoch=1, setup="{}")
    rates = {"lr": np.full(len(loss), 0.1), "weight_decay": np.full(len(loss), 1e-2), "init_seed": 3 + data.run.values}
    return data.assign_coords({n: ("run", v) for n, v in (rates | coordinates).items()})


def test_excursions_count_from_a_step_on():
    loss = np.full(4000, 1e-3)
    loss[[999, 1999, 2999]] = 1
    found = controls.judge(result(loss))
    assert found.index.tolist() == [3]
    assert found.excursions.tolist() == [3]
    assert found.destabilizations.tolist() == [3]
    assert found.steps.tolist() == [4000]
    assert controls.judge(result(loss), since=1999).excursions.tolist() == [2]


def test_what_a_change_did_is_counted_from_its_step():
    loss = np.full((2, 4000), 1e-3)
    loss[0, [999, 2020, 2600, 3500]] = 1
    text = ["900: elr 0.1, 2000: hold", "2000: weight_decay 0"]
    found = controls.after_change(result(loss, changes=text), within=1000)
    assert found.what.tolist() == ["hold", "weight_decay"]
    assert found.step.tolist() == [2000, 2000]
    assert found.excursions.tolist() == [2, 0]
    assert found.delay[0] == 20
    assert np.isnan(found.delay[1])


def table(breaks, excursions, lowest=1e-3):
    columns = {"destabilizations": breaks, "excursions": excursions, "lowest": lowest, "late_loss": 1e-2}
    return pd.DataFrame(columns | {"steps": 5000, "error": 0.02}, index=[0, 1])


JUDGED = {"usual": table([9, 7], [20, 20]), "held": table([0, 0], [2, 2]), "bad": table([0, 1], [0, 0], [1e-2, 1e-2])}


def test_quiet_is_no_break_few_excursions_and_something_to_take_away():
    found = controls.quiet(JUDGED, ["held"], "usual", share=0.1, breaks=8)
    assert found == {"held, seed 0": True, "held, seed 1": False}
    assert controls.quiet(JUDGED, ["bad"], "usual", share=0.1, breaks=1) == {"bad, seed 0": True, "bad, seed 1": False}


def test_lifted_is_no_break_at_a_higher_loss():
    assert list(controls.lifted(JUDGED, ["held", "bad"], "usual", 5).values()) == [False, False, True, False]


def test_the_overview_has_rates_per_ten_thousand_steps():
    found = controls.overview(JUDGED).set_index("control")
    assert found.loc["usual", "breaks"] == "16 (14 to 18)"
    assert found.loc["held", "breaks"] == "0"
    assert found.loc["bad", "test error"] == "2.0%"
    assert controls.counted(JUDGED, "held") == "held: 0 breaks, 2 excursions"
