"""What the figures of chapters 15 and 18 show is what the tables hold."""

import matplotlib
import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from periodic_lib.analysis.clipping import clipped_norm
from periodic_lib.figures import use_plots

matplotlib.use("agg")


def test_a_mean_and_every_task_are_drawn():
    table = pd.DataFrame({"task": [1, 2, 1, 2], "steps": [10.0, 20.0, 30.0, 60.0], "elr": [0.1, 0.2, 0.3, 0.4]})
    left, right = use_plots.plot_tasks({"one": table, "two": table}).axes
    assert left.lines[0].get_ydata().tolist() == [20, 40]
    assert right.lines[1].get_xdata().tolist() == table.elr.tolist()


def test_limits_have_their_lines_and_the_balance():
    places = {"run": [0, 1, 2], "step": np.arange(10)}
    places |= {name: ("run", [value] * 3) for name, value in (("lr", 0.1), ("weight_decay", 0.2))}
    norm = ("run", "step"), np.ones((3, 10))
    columns = {"run": [0, 1, 2], "seed": 0, "clip_norm": [np.nan, 0.3, 1.0], "skip_above": np.nan}
    columns |= {"norm_end": [2.0, 0.2, 0.5], "late_breaks": [4, 0, 1]}
    left, right = use_plots.plot_limits(xr.Dataset({"weight_norm": norm}, places), pd.DataFrame(columns)).axes
    assert [text.get_text() for text in left.texts] == ["no limit", "1", "0.3"]
    balance, quiet, broken = right.lines
    assert balance.get_ydata()[0] == pytest.approx(clipped_norm(0.1, 0.2, 0.2))
    assert (quiet.get_xdata()[0], quiet.get_ydata()[0]) == (0.3, 0.2)
    assert (broken.get_xdata()[0], broken.get_ydata()[0]) == (1.0, 0.5)
    assert broken.get_markerfacecolor() == "white"


def test_the_worth_of_networks_is_drawn_run_by_run():
    table = pd.DataFrame({"single": [0.2, 0.3], "ensemble": [0.1, 0.2], "average": [0.5, 0.6]})
    ax = matplotlib.figure.Figure().subplots()
    use_plots.plot_worth({"minima": table, "held": table + 0.1}, ax)
    minima, held = ax.lines
    assert minima.get_ydata().tolist() == [0.2, 0.3, 0.1, 0.2, 0.5, 0.6]
    assert held.get_ydata()[-1] == pytest.approx(0.7)
    assert minima.get_xdata()[2] == pytest.approx(1 - 0.12)


def test_the_limit_that_follows_is_drawn_at_the_first_break():
    from periodic_lib.analysis.clipping import adaptive_limits

    step, gradient = np.arange(600), np.random.default_rng(0).uniform(1, 2, (2, 600))
    gradient[:, 400:420] = 30.0
    loss = np.ones((2, 600))
    loss[:, 401] = 9.0
    norm = np.stack([np.exp(-0.01 * (step % 400))] * 2)
    data = {"weight_norm": norm, "grad_norm": gradient, "train_loss": loss, "elr": 0.1 / norm**2}
    places = {"run": [3, 4], "step": step, "clip_above": ("run", [2.5, 1.0])}
    limited = xr.Dataset({name: (("run", "step"), values) for name, values in data.items()}, places)
    left, right = use_plots.plot_adaptive(limited.isel(run=0), limited).axes
    assert [line.get_label() for line in left.lines] == ["no limit", "z* = 2.5", "z* = 1"]
    drawn, used = right.lines
    at = int(drawn.get_ydata().argmax())  # the first of the long gradients, of step 400
    assert drawn.get_ydata()[at] == 30
    assert used.get_ydata()[at] == pytest.approx(float(adaptive_limits(limited)[0, 400]))
    assert used.get_ydata()[at] < 10


def test_a_walk_lies_over_the_runs_that_are_held():
    """The path is the running median of the loss, without the first third."""
    path = {"elr": ("step", np.geomspace(1e-4, 1e-2, 9)), "train_loss": ("step", [1.0, 1, 1, 9, 1, 2, 2, 8, 2])}
    held = pd.DataFrame({"elr": [1e-3, 1e-3, 1e-2], "late_loss": [1.0, 3.0, 5.0]})
    ax = use_plots.plot_walk(xr.Dataset(path, {"step": range(9)}), 3, held, border=5e-3).axes[0]
    walk, dots, border = ax.lines
    assert walk.get_ydata().tolist() == [1, 1, 2, 2, 2, 2]
    assert dots.get_xydata().tolist() == [[1e-3, 2], [1e-2, 5]]
    assert border.get_xdata()[0] == 5e-3
