"""Data of one's own with numbers that no training can use: refused in one line; or hardly can: trained on."""

import re

import numpy as np
import pytest
from harness import write_own_data

REFUSED = {
    "a nan": ("x_train", np.nan),
    "an infinity": ("x_test", np.inf),
    "a number that float32 has not": ("x_test", 1e39),
    "numbers whose squares overflow": ("x_train", 1e200),
    "numbers that are all but zero": ("x_train", 1e-320),
    "a test number too large": ("x_test", 1e308),
}
LABELS = {
    "a class that is missing": np.arange(48) % 3 * 2,
    "one class": np.zeros(48, np.int64),
    "a label of a thousand million": np.arange(48) % 3 * 10**9,
    "a label below zero": np.arange(48) % 3 - 1,
    "labels with a fraction": np.arange(48) % 3 + 0.5,
    "a label too few": np.arange(47) % 3,
}


@pytest.mark.fault("data that cannot be used", 16)
def test_data_that_cannot_be_used(fault, place, outcome):
    ways = [*REFUSED, *LABELS, "all features constant", "a batch of one", "a training set of one", "no example"]
    outcome.how = ways[fault.seed % len(ways)]
    draw, options = fault.draw(), []
    good = {"x_train": draw.normal(size=(48, 6)), "x_test": draw.normal(size=(48, 6))}
    changed = {}
    if outcome.how in REFUSED:
        name, value = REFUSED[outcome.how]
        wrong = good[name].copy()
        if "numbers" in outcome.how:
            wrong *= value
        else:
            wrong[tuple(draw.integers(0, wrong.shape))] = value
        changed = {name: wrong}
    elif outcome.how in LABELS:
        changed = {"y_train": LABELS[outcome.how]}
    elif outcome.how == "all features constant":
        changed = {"x_train": np.full((48, 6), 3.0)}
    elif outcome.how == "no example":
        changed = {"x_train": np.zeros((0, 6)), "y_train": np.zeros(0, int)}
    else:
        options = ["--set", "batch_size=47"] if "batch" in outcome.how else ["--set", "train_size=1"]
    own = place.folder / "own.npz"
    write_own_data(own, **changed)
    struck = place.run("own", *options)
    if struck.status != 2 or struck.text.count("\n") != 1 or not re.search(r"`\w+`", struck.text):
        outcome.unclear.append(f"refused in one line that names what is wrong? {struck.status}: {struck.text[-1500:]}")
    write_own_data(own)  # the reader mends it
    place.survives(outcome, struck, experiment="own", status=[2])


@pytest.mark.fault("data that can hardly be used", 4)
def test_data_that_can_hardly_be_used(fault, place, outcome):
    ways = [
        "a constant feature",
        "two examples a batch",
        "one outlier",
        "a learning rate too large",
    ]
    outcome.how = ways[fault.seed % len(ways)]
    draw, options = fault.draw(), []
    x = draw.normal(size=(48, 6))
    if outcome.how == "a constant feature":
        x[:, 2] = 7
    elif outcome.how == "one outlier":
        x[0, 0] = 1e6
    elif outcome.how == "two examples a batch":
        options = ["--set", "batch_size=2"]
    else:
        options = ["--set", "lr=[0.1, 1e30]", "--set", "weight_decay=0"]
    write_own_data(place.folder / "own.npz", x_train=x)
    struck = [place.run("own", *options, "--force") for _ in range(2)]
    if struck[0].status or struck[0].served != struck[1].served:
        outcome.wrong.append(f"not the same twice, or not at all: {struck[0].text[-1500:]}")
    if outcome.how != ways[3] and "diverged" in struck[0].text:
        outcome.wrong.append("nan without a cause")
    for one in struck:
        one.served.clear()  # numbers of other data than the undisturbed run's
    write_own_data(place.folder / "own.npz")
    place.survives(outcome, struck, experiment="own")
