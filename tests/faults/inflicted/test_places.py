"""A disk that is full, rights that are lost, a clock that is set back."""

import os
import resource
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
from harness import at_step, save_every_step

YEAR = 365 * 86400
NOBODY = 65534


# ---------------------------------------------------------------- disk


def limit_files(size):
    """Let no file of this process become larger: a write ends half-way, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.fault("disk full, by a limit on files", 10)
def test_limited_files(fault, place, outcome):
    draw = fault.draw()
    size, step = int(draw.integers(0, 60_000)), int(draw.integers(0, 24))
    outcome.how = f"files of at most {size} bytes from step {step}"
    limit = partial(limit_files, size)
    strikes = [save_every_step, limit if step < 8 else partial(at_step, step, limit)]
    struck = place.run("tiny", strikes=strikes)
    place.survives(outcome, struck, status=[2], says="cannot be (written|saved)")


@pytest.fixture(scope="session")
def may_mount(template):
    """Skip where this user may not mount a file system."""
    where = template.folder.parent / "mounted"
    where.mkdir()
    tried = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", where], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.strip()}")
    subprocess.run(["umount", where], check=True)


@pytest.mark.fault("disk full, a small file system", 4)
def test_small_disk(fault, may_mount, place, outcome):
    kept = {path: path.read_bytes() for path in place.cache.rglob("*") if path.is_file()}
    room = sum(map(len, kept.values())) + 4096 * (4 + len(kept))
    size = room + int(fault.draw().integers(0, 100_000))
    outcome.how = f"a disk of {size} bytes, {room} of them in use"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place.cache], check=True)
    try:
        for path, content in kept.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        struck = place.run("tiny", strikes=[save_every_step])
        subprocess.run(["mount", "-o", "remount,size=50m", place.cache], check=True)
        place.survives(outcome, struck, status=[2], says="cannot be (written|saved).*(space|Free)")
    finally:
        subprocess.run(["umount", place.cache], check=True)


# ---------------------------------------------------------------- rights


def give_up_rights():
    """Become nobody: the rights of files do not bind root."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def set_mode(path, mode):
    """Change the rights of a file or of a folder."""
    Path(path).chmod(mode)


@pytest.mark.fault("rights lost", 8)
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_rights_lost(fault, place, outcome, template):
    ways = {
        "the cache, before": (place.cache, 0o555, None, "tiny"),
        "the cache's folders, on the way": (place.cache, 0o555, 9, "tiny"),
        "to enter the cache": (place.cache, 0o000, None, "tiny"),
        "a result": ("result", 0o000, None, "finished"),
        "the experiments file": (place.folder / "book" / "experiments.yml", 0o000, None, "tiny"),
        "data of one's own": (place.folder / "own.npz", 0o000, None, "own"),
    }
    outcome.how = list(ways)[fault.seed % len(ways)]
    path, mode, step, experiment = ways[outcome.how]
    path = next(iter(place.kept)) if path == "result" else path
    for one in (place.folder, *place.folder.rglob("*")):
        os.chown(one, NOBODY, NOBODY, follow_symlinks=False)
    strikes = [save_every_step, give_up_rights]
    if step is None:
        path.chmod(mode)
    else:
        targets = [one for one in (path, path / "tiny", path / "objects") if one is path or fault.seed % 2]
        strikes += [partial(at_step, step, partial(_close, targets, mode))]
    struck = place.run(experiment, strikes=strikes)
    for one in (place.cache, *place.cache.rglob("*"), path):
        one.chmod(0o755 if one.is_dir() else 0o644)
    place.survives(outcome, struck, experiment=experiment, status=[2], says="cannot (be )?(written|saved|read)")


def _close(targets, mode):
    for one in targets:
        if one.exists():
            one.chmod(mode)


# ---------------------------------------------------------------- clock


def set_clock(seconds):
    """Move the clock by so many seconds, as this process reads it."""
    import datetime

    real, real_ns, kind = time.time, time.time_ns, datetime.datetime

    class Moved(kind):
        @classmethod
        def now(cls, tz=None):
            return kind.now(tz) + datetime.timedelta(seconds=seconds)

    time.time = lambda: real() + seconds
    time.time_ns = lambda: real_ns() + int(seconds * 1e9)
    datetime.datetime = Moved


@pytest.mark.fault("clock set back", 6)
def test_clock_set_back(fault, place, outcome):
    draw = fault.draw()
    seconds, step = -float(10 ** draw.uniform(0, 8.5)), int(draw.integers(0, 24))
    outcome.how = f"by {-seconds:.0f} s at step {step}"
    struck = place.run("tiny", strikes=[save_every_step, partial(at_step, step, partial(set_clock, seconds))])
    place.survives(outcome, struck)


@pytest.mark.fault("files from the future", 4)
def test_files_from_the_future(fault, place, outcome):
    future = time.time() + float(10 ** fault.draw().uniform(1, 9))
    outcome.how = f"all files are of {time.strftime('%Y-%m-%d', time.gmtime(future))}"
    if fault.seed % 2:
        assert place.run("tiny", "--budget", "1e-9").status == 3
    else:
        assert place.run("tiny").status == 0
    for path in place.folder.rglob("*"):
        os.utime(path, (future, future), follow_symlinks=False)
    place.survives(outcome)


@pytest.mark.fault("folder gone on the way", 2)
def test_folder_gone(fault, place, outcome):
    step = int(fault.draw().integers(1, 24))
    outcome.how = f"the folder of the results that are made is removed at step {step}"
    struck = place.run("tiny", strikes=[save_every_step, partial(at_step, step, partial(_remove, place.cache))])
    place.survives(outcome, struck, status=[2], says="cannot be (written|saved)")


def _remove(cache):
    for path in cache.iterdir():
        if path.is_dir() and path.name == "tiny":
            shutil.rmtree(path)
