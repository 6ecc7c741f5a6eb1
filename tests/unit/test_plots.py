import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from periodic_lib import Record, Setup, anchors, grid, train
from periodic_lib.analysis import periods
from periodic_lib.figures import plots


@pytest.fixture(scope="module")
def dataset():
    runs = grid(lr=[0.1, 1], weight_decay=1e-2, seed=[0, 1])
    return train(Setup(width=8, depth=1, steps=50), runs, Record(evaluate_every=10), progress=False)


pytestmark = pytest.mark.usefixtures("closed_figures")


def test_trajectory_draws_each_run_and_labels_axes(dataset):
    ax = plots.plot_trajectory(dataset, "weight_norm", plt.figure().gca())
    assert len(ax.lines) == 4
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("step", "weight norm", "log")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), dataset.weight_norm[0], rtol=1e-5)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0.1", "1"]
    assert plots.plot_trajectory(dataset, "train_loss").get_ylabel() == "training loss [nats]"


def test_a_learning_rate_has_one_colour_everywhere(dataset):
    trajectory = plots.plot_trajectory(dataset, "weight_norm", plt.figure().gca())
    phase = plots.plot_phase_diagram(dataset, plt.figure().gca())
    colours = [line.get_color() for line in trajectory.lines]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert phase.lines[0].get_color() == colours[0]


def test_the_phase_diagram_has_the_balance_line(dataset):
    ax = plots.plot_phase_diagram(dataset)
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    x, y = dashed[0].get_data()
    lr, wd = 0.1, 1e-2
    rho = np.sqrt(lr / x)  # on the line the norm stays: rho' = rho
    np.testing.assert_allclose(np.hypot((1 - lr * wd) * rho, lr * y / rho), rho, rtol=1e-6)
    assert ax.get_xlabel() == "effective learning rate"


def test_the_main_figure_has_four_labelled_panels(dataset):
    figure = plots.plot_dynamics(dataset)
    labels = ["training loss [nats]", "test error", "weight norm", "effective gradient norm"]
    assert [ax.get_ylabel() for ax in figure.axes] == labels
    assert figure.legends[0].get_title().get_text() == "learning rate"


def test_one_run_marks_its_destabilizations(dataset):
    figure = plots.plot_one_run(dataset.isel(run=[0]), destabilizations=[10, 20])
    assert len(figure.axes[0].lines) == 3
    assert [ax.get_ylabel() for ax in figure.axes] == ["training loss [nats]", "weight norm"]
    assert len(plots.plot_one_run(dataset.isel(run=[0])).axes[0].lines) == 1


def test_stacked_panels_share_steps_and_marks(dataset):
    one = dataset.isel(run=[0]).assign(balance_ratio=periods.balance_ratio(dataset))
    names = ["train_loss", "test_error", "balance_ratio"]
    axes = plots.plot_stacked(one, names, [10, 20], color="0.15", lw=0.7)
    assert [ax.get_ylabel() for ax in axes] == ["training loss [nats]", "test error", "balance ratio"]
    assert [ax.get_xlabel() for ax in axes] == ["", "", "step"]
    for ax in axes:
        *marks, line = ax.lines
        assert [mark.get_xdata()[0] for mark in marks] == [10, 20]
        assert (line.get_color(), line.get_linewidth()) == ("0.15", 0.7)
    np.testing.assert_array_equal(axes[1].lines[-1].get_xdata(), one.eval_step)
    assert axes[0].get_xlim() == axes[2].get_xlim()


def test_stacked_panels_take_a_column_of_a_grid_and_a_table_of_destabilizations(dataset):
    grid = plt.figure().subplots(2, 2, sharey="row")
    table = pd.DataFrame({"start": [5, 30], "end": [6, 31]})
    axes = plots.plot_stacked(dataset, ["train_loss", "elr"], table, grid[:, 1])
    assert list(axes) == list(grid[:, 1])
    assert len(axes[0].lines) == 2 + 4
    assert axes[0].get_ylabel() == ""  # it is at the left of the row
    assert not grid[0, 0].lines
    with pytest.raises(ValueError, match="zip"):
        plots.plot_stacked(dataset, ["train_loss"], axes=grid[:, 0])


