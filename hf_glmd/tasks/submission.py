"""Predictions as the files that the benchmarks' servers take.

Source: the FAQ of https://super.gluebenchmark.com and of https://gluebenchmark.com; labels are spelled as jiant spells them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np

if TYPE_CHECKING:
    from hf_glmd.tasks.cloze import ClozeTask

LineWriter = Callable[[Sequence[Any], Sequence[str]], Iterable[str]]
"""The `idx` and the predicted answer of each example -> the lines of the file."""


def write_predictions(
    task: ClozeTask, data: datasets.Dataset, chosen: np.ndarray, folder: str | os.PathLike[str], split: str = "test"
) -> Path:
    """Writes the predictions for one split: jsonl, for GLUE tsv.

    Args:
        task: without an official format each line is `{"idx": ..., "label": ...}`.
        data: the examples; labels are not read. Without `idx` they are numbered.
        chosen: int64 [n], the chosen candidate of each, e.g. of `predict_answers`.
        folder: made if it is not there.
        split: the file of "test" has the name the server wants, e.g. CB.jsonl; others are named after the split too.
    Returns: the file's path.
    Raises: UsageError, data and answers differ in length.
    """
    answers = task.predictions(data, np.asarray(chosen))
    indices = data["idx"][:] if "idx" in data.column_names else list(range(len(data)))
    if task.official is None:
        name, lines = f"{task.name}_{split}.jsonl", label_lines(indices, answers)
    else:
        name, lines = task.official.file_name(split), task.official.lines(indices, answers)
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(unfinished, path)
    return path


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
