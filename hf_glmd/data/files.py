"""Files in any of the usual formats and compressions -> their rows, each with the number of its line."""

from __future__ import annotations

import csv
import glob
import io
import itertools
import json
import logging
import lzma
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow
from pyarrow import parquet

from hf_glmd.errors import UsageError, nearest

logger = logging.getLogger(__name__)

READ_ROWS = 128
"""Rows read from a data set or a .parquet file at once: enough to be quick, few enough that long documents stay out of memory."""

KNOWN = ".txt (one text per line), .jsonl, .json, .csv, .tsv or .parquet, each also as .gz, .xz, .bz2 or .zst"

SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}
"""What files and data sets call a split -> what it is called here. Any other name stays."""

_COMPRESSIONS = {".gz": "gzip", ".xz": "xz", ".bz2": "bz2", ".zst": "zstd"}
_TYPES_AT_ONCE = 10_000
_JSON = json.JSONDecoder(parse_constant=lambda name: None)  # NaN: there is nothing, as pandas writes it


def kind_of(name: str) -> str | None:
    """.txt, .jsonl, .json, .csv, .tsv or .parquet; None for a file that cannot be read."""
    stem, suffix = os.path.splitext(name.lower())
    suffix = os.path.splitext(stem)[1] if suffix in _COMPRESSIONS else suffix
    return suffix if suffix in _READERS else None


def looks_like_a_file(name: str) -> bool:
    return kind_of(name) is not None and not any(character.isspace() for character in name)


def files_of(source: str | os.PathLike[str]) -> list[Path]:
    """The files that one path, folder (with all below it) or pattern stands for, sorted.

    Raises: UsageError, there is none.
    """
    name = os.fspath(source)
    if os.path.isfile(name):
        if kind_of(name) is None:
            raise UsageError(f"'{name}' is of an unknown kind, no file to read: give {KNOWN}.")
        return [Path(name)]
    if os.path.isdir(name):
        below = (path.relative_to(name) for path in Path(name).rglob("*"))
        found = (Path(name) / path for path in sorted(below) if not any(part.startswith(".") for part in path.parts))
        where = f"The folder '{name}' holds no file to read"
    elif glob.has_magic(name):
        found, where = map(Path, sorted(glob.glob(name, recursive=True))), f"No file to read matches '{name[:200]}'"
    else:
        found, where = iter(()), f"There is no file '{name[:200]}'"
    files = [path for path in found if kind_of(path.name) and path.is_file()]
    if not files:
        hint = "" if looks_like_a_file(name) else f" Files are {KNOWN}. In Python, a text itself: give it in a list."
        raise UsageError(f"{where}: check the path.{hint}")
    return files


def split_of(path: Path) -> str:
    """The split a file is named after: "validation" of val.jsonl.gz and of validation-00000-of-00002.parquet."""
    stem = re.sub(r"-\d+-of-\d+$", "", path.name.split(".")[0].lower())
    return SPLIT_NAMES.get(stem, stem)


def text_of(value: Any, where: str) -> str:
    """The text that a row holds; "" for null and NaN.

    Args:
        where: which row, for the message.
    Raises: UsageError, it is something else.
    """
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    raise UsageError(
        f"{where} is of type {type(value).__name__} ({str(value)[:40]}), not a text: make it a string or null, or name the "
        "column that holds the text."
    )


def checked_rows(path: Path, column: str | None, required: bool = False) -> Iterator[dict[str, Any]]:
    """The rows of a file. From the first on that has the text column all must have it, with a text in it; null where it is empty.

    Args:
        required: the first row must have it, too, and no other column need be read.
    Raises: UsageError, one has not.
    """
    for number, row in file_rows(path, column or "text", only_column=required):
        required = required or column in row
        if required:
            text = row.get(column)
            row[column] = (text if isinstance(text, str) else _text_in(row, column, path, number)) or None
        yield row


def _text_in(row: dict[str, Any], column: str, path: Path, number: int) -> str:
    where = f"{'Row' if kind_of(path.name) in ('.json', '.parquet') else 'Line'} {number} of '{path}'"
    if column not in row:
        raise UsageError(f"{where} has no field '{column}'. {nearest(column, map(str, row))}")
    return text_of(row[column], where)


def schema_of(files: Sequence[Path], column: str | None) -> pyarrow.Schema:
    """Names and types of the columns of all files. Raises: UsageError, a column has several types, or a file cannot be read."""
    found: list[pyarrow.Schema] = []  # one at most; names of classes are those of the first file
    for file in files:
        try:
            for schema in _schemas(file, column):
                found = [pyarrow.unify_schemas([*found, schema], promote_options="permissive")]
        except (pyarrow.ArrowException, OverflowError) as error:
            why = str(error).splitlines()[0]
            raise UsageError(f"'{file}' has a column of several types, or with other files ({why}): make them one.") from error
    return found[0]


