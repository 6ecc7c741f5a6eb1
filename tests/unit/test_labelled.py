"""The judge of regimes and the finder of destabilizations against the eye: tests/labelled/README.md says how."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.metrics import cohen_kappa_score

from periodic_lib import classify_regime, find_destabilizations, theory
from periodic_lib.analysis.regimes import GUESSING_SHARE

FOLDER = Path(__file__).parents[1] / "labelled"
GROUPS = ("design", "held out")  # and "blind", which nothing below is asserted of but what was measured
CLASSES = 10
SEEN_AS_PERIODS = ("one break", "two breaks", "irregular breaks")  # the eye's word for them is "periodic"
DATED_TO = 1 / 100  # of the record: what the eye can tell on the plots


@pytest.fixture(scope="module")
def labels():
    table = pd.read_csv(FOLDER / "labels.csv", keep_default_na=False)
    error = pd.to_numeric(table.train_error)
    looks_like_guessing = (table.label == "divergence") & (error < GUESSING_SHARE * (1 - 1 / CLASSES))
    found = [regime(run, row) for run, row in table.iterrows()]
    table = table.assign(found=found, looks_like_guessing=looks_like_guessing)
    return table[table.group.isin(GROUPS)]


@pytest.fixture(scope="module")
def blind():
    table = pd.read_csv(FOLDER / "labels.csv", keep_default_na=False)
    table = table[table.group == "blind"]
    return table.assign(found=[regime(run, row) for run, row in table.iterrows()])


def told_by_eye(labels):
    """Return the runs whose label the measured training error does not contradict."""
    return labels[~labels.looks_like_guessing]


ARRAYS = np.load(FOLDER / "runs.npz")
LOSS, NORM = np.exp(ARRAYS["log_loss"].astype(float)), np.exp(ARRAYS["log_norm"].astype(float))


def steps(row):
    return row.first_step + row.every * np.arange(LOSS.shape[1])


def regime(run, row):
    """The judge's word, in the words of the labels."""
    word = classify_regime(stored(run, row)).item()
    return "periodic" if word in SEEN_AS_PERIODS else word


def stored(run, row):
    balance = np.tan(theory.equilibrium_angle(row.lr, row.weight_decay))
    angle = np.arctan(ARRAYS["balance_ratio"][run].astype(float) * balance)
    values = {"train_loss": LOSS[run], "weight_norm": NORM[run], "angular_update": angle}
    values["elr"] = row.lr / NORM[run] ** 2
    coordinates = {"run": [run], "step": steps(row)}
    coordinates |= {name: ("run", [row[name]]) for name in ("lr", "weight_decay", "momentum")}
    one = xr.Dataset({name: (("run", "step"), value[None]) for name, value in values.items()}, coordinates)
    if row.train_error:
        error = (("run", "eval_step"), [[float(row.train_error)]])
        classes = 2 if row.what.startswith("breast cancer") else CLASSES
        one = one.assign_coords(eval_step=steps(row)[-1:]).assign(train_error=error).assign_attrs(classes=classes)
    return one


def agreement(table):
    return (table.label == table.found).mean()


def test_the_sample_has_enough_runs_of_every_regime(labels):
    assert len(labels) >= 60
    assert set(labels.label) == {"convergence", "periodic", "equilibrium", "divergence"}
    for group in GROUPS:
        assert labels[labels.group == group].label.value_counts().min() >= 2
        assert labels[labels.group == group].what.nunique() >= 4


def test_a_high_loss_that_looks_like_guessing_is_told_by_the_error(labels):
    """The eye saw a loss of 2.3 and more; the network tells a fifth to a third of its examples all the same."""
    contradicted = labels[labels.looks_like_guessing]
    assert len(contradicted) == 4
    assert pd.to_numeric(contradicted.train_error).between(0.65, 0.8).all()
    assert (contradicted.found == "equilibrium").all()


