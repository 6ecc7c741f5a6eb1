import json

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from periodic_lib import experiments
from periodic_lib.project import ConfigError
from periodic_lib.publishing import claims, scorecard
from periodic_lib.publishing.chapters import Chapter, formatted
from periodic_lib.publishing.claims import verdict

FILE = """
works:
  chapter: 01_one
  statement: It works.
  source: someone
  paper_value: 42
  rule: always
  topic: mechanism
  kind: measured
  fixed: before
  setting: anywhere
  verdict: holds
fails:
  chapter: 02_two
  statement: It fails.
  source: someone
  paper_value: never
  rule: never
  topic: mechanism
  kind: measured
  fixed: before
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
    assert verdict({"a": True, "b": False}) == "mixed"
    assert verdict({"a": False, "b": False}) == "fails"
    words = {k: verdict({str(i): i < k for i in range(10)}) for k in (1, 2, 7, 8, 9)}
    assert words == {1: "mostly fails", 2: "mixed", 7: "mixed", 8: "mostly holds", 9: "mostly holds"}
    with pytest.raises(ConfigError, match="at least one"):
        verdict({})


def test_a_checked_claim_is_recorded_and_shown(project, capsys):
    Chapter("01_one", "classroom").check("works", {"seed 0": True, "seed 1": False}, "41 and 42")
    assert capsys.readouterr().out == "works: mixed (1 of 2). 41 and 42\n"
    card = claims.Checked("works", "mixed", 1, 2, "41 and 42")._repr_html_()
    assert "<strong>mixed</strong> (few: 1 of 2, 9% to 91%). 41 and 42." in card
    assert 'Claim <a href="scorecard.html#claim-works">works</a>: It works.' in card
    entry = record("01_one")["claims"]["works"]
    assert entry == {
        "verdict": "mixed",
        "outcomes": {"seed 0": True, "seed 1": False},
        "measured": "41 and 42",
        "paper_scale": "not run",
    }


def test_seconds_of_training_decide_nothing(project):
    Chapter("01_one", "smoke").check("works", {"seed 0": True}, "42")
    assert record("01_one")["claims"]["works"]["verdict"] == "not tested"


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
    Chapter("01_one", "classroom").tabulate(pd.DataFrame({"a": [1]}))
    assert "a" in capsys.readouterr().out


def test_a_table_is_shown_as_html_and_as_text(project, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    Chapter.tabulate(pd.DataFrame({"lr": [0.1, None]}, index=["x", "y"]), names={"lr": "a < b"})
    (data,) = shown
    assert data["text/plain"].split("\n") == ["a < b", "  0.1", "    –"]
    html = BeautifulSoup(data["text/html"], "html.parser")
    assert [cell.get_text() for cell in html.find_all(["th", "td"])] == ["a < b", "0.1", "–"]


# ---------------------------------------------------------------- tables as text


def test_values_are_written_as_their_forms_say_and_what_is_missing_is_a_dash():
    table = pd.DataFrame(
        {
            "train_loss": [0.123456789, np.nan, 2.0],
            "count": [1, 2, 3],
            "share": [0.25, None, 1.0],
            "word": ["x", None, "z"],
        }
    )
    text = formatted(table, forms={"share": ".0%", "count": "{:d} times".format})
    assert text.iloc[:, 0].tolist() == ["0.123457", "–", "2"]
    assert text["count"].tolist() == ["1 times", "2 times", "3 times"]
    assert text["share"].tolist() == ["25%", "–", "100%"]
    assert text["word"].tolist() == ["x", "–", "z"]
    assert table["count"].tolist() == [1, 2, 3]  # the table itself is as it was


def test_headers_are_labels_of_the_glossary_unless_named():
    table = pd.DataFrame({"train_loss": [1.0], "angular_update": [1.0], "mine": [1.0], 7: [1.0]})
    text = formatted(table, names={"mine": "my own"})
    assert list(text.columns) == ["training loss [nats]", "angular update [radians]", "my own", "7"]


def test_two_columns_of_one_name_and_an_empty_table_are_tables_too():
    twice = pd.DataFrame([[1.0, None]], columns=["a", "a"])
    assert formatted(twice, forms={"a": ".1f"}).to_numpy().tolist() == [["1.0", "–"]]
    assert formatted(pd.DataFrame({"a": []})).shape == (0, 1)


@pytest.mark.parametrize("kind", ["forms", "names"])
def test_forms_and_names_are_of_columns_that_are_there(kind):
    with pytest.raises(ConfigError, match=f"unknown column in `{kind}` 'los'.*Did you mean 'loss'"):
        formatted(pd.DataFrame({"loss": [1]}), **{kind: {"los": ".2g"}})


# ---------------------------------------------------------------- the numbers of a rule


def with_limits(project, limits, rule):
    text = FILE.replace("rule: always", f"limits: {limits}\n  rule: '{rule}'")
    (project / "data" / "claims" / "claims.yml").write_text(text)


def test_the_numbers_of_a_rule_are_typed_once(project):
    with_limits(project, "{within: 1e-1, seeds: 5}", "within {within:.0%} of 1, {seeds} seeds")
    limits = Chapter("01_one", "classroom").limits("works")
    assert (limits.within, limits.seeds) == (0.1, 5)
    assert isinstance(limits.seeds, int)
    assert claims.declared()["works"]["rule"] == "within 10% of 1, 5 seeds"
    Chapter("01_one", "classroom").check("works", {"seed 0": True}, "1.02")
    page = scorecard.page(claims.read_records(claims.records_folder()))
    assert "- *Rule*: within 10% of 1, 5 seeds\n" in page


@pytest.mark.parametrize(
    ("limits", "rule", "message"),
    [
        ("{within: some}", "always", "`limit within of claim works` must be a number; got 'some'"),
        ("{within: .inf}", "always", "`limit within of claim works` must be a number; got inf"),
        ("{within: true}", "always", "`limit within of claim works` must be a number; got True"),
        ("[0.1]", "always", r"`limits` of claim 'works' must be a mapping .* got \[0.1\]"),
        ("{a b: 1}", "always", "`limits` of claim 'works' must be a mapping of names, as in Python"),
        ("{within: 1}", "{without}", r"must quote its limits .*known: within; got KeyError: 'without'"),
        ("{within: 1}", "{}", "must quote its limits"),
        ("{within: 1}", "{within", "must quote its limits"),
        ("{within: 1}", "{within:.0q}", "must quote its limits"),
    ],
)
def test_limits_are_named_numbers_and_rules_quote_them(project, limits, rule, message):
    with_limits(project, limits, rule)
    with pytest.raises(ConfigError, match=message):
        claims.declared()


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ("wroks", "Did you mean 'works'"),
        ("fails", "belongs to chapter '02_two'"),
        ("works", "claim 'works' has no `limits`"),
    ],
)
def test_limits_are_those_of_a_claim_of_this_chapter(project, claim, message):
    with pytest.raises(ConfigError, match=message):
        Chapter("01_one", "classroom").limits(claim)


# ---------------------------------------------------------------- the scorecard


def test_the_scorecard_has_a_row_for_every_claim(project):
    Chapter("01_one", "classroom").check("works", {"seed 0": True}, "41.9")
    page = scorecard.page(claims.read_records(claims.records_folder()))
    assert "* - Kind\n  - Holds\n  - Not tested\n* - Measured\n  - 1\n  - 1\n" in page
    row = """
