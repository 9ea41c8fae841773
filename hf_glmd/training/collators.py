"""Rows of token ids -> padded batches that say which positions count."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_glmd.errors import UsageError

Positions = Literal["all", "masked"]


class WordPredictionCollator:
    """Pads rows, masks words and marks the positions whose predictions are distilled.

    No label leaves it: the hidden words themselves are not part of the batch.

    Which words are masked follows from `seed`, the epoch and the row itself, not from the batch the row happens to be in: so
    batch size, number of processes and a resumed run change nothing, and every epoch hides other words.

    Args:
        tokenizer: pads; its mask token hides words.
        positions: "all": every non-padding position counts (the paper). "masked": only positions that hold the mask token.
        mask_share: share of the words to hide, in [0, 1). 0 leaves the rows as they are.
        seed: of the choice.
    Raises: UsageError, words are to be masked and the tokenizer has no mask token; or "masked" with nothing to mask.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, positions: Positions = "all", mask_share: float = 0.15, seed: int = 0
    ) -> None:
        if positions not in ("all", "masked"):
            raise UsageError(f"positions='{positions}' is unknown. Use 'all' or 'masked'.")
        if not 0 <= mask_share < 1:
            raise UsageError(f"mask_share={mask_share} is out of range. Use 0 or more and less than 1, e.g. 0.15.")
        if tokenizer.pad_token_id is None:
            raise UsageError("the tokenizer has no padding token. Set one, e.g. tokenizer.pad_token = tokenizer.eos_token.")
        if tokenizer.mask_token_id is None and (mask_share > 0 or positions == "masked"):
            raise UsageError("the tokenizer has no mask token, so no word can be masked. Use positions='all' and mask_share=0.")
        self.tokenizer, self.positions, self.mask_share, self.seed, self.epoch = tokenizer, positions, mask_share, seed, 0
        self._special = torch.tensor(sorted(set(tokenizer.all_special_ids)))

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Returns: `input_ids`, `attention_mask` int64 [B, S]; `prediction_mask` bool [B, S], True where a position counts."""
        batch = padded(rows, self.tokenizer)
        ids, filled = batch["input_ids"], batch["attention_mask"].bool()
        if self.mask_share > 0:
            hidden = self.hidden_words(ids, filled)
            ids = ids.masked_fill(hidden, self.tokenizer.mask_token_id)
        counted = filled if self.positions == "all" else filled & (ids == self.tokenizer.mask_token_id)
        return {**batch, "input_ids": ids, "prediction_mask": counted}

    def hidden_words(self, ids: Tensor, filled: Tensor) -> Tensor:
        """Which words to hide: bool [B, S]. Special tokens and padding are never chosen."""
        rows, lengths = ids.numpy(), filled.sum(1).tolist()
        draws = np.ones(ids.shape)
        for number, length in enumerate(lengths):  # a row's draws must not depend on the rows beside it
            row = rows[number, :length]
            seeds = [self.seed, self.epoch, zlib.crc32(row.tobytes())]
            draws[number, :length] = np.random.default_rng(seeds).random(length)
        return torch.from_numpy(draws < self.mask_share) & filled & ~torch.isin(ids, self._special)


class AnswerCollator:
    """Pads cloze rows and their candidate answers.

    Args:
        tokenizer: pads.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Returns: `input_ids`, `attention_mask` int64 [B, S]; `prediction_mask` bool [B, S], True at the blank;
        `candidate_ids` int64 [B, C], -100 where an example has fewer candidates; `answer` int64 [B] if the rows have it."""
        batch = padded(rows, self.tokenizer)
        batch["prediction_mask"] = blank_mask(rows, batch["input_ids"].shape[1])
        width = max(len(row["candidate_ids"]) for row in rows)
        batch["candidate_ids"] = torch.tensor(
            [list(row["candidate_ids"]) + [-100] * (width - len(row["candidate_ids"])) for row in rows]
        )
        if "answer" in rows[0]:
            batch["answer"] = torch.tensor([row["answer"] for row in rows])
        return batch


def padded(rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, int64 [B, S], padded on the right."""
    batch = tokenizer.pad({"input_ids": [list(row["input_ids"]) for row in rows]}, padding_side="right", return_tensors="pt")
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def blank_mask(rows: Sequence[Mapping[str, Any]], length: int) -> Tensor:
    """bool [B, S], True at each row's `blank`."""
    return torch.arange(length) == torch.tensor([[row["blank"]] for row in rows])
