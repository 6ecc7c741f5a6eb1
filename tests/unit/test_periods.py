import inspect
import json

import numpy as np
import pytest
import xarray as xr

from periodic_lib import glossary, theory
from periodic_lib.analysis import periods
from periodic_lib.analysis.minima import find_minima
from periodic_lib.analysis.periods import (
    count_by_run,
    find_destabilizations,
    find_excursions,
    find_periods,
    label_phases,
    late,
)
from periodic_lib.analysis.regimes import GUESSING_SHARE, classify_regime, summarize, window_budget
from periodic_lib.project import ConfigError

T = np.arange(2000)


def sawtooth(period, length=2000, start=0, rate=0.002):
    """Norm that decays by exp(-rate) a step and jumps back every `period` steps; breaks begin at the minimum."""
    return np.exp(-rate * ((np.arange(length) - start) % period))


@pytest.mark.parametrize("period", [60, 200, 333])
def test_periods_of_a_sawtooth_are_recovered(period):
    found = find_periods(sawtooth(period))
    assert (found["length"] == period).all()
    assert len(found) == (len(T) - 1) // period - 1
    assert found.start[0] == period - 1


def test_periods_of_varying_length_are_recovered():
    lengths = [150, 400, 90, 700, 310]
    norm = np.concatenate([np.exp(-0.002 * np.arange(n)) for n in lengths])
    assert find_periods(norm)["length"].tolist() == lengths[1:-1]


def test_slow_breaks_are_dated_at_the_minimum():
    rise = np.linspace(np.exp(-0.4), 1, 30)
    norm = np.concatenate([np.exp(-0.002 * np.arange(200)), rise, np.exp(-0.002 * np.arange(200)), rise])
    found = find_destabilizations(norm)
    assert found.start.tolist() == [200, 430]
    assert found.end.tolist() == [229, 459]
    assert found.norm_after.tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("sigma", [1e-4, 1e-2, 0.3])
def test_noise_alone_has_none(sigma):
    noise = np.random.default_rng(0).normal(0, sigma, 20_000)
    assert find_destabilizations(np.exp(noise)).empty


def test_a_sawtooth_is_found_in_noise():
    noise = np.random.default_rng(1).normal(0, 0.005, 2000)
    found = find_periods(sawtooth(250) * np.exp(noise))
    assert len(found) == 6
    assert np.abs(found["length"] - 250).max() <= 30  # the minimum is blurred by noise over about sigma / rate steps


def test_one_jump_is_one_destabilization_and_no_period():
    norm = np.concatenate([np.exp(-0.002 * np.arange(500)), np.exp(-0.002 * np.arange(500))])
    assert len(find_destabilizations(norm)) == 1
    assert find_periods(norm).empty


def test_decay_alone_growth_alone_and_a_constant_have_none():
    for norm in (np.exp(-0.002 * T), np.exp(0.002 * T), np.ones(2000)):
        assert find_destabilizations(norm).empty


def test_a_rise_at_the_start_is_no_destabilization():
    norm = np.concatenate([np.linspace(1, 5, 50), 5 * np.exp(-0.002 * np.arange(500))])
    assert find_destabilizations(norm).empty


def test_the_loss_has_no_part_in_a_break():
    norm, low = sawtooth(200), np.full(2000, 1e-3)
    spikes = low.copy()
    spikes[199::200] = 0.5
    starts = find_destabilizations(norm).start.tolist()
    assert len(starts) == 9
    for loss in (low, spikes):
        assert find_destabilizations(norm, train_loss=loss).start.tolist() == starts
    assert find_periods(norm, train_loss=spikes).min_loss.tolist() == pytest.approx([1e-3] * 8)


def test_steps_may_be_epochs():
    found = find_periods(sawtooth(200)[::10], steps=np.arange(0, 2000, 10))
    assert (found["length"] == 200).all()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"weight_norm": np.array([1.0, -1.0])}, "not positive"),
        ({"weight_norm": np.array([1.0, np.nan])}, "not positive"),
        ({"weight_norm": np.ones((2, 3))}, "one axis"),
        ({"weight_norm": np.ones(5), "train_loss": np.ones(4)}, "`train_loss` must have the shape"),
        ({"weight_norm": np.ones(5), "steps": np.ones(4)}, "`steps` must have the shape"),
    ],
)
def test_bad_input_is_refused(arguments, word):
    with pytest.raises(ConfigError, match=word):
        find_destabilizations(arguments.pop("weight_norm"), **arguments)


