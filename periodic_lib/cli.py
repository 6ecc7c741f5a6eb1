"""The command `periodic`: run experiments, build the book, list claims, teach, take the book away.

Exit status: 0 done; 1 a chapter, the book, runs of a sweep or a check of the doctor failed; 2 the
command cannot be carried out as given (nothing was computed); 3 the budget was used up, the same
command goes on; 130 interrupted, or told to terminate.
"""

from __future__ import annotations

import _thread
import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from periodic_lib import experiments
from periodic_lib.checks import known_names, shown
from periodic_lib.outside import parse_yaml
from periodic_lib.project import (
    ConfigError,
    Unfinished,
    print_message,
    root,
    whole_interruptions,
)

UNFINISHED = 3  # exit status
INTERRUPTED = 130  # exit status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _parser().parse_args(arguments)
    _replace_what_the_terminal_cannot_show()
    try:
        with _termination_as_interruption(), whole_interruptions():
            status = options.action(options)
            sys.stdout.flush()
            return status
    except ConfigError as error:
        print_message(f"error: {error}")
        return 2
    except BrokenPipeError:  # who reads the output has seen enough: `periodic claims | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print_message(
            "interrupted; no half-made result was kept. "
            "The same command goes on from the last saved state, if any."
        )
        return INTERRUPTED


@contextmanager
def _termination_as_interruption() -> Iterator[None]:
    """Let a request to terminate, as clusters and systemd send it, end things as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    hook, sys.unraisablehook = sys.unraisablehook, _interrupt_again
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.unraisablehook = hook


def _interrupt_again(dropped: sys.UnraisableHookArgs) -> None:
    """Interrupt once more, in a moment: Python drops what is raised while an object is removed."""
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        threading.Timer(0.01, _thread.interrupt_main, [signal.SIGTERM]).start()
    else:
        sys.__unraisablehook__(dropped)


def _replace_what_the_terminal_cannot_show() -> None:
    """Print a code in place of a character that the output's encoding lacks, instead of failing."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="periodic", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_run(commands)
    _add_sweep(commands)
    _add_book(commands)
    _add_claims(commands)
    _add_class(commands)
    _add_export(commands)
    _add_checks(commands)
    return parser


def _add_run(commands: argparse._SubParsersAction) -> None:
    run = commands.add_parser(
        "run", help="train an experiment, or load its result; --list shows all"
    )
    run.add_argument("experiment", nargs="?", help="a name in book/experiments.yml")
    run.add_argument("--profile", default="classroom", help="smoke, classroom (default) or paper")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="replace a declared value: lr=[0.03,0.1], steps=2000; may be given several times",
    )
    run.add_argument(
        "--budget",
        metavar="SECONDS",
        help="stop training after that time and save its state; the same command goes on",
    )
    run.add_argument(
        "--keep",
        action="store_true",
        help="also write it, or what is there so far, to data/results/, for git",
    )
    run.add_argument("--force", action="store_true", help="train even if the result is there")
    run.add_argument("--list", action="store_true", help="show all experiments, and stop")
    run.set_defaults(action=_run)


def _add_sweep(commands: argparse._SubParsersAction) -> None:
    sweep = commands.add_parser(
        "sweep", help="train an experiment and its variants, or a file of experiments, as stacks"
    )
    sweep.add_argument("experiments", metavar="NAME|FILE", help="as in book/experiments.yml")
    sweep.add_argument("--profile", default="classroom", help="smoke, classroom (default) or paper")
    sweep.add_argument(
        "--scheduler",
        metavar="local|ADDRESS",
        help="local: worker processes here; tcp://...: a Dask scheduler; without: in this process",
    )
    sweep.add_argument("--workers", metavar="N", help="processes of local, or how many to wait for")
    sweep.add_argument("--threads", default=1, metavar="N", help="threads of a stack (default 1)")
    sweep.add_argument("--size", metavar="N", help="runs a stack (default: measured)")
    sweep.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="as of `periodic run`"
    )
    sweep.add_argument("--dry-run", action="store_true", help="say what would be trained, and stop")
    sweep.set_defaults(action=_sweep)


