"""The metrics as `evaluate` objects."""

import pickle

import evaluate
import numpy as np
import pytest

from hf_glmd import UsageError
from hf_glmd.tasks.metrics import METRICS, TaskMetric, accuracy, metric_by_name


def test_every_metric_is_one_of_evaluate():
    assert all(isinstance(metric, evaluate.Metric) for metric in METRICS.values())
    assert METRICS["accuracy"].compute(predictions=[0, 1, 1], references=[0, 1, 0]) == pytest.approx(
        {"accuracy": 2 / 3, "score": 2 / 3}
    )


def test_the_score_is_the_mean_of_the_parts():
    values = METRICS["accuracy_and_f1"].compute(predictions=np.array([0, 1, 1, 0]), references=np.array([0, 1, 0, 0]))
    assert values == pytest.approx({"accuracy": 0.75, "f1": 2 / 3, "score": (0.75 + 2 / 3) / 2})
    assert METRICS["accuracy_and_f1"]([0, 1, 1, 0], [0, 1, 0, 0]) == pytest.approx(values["score"])


def test_batches_add_up():
    metric = TaskMetric("mine", {"accuracy": accuracy})
    metric.add_batch(predictions=[0, 1], references=[0, 0])
    metric.add(prediction=1, reference=1)
    assert metric.compute() == pytest.approx({"accuracy": 2 / 3, "score": 2 / 3})


def test_multirc_groups_by_question():
    idx = [(0, 0, 0), (0, 0, 1), (0, 1, 2), (0, 1, 3), (1, 0, 4)]  # question 0 of another passage is another question
    predictions = [
        {"idx": dict(zip(("paragraph", "question", "answer"), numbers, strict=True)), "prediction": number}
        for numbers, number in zip(idx, [1, 0, 1, 1, 0], strict=True)
    ]
    values = METRICS["multirc"].compute(predictions=predictions, references=[1, 0, 1, 0, 0])
    assert values == pytest.approx({"f1_a": 4 / 5, "exact_match": 2 / 3, "score": (4 / 5 + 2 / 3) / 2})


def test_record_takes_the_answer_that_suits_best():
    idx = [{"passage": 0, "query": number} for number in range(2)]
    texts, answers = ["Diego Costa", "the Blues"], [["Costa", "Drogba"], ["Blues", "Chelsea"]]
    values = METRICS["record"].compute(
        predictions=[{"idx": i, "prediction_text": text} for i, text in zip(idx, texts, strict=True)],
        references=[{"idx": i, "answers": gold} for i, gold in zip(idx, answers, strict=True)],
    )
    assert values == pytest.approx({"f1": (2 / 3 + 1) / 2, "exact_match": 0.5, "score": (5 / 6 + 0.5) / 2})


def test_no_file_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))
    assert TaskMetric("mine", {"accuracy": accuracy}).compute(predictions=[1], references=[1])["score"] == 1.0
    assert not list(tmp_path.iterdir())


def test_a_metric_is_pickled_by_name():
    assert pickle.loads(pickle.dumps(METRICS["multirc"])) is METRICS["multirc"]


def test_an_unknown_metric_is_named_with_the_nearest():
    with pytest.raises(UsageError, match="'acuracy' is unknown. Did you mean 'accuracy'"):
        metric_by_name("acuracy")
