"""A task's score of teacher and student, and their predictions as files."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from hf_glmd.evaluation.samples import answer_samples
from hf_glmd.recipe.task_inputs import TaskInputs
from hf_glmd.reports.records import TaskScores
from hf_glmd.tasks.cloze import ClozeTask
from hf_glmd.tasks.scoring import choose_answers, write_predictions
from hf_glmd.teachers.live import LiveTeacher


def score_task(
    task_inputs: TaskInputs,
    models: dict[str, tuple[LiveTeacher, PreTrainedTokenizerBase]],
    device: torch.device,
    folder: Path,
) -> TaskScores:
    """Asks both models the test questions; each reads them with its own tokenizer.

    Args:
        models: "teacher" and "student".
        folder: gets one folder for each of the two, with files in the format of the task's benchmark.
    """
    task, data = task_inputs.task, task_inputs.data
    splits = {"test": task_inputs.section.test_split} | {
        f"predict_{split}": split for split in task_inputs.section.predict_splits
    }
    answers = {}
    for who, (model, tokenizer) in models.items():
        for split, name in splits.items():
            parts = task_inputs.wordings(split, tokenizer, labelled=False)
            chosen = choose_answers(model.logits, parts, tokenizer, device, desc=f"Answers of the {who}{task_inputs.label}")
            answers.setdefault(who, chosen)  # of the split that is scored, which comes first
            if task_inputs.state.is_main_process:
                write_predictions(task, data[split], chosen, folder / who, name)
    test = data["test"]
    guess = np.full(len(test), _commonest(task, data))
    return TaskScores(
        name=task.name,
        metric=task.metric_name,
        count=len(test),
        teacher=task.score(test, answers["teacher"])["score"],
        student=task.score(test, answers["student"])["score"],
        majority=task.score(test, guess)["score"],
        agreement=float(np.mean(answers["teacher"] == answers["student"])),
        samples=answer_samples(task, test, answers["teacher"], answers["student"]),
    )


def _commonest(task: ClozeTask, data: datasets.DatasetDict) -> int:
    train = data["train"]
    known = task.label_column in train.column_names and None not in train[task.label_column][:]
    return task.commonest_answer(train if known else data["test"])  # the student's data need no labels
