"""Any corpus -> its texts, or its rows: lists, data sets, files, folders, patterns of files, data sets on the Hub."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_glmd.data.files import (
    KNOWN,
    READ_ROWS,
    SPLIT_NAMES,
    checked_rows,
    file_rows,
    files_of,
    kind_of,
    looks_like_a_file,
    schema_of,
    split_of,
    text_of,
)
from hf_glmd.errors import UsageError, nearest

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
"""What files of a folder may be named after; all others belong to `train`."""

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]*){0,2}")


def read_texts(source: Any, column: str = "text") -> tuple[Iterator[str], int | None]:
    """The texts of a corpus, read as they are asked for.

    Args:
        source: texts (any iterable of str), rows (dicts with `column`), a data set of `datasets` (of a `DatasetDict`, or a folder
            that it was saved to, the split `train`); the path of a file (.txt with one text per line, .jsonl, .json, .csv, .tsv
            or .parquet, each also as .gz, .xz, .bz2 or .zst), of a folder (all such files in it and below, sorted by path), a
            pattern ("data/*.jsonl.gz", "**" for folders of any depth; sorted), or a list of paths and patterns; or "name",
            "name:config", "name:config:split" of a data set on the Hub or in a local folder, which is streamed (config: the
            default one if left out; split: train); or "docstrings", of installed libraries.
        column: which field of a row holds the text.
    Returns: the text of each row, "" where it has none; and the number of rows, None if unknown.
    Raises: UsageError, the source is missing, of an unknown kind, without the column, or holds something other than text; some of
        it only when it is read.
    """
    name = f" of '{source}'" if isinstance(source, (str, os.PathLike)) else ""
    if isinstance(source, (str, os.PathLike)) and names_a_dataset(os.fspath(source)):
        source = _loaded(os.fspath(source), stream=True)
    if isinstance(source, Mapping):
        source = _train_of(source)
    paths = _paths(source)
    if paths is not None:
        return (row[column] or "" for path in paths for row in checked_rows(path, column, required=True)), None
    total = len(source) if hasattr(source, "__len__") else None
    _refuse_others(source)
    if hasattr(source, "column_names") and hasattr(source, "iter"):  # datasets.Dataset and IterableDataset
        values: Iterator[Any] = _dataset_rows(source, column)
    elif hasattr(source, "column_name") and total is not None:  # dataset["text"]: one by one it takes twenty times as long
        values = (value for start in range(0, total, READ_ROWS) for value in source[start : start + READ_ROWS])
    else:
        values = (_field(row, column, number) for number, row in enumerate(source))
    return _checked(values, name), total


def load_splits(
    name: str | os.PathLike[str], config: str | None = None, column: str | None = None, what: str = "corpus"
) -> datasets.DatasetDict:
    """Loads a corpus, or rows of token ids, with the splits it has, kept on disk by `datasets`.

    Args:
        name: a file, a folder or pattern of files ("train", "validation" or "test" if they are named so; "val", "dev" and "valid"
            become "validation"), what `save_to_disk` of a data set wrote, a data set on the Hub ("name", "name:config",
            "name:config:split"), or "docstrings".
        config: configuration of a data set on the Hub.
        column: of the text, if there is one: rows without text are left out.
        what: it is, in messages.
    Raises: UsageError, there is nothing of that name, it is empty, or the column holds something other than text.
    """
    name = os.fspath(name)
    with named(what, name):
        path, config_named, split = _parts(name)
        if names_a_dataset(path):
            found = _loaded(name, config)
        elif (config or config_named or "default") != "default":
            raise UsageError(f"'{path}' holds files, which have no configuration '{config or config_named}'. Leave it out.")
        else:
            found = _one_of(_from_files(files_of(path), column), split, path)
        found = {SPLIT_NAMES.get(split, split): part for split, part in found.items()}
        if column is not None:
            found = {split: with_text(part, column, f"'{name}'") for split, part in found.items()}
        if not any(map(len, found.values())):
            raise UsageError(f"'{name}' is empty: it has no row with a text. Give one with texts.")
    import datasets

    return datasets.DatasetDict(found)


def load_rows(source: Any, column: str = "text") -> Any:
    """A data set of whatever `read_texts` takes, for training: with its length and all columns, but for streams.

    What is a data set already, of `datasets` or of torch, stays as it is. An iterator is read to its end.
    """
    import datasets
    from torch.utils.data import Dataset

    if isinstance(source, datasets.DatasetDict):
        return _train_of(source)
    if isinstance(source, (str, os.PathLike)):
        return _train_of(load_splits(source, column=column))
    if (paths := _paths(source)) is not None:
        return with_text(_dataset(paths, column), column, "the files")
    if source is None or hasattr(source, "column_names") or isinstance(source, Dataset) or not hasattr(source, "__iter__"):
        return source
    _refuse_others(source)
    rows = list(source)
    if rows and isinstance(rows[0], Mapping) and column not in rows[0]:  # of token ids
        return rows
    texts = list(read_texts(rows, column)[0])
    rows = [row if isinstance(row, Mapping) else {} for row in rows]
    return datasets.Dataset.from_list([{**row, column: text} for row, text in zip(rows, texts, strict=True)])


def with_text(data: Any, column: str, name: str = "the data set") -> Any:
    """A data set without the rows that have no text in a column, of which it says how many; as it is without the column.

    Raises: UsageError, a row has something other than a text or null.
    """
    if not hasattr(data, "select") or column not in data.column_names:
        return data
    chosen = np.flatnonzero(np.fromiter(map(bool, _checked(_dataset_rows(data, column), f" of {name}")), bool, len(data)))
    say_empty(len(data) - len(chosen), len(data), name)
    return data if len(chosen) == len(data) else data.select(chosen)


def say_empty(empty: int, rows: int, name: str) -> None:
    """Says how many rows of a corpus are left out because they have no text."""
    if empty:
        logger.warning("%s of %s rows of %s have no text and are left out.", f"{empty:,}", f"{rows:,}", name)


def describe(source: Any) -> str:
    """What a corpus is called in messages."""
    return f"'{source}'" if isinstance(source, (str, os.PathLike)) else "the corpus"


@contextmanager
def named(what: str, name: str) -> Iterator[None]:
    """What cannot be loaded is named at the beginning of the message."""
    try:
        yield
    except UsageError as error:
        reason = str(error)
        raise UsageError(f"{what} '{name}' cannot be loaded: {reason[0].lower()}{reason[1:]}") from error


def _checked(values: Iterable[Any], name: str) -> Iterator[str]:
    for number, value in enumerate(values):
        yield value if isinstance(value, str) else text_of(value, f"Row {number}{name}")


def _train_of(splits: Mapping[Any, Any]) -> Any:
    """The split train, or the only one."""
    if len(splits) > 1 and "train" not in splits:
        raise UsageError(f"The source holds several splits ({', '.join(map(str, splits))}) and none is train: give one of them.")
    return splits.get("train", next(iter(splits.values())))


def _refuse_others(source: Any) -> None:
    # A data frame is iterable, but over the names of its columns.
    if not isinstance(source, Iterable) or isinstance(source, (bytes, bytearray)) or hasattr(source, "columns"):
        raise UsageError(f"Cannot count {type(source).__name__}: give texts, a data set, or {KNOWN} files.")


def _field(row: Any, column: str, number: int) -> Any:
    if isinstance(row, Mapping) and column not in row:
        raise UsageError(f"Row {number} has no field '{column}'. {nearest(column, map(str, row))}")
    return row[column] if isinstance(row, Mapping) else row


def _dataset_rows(data: Any, column: str) -> Iterator[Any]:
    data = data.with_format(None)
    if data.column_names is not None:  # None: a stream that shows its columns only in its rows
        _require_column(column, data.column_names)
        data = data.select_columns([column])
    # In batches: one row at a time, a stream of `datasets` is slower than some tokenizers.
    for batch in data.iter(batch_size=READ_ROWS):
        _require_column(column, batch)
        yield from batch[column]


def _require_column(column: str, columns: Iterable[str]) -> None:
    if column not in columns:
        raise UsageError(f"The data set has no column '{column}'. {nearest(column, columns)}")


def _is_saved(folder: str) -> bool:
    """Whether `save_to_disk` of a data set wrote it."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in ("dataset_dict.json", "state.json"))