def _schemas(path: Path, column: str | None) -> Iterator[pyarrow.Schema]:
    kind = kind_of(path.name)
    if kind == ".txt":
        yield pyarrow.schema({column or "text": pyarrow.string()})
    elif kind == ".parquet":
        with _opened(path) as file:
            yield parquet.read_schema(file)
    else:
        rows = checked_rows(path, column)
        if kind in (".csv", ".tsv"):
            yield pyarrow.schema({name: pyarrow.string() for row in itertools.islice(rows, 1) for name in row})
        while kind in (".json", ".jsonl") and (batch := list(itertools.islice(rows, _TYPES_AT_ONCE))):
            yield pyarrow.schema(pyarrow.array(batch).type)


def file_rows(
    path: Path, column: str = "text", only_column: bool = False, headerless: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file, read as they are asked for, and the number of each one's line, or its own.

    Args:
        column: what the lines of a .txt file, and strings in a .jsonl file, are rows of.
        only_column: other columns need not be read.
        headerless: the columns of a .tsv file whose first line is no header but has that many fields.
    Raises: UsageError, the file is damaged, not UTF-8, or not of the kind that its name says.
    """
    kind = kind_of(path.name)
    try:
        with _opened(path) as file:
            if kind != ".parquet":  # of tables, which end a line in their own way, newlines are left as they are
                newline = {".csv": "", ".tsv": "\n"}.get(kind)
                file = io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline)  # a byte order mark is no text
            yield from _READERS[kind](file, path, column, headerless, only_column)
    except UnicodeDecodeError as error:
        number, error = _undecodable(path) or (1, error)
        raise UsageError(
            f"'{path}' cannot be read as UTF-8 text (line {number}: {error}): convert it to UTF-8, e.g. with iconv."
        ) from error
    except (EOFError, OSError, pyarrow.ArrowException, lzma.LZMAError, csv.Error) as error:
        why = "check that it is whole, of the kind its name says, and open to you"
        raise UsageError(f"'{path}' cannot be read ({error}): {why}.") from error


def _opened(path: Path) -> IO[bytes]:
    compression = _COMPRESSIONS.get(path.suffix.lower())
    if compression == "xz":
        return lzma.open(path)
    return io.BufferedReader(pyarrow.input_stream(str(path), compression=compression)) if compression else path.open("rb")


def _undecodable(path: Path) -> tuple[int, UnicodeDecodeError] | None:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return number, error
    return None


def _txt(lines: IO[str], path: Path, column: str, *_: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        yield number, {column: line.rstrip("\n")}  # reading as text turned \r\n into \n


def _jsonl(lines: IO[str], path: Path, column: str, *_: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = _JSON.decode(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"Line {number} of '{path}' is not JSON ({error}): mend or remove it.") from error
            yield number, row if isinstance(row, dict) else _object(row, f"Line {number} of '{path}'", column)


def _json(file: IO[str], path: Path, column: str, *rest: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    content = file.read()
    try:
        rows = _JSON.decode(content)
    except (ValueError, RecursionError):
        yield from _jsonl(io.StringIO(content), path, column)
        return
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], start=1):
        yield number, _object(row, f"Row {number} of '{path}'", column)


def _object(row: Any, where: str, column: str) -> dict[str, Any]:
    if isinstance(row, str):
        return {column: row}
    if not isinstance(row, dict):
        raise UsageError(f"{where} is a {type(row).__name__}. Give one object per line, with a field for the text.")
    return row


def _csv(lines: IO[str], path: Path, *_: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)  # of the module, for want of one of the reader
    reader = csv.DictReader(lines)
    for row in reader:
        if None in row:
            raise UsageError(f"Line {reader.line_num} of '{path}' has more fields than the header: quote those with commas.")
        yield reader.line_num, row


def _tsv(lines: IO[str], path: Path, column: str, headerless: Sequence[str], *_: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """As in GLUE: tabs between fields, quotation marks are text."""
    header, rows, broken = None, 0, []
    for number, line in enumerate(lines, start=1):
        fields = line.removesuffix("\n").removesuffix("\r").split("\t")
        if not line.strip():
            continue
        if header is None:
            header = list(headerless) if len(fields) == len(headerless) else fields
            if header is fields:
                continue
        rows += 1
        if len(fields) == len(header):
            yield number, dict(zip(header, fields, strict=True))
        else:
            broken.append(line[:80].rstrip())
    if broken:
        logger.warning(
            "%d of %d rows of %s have another number of fields than the header and are left out, first %r.",
            len(broken),
            rows,
            path,
            broken[0],
        )


def _parquet(
    file: IO[bytes], path: Path, column: str, headerless: Sequence[str], only_column: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
    packed = path.suffix.lower() in _COMPRESSIONS
    with parquet.ParquetFile(pyarrow.BufferReader(file.read()) if packed else path) as table:
        names = [column] if only_column else None
        if only_column and column not in table.schema_arrow.names:
            raise UsageError(f"'{path}' has no column '{column}'. {nearest(column, table.schema_arrow.names)}")
        batches = table.iter_batches(batch_size=READ_ROWS, columns=names)
        yield from enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches), start=1)


_READERS: dict[str | None, Callable[..., Iterator[tuple[int, dict[str, Any]]]]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
