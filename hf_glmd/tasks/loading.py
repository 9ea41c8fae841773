"""A task's data from the Hub or from files in the official format, as flat rows."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import logging
import lzma
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets

from hf_glmd.errors import UsageError
from hf_glmd.tasks.cloze import ClozeTask
from hf_glmd.tasks.examples import answer_key
from hf_glmd.tasks.formats import OfficialFormat

logger = logging.getLogger(__name__)

SPLIT_NAMES = {
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "dev32": "validation",
    "dev_matched": "validation",
    "validation_matched": "validation",
    "dev_mismatched": "validation_mismatched",
    "test_matched": "test",
}
"""What files and Hub data sets call a split -> what it is called here. Any other name stays."""

_UNPACKED: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".xz": lzma.decompress, ".bz2": bz2.decompress}


def load_task_data(task: ClozeTask, source: str | os.PathLike[str], config: str | None = None) -> datasets.DatasetDict:
    """Loads a task's data: every split there is, none cut off another.

    Flat rows have the columns of the benchmark's data set on the Hub and those that the task derives; `idx` is kept, or the
    number of the row. Answers are spelled as the task spells them. A split without any label has no label column.

    Args:
        task: its `official` says how nested files and their labels are read; without it rows are taken as they are.
        source: a file (.jsonl, .tsv without quoting, .csv; also with .gz, .xz or .bz2), a folder of files named after their
            splits, a folder with one such folder for each task of the benchmark, or a data set on the Hub.
        config: configuration of a data set on the Hub. Default: the task's official one.
    Raises: UsageError, there is nothing to read, or a row is not what it should be.
    """
    path = Path(source)
    if path.exists():
        found = {split: _read(file, task) for split, file in _files(path, task.official).items()}
    else:
        found = _from_hub(str(source), config or (task.official.config if task.official else None))
    return datasets.DatasetDict({split: task.prepared(_with_labels(part, task)) for split, part in found.items()})


def _from_hub(name: str, config: str | None) -> dict[str, datasets.Dataset]:
    try:
        found = datasets.load_dataset(name, config)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
        raise UsageError(
            f"task data '{name}' cannot be loaded: {reason}. Give a folder, a file, or a data set on the Hub."
        ) from error
    return {SPLIT_NAMES.get(split, split): part for split, part in found.items()}


def _files(path: Path, official: OfficialFormat | None) -> dict[str, Path]:
    """Split -> file."""
    if path.is_file():
        files = [path]
    else:
        if official is not None and (path / official.folder).is_dir():
            path = path / official.folder
        files = sorted(file for file in path.iterdir() if file.is_file() and _ending(file) in _READERS)
    if not files or _ending(files[0]) not in _READERS:
        raise UsageError(
            f"'{path}' has no task data to read. Known endings: {', '.join(_READERS)}, also with {', '.join(_UNPACKED)}."
        )
    found: dict[str, Path] = {}
    for file in files:
        stem = file.name.split(".")[0].lower()
        split = SPLIT_NAMES.get(stem, stem)
        if split in found:
            raise UsageError(f"'{found[split]}' and '{file}' are both the split '{split}'. Move one of them away.")
        found[split] = file
    return found


def _ending(file: Path) -> str:
    suffixes = [suffix for suffix in file.suffixes if suffix not in _UNPACKED]
    return suffixes[-1] if suffixes else ""


def _read(file: Path, task: ClozeTask) -> datasets.Dataset:
    """Raises: UsageError, the file is damaged, empty, or a line is not in the official format."""
    official = task.official
    try:
        data = _UNPACKED.get(file.suffix, bytes)(file.read_bytes()).decode("utf-8-sig")
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise UsageError(f"'{file}' cannot be read: {error}. Give a file of UTF-8 text, packed or not.") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_READERS[_ending(file)](data, file, official)):
        try:
            rows += official.flatten(line) if official else [dict(line)]
        except (KeyError, TypeError, AttributeError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise UsageError(f"row {number} of '{file}' is not as task {task.name} has them: it {reason}.") from error
    if not rows:
        raise UsageError(f"'{file}' is empty. Give a file with examples.")
    renamed = dict(official.columns) if official else {}
    columns = dict.fromkeys(name for row in rows for name in row)
    table = {renamed.get(name, name): [row.get(name) for row in rows] for name in columns}
    if "idx" not in table:
        numbers = [str(number) for number in table.pop("index", range(len(rows)))]
        table["idx"] = [int(number) if number.isdigit() else number for number in numbers]
    try:
        return datasets.Dataset.from_dict(table)
    except (TypeError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"'{file}' has a column of several types: {reason}. Make them one type.") from error


def _json_lines(data: str, file: Path, official: OfficialFormat | None) -> Iterator[dict[str, Any]]:
    # Not splitlines(): texts may hold U+2028, which is no end of a line in JSON.
    for number, line in enumerate(data.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UsageError(f"line {number} of '{file}' is not JSON: {error}. Give one object per line.") from error
            if not isinstance(row, dict):
                raise UsageError(f"line {number} of '{file}' is a {type(row).__name__}. Give one object per line.")
            yield row


def _tab_lines(data: str, file: Path, official: OfficialFormat | None) -> Iterator[dict[str, str]]:
    """GLUE's files: tabs between fields, quotation marks are text."""
    lines = [line.removesuffix("\r").split("\t") for line in data.split("\n") if line.strip()]
    if not lines:
        return
    # Of CoLA's files the test split alone has a header.
    headerless = official is not None and official.headerless and len(lines[0]) == len(official.headerless)
    header = list(official.headerless) if headerless else lines.pop(0)
    broken = [line for line in lines if len(line) != len(header)]
    if broken:
        logger.warning(
            "%d of %d rows of %s have another number of fields than the header and are left out, first %r.",
            len(broken),
            len(lines),
            file,
            "\t".join(broken[0])[:80],
        )
    yield from (dict(zip(header, line, strict=True)) for line in lines if len(line) == len(header))


def _csv_lines(data: str, file: Path, official: OfficialFormat | None) -> Iterable[dict[str, str]]:
    return csv.DictReader(io.StringIO(data, newline=""))


_READERS: dict[str, Callable[[str, Path, OfficialFormat | None], Iterable[Mapping[str, Any]]]] = {
    ".jsonl": _json_lines,
    ".tsv": _tab_lines,
    ".csv": _csv_lines,
}


def _with_labels(part: datasets.Dataset, task: ClozeTask) -> datasets.Dataset:
    """labels in the task's spelling; no column of them if no row has one."""
    column = task.label_column
    if column not in part.column_names:
        return part
    feature = part.features[column]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    known = dict(task.official.labels) if task.official else {}

    def spelled(value: Any) -> Any:
        if value in (None, "", []) or (value == -1 and (names is not None or task.official is not None)):
            return None  # -1: what test splits on the Hub have for a label
        if names is not None:
            value = names[value]
        if isinstance(value, list) or task.official is None:
            return value
        value = str(value) if names is not None else answer_key(value)
        return known.get(value, value)

    labels = [spelled(value) for value in part[column][:]]
    part = part.remove_columns(column)
    return part if all(label is None for label in labels) else part.add_column(column, labels)