def test_the_classifier_agrees_with_the_eye(labels):
    labels = told_by_eye(labels)
    decided = labels[labels.or_else == ""]
    confusion = pd.crosstab(labels.label, labels.found).to_string()
    assert agreement(decided) > 0.95, confusion
    either = (labels.found == labels.label) | (labels.found == labels.or_else)
    assert either.mean() > 0.95, confusion  # the undecided ones, too, by either of their readings


def test_it_agrees_on_seeds_that_no_definition_was_fitted_to(labels):
    labels = told_by_eye(labels)
    decided = labels[(labels.group == "held out") & (labels.or_else == "")]
    on_the_map = decided[decided.what == "digits, perceptron"]
    assert len(on_the_map) >= 60
    assert agreement(on_the_map) > 0.95
    assert agreement(decided) > 0.9  # also where the loss cannot fall far, which is where it disagrees


@pytest.mark.xfail(strict=True, reason="0.920 of all runs by their first reading (its forerunner: 0.882)")
def test_all_runs_agree_by_their_first_reading(labels):
    assert agreement(labels) > 0.93


@pytest.mark.xfail(strict=True, reason="some undecided runs are an equilibrium by their first reading")
def test_undecided_runs_are_periods_by_their_first_reading(labels):
    assert (labels[labels.or_else != ""].label == "periodic").all()


def test_the_blind_runs_are_off_the_map_and_many(blind):
    assert len(blind) >= 100
    assert blind.what.nunique() >= 10
    assert "digits, perceptron" not in set(blind.what)


def test_the_judge_on_the_blind_runs_is_as_was_measured(blind):
    """Labelled before it was run on them; it was registered before they were trained; its forerunner: (92, 67)."""
    decided = blind[blind.or_else == ""]
    assert len(blind) == 112
    assert len(decided) == 71
    assert ((blind.found == blind.label).sum(), (decided.found == decided.label).sum()) == (98, 70)
    assert cohen_kappa_score(blind.found, blind.label) == pytest.approx(0.78, abs=0.005)


def test_where_no_training_error_is_kept_the_loss_rules_guessing_out(labels):
    # a wrongly told example has a probability of at most 1/2: the error is at most the loss over ln 2
    without = labels[(labels.train_error == "") & (labels.what != "toy B") & (labels.label != "divergence")]
    late_loss = np.median(LOSS[without.index, LOSS.shape[1] // 2 :], axis=1)
    assert (late_loss / np.log(2) < GUESSING_SHARE * (1 - 1 / CLASSES)).all()
    assert len(labels[labels.train_error != ""]) + len(without) + (labels.what == "toy B").sum() == len(labels)


def test_undecided_runs_are_periods_against_something_else_and_few(labels):
    undecided = labels[labels.or_else != ""]
    assert len(undecided) < 0.1 * len(labels)
    assert ((undecided.label == "periodic") | (undecided.or_else == "periodic")).all()


def test_what_the_eye_calls_converged_or_diverged_is_never_missed(labels):
    labels = told_by_eye(labels)
    clear = labels[labels.label.isin(["convergence", "divergence"])]
    assert agreement(clear) == 1


@pytest.mark.parametrize("group", GROUPS)
def test_destabilizations_are_found_where_the_eye_sees_them(labels, group):
    dated = labels[(labels.group == group) & (labels.destabilizations != "")]
    assert len(dated) >= 6
    for run, row in dated.iterrows():
        seen, doubtful = (np.array(list(map(int, row[column].split()))) for column in ("destabilizations", "doubtful"))
        found = find_destabilizations(NORM[run], train_loss=LOSS[run], steps=steps(row)).start.to_numpy()
        within = DATED_TO * row.every * LOSS.shape[1]
        for step in seen:
            assert np.abs(found - step).min() <= within, (run, step, found)
        for step in found:
            assert np.abs(np.append(seen, doubtful) - step).min() <= within, (run, step, seen)
