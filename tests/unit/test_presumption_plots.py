"""Figures of the presumptions: what is drawn where."""

import numpy as np
import pandas as pd
import pytest

from periodic_lib.analysis import approaches
from periodic_lib.figures import presumption_plots
from periodic_lib.theory.toys import SphereToy

pytestmark = pytest.mark.usefixtures("closed_figures")


@pytest.fixture(scope="module")
def orbits():
    data = SphereToy(lr_wd=[1e-2, 2e-2], seed=[0, 0]).run(2500)
    return data.assign_attrs(steps_per_epoch=4)


def test_ratios_have_a_row_per_setting():
    table = pd.DataFrame({"setting": ["a", "b", "a"], "norm": [1.0, 1.1, 0.9], "typical": [0.1, 1, 1]})
    figure = presumption_plots.plot_ratios({"all": table}, {"norm": "N", "typical": "T"}, within=0.05)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["a", "b"]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [0, 1, 0]
    assert figure.axes[1].get_xscale() == "log"


def test_a_border_is_drawn_between_the_columns_it_lies_between():
    rows = [(n, p) for n in (0.0, 0.1) for p in (1e-3, 1e-2, 1e-1)]
    table = pd.DataFrame(rows, columns=["noise", "lr_wd"]).assign(budget=0.5, swing=1.0)
    border = pd.Series({0.0: 1e-9, 0.1: 10**-1.5})
    panels = {"toy": table, "net": table}
    figure = presumption_plots.plot_plane(panels, {name: {"cold border": border} for name in panels})
    upper, lower = figure.axes[0].lines  # noise 0.1 is on top
    assert upper.get_xdata().tolist() == pytest.approx([2, 2])  # half way between the 2nd and 3rd
    assert upper.get_ydata().tolist() == [0, 1]
    assert np.isnan(lower.get_xdata()).all()


def test_areas_are_drawn_from_the_top():
    areas = pd.DataFrame({"area": [0.9, 0.6], "low": [0.8, 0.5], "high": [1, 0.7]}, ["best", "worst"])
    ax = presumption_plots.plot_areas(areas).axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["best", "worst"]
    assert ax.lines[0].get_xydata().tolist() == [[0.9, 1], [0.6, 0]]


def test_approaches_and_aftermath_count_breaks(orbits):
    left, _ = presumption_plots.plot_approaches([orbits]).axes
    assert len(left.lines) == 2
    lr = float(orbits.lr[0])
    figure = presumption_plots.plot_aftermath({lr: orbits.isel(run=[0])})
    count = len(approaches.aligned(orbits.isel(run=[0]), "train_loss")[1])
    assert figure.axes[0].get_title() == f"learning rate {lr:g}, {count} breaks"


def test_dial_about_the_line_return_and_memory_are_drawn(orbits):
    table = pd.DataFrame({"lr_wd": [1e-3, 1e-2], "below": 0.5, "on": 0.3, "above": 0.2, "top": 0.4})
    assert len(presumption_plots.plot_dial(table.assign(wait=1.0, late_loss=0.1), 2.3).axes) == 4
    runs = {"a": orbits.isel(run=[0]), "b": orbits.isel(run=[1])}
    assert len(presumption_plots.plot_about_the_line(runs).axes) == 2
    norm = np.ones((10, 2))
    assert len(presumption_plots.plot_return(norm, norm, (2, 1), memory=5, window=3).axes[1].lines) == 2
    figure = presumption_plots.plot_memory(
        {"one": (orbits.isel(run=0), slice(None))} | {"two": (orbits.isel(run=1), slice(9))}
    )
    assert len(figure.axes[0].lines) == 3
    shown = table.assign(elr=1.0, variance=0.1, family=["x", "y"])
    assert len(presumption_plots.plot_rate_error(shown, "family").axes) == 2


def test_there_is_a_line_per_seed_and_breaks_have_a_zero():
    table = pd.DataFrame({"lr_wd": [1e-3, 1e-2] * 2, "init_seed": [0, 0, 1, 1], "early": [0, 30, 1, 20]})
    (ax,) = presumption_plots.plot_by_seed(table, {"early": "breaks"}).axes
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0, 30], [1, 20]]
    assert ax.get_title() == "breaks"
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0", "1", "10"]
    assert ax.get_ylim()[0] == -0.3
