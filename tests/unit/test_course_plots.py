"""Figures of chapters 01 to 07 and 14: what is drawn where."""

import numpy as np
import pandas as pd
import pytest

from periodic_lib import theory
from periodic_lib.analysis import bounds, long_runs, periods, regimes
from periodic_lib.figures import course_plots, panels
from periodic_lib.theory.toys import SphereToy

pytestmark = pytest.mark.usefixtures("closed_figures")


@pytest.fixture(scope="module")
def orbits():
    return SphereToy(lr_wd=[1e-2, 2e-2], seed=[0, 0]).run(2500)


def words(texts):
    return [text.get_text() for text in texts]


def curves():
    """Published curves of two learning rates, norm and loss."""
    epoch = np.arange(0.0, 11)
    parts = [
        pd.DataFrame({"learning_rate": lr, "quantity": name, "epoch": epoch, "column_low": 1.0, "column_high": high})
        for lr, high in ((0.1, 2.0), (0.3, 3.0))
        for name in long_runs.READ
    ]
    return pd.concat(parts)


def test_differences_are_drawn_from_the_first_step_and_zero_has_a_place():
    made = {f"case {n}": np.array([0.0, 10.0**-n]) for n in range(4)}
    figure = course_plots.plot_differences(made, "a note")
    lines = figure.axes[0].lines[:4]
    assert [line.get_ydata().tolist() for line in lines] == [[1e-17, 10.0**-n] for n in range(4)]
    assert lines[0].get_xdata().tolist() == [1, 2]
    assert words(figure.legends[0].get_texts()) == [*made, "a note"]
    assert len({line.get_linestyle() for line in lines}) == 4
    with pytest.raises(ValueError, match="zip"):
        course_plots.plot_differences({"alone": np.ones(3)}, "a note")


def test_forces_cross_at_the_equilibrium():
    lr, wd, gradient = 0.1, 1e-2, 3.0
    balance = theory.equilibrium_norm(lr, wd, gradient)
    left, right = course_plots.plot_forces(np.ones((5, 2)), lr, wd, gradient).axes
    assert len(left.lines) == 3
    assert left.lines[-1].get_ydata()[0] == right.lines[-1].get_xdata()[0] == balance
    norm, shrinks = right.lines[0].get_data()
    crossing = np.interp(0, shrinks - right.lines[1].get_ydata(), norm)
    assert crossing == pytest.approx(balance, rel=1e-3)


def test_budgets_are_those_of_the_runs(orbits):
    axes = course_plots.plot_budgets(orbits, [1, 0]).axes
    assert [ax.get_title() for ax in axes] == [f"learning rate {float(orbits.lr[run]):g}" for run in (1, 0)]
    for ax, run in zip(axes, (1, 0), strict=True):
        decay, growth = ax.lines
        one = orbits.isel(run=run)
        np.testing.assert_allclose(decay.get_ydata(), 2 * decay.get_xdata())
        taken = decay.get_ydata()[-1] - growth.get_ydata()[-1]
        change = 2 * np.log(one.weight_norm[0] / one.weight_norm[-1])
        assert taken == pytest.approx(float(change), abs=0.05)


def test_published_panels_and_teeth():
    figure = course_plots.plot_published_panels(curves(), {"si_weight_norm": "norm", "train_loss": "loss"})
    assert [ax.get_ylabel() for ax in figure.axes] == ["norm", "loss"]
    assert words(figure.legends[0].get_texts()) == ["0.1", "0.3"]
    tooth = pd.DataFrame({"begin": [1.0], "law": [4.0], "highest": [9.0], "lowest": [3.0]})
    (line,) = course_plots.plot_teeth(curves(), tooth).axes[0].lines
    assert line.get_xydata().tolist() == [[1, 9], [5, 3]]


