"""Texts -> rows of token ids of one fixed length, so that no training step is spent on padding."""

from __future__ import annotations

import datasets
from transformers import PreTrainedTokenizerBase

from hf_glmd.errors import UsageError


def pack_blocks(
    dataset: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    column: str = "text",
    num_proc: int | None = None,
) -> datasets.Dataset:
    """Tokenises a column and packs it into blocks of at most `block_size` token ids.

    A block begins with the tokenizer's first special token ([CLS] or <s>, where it has one); texts inside it are separated by
    its last one ([SEP] or </s>). No token is lost: what is left of a group of 1,000 texts becomes one shorter block.

    Args:
        dataset: has `column` (str).
        tokenizer: a fast tokenizer; its truncation and padding are not used.
        block_size: token ids per block, specials included; at least 3.
        num_proc: processes for `datasets.Dataset.map`.
    Returns: `Dataset` of the one column `input_ids` (list of int).
    Raises: UsageError, the column is missing or block_size is too small.
    """
    if column not in dataset.column_names:
        raise UsageError(
            f"the dataset has no column '{column}', it has {dataset.column_names}. Name one of them as the text column."
        )
    if block_size < 3:
        raise UsageError(f"block_size={block_size} leaves no room for text. Use 3 or more.")
    return dataset.map(
        _pack,
        batched=True,
        batch_size=1000,
        remove_columns=dataset.column_names,
        fn_kwargs={"tokenizer": tokenizer, "block_size": block_size, "column": column},
        num_proc=num_proc,
        desc="Packing text into blocks",
    )


def _pack(
    batch: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase, block_size: int, column: str
) -> dict[str, list[list[int]]]:
    start, end = boundary_ids(tokenizer)
    stream: list[int] = []
    # A special token that is written out in a text ("[MASK]" in a text about BERT) is plain text there.
    for ids in tokenizer(batch[column], add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]:
        stream += ids + end
    room = block_size - len(start)
    return {"input_ids": [start + stream[i : i + room] for i in range(0, len(stream), room)]}


def boundary_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What stands before and after a text: ([CLS] or <s>), ([SEP] or </s>), each a list of at most one id."""
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    return [] if first is None else [first], [] if last is None else [last]
