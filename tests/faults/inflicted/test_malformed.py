"""Malformed declarations, parameters and data, made up by hypothesis: one line says what is wrong, or they are legal.

The examples are tried in a child: what crashes or hangs names its example.
"""

import contextlib
import io
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from harness import EXPERIMENTS, Outcome, one_line
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

SECONDS = 10  # of an example: more is a hang
words = st.text(st.characters(codec="utf-8"), max_size=20)
numbers = st.one_of(st.integers(), st.integers(10**17, 10**60), st.floats(), st.sampled_from([0, -1, 1e-320, 10**400]))
plain = st.one_of(st.none(), st.booleans(), numbers, words, st.sampled_from(["../x", "a/b", "..", "\0", "~nobody/x"]))
keys = st.one_of(words, st.integers(), st.none(), st.booleans())
things = st.recursive(
    plain, lambda one: st.lists(one, max_size=3) | st.dictionaries(keys, one, max_size=3), max_leaves=6
)
NAMES = [
    "lr",
    "weight_decay",
    "steps",
    "width",
    "depth",
    "dataset",
    "network",
    "batch_size",
    "seed",
    "init_seed",
    "every",
]
NAMES += [
    "evaluate_every",
    "momentum",
    "schedule",
    "changes",
    "layers",
    "bn_eps",
    "dtype",
    "train_size",
    "unit",
    "vary",
    "",
]
HOSTILE = {
    "aliases that multiply": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{n}: &{n} [{','.join(9 * ['*' + chr(ord(n) - 1)])}]\n" for n in "bcdefghij"),
    "a thousand brackets": "a: " + 1000 * "[",
    "two hundred thousand brackets": "a: " + 200_000 * "[",
    "a tag that runs code": "a: !!python/object/apply:os.mkdir [harm]",
    "a key given twice": "a: 1\na: 2",
    "an anchor in itself": "a: &a [*a]",
}


# ---------------------------------------------------------------- in the child


def tried(count, number, strategy, attempt):
    """Let hypothesis make up `count` examples by a seed; print one line for each: what it was, and what went wrong."""
    from hypothesis import database

    done = []

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=database.InMemoryExampleDatabase(),
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(strategy)
    def each(example):
        done.append(example)
        if len(done) <= count:
            report(example, attempt)

    each()
    return 0


def report(example, attempt):
    """Try one example; print what it was, and what went wrong."""
    how = repr(example)[:300]
    print("trying", json.dumps(how), flush=True)
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError(f"more than {SECONDS} s")))
    signal.alarm(SECONDS)
    text, wrong = io.StringIO(), ""
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            status = attempt(example)
    except (Exception, SystemExit) as error:
        wrong = f"{type(error).__name__}: {error}"[:300]
    else:
        said = text.getvalue()
        if status not in (0, 2, 3) or (status == 2 and (said.count("\n") != 1 or len(said) > 2500)):
            wrong = f"status {status}, {said[:500]!r}"
    signal.alarm(0)
    print("tried", json.dumps([how, text.getvalue()[-300:], wrong]), flush=True)


def command_that_does_not_train(*arguments):
    """Run the command `periodic run` up to where training would begin."""
    from periodic_lib import cli, experiments
    from periodic_lib.engine import datasets
    from periodic_lib.project import Unfinished

    def checks(name, profile, overrides=None, **_):
        todo = experiments.plan(name, profile, overrides)
        datasets.load(todo.setup)
        raise Unfinished(0, todo.setup.steps)

    experiments.run_experiment = checks
    return cli.main(["run", *arguments])


