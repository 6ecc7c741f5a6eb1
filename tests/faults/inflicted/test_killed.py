"""Training that is killed at a moment drawn by seed: at any call or return of any function, or of a file's."""

from functools import partial
from signal import SIGINT, SIGKILL, SIGTERM

import pytest
from harness import FILE_CALLS, count_events, kill_at_event, save_every_step


@pytest.fixture(scope="session")
def events(template):
    """How many calls and returns an undisturbed training has: of all functions, of those that deal with files."""
    found = {}
    for index, only in enumerate(((), FILE_CALLS)):
        path = template.folder / f"events{index}"
        place = template.copy(template.folder.parent / f"counting{index}")
        ended = place.run("tiny", strikes=[save_every_step, partial(count_events, str(path), only)])
        assert ended.status == 0, ended.text
        found[only] = int(path.read_text())
    return found


def strike(place, outcome, fault, events, only=(), signal=SIGKILL):
    """Run until the event that the seed draws; the process is sent a signal there."""
    number = int(fault.draw().integers(1, events[only] + 1))
    outcome.how = f"signal {int(signal)} at event {number} of {events[only]}"
    return place.run("tiny", strikes=[save_every_step, partial(kill_at_event, number, signal, only)])


@pytest.mark.fault("training killed at any moment", 24)
def test_killed(fault, place, outcome, events):
    struck = strike(place, outcome, fault, events)
    place.survives(outcome, struck, status=[-SIGKILL])


@pytest.mark.fault("training killed while it writes files", 24)
def test_killed_in_a_file(fault, place, outcome, events):
    struck = strike(place, outcome, fault, events, only=FILE_CALLS)
    place.survives(outcome, struck, status=[-SIGKILL])


@pytest.mark.fault("training told to end", 8)
def test_told_to_end(fault, place, outcome, events):
    signal = (SIGINT, SIGTERM)[fault.seed % 2]
    struck = strike(place, outcome, fault, events, signal=signal)
    says = "interrupted; no half-made result" if struck.status == 130 else ""
    place.survives(outcome, struck, status=[130, -SIGINT, -SIGTERM], says=says)


@pytest.mark.fault("killed again and again", 3)
def test_killed_again_and_again(fault, place, outcome, events):
    draw = fault.draw()
    numbers = [int(draw.integers(1, events[()] + 1)) for _ in range(4)]
    outcome.how = f"SIGKILL at events {numbers}, one run after the other"
    kills = [[save_every_step, partial(kill_at_event, number, SIGKILL)] for number in numbers]
    place.survives(outcome, [place.run("tiny", strikes=one) for one in kills], status=[-SIGKILL])
