import pytest

from periodic_lib import glossary, periods, results, training


def test_docstrings_carry_the_definitions():
    for text in (periods.__doc__, training.train.__doc__):
        assert "[[" not in text
    assert glossary.TERMS["destabilization"].definition in periods.__doc__
    assert glossary.TERMS["eff_grad_norm"].definition in training.train.__doc__


def test_labels_and_units_of_results_are_the_glossarys():
    for name in results.MEASURED:
        assert results.LABELS[name] == (glossary.TERMS[name].term, glossary.TERMS[name].unit)


def test_the_page_has_a_row_for_every_word():
    page = glossary.page()
    for name, term in glossary.TERMS.items():
        assert f"- {term.term}\n  - `{name}`" in page


def test_an_unknown_word_is_an_error():
    with pytest.raises(KeyError, match="norms"):
        glossary.define("[[norms]]")
