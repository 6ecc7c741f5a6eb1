"""The live simulator's model is the library's: the same file that a page shows, run beside `SphereToy`."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup

from periodic_lib import classify_regime, find_destabilizations
from periodic_lib.theory.toys import BATCH_STREAM, POINT_STREAM, START_STREAM, SphereToy, random_numbers

SCRIPT = Path(__file__).parents[2] / "book" / "_ext" / "simulator.js"
REGIMES = {"converges": "convergence", "periodic": "periodic", "equilibrium": "equilibrium"}
OTHERS = {
    "soft_and_noisy": {"lrWd": 1e-2, "gain": 12, "margin": 0.2, "flipped": 0.125, "batch": 7, "eps": 1e-3, "seed": 5},
    # small decay: it is rounding that starts a destabilization of full-batch descent, and languages round differently
    "full_batch": {"lrWd": 1e-3, "batch": 16, "eps": 1e-2, "seed": 3},
}
NAMES = ["lrWd", "gain", "margin", "flipped", "batch", "eps", "seed"]
COMPARED = 1000  # steps; beyond, destabilizations amplify the last bit of exp without bound
JUDGED = 20_000  # steps, after which the simulator calls what did not destabilize convergence
PRECISION = 1e-9


def in_javascript(body, data, folder, script=SCRIPT):
    """Return what `(simulator, data) => { body }` returns, from Node or else from headless Chromium.

    `simulator` is what `script` exports.
    """
    call = f"JSON.stringify(((simulator, data) => {{ {body} }})(SIMULATOR, {json.dumps(data)}))"
    node, chromium = shutil.which("node"), shutil.which("chromium")
    if node:
        program = f"console.log({call.replace('SIMULATOR', f'require({json.dumps(str(script))})')})"
        return json.loads(answer([node, "-"], program))
    if chromium:
        page = folder / "page.html"
        call = call.replace("SIMULATOR", "module.exports")
        scripts = ["var module = {};", script.read_text(encoding="utf-8"), f"document.body.textContent = {call};"]
        page.write_text("<body>" + "".join(f"<script>{script}</script>" for script in scripts), encoding="utf-8")
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder / 'profile'}",
            "--dump-dom",
        ]
        return json.loads(BeautifulSoup(answer([chromium, *options, page.as_uri()]), "html.parser").body.get_text())
    pytest.skip("needs Node or Chromium to run JavaScript")


def answer(command, program=None):
    return subprocess.run(command, input=program, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("simulator")


@pytest.fixture(scope="module")
def cases(folder):
    """The presets and other parameter sets, complete."""
    defaults, presets = in_javascript("return [simulator.DEFAULTS, simulator.PRESETS];", None, folder)
    chosen = {**presets, **OTHERS}
    return {case: {name: {**defaults, **values}[name] for name in NAMES} for case, values in chosen.items()}


@pytest.fixture(scope="module")
def library(cases):
    names = {"lrWd": "lr_wd"}  # the library's, where it writes another
    columns = {names.get(name, name): [case[name] for case in cases.values()] for name in NAMES}
    return SphereToy(**columns).run(JUDGED)


@pytest.fixture(scope="module")
def simulated(cases, folder):
    """Every number of the first steps, and the regime at the end, as the page computes them."""
    body = f"""
        return data.map((parameters) => {{
          const toy = new simulator.Toy(parameters), judge = new simulator.Judge(toy.lrWd);
          const names = ["train_loss", "weight_norm", "elr", "eff_grad_norm", "angular_update", "direction"];
          const kept = Object.fromEntries(names.map((name) => [name, []]));
          for (let step = 0; step < {JUDGED}; step++) {{
            toy.step();
            judge.observe(toy);
            if (step >= {COMPARED}) continue;
            const values = [toy.loss, toy.norm, toy.elr, toy.gradient, toy.angle, Array.from(toy.direction)];
            Object.values(kept).forEach((series, place) => series.push(values[place]));
          }}
          return {{ ...kept, regime: judge.regime }};
        }});"""
    return dict(zip(cases, in_javascript(body, list(cases.values()), folder), strict=True))


def test_random_numbers_are_the_librarys(folder):
    seeds, counters = [0, 1, 12345, 2**32 - 1], [0, 1, 2, 999, 2**31, 2**32 - 1]
    asked = [[s, stream, c] for s in seeds for stream in (POINT_STREAM, BATCH_STREAM, START_STREAM) for c in counters]
    got = in_javascript("return data.map((numbers) => simulator.randomNumber(...numbers));", asked, folder)
    assert got == [float(random_numbers(*numbers)) for numbers in asked]


@pytest.mark.parametrize("case", [*REGIMES, *OTHERS])
def test_every_number_of_a_thousand_steps_is_the_librarys(case, cases, library, simulated):
    run = library.isel(run=list(cases).index(case), step=slice(COMPARED))
    for name in ("train_loss", "weight_norm", "elr", "eff_grad_norm"):
        np.testing.assert_allclose(simulated[case][name], run[name], rtol=PRECISION, err_msg=name)
    for name in ("angular_update", "direction"):  # absolute: angles of quiet steps are smaller than rounding
        np.testing.assert_allclose(simulated[case][name], run[name], rtol=0, atol=PRECISION, err_msg=name)


def test_the_periodic_preset_destabilizes_within_the_compared_steps(cases, library):
    run = list(cases).index("periodic")
    breaks = find_destabilizations(library.isel(run=[run], step=slice(COMPARED)))
    assert len(breaks) >= 1


@pytest.mark.parametrize(("preset", "regime"), REGIMES.items())
def test_a_preset_shows_its_regime(preset, regime, cases, library, simulated):
    run = library.isel(run=[list(cases).index(preset)])
    assert simulated[preset]["regime"] == regime
    assert classify_regime(run).item() == regime


def test_the_judge_finds_what_the_period_finder_finds(cases, library, folder):
    body = """
        return data.map(({ lrWd, loss, norm, angle }) => {
          const judge = new simulator.Judge(lrWd);
          loss.forEach((value, step) => judge.observe({ loss: value, norm: norm[step], angle: angle[step] }));
          return { starts: judge.starts, regime: judge.regime, period: judge.meanPeriod };
        });"""
    names = {"loss": "train_loss", "norm": "weight_norm", "angle": "angular_update"}
    data = [
        {"lrWd": case["lrWd"], **{name: library[long].values[run].tolist() for name, long in names.items()}}
        for run, case in enumerate(cases.values())
    ]
    judged = in_javascript(body, data, folder)
    breaks = find_destabilizations(library)
    starts = [breaks[breaks.run == run].start.tolist() for run in library.run.values]
    assert [one["starts"] for one in judged] == starts
    assert [one["regime"] for one in judged] == classify_regime(library).values.tolist()
    assert judged[list(cases).index("periodic")]["period"] == pytest.approx(
        np.diff(breaks[breaks.run == list(cases).index("periodic")].start).mean()
    )


def test_the_judge_waits_before_it_speaks(folder):
    body = """
        const toy = new simulator.Toy(simulator.PRESETS.converges), judge = new simulator.Judge(toy.lrWd);
        for (let step = 0; step < 5000; step++) { toy.step(); judge.observe(toy); }
        return judge.regime;"""
    assert in_javascript(body, None, folder) == "too early to say"


def test_a_change_goes_on_from_the_present_weights(folder):
    body = """
        const toy = new simulator.Toy(simulator.PRESETS.periodic);
        for (let step = 0; step < 300; step++) toy.step();
        const before = [...toy.weights, toy.rate];
        toy.change({ lrWd: 0.1, margin: 0.3 });
        return [before, [...toy.weights, toy.rate], toy.rate * toy.weightDecay, toy.steps];"""
    before, after, lr_wd, steps = in_javascript(body, None, folder)
    assert before == after
    assert (lr_wd, steps) == (pytest.approx(0.1), 300)


def test_the_script_can_be_written_into_a_page_and_loads_nothing():
    code = SCRIPT.read_text(encoding="utf-8")
    for word in ("http", "</script", "fetch(", "import(", "XMLHttpRequest", "WebSocket"):
        assert word not in code


# ---------------------------------------------------------------- on the sphere

CALM = 200  # steps: where a run wanders rounding grows e-fold in some ten steps
STATES = {"settles": "settled", "wanders": "wandering"}


@pytest.fixture(scope="module")
def on_sphere(folder):
    body = f"""
        const found = {{}};
        for (const [name, preset] of Object.entries(simulator.SPHERE_PRESETS)) {{
          const toy = new simulator.Toy(preset), judge = new simulator.SphereJudge();
          const kept = {{ elr: preset.heldElr, seed: preset.seed, loss: [], norm: [], angle: [] }};
          for (let step = 0; step < {JUDGED}; step++) {{
            toy.step();
            judge.observe(toy);
            if (step < {CALM}) for (const one of ["loss", "norm", "angle"]) kept[one].push(toy[one]);
          }}
          found[name] = {{ ...kept, regime: judge.regime, freezings: judge.freezings, meltings: judge.meltings }};
        }}
        return found;"""
    return in_javascript(body, None, folder)


def test_numbers_on_the_sphere_are_the_librarys(on_sphere):
    for case in on_sphere.values():
        toy = SphereToy(elr=case["elr"], seed=case["seed"]).run(CALM)
        np.testing.assert_allclose(case["loss"], toy.train_loss[0], rtol=PRECISION)
        np.testing.assert_allclose(case["norm"], toy.weight_norm[0], rtol=PRECISION)
        np.testing.assert_allclose(case["angle"], toy.angular_update[0], rtol=0, atol=PRECISION)


def test_the_presets_on_the_sphere_show_their_states(on_sphere):
    for name, state in STATES.items():
        assert on_sphere[name]["regime"] == state
    assert on_sphere["settles"]["meltings"] == 0
    assert on_sphere["wanders"]["freezings"] == 0
    assert on_sphere["to and fro"]["freezings"] >= 3
    assert on_sphere["to and fro"]["meltings"] >= 3


def test_a_run_on_the_sphere_is_held_where_the_slider_says(folder):
    body = """
        const toy = new simulator.Toy({ ...simulator.SPHERE_PRESETS.settles });
        for (let step = 0; step < 300; step++) toy.step();
        const before = [...toy.weights].map((w) => w / Math.hypot(...toy.weights));
        toy.change({ heldElr: 0.4 });
        const after = [...toy.weights].map((w) => w / Math.hypot(...toy.weights));
        toy.step();
        return { before, after, elr: toy.elr };"""
    found = in_javascript(body, None, folder)
    assert found["before"] == pytest.approx(found["after"], rel=1e-12)
    assert found["elr"] == pytest.approx(0.4, rel=1e-12)


# ---------------------------------------------------------------- the tasks of chapter 02

PERIODIC = {"lr_wd": 10**-2.5, "batch": 4, "flipped": 0.0, "eps": 0.0}
TASKS = {  # one slider moved: the regime
    "ten times as fast": ({"lr_wd": 10**-1.5}, "periodic"),
    "one wrong label": ({"flipped": 1 / 16}, "equilibrium"),
    "all points": ({"batch": 16}, "periodic"),
    "epsilon": ({"eps": 1.0}, "equilibrium"),
}


def test_the_tasks_come_out_as_the_chapter_says():
    chosen = [PERIODIC, *({**PERIODIC, **moved} for moved, _ in TASKS.values())]
    toy = SphereToy(**{name: np.array([one[name] for one in chosen]) for name in PERIODIC}, seed=np.zeros(5, int))
    orbit = toy.run(15_000)
    assert classify_regime(orbit).values.tolist() == ["periodic", *(regime for _, regime in TASKS.values())]
    breaks = find_destabilizations(orbit)
    waits = [np.diff(breaks.start[breaks.run == run]).mean() for run in orbit.run.values]
    assert 8 <= waits[0] / waits[1] <= 10
    assert waits[3] > waits[0]  # without noise, longer
