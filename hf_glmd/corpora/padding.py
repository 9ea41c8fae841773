"""Rows of token ids of different lengths -> one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase


def padded(rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, int64 [B, S], padded on the right."""
    batch = tokenizer.pad({"input_ids": [list(row["input_ids"]) for row in rows]}, padding_side="right", return_tensors="pt")
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
