"""Whether student and teacher mean the same words by the same ids: by what their tokenizers hold, not by how many tokens."""

from __future__ import annotations

import logging
from typing import Any

from hf_glmd.errors import UsageError
from hf_glmd.tokenizer_files import load_tokenizer
from hf_glmd.vocab.vocab_map import VocabMap

logger = logging.getLogger(__name__)

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
