import json

import numpy as np
import pytest

from periodic_lib import claims
from periodic_lib.claims import Chapter, verdict
from periodic_lib.config import ConfigError

FILE = """
works:
  chapter: 01_one
  statement: It works.
  source: someone
  paper_value: 42
  rule: always
  topic: mechanism
  setting: anywhere
  verdict: holds
fails:
  chapter: 02_two
  statement: It fails.
  source: someone
  paper_value: never
  rule: never
  topic: mechanism
  setting: anywhere
  verdict: holds
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "book").mkdir()
    (tmp_path / "data" / "claims").mkdir(parents=True)
    (tmp_path / "data" / "claims" / "claims.yml").write_text(FILE)
    monkeypatch.setenv("PERIODIC_ROOT", str(tmp_path))
    return tmp_path


def record(chapter):
    return claims.read_records(claims.records_folder())[chapter]


def test_a_verdict_follows_from_its_outcomes():
    assert verdict({"a": True, "b": True}) == "holds"
    assert verdict({"a": True, "b": False}) == "partly"
    assert verdict({"a": False, "b": False}) == "does not hold"
    with pytest.raises(ConfigError, match="at least one"):
        verdict({})


def test_a_checked_claim_is_recorded_and_shown(project):
    shown = Chapter("01_one", "classroom").check("works", {"seed 0": True, "seed 1": False}, "41 and 42")
    assert repr(shown) == "works: partly (1 of 2). 41 and 42"
    assert "**partly**" in shown._repr_markdown_()
    entry = record("01_one")["claims"]["works"]
    assert entry == {
        "verdict": "partly",
        "outcomes": {"seed 0": True, "seed 1": False},
        "measured": "41 and 42",
        "paper_scale": "not run",
    }


def test_seconds_of_training_decide_nothing(project):
    assert Chapter("01_one", "smoke").check("works", {"seed 0": True}, "42").verdict == "not tested"


@pytest.mark.parametrize(
    ("claim", "word"), [("work", "Did you mean 'works'"), ("fails", "belongs to chapter '02_two'")]
)
def test_only_declared_claims_of_this_chapter_can_be_checked(project, claim, word):
    with pytest.raises(ConfigError, match=word):
        Chapter("01_one", "classroom").check(claim, {"seed 0": True}, "42")


def test_a_claim_without_a_rule_is_refused(project):
    (project / "data" / "claims" / "claims.yml").write_text("works: {chapter: 01_one, statement: It works.}")
    with pytest.raises(ConfigError, match=r"'works' must have .*'rule'"):
        claims.declared()


def test_numbers_are_published_as_plain_values(project):
    import numpy as np

    chapter = Chapter("01_one", "classroom")
    chapter.publish(period=np.float64(2.5), count=np.int64(3), word="four")
    assert record("01_one")["numbers"] == {"period": 2.5, "count": 3, "word": "four"}
    with pytest.raises(ConfigError, match="`many` must be one number"):
        chapter.publish(many=[1, 2])


def test_executing_again_forgets_what_was_said_before(project):
    Chapter("01_one", "classroom").publish(old=1)
    Chapter("01_one", "classroom").publish(new=2)
    assert record("01_one")["numbers"] == {"new": 2}


def test_a_figure_needs_a_description(project, capsys):
    import matplotlib.pyplot as plt

    chapter, alt = Chapter("01_one", "classroom"), "A straight line from zero to one over two steps of one."
    with pytest.raises(ConfigError, match="at least 40 characters"):
        chapter.show(plt.figure(), "line", alt="a line")
    plt.close("all")
    figure, ax = plt.subplots()
    ax.plot([0, 1])
    chapter.show(figure, "line", alt=alt)
    entry = record("01_one")["figures"]["line"]
    assert entry["alt"] == alt
    assert (claims.records_folder() / "figures" / entry["file"]).read_bytes().startswith(b"\x89PNG")
    assert alt in capsys.readouterr().out
    assert not plt.get_fignums()


def test_tables_are_shown_without_their_index(project, capsys):
    import pandas as pd

    Chapter("01_one", "classroom").tabulate(pd.DataFrame({"a": [1]}))
    assert "a" in capsys.readouterr().out


def test_the_scorecard_has_a_row_for_every_claim(project):
    Chapter("01_one", "classroom").check("works", {"seed 0": True}, "41.9")
    page = claims.scorecard(claims.read_records(claims.records_folder()))
    assert "holds: 1, not tested: 1" in page
    assert "[works](01_one.ipynb): It works. *Setting: anywhere. Rule: always.*" in page
    assert "41.9" in page
    assert "It fails." in page


def test_the_scorecard_is_sorted_by_topic_and_says_what_the_paper_scale_gave(project):
    file = project / "data" / "claims" / "claims.yml"
    file.write_text(FILE.replace("topic: mechanism", "topic: practice", 1))
    Chapter("01_one", "classroom").check("works", {"seed 0": True}, "41.9", paper_scale="42.0")
    page = claims.scorecard(claims.read_records(claims.records_folder()))
    assert page.index("## Mechanism") < page.index("It fails.") < page.index("## Practice") < page.index("It works.")
    assert "41.9 At the paper's scale: 42.0" in page


def test_only_a_measured_verdict_can_be_a_change(project):
    assert claims.changed({}) == []
    Chapter("01_one", "smoke").check("works", {"seed 0": False}, "41.9")
    assert claims.changed(claims.read_records(claims.records_folder())) == []
    Chapter("01_one", "classroom").check("works", {"seed 0": False}, "41.9")
    (line,) = claims.changed(claims.read_records(claims.records_folder()))
    assert line.startswith("claim 'works': measured 'does not hold' (41.9), acknowledged 'holds'")
    assert [row["verdict"] for row in claims.table(claims.read_records(claims.records_folder()))] == [
        "does not hold (0 of 1)",
        "not tested (0 of 0)",
    ]


@pytest.mark.parametrize(("old", "word"), [("topic: mechanism", "topic"), ("verdict: holds", "verdict")])
def test_topics_and_verdicts_are_known_words(project, old, word):
    file = project / "data" / "claims" / "claims.yml"
    file.write_text(FILE.replace(old, f"{word}: perhaps", 1))
    with pytest.raises(ConfigError, match=f"`{word} of claim works` must be one of .*'perhaps'"):
        claims.declared()


def test_a_chapter_that_forgets_its_claim_stops_the_scorecard(project):
    Chapter("02_two", "classroom")
    with pytest.raises(ConfigError, match="did not check its claim 'fails'"):
        claims.scorecard(claims.read_records(claims.records_folder()))


def test_records_are_json(project):
    Chapter("01_one", "classroom").publish(x=1)
    assert json.loads((claims.records_folder() / "01_one.json").read_text())["chapter"] == "01_one"


# ---------------------------------------------------------------- intervals


def test_the_interval_of_a_mean_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [claims.interval(rng.normal(1, 2, 5), level=0.8) for _ in range(2000)]
    assert np.mean([low < 1 < high for _, low, high in intervals]) == pytest.approx(0.8, abs=0.03)


def test_the_interval_of_one_value_or_none_is_unknown():
    mean, low, high = claims.interval([3])
    assert mean == 3
    assert np.isnan([low, high, *claims.interval([])]).all()
