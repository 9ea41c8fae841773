"""Scores of predictions: the formulas alone, on arrays and texts."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Share of equal entries of two integer arrays [n]."""
    return float(np.mean(np.asarray(predictions) == np.asarray(references)))


def f1(predictions: np.ndarray, references: np.ndarray, positive: int = 1) -> float:
    """F1 of one class: 2 TP / (2 TP + FP + FN), 0 where it is neither predicted nor right anywhere.

    Args:
        predictions, references: integers [n].
        positive: the class.
    """
    predicted, right = np.asarray(predictions) == positive, np.asarray(references) == positive
    return float(2 * np.sum(predicted & right) / max(1, predicted.sum() + right.sum()))


def macro_f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """Mean of the F1 of every class that is predicted or right somewhere, each counting alike."""
    return float(np.mean([f1(predictions, references, label) for label in np.union1d(predictions, references)]))


def matthews_correlation(predictions: np.ndarray, references: np.ndarray) -> float:
    """Matthews' correlation of two integer arrays [n], in [-1, 1]; 0 where one of them has a single class.

    Source: for more than two classes, Gorodkin, Comput. Biol. Chem. 28 (2004), equation 8.
    """
    labels = np.union1d(predictions, references)
    predicted, right = (np.equal.outer(np.asarray(values), labels).astype(float) for values in (predictions, references))

    def covariance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sum(a * b) * len(a) - np.sum(a.sum(0) * b.sum(0)))

    spread = covariance(predicted, predicted) * covariance(right, right)
    return covariance(predicted, right) / spread**0.5 if spread > 0 else 0.0


def exact_match_of_groups(predictions: np.ndarray, references: np.ndarray, groups: Sequence[Hashable]) -> float:
    """Share of the groups whose entries are all right, e.g. of the questions whose every answer option is judged right.

    Args:
        predictions, references: integers [n].
        groups: which group each entry belongs to [n].
    Source: MultiRC, Khashabi et al., NAACL 2018 (EM).
    """
    right: dict[Hashable, bool] = {}
    for group, equal in zip(groups, np.asarray(predictions) == np.asarray(references), strict=True):
        right[group] = right.get(group, True) and bool(equal)
    return float(np.mean(list(right.values())))


def normalised_answer(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces.

    Source: SQuAD, arXiv:1606.05250 (its evaluation script), which ReCoRD uses too.
    """
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def text_exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction equals one of the answers after `normalised_answer`, else 0; 0 if there is no answer."""
    return float(any(normalised_answer(prediction) == normalised_answer(answer) for answer in answers))


def text_f1(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the words that prediction and answer share, for the answer it is highest for; 0 if there is no answer."""
    return max((_shared_words(normalised_answer(prediction), normalised_answer(answer)) for answer in answers), default=0.0)


def _shared_words(prediction: str, answer: str) -> float:
    predicted, right = prediction.split(), answer.split()
    shared = sum((Counter(predicted) & Counter(right)).values())
    return 2 * shared / (len(predicted) + len(right)) if shared else 0.0