def test_runs_stand_beside_published_curves(orbits):
    ours = orbits.assign(test_error=(("run", "eval_step"), np.full((2, 3), 0.1))).assign_coords(eval_step=[0, 9, 18])
    runs = [ours.isel(run=[run]).assign_coords(lr=("run", [lr])) for run, lr in enumerate((0.1, 0.3))]
    loss, norm, errors, phases = course_plots.plot_beside(curves(), runs, epoch=9, longest=40).axes
    for ax, name in ((loss, "train_loss"), (norm, "weight_norm")):
        assert len(ax.collections) == 2
        for line, one in zip(ax.lines, runs, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), one[name][0])
            np.testing.assert_allclose(line.get_xdata(), one.step / 9)
    assert [line.get_xdata().tolist() for line in errors.lines] == [[0, 1, 2]] * 2
    assert loss.get_xlim() == norm.get_xlim() == errors.get_xlim() == (0, 40)
    assert [line.get_color() for line in loss.lines] == [line.get_color() for line in errors.lines]
    assert phases.get_title() == "phase diagram (ours)"
    runs[0] = runs[0].assign_coords(lr=("run", [0.2]))  # nothing is published at this rate
    loss = course_plots.plot_beside(curves().query("learning_rate == 0.3"), runs, epoch=9, longest=40).axes[0]
    (band,) = loss.collections
    np.testing.assert_allclose(band.get_facecolor()[0, :3], loss.lines[1].get_color())


def test_the_adversary_attains_the_bound():
    one = bounds.random_settings(20).query("bound > 20").iloc[[0]]
    random, adversary, level, bound = course_plots.plot_first_jump(one, more=5).axes[0].lines
    at = int(np.ceil(one.bound.iloc[0]))
    assert len(adversary.get_ydata()) == int(one.bound.iloc[0]) + 5
    assert bound.get_xdata()[0] == one.bound.iloc[0]
    assert adversary.get_ydata()[at] == pytest.approx(level.get_ydata()[0], rel=0.02)
    assert (random.get_ydata()[:at] >= adversary.get_ydata()[:at] * (1 - 1e-9)).all()


def test_free_decay_has_the_law_and_the_line():
    passages = pd.DataFrame({"steps": [10.0, 20.0], "law": [9.0, 19.0], "lr_wd": [0.1, 0.01]})
    runs = pd.DataFrame({"lr_wd": [0.1, 0.01], "median_period": [5.0, 50.0], "regime": "periodic"})
    line = pd.Series([50.0, 5.0], [0.01, 0.1])
    figure = course_plots.plot_free_decay(passages, runs, line)
    left, right = figure.axes
    assert right.lines[0].get_xydata().tolist() == [[0.01, 50], [0.1, 5]]
    assert sum(map(len, (part.get_offsets() for part in left.collections))) == 2
    assert words(figure.legends[0].get_texts()) == ["0.01", "0.1"]


@pytest.mark.parametrize("in_rows", [False, True])
def test_cases_share_the_axis_of_a_quantity(orbits, in_rows):
    cases = dict.fromkeys(("one", "two", "three"), orbits)
    axes = course_plots.plot_cases(cases, ("train_loss", "weight_norm"), in_rows)
    assert axes.shape == ((3, 2) if in_rows else (2, 3))
    by_case = axes if in_rows else axes.T
    assert [own[0].get_title("left") for own in by_case] == [*cases]
    by_case[0][1].set_ylim(1, 77)
    assert by_case[2][1].get_ylim() == (1, 77) != by_case[2][0].get_ylim()


def test_held_runs_and_epsilons_have_a_point_each():
    table = pd.DataFrame({"elr": [0.01, 0.1], "excursions": [0, 5], "last_loss": [1e-3, 1.0]})
    left, right = course_plots.plot_held(table, {"excursions": "number", "last_loss": "loss"}, 0.05).axes
    assert left.lines[0].get_xydata().tolist() == [[0.01, 0], [0.1, 5]]
    assert left.lines[1].get_xdata()[0] == right.lines[1].get_xdata()[0] == 0.05
    assert (left.get_yscale(), right.get_yscale()) == ("linear", "log")
    (ax,) = course_plots.plot_epsilons({1e-5: [3, 4], 1e-11: [1]}, (1e-3, 1e-1)).axes
    assert [line.get_xdata().tolist() for line in ax.lines] == [[1e-5, 1e-5], [1e-7]]
    assert ax.get_xlabel() == "epsilon (leftmost: 1e-11)"
    assert ax.patches[0].get_x() == 1e-3


