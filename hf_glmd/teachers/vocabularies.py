"""Whether student and teacher mean the same words by the same ids: by what their tokenizers hold, not by how many tokens."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from hf_glmd.errors import UsageError
from hf_glmd.models.heads import HeadInputs
from hf_glmd.teachers.base import Teacher
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer
from hf_glmd.vocab.vocab_map import VocabMap

logger = logging.getLogger(__name__)

FEW_TOKENS = 64
"""That many tokens may lack a row, such as Gemma 3's image token in its text models; with more the models belong elsewhere."""

_PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "MiXeD CaSe, ÀÉÎÕÜ naïve façade",
    "  two  spaces\tand\na line break",
    "1234567890 3.14 a_b-c/d@e.f (x) [y] {z} \"q\" 'r'",
    "中文字符 かな 한국어 русский العربية हिन्दी",
)


def tokenizer_of(model: Any) -> Any:
    """The tokenizer that lies beside a model's weights; None where there is none, or none is known."""
    name = getattr(model.config, "name_or_path", "")
    if not name:
        return None
    try:
        return load_tokenizer(name)
    except UsageError as error:
        logger.info("The teacher's tokenizer is not compared with the student's: %s", error)
        return None


def check_same_words(student: Any, teacher: Any, vocab_map: VocabMap | None) -> None:
    """Raises: UsageError, an id of the student means another token to the teacher, or text is split otherwise.

    Args:
        student, teacher: tokenizers.
        vocab_map: from the teacher's vocabulary to the student's; None: both share one.
    """
    ours = {token_id: token for token, token_id in student.get_vocab().items()}
    theirs = {token_id: token for token, token_id in teacher.get_vocab().items()}
    original = vocab_map.kept_ids.tolist() if vocab_map is not None else list(range(max(ours) + 1))
    other = [own for own, token in sorted(ours.items()) if own >= len(original) or theirs.get(original[own]) != token]
    if other:
        first = other[0]
        meant = theirs.get(original[first]) if first < len(original) else None
        raise UsageError(
            f"{len(other)} of the student's {len(ours)} tokens are others to the teacher: id {first} is {ours[first]!r} here and "
            f"{meant!r} there. Use a student with the teacher's tokenizer, or pass the vocab_map it was cut with."
        )
    if vocab_map is None:
        for text in _PROBES:
            if student(text, add_special_tokens=False)["input_ids"] != teacher(text, add_special_tokens=False)["input_ids"]:
                raise UsageError(
                    f"student and teacher have the same tokens, but split {text!r} differently (case or normalisation). "
                    "Use a student with the teacher's tokenizer."
                )


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
    least = min(student_size, teacher.size)
    if same_words and not mapped and least < used <= least + FEW_TOKENS:
        names = sorted(token for token, token_id in tokenizer.get_vocab().items() if token_id >= least)
        logger.warning("%d tokens have no row in a model and are left out: %s.", used - least, ", ".join(map(repr, names[:5])))
        used = least
    if mapped and used <= teacher.size < student_size:
        return teacher
    if mapped or not same_words or used > min(student_size, teacher.size):
        raise UsageError(
            f"the student predicts {student_size} tokens, the teacher {teacher.size}. "
            "Pass vocab_map=vocab.vocab_map of the vocabulary the student was cut with"
            + ("." if mapped else f"; or, if the surplus is padding, vocab_map=VocabMap(np.arange({used}), {teacher.size}).")
        )
    return teacher.with_first_rows(used)


def first_rows_of(head: HeadInputs, size: int) -> HeadInputs:
    """What logits of the first rows of an output embedding are made of; gradients reach these rows alone."""
    if len(head.weight) == size:
        return head
    return dataclasses.replace(head, weight=head.weight[:size], bias=None if head.bias is None else head.bias[:size])
