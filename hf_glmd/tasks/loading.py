"""A task's data from the Hub or from files in the official format, as flat rows."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Any

import datasets

from hf_glmd.data.files import file_rows, files_of, kind_of, split_of
from hf_glmd.data.sources import load_splits, named, names_a_dataset
from hf_glmd.errors import UsageError
from hf_glmd.tasks.cloze import ClozeTask
from hf_glmd.tasks.examples import answer_key
from hf_glmd.tasks.formats import OfficialFormat

logger = logging.getLogger(__name__)

SPLIT_NAMES = {
    "dev32": "validation",
    "dev_matched": "validation",
    "validation_matched": "validation",
    "dev_mismatched": "validation_mismatched",
    "test_matched": "test",
}
"""What tasks' files and Hub data sets call a split, beside what corpora do. Any other name stays."""


def load_task_data(task: ClozeTask, source: str | os.PathLike[str], config: str | None = None) -> datasets.DatasetDict:
    """Loads a task's data: every split there is, none cut off another.

    Flat rows have the columns of the benchmark's data set on the Hub and those that the task derives; `idx` is kept, or the
    number of the row. Answers are spelled as the task spells them. A split without any label has no label column.

    Args:
        task: its `official` says how nested files and their labels are read; without it rows are taken as they are.
        source: a file, see `hf_glmd.data.files`; a folder or pattern of files named after their splits; a folder with one such
            folder for each task of the benchmark; what `save_to_disk` of a data set wrote; or a data set on the Hub.
        config: configuration of a data set on the Hub. Default: the task's official one.
    Raises: UsageError, there is nothing to read, or a row is not what it should be.
    """
    source = os.fspath(source)
    if names_a_dataset(source):
        found = load_splits(source, config or (task.official.config if task.official else None), what="task data")
        found = {SPLIT_NAMES.get(split, split): part for split, part in found.items()}
    else:
        with named("task data", source):
            found = {split: _read(file, task) for split, file in _files(source, task.official).items()}
    return datasets.DatasetDict({split: examples_of(part, task) for split, part in found.items()})


def _files(source: str, official: OfficialFormat | None) -> dict[str, Path]:
    """Split -> file."""
    if official is not None and (Path(source) / official.folder).is_dir():
        source = os.path.join(source, official.folder)
    found: dict[str, Path] = {}
    for file in files_of(source):
        split = SPLIT_NAMES.get(split_of(file), split_of(file))
        if split in found:
            raise UsageError(f"'{found[split]}' and '{file}' are both the split '{split}'. Move one of them away.")
        found[split] = file
    return found


def _read(file: Path, task: ClozeTask) -> datasets.Dataset:
    """Raises: UsageError, the file is damaged, empty, or a line is not in the official format."""
    official = task.official
    if kind_of(file.name) == ".parquet":  # as on the Hub
        return load_splits(file)["train"]
    rows: list[dict[str, Any]] = []
    for number, (_, line) in enumerate(file_rows(file, headerless=official.headerless if official else ())):
        try:
            rows += official.flatten(line) if official else [line]
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


def examples_of(part: datasets.Dataset, task: ClozeTask) -> datasets.Dataset:
    """Rows with the columns and the labels that the task reads; says how many have an empty text."""
    for name in set(task.columns) & set(part.column_names):
        if empty := sum(value in (None, "") for value in part[name][:]):
            logger.warning("%d of %d examples of task %s have nothing in column '%s'.", empty, len(part), task.name, name)
    return task.prepared(_with_labels(part, task))


def _with_labels(part: datasets.Dataset, task: ClozeTask) -> datasets.Dataset:
    """labels in the task's spelling; no column of them if no row has one."""
    column = task.label_column
    if column not in part.column_names:
        return part
    feature = part.features[column]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    known = dict(task.official.labels) if task.official else {}

    def spelled(value: Any) -> Any:
        if isinstance(value, float):  # of a column of numbers in which some are missing, as pandas writes it
            value = None if math.isnan(value) else int(value) if value.is_integer() else value
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
