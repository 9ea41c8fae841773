"""What a comparison compares, as its YAML says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from hf_glmd.errors import UsageError


@dataclass(frozen=True)
class TaskSettings:
    """How students learn tasks: from the soft answers of the teacher, which is trained on the labels.

    Attributes:
        folder: of the data, see `tasks.TASKS`.
        names: of the tasks.
        train, test: rows of each.
        epochs, learning_rate, batch_size, length: of the students.
        teacher_epochs, teacher_learning_rate: of the teacher.
    """

    folder: str
    names: tuple[str, ...]
    train: int = 3000
    test: int = 1800
    epochs: int = 3
    learning_rate: float = 3e-4
    batch_size: int = 32
    length: int = 128
    teacher_epochs: int = 3
    teacher_learning_rate: float = 1e-4


@dataclass(frozen=True)
class Method:
    """A way to train a student.

    Attributes:
        stages: options of `GLMDConfig` each, and `share`, the part of the steps it gets; none: the student stays as it starts.
        student: settings of `build_student`, and `vocab`, the share of the tokens that are kept; they win over the experiment's.
        learning_rates: to tune over; the experiment's, where none are said.
        budget: times the experiment's steps; the rate is looked for at the experiment's.
    """

    name: str
    stages: tuple[Mapping[str, Any], ...] = ()
    student: Mapping[str, Any] = field(default_factory=dict)
    learning_rates: tuple[float, ...] = ()
    budget: float = 1.0


@dataclass(frozen=True)
class Experiment:
    """All that a comparison is.

    Attributes:
        teacher, corpus: as in recipes; the corpus may be held to its first `texts`.
        reference: name of the method that the others are compared with.
        steps, tune_steps: of training, and of each run that looks for a learning rate.
        seeds: of rows, masks and order.
        length, batch_size: tokens per row, rows per step.
        held_out: rows that are scored, of the validation split for tuning, of the test split for the table.
        common: options of `GLMDConfig` for all.
    """

    teacher: str
    methods: tuple[Method, ...]
    reference: str
    corpus: str = "docstrings"
    texts: int | None = None
    student: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 400
    tune_steps: int = 200
    learning_rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    seeds: tuple[int, ...] = (0, 1, 2)
    length: int = 128
    batch_size: int = 16
    held_out: int = 256
    common: Mapping[str, Any] = field(default_factory=dict)
    tasks: TaskSettings | None = None

    @classmethod
    def load(cls, path: str | Path) -> Experiment:
        """Reads a YAML, in which $NAME is what the environment says. Raises: UsageError, a setting is unknown or missing."""
        said = yaml.safe_load(os.path.expandvars(Path(path).read_text("utf-8")))
        methods = [_made(Method, {"name": name, **(options or {})}, str(path)) for name, options in said["methods"].items()]
        tasks = _made(TaskSettings, said["tasks"], str(path)) if said.get("tasks") else None
        found = _made(cls, {**said, "methods": methods, "tasks": tasks}, str(path))
        if found.reference not in [method.name for method in methods]:
            raise UsageError(f"{path}: reference '{found.reference}' is none of the methods {[one.name for one in methods]}.")
        return found


def _made(kind: type, options: Mapping[str, Any], where: str) -> Any:
    known = {one.name for one in fields(kind)}
    if unknown := sorted(options.keys() - known):
        raise UsageError(f"{where}: {unknown} are no settings of {kind.__name__}. Use {sorted(known)}.")
    try:
        return kind(**{name: _value(name, value) for name, value in options.items()})
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}.") from error


def _value(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_value(name, one) for one in value)
    return float(value) if name.startswith("learning_rate") else value  # 1e-3 is a text to YAML
