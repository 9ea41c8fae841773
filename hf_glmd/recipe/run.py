"""A recipe, run from start to end: vocabulary, student, the training stages, scores, and what is written. It can be killed and
started again at any moment: finished steps are kept, a stage goes on from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from transformers import set_seed

from hf_glmd.errors import UsageError
from hf_glmd.hub.push import check_push, push_folder
from hf_glmd.models.loading import word_model_class
from hf_glmd.recipe.config import Recipe
from hf_glmd.recipe.inputs import Inputs
from hf_glmd.recipe.processes import LONGEST_WAIT, check_same_inputs
from hf_glmd.recipe.results import Results
from hf_glmd.recipe.run_folder import RunFolder
from hf_glmd.recipe.stages import Stages
from hf_glmd.recipe.student import make_first_student
from hf_glmd.recipe.task_inputs import TaskInputs
from hf_glmd.reports.drawing import figure_class
from hf_glmd.reports.options import REPORT_PAGE
from hf_glmd.reports.page import write_report
from hf_glmd.reports.records import ForecastRecord, RunRecord
from hf_glmd.reports.run_card import terminal_table
from hf_glmd.training.trainer import in_words_if_worse
from hf_glmd.utils.files import SUMS, check_sums
from hf_glmd.utils.remote_code import trusting_as_asked
from hf_glmd.utils.system import cpu_cores


@trusting_as_asked
def run_recipe(
    recipe: Recipe, overwrite: bool = False, command: str = "", forecast: Callable[[Recipe], Any] | None = None
) -> RunRecord:
    """Runs a recipe, or goes on with it, and prints what came out.

    Every process of an `accelerate launch` calls this.

    Args:
        recipe: what to do.
        overwrite: remove what an earlier run left in the output folder, and start anew.
        command: how it was called, for the model card.
        forecast: `hf_glmd.recipe.forecast.forecast`, to say first what it will take, and to keep that beside what it took.
    Returns: what was measured; it also stands in metrics.json.
    Raises: UsageError, the recipe asks for what is not there or does not fit; before any training.
    """
    run = Run(recipe, command, forecast)
    run.check()
    with run.run_folder.held():
        run.run_folder.claim(overwrite)
        return run.finish()


class Run:
    """A recipe on its way.

    Args:
        recipe: what to do.
        command, forecast: as of `run_recipe`.
    """

    def __init__(self, recipe: Recipe, command: str = "", forecast: Callable[[Recipe], Any] | None = None) -> None:
        self.recipe, self.command, self.forecast = recipe, command, forecast
        state = PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_WAIT)
        self.inputs = Inputs(recipe, state)
        self.run_folder = RunFolder(recipe, state)
        self.stages = Stages(self.inputs, self.run_folder)
        self.results = Results(self.stages)
        if state.device.type == "cpu":
            # accelerate launch sets OMP_NUM_THREADS=1 unless it is told --cpu: one thread, without a word.
            torch.set_num_threads(recipe.threads or max(1, cpu_cores() // state.num_processes))

    def check(self) -> None:
        """Everything that can be known without weights. Raises: UsageError, something is missing or does not fit."""
        if self.forecast is not None and self.inputs.state.num_processes > 1:
            raise UsageError(
                f"--calibrate forecasts a run of one process, and this one has {self.inputs.state.num_processes}: leave it out."
            )
        figure_class()  # what it draws comes last, and needs matplotlib
        self.inputs.check_teacher()
        self.stages.check()
        if (push := self.run_folder.push_options) is not None:
            check_push(push)
        self.run_folder.say(f"Reading the corpus: {self.recipe.corpus.name} (the first time takes longest, then it is cached)")
        self.inputs.load_data()
        check_same_inputs(self.inputs)

    def finish(self) -> RunRecord:
        """Every step that is not done yet, in order; prints the table at the end."""
        record = self.finished()
        if record is None:
            self.stages.forecast = self.forecast_record()
            set_seed(self.recipe.seed)
            self.run_folder.step(
                "student",
                "Cutting the vocabulary and building the student",
                lambda folder: make_first_student(folder, self.inputs),
            )
            previous = "student"
            if self.recipe.general is not None:
                self.stages.train("general", previous)
                previous = "general"
            ends = [self.train_task(task, previous) for task in self.inputs.tasks]
            if ends and not self.recipe.tasks:
                previous = ends[0]
            record = self.results.measure(previous, self.command)
            self.refuse_worse(record)
            self.results.publish(record, previous, ends)
        self.run_folder.say("\n" + terminal_table(record))
        student = self.run_folder.path / "student"
        own = ", trust_remote_code=True" if self.recipe.trust_remote_code else ""
        loader = word_model_class(self.inputs.teacher_config).__name__
        self.run_folder.say(f'\nThe student is in {student}: {loader}.from_pretrained("{student}"{own})')
        if (push := self.run_folder.push_options) is not None and self.inputs.state.is_main_process:
            self.run_folder.say(f"Pushed to {push.repo}: {push_folder(push).url}")
        return record

    def finished(self) -> RunRecord | None:
        """What an earlier run measured, if all that it promised is there; the page is made anew if it is missing.

        Raises: UsageError, a file of the result is not what was written.
        """
        folder = self.run_folder.path
        if not (folder / "metrics.json").exists() or not (folder / SUMS).exists() or not (folder / "student" / SUMS).exists():
            return None
        try:
            for part in (folder, folder / "student", *(folder / "students").glob("*")):
                check_sums(part)
        except UsageError as error:
            raise UsageError(
                f"{error} Delete '{folder / SUMS}' and run the same command: the result is measured and written anew."
            ) from error
        self.run_folder.say("Finished earlier. Nothing to do; --overwrite starts anew.")
        if self.inputs.state.is_main_process and not (folder / REPORT_PAGE).exists():
            write_report(folder)
        return RunRecord.load(folder / "metrics.json")

    def forecast_record(self) -> ForecastRecord | None:
        """What the run will take, from a few steps of each stage; of a run that goes on, what was said when it began."""

        def told(folder: Path) -> dict[str, Any]:
            found = self.forecast(self.recipe)  # type: ignore[misc]
            self.run_folder.say(f"\n{found.table()}\n")
            return dataclasses.asdict(found.record())

        if self.forecast is None and not self.run_folder.is_done(self.run_folder.stages / "forecast"):
            return None
        return ForecastRecord(**self.run_folder.step("forecast", "Forecast: a few steps of each stage", told))

    def refuse_worse(self, record: RunRecord) -> None:
        """Raises: UsageError, plain text led the student away from its teacher, and nobody said that it may."""
        after = record.words_general if self.recipe.tasks or self.recipe.task else record.words_final
        if after is None or self.recipe.evaluation.accept_worse:
            return
        worse = in_words_if_worse("the KL", record.words_start.kl, after.kl, "")
        if worse:
            raise UsageError(
                f"nothing is published, for {worse}Lower general.learning_rate and start anew with --overwrite, or add "
                "--evaluation.accept_worse true."
            )

    def train_task(self, task: TaskInputs, previous: str) -> str:
        """The stages of a task from the student that `previous` left, and its scores. Returns: where the last student is."""
        if self.recipe.task_teacher is not None:
            self.stages.train("task_teacher", None, task)
        if task.section.replaced_copies:
            name = str(Path(task.folder) / "copies")
            made = self.run_folder.step(
                name, f"Replacing words{task.label}", lambda folder: self.stages.replace_words(task, folder)
            )
            if made["examples"]:
                task.add_examples(datasets.load_from_disk(self.run_folder.stages / name / "rows"))
        for name in ("task_words", "task_answers"):
            if getattr(self.recipe, name) is not None:
                self.stages.train(name, previous, task)
                previous = str(Path(task.folder) / name)
        self.run_folder.step(
            str(Path(task.folder) / "scores"), f"Scores{task.label}", lambda folder: self.results.score(task, previous, folder)
        )
        return previous
