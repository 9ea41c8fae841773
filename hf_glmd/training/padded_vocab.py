"""Output embeddings with more rows than the tokenizer has tokens, as of models padded to a round number: which rows count."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from hf_glmd.errors import UsageError
from hf_glmd.models.heads import HeadInputs
from hf_glmd.training.teacher_cache import TeacherCache
from hf_glmd.training.teachers import Teacher, TeacherEnsemble
from hf_glmd.vocab.vocab_map import VocabMap


def with_shared_rows(student_size: int, teacher: Teacher, tokenizer: Any, same_words: bool, mapped: bool) -> Teacher:
    """A teacher that predicts no rows but those the student has, too: of sizes that differ, the rows the tokenizer can address.

    Args:
        student_size: rows of the student's output embedding.
        teacher: is changed if it has rows too many.
        tokenizer: the student's.
        same_words: the ids are known to mean the same to both.
        mapped: the teacher's size is that of the student's vocabulary map.
    Raises: UsageError, the sizes differ and it is not known that the surplus is padding.
    """
    if student_size == teacher.size:
        return teacher
    used = max(tokenizer.get_vocab().values()) + 1
    if mapped and used <= teacher.size < student_size:
        return teacher
    if mapped or not same_words or used > min(student_size, teacher.size):
        raise UsageError(
            f"the student predicts {student_size} tokens, the teacher {teacher.size}. "
            "Pass vocab_map=vocab.vocab_map of the vocabulary the student was cut with"
            + ("." if mapped else f"; or, if the surplus is padding, vocab_map=VocabMap(np.arange({used}), {teacher.size}).")
        )
    return _narrowed(teacher, used)


def first_rows_of(head: HeadInputs, size: int) -> HeadInputs:
    """What logits of the first rows of an output embedding are made of; gradients reach these rows alone."""
    if len(head.weight) == size:
        return head
    return dataclasses.replace(head, weight=head.weight[:size], bias=None if head.bias is None else head.bias[:size])


def _narrowed(teacher: Any, size: int) -> Teacher:
    if isinstance(teacher, TeacherEnsemble):
        teacher.teachers = [_narrowed(one, size) for one in teacher.teachers]
        return teacher
    vocab_map = VocabMap(np.arange(size), teacher.size)
    if isinstance(teacher, TeacherCache):
        return TeacherCache.load(teacher.directory, vocab_map)
    teacher.vocab_map = vocab_map
    return teacher
