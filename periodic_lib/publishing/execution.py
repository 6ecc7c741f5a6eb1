"""Chapters executed by papermill, each in a fresh process, a processor each."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from periodic_lib import experiments, fingerprints, results
from periodic_lib.checks import known_names
from periodic_lib.project import digest, print_message, root, write_whole
from periodic_lib.publishing import claims
from periodic_lib.publishing.notebooks import (
    ChapterError,
    build_folder,
    chapters,
    check_parameters,
    error_outputs,
    read,
)

ERROR_EXCERPT = 30  # lines of a failed notebook's traceback that are shown
SAYING = {"publishing.chapters", "publishing.claims", "publishing.explore"}
TOOLS = {"__init__", "__main__", "cli", "doctor", "exports", "plans", "status"} | {
    module
    for module in fingerprints.SOURCES
    if module.partition(".")[0] in ("publishing", "teaching", "sweeping") and module not in SAYING
}
"""Modules that no chapter uses."""
GRACE_SECONDS = 10  # for papermill to end its kernel when it is told to stop
PR_SET_PDEATHSIG = 1  # of prctl(2)
DEAD_KERNEL = 138  # papermill's exit status when the kernel died
CHAPTER_BYTES = 2e9  # memory of a chapter, with room to spare
QUIET_REPORT_SECONDS = 15  # how often progress is printed where there is no terminal


def execute(
    names: Iterable[str] | None = None, profile: str = "classroom", force: bool = False
) -> list[str]:
    """Execute the chapters whose copy is missing or out of date; return their names.

    A copy is up to date if it was made from the same chapter, profile, library code, experiments
    and claims, and the chapter was not touched since.

    Raises
    ------
    ConfigError : for an unknown chapter (`chosen`).
    ChapterError : if a chapter fails; the others are executed all the same, and are kept.
    """
    names = chosen(names)
    current = [name for name in names if not force and is_current(name, profile)]
    for name in current:
        print_message(f"{name}: up to date")
    waiting = sorted(set(names) - set(current), key=lambda name: -_minutes(name, profile))
    ran, failed = _execute_all(waiting, profile)
    if failed:
        raise ChapterError("\n".join(failed))
    return sorted(ran)


def chosen(names: Iterable[str] | None) -> list[str]:
    """Return the chapters that are meant: all, or those with these names; "05" names 05_jumps.

    Raises
    ------
    ConfigError : for a name that no chapter, or more than one, begins with.
    """
    known = chapters()
    if names is None:
        return known
    found = []
    for name in names:
        begins = [one for one in known if one == name or one.startswith(f"{name}_")]
        known_names("chapter", [begins[0] if len(begins) == 1 else name], tuple(known))
        found += begins
    return found


def preview(names: Iterable[str] | None, profile: str, force: bool = False) -> list[str]:
    """Return a line per chapter: up to date, or what its execution would train, and how long."""
    return [f"{name}: {_preview(name, profile, force)}" for name in chosen(names)]


def _preview(name: str, profile: str, force: bool) -> str:
    if not force and is_current(name, profile):
        return "up to date"
    todo = [plan for plan in experiments_of(name, profile) if experiments.state(plan)[0] != "ready"]
    trains = ", ".join(f"{plan.name} ({60 * (plan.minutes or 0):.0f} s)" for plan in todo)
    return f"would be executed; trains {trains or 'nothing: all results are there'}"


def _execute_all(waiting: list[str], profile: str) -> tuple[list[str], list[str]]:
    """Execute chapters, as many at once as there are workers; return names and error messages."""
    ran, failed, running = [], [], []
    shown = _Progress()
    try:
        while waiting or running:
            while waiting and len(running) < workers():
                running.append(_Execution(waiting.pop(0), profile))
            time.sleep(0.2)
            shown.update(running)
            for one in [one for one in running if one.has_ended()]:
                running.remove(one)
                shown.clear()
                try:
                    one.keep()
                    ran.append(one.name)
                except ChapterError as error:
                    failed.append(str(error))
    finally:  # Ctrl-C above all: leave no kernel training behind
        for one in running:
            one.stop()
    return ran, failed


def workers() -> int:
    """Return how many chapters are executed at once: a processor each, if there is the memory.

    A GPU is not shared. Each chapter computes on one thread: its networks are so small that more
    hardly help, and so its numbers do not depend on how many chapters run beside it.
    """
    if Path("/dev/nvidia0").exists():
        return 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), int(memory // CHAPTER_BYTES)))


def _minutes(name: str, profile: str) -> float:
    """Return the declared time of a chapter's own experiments: the longest starts first."""
    plans = experiments_of(name, profile, own=True)
    return sum(plan.minutes or 0 for plan in plans)


