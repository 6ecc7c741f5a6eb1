"""Faults as parameters, the place they strike in, and the table that a run of all of them writes."""

import json
import os
import platform
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from harness import EXPERIMENTS, Fault, Outcome, Place

from periodic_lib import results
from periodic_lib.publishing import faults as table

ROOT = Path(__file__).parents[3]


def pytest_addoption(parser):
    group = parser.getgroup("faults")
    group.addoption("--faults", type=int, default=1, metavar="N", help="N times as many seeds of every kind")
    group.addoption(
        "--faults-table", type=Path, metavar="FILE", help="write the table there, too: data/faults/faults.csv"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "fault(kind, seeds): strike so often, by seed")
    config.outcomes, config.origin = [], results.origin()


def pytest_generate_tests(metafunc):
    marker = metafunc.definition.get_closest_marker("fault")
    if marker:
        kind, seeds = marker.args
        many = range(seeds * metafunc.config.getoption("--faults"))
        metafunc.parametrize("fault", [Fault(kind, seed) for seed in many], ids=[str(seed) for seed in many])


@pytest.fixture(scope="session")
def template():
    """A place with finished results, and what an undisturbed run of every experiment says."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    folder.chmod(0o755)  # for a user without rights, too
    expected = {}
    undisturbed = Place(folder / "undisturbed", expected).lay_out()
    for name in yaml.safe_load(EXPERIMENTS):
        ended = undisturbed.run(name)
        assert ended.status == 0, ended.text
        expected |= ended.served
    place = Place(folder / "template", expected).lay_out()
    shutil.copytree(undisturbed.cache / "finished", place.cache / "finished")
    yield place
    shutil.rmtree(folder)


@pytest.fixture
def place(template, request):
    """A place of one's own."""
    folder = Path(tempfile.mkdtemp(dir=template.folder.parent))
    folder.chmod(0o755)
    yield template.copy(folder)
    shutil.rmtree(folder)


@pytest.fixture
def outcome(fault, request):
    """What became of the fault; written down."""
    found = Outcome(fault.kind, fault.seed)
    yield found
    if found.problems or found.recovery == found.recovery:  # not of what was skipped
        request.config.outcomes.append(found)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Let a test fail if anything is not as it must be after its fault."""
    result = yield
    found = item.funcargs.get("outcome")
    if found is not None and found.problems:
        pytest.fail(f"{found.how}\n" + "\n".join(found.problems), pytrace=False)
    return result


def pytest_sessionfinish(session):
    """Write the table; rows of kinds that were not struck now stay as they are."""
    config = session.config
    if not config.outcomes:
        return
    folder = ROOT / "build" / "faults"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [asdict(one) for one in config.outcomes]
    (folder / "outcomes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    origin = {"date": config.origin["created"][:10], "revision": config.origin["git_revision"]}
    new = table.summary(rows, **origin, processor=processor())
    new.to_csv(folder / "faults.csv", index=False)
    kept = config.getoption("--faults-table")
    if kept:
        old = pd.read_csv(kept) if kept.exists() else new.head(0)
        kept.parent.mkdir(parents=True, exist_ok=True)
        pd.concat([old[~old.kind.isin(new.kind)], new]).to_csv(kept, index=False)


def processor():
    """Return the name and instruction set of this machine's processor, and how many there are."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")]
    wide = "with AVX-512" if "avx512f" in info else "without AVX-512"
    return f"{names[0] if names else platform.machine()} {wide}, {os.cpu_count()} cores"


def pytest_terminal_summary(terminalreporter, config):
    outcomes = config.outcomes
    if outcomes:
        lost = sum(bool(one.problems) for one in outcomes)
        used = sum(sum(child.cpu_times()[:4]) for child in psutil.Process().children())
        text = f"{len(outcomes)} faults, {len(outcomes) - lost} survived, in {used:.0f} s of a processor"
        terminalreporter.write_line(f"{text}; build/faults/faults.csv")
