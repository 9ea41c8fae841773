"""What a run would take, from a few steps of each of its stages: `hf-glmd distill --dry-run --calibrate`."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, set_seed

from hf_glmd.evaluation.words import compare_word_predictions, model_facts
from hf_glmd.models.loading import load_word_model
from hf_glmd.recipe.config import Recipe
from hf_glmd.recipe.run import Run
from hf_glmd.recipe.student import make_first_student
from hf_glmd.recipe.task_inputs import TaskInputs, first_rows
from hf_glmd.reports.records import STAGES, TASK_STAGES, ForecastRecord
from hf_glmd.shrinking.shrinker import VocabShrinker
from hf_glmd.teachers.live import LiveTeacher
from hf_glmd.utils.remote_code import trusting_as_asked
from hf_glmd.utils.system import peak_memory_mib
from hf_glmd.utils.text import duration, markdown_table

STEPS, WARM_UP = 8, 3
"""Of each stage so many are run, and the first ones are not counted: memory is asked for, and kernels are chosen."""

TEXTS = 4_000
"""Of the corpus so many are read, at most."""

SCORED_ROWS = 64
"""Of an evaluation so many are run, and the time is scaled."""

PROBE: dict[str, Any] = {
    "max_steps": STEPS,
    "eval_strategy": "no",
    "save_strategy": "no",
    "eval_on_start": False,
    "load_best_model_at_end": False,
    "report_to": "none",
    "logging_steps": STEPS,
    "disable_tqdm": True,
}


@dataclass
class StageForecast:
    """What a part of a run would take.

    Attributes:
        name: of the stage, or in words.
        steps: of the optimizer; 0: it has none.
        step_seconds: of one of them, the median.
        seconds: of all steps, evaluations and checkpoints.
        tokens: token ids that the student reads, padding left out.
        peak_memory_mib: the most that the process has held by the end of it.
    """

    name: str
    steps: int
    step_seconds: float
    seconds: float
    tokens: int
    peak_memory_mib: float


@dataclass
class Forecast:
    """What a run would take.

    Attributes:
        parts: in their order.
        disk_mib: weights of all stages and the largest checkpoint, at the same time.
    """

    parts: list[StageForecast]
    disk_mib: float

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def peak_memory_mib(self) -> float:
        return max(part.peak_memory_mib for part in self.parts)

    def record(self) -> ForecastRecord:
        """What a run keeps of it."""
        return ForecastRecord(self.seconds, self.peak_memory_mib, {part.name: part.seconds for part in self.parts})

    def table(self) -> str:
        """For people."""
        rows = [
            (
                part.name,
                f"{part.steps:,}" if part.steps else "",
                f"{part.step_seconds:.2f}" if part.steps else "",
                duration(part.seconds),
                f"{part.tokens:,}" if part.tokens else "",
                f"{part.peak_memory_mib:,.0f}",
            )
            for part in self.parts
        ]
        tokens = sum(part.tokens for part in self.parts)
        rows.append(("in all", "", "", duration(self.seconds), f"{tokens:,}", f"{self.peak_memory_mib:,.0f}"))
        header = ["", "steps", "s per step", "time", "tokens", "peak memory (MiB)"]
        return f"{markdown_table(rows, header, 'lrrrrr')}\n\nOn disk: {self.disk_mib:,.0f} MiB at most."


class StepClock(TrainerCallback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.started)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds[WARM_UP:] or self.seconds)


@trusting_as_asked
def forecast(recipe: Recipe) -> Forecast:
    """Runs a few steps of each stage on a part of the corpus, in a folder that is removed afterwards.

    A cache is not part of it: stages are timed with the teacher beside them.

    Raises: UsageError, as `run_recipe`, before any training.
    """
    with tempfile.TemporaryDirectory(prefix="hf_glmd-forecast-") as folder:
        return _Probe(recipe, folder).forecast()


class _Probe:
    """The small run, beside the run that is asked for."""

    def __init__(self, recipe: Recipe, folder: str) -> None:
        self.recipe, self.whole = recipe, Run(recipe)
        stages = {name: {**options, **PROBE} for name in STAGES if (options := getattr(recipe, name)) is not None}
        texts = min(recipe.corpus.max_texts or TEXTS, TEXTS)
        small = dataclasses.replace(
            recipe,
            output_dir=folder,
            corpus=dataclasses.replace(recipe.corpus, max_texts=texts),
            cache=None,
            hub=None,
            callbacks=None,
            **stages,
        )
        self.run = Run(small)
        self.parts: list[StageForecast] = []

    def forecast(self) -> Forecast:
        self.run.check()
        set_seed(self.recipe.seed)
        whole, part = (run.inputs.corpus["train"] for run in (self.whole, self.run))
        self.share = len(whole) / len(part) if hasattr(whole, "__len__") else 1.0  # a stream is trained on by steps
        self._prepare()
        if self.recipe.general is not None:
            self._stage("general", "student", None)
        first = "student" if self.recipe.general is None else "general"
        for task in self.run.inputs.tasks:
            previous = first
            for name in TASK_STAGES:
                if getattr(self.recipe, name) is None:
                    continue
                self._stage(name, None if name == "task_teacher" else previous, task)
                if name != "task_teacher":
                    previous = str(Path(task.folder) / name)
        self._score()
        return Forecast(self.parts, self._disk())

    def _part(self, name: str, seconds: float, steps: int = 0, step_seconds: float = 0.0, tokens: int = 0) -> None:
        self.parts.append(
            StageForecast(name, steps, step_seconds, seconds, tokens, peak_memory_mib(self.run.inputs.state.device))
        )

    def _prepare(self) -> None:
        folder = self.run.run_folder.stages / "student"
        folder.mkdir(parents=True)
        with _seconds() as all_of_it:
            make_first_student(folder, self.run.inputs)
        counting = [0.0]
        if self.recipe.vocab.active:
            texts = first_rows(self.run.inputs.corpus["train"], self.recipe.vocab.max_texts, self.recipe.seed)
            with _seconds() as counting:
                VocabShrinker(self.run.inputs.load_tokenizer()).count(texts, column=self.recipe.corpus.column, progress=False)
        limit = self.recipe.vocab.max_texts or math.inf
        parts = (run.inputs.corpus["train"] for run in (self.run, self.whole))
        read, asked = (min(len(part), limit) if hasattr(part, "__len__") else limit for part in parts)
        read = min(read, self.run.recipe.corpus.max_texts or read)
        self._part("vocabulary and student", all_of_it[0] + counting[0] * (asked / read - 1))

    def _stage(self, name: str, previous: str | None, task: TaskInputs | None) -> None:
        args = self.whole.stages.arguments(name, self._own(task))  # before the trainer: it sets accelerate's state anew
        trainer = self.run.stages.trainer(name, previous, task)
        clock = StepClock()
        trainer.add_callback(clock)
        trainer.train()
        folder = self.run.stages.folder(name, task)
        with _seconds() as saving:
            trainer.save_model(str(folder))
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        steps = (
            args.max_steps
            if args.max_steps > 0
            else math.ceil(math.ceil(self._rows(trainer, task) / batch) * args.num_train_epochs)
        )
        evaluations = _times(args.eval_strategy, args.eval_steps, steps, args.num_train_epochs) + int(args.eval_on_start)
        saves = _times(args.save_strategy, args.save_steps, steps, args.num_train_epochs)
        # A checkpoint holds two numbers of Adam for each weight.
        seconds = steps * clock.median + evaluations * self._evaluation(trainer) + (3 * saves + 1) * saving[0]
        tokens = int(trainer.state.num_input_tokens_seen / max(trainer.state.global_step, 1) * steps)
        self._part(self.whole.stages.part_name(name, task), seconds, steps, clock.median, tokens)

    def _rows(self, trainer: Trainer, task: TaskInputs | None) -> float:
        """Of an epoch of the whole run; streams have no epochs, and are trained on by steps."""
        return len(trainer.train_dataset) * (self.share if task is None else 1.0)

    def _own(self, task: TaskInputs | None) -> TaskInputs | None:
        """The same task of the whole run."""
        return task and next(one for one in self.whole.inputs.tasks if one.section.name == task.section.name)

    def _evaluation(self, trainer: Trainer) -> float:
        """Seconds of one evaluation, of a part of its rows."""
        dataset = trainer.eval_dataset
        if trainer.args.eval_strategy == "no" and not len(dataset):
            return 0.0
        part = dataset.select(range(min(len(dataset), SCORED_ROWS)))
        with _seconds() as seconds:
            trainer.evaluate(part)
        return seconds[0] * len(dataset) / len(part)

    def _score(self) -> None:
        """Words of three students and the visible ones of the last, answers of both models to each task, and their speeds."""
        inputs, stages, section = self.run.inputs, self.run.stages, self.recipe.evaluation
        student = load_word_model(self.run.run_folder.stages / "student", dtype=torch.float32).to(inputs.state.device)
        teacher = LiveTeacher(inputs.load_teacher().to(inputs.state.device), stages.vocab_map)
        held_out = stages.blocks("test")
        rows = first_rows(held_out, min(section.rows, SCORED_ROWS), self.recipe.seed)
        with _seconds() as words:
            compare_word_predictions(student, teacher, stages.tokenizer, rows, desc="Scoring a few words")
        passes = 2 + (self.recipe.general is not None) + (not inputs.causal)
        seconds = passes * words[0] * min(section.rows, len(held_out)) / len(rows)
        # Speeds are measured with whole logits, which may be the most that the run holds.
        names = [self.recipe.teacher.model, self.recipe.output_dir]
        with _seconds() as speeds:
            model_facts([teacher.model, student], names, section.speed_batch_sizes, section.speed_length)
        seconds += speeds[0]
        if inputs.tasks:
            # Each question is a row that both models read, without a word loss.
            asked = sum(len(task.data["test"]) for task in inputs.tasks)
            seconds += words[0] / len(rows) * asked * max(task.length for task in inputs.tasks) / inputs.max_length
        self._part("scores", seconds)

    def _disk(self) -> float:
        weights = [file.stat().st_size for file in self.run.run_folder.stages.rglob("*.safetensors")]
        return (sum(weights) + 3 * max(weights)) / 2**20


@contextlib.contextmanager
def _seconds() -> Iterator[list[float]]:
    """Becomes how long the context took."""
    taken, started = [0.0], time.perf_counter()
    yield taken
    taken[0] = time.perf_counter() - started


def _times(strategy: Any, every: float | None, steps: int, epochs: float) -> int:
    """How often something is done in so many steps."""
    strategy = getattr(strategy, "value", strategy)
    if strategy == "no":
        return 0
    if strategy == "epoch":
        return math.ceil(epochs)
    every = every or 1
    return max(1, int(steps // (math.ceil(every * steps) if every < 1 else every)))