@pytest.mark.parametrize("find", [find_destabilizations, find_periods, label_phases, find_excursions])
def test_only_the_first_array_goes_by_its_place(find):
    first, *others = inspect.signature(find).parameters.values()
    assert first.name in ("weight_norm", "train_loss")
    by_place = [one.name for one in others if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert by_place == (["window"] if find is find_excursions else [])


def test_the_definitions_are_the_glossarys():
    text = " ".join(periods.__doc__.split())
    words = ("destabilization", "period", "phase_a", "phase_b", "phase_c", "balance_ratio", "excursion")
    for name in words:
        assert " ".join(glossary.TERMS[name].definition.split()) in text


# ---------------------------------------------------------------- regimes


def run(norm, loss, ratio, lr=0.1, weight_decay=1e-2):
    """One synthetic run: norm, loss and angular update in units of the equilibrium angle."""
    angle = np.arctan(ratio * np.tan(np.arccos(1 - lr * weight_decay)))
    columns = {"weight_norm": norm, "train_loss": loss, "angular_update": angle, "elr": lr / np.square(norm)}
    variables = {name: (("run", "step"), np.broadcast_to(v, 2000)[None]) for name, v in columns.items()}
    return xr.Dataset(variables, {"lr": ("run", [lr]), "weight_decay": ("run", [weight_decay]), "run": [0], "step": T})


RNG = np.random.default_rng(0)
SPIKES = np.where(T % 200 == 199, 2.0, 1e-3)
RUNS = {
    "convergence": run(np.exp(-0.001 * T), 1e-3 + np.exp(-T / 50), 0.01),
    "periodic": run(sawtooth(200), SPIKES, np.where(T % 200 == 199, 14.0, 0.05)),
    "equilibrium": run(np.exp(RNG.normal(0, 0.02, 2000)), 0.5, RNG.uniform(0.6, 1.3, 2000)),
    "divergence": run(1.0, np.where(T > 1500, np.nan, 1e-3), 0.01),
}


@pytest.mark.parametrize("regime", RUNS)
def test_regime_of_a_synthetic_run(regime):
    assert classify_regime(RUNS[regime]).item() == regime


def with_errors(data, errors, classes=10):
    """Add training errors at evenly spaced evaluations, the last after the last step, and the number of classes."""
    looks = np.linspace(0, 2000, len(errors)).round().astype(int)
    data = data.assign_coords(eval_step=looks).assign(train_error=(("run", "eval_step"), [errors]))
    return data.assign_attrs(classes=classes)


@pytest.mark.parametrize(
    ("shares", "classes", "regime"),  # of the error that counts as guessing
    [
        ([0.1, 0.1, 1.001, 1.001, 1.001], 10, "divergence"),
        ([0.9, 0.9, 0.999, 0.999, 0.999], 10, "equilibrium"),
        ([0.9, 0.9, 0.1, 1.1, 0.1], 10, "equilibrium"),  # by the median of the late ones
        ([0.1, 0.1, 1.001, 1.001, 1.001], 2, "divergence"),
        ([0.1, 0.1, 0.999, 0.999, 0.999], 2, "equilibrium"),
        ([0.1, 0.1, 1.001, 1.001, 1.001], 100, "divergence"),
        ([0.1, 0.1, 0.999, 0.999, 0.999], 100, "equilibrium"),
    ],
)
def test_guessing_is_divergence(shares, classes, regime):
    errors = GUESSING_SHARE * (1 - 1 / classes) * np.array(shares)
    assert classify_regime(with_errors(run(1.0, 2.4, 0.9), errors, classes)).item() == regime


def test_a_high_loss_alone_is_no_divergence_and_no_decay_is_convergence():
    assert classify_regime(run(1.0, 3.7, 0.9)).item() == "equilibrium"  # nothing evaluated
    guessing = with_errors(run(1.0, 2.4, 0.9), [0.9, 0.9, 0.9])
    assert classify_regime(guessing.drop_attrs()).item() == "equilibrium"  # of how many classes?
    early = guessing.isel(eval_step=[0])
    assert classify_regime(early).item() == "equilibrium"
    assert classify_regime(run(1 + T / 1e5, 1e-3, 0.0, weight_decay=0.0)).item() == "convergence"


def test_a_data_set_is_judged_run_by_run():
    data = xr.concat([RUNS[name].assign_coords(run=[i]) for i, name in enumerate(RUNS)], "run")
    assert classify_regime(data).values.tolist() == list(RUNS)
    finite = data.isel(run=[0, 1, 2])
    assert find_destabilizations(finite)["run"].unique().tolist() == [1]
    assert len(find_periods(finite)) == 8
    balance = periods.balance_ratio(data)
    assert balance.dims == ("run", "step")
    expected = theory.balance_ratio(data.angular_update.values, 0.1, 1e-2)
    np.testing.assert_array_equal(balance, expected)


def test_one_run_no_run_and_the_norm_alone():
    data = RUNS["periodic"]
    assert find_periods(data.isel(run=0))["run"].tolist() == [0] * 8
    assert find_destabilizations(data.isel(run=[])).columns.tolist() == [*periods.DESTABILIZATION_COLUMNS, "run"]
    assert find_periods(data.isel(run=[])).empty
    quiet = data.assign(train_loss=data.train_loss * 0 + 1)
    assert len(find_destabilizations(quiet)) == 9
    assert find_destabilizations(quiet, train_loss=None).peak_loss.isna().all()


def test_tables_without_rows_hold_numbers():
    none = find_periods(RUNS["convergence"])
    assert np.isnan(none["length"].median())
    assert {dtype.kind for dtype in none.drop(columns="run").dtypes} == {"f"}
    both = xr.concat([RUNS["convergence"], RUNS["periodic"].assign_coords(run=[1])], "run")
    assert find_periods(both)["length"].dtype == int  # one run's empty table leaves the other's types alone


# ---------------------------------------------------------------- phases


def three_phases(falls, rises, breaks, repeats=5, every=1):
    """Norm, effective gradient and steps of periods whose phases A, B, C last the given numbers of steps."""
    quiet = falls + rises
    norm = np.concatenate([-0.002 * np.arange(quiet), -0.002 * quiet * (1 - np.arange(breaks) / breaks)])
    gradient = np.concatenate(
        [-0.02 * np.arange(falls), -0.02 * falls + 0.05 * np.arange(rises), np.full(breaks, 3.0)]
    )
    steps = np.arange(repeats * len(norm))
    return np.exp(np.tile(norm, repeats))[::every], np.exp(np.tile(gradient, repeats))[::every], steps[::every]


def test_steps_per_phase_of_a_synthetic_run_are_recovered():
    norm, gradient, steps = three_phases(300, 60, 10)
    found = find_periods(norm, steps=steps, eff_grad_norm=gradient)
    assert (found["length"] == 370).all()
    assert (found[["A", "B", "C"]].sum(axis=1) == found["length"]).all()
    window = 360 * periods.SMOOTHING  # the minimum of the smoothed gradient may be off by that much
    assert np.abs(found["A"] - 300).max() <= window
    assert np.abs(found["B"] - 60).max() <= window
    assert np.abs(found["C"] - 10).max() <= 1


@pytest.mark.parametrize("every", [5, 10])
def test_phases_of_sparse_records_are_counted_in_steps(every):
    norm, gradient, steps = three_phases(300, 60, 10, every=every)
    found = find_periods(norm, steps=steps, eff_grad_norm=gradient)
    assert np.abs(found["length"] - 370).max() <= every
    assert (found[["A", "B", "C"]].sum(axis=1) == found["length"]).all()
    assert np.abs(found["A"] - 300).max() <= 360 * periods.SMOOTHING + every


def test_phases_are_found_in_noise():
    norm, gradient, _ = three_phases(300, 60, 10)
    noise = np.random.default_rng(0).lognormal(0, 0.5, len(gradient))
    found = find_periods(norm, eff_grad_norm=gradient * noise)
    assert np.abs(found["A"] - 300).max() <= 40


def test_a_run_that_starts_and_ends_inside_a_period_is_labelled_there_too():
    norm, gradient, _ = three_phases(300, 60, 10)
    phases = label_phases(norm[200:1250], eff_grad_norm=gradient[200:1250])
    assert set(phases[:90]) == {"A"}
    assert set(phases[110:155]) == {"B"}
    assert set(phases[-100:]) == {"A"}  # cut off in the middle of A: its gradient has not risen yet
    assert (phases != "").all()


def test_without_a_destabilization_there_are_no_phases():
    assert set(label_phases(np.exp(-0.002 * T), eff_grad_norm=np.ones(2000))) == {""}


def test_phases_need_the_gradient_in_the_right_shape():
    with pytest.raises(ConfigError, match="`eff_grad_norm` must be given"):
        label_phases(np.ones(5))
    with pytest.raises(ConfigError, match="`eff_grad_norm` must have the shape"):
        label_phases(np.ones(5), eff_grad_norm=np.ones(4))


def test_phases_and_periods_of_a_data_set():
    norm, gradient, steps = three_phases(300, 60, 10)
    spikes = np.where(gradient > 2, 3.0, 1e-3)
    variables = {"weight_norm": norm, "eff_grad_norm": gradient, "train_loss": spikes}
    data = xr.Dataset({n: (("run", "step"), v[None]) for n, v in variables.items()}, {"run": [7], "step": steps})
    labelled = label_phases(data)
    assert labelled.dims == ("run", "step")
    table = find_periods(data)
    assert table["run"].tolist() == [7] * len(table)
    for row in table.itertuples():
        inside = labelled.sel(run=7, step=slice(row.start, row.end - 1)).values
        assert [(inside == name).sum() for name in "ABC"] == [row.A, row.B, row.C]


# ---------------------------------------------------------------- excursions of the loss


def test_excursions_are_found_whatever_the_norm_does():
    loss = RNG.lognormal(np.log(1e-3), 0.3, 2000)
    loss[700:720], loss[1500:1503] = 0.5, 0.05
    found = find_excursions(loss, window=200)
    assert found.start.tolist() == [700, 1500]
    assert found.end.tolist() == [720, 1503]
    assert found.peak_loss.tolist() == [0.5, 0.05]


def test_one_hard_batch_is_no_excursion_once_the_loss_is_averaged():
    loss = np.full(1000, 1e-3)
    loss[500], loss[700:720] = 0.02, 0.5
    assert find_excursions(loss, window=100).start.tolist() == [500, 700]
    assert find_excursions(loss, window=100, smoothing=11).start.tolist() == [700]


def test_a_loss_that_falls_stays_or_is_always_high_makes_none():
    for loss in (np.exp(-0.01 * T), np.full(2000, 0.7), RNG.lognormal(0, 0.5, 2000)):
        assert find_excursions(loss, window=200, smoothing=11).empty


def test_an_excursion_that_the_record_cuts_off_counts_and_a_short_record_has_none():
    loss = np.where(T < 1990, 1e-3, 1.0)
    assert find_excursions(loss, window=100)[["start", "end"]].to_numpy().tolist() == [[1990, 1999]]
    assert find_excursions(loss[:50], window=100).empty


def test_excursions_of_a_data_set_name_their_run():
    data = xr.concat([RUNS[name].assign_coords(run=[i]) for i, name in enumerate(RUNS)], "run")
    found = find_excursions(data, window=100)
    assert found.groupby("run").size().to_dict() == {1: 10}


# ---------------------------------------------------------------- the border of periods and equilibrium


def test_a_norm_that_falls_at_most_of_free_decay_converges_and_one_that_holds_is_an_equilibrium():
    rare, spikes = np.where(T % 50 == 0, 7.0, 0.2), np.where(T % 200 == 199, 5.0, 0.0)
    assert classify_regime(run(np.exp(0.02 * np.sin(T / 30)), 0.5, rare)).item() == "equilibrium"
    assert classify_regime(run(np.exp(-0.0006 * T), 0.5, 0.2)).item() == "convergence"  # falls at 60 % of free decay
    assert classify_regime(run(sawtooth(200), SPIKES, 0.69 + spikes)).item() == "periodic"


def holding(share, breaks=()):
    """Norm of a run that gets back `share` of what weight decay takes, and is pushed out by 1.2 at `breaks`."""
    level = -0.001 * (1 - share) * T
    for start in breaks:
        level = level + 0.3 * (start < T)
    return np.exp(level)


@pytest.mark.parametrize(("share", "regime"), [(0.0, "convergence"), (0.5, "convergence"), (0.56, "equilibrium")])
def test_a_norm_that_gets_back_half_and_more_of_the_decay_is_an_equilibrium(share, regime):
    assert classify_regime(run(holding(share), 0.5, 0.2)).item() == regime
    heavy_tailed = np.where(T % 50 == 0, 7.0, 0.05)  # few steps pay: nothing that the judge looks at
    assert classify_regime(run(holding(share), 0.5, heavy_tailed)).item() == regime


@pytest.mark.parametrize(
    ("breaks", "regime"),
    [
        ([900], "one break"),
        ([900, 1300], "two breaks"),
        ([500, 900, 1300], "periodic"),
        ([500, 800, 1500], "periodic"),  # coefficient of variation 0.4
        ([300, 420, 1500], "irregular breaks"),  # 0.8
    ],
)
def test_breaks_are_counted_and_their_spacings_compared(breaks, regime):
    data = run(holding(0.0, breaks), 1e-3, 0.05)
    assert find_destabilizations(data).start.tolist() == breaks
    assert classify_regime(data).item() == regime


def test_where_decay_does_not_set_the_pace_breaks_alone_decide():
    data = xr.concat([RUNS["equilibrium"], RUNS["periodic"].assign_coords(run=[1])], "run")
    adam = data.assign_attrs(setup=json.dumps({"optimizer": "adam"}))
    assert classify_regime(adam).values.tolist() == ["convergence", "periodic"]
    assert summarize(adam.assign_coords(init_seed=("run", [0, 0]))).regime.tolist() == ["–", "periodic"]


def test_momentum_speeds_up_the_clock():
    free = np.exp(-0.01 * T / 3)  # eta lambda = 1e-3 at momentum 0.7
    data = run(free, 1e-3, 0.05)
    assert window_budget(data.assign_coords(momentum=("run", [0.7]))).item() == pytest.approx(0, abs=0.01)
    assert window_budget(data.assign_coords(momentum=("run", [0.0]))).item() < -2


# ---------------------------------------------------------------- the run table


def all_runs():
    runs = [RUNS[name].assign_coords(run=[10 + i]) for i, name in enumerate(RUNS)]
    data = xr.concat(runs, "run").assign_coords(init_seed=("run", [0] * 4), momentum=("run", [0.0] * 4))
    data = data.assign(elr=data.lr / data.weight_norm**2)
    return data.assign_attrs(setup=json.dumps({"optimizer": "sgd"}))


def test_the_run_table_has_a_row_per_run():
    data = all_runs()
    table = summarize(data)
    assert table.index.tolist() == [10, 11, 12, 13]
    assert table.index.name == "run"
    assert table.regime.tolist() == list(RUNS)
    assert table.destabilizations.tolist() == [0, 9, 0, 0]
    np.testing.assert_array_equal(table.median_period, [np.nan, 200, np.nan, np.nan])
    assert table.lr_wd.tolist() == pytest.approx([1e-3] * 4)
    assert table.late_loss[11] == 1e-3
    assert table.late_norm[10] == pytest.approx(np.exp(-0.001 * 1499.5))
    assert table.late_elr[10] == pytest.approx(0.1 * np.exp(0.002 * 1499.5))
    assert table.balance[10] == pytest.approx(1e-4)
    np.testing.assert_array_equal(table.variation, [np.nan, 0, np.nan, np.nan])
    judged = ["regime", "margin", "destabilizations", "median_period", "variation"]
    late_ones = ["late_loss", "late_norm", "late_elr"]
    shown = ["lr", "weight_decay", "init_seed", "lr_wd", *judged, *late_ones, "window_budget", "balance"]
    assert table.columns.tolist() == shown


def test_the_run_table_shows_parameters_that_vary_and_evaluations():
    data = with_errors(all_runs().isel(run=[1]), [0.5, 0.2, 0.1])
    data = data.assign(test_error=data.train_error + 0.05).assign_coords(init_scale=("run", [1.0]))
    assert "init_scale" not in summarize(data)
    two = xr.concat([data, data.assign_coords(run=[5], init_scale=("run", [2.0]))], "run")
    table = summarize(two)
    assert table.init_scale.tolist() == [1.0, 2.0]
    assert table.train_error.tolist() == [0.1, 0.1]
    assert table.test_error.tolist() == pytest.approx([0.15, 0.15])
    assert "train_loss_full" not in table


def test_the_margin_is_the_distance_to_the_nearest_border():
    def margin(norm, loss=0.5):
        return summarize(run(norm, loss, 0.2))["margin"].item()

    free = -2 * np.log1p(-1e-3)  # what decay takes in a step
    for share in (0.2, 0.9):
        budget = 1 - 0.002 * (1 - share) / free
        assert margin(holding(share)) == pytest.approx(abs(budget / 0.53 - 1), rel=1e-6)
    assert margin(holding(0.0, [500, 900, 1300])) == pytest.approx(3 / 2.5 - 1)  # a break less, and it is "two breaks"
    assert margin(holding(0.0, [300, 420, 1500])) == pytest.approx(480 / 600 / 0.7 - 1)
    assert margin(1.0, np.where(T > 1500, np.nan, 1e-3)) == np.inf
    guessing = with_errors(run(1.0, 2.4, 0.9), [0.9, 0.9, 0.9])
    assert summarize(guessing).margin.item() == pytest.approx(1 / GUESSING_SHARE - 1)


def test_the_balance_is_that_of_plain_sgd_alone():
    data = all_runs()
    table = summarize(data.assign_coords(momentum=("run", [0.0, 0.9, 0.0, 0.0])))
    fast = "equilibrium"  # at momentum 0.9 this norm falls at a tenth of free decay
    assert table.regime.tolist() == ["convergence", fast, "equilibrium", "divergence"]
    assert table.balance.isna().tolist() == [False, True, False, False]
    assert table.destabilizations[11] == 9
    adamw = summarize(data.assign_attrs(setup=json.dumps({"optimizer": "adamw"})))
    assert adamw.balance.isna().all()
    assert adamw.regime.tolist() == list(RUNS)


def test_late_is_the_second_half_of_all_that_is_recorded():
    data = with_errors(RUNS["periodic"], [0.1] * 5).assign_coords(snapshot_step=[0, 1500])
    half = late(data)
    assert half.step.values.tolist() == list(range(1000, 2000))
    assert half.eval_step.values.tolist() == [1000, 1500, 2000]
    assert half.snapshot_step.values.tolist() == [1500]
    assert late(data.isel(step=slice(0, 5))).step.values.tolist() == [2, 3, 4]


def test_rows_are_counted_for_every_run():
    data = all_runs().isel(run=[0, 1, 2])
    counts = count_by_run(find_destabilizations(data), data)
    assert counts.to_dict() == {10: 0, 11: 9, 12: 0}
    assert count_by_run(find_destabilizations(data.isel(run=[0])), classify_regime(data)).tolist() == [0, 0, 0]


# ---------------------------------------------------------------- minima


def sawtooth_results(every, snapshots=()):
    """Two runs: a sawtooth with minima of known loss, 20 steps before each of four breaks, and one that converges."""
    loss = np.abs(((T - 199) % 400) - 380) * 1e-4 + 1e-3  # lowest at 579, 979, ...; breaks at 199, 599, 999, ...
    norm = np.stack([sawtooth(400, start=200), np.exp(-0.002 * T)])
    looks = np.arange(0, len(T) + 1, every)
    full = np.interp(looks, T, loss)
    variables = {
        "weight_norm": (("run", "step"), norm),
        "train_loss": (("run", "step"), np.where(norm > 0.97, 1.0, 1e-3)),
        "elr": (("run", "step"), 0.1 / norm**2),
        "train_loss_full": (("run", "eval_step"), np.stack([full, full])),
        "test_error": (("run", "eval_step"), np.stack([looks / 1e4] * 2)),
    }
    more = {"snapshot_step": np.array(snapshots)} if len(snapshots) else {}
    return xr.Dataset(variables, {"run": [3, 4], "step": T, "eval_step": looks} | more)


def test_minima_are_found_in_every_stretch_that_a_destabilization_ends():
    found = find_minima(sawtooth_results(every=1))
    assert found.run.unique().tolist() == [3]
    assert found.number.tolist() == [1, 2, 3, 4, 5]
    assert found.end.tolist() == [199, 599, 999, 1399, 1799]
    assert found.step.tolist()[1:] == [579, 979, 1379, 1779]
    assert found.test_error.tolist()[1:] == [0.0579, 0.0979, 0.1379, 0.1779]
    assert found.train_loss.tolist()[1:] == pytest.approx([1e-3] * 4)
    assert found.elr_start.tolist()[1:] == pytest.approx([0.1] * 4, rel=0.01)
    assert found.elr.tolist()[1:] == pytest.approx([0.1 * np.exp(0.004 * 379)] * 4, rel=0.01)
    assert found.snapshot.isna().all()


def test_the_snapshot_of_a_minimum_is_the_nearest_in_the_second_half_of_its_stretch():
    found = find_minima(sawtooth_results(every=20, snapshots=[0, 150, 570, 590, 650, 1250, 2000]))
    assert found.step.tolist()[1:3] == [580, 980]
    np.testing.assert_array_equal(found.snapshot, [150, 570, np.nan, 1250, np.nan])


def test_minima_need_evaluations_and_may_be_none():
    data = sawtooth_results(every=100)
    assert find_minima(data.sel(run=[4])).empty
    with pytest.raises(ConfigError, match="`results` must have evaluations"):
        find_minima(data.drop_dims("eval_step"))


# ---------------------------------------------------------------- the window budget


def recorded(norm, lr=0.1, weight_decay=1e-2, momentum=0.0, every=1, **setup):
    """A run of this norm at every step, of which every so many are recorded."""
    norm = np.asarray(norm, float)[None, ::every]
    coordinates = {"run": [0], "step": every * np.arange(norm.shape[1])}
    coordinates |= {"lr": ("run", [lr]), "weight_decay": ("run", [weight_decay]), "momentum": ("run", [momentum])}
    data = xr.Dataset({"weight_norm": (("run", "step"), norm)}, coordinates)
    return data.assign(elr=data.lr / data.weight_norm**2).assign_attrs(setup=json.dumps(setup))


def norms(lr_wd, eff_grad_norms, start=1.0):
    """The exact recursion of the squared norm."""
    square = [start**2]
    for g in eff_grad_norms:
        square.append((1 - lr_wd) ** 2 * square[-1] + (0.1 * g) ** 2 / square[-1])
    return np.sqrt(square)


def test_the_window_budget_is_one_in_equilibrium_whatever_the_noise_and_zero_in_free_decay():
    rng = np.random.default_rng(0)
    steady = norms(1e-3, np.full(6000, 1.0), start=theory.equilibrium_norm(0.1, 1e-2, 1.0))
    assert window_budget(recorded(steady)).item() == pytest.approx(1, abs=1e-9)
    heavy = rng.lognormal(0, 0.9, 20_000)  # few steps pay for most of it
    noisy = norms(1e-3, heavy, start=1.5)
    paid = np.square(0.1 * heavy / noisy[:-1] ** 2) / 2e-3  # of what weight decay takes, step by step
    assert np.median(paid) < 0.35
    assert window_budget(recorded(noisy)).item() == pytest.approx(0.9, abs=0.1)
    assert window_budget(recorded(norms(1e-3, np.zeros(3000)))).item() == pytest.approx(0, abs=1e-12)
    saw = norms(1e-3, np.where(np.arange(6000) % 700 < 690, 0.0, 3.0))  # a period: mostly free decay
    assert window_budget(recorded(saw)).item() == pytest.approx(0, abs=1e-9)


def test_the_window_budget_of_a_sparse_record_of_momentum_and_of_a_schedule_is_the_same():
    g = 1 + 0.3 * np.sin(np.arange(20_000) / 3000)
    norm = norms(1e-3, g)
    every_step = window_budget(recorded(norm)).item()
    assert window_budget(recorded(norm, every=20)).item() == pytest.approx(every_step, abs=0.02)
    same = recorded(norm, weight_decay=1e-3, momentum=0.9)  # decays at lr wd / (1 - momentum)
    assert window_budget(same).item() == pytest.approx(every_step, abs=1e-9)
    free = recorded(norms(5e-4, np.zeros(3000)))
    assert window_budget(free).item() == pytest.approx(0.5, abs=1e-3)
    halved = free.assign(elr=free.elr / 2)  # what a schedule does to the learning rate
    assert window_budget(halved).item() == pytest.approx(0, abs=1e-9)


def test_no_window_budget_where_weight_decay_sets_no_pace():
    norm = np.full(100, 2.0)
    for data in (recorded(norm, weight_decay=0.0), recorded(norm, fixed_norm=2.0), recorded(norm, optimizer="adam")):
        assert np.isnan(window_budget(data).item())
    assert window_budget(recorded(norm, optimizer="adamw")).item() == 1