::::{dropdown} **holds** It works.
:class-container: claim kind-measured verdict-holds
:name: claim-works
Measured in [works](01_one.ipynb): **holds** (few: 1 of 1, 21% to 100%)

- *Measured here*: 41.9
"""
    assert row in page
    for line, times in {"- *Setting*: anywhere": 2, "- *Rule*: always": 1, "- *Fixed*: before": 2}.items():
        assert page.count(f"\n{line}\n") == times
    assert "\n::::{dropdown} **not tested** It fails.\n" in page


def test_a_row_has_a_text_to_disagree_with(project):
    Chapter("01_one", "classroom").check("works", {"seed 0": True, "seed 1": False}, "1 and 2")
    found = claims.checked(claims.read_records(claims.records_folder()))
    text = scorecard.objection("works", claims.declared()["works"], found["works"])
    assert text in scorecard.page(claims.read_records(claims.records_folder()))
    for part in ("Claim: works: It works.", "1 of 2", "1 and 2", "Rule: ", "torch ", "Why I disagree:"):
        assert part in text
    assert "\nRepeat: periodic book 01 --profile classroom --force\n" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_the_scorecard_is_sorted_by_topic_and_says_what_the_paper_scale_gave(project):
    file = project / "data" / "claims" / "claims.yml"
    file.write_text(FILE.replace("topic: mechanism", "topic: practice", 1))
    Chapter("01_one", "classroom").check("works", {"seed 0": True}, "41.9", paper_scale="42.0")
    page = scorecard.page(claims.read_records(claims.records_folder()))
    assert page.index("## Mechanism") < page.index("It fails.") < page.index("## Practice") < page.index("It works.")
    assert "- *Measured here*: 41.9\n- *At the paper's scale*: 42.0\n" in page


def test_the_scorecard_marks_a_verdict_that_is_not_the_acknowledged_one(project):
    Chapter("01_one", "classroom").check("works", {"seed 0": False}, "0")
    Chapter("02_two", "classroom").check("fails", {"seed 0": True}, "1")
    page = scorecard.page(claims.read_records(claims.records_folder()))
    assert "**fails** (few: 0 of 1, 0% to 79%) ⚠ acknowledged: holds" in page
    assert "**holds** (few: 1 of 1, 21% to 100%)\n" in page


def test_a_verdict_of_another_processor_is_acknowledged_and_shown(project):
    file = project / "data" / "claims" / "claims.yml"
    file.write_text(FILE.replace("  verdict: holds\n", "  verdict: holds\n  elsewhere: {fails: AVX-512}\n", 1))
    for outcome, other in ((False, "holds (acknowledged)"), (True, "fails (AVX-512)")):
        Chapter("01_one", "classroom").check("works", {"seed 0": outcome}, "0")
        records = claims.read_records(claims.records_folder())
        assert claims.changed(records) == []
        assert scorecard.page(records).count(f"- *On another processor*: {other}\n") == 1
    file.write_text(FILE.replace("  verdict: holds\n", "  verdict: holds\n  elsewhere: {perhaps: AVX-512}\n", 1))
    with pytest.raises(ConfigError, match=r"`verdict elsewhere of claim works` must be one of .*'perhaps'"):
        claims.declared()


def test_only_a_measured_verdict_can_be_a_change(project):
    assert claims.changed({}) == []
    Chapter("01_one", "smoke").check("works", {"seed 0": False}, "41.9")
    assert claims.changed(claims.read_records(claims.records_folder())) == []
    Chapter("01_one", "classroom").check("works", {"seed 0": False}, "41.9")
    (line,) = claims.changed(claims.read_records(claims.records_folder()))
    assert line.startswith("claim 'works': measured 'fails' (41.9), acknowledged 'holds'")
    assert [row["verdict"] for row in claims.table(claims.read_records(claims.records_folder()))] == [
        "fails (few: 0 of 1, 0% to 79%)",
        "not tested (none)",
    ]


@pytest.mark.parametrize(
    ("old", "word"), [("topic: mechanism", "topic"), ("kind: measured", "kind"), ("verdict: holds", "verdict")]
)
def test_topics_and_verdicts_are_known_words(project, old, word):
    file = project / "data" / "claims" / "claims.yml"
    file.write_text(FILE.replace(old, f"{word}: perhaps", 1))
    with pytest.raises(ConfigError, match=f"`{word} of claim works` must be one of .*'perhaps'"):
        claims.declared()


def test_kinds_are_counted_apart_and_a_note_stands_beside_its_claim(project):
    file = project / "data" / "claims" / "claims.yml"
    file.write_text(FILE.replace("kind: measured", "kind: identity\n  note: Only a bug can break it.", 1))
    page = scorecard.page(measured(2, 2))
    assert "* - Measured\n  - 1\n* - Identity\n  - 1\n" in page
    assert "- *Fixed*: before\n- *Note*: Only a bug can break it.\n" in page


def test_the_interval_of_a_share_is_wilsons():
    assert claims.wilson(5, 5) == pytest.approx((5 / (5 + 1.959964**2), 1))  # in closed form where all are true
    low, high = claims.wilson(3, 30)
    assert claims.wilson(27, 30) == pytest.approx((1 - high, 1 - low))


def test_a_claim_that_waits_for_its_runs_is_not_tested(project):
    Chapter("01_one", "classroom").check("works", None, "not run yet")
    assert record("01_one")["claims"]["works"]["verdict"] == "not tested"
    assert claims.changed(claims.read_records(claims.records_folder())) == []
    file = project / "data" / "claims" / "claims.yml"
    file.write_text(FILE.replace("verdict: holds", "verdict: not tested", 1))
    Chapter("02_two", "classroom").check("fails", {"seed 0": True}, "1")
    path = claims.save_stability(100, claims.read_records(claims.records_folder()))
    assert path.read_text() == "claim,shift,verdict\nfails,100,holds\n"


def test_a_chapter_that_forgets_its_claim_stops_the_scorecard(project):
    Chapter("02_two", "classroom")
    with pytest.raises(ConfigError, match="did not check its claim 'fails'"):
        scorecard.page(claims.read_records(claims.records_folder()))


@pytest.mark.parametrize("text", ["{", "[]", "{}", "\xff"])
def test_a_broken_record_is_one_line_that_says_what_to_do(project, text):
    path = claims.record_path("01_one")
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"01_one\.json .*`periodic book 01_one --force`") as caught:
        claims.read_records(claims.records_folder())
    assert "\n" not in str(caught.value)


def test_a_claim_is_a_mapping(project):
    (project / "data" / "claims" / "claims.yml").write_text("works: yes")
    with pytest.raises(ConfigError, match="claim 'works' must be a mapping; got True"):
        claims.declared()


def test_records_are_json(project):
    Chapter("01_one", "classroom").publish(x=1)
    assert json.loads((claims.records_folder() / "01_one.json").read_text())["chapter"] == "01_one"


def test_nothing_half_written_is_left_behind(project):
    Chapter("01_one", "classroom").publish(x=1)
    assert [path.name for path in claims.records_folder().iterdir()] == ["01_one.json"]


def test_what_is_not_run_at_the_papers_scale_says_how_to_run_it(project, capsys):
    (project / "book" / "experiments.yml").write_text(
        "long: {grid: {lr: 1, weight_decay: 0, seed: [0, 1]}, profiles: {paper: {setup: {steps: 3000}}}}"
    )
    assert experiments.kept("long") is None
    assert Chapter.paper_scale("long") is None
    out = capsys.readouterr().out
    assert "2 runs of 3,000 steps" in out
    assert "`periodic run long --profile paper --budget 1500 --keep`" in out


# ---------------------------------------------------------------- under other seeds


def measured(works, fails):
    """What the two chapters say when a claim is true in `works`, or in `fails`, of two runs."""
    for chapter, claim, true in (("01_one", "works", works), ("02_two", "fails", fails)):
        outcomes = {f"seed {seed}": seed < true for seed in range(2)}
        Chapter(chapter, "classroom").check(claim, outcomes, "counted")
    return claims.read_records(claims.records_folder())


def test_verdicts_under_other_seeds_are_a_table_of_claim_shift_and_verdict(project):
    assert claims.stability().empty
    assert claims.stayed(["works"]) == {"works": "not measured"}
    table = claims.stability_table({100: measured(2, 1), 200: measured(0, 2)})
    assert list(table.columns) == ["claim", "shift", "verdict"]
    assert table.values.tolist() == [
        ["works", 100, "holds"],
        ["fails", 100, "mixed"],
        ["works", 200, "fails"],
        ["fails", 200, "holds"],
    ]


def test_the_scorecard_says_how_often_a_verdict_stayed(project):
    assert "other seeds" not in scorecard.page(measured(2, 2))
    for shift, works, fails in ((200, 2, 1), (100, 2, 2), (300, 2, 0)):
        path = claims.save_stability(shift, measured(works, fails))
    assert claims.stability()["shift"].tolist() == [100, 100, 200, 200, 300, 300]
    assert claims.stayed(["works", "fails"]) == {"works": "3 of 3", "fails": "1 of 3"}
    page = scorecard.page(measured(2, 2))
    same = "- *Same verdict with other seeds*:"
    ends = [page.index(one) for one in ("It works.", f"{same} 3 of 3", "It fails.", f"{same} 1 of 3")]
    assert ends == sorted(ends)
    before = path.read_text()
    claims.save_stability(200, measured(2, 1))  # the rows of one shift take the place of its former ones
    assert path.read_text() == before


def test_a_claim_about_which_other_seeds_say_nothing_is_left_out_with_the_reason(project):
    file = project / "data" / "claims" / "claims.yml"
    file.write_text(FILE.replace("  verdict: holds\n", "  verdict: holds\n  own_seeds: it is of their breaks\n", 1))
    claims.save_stability(100, measured(0, 2))
    assert claims.stability()["claim"].tolist() == ["fails"]
    assert claims.stayed(["works"]) == {"works": "not asked: it is of their breaks"}
    assert "seeds*: not asked: it is of their breaks\n" in scorecard.page(measured(2, 2))


def test_stability_is_of_tested_claims_and_of_three_columns(project):
    Chapter("01_one", "classroom").check("works", {"seed 0": True}, "42")
    with pytest.raises(ConfigError, match="all claims must have been tested; 1 were not: fails"):
        claims.save_stability(100, claims.read_records(claims.records_folder()))
    claims.stability_file().write_text("claim,verdict\n")
    with pytest.raises(ConfigError, match="must have the columns claim, shift, verdict; got claim, verdict"):
        claims.stability()
