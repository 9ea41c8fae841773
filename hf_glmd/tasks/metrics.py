"""Scores of predictions: the formulas alone, on arrays and texts."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import datasets
import evaluate
import numpy as np

from hf_glmd.errors import UsageError, nearest


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


_INTEGER, _TEXT = datasets.Value("int64"), datasets.Value("string")


class Answered(Protocol):
    """What a metric asks of a task."""

    label_column: str

    def numbered_answers(self, data: datasets.Dataset, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and right answers as numbers, int64 [n] each."""

    def predictions(self, data: datasets.Dataset, chosen: np.ndarray) -> list[str]:
        """Predicted answers as text, [n]."""


class TaskMetric(evaluate.Metric):
    """Some formulas of predicted and right answers, both integers; the score is the mean of the formulas.

    It is used like any metric of `evaluate` (`compute`, `add_batch`), keeps what it is given in memory and writes no file.
    Called like a function it returns the score alone.

    Args:
        name: of the metric, e.g. "accuracy_and_f1".
        formulas: name in the result -> predictions [n], references [n] -> score. In `f1` the class 1 is the positive one.
    """

    input_features: Mapping[str, Any] = {"predictions": _INTEGER, "references": _INTEGER}
    columns: tuple[str, ...] = ()
    """What `inputs` reads of the data beside the labels."""

    def __init__(self, name: str, formulas: Mapping[str, Callable[..., float]]) -> None:
        self.__name__, self._formulas = name, formulas
        super().__init__(config_name=name, keep_in_memory=True, seed=0)

    def __call__(self, predictions: Any, references: Any) -> float:
        """The score alone, of what `compute` takes."""
        return self._compute(predictions, references)["score"]

    def inputs(self, task: Answered, data: datasets.Dataset, chosen: np.ndarray) -> dict[str, Any]:
        """What `compute` takes.

        Args:
            task: says which answer a candidate stands for, and which are right.
            data: examples with labels.
            chosen: int64 [n], the chosen candidate of each example.
        """
        predictions, references = task.numbered_answers(data, chosen)
        return {"predictions": predictions, "references": references}

    def judged_together(self, data: datasets.Dataset) -> list[Any]:
        """For each example a key that it shares with those it is judged together with: by itself each is."""
        return list(range(len(data)))

    def _info(self) -> evaluate.MetricInfo:
        description = f"{self.__name__}: the mean of {', '.join(self._formulas)}" if len(self._formulas) > 1 else self.__name__
        return evaluate.MetricInfo(
            description=description, citation="", inputs_description="", features=datasets.Features(dict(self.input_features))
        )

    def _build_data_dir(self) -> str:
        return self._data_dir_root  # the base class makes a folder, which nothing is ever written to

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        values = self._values(predictions, references)
        return {**values, "score": float(np.mean(list(values.values())))}

    def _values(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {name: formula(np.asarray(predictions), np.asarray(references)) for name, formula in self._formulas.items()}

    def __reduce__(self) -> Any:
        # By name where it is one of the table: `datasets` caches by what a task is made of, and that must not change.
        return (metric_by_name, (self.__name__,)) if METRICS.get(self.__name__) is self else super().__reduce__()


class QuestionMetric(TaskMetric):
    """MultiRC's: F1 over all answer options, and the share of questions whose options are all judged right.

    Predictions are `{"idx": {"paragraph", "question", "answer"}, "prediction": 0 or 1}`, references 0 or 1, as in the metric
    `super_glue` of `evaluate`.
    """

    columns = ("idx",)
    input_features = {
        "predictions": {"idx": {"paragraph": _INTEGER, "question": _INTEGER, "answer": _INTEGER}, "prediction": _INTEGER},
        "references": _INTEGER,
    }

    def inputs(self, task: Answered, data: datasets.Dataset, chosen: np.ndarray) -> dict[str, Any]:
        predictions, references = task.numbered_answers(data, chosen)
        pairs = zip(data["idx"][:], predictions.tolist(), strict=True)
        return {"predictions": [{"idx": idx, "prediction": number} for idx, number in pairs], "references": references}

    def judged_together(self, data: datasets.Dataset) -> list[Any]:
        return [(idx["paragraph"], idx["question"]) for idx in data["idx"][:]]

    def _values(self, predictions: Sequence[Mapping[str, Any]], references: Sequence[int]) -> dict[str, float]:
        numbers = np.array([prediction["prediction"] for prediction in predictions])
        questions = [(prediction["idx"]["paragraph"], prediction["idx"]["question"]) for prediction in predictions]
        f1_a, exact_match = self._formulas["f1_a"], self._formulas["exact_match"]
        return {"f1_a": f1_a(numbers, np.asarray(references)), "exact_match": exact_match(numbers, references, questions)}


class TextMetric(TaskMetric):
    """ReCoRD's: F1 of words and exact match with the answer that suits best, averaged over the queries.

    Predictions are `{"idx": {"passage", "query"}, "prediction_text": text}`, references `{"idx", "answers": texts}` in the same
    order, as in the metric `super_glue` of `evaluate`.
    """

    _IDX = {"passage": _INTEGER, "query": _INTEGER}
    columns = ("idx",)
    input_features = {
        "predictions": {"idx": _IDX, "prediction_text": _TEXT},
        "references": {"idx": _IDX, "answers": datasets.List(_TEXT)},
    }

    def inputs(self, task: Answered, data: datasets.Dataset, chosen: np.ndarray) -> dict[str, Any]:
        indices, golds = data["idx"][:], data[task.label_column][:]
        texts = task.predictions(data, chosen)
        return {
            "predictions": [{"idx": idx, "prediction_text": text} for idx, text in zip(indices, texts, strict=True)],
            "references": [{"idx": idx, "answers": gold} for idx, gold in zip(indices, golds, strict=True)],
        }

    def _values(self, predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        pairs = [(p["prediction_text"], r["answers"]) for p, r in zip(predictions, references, strict=True)]
        return {name: float(np.mean([formula(*pair) for pair in pairs])) for name, formula in self._formulas.items()}


_ROWS = (
    TaskMetric("accuracy", {"accuracy": accuracy}),
    TaskMetric("f1", {"f1": f1}),
    TaskMetric("macro_f1", {"f1": macro_f1}),
    TaskMetric("accuracy_and_f1", {"accuracy": accuracy, "f1": f1}),
    TaskMetric("accuracy_and_macro_f1", {"accuracy": accuracy, "f1": macro_f1}),
    TaskMetric("matthews_correlation", {"matthews_correlation": matthews_correlation}),
    QuestionMetric("multirc", {"f1_a": f1, "exact_match": exact_match_of_groups}),
    TextMetric("record", {"f1": text_f1, "exact_match": text_exact_match}),
)
METRICS: dict[str, TaskMetric] = {metric.__name__: metric for metric in _ROWS}
"""Name, as recipes write it -> metric."""


def metric_by_name(name: str) -> TaskMetric:
    """Raises: UsageError, there is no such metric; the nearest one is named."""
    if name not in METRICS:
        raise UsageError(f"metric '{name}' is unknown. {nearest(name, METRICS)}")
    return METRICS[name]
