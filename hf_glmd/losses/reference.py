"""The formulas, dense and plain, in any dtype: what everything else is tested against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -100
"""The label of a position that is not scored, as in `torch.nn.CrossEntropyLoss`; it is the same in every vocabulary."""


def dense_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None = None, scale: float = 1.0, softcap: float | None = None
) -> Tensor:
    """softcap * tanh(scale * (hidden weight^T + bias) / softcap); without a softcap its inner part.

    The scale comes first. No known model has both: Cohere and Granite scale, Gemma 2 caps.

    Args:
        hidden: [..., H].
        weight: [K, H].
        bias: [K].
        scale: what the sum is multiplied by.
        softcap: c > 0, what no logit exceeds.
    Returns: [..., K].
    """
    logits = scale * F.linear(hidden, weight, bias)
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def dense_word_prediction_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) of the two softmaxes at temperature T, per position.

    Args:
        student_logits, teacher_logits: [..., K], columns in the student's token order.
        temperature: T > 0. Far above the spread of the logits the loss tends to half the variance of their difference.
    Returns: [...] in nats, in the dtype of the logits; 0 where both agree.
    Raises: ValueError, the shapes differ.
    Source: GLMD, arXiv:2306.06625 (word prediction); factor T^2: Hinton et al., arXiv:1503.02531, section 2.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} differ.")
    student = torch.log_softmax(student_logits / temperature, dim=-1)
    teacher = torch.log_softmax(teacher_logits / temperature, dim=-1)
    # A token the teacher rules out (-inf) adds nothing: 0 * log 0 is 0, and the plain product would be NaN.
    difference = torch.where(teacher == -torch.inf, 0.0, teacher - student)
    return temperature**2 * (teacher.exp() * difference).sum(-1)


def dense_soft_label_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * cross-entropy of the student's softmax with the teacher's softmax as soft targets, per example.

    Args:
        student_logits, teacher_logits: [..., C], one column per candidate; columns of -inf in both are no candidates.
        temperature: T > 0.
    Returns: [...] in nats; at T = 1 the teacher's entropy where both agree.
    Raises: ValueError, the shapes differ.
    Source: GLMD, arXiv:2306.06625 (soft labels); Hinton et al., arXiv:1503.02531, section 2.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} differ.")
    student = torch.log_softmax(student_logits / temperature, dim=-1)
    teacher = torch.softmax(teacher_logits / temperature, dim=-1)
    return -(temperature**2) * torch.where(teacher == 0.0, 0.0, teacher * student).sum(-1)
