"""How far two classifiers' outputs are apart: the losses of soft labels, for each thing that outputs can mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hf_glmd.losses.reference import dense_soft_label_loss


def class_loss(student: Tensor, teacher: Tensor, problem: str, temperature: float) -> Tensor:
    """How far the student's outputs are from the teacher's, per example.

    - single_label_classification: T^2 * cross-entropy of the two softmaxes at temperature T.
    - multi_label_classification: the same of each label's two-way choice (sigmoid), the mean over the labels.
    - regression: squared difference, the mean over the outputs. A softmax over one output is always 1 and teaches nothing; if an
      output is read as the mean of a normal distribution of fixed width, the KL of two of them is their squared difference up
      to a factor. T has no meaning here.

    Args:
        student, teacher: [B, C]; C = 1 or more.
        problem: one of `hf_glmd.models.class_heads.PROBLEMS`.
        temperature: T > 0.
    Returns: [B], fp32 or wider; nats, for regression the square of the outputs' unit.
    Source: Hinton et al., arXiv:1503.02531, section 2; for regression Ba and Caruana, arXiv:1312.6184, section 2.2.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    student, teacher = student.to(dtype), teacher.detach().to(dtype)
    if problem == "regression":
        return (student - teacher).square().mean(-1)
    if problem == "single_label_classification":
        return dense_soft_label_loss(student, teacher, temperature)
    chances = torch.sigmoid(teacher / temperature)
    return temperature**2 * nn.functional.binary_cross_entropy_with_logits(student / temperature, chances, reduction="none").mean(
        -1
    )


def class_scores(student: Tensor, teacher: Tensor, problem: str) -> dict[str, Tensor]:
    """What evaluation averages over examples beside the loss, [B] each.

    Args:
        student, teacher, problem: as of `class_loss`.
    Returns: of regression `absolute_difference`, the mean over the outputs. Of classes `kl`, KL(teacher || student) at
        temperature 1, `agreement`, 1 where both choose the same class, and `teacher_entropy`, the part of the loss at temperature
        1 that no student can undercut; of several labels the means of these over the labels.
    """
    student, teacher = student.double(), teacher.double()
    if problem == "regression":
        return {"absolute_difference": (student - teacher).abs().mean(-1)}
    entropy = class_loss(teacher, teacher, problem, 1.0)
    if problem == "single_label_classification":
        same = (student.argmax(-1) == teacher.argmax(-1)).double()
    else:
        same = ((student > 0) == (teacher > 0)).double().mean(-1)
    return {"kl": class_loss(student, teacher, problem, 1.0) - entropy, "agreement": same, "teacher_entropy": entropy}
