"""Files that are cut off, have a flipped bit, or are not what their name says: results, and states of training."""

import io
import os
import pickle
import re
import shutil

import numpy as np
import pytest

from periodic_lib import results

SAYS = {"result": "damaged|out of date|no result|other settings|cannot be read|making it again"}
SAYS["state"] = "starts anew|goes on without"


@pytest.fixture(scope="session")
def bases(template):
    """Two places: one where the result is there, one where training stopped on the way."""
    trained = template.copy(template.folder.parent / "trained")
    assert trained.run("tiny").status == 0
    paused = template.copy(template.folder.parent / "paused")
    for _ in range(3):
        assert paused.run("tiny", "--budget", "1e-9").status == 3
    other = template.copy(template.folder.parent / "other")
    assert other.run("finished", "--force", "--budget", "1e-9").status == 3
    return {"result": trained, "state": paused, "other": other}


@pytest.fixture
def target(fault, bases, template):
    """A place, and the file in it that is struck: the result, or the state."""
    which = fault.kind.split()[0]
    place = bases[which].copy(template.folder.parent / f"{which}{fault.seed}-{fault.kind.split()[-1]}")
    found = [path for path in place.cache.rglob(f"*.{'nc' if which == 'result' else 'npz'}") if path.is_file()]
    path = next(path for path in found if path not in place.kept)
    yield place, path, which
    shutil.rmtree(place.folder, ignore_errors=True)


def judge(outcome, place, path, which, content, damaged):
    """Strike: the file becomes `damaged`. It is kept and made again, or does as well, as no number in it changed."""
    path.write_bytes(damaged)
    place.survives(outcome)
    there = path.read_bytes() if path.is_file() else b""
    harmless = there == damaged if which == "result" else same_arrays(content, damaged)
    if not harmless and not re.search(SAYS[which], outcome.said):
        outcome.unclear.append(f"it says only {outcome.said!r}")
    if which == "result" and damaged not in [one.read_bytes() for one in place.cache.rglob("*") if one.is_file()]:
        outcome.lost.append("the damaged file was not kept")


def same_arrays(one, other):
    """Whether two archives hold the same arrays."""
    try:
        one, other = (dict(np.load(io.BytesIO(content))) for content in (one, other))
    except Exception:
        return False
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


@pytest.mark.fault("result cut off", 8)
def test_result_cut_off(fault, target, outcome):
    cut_off(fault, target, outcome)


@pytest.mark.fault("state cut off", 8)
def test_state_cut_off(fault, target, outcome):
    cut_off(fault, target, outcome)


def cut_off(fault, target, outcome):
    place, path, which = target
    content = path.read_bytes()
    size = int(fault.draw().integers(0, len(content))) if fault.seed else 0
    outcome.how = f"{size} of {len(content)} bytes are left"
    judge(outcome, place, path, which, content, content[:size])


@pytest.mark.fault("result with flipped bits", 12)
def test_result_flipped(fault, target, outcome):
    flip(fault, target, outcome)


@pytest.mark.fault("state with flipped bits", 12)
def test_state_flipped(fault, target, outcome):
    flip(fault, target, outcome)


def flip(fault, target, outcome):
    place, path, which = target
    draw, content = fault.draw(), path.read_bytes()
    damaged = bytearray(content)
    bits = draw.integers(0, 8 * len(content), size=int(draw.choice([1, 1, 8])))
    for bit in map(int, bits):
        damaged[bit // 8] ^= 1 << bit % 8
    outcome.how = f"bits {bits.tolist()} of {8 * len(content)}"
    judge(outcome, place, path, which, content, bytes(damaged))


class Harm:
    """What a pickle would do that is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def replacements(place, path, which, bases):
    """Return what may stand in the place of a file: name -> how it comes there."""
    other = next(iter(place.kept)) if which == "result" else next(bases["other"].cache.rglob("*.npz"))

    def older():
        if which == "result":
            dataset = results.load(path)
            results.save(dataset.assign_attrs(code="of an older version"), path)
        else:
            with np.load(path) as stored:
                np.savez(path, **({name: stored[name] for name in stored.files} | {"key": "of an older version"}))

    def pickled():
        path.write_bytes(pickle.dumps(Harm(place.folder / "harm")))

    def pickled_array():
        with path.open("wb") as stream:
            np.savez(stream, key=np.array([Harm(place.folder / "harm")], dtype=object))

    def instead(make):
        path.unlink()
        make()

    return {
        "nothing in it": lambda: path.write_bytes(b""),
        "noise": lambda: path.write_bytes(np.random.default_rng(0).bytes(5000)),
        "text": lambda: path.write_text("see the other folder\n"),
        "another experiment's": lambda: shutil.copy(other, path),
        "an older version's": older,
        "a folder": lambda: instead(path.mkdir),
        "a link to nowhere": lambda: instead(lambda: path.symlink_to("nowhere")),
        "a link to itself": lambda: instead(lambda: path.symlink_to(path.name)),
        "a pipe": lambda: instead(lambda: os.mkfifo(path)),
        "a pickle that does harm": pickled,
        "an array that is such a pickle": pickled_array,
    }


@pytest.mark.fault("result replaced", 11)
def test_result_replaced(fault, target, outcome, bases):
    replace(fault, target, outcome, bases)


@pytest.mark.fault("state replaced", 11)
def test_state_replaced(fault, target, outcome, bases):
    replace(fault, target, outcome, bases)


def replace(fault, target, outcome, bases):
    place, path, which = target
    ways = replacements(place, path, which, bases)
    outcome.how = list(ways)[fault.seed % len(ways)]
    ways[outcome.how]()
    again = place.run("tiny")
    if again.status == 2:  # it may refuse, in one line: then the reader removes what is there
        if str(path.name) not in again.text or again.text.count("\n") != 1:
            outcome.unclear.append(again.text)
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    place.survives(outcome, again, status=[2])
    if not outcome.said and outcome.how != "a link to nowhere":  # which is as if nothing were there
        outcome.unclear.append("it says nothing")
    if (place.folder / "harm").exists():
        outcome.wrong.append("a stranger's code ran")
