import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from periodic_lib import Record, Setup, grid, plots, train


@pytest.fixture(scope="module")
def dataset():
    runs = grid(lr=[0.1, 1], weight_decay=1e-2, seed=[0, 1])
    return train(Setup(width=8, depth=1, steps=50), runs, Record(evaluate_every=10), progress=False)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


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
    figure = plots.plot_one_run(dataset.isel(run=[0]), kicks=[10, 20])
    assert len(figure.axes[0].lines) == 3


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


def test_predictions_lie_on_the_diagonal_if_they_are_right():
    table = pd.DataFrame({"t": [1.0, 10.0, np.nan], "law": [1.0, 10.0, 3.0], "el": [0.1, 0.2, 0.2]})
    ax = plots.plot_prediction(table, "t", "law", hue="el", ax=plt.figure().gca())
    assert ax.get_legend_handles_labels()[1] == ["0.1", "0.2"]
    assert [len(points.get_offsets()) for points in ax.collections] == [1, 1]
    x, y = ax.lines[0].get_data()
    assert list(x) == list(y)
    second = ax.collections[1].get_facecolor()
    alone = plots.plot_prediction(table[table.el == 0.2], "t", "law", "el", plt.figure().gca(), order=[0.1, 0.2])
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
