"""The formulas, against scikit-learn and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from hf_glmd.tasks.metrics import (
    accuracy,
    exact_match_of_groups,
    f1,
    macro_f1,
    matthews_correlation,
    normalised_answer,
    text_exact_match,
    text_f1,
)


def pairs(largest: int) -> st.SearchStrategy:
    numbers = st.integers(0, largest)
    return st.lists(st.tuples(numbers, numbers, st.integers(0, 3)), min_size=1, max_size=40).map(
        lambda rows: tuple(np.array(column) for column in zip(*rows, strict=True))
    )


def test_accuracy_is_the_share_of_equal_entries():
    assert accuracy(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2])) == 0.75


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(pairs(3))
def test_several_classes_agree_with_scikit_learn(rows):
    predictions, references, _ = rows
    expected = sklearn_metrics.f1_score(references, predictions, average="macro", zero_division=0)
    assert macro_f1(predictions, references) == pytest.approx(expected)
    assert matthews_correlation(predictions, references) == pytest.approx(
        sklearn_metrics.matthews_corrcoef(references, predictions), abs=1e-9
    )
    assert accuracy(predictions, references) == pytest.approx(sklearn_metrics.accuracy_score(references, predictions))


@given(pairs(1))
def test_two_classes_agree_with_scikit_learn(rows):
    predictions, references, questions = rows
    assert f1(predictions, references) == pytest.approx(sklearn_metrics.f1_score(references, predictions, zero_division=0))
    right = [np.array_equal(predictions[questions == q], references[questions == q]) for q in set(questions.tolist())]
    assert exact_match_of_groups(predictions, references, questions.tolist()) == pytest.approx(np.mean(right))


@given(pairs(2))
def test_right_answers_score_one(rows):
    _, references, questions = rows
    assert macro_f1(references, references) == exact_match_of_groups(references, references, questions.tolist()) == 1.0
    assert matthews_correlation(references, references) == pytest.approx(float(len(set(references.tolist())) > 1))


def test_a_class_that_never_occurs_counts_nothing():
    assert f1(np.zeros(3, int), np.zeros(3, int)) == 0.0
    assert macro_f1(np.zeros(3, int), np.zeros(3, int)) == 1.0
    assert macro_f1(np.array([0, 0, 2]), np.array([0, 0, 1])) == pytest.approx(1 / 3)
    assert matthews_correlation(np.zeros(4, int), np.array([0, 1, 0, 1])) == 0.0


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "shared"),
    [
        ("The Beatles", ["Beatles"], 1, 1),
        ("beatles!", ["The Rolling Stones", "the Beatles"], 1, 1),
        ("Diego Costa", ["Costa"], 0, 2 / 3),
        ("Diego Costa", ["Costa", "Diego da Costa"], 0, 4 / 5),
        ("Costa Costa", ["Costa"], 0, 2 / 3),
        ("U.S.", ["US"], 1, 1),
        ("an apple", ["the  Apple"], 1, 1),
        ("the", ["a"], 1, 0),
        ("anything", [], 0, 0),
    ],
)
def test_texts_are_compared_by_their_words(prediction, answers, exact, shared):
    assert text_exact_match(prediction, answers) == exact
    assert text_f1(prediction, answers) == pytest.approx(shared)


def test_articles_inside_of_words_stay():
    assert normalised_answer("The theatre, an Anatomy") == "theatre anatomy"
