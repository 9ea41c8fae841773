"""Every kind of teacher, and whatever a trainer was given as one of them."""

from __future__ import annotations

from typing import Any

from hf_glmd.errors import UsageError
from hf_glmd.teachers.base import Teacher
from hf_glmd.teachers.cache import TeacherCache
from hf_glmd.teachers.ensemble import TeacherEnsemble
from hf_glmd.teachers.live import LiveTeacher
from hf_glmd.vocab.vocab_map import VocabMap

KINDS: list[type[Teacher]] = [TeacherCache, LiveTeacher]
"""Asked in this order what they make of a source, see `Teacher.of`; a list of sources is a `TeacherEnsemble` of them."""


def as_teacher(source: Any, vocab_map: VocabMap | None = None) -> Teacher:
    """A teacher from a model, its name or path, the path of a cache, or several of these; a teacher stays as it is.

    Raises: UsageError, no kind of teacher can be made from it.
    """
    if isinstance(source, Teacher):
        return source
    if isinstance(source, (list, tuple)):
        return TeacherEnsemble([as_teacher(one, vocab_map) for one in source])
    for kind in KINDS:
        if (teacher := kind.of(source, vocab_map)) is not None:
            return teacher
    raise UsageError(
        f"teacher is a {type(source).__name__}. Pass a model, its Hub name or path, a cache, a list of these, or a teacher."
    )