def test_the_map_counts_breaks_and_bounds_their_beginning(orbits):
    table, named = regimes.summarize(orbits), regimes.classify_regime(orbits)
    steps, at_once = orbits.sizes["step"], 2.0
    figure = course_plots.plot_map(named, table, 0.1, steps, at_once)
    ax = figure.axes[0]
    assert words(ax.texts) == [f"{count:.3g}" for count in table.destabilizations if count]
    lines = {line.get_label(): line.get_data() for line in ax.lines}
    lr, wd = lines["lr wd T = 1/2"]
    np.testing.assert_allclose(lr * wd * steps, 0.5)
    lr, wd = lines["a free decay to the first break"]
    shown = np.isfinite(wd)
    assert (lr[shown] < at_once).all()
    np.testing.assert_allclose(lr[shown] * np.exp(2 * lr * wd * steps)[shown], at_once)
    assert words(ax.get_xticklabels()) == [f"{lr:g}" for lr in np.unique(table.lr)]


def test_the_collapse_has_the_map_and_each_column(orbits):
    table, named = regimes.summarize(orbits), regimes.classify_regime(orbits)
    axes = course_plots.plot_collapse(
        named, table, {"late_loss": "loss", "late_elr": "rate", "late_norm": "norm"}, undecided=0.1
    ).axes
    assert [ax.get_ylabel() for ax in axes[1:]] == ["loss", "rate", "norm"]
    drawn = [point for part in axes[3].collections for point in part.get_offsets().tolist()]
    np.testing.assert_allclose(sorted(drawn), sorted(table[["lr_wd", "late_norm"]].values.tolist()))


def test_states_are_told_apart():
    table = pd.DataFrame({"elr": [0.1, 0.1, 0.2], "wait": [5.0, 7, 9], "late_loss": 0.1, "state": ["a", "b", "a"]})
    figure = course_plots.plot_states(table[:2], table, ["a", "b"], low=0.03)
    left, right = figure.axes
    assert left.get_ylabel() == "steps to a loss below 0.03"
    assert len(left.containers) == len(right.containers) == 2
    assert words(figure.legends[0].get_texts()) == ["a", "b"]


def test_a_laboratory_has_a_panel_for_each_result_and_a_line_for_each_seed(orbits):
    rates = orbits.assign(elr=orbits.lr / orbits.weight_norm**2)
    results = [rates, rates.isel(run=[0])]
    figure = course_plots.plot_laboratory(results, {"border": 5e-4})
    assert [len(ax.lines) for ax in figure.axes] == [len(rates.run) + 1, 2]
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), rates.elr[0])
    assert figure.axes[1].lines[1].get_ydata()[0] == 5e-4
    assert words(figure.legends[0].get_texts())[-1] == "border"


def test_places_are_shares():
    places = {128: np.array([0, 0, 2, 1]), 8: np.array([], int)}
    left, right = course_plots.plot_places(places, length=4).axes
    assert [bar.get_height() for bar in left.patches] == [0.5, 0.25, 0.25, 0]
    assert [bar.get_height() for bar in right.patches] == [0] * 4
    assert left.lines[0].get_ydata()[0] == 0.25
    assert left.get_title() == "last batch: 128"


def test_columns_mark_the_breaks_of_a_single_run_unless_told_not_to(orbits):
    breaks = len(periods.find_destabilizations(orbits.isel(run=[0])))
    assert breaks
    for mark in (True, False):
        axes = panels.plot_columns({"one": orbits}, ["train_loss"], mark=mark)[1]
        assert len(axes[0, 0].lines) == 1 + breaks * mark
