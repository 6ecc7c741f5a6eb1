"""Verdicts on made-up runs whose cause is built in, and on small trainings of known cause."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from periodic_lib import theory
from periodic_lib.monitor import outlook, verdicts
from periodic_lib.project import root

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import causes
import waits

STEPS, AT = 1200, 800
T = np.arange(STEPS)


def noise(seed=0, size=0.2):
    return np.random.default_rng(seed).normal(0, size, STEPS)


def bump(at=AT, heights=(5.0, 6.0, 6.0, 4.0, 3.0, 2.0, 1.0)):
    values = np.zeros(STEPS)
    values[at : at + len(heights)] = heights
    return values


def group(**changed):
    one = {
        "weight_norm": np.full(STEPS, 3.0),
        "grad_norm": np.exp(noise(1)),
        "second_moment": np.full(STEPS, np.nan),
        "lr": np.full(STEPS, 0.1),
        "weight_decay": np.zeros(STEPS),
        "invariant": True,
    } | changed
    return one | {"eff_grad_norm": one["grad_norm"] * one["weight_norm"]}


def decaying(kick=0.5, **changed):
    norm = 3 * np.exp(-1e-3 * T) * np.exp(kick * np.clip(T - AT, 0, 5) / 5)
    return group(weight_norm=norm, weight_decay=np.full(STEPS, 1e-2), **changed)


def falling_state():
    state = np.exp(-1e-3 * T)
    surprise = np.exp(noise(1) + 2 * (bump() > 0))
    return group(second_moment=state, grad_norm=state * surprise)


def kicked():
    return decaying() | {"weight_decay": np.zeros(STEPS)}


ONE_STEP = bump(heights=(6.0, 2.0, 1.0))
RAISED = np.where(T < AT - 2, 0.1, 1.0)
CASES = {
    "decay": (bump(), decaying(), "norm-driven"),
    "decay, no kick": (bump(), decaying(kick=0.0), "unknown"),
    "decay of other weights": (bump(), decaying(invariant=False), "unknown"),
    "kick, no decay": (bump(), kicked(), "unknown"),
    "one batch": (ONE_STEP, group(), "outlier batch"),
    "one batch, while the norm falls": (ONE_STEP, decaying(kick=0.05), "outlier batch"),
    "not one batch": (bump(heights=(6.0, 5.0, 4.0, 3.0)), group(), "unknown"),
    "announced": (bump(AT - 1, (3.0, 6.0, 2.0, 1.0)), group(), "unknown"),
    "state": (bump(), falling_state(), "optimizer state"),
    "state, no surprise": (bump(), group(second_moment=np.exp(-1e-3 * T)), "unknown"),
    "raised": (bump(), group(lr=RAISED), "learning rate"),
    "raised, and decay": (bump(), decaying(lr=RAISED), "learning rate"),
    "raised long ago": (bump(), group(lr=np.where(T < AT - 150, 0.1, 1.0)), "unknown"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_cause_of_made_up_runs(name):
    extra, one, cause = CASES[name]
    loss = np.exp(-5 + noise() + extra)
    found = verdicts.judge(loss, {"all": one})
    assert found.cause.tolist() == [cause]
    assert abs(int(found.start[0]) - AT) <= 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [0.05, 0.3, 0.5])
def test_noise_has_no_spikes(seed, size):
    assert verdicts.find_spikes(np.exp(noise(seed, size) - 0.003 * T)).empty


def test_spikes_of_losses_that_are_missing_or_not_finite():
    loss = np.exp(-5 + noise())
    loss[500:520] = np.nan
    loss[AT] = np.inf
    found = verdicts.find_spikes(loss)
    assert found.start.tolist() == [AT]
    assert verdicts.find_spikes(np.full(STEPS, np.nan)).empty
    assert verdicts.find_spikes([]).empty


def test_two_spikes_are_two_and_a_long_one_is_cut():
    loss = np.exp(-5 + noise() + bump(400) + bump(900))
    assert verdicts.find_spikes(loss).start.tolist() == [400, 900]
    loss = np.exp(-5 + noise() + 4 * (T >= AT))
    long = verdicts.find_spikes(loss).iloc[0]
    assert long.end - long.start <= verdicts.LONGEST


# ---------------------------------------------------------------- state and outlook


def record(norm, gradient, optimizer="sgd", lr=0.1, decay=1e-2, momentum=0.0, groups=1, total=0):
    norm = np.asarray(norm, float)
    ones = np.ones_like(norm)
    values = {"weight_norm": norm, "eff_grad_norm": gradient * ones, "learning_rate": lr * ones, "decay": decay * ones}
    values |= {"elr": lr / norm**2, "train_loss": ones}
    data = {name: (("run", "step"), value[None]) for name, value in values.items()}
    facts = {"lr": lr, "weight_decay": decay, "momentum": momentum, "beta1": 0.9}
    places = {name: ("run", [value]) for name, value in facts.items()}
    attributes = {
        "setup": json.dumps({"optimizer": optimizer}),
        "groups": groups,
        "invariant": 10,
        "followed": 10,
        "weights": 20,
    }
    found = xr.Dataset(data, {"run": [0], "step": np.arange(len(norm))} | places)
    found = found.assign(covers=("step", np.ones(len(norm), int)))
    return found.assign_attrs(attributes, steps_done=len(norm), total_steps=total)


def free(start=3.0, steps=1000, lr=0.1, decay=1e-2):
    return start * theory.motion.shrinkage(lr, decay) ** np.arange(steps)


SAW = 3 * np.exp(-1e-3 * (np.arange(2750) % 400))
REBOUND = np.exp(0.02 * np.abs(np.arange(2750) % 400 - 200))


@pytest.mark.parametrize(
    ("data", "state"),
    [
        (record(free(), 1e-3), "free decay"),
        (record(np.full(1000, 3.0) + 0.01 * np.sin(np.arange(1000) / 5), 1.0), "equilibrium"),
        (record(np.full(1000, 3.0), 1.0), "fixed norm"),
        (record(free(), 1e-3, decay=0.0), "no decay"),
        (record(free(), 1e-3, groups=0), "no scale-invariant weights"),
        (record(np.append(free(), free()[-1] * np.linspace(1, 1.2, 10)), 1.0), "jump"),
        (record(SAW, REBOUND), "turning"),
        (record(free(steps=30), 1.0), "cannot tell"),
        (record(free(), 1.0, optimizer="adam"), "cannot tell"),
    ],
)
def test_states(data, state):
    assert outlook.state(data) == state


def test_numbers_of_free_decay():
    data = record(free(), 1e-3)
    assert outlook.free_decay_share(data) == pytest.approx(1, rel=2e-3)
    balance = theory.equilibrium_norm(0.1, 1e-2, 1e-3)
    assert outlook.over_equilibrium(data) == pytest.approx(float(balance**2 / data.weight_norm[0, -1] ** 2))
    adamw = record(free(), 1e-3, optimizer="adamw")
    balance = theory.equilibrium_norm_adamw(0.1, 1e-2, 10, 0.9)
    assert outlook.over_equilibrium(adamw) == pytest.approx(float(balance**2 / data.weight_norm[0, -1] ** 2))
    bound = theory.jump_not_before(0.1, 1e-2, data.weight_norm[0, -1], 0.0, 1e-3, outlook.DELTA)
    assert outlook.not_before(data) == pytest.approx(999 + float(bound))


def test_no_adversary_jumps_before_the_bound():
    """The earliest jump that gradients up to the largest seen can make, step by step."""
    data = record(free(steps=200), 5.0)
    norm, steps = float(data.weight_norm[0, -1]), 0
    while 1 - np.cos(theory.angular_update(0.1, 1e-2, norm, 5.0)) <= outlook.DELTA:
        norm, steps = theory.next_norm(0.1, 1e-2, norm, 0.0), steps + 1
    assert 0 <= 199 + steps - outlook.not_before(data) <= 2


def test_interval_where_the_past_beats_the_clock():
    """Passages of different lengths between fixed levels: levels know them, the clock does not."""
    lengths = [150, 420, 200, 380, 260, 330, 180, 300, 240]
    norm = np.concatenate([np.exp(-1e-3 * np.arange(length)) * np.exp(1e-3 * length) for length in lengths])
    data = record(norm[:-100], 1.0)
    due = outlook.interval(data)
    assert due is not None
    assert due["low"] - 2 <= sum(lengths) <= due["high"] + 2
    assert due["covered"] >= due["clock"]
    regular = np.concatenate([np.exp(-1e-3 * np.arange(300))] * 8)
    assert outlook.interval(record(regular[:-100], 1.0)) is None  # as good as the clock is not better
    assert outlook.interval(record(free(), 1.0)) is None


def test_periods_left_and_advice():
    data = record(SAW, REBOUND, total=2750 + 3990)
    # a passage is ln(ELR) 0.798 of 400 steps; decay takes 2e-3 a step
    assert outlook.periods_left(data) == pytest.approx(3990 * 2e-3 / 0.798, rel=0.01)
    assert outlook.periods_left(data, np.full(399, 0.1)) == pytest.approx(1.0, rel=0.01)
    remedies = outlook.advice(data)
    gained = np.log(2) / (2 * 0.05 * 1e-2)
    assert f"decay needs {gained:,.0f} steps" in remedies["learning rate"]
    assert "do not skip" in remedies["clipping"]
    assert outlook.advice(record(np.full(1000, 3.0), 1.0)).empty


def with_groups(data, norms, limits, cosines):
    """Several groups at their present norms, the last one of no group."""
    shape, names = (1, data.sizes["step"], len(norms)), [*"abcdefg"[: len(norms) - 1], "rest"]
    found = {
        "group_weight_norm": np.broadcast_to(norms, shape),
        "group_radial_cosine": np.broadcast_to(cosines, shape),
    }
    data = data.assign({name: (("run", "step", "group"), values) for name, values in found.items()})
    data = data.assign_coords(group=names, fails_below=("group", np.array(limits, float)))
    return data.assign_attrs(groups=len(norms) - 1)


def test_a_norm_near_its_epsilon_is_named():
    names = [1.0, 0.3, 0.3, 0.3, 9.0], [0.2, 0.2, np.nan, 0.1, np.nan], [1e-4, -1e-4, 0.0, 0.05, 1.0]
    found = outlook.not_invariant(with_groups(record(SAW, REBOUND), *names))
    assert found.index.tolist() == ["b", "d"]
    assert found.fails_below.tolist() == [0.2, 0.1]
    near = with_groups(record(SAW, REBOUND), [0.3, 1.0], [0.2, np.nan], [0.0, 0.0])
    text = outlook.report(near, pd.DataFrame(columns=["start", "cause"]))
    assert "a: norm 0.3, and below 0.2 an epsilon shows." in text
    turned = with_groups(record(SAW, REBOUND), [0.3, 1.0], [0.1, np.nan], [0.05, 0.0])
    assert "a: its gradient has a cosine of 0.05 with it" in outlook.report(
        turned, pd.DataFrame(columns=["start", "cause"])
    )
    calm = with_groups(record(SAW, REBOUND), [0.5, 1.0], [0.2, np.nan], [1e-3, 1.0])
    assert outlook.not_invariant(calm).empty
    # outputs change by 1 % where epsilon is 2 % of the variance; at 10 times that norm it must be 100 / 0.02 larger
    assert (
        "about 5e+03 times as large" in outlook.advice(with_groups(calm, [2.0, 1.0], [0.2, np.nan], [0, 0]))["epsilon"]
    )


def test_the_edge_is_compared_with_its_own_past():
    data = record(SAW, REBOUND)
    at = np.arange(0, 2750, 50)
    assert np.isnan(outlook.edge_ratio(data)).all()
    elr = np.interp(at, data.step, data.elr[0])
    ratios = np.where(at % 400 == 350, 8.0, 3.0)
    ratios[-1] = 5.0
    measured = data.assign(batch_sharpness=(("run", "edge_step"), [ratios / elr])).assign_coords(edge_step=at)
    assert outlook.edge_ratio(measured) == pytest.approx((5.0, 8.0))
    text = outlook.report(measured, pd.DataFrame(columns=["start", "cause"]))
    assert "Sharpness of the batch x step 5 (8 before breaks)." in text


def test_a_cut_record_knows_nothing_later():
    data = record(SAW, REBOUND, total=5000)
    known = outlook.until(data, 1500)
    assert known.step.values[-1] == 1499
    assert known.attrs["steps_done"] == 1500
    assert outlook.not_before(known) == outlook.not_before(record(SAW[:1500], REBOUND[:1500]))


def test_due_has_the_clock_beside_it():
    lengths = [150, 420, 200, 380, 260, 330, 180, 300, 240]
    norm = np.concatenate([np.exp(-1e-3 * np.arange(length)) * np.exp(1e-3 * length) for length in lengths])
    table = outlook.due(record(norm[:-100], 1.0))
    assert table.index.tolist() == ["clock", "level", "thresholds"]
    assert table.point["level"] == pytest.approx(sum(lengths), abs=3)
    assert table.off["level"] < 0.02 < table.off["clock"]
    past = np.median(lengths[1:-1])
    assert table.point["clock"] == pytest.approx(sum(lengths[:-1]) + past, abs=3)
    assert (table.low >= len(norm) - 100).all()
    assert outlook.due(record(free(), 1.0)).empty


def test_report_says_when_it_cannot_tell():
    text = outlook.report(record(free(steps=30), 1.0, optimizer="adam"), pd.DataFrame(columns=["start", "cause"]))
    assert "State: cannot tell." in text
    assert "Next: cannot tell." in text


# ---------------------------------------------------------------- trainings of known cause

QUICK = {"decay, SGD, wide": 1, "corrupted, SGD": 1, "nothing": 0}


@pytest.mark.parametrize("name", QUICK)
def test_small_trainings_of_known_cause(name):
    rows = pd.DataFrame(causes.judged(name, seed=0))
    named = rows[rows.said.isin(causes.NAMED)]
    assert (named.said == named.cause).mean() >= 0.75 if len(named) else not QUICK[name]


def test_the_judged_counts_are_those_of_the_table():
    counts = pd.read_csv(root() / causes.PATH, keep_default_na=False)
    assert set(counts.kind) == set(causes.KINDS)
    assert counts.drop_duplicates("kind").trainings.sum() >= 60
    for row in counts.itertuples():
        assert row.cause in (causes.KINDS[row.kind].cause, "")
        assert row.said in (*verdicts.CAUSES, "no spike")
    share, named, _ = causes.share_right(counts)
    assert named >= 100
    assert share >= 0.95


# ---------------------------------------------------------------- when the next break comes


def test_forecasts_at_moments_of_a_small_training():
    rows = pd.DataFrame(waits.forecasts(waits.Case("perceptron", "sgd", 0.5, 3e-2, steps=450), seed=0))
    assert len(rows) >= 3 * len(waits.MOMENTS)
    passed = rows.moment * (rows["break"] - rows.begin)
    assert (rows.now == rows.begin + np.floor(passed)).all()
    assert (rows.not_before >= rows.now - 1).all()
    assert rows.clock_point[rows.passage < 5].isna().all()  # six breaks make five passages


def test_the_table_of_waits_is_of_the_cases_and_large_enough():
    rows = pd.read_csv(root() / waits.PATH)
    assert set(rows.seed) == set(waits.JUDGED)
    known = {(case.network, case.optimizer, case.lr, case.weight_decay) for case in waits.CASES}
    names = ["network", "optimizer", "lr", "weight_decay"]
    assert set(map(tuple, rows[names].values)) == known
    assert len(rows.drop_duplicates([*names, "seed", "passage"])) >= 100
    assert (rows.groupby([*names, "seed", "passage"]).moment.apply(tuple) == waits.MOMENTS).all()
    assert (rows.now < rows["break"]).all()
    assert rows.given.dropna().isin(["level", "thresholds"]).all()