def declarations(arguments):
    """Try experiments files with a value, or a stretch of text, that does not belong there."""
    path, good = Path("book/experiments.yml"), yaml.safe_load(EXPERIMENTS)

    def places(node, here=()):
        yield here
        for key, value in node.items() if isinstance(node, dict) else ():
            yield from places(value, (*here, key))

    def changed(drawn):
        where, thing, how = drawn
        new = yaml.safe_load(EXPERIMENTS)
        node = new
        for key in where[:-1]:
            node = node[key]
        if not where:
            new = thing
        elif how == "replace":
            node[where[-1]] = thing
        else:
            node[thing if isinstance(thing, str | int | bool | None) else "thing"] = node.pop(where[-1])
        return yaml.dump(new, allow_unicode=True)

    def cut(drawn):
        start, length, text = drawn
        return EXPERIMENTS[:start] + text + EXPERIMENTS[start + length :]

    somewhere = st.integers(0, len(EXPERIMENTS))
    structured = st.tuples(st.sampled_from(list(places(good))), things, st.sampled_from(["replace", "rename"]))
    texts = st.tuples(somewhere, st.integers(0, 30), st.text("[]{}:&*!|>-#'\"%@` \n\ta1.~", max_size=12))

    def attempt(text):
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        try:
            return max(
                command_that_does_not_train("--list"), command_that_does_not_train("tiny", "--profile", "smoke")
            )
        finally:
            path.write_text(EXPERIMENTS)

    def twice(text):  # the same complaint of both commands is one
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        status = command_that_does_not_train("--list")
        return status or command_that_does_not_train("tiny", "--profile", "smoke")

    for text in HOSTILE.values() if arguments[1] == 0 else ():
        report(text, twice)
    tried(arguments[0], arguments[1], structured.map(changed) | texts.map(cut), twice)
    path.write_text(EXPERIMENTS)
    return 0


def assignments(arguments):
    """Try values of `--set`."""
    yamls = things.map(lambda thing: yaml.dump(thing, default_flow_style=True).removesuffix("\n...\n"))
    texts = st.text("[]{}:&*!|>-#'\"%@`, \n\t0123456789abeinfxo._~", max_size=20)
    wanted = st.tuples(st.sampled_from(NAMES) | words, yamls | texts).map("=".join) | words
    legal = wanted.filter(lambda text: "\0" not in text and not text.startswith("-"))  # no shell passes these on

    def attempt(text):
        return command_that_does_not_train("tiny", "--profile", "smoke", "--set", text)

    return tried(arguments[0], arguments[1], legal, attempt)


def own_data(arguments):
    """Try files of data: arrays of any kind and shape, and good files with bytes that were changed."""
    path = Path("own.npz")
    good = path.read_bytes()
    kinds = arrays.scalar_dtypes() | arrays.unicode_string_dtypes(max_len=5)
    some = arrays.arrays(kinds, arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6))
    fields = st.sampled_from(["x_train", "x_test", "y_train", "y_test", "z", "key"])

    def file_with(changed):
        with np.load(io.BytesIO(good)) as stored:
            content = io.BytesIO()
            np.savez(content, **({name: stored[name] for name in stored.files} | changed))
        return content.getvalue()

    def damaged(drawn):
        start, length, new = drawn
        return good[:start] + new + good[start + length :]

    pieces = st.tuples(st.integers(0, len(good)), st.sampled_from([0, 1, 8, 5000]), st.binary(max_size=9))
    strategy = st.dictionaries(fields, some, min_size=1, max_size=2).map(file_with) | pieces.map(damaged)

    def attempt(content):
        path.write_bytes(content)
        return command_that_does_not_train("own", "--profile", "smoke")

    tried(arguments[0], arguments[1], strategy, attempt)
    path.write_bytes(good)
    return 0


# ---------------------------------------------------------------- in the test

ALL = {
    "malformed experiments file": (declarations, 60),
    "malformed parameter": (assignments, 60),
    "malformed data of one's own": (own_data, 60),
}


@pytest.mark.parametrize("kind", ALL)
def test_malformed(kind, place, request):
    work, count = ALL[kind]
    times, found = request.config.getoption("--faults"), []
    for number in range(times):
        ended = place.start(count, number, work=work).end()
        tries = [
            json.loads(line.removeprefix("tried ")) for line in ended.text.splitlines() if line.startswith("tried ")
        ]
        for how, said, wrong in tries:
            found.append(Outcome(kind, len(found), how, one_line(said), unclear=[f"{how}: {wrong}"] if wrong else []))
        if ended.status:
            last = [line for line in ended.text.splitlines() if line.startswith("trying ")][-1:]
            found.append(Outcome(kind, len(found), unclear=[f"status {ended.status} at {last}: {ended.text[-1500:]}"]))
    place.survives(found[-1])
    if (place.folder / "harm").exists():
        found[-1].wrong.append("a stranger's code ran")
    request.config.outcomes += found
    problems = [problem for one in found for problem in one.problems]
    if problems:
        pytest.fail(f"{len(problems)} of {len(found)}:\n" + "\n".join(problems), pytrace=False)
    assert len(found) >= count
