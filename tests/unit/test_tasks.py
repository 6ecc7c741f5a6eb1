"""Grouping, sizes and resource demands of sweeps, against values by hand; the simulated schedule."""

from types import SimpleNamespace

import numpy as np
import pytest

from periodic_lib import ConfigError, Record, Setup, grid
from periodic_lib.sweeping.makespans import bounds, drawn_failures, simulate
from periodic_lib.sweeping.schedulers import demand, local_workers, memory, slots
from periodic_lib.sweeping.tasks import Task, best_size, cut, even, groups

WIDE, NARROW = Setup(width=64, steps=10), Setup(width=8, steps=10)


def plan_of(setup, runs, record=None):
    return SimpleNamespace(setup=setup, record=record or Record(), runs=tuple(runs))


def test_runs_are_grouped_by_what_they_share_and_each_is_there_once():
    runs = grid(lr=[0.1, 0.2, 0.3], weight_decay=0.0)
    found = groups([plan_of(WIDE, runs[:2]), plan_of(NARROW, runs), plan_of(WIDE, runs[1:])])
    assert found == [(WIDE, Record(), tuple(runs)), (NARROW, Record(), tuple(runs))]
    assert len(groups([plan_of(WIDE, runs), plan_of(WIDE, runs, Record(every=2))])) == 2


def test_stacks_are_as_equal_as_can_be_and_keep_every_run_in_order():
    runs = grid(lr=0.1, weight_decay=0.0, seed=list(range(10)))
    tasks = list(cut([(WIDE, Record(), runs), (NARROW, Record(), runs[:3])], lambda setup, record: 4))
    assert [len(task.runs) for task in tasks] == [4, 3, 3, 3]
    assert [run for task in tasks[:3] for run in task.runs] == runs
    assert len({task.key for task in tasks}) == 4
    assert even(7, 100) == [7]
    assert even(7, 0) == [1] * 7


def test_an_experiment_with_convolutions_is_one_stack():
    setup, runs = Setup(network="convnet", width=8), grid(lr=[0.1, 0.2, 0.3], weight_decay=0.0)
    found = groups([plan_of(setup, runs), plan_of(setup, runs[:2])])
    assert [len(task.runs) for task in cut(found, lambda setup, record: 1)] == [3, 2]
    assert not set(Task(setup, Record(), tuple(runs)).keys) & set(Task(setup, Record(), tuple(runs[:2])).keys)


def test_tasks_are_made_one_at_a_time():
    asked = []
    tasks = cut([(WIDE, Record(), grid(lr=0.1, weight_decay=0.0, seed=list(range(100))))], lambda *_: 1)
    for task in tasks:
        asked.append(task)
        if len(asked) == 3:
            break
    assert len(list(tasks)) == 97


def test_halves_have_all_runs():
    task = Task(WIDE, Record(), tuple(grid(lr=[0.1, 0.2, 0.3], weight_decay=0.0)))
    first, second = task.halves()
    assert first.runs + second.runs == task.runs
    assert (len(first.runs), len(second.runs)) == (2, 1)


SECONDS = {1: 1.0, 2: 1.2, 4: 1.6, 8: 2.4, 16: 4.8}  # a run: 1, 0.6, 0.4, 0.3, 0.3


@pytest.mark.parametrize(
    ("runs", "workers", "fits", "size"),
    [
        (10_000, 2, 1e9, 8),  # of the two sizes of the best speed, the one that waits less at the end
        (10_000, 2, 4.7, 4),  # by memory
        (8, 1, 1e9, 8),
        (8, 2, 1e9, 6),  # bound 8 * 2.0 / 12 + 2.0 / 2 = 2.33; of 4: 1.6 + 0.8 = 2.4; of 8: 1.2 + 1.2
    ],
)
def test_the_size_makes_grahams_bound_smallest(runs, workers, fits, size):
    def bound(r):
        t = np.interp(r, list(SECONDS), list(SECONDS.values()))
        return runs * t / (r * workers) + (1 - 1 / workers) * t

    found = best_size(SECONDS, runs, workers, fits)
    possible = [r for r in range(1, 17) if r <= fits and r <= runs]
    assert bound(found) == pytest.approx(min(map(bound, possible)))
    assert found == size


def test_where_not_even_one_run_fits_the_message_says_what_to_do():
    with pytest.raises(ConfigError, match=r"`memory`.*at least one run.*every"):
        best_size(SECONDS, 10, 2, 0.5)


