"""A trainer's data set as rows of token ids that both models can read: text is tokenised, the rest is looked at."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import pyarrow.compute
from accelerate import PartialState
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from hf_glmd.data.collators import ROW_COLUMNS
from hf_glmd.data.packing import is_mapped, pack_blocks, pair_rows, require_column
from hf_glmd.errors import UsageError

MAX_DEFAULT_LENGTH = 512
UNLIMITED = 2**31
_LOOKED_AT_ONCE = 10_000


def token_rows(
    dataset: Any, tokenizer: PreTrainedTokenizerBase, args: Any, length: int, limit: int, classes: bool = False
) -> Any:
    """The data set with a column `input_ids`, or several by name; None stays None.

    Args:
        dataset: of text (`args.text_column`) or of token ids; may be a stream.
        tokenizer: the student's.
        args: a `GLMDConfig`, which says how text is read.
        length: token ids per row of text.
        limit: the most token ids that both models can read.
        classes: each text, or pair of texts, is one row, of which a class is predicted.
    Raises: UsageError, there is neither text nor token ids, or a row is longer than `limit`.
    """
    if isinstance(dataset, Mapping) and not isinstance(dataset, datasets.Dataset):
        return {name: token_rows(part, tokenizer, args, length, limit, classes) for name, part in dataset.items()}
    columns = None if dataset is None else columns_of(dataset)
    if columns is None:
        return dataset
    if "input_ids" in columns:
        check_width(_longest(dataset), limit)
        return dataset
    wanted = [args.text_column, *([] if args.target_column is None else [args.target_column])]
    for name in wanted:
        if name not in columns or not hasattr(dataset, "map"):
            raise UsageError(
                f"the dataset has no column '{name}' and no 'input_ids', it has {columns}. Name the column that holds text as "
                f"{'text_column' if name == args.text_column else 'target_column'}."
            )
    with PartialState().local_main_process_first():  # the others read what the first one cached
        if classes:
            return class_rows(dataset, tokenizer, length, args.text_column, args.pair_column)
        if args.target_column is not None:
            return pair_rows(dataset, tokenizer, length, args.text_column, args.target_column)
        return pack_blocks(dataset, tokenizer, length, column=args.text_column, separate=args.separate_documents)


def check_width(longest: int, limit: int) -> None:
    """Raises: UsageError, a row has more token ids than both models can read."""
    if longest > limit:
        raise UsageError(
            f"a row of the dataset has {longest} token ids, student and teacher can both read {limit}. Cut the rows to {limit}, "
            "or give text, which is cut to max_length by itself."
        )


def is_stream(dataset: Any) -> bool:
    """Whether a data set (or one of several) gives rows one after the other, and does not say how many."""
    if isinstance(dataset, Mapping) and not isinstance(dataset, datasets.Dataset):
        return any(is_stream(part) for part in dataset.values())
    return dataset is not None and not hasattr(dataset, "__len__")


def columns_of(dataset: Any) -> list[str] | None:
    """Names of the columns; None where they cannot be known without reading a stream that gives each row once."""
    columns = getattr(dataset, "column_names", None)
    if columns is not None:
        return list(columns)
    if isinstance(dataset, datasets.IterableDataset):  # begins anew each time it is iterated over
        first = next(iter(dataset), None)
    elif hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and len(dataset):
        first = dataset[0]
    else:
        return None
    return list(first) if isinstance(first, Mapping) else None


def _longest(dataset: Any) -> int:
    """Token ids of the longest row; 0 where it cannot be known without reading a stream."""
    if not isinstance(dataset, datasets.Dataset) or not len(dataset):
        return 0
    batches = dataset.select_columns(["input_ids"]).with_format("arrow").iter(_LOOKED_AT_ONCE)
    return max(pyarrow.compute.max(pyarrow.compute.list_value_length(batch["input_ids"])).as_py() or 0 for batch in batches)


def row_length(wanted: int | None, limit: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """Token ids per row of text. Raises: UsageError, more are wanted than the models can read.

    Args:
        wanted: what was asked for; None: nothing.
        limit: the most that all models can read.
        tokenizer: its `model_max_length` is not exceeded unless that is asked for.
    """
    if wanted is not None and wanted > limit:
        raise UsageError(f"max_length={wanted} is more than the {limit} tokens that student and teacher can both read.")
    return wanted or min(limit, tokenizer.model_max_length, MAX_DEFAULT_LENGTH)


def readable(models: Sequence[nn.Module]) -> int:
    """The most token ids that all of some models can read; very large when none is limited by a table."""
    return min((_readable(model) for model in models), default=UNLIMITED)


def _readable(model: nn.Module) -> int:
    # RoBERTa and its kin count positions from behind the padding's, so that their tables have rows no text can use.
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    unused = (table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None)
    return max_positions(model.config) - max(unused, default=0)


def max_positions(config: PreTrainedConfig) -> int:
    """The longest input a configuration speaks of; very large when its positions are not limited by a table."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or UNLIMITED


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
    options = {"return_original_ids": True} if is_mapped(tokenizer) else {}

    def tokenised(batch: Mapping[str, list[str]]) -> dict[str, list[list[int]]]:
        texts = [batch[name] for name in columns]
        # A special token that is written out in a text is plain text there.
        rows = tokenizer(*texts, truncation=True, max_length=max_length, split_special_tokens=True, verbose=False, **options)
        return {name: rows[name] for name in ROW_COLUMNS if name in rows}

    return dataset.map(tokenised, batched=True, remove_columns=dataset.column_names, desc="Tokenising texts to classify")
