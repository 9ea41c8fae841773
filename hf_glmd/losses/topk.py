"""The word-prediction loss against the top tokens of a teacher, all others in one bucket: a slice of tokens at a time.

For low temperatures. Far above 1 the softened distribution is nearly flat, and nearly all of its mass is in the bucket.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hf_glmd.errors import UsageError
from hf_glmd.losses.chunked import (
    DEFAULT_CHUNK_MIB,
    FusedTotal,
    FusedValues,
    GradientSums,
    LazyLogits,
    as_multiplied,
    rows_per_slice,
)


@dataclass(frozen=True)
class TopTokens:
    """A teacher's top tokens at N positions.

    Attributes:
        ids: int64 [N, k], columns of the student's logits, the most probable first.
        logits: [N, k], relative to the top-1's.
        log_tail: [N], log of the mass that all other tokens have at `temperature`; -inf where there are none.
        temperature: T > 0.
    """

    ids: Tensor
    logits: Tensor
    log_tail: Tensor
    temperature: float

    def log_probabilities(self) -> Tensor:
        """[N, k], at `temperature`; with the tail they add up to 1 however the logits were rounded."""
        top = torch.log_softmax(self.logits / self.temperature, dim=-1)
        return top + torch.log(-torch.expm1(self.log_tail))[:, None]


def top_tokens(logits: Tensor, k: int, temperature: float) -> TopTokens:
    """The top k tokens.

    Args:
        logits: [N, K]; widened to fp32 at least.
        k: 1 to K.
        temperature: T > 0.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    values, ids = logits.topk(k, dim=-1)
    others = logits.scatter(-1, ids, -torch.inf) / temperature
    log_tail = torch.logsumexp(others, -1) - torch.logsumexp(logits / temperature, -1)
    return TopTokens(ids, values - values[:, :1], log_tail, temperature)


def dense_topk_loss(student_logits: Tensor, teacher: TopTokens) -> Tensor:
    """The formula, per position: T^2 * (sum over the k tokens of p log(p / q) + p_tail log(p_tail / q_tail)).

    p and q are the teacher's and the student's softmaxes at T. At most T^2 * KL(teacher || student), and equal to it for k = K.

    Args:
        student_logits: [N, K].
    Returns: [N], in nats.
    """
    log_q = torch.log_softmax(student_logits / teacher.temperature, dim=-1)
    log_q_tail = torch.logsumexp(log_q.scatter(-1, teacher.ids, -torch.inf), -1)
    log_p, log_p_tail = teacher.log_probabilities(), teacher.log_tail
    top = _divergence(log_p, log_q.gather(-1, teacher.ids)).sum(-1)
    return teacher.temperature**2 * (top + _divergence(log_p_tail, log_q_tail))


def topk_word_prediction_loss(
    student: LazyLogits,
    teacher: TopTokens,
    reduction: Literal["mean", "sum", "none"] = "mean",
    *,
    normalizer: Tensor | float | None = None,
    chunk_mib: float = DEFAULT_CHUNK_MIB,
) -> Tensor:
    """T^2 * KL(teacher || student) of the two softmaxes at temperature T, all but the teacher's top tokens taken as one.

    It is lower than the KL over all tokens by what that bucket hides. As in `word_prediction_loss` no [N, K] tensor is held, and
    the gradients are made along with the value.

    Args:
        student: what its logits are made of, hidden states [N, H_s] and weight [K, H_s].
        teacher: its top tokens at the N positions, with the temperature.
        reduction: "mean" over the N positions, "sum", or "none" for [N], whose backward makes the logits again.
        normalizer, chunk_mib: as of `word_prediction_loss`.
    Returns: scalar, or [N], in nats, fp32 or wider. 0 with gradients of 0 when N is 0.
    Raises: UsageError, the shapes do not fit, or the reduction is unknown.
    """
    if reduction not in ("mean", "sum", "none"):
        raise UsageError(f"reduction='{reduction}' is unknown. Use 'mean', 'sum' or 'none'.")
    work = _Work(student, teacher, chunk_mib)
    if reduction == "none":
        return FusedValues.apply(student.hidden, student.weight, student.bias, work)
    count = 1.0 if reduction == "sum" else len(student.hidden) if normalizer is None else normalizer
    count = torch.as_tensor(count, dtype=student.dtype, device=student.hidden.device)
    weight = 1 / torch.where(count == 0, 1, count)  # a batch in which nothing counts is a 0, not 0 / 0
    return FusedTotal.apply(student.hidden, student.weight, student.bias, work, weight)


@torch.no_grad()
def topk_word_prediction_scores(
    student: LazyLogits, teacher: TopTokens, *, choices: bool = False, chunk_mib: float = DEFAULT_CHUNK_MIB
) -> dict[str, Tensor]:
    """How near the student's word predictions are to the teacher's, at each of the N positions. Arguments as of the loss.

    Returns: fp32 or wider, [N] each: "loss", and "agreement", 1 where both models' top-1 tokens are the same, else 0. With
        `choices` also these tokens, int64: "student_choice" and "teacher_choice".
    """
    scores = student.hidden.new_zeros(2, len(student.hidden), dtype=student.dtype)
    chosen = teacher.ids.new_zeros(len(student.hidden))
    for rows, part, (logits, _) in _Work(student, teacher, chunk_mib).slices(2):
        chosen[rows] = logits.argmax(-1)
        scores[0, rows] = topk_slice_(logits, part)
    scores[1] = chosen == teacher.ids[:, 0]
    found = {"loss": scores[0], "agreement": scores[1]}
    return found | ({"student_choice": chosen, "teacher_choice": teacher.ids[:, 0]} if choices else {})


