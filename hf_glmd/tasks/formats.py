"""How the files of a benchmark look: where they lie, how their rows become flat ones, what is handed in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


def one_row(row: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """For files whose lines are examples."""
    yield dict(row)


LineWriter = Callable[[Sequence[Any], Sequence[str]], Iterable[str]]
"""The `idx` and the predicted answer of each example -> the lines of the file."""


def label_lines(indices: Sequence[Any], answers: Sequence[str]) -> Iterable[str]:
    """The answer as text: "entailment", "true"."""
    return (json.dumps({"idx": idx, "label": answer}) for idx, answer in zip(indices, answers, strict=True))


def capitalised_lines(indices: Sequence[Any], answers: Sequence[str]) -> Iterable[str]:
    """WSC: "True" and "False"."""
    return label_lines(indices, [answer.capitalize() for answer in answers])


def number_lines(indices: Sequence[Any], answers: Sequence[str]) -> Iterable[str]:
    """COPA: 0 and 1."""
    return (json.dumps({"idx": idx, "label": int(answer)}) for idx, answer in zip(indices, answers, strict=True))


def query_lines(indices: Sequence[Any], answers: Sequence[str]) -> Iterable[str]:
    """ReCoRD: the answer's text for each query."""
    return label_lines([idx["query"] for idx in indices], answers)


def question_lines(indices: Sequence[Any], answers: Sequence[str]) -> Iterable[str]:
    """MultiRC: a line for each passage, with its questions and their answer options."""
    passages: dict[int, dict[int, list[dict[str, int]]]] = {}
    for idx, answer in zip(indices, answers, strict=True):
        options = passages.setdefault(idx["paragraph"], {}).setdefault(idx["question"], [])
        options.append({"idx": idx["answer"], "label": int(answer)})
    for passage, questions in passages.items():
        nested = [{"idx": question, "answers": options} for question, options in questions.items()]
        yield json.dumps({"idx": passage, "passage": {"questions": nested}})


def table_lines(indices: Sequence[Any], answers: Sequence[str]) -> Iterable[str]:
    """GLUE: a header, then index and answer with a tab between them."""
    yield "index\tprediction"
    yield from (f"{idx}\t{answer}" for idx, answer in zip(indices, answers, strict=True))


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
