"""A trainer's data set as rows of token ids that both models can read: text is tokenised, the rest is looked at."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import pyarrow.compute
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_glmd.data.collators import ROW_COLUMNS
from hf_glmd.data.packing import is_mapped, mapped_rows, pack_blocks, pair_rows, require_column, texts_of
from hf_glmd.data.sources import load_rows, with_text
from hf_glmd.errors import UsageError
from hf_glmd.losses.reference import IGNORE_INDEX

logger = logging.get_logger(__name__)

_LOOKED_AT_ONCE = 10_000


def token_rows(
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase,
    args: Any,
    length: int,
    limit: int,
    classes: bool = False,
    input_rows: int | None = None,
    questions: bool = False,
) -> Any:
    """The data set with a column `input_ids`, or several by name; None stays None.

    Args:
        dataset: of text (`args.text_column`) or of token ids; may be a stream.
        tokenizer: the student's.
        args: a `GLMDConfig`, which says how text is read.
        length: token ids per row of text.
        limit: the most token ids that both models can read.
        classes: each text, or pair of texts, is one row, of which a class is predicted.
        input_rows: rows of the student's input embedding; None: they are not known.
        questions: of the pairs the first text is a question about the second, see `class_rows`.
    Raises: UsageError, there is neither text nor token ids, or a row is longer than `limit`.
    """
    if isinstance(dataset, Mapping) and not isinstance(dataset, datasets.Dataset):
        options = (tokenizer, args, length, limit, classes, input_rows, questions)
        return {name: token_rows(part, *options) for name, part in dataset.items()}
    columns = None if dataset is None else columns_of(dataset)
    if columns is None:
        return dataset
    if "input_ids" in columns:
        check_width(_longest(dataset), limit)
        _check_ids(dataset, input_rows)
        return dataset
    if {"messages"} <= set(columns) or {"prompt", "completion"} <= set(columns):
        with PartialState().local_main_process_first():
            return chat_rows(dataset, tokenizer, length, columns)
    wanted = [name for name in (args.text_column, args.target_column) if name is not None]
    for name in wanted:
        if name not in columns or not hasattr(dataset, "map"):
            raise UsageError(
                f"the dataset has no column '{name}' and no 'input_ids', it has {columns}. Name the column that holds text as "
                f"{'text_column' if name == args.text_column else 'target_column'}."
            )
    for name in (*wanted, *([args.pair_column] if classes and args.pair_column else [])):
        dataset = with_text(dataset, name)
    with PartialState().local_main_process_first():  # the others read what the first one cached
        if classes:
            return class_rows(dataset, tokenizer, length, args.text_column, args.pair_column, questions)
        if args.target_column is not None:
            return pair_rows(dataset, tokenizer, length, args.text_column, args.target_column)
        return pack_blocks(dataset, tokenizer, length, column=args.text_column, separate=args.separate_documents)


def loaded_rows(source: Any, column: str) -> Any:
    """The data a trainer is given as a data set, see `load_rows`; several by name stay several."""
    if isinstance(source, Mapping) and not isinstance(source, datasets.DatasetDict):
        return {name: loaded_rows(part, column) for name, part in source.items()}
    with PartialState().local_main_process_first():  # the others read what the first one cached
        return load_rows(source, column)


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


def _check_ids(dataset: Any, rows: int | None) -> None:
    """Raises: UsageError, a row of ids holds one that no token has."""
    if not isinstance(dataset, datasets.Dataset) or not len(dataset):
        return
    first = 0
    for batch in dataset.select_columns(["input_ids"]).with_format("arrow").iter(_LOOKED_AT_ONCE):
        column = batch["input_ids"].combine_chunks()
        if pyarrow.types.is_nested(column.type.value_type):  # cloze rows of several sequences
            return
        flat = pyarrow.compute.min_max(column.flatten()).as_py()
        if flat["min"] is not None and (flat["min"] < 0 or (rows is not None and flat["max"] >= rows)):
            number = next(
                n for n, ids in enumerate(column.to_pylist()) if ids and (min(ids) < 0 or max(ids) >= (rows or math.inf))
            )
            check_ids(min(column[number].as_py()), max(column[number].as_py()), rows, f" in row {first + number}")
        first += len(batch)


def check_ids(least: int, most: int, rows: int | None, where: str = "") -> None:
    """Raises: UsageError, the least or the largest of some ids is no row of the student's input embedding."""
    if least < 0:
        raise UsageError(f"input_ids hold {least}{where}. Only labels hold -100: give ids of tokens.")
    if rows is not None and most >= rows:
        raise UsageError(
            f"input_ids hold {most}{where}, and the student's input embedding has {rows} rows. Use the student's tokenizer: "
            "vocab_map.to_small(ids) turns ids of the original vocabulary into its ids."
        )