def is_current(name: str, profile: str) -> bool:
    """Whether the executed copy of a chapter is there and was made from what is there now."""
    copy, stamp = copy_of(name, profile), _stamp(name, profile)
    origin = root() / "book" / f"{name}.ipynb"
    return (
        copy.exists()
        and stamp.exists()
        and copy.stat().st_mtime_ns >= origin.stat().st_mtime_ns
        and stamp.read_text(encoding="utf-8") == fingerprint(name, profile)
        and all(experiments.state(todo)[0] == "ready" for todo in experiments_of(name, profile))
    )


def fingerprint(name: str, profile: str) -> str:
    """Return the SHA-256 of all that an executed chapter is made from."""
    stated = {
        claim: entry for claim, entry in claims.declared().items() if entry["chapter"] == name
    }
    for claim, entry in stated.items():
        stated[claim] = entry | {"verdict": None}  # to acknowledge a verdict changes nothing
    source = (root() / "book" / f"{name}.ipynb").read_text(encoding="utf-8")
    parts = [
        source,
        profile,
        fingerprints.code_digest(tuple(sorted(set(fingerprints.SOURCES) - TOOLS))),
        [plan.settings for plan in experiments_of(name, profile)],
        _kept_results(name),
        _tables(source),
        stated,
    ]
    return digest(parts)


def _kept_results(name: str) -> dict[str, str]:
    """Return the checksums of results in git of the experiments that a chapter reads."""
    paths = [experiments.kept_path(plan.name) for plan in experiments_of(name, "paper")]
    return {path.name: results.attributes(path)["sha256"] for path in paths if path.exists()}


def _tables(source: str) -> dict[str, str]:
    """Return the digests of committed tables that a chapter may read: those of sweeps and published
    ones, and the benchmarks, or verdicts under other seeds, that its source names.
    """
    data = root() / "data"
    found = [*data.glob("published/*"), *data.glob("sweeps/*")]
    named = [*data.glob("benchmarks/*"), *data.glob("claims/*.csv")]
    found += [path for path in named if path.name in source]
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(found)}
    return {name: digest(text) for name, text in texts.items()}


def experiments_of(name: str, profile: str, own: bool = False) -> list[experiments.Plan]:
    """Return the experiments that a chapter reads; `own`: only those that are declared for it."""
    return [
        experiments.plan(experiment, profile)
        for experiment, entry in experiments.declared().items()
        if profile in entry["profiles"]
        and (entry.get("chapter") == name or (name in entry.get("also", ()) and not own))
    ]


def copy_of(name: str, profile: str) -> Path:
    """Return where the executed copy of a chapter lies."""
    return build_folder(profile) / "chapters" / f"{name}.ipynb"


def _stamp(name: str, profile: str) -> Path:
    return build_folder(profile) / "stamps" / name


