"""The command `periodic`: run experiments without a notebook, execute and render the book, list claims, measure speed.

Exit status: 0 done; 1 a chapter or the book failed; 2 the command cannot be carried out as given (nothing was
computed); 3 the budget was used up, the same command goes on; 130 interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import yaml

from periodic_lib import experiments
from periodic_lib.config import ConfigError, Run, Unfinished, known_names

UNFINISHED = 3  # exit status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.action(options)
    except ConfigError as error:
        experiments.print_message(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        experiments.print_message(
            "interrupted; no half-made result was kept. The same command goes on from the last saved state, if any."
        )
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="periodic", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="command")

    run = commands.add_parser("run", help="train an experiment, or load it if it is there; --list shows all")
    run.add_argument("experiment", nargs="?", help="a name in book/experiments.yml")
    run.add_argument("--profile", default="classroom", help="smoke, classroom or paper (default: classroom)")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="replace a declared value, for example lr=[0.03,0.1] or steps=2000; may be given several times",
    )
    run.add_argument(
        "--budget",
        metavar="SECONDS",
        help="stop training after that time and save its state; the same command goes on",
    )
    run.add_argument(
        "--keep", action="store_true", help="also write the result to data/results/<profile>/, which is in git"
    )
    run.add_argument("--force", action="store_true", help="train even if the result is there")
    run.add_argument("--list", action="store_true", help="show experiments, profiles, runs and time, and stop")
    run.set_defaults(action=_run)

    book = commands.add_parser("book", help="execute the chapters that are out of date and render the book")
    book.add_argument("chapters", nargs="*", help="execute only these chapters, and render nothing")
    book.add_argument("--profile", default="classroom", help="smoke or classroom (default: classroom)")
    book.add_argument("--force", action="store_true", help="execute chapters even if they are up to date")
    book.add_argument("--no-render", action="store_true", help="execute the chapters, but build no pages")
    book.set_defaults(action=_book)

    claims = commands.add_parser("claims", help="print every claim with its verdict in the book as it was built")
    claims.add_argument("--profile", default="classroom", help="smoke or classroom (default: classroom)")
    claims.set_defaults(action=_claims)

    bench = commands.add_parser("bench", help="measure speed against plain PyTorch; writes data/benchmarks/")
    bench.set_defaults(action=_bench)
    return parser


# ---------------------------------------------------------------- run


def _run(options: argparse.Namespace) -> int:
    if options.list:
        print(listing())
        return 0
    if options.experiment is None:
        raise ConfigError("`experiment` must be given: one of " + ", ".join(experiments.declared()) + ".")
    overrides = parse_overrides(options.set)
    todo = experiments.plan(options.experiment, options.profile, overrides)
    if options.keep and set(overrides) - {"dataset"}:
        raise ConfigError("`--keep` keeps a declared result: with it, `--set` may change only `dataset`.")
    try:
        dataset = experiments.run_experiment(
            options.experiment, options.profile, overrides=overrides, force=options.force, budget=options.budget
        )
    except Unfinished as stopped:
        experiments.print_message(f"{todo.name} ({todo.profile}): {stopped}. The same command goes on.")
        return UNFINISHED
    print(summary(dataset).to_string(index=False))
    print(f"{todo.path}")
    if options.keep:
        print(f"{experiments.keep(dataset, todo)}")
    return 0


def parse_overrides(assignments: Sequence[str]) -> dict:
    """Return NAME=VALUE texts as a dictionary; values are YAML, so lists, numbers, true and null can be written.

    >>> parse_overrides(["lr=[0.03, 1e-1]", "depth=null"])
    {'lr': [0.03, '1e-1'], 'depth': None}
    """
    values = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"`--set` must be NAME=VALUE, for example lr=[0.03,0.1]; got {assignment!r}.")
        try:
            values[name.strip()] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"`--set {name}` must be a number, a word or a [list]; got {text!r}.") from None
    return values


def listing() -> str:
    """Return the table of experiments: profile, number of runs and steps, time, and whether the result is there."""
    import pandas as pd

    rows = []
    for name, entry in experiments.declared().items():
        for profile in entry["profiles"]:
            todo = experiments.plan(name, profile)
            state, seconds = experiments.state(todo)
            time = f"{seconds:.0f} s (measured here)" if seconds else f"{60 * (todo.minutes or 0):.0f} s (estimated)"
            rows.append((name, profile, len(todo.runs), todo.setup.steps, time, state))
    columns = ["experiment", "profile", "runs", "steps", "time", "result"]
    return pd.DataFrame(rows, columns=columns).to_string(index=False)


def summary(dataset):
    """Return one row per run: its parameters, regime, destabilizations, median period, final losses and error."""
    from periodic_lib import periods, results

    table = dataset.drop_dims([name for name in dataset.dims if name != "run"])
    table = table.drop_vars("run").to_dataframe()
    table = table[[n for n in Run.names() if n in ("lr", "weight_decay") or table[n].nunique(dropna=False) > 1]]
    setup = results.setup_of(dataset)
    plain = not dataset.momentum.any() and setup.optimizer == "sgd"  # the balance that a regime is defined by
    table["regime"] = periods.classify_regime(dataset).values if plain else "-"
    kicks, complete = periods.find_destabilizations(dataset), periods.find_periods(dataset)
    runs = dataset.run.values
    table["destabilizations"] = kicks.groupby("run").size().reindex(runs, fill_value=0).values
    table["median_period"] = complete.groupby("run")["length"].median().reindex(runs).values
    if "eval_step" in dataset.dims:
        for name in ("train_loss_full", "test_error"):
            table[name] = dataset[name].isel(eval_step=-1).values.round(5)
    return table


# ---------------------------------------------------------------- book, claims, bench


def _book(options: argparse.Namespace) -> int:
    from periodic_lib import notebooks

    try:
        if options.chapters or options.no_render:
            notebooks.execute(options.chapters or None, options.profile, options.force)
            return 0
        if options.force:
            notebooks.execute(None, options.profile, force=True)
        page = notebooks.build_book(options.profile)
    except notebooks.ChapterError as error:
        experiments.print_message(f"error: {error}")
        return 1
    print(f"The book is ready. Open {page}")
    return 0


def _claims(options: argparse.Namespace) -> int:
    import pandas as pd

    from periodic_lib import claims, notebooks

    known_names("profile", [options.profile], experiments.PROFILES)
    folder = notebooks.build_folder(options.profile) / "records"
    records = claims.read_records(folder)
    if not records:
        raise ConfigError(f"no chapter has been executed at profile {options.profile!r}: `make book` first.")
    print(pd.DataFrame(claims.table(records)).to_string(index=False, max_colwidth=60))
    return 0


def _bench(options: argparse.Namespace) -> int:
    from periodic_lib import benchmarks

    print(benchmarks.run())
    return 0
