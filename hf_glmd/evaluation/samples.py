"""A few examples with what teacher and student said, side by side, for people to read."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_glmd.models.heads import WordHead, evaluating, is_masked_lm
from hf_glmd.reports.records import AnswerSample, WordSample
from hf_glmd.tasks.cloze import ClozeTask
from hf_glmd.tasks.examples import answer_key
from hf_glmd.tasks.patterns import written
from hf_glmd.teachers.base import Teacher

WORD_SAMPLES, ANSWER_SAMPLES = 12, 12
TOP_TOKENS = 3
"""Tokens of each model."""

CONTEXT = 24
"""Tokens shown before, and as many behind, a word."""

MAX_CHARACTERS = 300
"""Of each column of a question."""


@torch.no_grad()
def word_samples(
    student: PreTrainedModel,
    teacher: Teacher,
    tokenizer: PreTrainedTokenizerBase,
    rows: datasets.Dataset,
    number: int = WORD_SAMPLES,
    seed: int = 0,
) -> list[WordSample]:
    """The top tokens of both models at one token with letters of some rows.

    Args:
        student, tokenizer: of one vocabulary; a causal model is asked for the next word, and reads nothing behind it.
        rows: `input_ids` in the student's ids.
        seed: of the choice of rows and words.
    """
    causal, head, device = not is_masked_lm(student), WordHead(student), next(student.parameters()).device
    special, choice = set(tokenizer.all_special_ids), np.random.default_rng(seed)
    samples = []
    with evaluating(student):
        for row in choice.permutation(len(rows)).tolist():
            ids = rows[row]["input_ids"]
            places = [
                place for place, token in enumerate(ids) if place > 0 and token not in special and _has_letter(token, tokenizer)
            ]
            if not places:
                continue
            place = int(choice.choice(places))
            shown = torch.tensor([ids[:place] if causal else [*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]])
            inputs = {"input_ids": shown.to(device), "attention_mask": torch.ones_like(shown).to(device)}
            positions = torch.zeros_like(shown, dtype=torch.bool).to(device)
            positions[0, place - 1 if causal else place] = True
            before, behind = ids[max(0, place - CONTEXT) : place], [] if causal else ids[place + 1 : place + 1 + CONTEXT]
            samples.append(
                WordSample(
                    before=tokenizer.decode(before, skip_special_tokens=True),
                    behind=tokenizer.decode(behind, skip_special_tokens=True),
                    hidden=tokenizer.decode([ids[place]]),
                    teacher=_top_tokens(teacher.logits(inputs, positions)[0], tokenizer),
                    student=_top_tokens(head.logits(student, inputs, positions)[0], tokenizer),
                )
            )
            if len(samples) == number:
                break
    return samples


def _has_letter(token: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it holds a letter: commas and brackets tell little about what a model knows."""
    return any(char.isalpha() for char in tokenizer.decode([token]))


def _top_tokens(logits: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, float]]:
    shares, ids = logits.float().softmax(-1).topk(min(TOP_TOKENS, logits.shape[-1]))
    return [(tokenizer.decode([token]), round(share, 4)) for token, share in zip(ids.tolist(), shares.tolist(), strict=True)]


def answer_samples(
    task: ClozeTask, data: datasets.Dataset, teacher: np.ndarray, student: np.ndarray, number: int = ANSWER_SAMPLES
) -> list[AnswerSample]:
    """Some questions of a task: as many where the two disagree as where they agree, if there are as many.

    Args:
        data: the questions; right answers are shown where they are there.
        teacher, student: int64 [n], as `choose_answers` gives them.
    """
    chosen = _some_of_each(teacher != student, number)
    part = task.prepared(data.select(chosen))
    said = [task.predictions(part, np.asarray(answers)[chosen]) for answers in (teacher, student)]
    right = part[task.label_column] if task.label_column in part.column_names else [None] * len(chosen)
    pattern = task.patterns[0]
    return [
        AnswerSample(
            question=written(pattern.pieces, {name: _shortened(str(row[name])) for name in pattern.columns} | {"mask": "___"})[0],
            right=None if gold is None else answer_key(gold),
            teacher=one,
            student=other,
        )
        for row, gold, one, other in zip(part, right, *said, strict=True)
    ]


def _some_of_each(differs: np.ndarray, number: int) -> list[int]:
    """In the order of the data."""
    same, other = np.flatnonzero(~differs), np.flatnonzero(differs)
    n_other = min(len(other), max(number // 2, number - len(same)))
    return sorted([*_evenly(other, n_other), *_evenly(same, min(len(same), number - n_other))])


def _evenly(values: Sequence[int], count: int) -> list[int]:
    return [int(values[place]) for place in np.linspace(0, len(values) - 1, count).round().astype(int)] if count else []


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
