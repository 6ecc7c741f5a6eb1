from periodic_lib import glossary
from periodic_lib.engine import metrics, training


def test_docstrings_carry_the_definitions():
    text = " ".join(training.train.__doc__.split())
    for name in ("eff_grad_norm", "elr", "weight_norm"):
        assert glossary.TERMS[name].definition in text


def test_every_measure_has_its_words_and_unit_in_the_glossary():
    for measure in metrics.MEASURES:
        assert glossary.LABELS[measure.name] == (glossary.TERMS[measure.name].term, measure.unit)
        assert measure.unit
        if measure.parts:
            assert glossary.LABELS[f"layer_{measure.name}"][1] == measure.unit


def test_the_page_has_a_row_for_every_word():
    page = glossary.page()
    for name, term in glossary.TERMS.items():
        assert f"- {term.term}\n  - `{name}`" in page
