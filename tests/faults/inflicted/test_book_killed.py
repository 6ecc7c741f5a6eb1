"""A chapter while it is executed: its kernel, papermill, or the command itself is killed."""

import os
import re
import time
from signal import SIGKILL

import psutil
import pytest
from harness import HERE, fingerprint

from periodic_lib import results
from periodic_lib.publishing import notebooks

WAIT = 30  # seconds that what was started may go on after whoever started it is gone
CELL = """
import os

from periodic_lib import run_experiment

if os.path.exists("strike.py"):
    exec(open("strike.py").read())
result = run_experiment("tiny", profile)
"""
STRIKE = """
import os, sys, time
sys.path.insert(0, {here!r})
from harness import at_step, save_every_step
from signal import SIGKILL

import psutil


def strike():
    os.kill(line[{generation}].pid, SIGKILL)
    time.sleep(60)

me = psutil.Process()
line = [me, me.parent(), me.parent().parent()]
open("processes", "w").write(" ".join(str(one.pid) for one in line[:2]))
save_every_step()
at_step({step}, strike)
"""
KILLED = ("chapter's kernel killed", "papermill killed", "book command killed")


@pytest.mark.fault(KILLED[0], 3)
def test_kernel(fault, place, outcome):
    killed(fault, place, outcome, status=[1], says="01_tiny: the kernel died")


@pytest.mark.fault(KILLED[1], 1)
def test_papermill(fault, place, outcome):
    killed(fault, place, outcome, status=[1], says="01_tiny: (the kernel died|papermill was killed)")


@pytest.mark.fault(KILLED[2], 2)
def test_book(fault, place, outcome):
    killed(fault, place, outcome, status=[-SIGKILL], says="")


def killed(fault, place, outcome, status, says):
    (place.folder / "data" / "claims" / "claims.yml").write_text("{}")
    cells = [
        {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": "profile = 'smoke'\noverrides = {}"},
        {"cell_type": "code", "metadata": {}, "source": CELL},
    ]
    notebooks.write({"cells": cells}, place.folder / "book" / "01_tiny.ipynb")
    strike, step = place.folder / "book" / "strike.py", int(fault.draw().integers(0, 24))
    strike.write_text(STRIKE.format(here=HERE, step=step, generation=KILLED.index(fault.kind)))
    outcome.how = f"at step {step} of the training inside"
    command = ("book", "01_tiny", "--profile", "smoke")
    struck = place.start(*command).end()
    processes = list(map(int, (place.folder / "book" / "processes").read_text().split()))
    left = wait_for(processes)
    if left:
        outcome.unclear.append(f"still alive after {WAIT} s: {left}")
    if list((place.folder / "build").rglob("chapters/01_tiny.ipynb")):
        outcome.wrong.append("a copy of the chapter that was not executed to its end")
    strike.unlink()
    again = place.start(*command).end()
    if again.status or not re.search("01_tiny: executed", again.text):
        outcome.lost.append(f"the next book ended with {again.status}: {again.text[-1500:]}")
    made = sorted(place.cache.glob("tiny/*.nc"))
    if [fingerprint(results.load(path)) for path in made] != [place.expected["tiny"]]:
        outcome.wrong.append("the chapter has other numbers")
    place.survives(outcome, struck, status=status, says=says)
    outcome.recovery = again.seconds


def wait_for(processes):
    """Return the processes that do not end within `WAIT` seconds; end them."""
    deadline = time.monotonic() + WAIT
    while (left := list(filter(alive, processes))) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in left:
        os.kill(process, SIGKILL)
    return left


def alive(process):
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