class _Execution:
    """One chapter being executed by papermill in a process of its own.

    Raises
    ------
    ConfigError : if the chapter has no `parameters` cell as it must have.
    """

    def __init__(self, name: str, profile: str):
        self.name, self.copy, self.stamp = name, copy_of(name, profile), _stamp(name, profile)
        check_parameters(root() / "book" / f"{name}.ipynb", ["profile", "overrides"])
        self.stamp.unlink(missing_ok=True)
        self.made_from = fingerprint(name, profile)  # now: a change meanwhile must not pass
        self.started = time.perf_counter()
        self._folder = tempfile.TemporaryDirectory()
        scratch = Path(self._folder.name)
        self.executed, self.log = scratch / "executed.ipynb", scratch / "log"
        self.progress = scratch / "progress"
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(
                papermill(root() / "book" / f"{name}.ipynb", self.executed, profile),
                env=environment(profile, self.progress),
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def has_ended(self) -> bool:
        """Whether papermill has ended."""
        return self.process.poll() is not None

    def line(self) -> str:
        """Return the last line of the progress of the training inside."""
        return f"{self.name}: {_last_line(self.progress) or 'running'}"

    def keep(self) -> None:
        """Keep the executed copy, and the fingerprint of what it was made from.

        Raises
        ------
        ChapterError : if it failed.
        """
        with self._folder:
            failed = self.copy.with_name(f"{self.name}.failed.ipynb")
            log = self.log.read_text(encoding="utf-8")
            _report_failure(self.name, self.process.returncode, self.executed, failed, log)
            write_whole(self.copy, self.executed.read_bytes())
        write_whole(self.stamp, self.made_from)
        print_message(f"{self.name}: executed in {time.perf_counter() - self.started:.0f} s")

    def stop(self) -> None:
        """End papermill and all that it started: asked first, so that it ends its kernel."""
        for request in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, request)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE_SECONDS)
                break
        self._folder.cleanup()


def _end_with_parent() -> None:
    """Ask the kernel (Linux) to tell this process to end when its parent is gone, even killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def papermill(chapter: Path, executed: Path, profile: str) -> list[str]:
    """Return the command that executes a chapter."""
    command = [sys.executable, "-m", "papermill", chapter, executed]
    command += ["-p", "profile", profile, "-k", "python3", "--cwd", root() / "book"]
    command += ["--no-progress-bar", "--log-level", "WARNING", "--start-timeout", "180"]
    return [str(word) for word in command]


def environment(profile: str, progress: Path) -> dict[str, str]:
    """Return the environment of a chapter."""
    return {
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "PERIODIC_PROGRESS": str(progress),
        "PERIODIC_RECORDS": str(build_folder(profile) / "records"),
        "MPLBACKEND": "agg",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


class _Progress:
    """What running chapters last said: in place on a terminal, now and then in a log."""

    def __init__(self):
        self.terminal, self.last = sys.stderr.isatty(), time.monotonic()

    def update(self, running: list[_Execution]) -> None:
        """Show the progress of all."""
        if self.terminal:
            width = shutil.get_terminal_size().columns // max(1, len(running)) - 3
            text = " | ".join(one.line()[:width] for one in running)
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.last > QUIET_REPORT_SECONDS:
            self.last = time.monotonic()
            for one in running:
                print(one.line(), file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Make room for a message."""
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _last_line(path: Path) -> str:
    try:
        pieces = path.read_text(encoding="utf-8", errors="replace").replace("\n", "\r").split("\r")
    except OSError:
        return ""
    return next((piece.strip() for piece in reversed(pieces) if piece.strip()), "")


def _report_failure(name: str, status: int, executed: Path, failed: Path, log: str) -> None:
    """Raise `ChapterError` if papermill failed or left an error in an output; keep that copy."""
    if status == 0 and not error_outputs(read(executed)):
        return
    if status in (DEAD_KERNEL, -signal.SIGKILL):
        raise ChapterError(
            f"{name}: the kernel died, probably out of memory. Try a smaller profile."
        )
    if executed.exists():
        write_whole(failed, executed.read_bytes())
    excerpt = "\n".join(log.strip().splitlines()[-ERROR_EXCERPT:])
    raise ChapterError(f"{name}: failed (exit {status}); the executed copy is {failed}\n{excerpt}")
