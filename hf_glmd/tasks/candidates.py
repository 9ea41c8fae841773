"""Cloze rows -> padded batches, and what a model's predictions say of each candidate answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

LogitsAt = Callable[[Mapping[str, Any], Tensor], Tensor]
"""Model inputs, bool positions [B, S] with N of them True -> logits [N, K], e.g. `LiveTeacher.logits`."""


def candidate_log_probs(logits_at: LogitsAt, batch: Mapping[str, Tensor]) -> Tensor:
    """The log-probability of each candidate in the blank, at temperature 1: the sum over its tokens.

    A masked model predicts all tokens of a candidate at once, each beside mask tokens; a causal one each after those before it.
    Where the rows say so (`ClozeTask.length_normalised`) it is the mean over the tokens instead.

    Args:
        logits_at: runs the model once; gradients flow through it.
        batch: as `CandidateCollator` makes it.
    Returns: [B, C] in nats, fp32 or wider; -inf where there is no candidate.
    Source: PET, arXiv:2009.07118 (several masks); GLMD, arXiv:2306.06625 (total log-probability).
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return candidate_scores(logits_at(inputs, batch["prediction_mask"]), batch)


def candidate_scores(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """`candidate_log_probs` of a model that has run already.

    Args:
        logits: [N, K], at the positions of `prediction_mask`.
        batch: as `CandidateCollator` makes it.
    Returns: [B, C] in nats, fp32 or wider; -inf where there is no candidate.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    token_ids = batch["candidate_ids"]
    known = token_ids >= 0
    if token_ids.ndim == 2:
        scores = logits.gather(1, token_ids.clamp(min=0)) - logits.logsumexp(-1, keepdim=True)
    else:
        positions = batch["candidate_positions"]
        tokens = logits[positions, token_ids.clamp(min=0)] - logits.logsumexp(-1)[positions]  # [B, C, L]
        scores = tokens.masked_fill(~known, 0.0).sum(-1) * batch["candidate_weights"]
    return scores.masked_fill(~batch["candidate_mask"], -torch.inf)


def label_loss(scores: Tensor, right: Tensor) -> Tensor:
    """Minus the log-probability that one of the right candidates is chosen; with one right candidate the cross-entropy.

    Args:
        scores: [B, C], e.g. of `candidate_log_probs`; -inf where there is no candidate.
        right: bool [B, C], at least one True for each example.
    Returns: [B] in nats.
    """
    return scores.logsumexp(-1) - scores.masked_fill(~right, -torch.inf).logsumexp(-1)
