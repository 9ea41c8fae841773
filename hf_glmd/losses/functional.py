"""The losses as they are called: check, choose what counts, compute, reduce."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_glmd.errors import UsageError
from hf_glmd.losses.reference import dense_soft_label_loss, dense_word_prediction_loss

Reduction = Literal["mean", "sum", "none"]


def word_prediction_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    mask: Tensor | None = None,
    temperature: float = 15.0,
    reduction: Reduction = "mean",
    *,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    """T^2 * KL(teacher || student) of two models' word predictions, from what enters their output embeddings.

    Positions that do not count are dropped before any product.

    Args:
        student_hidden: [..., H_s].
        student_weight: [K, H_s].
        teacher_hidden: [..., H_t], the leading dimensions of `student_hidden`.
        teacher_weight: [K, H_t], the teacher's rows of the student's tokens, in the student's order.
        student_bias, teacher_bias: [K].
        mask: [...], 1 or True where a position counts. None: everywhere.
        temperature: T > 0, of both softmaxes; 0.5 to 50 makes sense.
        reduction: "mean" over the counted positions, "sum", or "none" for [...] with 0 where nothing counts.
        normalizer: for "mean": divide by this count instead, e.g. the counted positions of the whole global batch.
    Returns: scalar, or [...] for "none", in nats, fp32 or wider. 0 with gradients of 0 when no position counts.
    Raises: UsageError, shapes do not fit or the temperature is not positive.
    Source: GLMD, arXiv:2306.06625 (word prediction).
    """
    _check_temperature(temperature)
    if student_hidden.shape[:-1] != teacher_hidden.shape[:-1]:
        raise UsageError(
            f"student_hidden {tuple(student_hidden.shape)} and teacher_hidden {tuple(teacher_hidden.shape)} are not of the same "
            "positions. Give both models the same tokens."
        )
    if student_weight.shape[0] != teacher_weight.shape[0]:
        raise UsageError(
            f"student_weight has {student_weight.shape[0]} rows and teacher_weight {teacher_weight.shape[0]}. "
            "Pass the teacher's rows of the student's tokens: teacher_weight[vocab_map.kept_ids]."
        )
    counted = _counted(mask, student_hidden.shape[:-1])
    student = F.linear(student_hidden[counted], student_weight, student_bias)
    with torch.no_grad():
        teacher = F.linear(teacher_hidden[counted], teacher_weight, teacher_bias)
    return word_prediction_loss_from_logits(student, teacher, temperature, reduction, counted=counted, normalizer=normalizer)


def word_prediction_loss_from_logits(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 15.0,
    reduction: Reduction = "mean",
    *,
    counted: Tensor | None = None,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    """`word_prediction_loss` from the logits of the counted positions.

    Args:
        student_logits, teacher_logits: [N, K], N counted positions, columns in the student's token order. Low-precision
            logits are widened first: at T = 15 the softmaxes are nearly flat and bf16 would round their difference away.
        temperature, reduction, normalizer: as in `word_prediction_loss`.
        counted: bool [...], N of them True: where "none" puts the N values.
    """
    _check_temperature(temperature)
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    values = dense_word_prediction_loss(student_logits.to(dtype), teacher_logits.detach().to(dtype), temperature)
    return _reduce(values, reduction, counted, normalizer)


def soft_label_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    *,
    normalizer: Tensor | float | None = None,
) -> Tensor:
    """T^2 * cross-entropy of the student's answers with the teacher's answer distribution.

    Args:
        student_logits, teacher_logits: [..., C], one column per candidate answer; columns of -inf in both are no candidates.
        temperature: T > 0, of both softmaxes.
        mask: [...], 1 or True where an example counts. None: all.
        reduction, normalizer: as in `word_prediction_loss`.
    Returns: scalar, or [...] for "none", in nats, fp32 or wider.
    Raises: UsageError, shapes do not fit or the temperature is not positive.
    Source: GLMD, arXiv:2306.06625 (soft labels).
    """
    _check_temperature(temperature)
    if student_logits.shape != teacher_logits.shape:
        raise UsageError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} differ. "
            "Score the same candidates with both models."
        )
    counted = _counted(mask, student_logits.shape[:-1])
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    student, teacher = student_logits[counted].to(dtype), teacher_logits.detach()[counted].to(dtype)
    return _reduce(dense_soft_label_loss(student, teacher, temperature), reduction, counted, normalizer)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise UsageError(f"temperature={temperature} is not positive. Use 15.0 for word prediction, 1.0 for soft labels.")


def _counted(mask: Tensor | None, shape: torch.Size) -> Tensor:
    if mask is None:
        return torch.ones(shape, dtype=torch.bool)
    if mask.shape != shape:
        raise UsageError(f"mask {tuple(mask.shape)} does not cover the positions {tuple(shape)}. Give one value per position.")
    return mask.bool()


def _reduce(values: Tensor, reduction: Reduction, counted: Tensor | None, normalizer: Tensor | float | None) -> Tensor:
    if reduction == "none":
        if counted is None:
            return values
        return values.new_zeros(counted.shape).masked_scatter(counted.to(values.device), values)
    if reduction == "sum":
        return values.sum()
    if reduction == "mean":
        # max(1): a batch in which nothing counts is a 0 that still has gradients, not 0 / 0.
        return values.sum() / (max(values.numel(), 1) if normalizer is None else normalizer)
    raise UsageError(f"reduction='{reduction}' is unknown. Use 'mean', 'sum' or 'none'.")