def _add_checks(commands: argparse._SubParsersAction) -> None:
    status = commands.add_parser("status", help="what is done, running, failed or stale, and where")
    status.add_argument("--all", action="store_true", help="what is not made, too")
    status.set_defaults(action=_status)
    doctor = commands.add_parser("doctor", help="is everything here that training needs?")
    doctor.set_defaults(action=_doctor)


def _add_book(commands: argparse._SubParsersAction) -> None:
    book = commands.add_parser("book", help="execute what is out of date and render the book")
    book.add_argument(
        "chapters",
        nargs="*",
        help="execute only these chapters, and render nothing: 05_jumps, or 05",
    )
    book.add_argument("--profile", default="classroom", help="smoke or classroom (default)")
    book.add_argument("--force", action="store_true", help="execute even what is up to date")
    book.add_argument("--no-render", action="store_true", help="execute, but build no pages")
    book.add_argument(
        "--dry-run", action="store_true", help="say what would be executed and trained, and stop"
    )
    book.add_argument(
        "--strict",
        action="store_true",
        help="after rendering, fail if a verdict is not the acknowledged one",
    )
    book.set_defaults(action=_book)


def _add_claims(commands: argparse._SubParsersAction) -> None:
    claims = commands.add_parser("claims", help="print every claim with its measured verdict")
    claims.add_argument("--profile", default="classroom", help="smoke or classroom (default)")
    claims.add_argument(
        "--save-stability",
        action="store_true",
        help="write the verdicts under PERIODIC_SEED_SHIFT to data/claims/stability.csv",
    )
    claims.set_defaults(action=_claims)


def _add_class(commands: argparse._SubParsersAction) -> None:
    teaching = commands.add_parser("class", help="write what a class needs to build/class")
    teaching.add_argument(
        "--profile", default="classroom", help="whose results: smoke or classroom (default)"
    )
    teaching.set_defaults(action=_class)


def _add_export(commands: argparse._SubParsersAction) -> None:
    export = commands.add_parser("export", help="write the executed book in another form to build/")
    export.add_argument("form", help="pdf, epub, slides, figures, gettext or archive")
    export.add_argument("--profile", default="classroom", help="smoke or classroom (default)")
    export.set_defaults(action=_export)


# ---------------------------------------------------------------- run


def _run(options: argparse.Namespace) -> int:
    from periodic_lib.analysis import regimes

    if options.list:
        print(listing())
        return 0
    if options.experiment is None:
        known = ", ".join(experiments.names())
        raise ConfigError(f"`experiment` must be given: one of {known}.")
    overrides = parse_overrides(options.set)
    todo = experiments.plan(options.experiment, options.profile, overrides)
    if options.keep:
        experiments.check_keepable(overrides)
    try:
        how = {"overrides": overrides, "force": options.force, "budget": options.budget}
        dataset = experiments.run_experiment(options.experiment, options.profile, **how)
    except Unfinished as stopped:
        print_message(f"{todo.name} ({todo.profile}): {stopped}. The same command goes on.")
        if options.keep:
            print(experiments.keep(stopped.dataset, todo))
        return UNFINISHED
    kept = [experiments.keep(dataset, todo)] if options.keep else []  # first: printing may fail
    print(regimes.summarize(dataset).to_string(index=False, float_format="{:.4g}".format))
    print(*experiments.files(todo), *kept, sep="\n")
    return 0


def parse_overrides(assignments: Sequence[str]) -> dict:
    """Return NAME=VALUE texts as a dictionary; values are YAML: numbers, [lists], true, null.

    Raises
    ------
    ConfigError : for a text without "=" or name, or a value that is not YAML.

    >>> parse_overrides(["lr=[0.03, 1e-1]", "depth=null"])
    {'lr': [0.03, '1e-1'], 'depth': None}
    """
    values = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            raise ConfigError(
                f"`--set` must be NAME=VALUE, for example lr=[0.03,0.1]; got {shown(assignment)}."
            )
        try:
            values[name.strip()] = parse_yaml(text, f"--set {name}")
        except ConfigError:
            raise ConfigError(
                f"`--set {name}` must be a number, a word or a [list]; got {shown(text)}."
            ) from None
    return values