def test_style_is_set_only_when_asked():
    before = plt.rcParams["figure.facecolor"], plt.rcParams["axes.grid"]
    with plt.rc_context():
        plots.use_style()
        assert plt.rcParams["figure.facecolor"] == "white"
    assert (plt.rcParams["figure.facecolor"], plt.rcParams["axes.grid"]) == before


def test_phases_are_shaded_where_they_are():
    ax = plt.figure().subplots()
    phases = np.array(["A"] * 5 + ["B"] * 2 + ["C"] + [""] * 2)
    plots.shade_phases(ax, np.arange(10) * 10, phases, legend=True)
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in ax.patches]
    assert spans == [(0, 50), (50, 70), (70, 80)]
    assert [text.get_text() for text in ax.figure.legends[0].get_texts()] == ["phase A", "phase B", "phase C"]


def bars(ax):
    """Return x, median, lowest, highest of every group drawn, one array (groups, 4) per hue."""
    found = []
    for container in ax.containers:
        x, middle = np.array(container.lines[0].get_data(), float)
        ends = np.array([segment[:, 1] for segment in container.lines[2][0].get_segments()])
        found.append(np.column_stack([x, middle, ends]))
    return found


def test_groups_have_a_median_and_a_bar_from_lowest_to_highest():
    loss = [1.0, 2.0, 9.0, 0.1, 0.3, np.nan, 0.0]
    table = pd.DataFrame({"lr": [0.1] * 3 + [1.0] * 4, "late_loss": loss})
    ax = plots.plot_groups(table, "lr", "late_loss", ax=plt.figure().gca())
    np.testing.assert_allclose(bars(ax)[0], [[0.1, 2, 1, 9], [1, 0.2, 0.1, 0.3]])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("learning rate", "late loss")
    joined, apart = (
        plots.plot_groups(table, "lr", "late_loss", ax=plt.figure().gca(), join=join).containers[0].lines[0]
        for join in (True, False)
    )
    assert (joined.get_linestyle(), apart.get_linestyle()) == ("-", "None")


def test_groups_of_words_stand_side_by_side_and_hues_beside_each_other():
    table = pd.DataFrame(
        {"width": ["8", "16", "all"] * 4, "lr": [0.1] * 6 + [1.0] * 6, "balance": [1.0] * 6 + [2.0] * 6}
    )
    ax = plots.plot_groups(table, "width", "balance", hue="lr", ax=plt.figure().gca())
    first, second = bars(ax)
    np.testing.assert_allclose((first[:, 0] + second[:, 0]) / 2, [0, 1, 2])
    assert (first[:, 0] < second[:, 0]).all()
    assert (first[:, 1:] == 1).all()
    assert (second[:, 1:] == 2).all()
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["8", "16", "all"]
    assert ax.get_legend_handles_labels()[1] == ["0.1", "1"]
    colours = [container.lines[0].get_color() for container in ax.containers]
    assert colours == list(plots.colors([0.1, 1.0]).values())  # as in every figure
    alone = plots.plot_groups(table[table.lr == 1], "width", "balance", "lr", plt.figure().gca(), order=[0.1, 1.0])
    assert alone.containers[0].lines[0].get_color() == colours[1]


def test_hues_of_numbers_stand_beside_each_other_on_a_logarithmic_axis():
    table = pd.DataFrame({"lr_wd": [1e-3, 1e-2] * 2, "seed": [0, 0, 1, 1], "late_loss": [1.0, 2.0, 3.0, 4.0]})
    ax = plots.plot_groups(table, "lr_wd", "late_loss", hue="seed", ax=plt.figure().gca())
    first, second = bars(ax)
    np.testing.assert_allclose(first[:, 0] * second[:, 0], [1e-6, 1e-4])
    np.testing.assert_allclose(second[:, 0] / first[:, 0], 10**0.12)
    assert plots.plot_groups(table.iloc[:0], "lr_wd", "late_loss", ax=plt.figure().gca()).get_yscale() == "log"


