"""Any corpus -> its texts, one after the other: lists, data sets, files, folders, patterns of files, data sets on the Hub."""

from __future__ import annotations

import glob
import gzip
import itertools
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from hf_glmd.errors import UsageError, nearest

READ_ROWS = 128
"""Rows read from a data set or a .parquet file at once: enough to be quick, few enough that long documents stay out of memory."""

_KINDS = (".txt", ".jsonl", ".parquet")
_PACKED = {".gz": gzip.open, ".xz": lzma.open}
_KNOWN = ".txt (one text per line), .jsonl (both also as .gz or .xz) or .parquet"
_UNREADABLE = "'{path}' cannot be read ({error}): check that it is whole, of the kind its name says, and open to you."
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]*){0,2}")


def read_texts(source: Any, column: str = "text") -> tuple[Iterator[Any], int | None]:
    """The texts of a corpus, read as they are asked for.

    Args:
        source: texts (any iterable of str), rows (dicts with `column`), a `datasets.Dataset` or `IterableDataset`; the path of a
            file (.txt with one text per line, .jsonl, both also as .gz or .xz, or .parquet), of a folder (all such files in it
            and below, sorted by path), a pattern ("data/*.jsonl.gz", "**" for folders of any depth; sorted), or a list of paths
            and patterns; or "name", "name:config", "name:config:split" of a data set on the Hub or in a local folder, which is
            streamed (config: the default one if left out; split: train).
        column: which field of a row holds the text.
    Returns: the value of each row, which is a str or None in a sound corpus; and the number of rows, None if unknown.
    Raises: UsageError, the source is missing, of an unknown kind, or without the column; some of it only when it is read.
    """
    if isinstance(source, Mapping):
        raise UsageError(f"The source holds several splits ({', '.join(map(str, source))}): give one of them.")
    if isinstance(source, str) and _names_a_dataset(source):
        source = _load_dataset(source)
    paths = _paths(source)
    if paths is not None:
        return itertools.chain.from_iterable(_file_rows(path, column) for path in paths), None
    total = len(source) if hasattr(source, "__len__") else None
    if hasattr(source, "column_names") and hasattr(source, "iter"):  # datasets.Dataset and IterableDataset
        return _dataset_rows(source, column), total
    # A data frame is iterable, but over the names of its columns.
    if not isinstance(source, Iterable) or isinstance(source, (bytes, bytearray)) or hasattr(source, "columns"):
        raise UsageError(f"Cannot count {type(source).__name__}: give texts, a data set, or {_KNOWN} files.")
    if hasattr(source, "column_name") and total is not None:  # dataset["text"]: one by one it takes twenty times as long
        return (value for start in range(0, total, READ_ROWS) for value in source[start : start + READ_ROWS]), total
    return (_field(row, column) for row in source), total


def _field(row: Any, column: str) -> Any:
    if not isinstance(row, Mapping):
        return row
    if column not in row:
        raise UsageError(f"A row has no field '{column}'. {nearest(column, map(str, row))}")
    return row[column]


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


def _names_a_dataset(name: str) -> bool:
    if os.path.exists(name) or _kind(name):
        return False
    folder, colon, _ = name.partition(":")
    return _HUB_NAME.fullmatch(name) is not None or (bool(colon) and os.path.isdir(folder))


def _load_dataset(name: str) -> Any:
    import datasets  # takes a second, and only this needs it

    path, config, split = (name.split(":") + ["", ""])[:3]
    try:
        return datasets.load_dataset(path, config or None, split=split or "train", streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
        raise UsageError(
            f"'{name}' is no file or folder, and no data set that can be loaded ({reason}): check the path, or the name, "
            "config and split ('name:config:split'). To count a text itself, give it in a list."
        ) from error


def _paths(source: Any) -> list[Path] | None:
    """The files `source` names, or None if it is something else. A lone str is a path; in a list all have to look like one."""
    if isinstance(source, (str, os.PathLike)):
        return _files(source)
    if not isinstance(source, (list, tuple)) or not source:
        return None
    if not all(isinstance(item, os.PathLike) or (isinstance(item, str) and _looks_like_a_file(item)) for item in source):
        return None
    return [path for item in source for path in _files(item)]


def _files(source: str | os.PathLike[str]) -> list[Path]:
    """The files that one path or pattern stands for."""
    name = os.fspath(source)
    if os.path.isfile(name):
        if _kind(name) is None:
            raise UsageError(f"'{name}' is of an unknown kind: give {_KNOWN}.")
        return [Path(name)]
    if os.path.isdir(name):
        below = (path.relative_to(name) for path in Path(name).rglob("*"))
        found = (Path(name) / path for path in sorted(below) if not any(part.startswith(".") for part in path.parts))
        where = f"The folder '{name}' holds no file to count"
    elif glob.has_magic(name):
        found = map(Path, sorted(glob.glob(name, recursive=True)))
        where = f"No file to count matches '{name[:200]}'"
    else:
        found, where = iter(()), f"There is no file '{name[:200]}' to count"
    files = [path for path in found if _kind(path.name) and path.is_file()]
    if not files:
        hint = "" if _looks_like_a_file(name) else f" Files are {_KNOWN}. To count a text itself, give it in a list."
        raise UsageError(f"{where}: check the path.{hint}")
    return files


def _kind(name: str) -> str | None:
    """.txt, .jsonl or .parquet; None for a file that cannot be read."""
    stem, packed = os.path.splitext(name.lower())
    suffix = os.path.splitext(stem)[1] if packed in _PACKED else packed
    return suffix if suffix in _KINDS and not (packed in _PACKED and suffix == ".parquet") else None


def _looks_like_a_file(name: str) -> bool:
    return _kind(name) is not None and not any(character.isspace() for character in name)


def _open(path: Path) -> IO[str]:
    opener: Any = _PACKED.get(path.suffix.lower(), open)
    return opener(path, "rt", encoding="utf-8-sig")  # a byte order mark is no part of the first text


def _file_rows(path: Path, column: str) -> Iterator[Any]:
    kind = _kind(path.name)
    if kind == ".parquet":
        yield from _parquet_rows(path, column)
        return
    try:
        with _open(path) as lines:
            if kind == ".txt":
                for line in lines:
                    yield line.rstrip("\n")  # reading as text turned \r\n into \n
            else:
                yield from _json_rows(lines, path, column)
    except UnicodeDecodeError as error:
        raise UsageError(f"'{path}' cannot be read as UTF-8 text ({error}): convert it to UTF-8.") from error
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise UsageError(_UNREADABLE.format(path=path, error=error)) from error


def _json_rows(lines: Iterable[str], path: Path, column: str) -> Iterator[Any]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UsageError(f"Line {number} of '{path}' is not JSON ({error}): mend or remove it.") from error
        if isinstance(row, dict) and column not in row:
            raise UsageError(f"Line {number} of '{path}' has no field '{column}'. {nearest(column, row)}")
        yield row[column] if isinstance(row, dict) else row


def _parquet_rows(path: Path, column: str) -> Iterator[Any]:
    from pyarrow import ArrowException, parquet  # comes with datasets

    try:
        with parquet.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise UsageError(f"'{path}' has no column '{column}'. {nearest(column, file.schema_arrow.names)}")
            for batch in file.iter_batches(batch_size=READ_ROWS, columns=[column]):
                yield from batch.column(0).to_pylist()
    except (ArrowException, OSError) as error:
        raise UsageError(_UNREADABLE.format(path=path, error=error)) from error