WORKERS = {
    "a": {"nthreads": 4, "resources": {"CPU": 4}, "memory_limit": 8e9},
    "b": {"nthreads": 1, "resources": {"CPU": 2}, "memory_limit": 3e9},
    "c": {"nthreads": 2, "resources": {}, "memory_limit": 1e9},
}


def test_a_stack_asks_for_what_workers_offer():
    assert demand({"a": {"resources": {"GPU": 2, "CPU": 8}}, "b": {}}, threads=4) == {"GPU": 1}
    assert demand(WORKERS, threads=2) == {"CPU": 2}
    assert demand({"c": WORKERS["c"]}) == {}
    with pytest.raises(ConfigError, match=r"`threads`.*at most.*4 CPU tokens; got 5.*--resources CPU=5"):
        demand(WORKERS, threads=5)


def test_slots_and_memory_by_hand():
    assert slots(WORKERS, {"CPU": 1}) == 4 + 1  # c offers none, b has one thread
    assert slots(WORKERS, {"CPU": 2}) == 2 + 1
    assert slots(WORKERS, {}) == 7
    assert memory(WORKERS, {"CPU": 2}) == 3e9  # a: 8 / 2, b: 3 / 1
    assert memory(WORKERS, {}) == 0.5e9
    assert memory({"a": {"nthreads": 1}}, {}) is None


def test_local_workers_are_pinned():
    cpu = local_workers(2, 3, 0)
    assert [one["resources"] for one in cpu.values()] == [{"CPU": 3}] * 2
    assert all(one["env"]["OMP_NUM_THREADS"] == "3" and one["nthreads"] == 1 for one in cpu.values())
    both = local_workers(3, 1, 2)
    assert [one["resources"] for one in both.values()] == [{"GPU": 1}, {"GPU": 1}, {"CPU": 1}]
    assert [one["env"]["CUDA_VISIBLE_DEVICES"] for one in both.values()] == ["0", "1", ""]


# ---------------------------------------------------------------- the simulated schedule


def test_grahams_worst_case():
    m = 4  # m(m-1) stacks of 1, then one of m: list scheduling takes 2m - 1, the best m
    schedule = simulate([1.0] * (m * (m - 1)) + [float(m)], m)
    assert schedule.makespan == 2 * m - 1
    assert bounds([1.0] * (m * (m - 1)) + [float(m)], m) == (m, 2 * m - 1)


@pytest.mark.parametrize("seed", range(5))
def test_without_failures_the_makespan_is_within_grahams_bounds(seed):
    draw = np.random.default_rng(seed)
    lengths, machines = draw.exponential(10, 200), int(draw.integers(1, 20))
    schedule = simulate(lengths, machines)
    low, high = bounds(lengths, machines)
    assert low - 1e-9 <= schedule.makespan <= high + 1e-9
    assert (schedule.lost, schedule.failures) == (0, 0)


def test_failures_by_hand():
    # one machine, one stack of 10: fails at 4 (kept 3: states at 3), down 2, goes on at 6 with 7 left
    once = simulate([10.0], 1, [(4.0, 0)], repair=2.0, saved_every=3.0)
    assert (once.makespan, once.lost, once.failures) == (13.0, 1.0, 1)
    # without states all of it is done again
    again = simulate([10.0], 1, [(4.0, 0)], repair=2.0)
    assert (again.makespan, again.lost) == (16.0, 4.0)
    # a failure while down, or of an idle machine, loses nothing
    assert simulate([10.0], 1, [(4.0, 0), (5.0, 0)], repair=2.0).failures == 1
    assert simulate([10.0], 2, [(4.0, 1)], repair=2.0).makespan == 10.0


def test_work_is_conserved_with_failures():
    lengths = np.full(500, 30.0)
    failures = drawn_failures(200, 8, 5000, seed=1)
    schedule = simulate(lengths, 8, failures, repair=20, saved_every=10)
    assert schedule.failures > 50
    assert schedule.lost <= 10 * schedule.failures  # no failure costs more than the time between states
    down = 20 * len(failures)
    assert schedule.makespan <= (lengths.sum() + schedule.lost + down) / 8 + 2 * 30 + 20
    assert schedule.makespan >= (lengths.sum() + schedule.lost) / 8
    assert all(end > 0 for end in schedule.ends)
