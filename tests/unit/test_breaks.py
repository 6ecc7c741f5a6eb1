"""What happens around a break, against cases with a known answer, brute force, and an identity."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from periodic_lib import find_destabilizations, find_periods
from periodic_lib.analysis import anatomy
from periodic_lib.analysis import breaks as around_breaks
from periodic_lib.analysis.anatomy import cosine_distance
from periodic_lib.analysis.breaks import around, first_above, hazard, moved, quiet_steps, rank
from periodic_lib.theory.toys import SphereToy

RNG = np.random.default_rng(0)


def quantity(values, runs=None):
    values = np.atleast_2d(values)
    rows = {"run": np.arange(len(values)) if runs is None else runs, "step": np.arange(values.shape[1])}
    return xr.DataArray(values, rows, ("run", "step"))


def table(*rows):
    return pd.DataFrame(rows, columns=["run", "start", "end"])


@pytest.fixture(scope="module")
def orbit():
    return SphereToy(1e-2, seed=np.arange(2)).run(3000)


# ---------------------------------------------------------------- when


def test_values_around_events_are_those_of_a_loop():
    values, events = quantity(RNG.normal(size=(2, 50)), runs=[4, 7]), table((7, 1, 2), (4, 48, 49))
    found = around(values, events, range(-3, 4))
    for event, (run, start) in enumerate([(7, 1), (4, 48)]):
        for place, shift in enumerate(range(-3, 4)):
            at = start + shift
            one = float(found[event, place])
            assert np.isnan(one) if not 0 <= at < 50 else one == float(values.sel(run=run, step=at))


@pytest.mark.parametrize("stay", [1, 2, 4])
def test_the_first_crossing_is_that_of_a_loop(stay):
    values = xr.DataArray(RNG.normal(size=(40, 12)), {"shift": np.arange(-5, 7)}, ("event", "shift"))
    found = first_above(values, 0.2, stay).values
    for row, one in zip(values.values, found, strict=True):
        begins = [i for i in range(12 - stay + 1) if (row[i : i + stay] > 0.2).all()]
        assert np.isnan(one) if not begins else one == begins[0] - 5


def test_take_off_is_where_a_quantity_leaves_its_quiet_steps():
    values = RNG.uniform(0, 1, 200)
    values[97:] = 5
    assert around_breaks.take_off(quantity(values), table((0, 100, 110)), range(-10, 11)).item() == -3


def test_quiet_steps_are_all_but_those_near_a_break():
    values = quantity(np.zeros((2, 30)))
    found = quiet_steps(values.to_dataset(name="x"), table((1, 10, 14)), margin=3)
    assert found.start[found.run == 0].tolist() == list(range(30))
    assert found.start[found.run == 1].tolist() == [t for t in range(30) if not 7 <= t < 17]


def test_the_last_measurement_is_one_before_the_break():
    values = xr.DataArray([[1.0, 2.0, 3.0]], {"run": [0], "curvature_step": [0, 10, 20]}, ("run", "curvature_step"))
    events = table((0, 10, 12), (0, 11, 13), (0, 20, 21), (0, 99, 100))
    assert around_breaks.last_before(values, events).tolist() == [1, 2, 2, 3]


def test_a_rule_is_met_at_breaks_and_seldom_in_quiet_steps():
    values = np.full((2, 400), 0.2)
    values[:, 100:104] = 5  # at the break
    values[1, 300:302] = 5  # in the quiet part, too short to stay
    found = around_breaks.marks(quantity(values), table((0, 101, 104), (1, 101, 104)), 30, level=1, within=5, stay=3)
    assert found.breaks.tolist() == [1, 1]
    assert found.quiet.tolist() == [0, 0]


def test_shares_of_the_edges_are_half_the_product_with_the_sharpness():
    data = quantity(np.full((1, 6), 0.1)).to_dataset(name="elr")
    data = data.assign(batch_sharpness=quantity(np.arange(6.0)))
    data["sharpness"] = (("run", "curvature_step"), [[4.0, 8.0, 9.0]])
    data = data.assign_coords(curvature_step=[0, 3, 6])
    assert around_breaks.batch_edge_share(data).values[0] == pytest.approx(0.05 * np.arange(6))
    full = around_breaks.full_edge_share(data)
    assert full.values[0] == pytest.approx([0.2, 0.4])
    assert full.curvature_step.values.tolist() == [0, 3]


# ---------------------------------------------------------------- announced


def test_the_hazard_counts_the_steps_before_every_break():
    values, events = quantity(np.tile(np.arange(100.0), (2, 1))), table((0, 40, 45), (1, 60, 70), (1, 95, 99))
    rows = hazard({"t": values}, events, ahead=5, begin=10)
    assert set(rows.t[rows.comes]) == {*range(35, 40), *range(55, 60), *range(90, 95)}
    assert rows.comes.sum() == 15
    assert len(rows) == 2 * (95 - 10) - 5 - 10
    assert rows.stretch.nunique() == 4
    assert hazard({"t": values}, events, 5, steps=[37, 50]).t.tolist() == [37, 50, 37, 50]


def test_the_area_is_the_share_of_pairs_and_a_perfect_warning_has_area_one():
    count = np.arange(2000) % 100
    events = table(*((0, t, t + 1) for t in range(100, 2000, 100)))
    scores = {"warns": quantity(count), "noise": quantity(RNG.normal(size=2000).round(1))}
    rows = hazard(scores, events, ahead=10)
    found = rank(rows, scores, draws=100)
    yes, no = rows.noise[rows.comes].to_numpy()[:, None], rows.noise[~rows.comes].to_numpy()
    assert found.auc["noise"] == pytest.approx((yes > no).mean() + (yes == no).mean() / 2)
    assert found.auc["warns"] == 1
    assert found.low["noise"] < 0.5 < found.high["noise"]
    assert found.ahead["noise"] == pytest.approx(1 - found.auc["noise"])
    assert found.ahead_low["noise"] > 0.2


def test_without_a_break_the_area_is_unknown():
    found = rank(hazard({"x": quantity(np.zeros(50))}, table(), ahead=5), ["x"])
    assert found.isna().all(axis=None)


def test_moved_breaks_keep_number_and_lengths_and_lose_what_announced_them():
    values = quantity(np.tile(np.arange(3000) % 100, (3, 1)))
    events = table(*((run, t, t + 4) for run in range(3) for t in range(100, 3000, 100)))
    wrong = moved(events, values.to_dataset(name="x"), seed=1)
    assert (wrong.end - wrong.start == 4).all()
    assert wrong.groupby("run").size().tolist() == [29] * 3
    assert (np.diff(np.sort(wrong.start[wrong.run == 0])) % 100 == 0).all()
    areas = [
        rank(hazard({"t": values}, moved(events, values.to_dataset(name="x"), seed), 10), ["t"], draws=2).auc["t"]
        for seed in range(20)
    ]
    assert abs(np.mean(areas) - 0.5) < 0.15


def test_a_warning_is_one_at_the_right_times_only():
    count = quantity(np.tile(np.arange(1000) % 100, (3, 1)))
    events = table(*((run, t, t + 1) for run in range(3) for t in range(100, 1000, 100)))
    found = around_breaks.warning({"count": count}, events, ahead=10, begin=0)
    assert found.auc["count"] == 1
    assert 0.3 < found.null["count"] < 0.7


# ---------------------------------------------------------------- periods


def test_the_growth_of_the_phases_closes_the_log_norm_budget(orbit):
    counted = anatomy.phase_table(orbit)
    periods = find_periods(orbit)
    assert len(periods) > 3
    growth = counted.groupby(["run", "start"]).growth.sum()
    decay = np.log1p(-1e-2)
    for p in periods.itertuples():
        norm = orbit.weight_norm.sel(run=p.run)
        change = 2 * float(np.log(norm.sel(step=p.end) / norm.sel(step=p.start)))
        assert growth[p.run, p.start] + 2 * p.length * decay == pytest.approx(change, abs=1e-6)
    assert counted.groupby(["run", "start"]).steps.sum().tolist() == periods.length.tolist()
    assert counted.groupby(["run", "start"])["share"].sum().to_numpy() == pytest.approx(1)
    whole, c = counted.groupby("run")[["steps", "growth"]].sum(), counted[counted.phase == "C"]
    expected = c.groupby("run")[["steps", "growth"]].sum() / whole
    assert anatomy.phase_c(counted).to_numpy() == pytest.approx(expected.to_numpy())


@pytest.mark.parametrize(("rises", "true"), [(0.5, True), (-0.5, False)])
def test_three_phases_are_a_long_fall_a_short_rise_and_a_very_short_break(rises, true):
    rows = [(0, 10, "A", 90, -2.0), (0, 10, "B", 20, rises), (0, 10, "C", 5, 3.0)]
    counted = pd.DataFrame(rows, columns=["run", "start", "phase", "steps", "change"])
    assert anatomy.has_three_phases(counted).tolist() == [true]


def saw(loss=1e-3, rate=1e-3):
    """Free decay at lr wd 1e-3 for 999 steps, and a break of one step."""
    t = np.arange(4000) % 1000
    norm = np.exp(-rate * t)
    values = {"weight_norm": norm, "elr": 0.1 / norm**2, "train_loss": np.full(4000, loss)}
    values |= {"eff_grad_norm": np.exp(np.abs(t - 900) / 100.0), "angular_update": np.full(4000, 1e-3)}
    data = xr.Dataset(
        {n: (("run", "step"), v[None]) for n, v in values.items()}, {"run": [0], "step": np.arange(4000)}
    )
    return data.assign_coords(lr=("run", [0.1]), weight_decay=("run", [1e-2]))


@pytest.mark.parametrize("share", [1.0, 0.9])
def test_the_quiet_decay_is_in_units_of_free_decay(share):
    assert anatomy.quiet_decay(saw(rate=share * 1e-3)).decay.to_numpy() == pytest.approx(share, rel=1e-6)


def test_a_loss_of_one_over_time_has_a_constant_product():
    data = saw()
    ends = find_destabilizations(data).end
    loss = np.ones(4000)
    for end in ends.astype(int):
        loss[end : end + 998] = 0.02 / np.cumsum(data.elr.values[0, end : end + 998])
    found = anatomy.loss_against_time(data.assign(train_loss=(("run", "step"), loss[None])))
    assert len(found) > 10
    assert found["product"].to_numpy() == pytest.approx(0.02, rel=0.02)


def test_a_break_in_the_first_layer_is_told_from_a_quiet_lead():
    data, events = saw(), table((0, 999, 1000), (0, 1999, 2000))
    turns = np.full((1, 4000, 2), 1e-3)
    turns[..., 0] *= 1.5
    turns[0, [999, 1999], 0] *= 4
    data["layer_angular_update"] = (("run", "step", "layer"), turns)
    data["angular_update"] = data.angular_update.where(data.step % 1000 != 0, 9e-3)
    found = anatomy.break_table(data, events)
    assert found.lead.tolist() == pytest.approx([6, 6])
    assert found.first_layer.tolist() == [0, 0]
    assert found.last_layer.isna().all()
    assert found.lead_before.tolist() == pytest.approx([1.5, 1.5])
    assert found.growth.tolist() == pytest.approx([3, 3], rel=1e-3)


def test_the_rise_of_every_layer_at_its_breaks():
    data, events = saw(), table((0, 999, 1001), (0, 1999, 2000))
    norms = np.ones((1, 4000, 2))
    norms[0, 1001:, 0], norms[0, 2000:, 0], norms[0, 2000:, 1] = 2, 6, 0.5
    data = data.assign(layer_weight_norm=(("run", "step", "layer"), norms)).assign_coords(layer=["first", "last"])
    found = anatomy.layer_rises(data, events.iloc[::-1])
    assert found.to_numpy() == pytest.approx(2 * np.log([[3, 0.5], [2, 1]]))
    assert found.columns.tolist() == ["first", "last"]


def test_the_cosine_distance_of_snapshots():
    vectors = RNG.normal(size=(2, 5, 7))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    data = xr.DataArray(vectors, {"snapshot_step": np.arange(5) * 11}, ("run", "snapshot_step", "weight"))
    found = cosine_distance(data)
    assert found.values == pytest.approx(1 - (vectors[:, 1:] * vectors[:, :-1]).sum(-1))
    assert found.snapshot_step.values.tolist() == [0, 11, 22, 33]


def test_a_band_is_the_quantiles_over_events_and_unknown_without():
    values = xr.DataArray(RNG.normal(size=(9, 4)), dims=("event", "shift"))
    assert around_breaks.band(values)[1] == pytest.approx(np.median(values, axis=0))
    assert np.isnan(around_breaks.band(values[:0])).all()
