"""Cloze rows -> padded batches, and what a model's predictions say of each candidate answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_glmd.corpora.padding import padded

LogitsAt = Callable[[Mapping[str, Any], Tensor], Tensor]
"""Model inputs, bool positions [B, S] with N of them True -> logits [N, K], e.g. `LiveTeacher.logits`."""

QUESTION_COLUMNS = ("blank", "candidate_ids", "sequence", "weight")
"""What cloze rows have beside `input_ids` and, for the teacher's fine-tuning alone, `answer`."""


class CandidateCollator:
    """Pads cloze rows of either kind; each batch holds one kind.

    Rows whose candidates are single tokens have one sequence and one position for each example.
    Otherwise an example has R_b sequences, and candidates of L tokens are read at L positions of one of them (see `Question`).

    Args:
        tokenizer: pads.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Returns:
        candidate_ids: int64 [B, C] of single tokens, or [B, C, L]; -100 where there is no candidate, or no further token.
        candidate_mask: bool [B, C], True where there is a candidate.
        candidate_positions, candidate_weights: only beside [B, C, L]. int64 [B, C, L], which of the N predictions each
            token is looked up in; fp32 [B, C], what the total log-probability is multiplied by.
        input_ids, attention_mask: int64 [R, S], R = B or the sum of R_b.
        prediction_mask: bool [R, S], the N positions that predict.
        right: bool [B, C], the right candidates, if the rows have an `answer`.
        """
        if "sequence" in rows[0]:
            batch = self._several_tokens(rows)
            right = [row.get("answer") for row in rows]
        else:
            batch = self._single_tokens(rows)
            right = [[row["answer"]] if "answer" in row else None for row in rows]
        if right[0] is not None:
            batch["right"] = torch.zeros_like(batch["candidate_mask"])
            for number, answers in enumerate(right):
                batch["right"][number, answers] = True
        return batch

    def _single_tokens(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        width = max(len(row["candidate_ids"]) for row in rows)
        token_ids = torch.tensor([[*row["candidate_ids"], *[-100] * (width - len(row["candidate_ids"]))] for row in rows])
        batch = padded(rows, self.tokenizer)
        blanks = torch.tensor([[row["blank"]] for row in rows])
        return {
            "candidate_ids": token_ids,  # first, as below
            "candidate_mask": token_ids >= 0,
            **batch,
            "prediction_mask": torch.arange(batch["input_ids"].shape[1]) == blanks,
        }

    def _several_tokens(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        count = max(len(row["candidate_ids"]) for row in rows)
        longest = max(len(ids) for row in rows for ids in row["candidate_ids"])
        token_ids = np.full((len(rows), count, longest), -100, dtype=np.int64)
        positions = np.zeros_like(token_ids)
        weights = np.zeros((len(rows), count), dtype=np.float32)
        sequences, blanks, widths, predictions = [], [], [], 0
        for number, row in enumerate(rows):
            # Sequences of one blank have one width: the candidates that share it are of one length.
            width = dict(zip(row["sequence"], map(len, row["candidate_ids"]), strict=True))
            starts = {}
            for which, ids in enumerate(row["input_ids"]):
                starts[which] = predictions
                sequences.append({"input_ids": ids})
                blanks.append(row["blank"][which])
                widths.append(width[which])
                predictions += width[which]
            for candidate, (which, ids) in enumerate(zip(row["sequence"], row["candidate_ids"], strict=True)):
                token_ids[number, candidate, : len(ids)] = ids
                positions[number, candidate, : len(ids)] = range(starts[which], starts[which] + len(ids))
            weights[number, : len(row["weight"])] = row["weight"]
        batch = padded(sequences, self.tokenizer)
        first, width = (torch.tensor(values)[:, None] for values in (blanks, widths))
        places = torch.arange(batch["input_ids"].shape[1])
        return {
            "candidate_ids": torch.from_numpy(token_ids),  # first, as the Trainer counts the examples of a batch by it
            "candidate_mask": torch.from_numpy(token_ids[..., 0] >= 0),
            "candidate_positions": torch.from_numpy(positions),
            "candidate_weights": torch.from_numpy(weights),
            **batch,
            "prediction_mask": (places >= first) & (places < first + width),
        }


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


def gold_answer_loss(scores: Tensor, right: Tensor) -> Tensor:
    """Minus the log-probability that one of the right candidates is chosen; with one right candidate the cross-entropy.

    Args:
        scores: [B, C], e.g. of `candidate_log_probs`; -inf where there is no candidate.
        right: bool [B, C], at least one True for each example.
    Returns: [B] in nats.
    """
    return scores.logsumexp(-1) - scores.masked_fill(~right, -torch.inf).logsumexp(-1)
