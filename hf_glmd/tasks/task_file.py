"""A task beside the student that learnt it: cloze_task.json, from which `ClozeClassifier` asks the same questions."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_glmd.errors import UsageError
from hf_glmd.tasks.catalogue import task_by_name
from hf_glmd.tasks.cloze import ClozeTask
from hf_glmd.tasks.metrics import METRICS
from hf_glmd.utils.files import read_json, write_json

TASK_FILE = "cloze_task.json"

_OF_CODE = ("metric", "derive", "official")
"""Attributes that are functions: the metric is written by its name, the others with that of the task they come with."""


@dataclass
class SavedTask:
    """A task as a student learnt it.

    Attributes:
        task: what is asked.
        patterns: numbers of the patterns that were used; their answers are averaged.
        max_length: token ids per question.
    """

    task: ClozeTask
    patterns: list[int]
    max_length: int

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes cloze_task.json. Raises: UsageError, a part of the task is a function, which no file can hold."""
        task = self.task
        if METRICS.get(task.metric_name) is not task.metric:
            raise UsageError(f"the metric of task {task.name} is a function of yours: name one of {', '.join(METRICS)}.")
        fields: dict[str, Any] = {
            field.name: getattr(task, field.name) for field in dataclasses.fields(task) if field.name not in _OF_CODE
        }
        fields["metric"] = task.metric_name
        if task.derive is not None or task.official is not None:
            known = task_by_name(task.name)
            if (known.derive, known.official) != (task.derive, task.official):
                raise UsageError(f"task {task.name} derives columns by a function of yours, which no file can hold.")
            fields["catalogue"] = task.name
        path = Path(folder) / TASK_FILE
        write_json(path, {"task": fields, "patterns": self.patterns, "max_length": self.max_length})
        return path

    @classmethod
    def load(cls, name: str | os.PathLike[str], revision: str | None = None) -> SavedTask:
        """Reads cloze_task.json of a folder or of a model on the Hub.

        Raises: UsageError, there is none, or it is damaged.
        """
        file = _find(name, revision)
        remedy = "Copy it from where the student was trained, or name the task yourself: ClozeClassifier(model, tokenizer, task)."
        found = read_json(file, remedy)
        try:
            fields = dict(found["task"])
            base = task_by_name(fields.pop("catalogue")) if "catalogue" in fields else None
            task = ClozeTask(**fields) if base is None else dataclasses.replace(base, **fields)
            saved = cls(task, [int(number) for number in found["patterns"]], int(found["max_length"]))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise UsageError(f"'{file}' is no task that this package wrote ({error}). {remedy}") from error
        for number in saved.patterns:
            saved.task.with_pattern(number)
        return saved


def _find(name: str | os.PathLike[str], revision: str | None) -> Path:
    if Path(name).is_dir():
        file = Path(name) / TASK_FILE
        if file.is_file():
            return file
    else:
        from transformers.utils import cached_file

        try:
            return Path(cached_file(str(name), TASK_FILE, revision=revision))
        except OSError as error:
            if not str(error).rstrip().endswith("for available files.") and "does not appear to have" not in str(error):
                raise UsageError(f"'{name}' cannot be read: {str(error).strip().splitlines()[0]}") from error
    raise UsageError(
        f"'{name}' holds no {TASK_FILE}, so it was trained on no task: name a student of a recipe with a task, or say in Python "
        "what to ask: ClozeClassifier(model, tokenizer, ClozeTask(...))."
    )
