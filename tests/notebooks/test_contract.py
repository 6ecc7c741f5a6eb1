"""What every chapter must be, judged without executing it."""

import ast
import re

import pytest

from periodic_lib import experiments
from periodic_lib.project import root
from periodic_lib.publishing import claims, notebooks

CHAPTERS = notebooks.chapters()
LONGEST_SHOWN = 15  # lines of a code cell that a reader sees, as formatted for the page
LONGEST_HIDDEN = 30  # lines of one that is folded
LONGEST_FUNCTION = 8  # lines of a function in a chapter: a longer one is the library's
LONGEST_TEXT = 250  # words of a markdown cell
GUESSES = ("01", "02", "03", "04", "05", "06")  # chapters that ask for a guess before their main figure


def cells(name, kind):
    content = notebooks.read(root() / "book" / f"{name}.ipynb")
    return [cell for cell in content["cells"] if cell["cell_type"] == kind]


def text(name, kind):
    return "\n".join(notebooks.source(cell) for cell in cells(name, kind))


@pytest.mark.parametrize("name", CHAPTERS)
class TestChapter:
    def test_is_in_normal_form_without_outputs(self, name):
        content = notebooks.read(root() / "book" / f"{name}.ipynb")
        assert content == notebooks.normalize(content)

    def test_opens_with_a_title_what_is_learned_needed_and_how_long(self, name):
        first = notebooks.source(cells(name, "markdown")[0])
        assert first.startswith("# ")
        for word in ("You will learn", "Needs", "Reading", "executing"):
            assert f"**{word}**" in first

    def test_has_one_parameters_cell_of_literals(self, name):
        notebooks.check_parameters(root() / "book" / f"{name}.ipynb", ["profile", "overrides"])
        tagged = [cell for cell in cells(name, "code") if "parameters" in cell["metadata"].get("tags", [])]
        for statement in ast.parse(notebooks.source(tagged[0])).body:
            ast.literal_eval(statement.value)

    def test_code_cells_are_short(self, name):
        for cell in cells(name, "code"):
            folded = any(tag.startswith(("hide-", "remove-")) for tag in cell["metadata"].get("tags", []))
            longest = LONGEST_HIDDEN if folded else LONGEST_SHOWN
            assert len(notebooks.source(cell).splitlines()) <= longest, cell["id"]

    def test_functions_are_short(self, name):
        for node in ast.walk(ast.parse(text(name, "code"))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < LONGEST_FUNCTION, node.name

    def test_texts_are_short(self, name):
        for cell in cells(name, "markdown"):
            assert len(notebooks.source(cell).split()) <= LONGEST_TEXT, cell["id"]

    def test_takeaways_have_their_form_and_a_number(self, name):
        found = notebooks.takeaways({"cells": cells(name, "markdown")})
        assert found
        assert len(found) == len(re.findall(r"\bTakeaway\b", text(name, "markdown")))
        assert all("{result}`" in sentence for sentence in found)

    def test_asks_for_a_guess(self, name):
        if name.startswith(GUESSES):
            assert "\n:::{admonition} Guess first\n:class: tip\n" in "\n" + text(name, "markdown")

    def test_uses_no_shell_no_network_no_absolute_path(self, name):
        code = text(name, "code")
        assert not re.search(r"^\s*[!%]|https?://|[\"']/|\.\./", code, re.MULTILINE)

    def test_every_figure_has_a_text_alternative(self, name):
        calls = [node for node in ast.walk(ast.parse(text(name, "code"))) if isinstance(node, ast.Call)]
        shown = [call for call in calls if getattr(call.func, "attr", "") == "show"]
        assert shown
        assert all(len(call.args) == 3 or "alt" in {k.arg for k in call.keywords} for call in shown)

    def test_checks_the_claims_declared_for_it_and_no_other(self, name):
        checked = set(re.findall(r'chapter\.check\(\s*"([\w-]+)"', text(name, "code")))
        assert checked == {claim for claim, entry in claims.declared().items() if entry["chapter"] == name}

    def test_runs_the_experiments_declared_for_it(self, name):
        code = text(name, "code")
        used = set(re.findall(r'run_(?:experiment|variants)\(\s*"(\w+)"', code))
        declared = {key: entry for key, entry in experiments.declared().items() if "part_of" not in entry}
        kept = {key for key, entry in declared.items() if kept_only(entry)}
        readers = {key: {entry["chapter"], *entry.get("also", ())} for key, entry in declared.items()}
        assert all((f'"{key}"' in code) == (name in readers[key]) for key in kept)
        assert used == {key for key, chapters in readers.items() if name in chapters and key not in kept}

    def test_ends_with_its_provenance(self, name):
        last = cells(name, "code")[-1]
        assert "results.provenance(" in notebooks.source(last)
        assert "nbval-ignore-output" in last["metadata"]["tags"]

    def test_says_who_says_what_and_has_exercises_with_solutions(self, name):
        words = text(name, "markdown")
        for phrase in ("The paper says", "We measured", "We add", "Not explained here"):
            assert f"**{phrase}" in words
        exercises = re.findall(r"^\*\*\d\.\*\*", words, re.MULTILINE)
        assert len(exercises) >= 3
        assert len(solutions(name)) == len(exercises)

    def test_solutions_are_folded_and_labelled(self, name):
        for cell in solutions(name):
            assert "hide-cell" in cell["metadata"]["tags"]
            assert cell["metadata"]["mystnb"] == {"code_prompt_show": "Solution", "code_prompt_hide": "Solution"}


def solutions(name):
    return [cell for cell in cells(name, "code") if "solution" in cell["metadata"].get("tags", [])]


def test_every_experiment_has_a_chapter_and_a_smoke_and_a_classroom_profile_or_is_kept():
    """What is trained at the paper's scale only is read from data/results/paper."""
    for name, entry in experiments.declared().items():
        assert entry["chapter"] in CHAPTERS
        assert entry["question"].strip()
        for profile in ("paper",) if kept_only(entry) else ("smoke", "classroom"):
            plan = experiments.plan(name, profile)
            assert plan.minutes > 0


def kept_only(entry):
    return set(entry["profiles"]) == {"paper"}


def test_every_chapter_is_in_the_table_of_contents():
    listed = notebooks.table_of_contents()
    assert set(CHAPTERS) <= set(listed)
    for name in set(listed) - set(CHAPTERS) - {"scorecard", "glossary"}:
        assert (root() / "book" / f"{name}.md").is_file()