def test_points_against_lr_wd_lie_where_they_are():
    table = pd.DataFrame({"lr_wd": [1e-3, 1e-2, 1e-2], "late_elr": [2.0, 3.0, -1.0], "lr": [0.1, 1.0, 1.0]})
    ax = plots.plot_against_lr_wd(table, "late_elr", hue="lr", ax=plt.figure().gca())
    assert [points.get_offsets().tolist() for points in ax.collections] == [[[1e-3, 2]], [[1e-2, 3]]]
    assert ax.get_xlabel() == "learning rate × weight decay"
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.get_legend_handles_labels()[1] == ["0.1", "1"]
    named = table.assign(regime=["periodic", "-", "-"])
    ax = plots.plot_against_lr_wd(named, "late_elr", "regime", plt.figure().gca(), order=["periodic", "-"])
    drawn = [plt.matplotlib.colors.to_hex(points.get_facecolor()) for points in ax.collections]
    assert drawn == [plots.REGIME_COLORS["periodic"], "#000000"]
    plain = plots.plot_against_lr_wd(table, "late_elr", ax=plt.figure().gca())
    assert len(plain.collections[0].get_offsets()) == 2


def test_predictions_lie_on_the_diagonal_if_they_are_right():
    table = pd.DataFrame({"t": [1.0, 10.0, np.nan], "law": [1.0, 10.0, 3.0], "lr_wd": [0.1, 0.2, 0.2]})
    ax = plots.plot_prediction(table, "t", "law", hue="lr_wd", ax=plt.figure().gca())
    assert ax.get_legend_handles_labels()[1] == ["0.1", "0.2"]
    assert [len(points.get_offsets()) for points in ax.collections] == [1, 1]
    x, y = ax.lines[0].get_data()
    assert list(x) == list(y)
    second = ax.collections[1].get_facecolor()
    alone = plots.plot_prediction(table[table.lr_wd == 0.2], "t", "law", "lr_wd", plt.figure().gca(), order=[0.1, 0.2])
    np.testing.assert_array_equal(alone.collections[0].get_facecolor(), second)
    assert plots.plot_prediction(table.iloc[:0], "t", "law", ax=plt.figure().gca()).get_xscale() == "log"


def test_the_map_has_one_stripe_per_run_and_seed_in_the_colour_of_its_regime(dataset):
    regimes = dataset.train_loss.isel(step=0, drop=True).copy(
        data=np.array(["convergence", "convergence", "periodic", "equilibrium"], dtype=object)
    )
    ax = plots.plot_regimes(regimes)
    stripes = {(round(patch.get_xy()[0][0], 6), patch.get_facecolor()) for patch in ax.patches}
    assert len(ax.patches) == len(stripes) == 4
    colours = [plt.matplotlib.colors.to_hex(patch.get_facecolor()) for patch in ax.patches]
    assert colours == [plots.REGIME_COLORS[name] for name in regimes.values]
    left, right = ax.get_xlim()
    assert left * right == pytest.approx(0.1 * 1)  # the cells are centred on their values
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("learning rate", "weight decay")
    plots.regime_legend(ax.figure, regimes)
    assert [text.get_text() for text in ax.figure.legends[0].get_texts()] == [
        "convergence",
        "periodic",
        "equilibrium",
    ]


def test_the_map_names_any_coordinate_by_the_glossary(dataset):
    regimes = dataset.train_loss.isel(step=0, drop=True).copy(data=np.array(["periodic"] * 4, dtype=object))
    sheared = regimes.assign_coords(lr_wd=regimes.lr * regimes.weight_decay)
    assert plots.plot_regimes(sheared, x="lr_wd").get_xlabel() == "learning rate × weight decay"


def test_published_curves_are_bands_and_phase_diagrams_share_colours(dataset):
    curves = anchors.published("lobacheva2021_figure2")
    ax = plots.plot_published(curves, "si_weight_norm", plt.figure().gca())
    assert len(ax.collections) == curves[curves.quantity == "si_weight_norm"].learning_rate.nunique()
    assert ax.get_yscale() == "log"
    of = {float(lr): color for lr, color in zip(np.unique(dataset.lr), ("C3", "C4", "C5"), strict=False)}
    ax = plots.plot_phase_diagram(dataset, plt.figure().gca(), of)
    assert {line.get_color() for line in ax.lines} <= set(of.values())
