"""The store of runs: its index damaged, and processes that want runs which experiments share."""

import json
from functools import partial
from signal import SIGKILL

import pytest
from harness import kill_at_event, save_every_step


@pytest.fixture(scope="session")
def stored(template):
    """A place in which `half` is trained, whose one run is one of `tiny`'s two, and `tiny` with it."""
    place = template.copy(template.folder.parent / "stored")
    for name in ("half", "tiny"):
        assert place.run(name).status == 0
    assert list(place.cache.glob("stacks/*/*.nc"))  # `tiny` is put together
    return place


def damages(index, draw):
    """Return how an index may be damaged: name -> how it comes to be so."""
    content = index.read_bytes()
    lines = [json.loads(line) for line in content.split(b"\n") if line.strip()]

    def flipped():
        new = bytearray(content)
        for bit in draw.integers(0, 8 * len(new), 20):
            new[bit // 8] ^= 1 << bit % 8
        return bytes(new)

    def changed(**what):
        return "\n".join(json.dumps(line | what) for line in lines).encode()

    def mixed_up():  # every file is said to hold the runs of another
        keys = [line["keys"] for line in lines]
        return "\n".join(json.dumps(line | {"keys": keys[i - 1]}) for i, line in enumerate(lines)).encode()

    return {
        "cut off": lambda: content[: int(draw.integers(0, len(content)))],
        "bits flipped": flipped,
        "of another version": lambda: changed(index=99),
        "files that are not there": lambda: changed(path="nowhere.nc"),
        "runs mixed up": mixed_up,
        "not of this kind": lambda: changed(keys="all", runs=7),
        "without runs": lambda: changed(keys=[]),
        "noise": lambda: draw.bytes(3000),
    }


@pytest.mark.fault("index of the store damaged", 8)
def test_index_damaged(fault, stored, template, outcome):
    place = stored.copy(template.folder.parent / f"index{fault.seed}")
    index = place.cache / ".index.jsonl"
    ways = damages(index, fault.draw())
    outcome.how = list(ways)[fault.seed % len(ways)]
    index.write_bytes(ways[outcome.how]())
    kept = {path: path.read_bytes() for path in place.cache.rglob("*.nc")}
    place.survives(outcome)
    ended = place.run("half")
    if ended.served != {"half": place.expected["half"]}:
        outcome.wrong.append(f"`half` has other numbers, or none: {ended.text[-1500:]}")
    gone = [path.name for path, content in kept.items() if not path.exists() or path.read_bytes() != content]
    if gone:
        outcome.lost.append(f"files of results that are gone or changed: {gone}")


@pytest.mark.fault("shared runs, wanted by two at once", 6)
def test_shared_runs(fault, place, outcome):
    draw = fault.draw()
    number = int(draw.integers(1, 600_000))
    kills = [save_every_step, partial(kill_at_event, number, SIGKILL)] if fault.seed % 2 else [save_every_step]
    first, second = ("tiny", "half") if draw.integers(2) else ("half", "tiny")
    outcome.how = f"`{first}` and `{second}`" + (f", one killed at event {number}" if fault.seed % 2 else "")
    running = [
        place.start("run", first, "--profile", "smoke", strikes=kills),
        place.start("run", second, "--profile", "smoke", strikes=[save_every_step]),
    ]
    ended = [one.end() for one in running]
    place.survives(outcome, ended, status=[-SIGKILL], left="partial|probe")  # a state of runs that came otherwise
    again = place.run("half")
    if again.served != {"half": place.expected["half"]}:
        outcome.wrong.append(f"`half` has other numbers, or none: {again.text[-1500:]}")


@pytest.mark.fault("file of shared runs damaged", 4)
def test_shared_file_damaged(fault, stored, template, outcome):
    place = stored.copy(template.folder.parent / f"shared{fault.seed}")
    draw = fault.draw()
    files = sorted(path for path in place.cache.rglob("*.nc") if path not in place.kept)
    path = files[int(draw.integers(len(files)))]
    content = bytearray(path.read_bytes())
    for bit in draw.integers(0, 8 * len(content), 40):
        content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    outcome.how = f"40 bits of {path.relative_to(place.cache)}"
    place.survives(outcome)
    again = place.run("half")
    if again.served != {"half": place.expected["half"]}:
        outcome.wrong.append(f"`half` has other numbers, or none: {again.text[-1500:]}")
