"""Several processes that want the same at the same time, one of them killed or not."""

from functools import partial
from signal import SIGKILL

import pytest
from harness import FILE_CALLS, kill_at_event, save_every_step


@pytest.mark.fault("two writers at once", 4)
def test_two_writers(fault, place, outcome):
    many, forced = 2 + fault.seed % 2, ["--force"] * (fault.seed % 3 == 0)
    outcome.how = f"{many} processes make the same{', each anew' if forced else ''}"
    started = [
        place.start("run", "tiny", "--profile", "smoke", *forced, strikes=[save_every_step]) for _ in range(many)
    ]
    place.survives(outcome, [one.end() for one in started])


@pytest.mark.fault("the writer killed while another waits", 6)
def test_writer_killed(fault, place, outcome):
    draw = fault.draw()
    number, only = (int(draw.integers(1, 100_000)), ()) if fault.seed % 2 else (int(draw.integers(1, 300)), FILE_CALLS)
    outcome.how = f"killed at event {number}{' of files' if only else ''}"
    strikes = [save_every_step, partial(kill_at_event, number, SIGKILL, only)]
    killed = place.start("run", "tiny", "--profile", "smoke", strikes=strikes)
    waits = place.start("run", "tiny", "--profile", "smoke")
    place.survives(outcome, [killed.end(), waits.end()], status=[-SIGKILL])
