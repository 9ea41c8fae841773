"""Soft labels: the loss of an answer distribution, with checks of the candidates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hf_glmd.errors import UsageError
from hf_glmd.losses.functional import Reduction, check_temperature, counted_positions, reduced
from hf_glmd.losses.reference import dense_soft_label_loss


def soft_label_loss(
    student_logits: Tensor | Sequence[Tensor],
    teacher_logits: Tensor | Sequence[Tensor],
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    *,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    """T^2 * cross-entropy of the student's answers with the teacher's answer distribution.

    Args:
        student_logits, teacher_logits: [..., C], one column per candidate answer; -inf in both is no candidate. Or B tensors
            [C_b] each, where examples have different numbers of candidates.
        temperature: T > 0, of both softmaxes.
        mask: [...], or [B], 1 or True where an example counts. None: all.
        reduction, normalizer: as in `word_prediction_loss`.
    Returns: scalar, or [...] for "none", in nats, fp32 or wider.
    Raises: UsageError, shapes do not fit or the temperature is not positive; on a CPU also an example without candidates, or with
        other candidates in one model than in the other.
    Source: GLMD, arXiv:2306.06625 (soft labels).
    """
    check_temperature(temperature)
    student_logits, teacher_logits = _same_candidates(student_logits, teacher_logits)
    if student_logits.shape != teacher_logits.shape:
        raise UsageError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} differ. "
            "Score the same candidates with both models."
        )
    counted = counted_positions(mask, student_logits.shape[:-1])
    if counted is None:
        counted = torch.ones(student_logits.shape[:-1], dtype=torch.bool)
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    student, teacher = student_logits[counted].to(dtype), teacher_logits.detach()[counted].to(dtype)
    if student.device.type == "cpu":
        _check_candidates(student, teacher, counted)
    return reduced(dense_soft_label_loss(student, teacher, temperature), reduction, counted, normalizer)


def _same_candidates(student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Lists of [C_b] as [B, C], -inf behind the last candidate of each."""
    if isinstance(student, Tensor) and isinstance(teacher, Tensor):
        return student, teacher
    sizes = [[logits.shape for logits in model] for model in (student, teacher)]
    if len(sizes[0]) != len(sizes[1]):
        raise UsageError(f"The student has {len(sizes[0])} examples and the teacher {len(sizes[1])}. Score the same examples.")
    for example, (student_size, teacher_size) in enumerate(zip(*sizes, strict=True)):
        if len(student_size) != 1 or student_size != teacher_size:
            raise UsageError(
                f"Example {example}: student logits {tuple(student_size)} and teacher logits {tuple(teacher_size)}. "
                "Score the same candidates with both models, one number each."
            )
    if not sizes[0]:
        raise UsageError("There are no examples in the lists of logits. Give one tensor per example.")
    return tuple(pad_sequence(list(model), batch_first=True, padding_value=-torch.inf) for model in (student, teacher))


def _check_candidates(student: Tensor, teacher: Tensor, counted: Tensor) -> None:
    """Refuses -inf in one model alone, and rows without any candidate. Both [N, C], of the examples that `counted` holds."""
    missing = student == -torch.inf, teacher == -torch.inf
    for wrong, what in (
        ((missing[0] != missing[1]).any(-1), "has candidates, logits above -inf, in one model that it lacks in the other"),
        (missing[0].all(-1), "has no candidate: all of its logits are -inf"),
    ):
        if wrong.any():
            example = counted.cpu().nonzero()[wrong.nonzero()[0, 0]].tolist()
            example = example[0] if len(example) == 1 else example
            raise UsageError(f"Example {example} {what}. Score the same candidates with both models.")
