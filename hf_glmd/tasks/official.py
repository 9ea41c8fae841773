"""How the files of a benchmark look: where they lie, how their rows become flat ones, what is handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_glmd.tasks.submission import LineWriter, label_lines


def one_row(row: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """For files whose lines are examples."""
    yield dict(row)


@dataclass(frozen=True)
class OfficialFormat:
    """One task of a benchmark. Flat rows have the columns of the benchmark's data set on the Hub.

    Attributes:
        folder: of the task in the benchmark's archive, and the stem of the file that is handed in.
        config: configuration of the data set on the Hub (aps/super_glue, nyu-mll/glue).
        flatten: a line of the file -> its examples.
        columns: column of the file -> its name in flat rows.
        headerless: the columns of tsv files that have no header.
        labels: other spellings of the answers -> the task's own.
        lines: predictions -> lines of the file that is handed in.
        suffix: of that file.
        file_names: split -> file name, where it is not FOLDER.SUFFIX for "test".
    """

    folder: str
    config: str
    flatten: Callable[[Mapping[str, Any]], Iterable[dict[str, Any]]] = one_row
    columns: Mapping[str, str] = field(default_factory=dict)
    headerless: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    lines: LineWriter = label_lines
    suffix: str = ".jsonl"
    file_names: Mapping[str, str] = field(default_factory=dict)

    def file_name(self, split: str) -> str:
        """Of the predictions for a split."""
        default = self.folder if split == "test" else f"{self.folder}_{split}"
        return self.file_names.get(split, default + self.suffix)