def _longest(dataset: Any) -> int:
    """Token ids of the longest row; 0 where it cannot be known without reading a stream."""
    if not isinstance(dataset, datasets.Dataset) or not len(dataset):
        return 0
    batches = dataset.select_columns(["input_ids"]).with_format("arrow").iter(_LOOKED_AT_ONCE)
    return max(pyarrow.compute.max(pyarrow.compute.list_value_length(batch["input_ids"])).as_py() or 0 for batch in batches)


def class_rows(
    dataset: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    column: str,
    pair_column: str | None = None,
    questions: bool = False,
) -> datasets.Dataset:
    """Tokenises a column, or two, as its model is used to reading them; too long ones are cut at their ends, and it is said.

    Args:
        questions: the first column holds questions about the second, which alone is cut. Tokenizers that pad on the left read the
            question last, as in the examples of transformers.
    Returns: `Dataset` of `input_ids` (list of int) and, where the tokenizer makes them, `token_type_ids`; of a `MappedTokenizer`
        also `original_input_ids`. No other column stays, so no label does.
    Raises: UsageError, a column is missing, or a question leaves no room for its text.
    """
    columns = [column] if pair_column is None else [column, pair_column]
    for name in columns:
        require_column(dataset, name)
    truncation: bool | str = True
    if questions:
        reads_last = tokenizer.padding_side == "left"
        columns, truncation = (columns[::-1], "only_first") if reads_last else (columns, "only_second")
    tokenizer = copy.deepcopy(tokenizer)  # a tokenizer.json that is saved later must not hold this truncation
    options = {"return_original_ids": True} if is_mapped(tokenizer) else {}

    def tokenised(batch: Mapping[str, list[str]]) -> dict[str, list[list[int]]]:
        texts = texts_of(batch, columns)
        if not texts[0]:
            return {"input_ids": []}
        # A special token that is written out in a text is plain text there.
        more = {"max_length": max_length, "split_special_tokens": True, "verbose": False}
        try:
            rows = tokenizer(*texts, truncation=truncation, **more, **options)
        except Exception as error:  # the tokenizers library has no class of its own for this
            if not questions or "runcation" not in str(error):
                raise
            raise UsageError(
                f"a question of column '{column}' leaves no room for its text in max_length={max_length} token ids. Raise "
                "max_length, or leave such rows out."
            ) from error
        if any(encoding.overflowing for encoding in rows.encodings or ()):
            logger.warning_once(f"Texts of more than {max_length} token ids lose their ends: max_length says how many are read.")
        return {name: rows[name] for name in ROW_COLUMNS if name in rows}

    return mapped_rows(dataset, tokenised, desc="Tokenising texts")


def has_completions(dataset: Any) -> bool:
    """Whether rows are prompts with completions."""
    if isinstance(dataset, Mapping) and not isinstance(dataset, datasets.Dataset):
        return any(map(has_completions, dataset.values()))
    return dataset is not None and {"prompt", "completion"} <= set(columns_of(dataset) or ())


def chat_rows(dataset: Any, tokenizer: PreTrainedTokenizerBase, max_length: int, columns: Sequence[str]) -> Any:
    """Chats, and prompts with completions, as rows of token ids and labels, through the tokenizer's template as trl reads them.

    Of `messages` all tokens have labels; of `prompt` and `completion`, each text or messages, those of the completion, which
    ends with the end token. Too long rows lose their ends.

    Returns: the dataset with `input_ids` and `labels` (lists of int, -100: none).
    Raises: UsageError, messages need a chat template and the tokenizer has none.
    """

    def tokenised(row: Mapping[str, Any]) -> dict[str, list[int]]:
        if "messages" in columns:
            ids = _templated(tokenizer, row["messages"])
            return {"input_ids": ids[:max_length], "labels": ids[:max_length]}
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, str):
            before = tokenizer(prompt, verbose=False)["input_ids"]
            end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
            if before[-1:] == end:  # which some tokenizers put behind any text
                before = before[:-1]
            ids = [*before, *tokenizer(completion, add_special_tokens=False, verbose=False)["input_ids"], *end]
        else:
            before = _templated(tokenizer, prompt, add_generation_prompt=True)
            ids = _templated(tokenizer, [*prompt, *completion])
        start = next(
            (n for n, pair in enumerate(zip(before, ids, strict=False)) if pair[0] != pair[1]), min(len(before), len(ids))
        )
        return {"input_ids": ids[:max_length], "labels": [*[IGNORE_INDEX] * start, *ids[start:]][:max_length]}

    names = {} if isinstance(dataset, datasets.IterableDataset) else {"desc": "Tokenising chats"}
    return dataset.map(tokenised, remove_columns=list(columns), **names)


def _templated(tokenizer: PreTrainedTokenizerBase, messages: Any, **options: Any) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "the rows hold messages, and the tokenizer has no chat template. Set tokenizer.chat_template, or give text."
        )
    found = tokenizer.apply_chat_template(messages, tokenize=True, **options)
    return list(found["input_ids"] if isinstance(found, Mapping) else found)
