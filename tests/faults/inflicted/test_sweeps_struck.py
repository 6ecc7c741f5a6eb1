"""Sweeps: here and on a Dask cluster of processes, with the worker, the scheduler or the client killed."""

import asyncio
import os
import time
from functools import partial
from pathlib import Path
from signal import SIGKILL

import pytest
from harness import at_step, command, kill_at_event, save_every_step

MANY = ["run", "many", "--profile", "smoke"]


def sweep(arguments):
    """Train the experiment `many` in stacks of two, or of `size`, where `scheduler` says; then serve it."""
    from periodic_lib import experiments
    from periodic_lib.project import ConfigError, print_message
    from periodic_lib.sweeping import sweeps

    scheduler, size = arguments
    try:
        done = sweeps.sweep([experiments.plan("many", "smoke")], scheduler, size=size, progress=False)
    except ConfigError as error:
        print_message(f"error: {error}")
        return 2
    print_message(done.summary())
    return command(MANY)


def sweep_again(arguments):
    """Do the sweep again, here, then serve its result and the finished one."""
    began = time.perf_counter()
    status = sweep((None, 2))
    print(f"took {time.perf_counter() - began}", flush=True)
    return max(status, command(["run", "finished", "--profile", "smoke"]))


def judge(outcome, place, ended, **how):
    """What the sweep stored stays as it is, and the same sweep goes on to the undisturbed numbers."""
    kept = {path: path.read_bytes() for path in place.cache.glob("stacks/*/*.nc")}
    how = {"left": "partial|probe"} | how  # the state of a stack that was killed when it was stored may stay
    how |= {"experiment": "many", "work": sweep_again}
    place.survives(outcome, ended, **how)
    if any(not path.exists() or path.read_bytes() != content for path, content in kept.items()):
        outcome.lost.append("a stack that was stored is gone or changed")


@pytest.mark.fault("sweep killed", 8)
def test_sweep_killed(fault, place, outcome):
    number = int(fault.draw().integers(1, 1_500_000))
    outcome.how = f"killed at event {number}"
    strikes = [save_every_step, partial(kill_at_event, number, SIGKILL)]
    judge(outcome, place, place.start(None, 2, work=sweep, strikes=strikes).end(), status=[-SIGKILL])


def need_memory(limit, step):
    """Lay a trap: a stack of more than `limit` runs asks for more memory than there is, at a step."""
    from periodic_lib.engine.stack import Stack

    original = Stack.step

    def struck(stack, *arguments):
        if len(stack.runs) > limit and stack.steps_done == step:
            import torch

            torch.empty(2**50)
        return original(stack, *arguments)

    Stack.step = struck


@pytest.mark.fault("out of memory in a stack", 4)
def test_out_of_memory(fault, place, outcome):
    draw = fault.draw()
    limit, step = 1 + fault.seed % 4, int(draw.integers(0, 24))
    outcome.how = f"stacks of more than {limit} of 6 runs, at step {step}"
    ended = place.start(None, 6, work=sweep, strikes=[save_every_step, partial(need_memory, limit, step)]).end()
    if "tried in halves" not in ended.text or "many" not in ended.served:
        outcome.unclear.append(f"a smaller stack was not tried: {ended.text[-1500:]}")
    judge(outcome, place, ended, left="partial|probe|resume")


# ---------------------------------------------------------------- a cluster


def scheduler(arguments):
    """Be a Dask scheduler."""
    import distributed

    async def serve():
        how = {"host": "127.0.0.1", "port": 0, "dashboard": False, "scheduler_file": arguments[0]}
        async with distributed.Scheduler(**how) as one:
            await one.finished()

    asyncio.run(serve())
    return 0


def worker(arguments):
    """Be a Dask worker."""
    import distributed

    async def serve():
        how = {"nthreads": 1, "resources": {"CPU": 1}, "local_directory": os.environ["TMPDIR"], "dashboard": False}
        async with distributed.Worker(scheduler_file=arguments[0], host="127.0.0.1", death_timeout=20, **how) as one:
            await one.finished()

    asyncio.run(serve())
    return 0


def kill(path):
    """Kill the process whose number stands in a file, if that is there."""
    if Path(path).exists():
        os.kill(int(Path(path).read_text()), SIGKILL)


@pytest.fixture
def cluster(place, fault):
    """A scheduler and two workers, in processes of their own; the first kills someone at a step."""
    file, victim = place.folder / "scheduler.json", place.folder / "victim"
    step = int(fault.draw().integers(0, 24))
    strikes = [save_every_step, partial(at_step, step, partial(kill, str(victim)))]
    heads = [place.start(str(file), work=scheduler)]
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    heads += [place.start(str(file), work=worker, strikes=one) for one in (strikes, [save_every_step])]
    yield heads, victim, step
    for one in heads:
        one.process.kill()
        one.end()


def struck(place, outcome, cluster, who):
    """Sweep on the cluster, until the process `who` is killed: 0 scheduler, 1 worker, 2 client."""
    heads, victim, step = cluster
    client = place.start(address(place), 2, work=sweep)
    victim.write_text(str([heads[0].process.pid, heads[1].process.pid, client.process.pid][who]))
    outcome.how = f"at step {step} of a stack"
    return client.end()


def address(place):
    import json

    return json.loads((place.folder / "scheduler.json").read_text())["address"]


@pytest.mark.fault("Dask worker killed", 2)
def test_worker_killed(fault, place, outcome, cluster):
    ended = struck(place, outcome, cluster, 1)
    if "many" not in ended.served:
        outcome.lost.append(f"the other worker did not finish: {ended.text[-1500:]}")
    judge(outcome, place, ended)


@pytest.mark.fault("Dask scheduler killed", 2)
def test_scheduler_killed(fault, place, outcome, cluster):
    judge(outcome, place, struck(place, outcome, cluster, 0), status=[2], says="is gone; what was finished is stored")


@pytest.mark.fault("sweep's client killed", 2)
def test_client_killed(fault, place, outcome, cluster):
    judge(outcome, place, struck(place, outcome, cluster, 2), status=[-SIGKILL])
