"""What a row says about itself, and any collator's batch with the loss mask that it lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_glmd.data.packing import ORIGINAL_IDS
from hf_glmd.errors import UsageError
from hf_glmd.losses.reference import IGNORE_INDEX

PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "special_tokens_mask", ORIGINAL_IDS)
"""Columns that say something of each token of a row."""


ONE_PER_ROW = ("classifier", "question answerer", "text encoder")
"""Kinds of models, as of `hf_glmd.training.objectives.base.kind_of`, of which a row counts once, whatever its length."""


def trimmed(row: Mapping[str, Any], more: Sequence[str] = ()) -> dict[str, list[int]]:
    """The columns of a row that say something of each token, without the padding that `attention_mask` names at its ends.

    Args:
        row: `input_ids`, and any of `PER_TOKEN`; others are left behind.
        more: further columns of one entry per token, e.g. labels.
    Raises: UsageError, a column has another number of entries than the row has tokens, an id is negative, or all is padding.
    """
    columns = {name: list(row[name]) for name in (*PER_TOKEN, *more) if row.get(name) is not None}
    ids = columns["input_ids"]
    for name, values in columns.items():
        if len(values) != len(ids):
            raise UsageError(f"a row has {len(ids)} input_ids and {len(values)} {name}. Give one for each token.")
    if ids and min(ids) < 0:
        raise UsageError(f"a row has the id {min(ids)} in input_ids. Only labels hold {IGNORE_INDEX}: give ids of tokens.")
    mask = columns.get("attention_mask")
    if mask is None:
        return columns
    read = [place for place, value in enumerate(mask) if value]
    if not read:
        raise UsageError("a row has an attention_mask of zeros only: it is padding. Leave such rows out.")
    return {name: values[read[0] : read[-1] + 1] for name, values in columns.items()}


class LossMasked:
    """A collator of transformers or trl whose batches say what counts: where labels are not -100, else where there is a token.

    A batch that says so itself (`prediction_mask`) stays as it is. Labels of causal models are those of the next position, as
    everywhere in transformers; those of encoder-decoders are the decoder's text.

    Args:
        collator: makes batches of rows.
        kind: what the models are, see `hf_glmd.training.objectives.base.kind_of`.
        decoder_start_token_id: of encoder-decoders.
    """

    def __init__(self, collator: Callable[..., Any], kind: str, decoder_start_token_id: int | None = None) -> None:
        self.__dict__.update(collator=collator, kind=kind, start=decoder_start_token_id)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "collator" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.collator, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.collator, name, value)

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        batch = dict(self.collator(rows))
        if "prediction_mask" in batch:
            return batch
        if "input_ids" not in batch:
            raise UsageError(f"{type(self.collator).__name__} makes batches of {', '.join(batch)}, without input_ids.")
        labels, ids = batch.pop("labels", None), batch["input_ids"]
        if self.kind in ONE_PER_ROW:
            return batch | {"prediction_mask": torch.ones(len(ids), 1, dtype=torch.bool)}
        if self.kind == "encoder-decoder":
            return self._for_decoder(batch, labels)
        if self.kind == "causal language model" and labels is not None:
            labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE_INDEX)], 1)
        if labels is not None:
            return batch | {"prediction_mask": labels != IGNORE_INDEX, "targets": labels}
        mask = batch.get("attention_mask")
        return batch | {"prediction_mask": torch.ones_like(ids).bool() if mask is None else mask.bool()}

    def _for_decoder(self, batch: dict[str, Any], labels: Tensor | None) -> dict[str, Any]:
        if labels is None:
            raise UsageError(
                f"{type(self.collator).__name__} makes batches without labels, so the decoder has no text. Use rows with labels, "
                "or leave data_collator out."
            )
        if "decoder_input_ids" not in batch:
            text = labels.masked_fill(labels == IGNORE_INDEX, self.start)
            batch["decoder_input_ids"] = torch.cat([torch.full_like(text[:, :1], self.start), text[:, :-1]], 1)
        return batch | {"prediction_mask": labels != IGNORE_INDEX, "targets": labels}