def _parts(name: str) -> tuple[str, str, str]:
    """Path or name, config and split, the last two perhaps empty."""
    return (name, "", "") if os.path.exists(name) else (*name.split(":", 2), "", "")[:3]


def names_a_dataset(name: str) -> bool:
    """Whether it names a data set on the Hub, or one that was saved to disk, rather than files."""
    if os.path.exists(name) or kind_of(name):
        return _is_saved(name)
    folder, colon, _ = name.partition(":")
    return _HUB_NAME.fullmatch(name) is not None or (bool(colon) and os.path.isdir(folder))


def _loaded(name: str, config: str | None = None, stream: bool = False) -> Any:
    """The splits that were saved to disk or lie on the Hub, or the one that is named; of a stream that one, or train."""
    import datasets  # takes a second, and only this needs it

    from hf_glmd.data.docstrings import docstring_corpus

    path, named, split = _parts(name)
    try:
        if path == "docstrings":
            found = docstring_corpus()
        elif _is_saved(path):
            found = datasets.load_from_disk(path)
            found = found if isinstance(found, Mapping) else {"train": found}
        elif stream:
            return datasets.load_dataset(path, named or None, split=split or "train", streaming=True)
        else:
            found = datasets.load_dataset(path, config or named or None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if "/" in path and os.path.isdir(os.path.dirname(path)) and not os.path.exists(path):
            raise UsageError(f"There is no file or folder '{path}': check the path.") from None
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
        raise UsageError(
            f"'{name}' is no file or folder, and no data set that can be loaded ({reason}): check the path, or the name, "
            "config and split ('name:config:split')."
        ) from error
    return _one_of(found, split, path)


def _one_of(splits: Mapping[Any, Any], split: str, name: str) -> dict[Any, Any]:
    if split and split not in splits:
        raise UsageError(f"'{name}' has the splits {list(splits)}, not '{split}'. Name one of them.")
    return {split: splits[split]} if split else dict(splits)


def _from_files(files: list[Path], column: str | None) -> dict[str, Any]:
    by_split: dict[str, list[Path]] = {}
    for file in files:
        split = split_of(file) if len(files) > 1 else "train"
        by_split.setdefault(split if split in SPLITS else "train", []).append(file)
    return {split: _dataset(part, column) for split, part in by_split.items()}


def _dataset(files: list[Path], column: str | None) -> Any:
    import datasets

    name, files = files[0], [file for file in files if any(True for _ in file_rows(file))]
    if not files:
        raise UsageError(f"'{name}' is empty. Give a file with texts.")
    schema = schema_of(files, column)
    # Size and time are part of the name under which `datasets` keeps the rows: a file that has changed is read again.
    stamps = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    features = datasets.Features.from_arrow_schema(schema)
    try:
        arguments = {"files": stamps, "column": column, "names": tuple(schema.names)}
        return datasets.Dataset.from_generator(_rows, features=features, gen_kwargs=arguments)
    except datasets.exceptions.DatasetGenerationError as error:
        raise error.__cause__ if isinstance(error.__cause__, UsageError) else error from None


def _rows(files: list[tuple[str, int, int]], column: str | None, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for file, _, _ in files:
        for row in checked_rows(Path(file), column):
            yield {name: row.get(name) for name in names}


def _paths(source: Any) -> list[Path] | None:
    """The files `source` names, or None if it is something else. A lone str is a path; in a list all have to look like one."""
    if isinstance(source, (str, os.PathLike)):
        return files_of(source)
    if not isinstance(source, (list, tuple)) or not source:
        return None
    if not all(isinstance(item, os.PathLike) or (isinstance(item, str) and looks_like_a_file(item)) for item in source):
        return None
    return [path for item in source for path in files_of(item)]
