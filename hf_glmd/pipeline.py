"""A recipe, run from start to end: vocabulary, student, the training stages, scores, and what is written. It can be killed and
started again at any moment: finished steps are kept, a stage goes on from its last checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import datasets
import torch
from accelerate import PartialState
from transformers import set_seed

from hf_glmd.cards import terminal_table
from hf_glmd.first_student import make_first_student
from hf_glmd.inputs import Inputs
from hf_glmd.machine import cpu_cores
from hf_glmd.models.loading import word_model_class
from hf_glmd.publishing.push import check_push, push_folder
from hf_glmd.recipe import Recipe
from hf_glmd.records import RunRecord
from hf_glmd.results import Results
from hf_glmd.run_folder import RunFolder
from hf_glmd.stages import Stages
from hf_glmd.task_inputs import TaskInputs


def run_recipe(recipe: Recipe, overwrite: bool = False, command: str = "") -> RunRecord:
    """Runs a recipe, or goes on with it, and prints what came out.

    Every process of an `accelerate launch` calls this.

    Args:
        recipe: what to do.
        overwrite: remove what an earlier run left in the output folder, and start anew.
        command: how it was called, for the model card.
    Returns: what was measured; it also stands in metrics.json.
    Raises: UsageError, the recipe asks for what is not there or does not fit; before any training.
    """
    run = Run(recipe, command)
    run.check()
    run.place.claim(overwrite)
    return run.finish()


class Run:
    """A recipe on its way.

    Args:
        recipe: what to do.
        command: how it was called.
    """

    def __init__(self, recipe: Recipe, command: str = "") -> None:
        self.recipe, self.command = recipe, command
        state = PartialState(cpu=not torch.accelerator.is_available())
        self.given = Inputs(recipe, state)
        self.place = RunFolder(recipe, state)
        self.steps = Stages(self.given, self.place)
        self.results = Results(self.steps)
        if state.device.type == "cpu":
            # accelerate launch sets OMP_NUM_THREADS=1 unless it is told --cpu: one thread, without a word.
            torch.set_num_threads(recipe.threads or max(1, cpu_cores() // state.num_processes))

    def check(self) -> None:
        """Everything that can be known without weights. Raises: UsageError, something is missing or does not fit."""
        self.given.check_teacher()
        self.steps.check()
        if (push := self.place.push_options) is not None:
            check_push(push)
        self.place.say(f"Reading the corpus: {self.recipe.corpus.name} (the first time takes longest, then it is cached)")
        self.given.load_data()

    def finish(self) -> RunRecord:
        """Every step that is not done yet, in order; prints the table at the end."""
        metrics = self.place.path / "metrics.json"
        if metrics.exists():
            self.place.say("Finished earlier. Nothing to do; --overwrite starts anew.")
            record = RunRecord.load(metrics)
        else:
            set_seed(self.recipe.seed)
            self.place.step(
                "student",
                "Cutting the vocabulary and building the student",
                lambda folder: make_first_student(folder, self.given),
            )
            previous = "student"
            if self.recipe.general is not None:
                self.steps.train("general", previous)
                previous = "general"
            ends = [self.train_task(given, previous) for given in self.given.tasks]
            if ends and not self.recipe.tasks:
                previous = ends[0]
            record = self.results.measure(previous, self.command)
            self.results.publish(record, previous, ends)
        self.place.say("\n" + terminal_table(record))
        student = self.place.path / "student"
        loader = word_model_class(self.given.teacher_config).__name__
        self.place.say(f'\nThe student is in {student}: {loader}.from_pretrained("{student}")')
        if (push := self.place.push_options) is not None and self.given.state.is_main_process:
            self.place.say(f"Pushed to {push.repo}: {push_folder(push).url}")
        return record

    def train_task(self, given: TaskInputs, previous: str) -> str:
        """The stages of a task from the student that `previous` left, and its scores. Returns: where the last student is."""
        if self.recipe.task_teacher is not None:
            self.steps.train("task_teacher", None, given)
        if given.section.replaced_copies:
            name = str(Path(given.folder) / "copies")
            made = self.place.step(name, f"Replacing words{given.label}", lambda folder: self.steps.replace_words(given, folder))
            if made["examples"]:
                given.add_examples(datasets.load_from_disk(self.place.stages / name / "rows"))
        for name in ("task_words", "task_answers"):
            if getattr(self.recipe, name) is not None:
                self.steps.train(name, previous, given)
                previous = str(Path(given.folder) / name)
        self.place.step(
            str(Path(given.folder) / "scores"), f"Scores{given.label}", lambda folder: self.results.score(given, previous, folder)
        )
        return previous
