"""The tasks that come with the package, by name, and the score of a whole benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hf_glmd.errors import UsageError, nearest
from hf_glmd.tasks.cloze import ClozeTask
from hf_glmd.tasks.glue import GLUE
from hf_glmd.tasks.superglue import SUPERGLUE

TASKS: dict[str, ClozeTask] = SUPERGLUE | GLUE


def task_by_name(name: str) -> ClozeTask:
    """Args:
        name: e.g. "boolq"; capitals and hyphens do not matter: "SST-2" is "sst2".
    Raises: UsageError, there is no such task; the nearest one is named.
    """
    key = name.lower().replace("-", "")
    if key not in TASKS:
        raise UsageError(f"task '{name}' is unknown. {nearest(key, TASKS)}")
    return TASKS[key]


def benchmark_mean(scores: Mapping[str, float], names: Iterable[str] = tuple(SUPERGLUE)) -> float:
    """The mean of the tasks' scores, each counting alike.

    Args:
        scores: task -> its `score`.
        names: the tasks of the benchmark. Default: SuperGLUE's eight.
    Raises: UsageError, a task has no score.
    """
    names = list(names)
    missing = [name for name in names if name not in scores]
    if missing:
        raise UsageError(
            f"{', '.join(missing)} of the {len(names)} tasks have no score, so there is no mean. "
            "Score them, or pass names= without them."
        )
    return sum(scores[name] for name in names) / len(names)