def listing() -> str:
    """Return the table of experiments: profile, runs, steps, time, and state of the result."""
    import pandas as pd

    rows = []
    for name, entry in experiments.declared().items():
        for profile in entry["profiles"]:
            todo = experiments.plan(name, profile)
            state, seconds = experiments.state(todo)
            estimated = f"{60 * (todo.minutes or 0):.0f} s (estimated)"
            time = f"{seconds:.0f} s (measured here)" if seconds else estimated
            rows.append((name, profile, len(todo.runs), todo.setup.steps, time, state))
    columns = ["experiment", "profile", "runs", "steps", "time", "result"]
    return pd.DataFrame(rows, columns=columns).to_string(index=False)


# ---------------------------------------------------------------- sweep, status, doctor


def _sweep(options: argparse.Namespace) -> int:
    from periodic_lib import plans
    from periodic_lib.storage import store
    from periodic_lib.sweeping import sweeps

    name, overrides = options.experiments, parse_overrides(options.set)
    todo = plans.plans_of(name, options.profile, overrides)
    if options.dry_run:
        print(*sweeps.preview(todo, options.size), sep="\n")
        return 0
    how = {name: getattr(options, name) for name in ("workers", "threads", "size")}
    label = f"{todo[0].name if len(todo) == 1 else Path(name).stem} ({options.profile})"
    done = sweeps.sweep(todo, options.scheduler, name=label, **how)
    print(done.summary())
    if done.failed:
        print_message(f"error: {done.lost_runs} runs failed; `periodic status` says of what.")
        return 1
    print(store.folder())
    return 0


def _status(options: argparse.Namespace) -> int:
    from periodic_lib import status

    print(*aligned([status.COLUMNS, *status.rows(options.all)]), sep="\n")
    print(*status.failures(), sep="\n", end="")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from periodic_lib import doctor

    well = True
    for finding in doctor.findings():
        print(finding.line(), flush=True)
        well &= finding.ok
    return 0 if well else 1


# ---------------------------------------------------------------- book, claims, class


def _book(options: argparse.Namespace) -> int:
    from periodic_lib.publishing import book, execution, notebooks

    names = options.chapters or None
    if options.dry_run:
        print(*execution.preview(names, options.profile, options.force), sep="\n")
        return 0
    try:
        if names or options.no_render:
            execution.execute(names, options.profile, options.force)
            return 0
        if options.force:
            execution.execute(None, options.profile, force=True)
        page = book.build_book(options.profile, options.strict)
    except notebooks.ChapterError as error:
        print_message(f"error: {error}")
        return 1
    print(f"The book is ready. Open {page}")
    return 0


def _claims(options: argparse.Namespace) -> int:
    from periodic_lib.publishing import claims, notebooks

    known_names("profile", [options.profile], experiments.PROFILES)
    folder = notebooks.build_folder(options.profile) / "records"
    records = claims.read_records(folder)
    if not records:
        raise ConfigError(
            f"no chapter has been executed at profile {options.profile!r}: `make book` first."
        )
    if options.save_stability:
        print(claims.save_stability(_shift(), records))
        return 0
    columns = ("claim", "kind", "verdict", "acknowledged", "measured")
    print("\n".join(aligned([row[column] for column in columns] for row in claims.table(records))))
    return 0


def _class(options: argparse.Namespace) -> int:
    from periodic_lib.teaching import classroom

    known_names("profile", [options.profile], experiments.PROFILES[:2])
    folder = root() / "build" / "class"
    for sentence in classroom.pack(folder, options.profile):
        print_message(sentence)
    print(f"The pack for a class is ready. Open {folder / 'README.md'}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from periodic_lib import exports
    from periodic_lib.publishing import notebooks

    try:
        written = exports.export(options.form, options.profile)
    except notebooks.ChapterError as error:
        print_message(f"error: {error}")
        return 1
    print(f"Written: {written}")
    return 0


def _shift() -> int:
    """Return the shift of the seeds that the records in use were made with; refuse none."""
    shift = experiments.seed_shift()
    if not shift:
        raise ConfigError(
            "`--save-stability` needs the variable PERIODIC_SEED_SHIFT above 0, with which the "
            "chapters were executed, as in `PERIODIC_SEED_SHIFT=100 periodic book --no-render`; "
            "got 0, or none."
        )
    return shift


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return one line per row: its cells, each without line breaks, in columns two spaces apart.

    >>> aligned([["a", "long", "x"], ["bb", "c", "y z"]])
    ['a   long  x', 'bb  c     y z']
    """
    cells = [[" ".join(cell.split()) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
