"""Texts, or pairs of them, for classifiers: token ids, batches, and whether two classifiers mean the same by their outputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_glmd.corpora.blocks import ORIGINAL_IDS, require_column
from hf_glmd.errors import UsageError
from hf_glmd.mapped_tokenizer import MappedTokenizer
from hf_glmd.models.class_heads import problem_of

ROW_COLUMNS = ("input_ids", "token_type_ids", ORIGINAL_IDS)


def class_rows(
    dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, column: str, pair_column: str | None = None
) -> datasets.Dataset:
    """Tokenises a column, or two, as the tokenizer's model is used to reading them; too long texts lose their ends.

    Returns: `Dataset` of `input_ids` (list of int) and, where the tokenizer makes them, `token_type_ids`; of a `MappedTokenizer`
        also `original_input_ids`. No other column stays, so no label does.
    Raises: UsageError, a column is missing.
    """
    columns = [column] if pair_column is None else [column, pair_column]
    for name in columns:
        require_column(dataset, name)
    tokenizer = copy.deepcopy(tokenizer)  # a tokenizer.json that is saved later must not hold this truncation
    options = {"return_original_ids": True} if isinstance(tokenizer, MappedTokenizer) else {}

    def tokenised(batch: Mapping[str, list[str]]) -> dict[str, list[list[int]]]:
        texts = [batch[name] for name in columns]
        # A special token that is written out in a text is plain text there.
        rows = tokenizer(*texts, truncation=True, max_length=max_length, split_special_tokens=True, verbose=False, **options)
        return {name: rows[name] for name in ROW_COLUMNS if name in rows}

    return dataset.map(tokenised, batched=True, remove_columns=dataset.column_names, desc="Tokenising texts to classify")


class ClassCollator:
    """Pads rows of token ids for classifiers; every row counts once. Labels, if rows have any, are left behind.

    Args:
        tokenizer: pads.
    Raises: UsageError, it cannot.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.pad_token_id is None:
            raise UsageError(
                "the tokenizer has no padding token. Set one, e.g. tokenizer.pad_token = tokenizer.eos_token, and its id as "
                "pad_token_id in the configuration of both models."
            )
        self.tokenizer = tokenizer

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Returns: `input_ids`, `attention_mask` and, if the rows have them, `token_type_ids`, int64 [B, S];
        `prediction_mask` bool [B, 1], True: every text counts; and the original ids of a `MappedTokenizer`."""
        names = [name for name in ROW_COLUMNS if name in rows[0]]
        batch = self.tokenizer.pad(
            [{name: list(row[name]) for name in names} for row in rows], padding_side="right", return_tensors="pt"
        )
        mask = torch.ones(len(rows), 1, dtype=torch.bool)
        return {**{name: batch[name] for name in [*names, "attention_mask"]}, "prediction_mask": mask}


def check_same_classes(student: Any, teacher: Any) -> None:
    """Gives the student the teacher's names of classes, where it has none of its own.

    Args:
        student, teacher: configurations of classifiers with as many outputs.
    Raises: UsageError, an output of the student means another thing than the teacher's.
    """
    if problem_of(student) != problem_of(teacher):
        raise UsageError(
            f"the student is made for {problem_of(student)}, the teacher for {problem_of(teacher)}. "
            "Set problem_type in the student's configuration."
        )
    ours, theirs = (_names(config) for config in (student, teacher))
    if _unnamed(ours):
        student.id2label, student.label2id = dict(enumerate(theirs)), {name: number for number, name in enumerate(theirs)}
    elif not _unnamed(theirs) and ours != theirs:
        raise UsageError(
            f"the student's classes are {ours}, the teacher's {theirs}. Give the student the teacher's id2label and label2id."
        )


def _names(config: Any) -> list[str]:
    return [config.id2label[number] for number in range(config.num_labels)]


def _unnamed(names: Sequence[str]) -> bool:
    return list(names) == [f"LABEL_{number}" for number in range(len(names))]
