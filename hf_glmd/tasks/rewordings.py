"""Questions in several wordings, and what is left of questions where only their words count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_glmd.tasks.candidates import LogitsAt
from hf_glmd.tasks.cloze import ClozeTask
from hf_glmd.tasks.scoring import averaged_scores, score_candidates


def chosen_patterns(task: ClozeTask, number: int | Literal["first"] | None, causal: bool) -> list[int]:
    """The numbers of the patterns to use: the one that is asked for, or the first one or (None) all that suit the kind of model.

    Raises: UsageError, there is no such pattern, or none suits.
    """
    if number is None or number == "first":
        return task.suitable_patterns(causal)[: 1 if number == "first" else None]
    task.with_pattern(number)
    return [number]


def encode_reworded(
    task: ClozeTask,
    data: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    patterns: list[int],
    **options: Any,
) -> list[datasets.Dataset]:
    """`ClozeTask.encode` once for each pattern, with the same columns: where one wording needs several tokens, all say so."""
    parts = [task.encode(data, tokenizer, max_length, pattern=number, **options) for number in patterns]
    several = ["sequence" in part.column_names for part in parts]
    if any(several):
        parts = [part if plain else part.map(_general) for part, plain in zip(parts, several, strict=True)]
    return parts


def _general(row: Mapping[str, Any]) -> dict[str, Any]:
    """A question of single tokens as `ClozeTask.encode` writes those of several."""
    count = len(row["candidate_ids"])
    return {
        "input_ids": [row["input_ids"]],
        "blank": [row["blank"]],
        "candidate_ids": [[token] for token in row["candidate_ids"]],
        "sequence": [0] * count,
        "weight": [1.0] * count,
    } | ({"answer": [row["answer"]]} if "answer" in row else {})


def sequences(questions: datasets.Dataset) -> datasets.Dataset:
    """All that is read to answer the questions, as rows for word prediction: `input_ids` alone."""
    questions = questions.select_columns(["input_ids"])
    if not len(questions) or not isinstance(questions[0]["input_ids"][0], list):
        return questions
    return questions.map(
        lambda batch: {"input_ids": [ids for row in batch["input_ids"] for ids in row]}, batched=True, desc="One row per sequence"
    )


def choose_answers(
    logits_at: LogitsAt, parts: list[datasets.Dataset], tokenizer: PreTrainedTokenizerBase, device: Any, desc: str
) -> np.ndarray:
    """The likeliest candidate of each question, averaged over its wordings: int64 [n].

    Args:
        parts: of `encode_reworded`.
    """
    scores = [score_candidates(logits_at, part, tokenizer, device, desc=desc) for part in parts]
    return (scores[0] if len(scores) == 1 else averaged_scores(scores)).argmax(-1)