@dataclass(frozen=True)
class _Work:
    """One batch: the student's logits and the teacher's tokens, N positions each."""

    student: LazyLogits
    teacher: TopTokens
    chunk_mib: float

    def __post_init__(self) -> None:
        N, K = len(self.student.hidden), len(self.student.weight)
        ids, k = self.teacher.ids.shape, self.teacher.ids.shape[-1]
        if self.student.hidden.ndim != 2 or ids != (N, k) or self.teacher.logits.shape != ids or len(self.teacher.log_tail) != N:
            raise UsageError(
                f"student_hidden {tuple(self.student.hidden.shape)} and the teacher's ids {tuple(ids)} are not of the same "
                "positions. Give both the same tokens, [N, H] and [N, k]."
            )
        if k > K:
            raise UsageError(f"the teacher has {k} top tokens, the student predicts {K}. Give both one vocabulary.")
        if not self.chunk_mib > 0:
            raise UsageError(f"chunk_mib={self.chunk_mib} is no room for a slice of logits. Use a positive number, e.g. 256.")

    def slices(self, buffers: int) -> Iterator[tuple[slice, TopTokens, list[Tensor]]]:
        """Some positions after others, the teacher's tokens there, and memory [n, K]: the student's logits / T, and scratch."""
        student, teacher = as_multiplied(self.student), self.teacher
        N, K = len(student.hidden), len(student.weight)
        n = min(N, rows_per_slice(self.chunk_mib, buffers * K * student.dtype.itemsize, student.hidden.device))
        memory = torch.empty(buffers, n, K, dtype=student.dtype, device=student.hidden.device)
        with torch.autocast(student.hidden.device.type, enabled=False):
            for start in range(0, N, max(1, n)):
                rows = slice(start, min(start + n, N))
                logits, *scratch = memory[:, : rows.stop - start]
                student.write(rows, logits, teacher.temperature)
                part = TopTokens(teacher.ids[rows], teacher.logits[rows], teacher.log_tail[rows], teacher.temperature)
                yield rows, part, [logits, *scratch]

    def losses(self) -> Tensor:
        """[N], without gradients."""
        with torch.no_grad():
            return self.losses_and_gradients(None, (False, False, False))[0]

    def losses_and_gradients(self, weights: Tensor | None, wanted: tuple[bool, bool, bool]) -> tuple[Tensor, GradientSums | None]:
        """[N], and the gradients of their sum with `weights` [N]."""
        student = as_multiplied(self.student)
        losses = torch.empty(len(student.hidden), dtype=student.dtype, device=student.hidden.device)
        gradients = GradientSums(student, student.dtype, wanted) if any(wanted) else None
        buffers = 2 if student.softcap is None or gradients is None else 3
        for rows, part, (logits, scratch, *capped) in self.slices(buffers):
            for before in capped:
                before.copy_(logits)
            losses[rows] = topk_slice_(logits, part)
            if gradients is None:
                continue
            for before in capped:  # tanh' = 1 - tanh^2
                before.mul_(part.temperature / student.softcap).square_()
                torch.addcmul(logits, logits, before, value=-1, out=logits)
            gradients.add(rows, logits, weights[rows] * student.scale, scratch)
        return losses, gradients


def topk_slice_(scaled_logits: Tensor, teacher: TopTokens) -> Tensor:
    """The loss of each position, [n]; writes the gradient by the student's logits over them.

    With respect to the logits it is T (q - p) at the teacher's tokens, and T (q_tail - p_tail) q / q_tail at the others.

    Args:
        scaled_logits: the student's logits / T, [n, K].
    """
    T = teacher.temperature
    log_p, log_p_tail = (part.to(scaled_logits.dtype) for part in (teacher.log_probabilities(), teacher.log_tail))
    top, others = scaled_logits.gather(1, teacher.ids), scaled_logits.scatter_(1, teacher.ids, -torch.inf)
    log_others = torch.logsumexp(others, 1)
    log_sum = torch.logaddexp(log_others, torch.logsumexp(top, 1))
    log_q, log_q_tail = top - log_sum[:, None], log_others - log_sum
    losses = T * T * (_divergence(log_p, log_q).sum(1) + _divergence(log_p_tail, log_q_tail))
    excess = torch.where(log_p_tail == -torch.inf, 1.0, -torch.expm1(log_p_tail - log_q_tail))  # (q_tail - p_tail) / q_tail
    others.sub_(log_sum[:, None]).exp_().mul_(T * excess[:, None])
    others.scatter_(1, teacher.ids, T * (log_q.exp() - log_p.exp()))
    return losses


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p log(p / q); 0 where p is 0, for 0 log 0 is 0 and the plain product would be NaN."""
    return torch.where(log_p == -torch.inf, 0.0, log_p.exp() * (log_p - log_q))
