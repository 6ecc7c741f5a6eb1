"""What the figures of chapter 18 show is what the tables hold."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from periodic_lib import use_plots
from periodic_lib.clipping import clipped_norm

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
