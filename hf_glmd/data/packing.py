"""Texts -> rows of token ids of one fixed length, so that no training step is spent on padding."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_glmd.data.files import text_of
from hf_glmd.data.long_texts import TextCutter
from hf_glmd.errors import UsageError

logger = logging.get_logger(__name__)

MIN_LENGTH = 3
"""Token ids of the shortest rows that text can be packed into."""

ORIGINAL_IDS = "original_input_ids"
"""Column of the ids before similar tokens took the place of removed ones; `MappedTokenizer` makes it."""


def pack_blocks(
    dataset: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    column: str = "text",
    num_proc: int | None = None,
    separate: bool = False,
) -> datasets.Dataset:
    """Tokenises a column and packs it into blocks of at most `block_size` token ids.

    A block begins with the tokenizer's first special token ([CLS] or <s>, where it has one); texts inside it are separated by
    its last one ([SEP] or </s>). No token is lost: what is left of a group of 1,000 texts becomes one shorter block. Rows without
    text are left out.

    Args:
        dataset: has `column` (str); of a stream the blocks are made as they are read.
        tokenizer: a fast tokenizer; its truncation and padding are not used.
        block_size: token ids per block, specials included; at least 3.
        num_proc: processes for `datasets.Dataset.map`.
        separate: texts of one block are not to see each other (causal models): each begins with the first special token, and
            a column `position_ids` counts from 0 in each.
    Returns: `Dataset` of the column `input_ids` (list of int), `position_ids` if separate, and `original_input_ids` of a
        `MappedTokenizer`.
    Raises: UsageError, the column is missing or block_size is too small.
    """
    require_column(dataset, column)
    if block_size < MIN_LENGTH:
        raise UsageError(f"block_size={block_size} leaves no room for text. Use {MIN_LENGTH} or more.")
    arguments = {"tokenizer": tokenizer, "block_size": block_size, "column": column, "separate": separate}
    arguments["as_lists"] = isinstance(dataset, datasets.IterableDataset)  # whose rows go to the collator as they are
    options = {"num_proc": num_proc, "desc": "Packing text into blocks"}
    return mapped_rows(dataset, _pack, batch_size=1000, fn_kwargs=arguments, **options)


def pair_rows(
    dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, column: str, target_column: str
) -> datasets.Dataset:
    """Tokenises two columns, one for an encoder and one for its decoder, each cut to `max_length` token ids, specials included.

    Returns: `Dataset` of the columns `input_ids` and `labels` (lists of int).
    Raises: UsageError, a column is missing.
    """
    for name in (column, target_column):
        require_column(dataset, name)
    start, end = boundary_ids(tokenizer)

    def tokenised(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        room = max_length - len(start) - len(end)
        rows = {}
        for name, texts in zip(("input_ids", "labels"), texts_of(batch, [column, target_column]), strict=True):
            rows[name] = [start + ids[:room].tolist() + end for ids in _encoded(texts, tokenizer)["input_ids"]]
        return rows

    return mapped_rows(dataset, tokenised, desc="Tokenising pairs of texts")


def texts_of(batch: Mapping[str, list[Any]], columns: Sequence[str]) -> list[list[str]]:
    """The texts of some columns, of the rows that have one in each. Raises: UsageError, something is no text."""
    rows = zip(*([text_of(value, f"A row, column '{name}',") for value in batch[name]] for name in columns), strict=True)
    rows = [row for row in rows if all(row)]
    if len(rows) < len(batch[columns[0]]):
        logger.warning_once(f"Rows without text in {' or '.join(columns)} are left out.")
    return [[row[place] for row in rows] for place in range(len(columns))]


def mapped_rows(
    dataset: Any, function: Callable[..., Any], num_proc: int | None = None, desc: str | None = None, **options: Any
) -> Any:
    """Batches of rows -> other rows; of a stream as it is read, otherwise at once, and kept on disk by `datasets`."""
    if not isinstance(dataset, datasets.IterableDataset):
        options |= {"num_proc": num_proc, "desc": desc}
    return dataset.map(function, batched=True, remove_columns=_columns(dataset), **options)


def _columns(dataset: Any) -> list[str]:
    """Some streams show their columns only in their rows."""
    return dataset.column_names or list(next(iter(dataset), {}))


def require_column(dataset: datasets.Dataset, column: str) -> None:
    if column not in _columns(dataset):
        raise UsageError(
            f"the dataset has no column '{column}', it has {_columns(dataset)}. Name one of them as the text column."
        )


def _pack(
    batch: dict[str, list[str]],
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    column: str,
    separate: bool = False,
    as_lists: bool = False,
) -> dict[str, list[Any]]:
    start, end = boundary_ids(tokenizer)
    (texts,) = texts_of(batch, [column])
    encoded = _encoded(texts, tokenizer)
    rows = _blocks(encoded["input_ids"], start, end, block_size, separate)
    if is_mapped(tokenizer):  # what the teacher reads
        original = [tokenizer.vocab_map.to_original(ids) for ids in (start, end)]
        rows[ORIGINAL_IDS] = _blocks(encoded[ORIGINAL_IDS], *original, block_size, separate)["input_ids"]
    return {name: [row.tolist() for row in column] for name, column in rows.items()} if as_lists else rows


def _encoded(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[array]]:
    """The ids of each text, a portion of the texts at a time, and those before similar tokens took the place of removed ones."""
    # A special token that is written out in a text ("[MASK]" in a text about BERT) is plain text there.
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    names, plain = ["input_ids"], tokenizer
    if is_mapped(tokenizer):
        names, plain = ["input_ids", ORIGINAL_IDS], tokenizer.original
    encoded = {name: [array("q") for _ in texts] for name in names}
    cutter = TextCutter(plain.backend_tokenizer, lambda text: plain(text, **options).encodings[0])
    more = {"return_original_ids": True} if is_mapped(tokenizer) else {}
    for portion in cutter.portions(texts):
        found = tokenizer([piece for _, piece in portion], **options, **more)
        for place, (number, _) in enumerate(portion):
            for name in names:
                encoded[name][number].extend(found[name][place])
    return encoded


def _blocks(
    texts: Sequence[array], start: list[int], end: list[int], block_size: int, separate: bool
) -> dict[str, list[np.ndarray]]:
    if separate:
        rows = [np.concatenate([start, ids, end]).astype(np.int64) for ids in texts]
        places = _cut([np.arange(len(row)) for row in rows], block_size)
        return {"input_ids": _cut(rows, block_size), "position_ids": [_from_zero(block) for block in places]}
    stream = [np.array(ids, dtype=np.int64) for text in texts for ids in (text, end)]
    return {"input_ids": [np.append(np.array(start, dtype=np.int64), block) for block in _cut(stream, block_size - len(start))]}


def _cut(parts: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    stream = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    return [stream[i : i + size] for i in range(0, len(stream), size)]


def _from_zero(places: np.ndarray) -> np.ndarray:
    """A text that goes on from the block before counts from 0 again: what it began with cannot be seen from here."""
    before = np.cumprod(np.append(True, np.diff(places) == 1)).astype(bool)
    return np.where(before, places - places[0], places)


def boundary_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What stands before and after a text: ([CLS] or <s>), ([SEP] or </s>), each a list of at most one id."""
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    return [] if first is None else [first], [] if last is None else [last]


def is_mapped(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it is a `MappedTokenizer`, which can also say what ids a text had before similar tokens took their place."""
    return hasattr(tokenizer, "vocab_map")
