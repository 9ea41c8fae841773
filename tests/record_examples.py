"""A run made up by hand, for the tests of cards, plots and tables."""

from __future__ import annotations

import dataclasses
from typing import Any

from hf_glmd.reports.records import (
    AnswerSample,
    ModelFacts,
    RunRecord,
    StageRecord,
    TaskScores,
    VocabFacts,
    WordSample,
    WordScores,
)

VOCABULARY, SMALL_VOCABULARY = 8191, 4093  # primes
ODD_TOKENS = ["|", "`", "``", "##ing", "a|b", "*", "_x_", "<b>", "[y](z)", "\\", "\\|", "\n", " ", "語", "{{ 7 * 7 }}", "---"]


TASK_LIST = [
    TaskScores("boolq", "accuracy", 3_270, teacher=0.712, student=0.695, majority=0.622, agreement=0.91, seconds=127.0),
    TaskScores("cb", "accuracy_and_macro_f1", 56, teacher=0.812, student=0.8123, majority=0.333, agreement=0.89, seconds=31.0),
    TaskScores("cola", "matthews_correlation", 1_043, teacher=0.41, student=-0.02, majority=0.0, agreement=0.83, seconds=43.0),
    TaskScores("wsc", "accuracy", 104, teacher=0.61, student=0.62, majority=0.635, agreement=0.71, seconds=11.0),
]

WORD_SAMPLES = [
    WordSample(
        "the", "of the list is returned", "length", [("length", 0.613), ("<b>", 0.207)], [("size", 0.311), ("length", 0.293)]
    ),
    WordSample("語 {{ 7 * 7 }}", "", "\n", [(" ", 0.9961), ("``", 0.0039)], [("\n", 0.0131)]),
]
ANSWER_SAMPLES = [
    AnswerSample("from ___ : <script>alert(1)</script> & more", "torch", "torch", "numpy"),
    AnswerSample("from ___ : returns the mean", None, "numpy", "numpy"),
]


def example_record(**changes: Any) -> RunRecord:
    """`changes` replace fields of the record."""
    ranks = sorted({round(1.018**power) for power in range(506)} | {SMALL_VOCABULARY})
    record = RunRecord(
        name="example-student",
        teacher=ModelFacts(
            name="someone/example-teacher",
            layers=4,
            vocabulary=VOCABULARY,
            embedding_parameters=2_129_663,
            body_parameters=3_240_977,
            file_bytes=10_741_381,
            file_dtype="float16",
            speed_length=127,
            tokens_per_second={1: 8123.4, 32: 20111.6},
        ),
        student=ModelFacts(
            name="example-student",
            layers=2,
            vocabulary=SMALL_VOCABULARY,
            embedding_parameters=1_047_809,
            body_parameters=1_661_453,
            file_bytes=5_418_627,
            file_dtype="float16",
            speed_length=127,
            tokens_per_second={1: 15432.1, 32: 43210.9},
        ),
        vocab=VocabFacts(
            original_size=VOCABULARY,
            size=SMALL_VOCABULARY,
            coverage=0.9743,
            length_ratio=1.0531,
            tokens_per_text_before=47.3,
            tokens_per_text_after=49.8,
            removed_examples=ODD_TOKENS,
        ),
        words_start=WordScores(positions=12_347, accuracy=0.0213, teacher_accuracy=0.3917, kl=3.581, agreement=0.0341),
        words_general=WordScores(positions=12_347, accuracy=0.2861, teacher_accuracy=0.3917, kl=1.263, agreement=0.3893),
        words_final=WordScores(positions=12_347, accuracy=0.2719, teacher_accuracy=0.3917, kl=1.417, agreement=0.3637),
        task=TaskScores(
            name="docstring_library",
            metric="accuracy",
            count=1_009,
            teacher=0.8127,
            student=0.7833,
            majority=0.1213,
            agreement=0.8523,
        ),
        stages=[
            StageRecord(
                name="general",
                title="word prediction on plain text",
                objective="word_prediction",
                temperature=15.0,
                positions="all",
                steps=811,
                seconds=613.0,
                batch_size=61,
                learning_rate=4e-4,
                tokens=791_291,
                steps_evaluated=[0, 101, 203, 401, 607, 811],
                kl=[3.581, 2.313, 1.871, 1.531, 1.337, 1.263],
                agreement=[0.0341, 0.1931, 0.2713, 0.3319, 0.3701, 0.3893],
            ),
            StageRecord("task_teacher", "fine-tuning of the teacher", "gold_labels", None, None, 307, 83.0, 32, 5e-5),
            StageRecord(
                name="task_words",
                title="word prediction on the task's texts, from the tuned teacher",
                objective="word_prediction",
                temperature=15.0,
                positions="all",
                steps=211,
                seconds=97.0,
                batch_size=31,
                learning_rate=1e-4,
                steps_evaluated=[0, 53, 107, 211],
                kl=[0.931, 0.613, 0.541, 0.519],
                agreement=[0.5113, 0.5879, 0.6011, 0.6131],
            ),
            StageRecord("task_answers", "soft labels on the task's answers", "soft_label", 1.0, None, 223, 71.0, 29, 2e-5),
        ],
        corpus="docstrings of installed libraries",
        hardware="2 CPU cores",
        command="accelerate launch recipes/glmd.py --config recipes/quickstart.yaml",
        versions={"torch": "2.9.0", "transformers": "5.23.0"},
        count_ranks=ranks,
        counts_sorted=[int(2e6 / (rank + 2) ** 1.1) for rank in ranks],
        max_tokens=127,
        seconds=1021.0,
    )
    return dataclasses.replace(record, **changes)
