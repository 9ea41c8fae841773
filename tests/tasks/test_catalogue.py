"""The tasks by name."""

import pytest

from hf_glmd import UsageError
from hf_glmd.tasks.catalogue import TASKS, benchmark_mean, task_by_name
from hf_glmd.tasks.superglue import SUPERGLUE


def test_tasks_are_found_by_their_usual_names():
    assert task_by_name("SST-2") is TASKS["sst2"] and task_by_name("MultiRC") is TASKS["multirc"]
    assert len(SUPERGLUE) == 8 and len(TASKS) == 14
    assert all(task.source and task.official for task in TASKS.values())


def test_an_unknown_task_is_named_with_the_nearest():
    with pytest.raises(UsageError, match="task 'boolqa' is unknown. Did you mean 'boolq'"):
        task_by_name("boolqa")


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_has_several_patterns_and_one_for_causal_models(task):
    assert len(task.patterns) >= 2 and task.usable_patterns(causal=True)
    assert len({pattern.text for pattern in task.patterns}) == len(task.patterns)


def test_the_mean_counts_every_task_alike():
    scores = {name: number / 10 for number, name in enumerate(SUPERGLUE)}
    assert benchmark_mean(scores | {"sst2": 1.0}) == pytest.approx(0.35)
    assert benchmark_mean({"a": 1.0, "b": 0.5, "c": 0.0}, ["a", "b"]) == 0.75
    with pytest.raises(UsageError, match="wsc of the 8 tasks have no score"):
        benchmark_mean({name: score for name, score in scores.items() if name != "wsc"})
