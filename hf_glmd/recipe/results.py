"""What came out of a run: scores of its students, and the files that are handed over."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from hf_glmd.evaluation.samples import word_samples
from hf_glmd.evaluation.words import compare_word_predictions, model_facts
from hf_glmd.models.loading import load_word_model
from hf_glmd.recipe.stages import Stages
from hf_glmd.recipe.task_inputs import TaskInputs, first_rows
from hf_glmd.recipe.task_scoring import score_task
from hf_glmd.reports.card import SourceCard, is_hub_name
from hf_glmd.reports.page import write_report
from hf_glmd.reports.plots import save_plots
from hf_glmd.reports.records import STAGES, TASK_STAGES, RunRecord, TaskScores, VocabFacts, WordScores
from hf_glmd.reports.run_card import render_card
from hf_glmd.tasks.task_file import SavedTask
from hf_glmd.teachers.live import LiveTeacher
from hf_glmd.utils.files import SUMS, remove, write_sums
from hf_glmd.utils.system import hardware, peak_memory_mib, versions
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer


class Results:
    """Measures and writes what the stages came to.

    Args:
        stages: once they are done.
    """

    def __init__(self, stages: Stages) -> None:
        self.stages, self.recipe, self.inputs, self.run_folder, self.state = (
            stages,
            stages.recipe,
            stages.inputs,
            stages.run_folder,
            stages.state,
        )

    def measure(self, last: str, command: str) -> RunRecord:
        """Scores the student at its start, after stage 1 and at its end, beside the teacher, on held-out text."""
        started, section = time.monotonic(), self.recipe.evaluation
        self.run_folder.say("Scoring")
        teacher = LiveTeacher(self.inputs.load_teacher().to(self.state.device), self.stages.vocab_map)

        scores = {
            "words_start": self.words("student", teacher, "before training"),
            "words_general": self.words("general", teacher, "after stage 1") if self.recipe.general is not None else None,
            "words_final": self.words(last, teacher, "of the student"),
            "words_visible": None if self.inputs.causal else self.words(last, teacher, "that are visible", visible=True),
        }
        student = load_word_model(self.run_folder.stages / last, dtype=torch.float32).to(self.state.device)
        tasks = [self.task_scores(task) for task in self.inputs.tasks]
        details = self.run_folder.facts(self.run_folder.stages / "student")
        listed = self.recipe.tasks is not None
        stages = self.stages.records(STAGES[:1] if listed else STAGES, None)
        before, after = self.tokens_per_text()
        report = details.get("report", {})
        size = len(self.inputs.teacher_tokenizer)
        ranks, counts = details.get("curve", ([], []))
        names = [self.recipe.teacher.model, self.run_folder.path.name]
        teacher_facts, student_facts = model_facts(
            [teacher.model, student], names, section.speed_batch_sizes, section.speed_length
        )
        return RunRecord(
            name=self.run_folder.path.name,
            teacher=teacher_facts,
            student=student_facts,
            vocab=VocabFacts(
                original_size=report.get("original_size", size),
                size=report.get("size", size),
                coverage=report.get("coverage", 1.0),
                length_ratio=after / before,
                tokens_per_text_before=before,
                tokens_per_text_after=after,
                removed_examples=list(report.get("removed_examples", [])),
                removed=self.stages.vocab_map.removed if self.stages.vocab_map is not None else "resegment",
                scripts=list(report.get("scripts", [])),
            ),
            **scores,
            task=None if listed or not tasks else tasks[0],
            tasks=tasks if listed else [],
            samples=word_samples(student, teacher, self.stages.tokenizer, self.held_out),
            stages=stages,
            corpus=self.corpus_in_words(),
            hardware=hardware(),
            command=command,
            versions=versions("hf_glmd", "torch", "transformers", "accelerate", "datasets", "tokenizers"),
            count_ranks=ranks,
            counts_sorted=counts,
            max_tokens=self.inputs.max_length,
            kind=self.inputs.kind,
            seconds=details["seconds"]
            + sum(part.seconds for part in [*self.stages.records(STAGES[:1], None), *tasks])
            + (time.monotonic() - started),
            peak_memory_mib=peak_memory_mib(self.state.device),
            forecast=self.stages.forecast,
        )

    def words(self, stage: str, teacher: LiveTeacher, when: str, visible: bool = False) -> WordScores:
        """How well the student that a stage left predicts the words of held-out text; `visible`: without masking them."""
        student = load_word_model(self.run_folder.stages / stage, dtype=torch.float32).to(self.state.device)
        desc = f"Scoring {'next' if self.inputs.causal else 'masked' if not visible else 'the'} words {when}"
        return compare_word_predictions(student, teacher, self.stages.tokenizer, self.held_out, desc=desc, visible=visible)

    @cached_property
    def held_out(self) -> datasets.Dataset:
        """The rows of plain text that words are scored on."""
        return first_rows(self.stages.blocks("test"), self.recipe.evaluation.rows, self.recipe.seed)

    def task_scores(self, task: TaskInputs) -> TaskScores:
        return TaskScores(**self._scored(task)["task"])

    def _scored(self, task: TaskInputs) -> dict[str, Any]:
        return self.run_folder.facts(self.stages.folder("scores", task))

    def score(self, task: TaskInputs, last: str, folder: Path) -> dict[str, Any]:
        """Both models' answers to a task, in `folder`, and what they score; of a list of tasks also the student's words."""
        started, device = time.monotonic(), self.state.device
        teacher = LiveTeacher(self.stages.load_teacher(task).to(device))
        student = LiveTeacher(load_word_model(self.run_folder.stages / last, dtype=torch.float32).to(device))
        models = {"teacher": (teacher, self.inputs.teacher_tokenizer), "student": (student, self.stages.tokenizer)}
        scores = score_task(task, models, device, folder)
        scores.seconds = sum(stage.seconds for stage in self.stages.records(TASK_STAGES, task)) + time.monotonic() - started
        if task.section.replaced_copies:
            scores.seconds += self.run_folder.facts(self.stages.folder("copies", task))["seconds"]
        facts = {"task": dataclasses.asdict(scores)}
        if task.folder:
            general = LiveTeacher(self.inputs.load_teacher().to(device), self.stages.vocab_map)
            facts["words"] = dataclasses.asdict(self.words(last, general, f"of the student{task.label}"))
        return facts

    def tokens_per_text(self) -> tuple[float, float]:
        """Mean tokens per held-out text with the teacher's and with the student's tokenizer, specials left out."""
        texts = self.inputs.corpus["test"][:2000][self.recipe.corpus.column]
        before, after = (
            np.mean([len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]])
            for tokenizer in (self.inputs.teacher_tokenizer, self.stages.tokenizer)
        )
        return float(before), float(after)

    def corpus_in_words(self) -> str:
        name = self.recipe.corpus.name
        what = "docstrings of installed libraries" if name == "docstrings" else name
        train = self.inputs.corpus["train"]
        return f"{what}, {len(train):,} texts" if hasattr(train, "__len__") else f"{what}, streamed"

    def publish(self, record: RunRecord, last: str, ends: Sequence[str]) -> None:
        """Writes student/, plots/, predictions/, students/ and, last of what counts, metrics.json, which report.html shows."""
        if self.state.is_main_process:
            unfinished, folder = self.run_folder.path / "student.part", self.run_folder.path / "student"
            for name in ("student.part", SUMS, "plots", "students", "predictions"):
                remove(self.run_folder.path / name)
            own_task = self.inputs.tasks[0] if self.inputs.tasks and self.recipe.tasks is None else None
            self.save_student(last, unfinished, own_task)
            for facts, path in ((record.student, unfinished), (record.teacher, Path(self.recipe.teacher.model))):
                files = list(path.glob("*.safetensors")) if path.is_dir() else []
                facts.file_bytes = sum(file.stat().st_size for file in files if file.name != "vocab_map.safetensors")
                facts.file_dtype = str(self.inputs.teacher_config.dtype or torch.float32).removeprefix("torch.")
            save_plots(record, unfinished / "plots")
            shutil.copytree(unfinished / "plots", self.run_folder.path / "plots")
            self.write_card(record, unfinished, folder, own_task)
            write_sums(unfinished)
            remove(folder)
            os.replace(unfinished, folder)
            for task, end in zip(self.inputs.tasks, ends, strict=True):
                if task.folder:
                    self.publish_task_student(record, task, end)
                for who in ("teacher", "student"):
                    written = self.run_folder.path / "predictions" / task.folder / who
                    shutil.copytree(self.stages.folder("scores", task) / who, written)
            record.save(self.run_folder.path / "metrics.json")
            write_sums(self.run_folder.path, leaving_out=("stages", "logs"))
            write_report(self.run_folder.path)
        self.state.wait_for_everyone()

    def publish_task_student(self, record: RunRecord, task: TaskInputs, stage: str) -> None:
        """Writes students/TASK/: a student of a list of tasks, with a card and plots of its own."""
        folder = self.run_folder.path / "students" / task.folder
        self.save_student(stage, folder, task)
        own = dataclasses.replace(
            record,
            name=f"{record.name}-{task.folder}",
            words_final=WordScores(**self._scored(task)["words"]),
            words_visible=None,
            task=self.task_scores(task),
            tasks=[],
            samples=[],  # of the student that has read plain text only
            stages=[*record.stages, *self.stages.records(TASK_STAGES, task)],
        )
        save_plots(own, folder / "plots")
        self.write_card(own, folder, folder, task)
        write_sums(folder)

    @cached_property
    def source(self) -> SourceCard:
        """What the teacher's own card says."""
        return SourceCard.read(self.recipe.teacher.model, self.recipe.teacher.revision)

    def write_card(self, record: RunRecord, folder: Path, final_folder: Path, task: TaskInputs | None) -> None:
        """Writes README.md into `folder`, which will be `final_folder`; `task` is what its model can be asked."""
        options = {"pipeline_tag": "text-generation", "example": "The list of"} if self.inputs.causal else {}
        corpus = self.recipe.corpus.name
        card = render_card(
            record,
            folder=str(final_folder),
            base_model=self.recipe.teacher.model,
            source=self.source,
            datasets=[corpus] if corpus != "docstrings" and is_hub_name(corpus) else [],
            task_columns=task.task.columns if task else (),
            **options,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")

    def save_student(self, stage: str, folder: Path, task: TaskInputs | None) -> None:
        """The student of a stage with its tokenizer, and the task it learnt."""
        model = load_word_model(self.run_folder.stages / stage, dtype=torch.float32)
        # As the teacher is stored, so that the sizes compare.
        model.to(self.inputs.teacher_config.dtype or torch.float32).save_pretrained(folder)
        # Loaded anew: tokenising rows has set truncation and padding in the other one.
        load_tokenizer(self.run_folder.stages / "student").save_pretrained(folder)
        if self.stages.vocab_map is not None:
            self.stages.vocab_map.save(folder)
        if task is not None:
            SavedTask(task.task, task.patterns, task.length).save(folder)
