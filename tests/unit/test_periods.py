import numpy as np
import pytest
import xarray as xr

from periodic_lib import periods
from periodic_lib.config import ConfigError
from periodic_lib.periods import classify_regime, find_destabilizations, find_excursions, find_minima, find_periods

T = np.arange(2000)


def sawtooth(period, length=2000, start=0, rate=0.002):
    """Norm that decays by exp(-rate) a step and is kicked back every `period` steps; kicks begin at the minimum."""
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


def test_slow_kicks_are_dated_at_the_minimum():
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


def test_the_loss_must_leave_its_low_level():
    norm, low = sawtooth(200), np.full(2000, 1e-3)
    spikes = low.copy()
    spikes[199::200] = 0.5
    assert find_destabilizations(norm, low).empty
    assert len(find_destabilizations(norm, spikes)) == 9
    assert find_periods(norm, spikes).min_loss.tolist() == pytest.approx([1e-3] * 8)


def test_steps_may_be_epochs():
    found = find_periods(sawtooth(200)[::10], steps=np.arange(0, 2000, 10))
    assert (found["length"] == 200).all()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((np.array([1.0, -1.0]),), "not positive"),
        ((np.array([1.0, np.nan]),), "not positive"),
        ((np.ones((2, 3)),), "one axis"),
        ((np.ones(5), np.ones(4)), "`train_loss` must have the shape"),
        ((np.ones(5), None, np.ones(4)), "`steps` must have the shape"),
    ],
)
def test_bad_input_is_refused(arguments, word):
    with pytest.raises(ConfigError, match=word):
        find_destabilizations(*arguments)


# ---------------------------------------------------------------- regimes


def run(norm, loss, ratio, lr=0.1, weight_decay=1e-2):
    """One synthetic run: norm, loss and angular update in units of the equilibrium angle."""
    angle = np.arctan(ratio * np.tan(np.arccos(1 - lr * weight_decay)))
    columns = {"weight_norm": norm, "train_loss": loss, "angular_update": angle}
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


def test_guessing_is_divergence_and_no_decay_is_convergence():
    assert classify_regime(run(1.0, 2.4, 0.9)).item() == "divergence"
    assert classify_regime(run(1 + T / 1e5, 1e-3, 0.0, weight_decay=0.0)).item() == "convergence"


def test_a_data_set_is_judged_run_by_run():
    data = xr.concat([RUNS[name].assign_coords(run=[i]) for i, name in enumerate(RUNS)], "run")
    assert classify_regime(data).values.tolist() == list(RUNS)
    finite = data.isel(run=[0, 1, 2])
    assert find_destabilizations(finite)["run"].unique().tolist() == [1]
    assert len(find_periods(finite)) == 8
    assert periods.balance_ratio(data).dims == ("run", "step")


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
    phases = periods.label_phases(norm[200:1250], gradient[200:1250])
    assert set(phases[:90]) == {"A"}
    assert set(phases[110:155]) == {"B"}
    assert set(phases[-100:]) == {"A"}  # cut off in the middle of A: its gradient has not risen yet
    assert (phases != "").all()


def test_without_a_destabilization_there_are_no_phases():
    assert set(periods.label_phases(np.exp(-0.002 * T), np.ones(2000))) == {""}


def test_phases_need_the_gradient_in_the_right_shape():
    with pytest.raises(ConfigError, match="`eff_grad_norm` must be given"):
        periods.label_phases(np.ones(5))
    with pytest.raises(ConfigError, match="`eff_grad_norm` must have the shape"):
        periods.label_phases(np.ones(5), np.ones(4))


def test_phases_and_periods_of_a_data_set():
    norm, gradient, steps = three_phases(300, 60, 10)
    spikes = np.where(gradient > 2, 3.0, 1e-3)
    variables = {"weight_norm": norm, "eff_grad_norm": gradient, "train_loss": spikes}
    data = xr.Dataset({n: (("run", "step"), v[None]) for n, v in variables.items()}, {"run": [7], "step": steps})
    labelled = periods.label_phases(data)
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


def test_half_of_its_share_makes_the_typical_step_an_equilibrium():
    spikes = np.where(T % 200 == 199, 5.0, 0.0)
    assert classify_regime(run(sawtooth(200), SPIKES, 0.69 + spikes)).item() == "periodic"
    assert classify_regime(run(sawtooth(200), SPIKES, 0.72 + spikes)).item() == "equilibrium"


def test_a_norm_that_holds_without_a_break_is_an_equilibrium():
    rare = np.where(T % 50 == 0, 7.0, 0.2)  # a few steps pay, the loss does not notice
    assert classify_regime(run(np.exp(0.02 * np.sin(T / 30)), 0.5, rare)).item() == "equilibrium"
    assert classify_regime(run(np.exp(-0.0006 * T), 0.5, 0.2)).item() == "convergence"  # falls at 60 % of free decay


# ---------------------------------------------------------------- minima


def sawtooth_results(every, snapshots=()):
    """Two runs: a sawtooth with minima of known loss, 20 steps before each of four kicks, and one that converges."""
    loss = np.abs(((T - 199) % 400) - 380) * 1e-4 + 1e-3  # lowest at 579, 979, ...; kicks at 199, 599, 999, ...
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
