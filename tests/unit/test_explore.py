"""What a page lets a reader explore: the numbers are the library's, and those of the page's script, too."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_simulator import in_javascript

from periodic_lib import find_destabilizations
from periodic_lib.analysis import forecasts
from periodic_lib.project import ConfigError
from periodic_lib.publishing import claims, explore
from periodic_lib.publishing.chapters import Chapter
from periodic_lib.theory.toys import SphereToy

SCRIPT = Path(__file__).parents[2] / "book" / "_ext" / "explore.js"


@pytest.fixture(scope="module")
def orbit():
    return SphereToy(lr_wd=10**-2.5, seed=0).run(12_000)


@pytest.fixture(scope="module")
def asked(orbit):
    return explore.next_breaks(orbit, rounds=5)


def test_steps_are_those_of_the_run(orbit):
    start = int(find_destabilizations(orbit).start[1])
    found = explore.step_by_step(orbit, start - 100, start + 50)
    assert found["first"] == start - 100
    assert found["phases"][101] == "C"
    assert set(found["phases"]) == {"A", "B", "C"}
    for one, name in zip(found["series"], explore.SERIES, strict=True):
        np.testing.assert_allclose(one["values"], orbit[name][0, start - 100 : start + 51], rtol=5e-4)


def test_forecasts_are_the_librarys(orbit, asked):
    made = forecasts.back_test_runs(orbit)
    made = made[made.fraction == 0].head(5)
    assert len(made) == 5
    for name in ("length", "clock", "level", "not_before"):
        assert [one[name] for one in asked["rounds"]] == pytest.approx(made[name].tolist(), abs=0.051)
    breaks = find_destabilizations(orbit)
    for one in asked["rounds"]:
        assert one["begin"] in breaks.end.values
        assert one["begin"] + one["length"] in breaks.start.values


def test_the_norm_shown_has_every_break(orbit, asked):
    shown = dict(zip(asked["step"], asked["norm"], strict=True))
    for one in asked["rounds"]:
        for at in (one["begin"], one["begin"] + int(one["length"])):
            assert shown[at] == pytest.approx(float(orbit.weight_norm[0, at]), rel=5e-4)
    assert asked["step"] == sorted(set(asked["step"]))
    assert len(asked["step"]) < 700


def test_the_page_scores_as_the_library(orbit, asked, tmp_path):
    said = [1, 400, 900, 2000, 3]
    body = "return simulator.scores(data.rounds, data.said);"
    found = in_javascript(body, {"rounds": asked["rounds"], "said": said}, tmp_path, SCRIPT)
    made = forecasts.back_test_runs(orbit)
    wrong = forecasts.errors(made[made.fraction == 0].head(5), ["fraction"]).iloc[0]
    lengths = np.array([one["length"] for one in asked["rounds"]])
    assert found["you"] == pytest.approx(np.median(np.abs(np.array(said) - lengths) / lengths))
    assert (found["clock"], found["level"]) == pytest.approx((wrong.clock, wrong.level), abs=2e-3)
    assert found["kept"] == wrong.not_before * wrong.passages
    assert found["tooEarly"] == sum(s < one["not_before"] for s, one in zip(said, asked["rounds"], strict=True))


def test_a_run_with_too_few_breaks_asks_nothing(orbit):
    assert explore.next_breaks(orbit.isel(step=slice(1500))) == {"step": [], "norm": [], "rounds": []}


def test_what_cannot_be_shown_is_refused(orbit):
    two = SphereToy(lr_wd=np.array([0.01, 0.02])).run(50)
    with pytest.raises(ConfigError, match="`results` must have exactly one run; got 2"):
        explore.next_breaks(two)
    with pytest.raises(ConfigError, match="`first` and `last` must lie within the steps recorded, 0 to 11999; got 5"):
        explore.step_by_step(orbit, 5, 12_000)
    with pytest.raises(ConfigError, match="`rounds` must be a whole number from 1 on; got 0"):
        explore.next_breaks(orbit, rounds=0)
    with pytest.raises(ConfigError, match="`data` must have finite numbers only"):
        explore.as_text({"norm": [float("nan")]})
    with pytest.raises(ConfigError, match="`data` must have at most 30000 characters, for a page; got 30012"):
        explore.as_text({"text": "x" * 30_001})


def test_a_chapter_keeps_it_in_its_record(tmp_path, monkeypatch):
    monkeypatch.setenv("PERIODIC_RECORDS", str(tmp_path))
    chapter = Chapter("04_one_period", "smoke")
    chapter.embed("break", {"first": 3})
    assert json.loads(claims.read_records(tmp_path)["04_one_period"]["embedded"]["break"]) == {"first": 3}


def test_the_script_loads_nothing():
    code = SCRIPT.read_text(encoding="utf-8")
    for word in ("http", "</script", "fetch(", "import(", "XMLHttpRequest"):
        assert word not in code
