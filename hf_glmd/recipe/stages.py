"""The training stages of a recipe: what goes into each, how it is trained and resumed, and what is recorded of it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_glmd.data.collators import CandidateCollator
from hf_glmd.data.packing import pack_blocks
from hf_glmd.errors import UsageError
from hf_glmd.models.loading import load_word_model, with_new_adapter
from hf_glmd.recipe.config import AUTO
from hf_glmd.recipe.inputs import Inputs
from hf_glmd.recipe.run_folder import RunFolder
from hf_glmd.recipe.stage_cache import cached_stage, rows_of_training
from hf_glmd.recipe.task_inputs import TaskInputs, first_rows
from hf_glmd.reports.records import STAGES, TASK_STAGES, ForecastRecord, StageRecord
from hf_glmd.tasks.scoring import sequences
from hf_glmd.teachers.base import Teacher
from hf_glmd.teachers.live import LiveTeacher
from hf_glmd.training.callbacks import callback_class, show_progress
from hf_glmd.training.checkpoints import last_complete_checkpoint
from hf_glmd.training.config import GLMDConfig, number_mistakes
from hf_glmd.training.task_teacher import LabelTrainer
from hf_glmd.training.token_mean import TokenMeanTrainer
from hf_glmd.training.trainer import GLMDTrainer
from hf_glmd.utils.files import read_json, remove, write_json, write_sums
from hf_glmd.utils.system import hardware, has_fast_bf16
from hf_glmd.utils.text import duration
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer
from hf_glmd.vocab.vocab_map import VocabMap

TITLES = {
    "general": "Stage 1: word prediction on plain text",
    "task_teacher": "The teacher learns the task",
    "task_words": "Stage 2: word prediction on task text",
    "task_answers": "Stage 3: the teacher's answers",
}

CACHE_FOLDER = "cache"
"""In a stage's folder, while the stage is under way."""

TRAINING_DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "logging_steps": 10,
    "eval_strategy": "steps",
    "eval_steps": 0.1,
    "eval_on_start": True,
    "save_steps": 0.2,
    "save_total_limit": 1,
    "include_num_input_tokens_seen": "non_padding",
}
"""Of every stage, unless the recipe says otherwise; shares are of the stage's steps."""

TEACHER_DEFAULTS: dict[str, Any] = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
"""Of the teacher's fine-tuning: its best checkpoint teaches."""


TENSORBOARD_FOLDER = "TENSORBOARD_LOGGING_DIR"


class Stages:
    """The training stages, each in a folder of its own.

    Args:
        inputs: what the recipe names.
        run_folder: where it is written.

    Attributes:
        forecast: what was said of the run; None: nothing.
    """

    forecast: ForecastRecord | None = None

    def __init__(self, inputs: Inputs, run_folder: RunFolder) -> None:
        self.recipe, self.inputs, self.run_folder, self.state = inputs.recipe, inputs, run_folder, inputs.state

    def check(self) -> None:
        """Raises: UsageError, a value of a stage makes no sense, or none trains the student."""
        for path in self.recipe.callbacks or ():
            callback_class(path)
        for name in STAGES:
            for task in self.inputs.tasks if name in TASK_STAGES else [None]:
                if getattr(self.recipe, name) is not None:
                    self.arguments(name, task)
        self._check_stream()
        if not any(getattr(self.recipe, name) is not None for name in STAGES if name != "task_teacher"):
            raise UsageError(
                "the recipe has no stage that trains the student. Add a section 'general' or a task with its stages."
            )

    def _check_stream(self) -> None:
        """Raises: UsageError, something needs the length of a corpus that is streamed."""
        recipe = self.recipe
        if not recipe.corpus.streaming:
            return
        if recipe.general is not None and self.arguments("general").max_steps <= 0:
            raise UsageError("corpus.streaming reads texts without end: say how many steps to train, as general.max_steps.")
        if recipe.vocab.active and recipe.vocab.max_texts is None:
            raise UsageError("corpus.streaming reads texts without end: say how many to count, as vocab.max_texts.")
        if recipe.cache is not None and "general" in recipe.cache.stages:
            raise UsageError("cache.stages has general, whose rows corpus.streaming never holds: leave one of the two out.")

    def part_name(self, name: str, task: TaskInputs | None) -> str:
        """What a forecast calls a stage."""
        return name if task is None or not self.recipe.tasks else f"{name} of {task.section.name}"

    def train(self, name: str, previous: str | None, task: TaskInputs | None = None) -> None:
        """One training stage, from the student that `previous` left (None: from the teacher, on the task's labels)."""
        folder, title = self.folder(name, task), TITLES[name] + (task.label if task else "")
        checkpoints = folder / "checkpoints"
        if self.run_folder.is_done(folder):
            self.run_folder.say(f"{title}: done earlier")
            self._tidy(folder)
            return
        with self.state.main_process_first():
            checkpoint = last_complete_checkpoint(checkpoints, remove_others=self.state.is_main_process)
        clock = _Clock(checkpoints / "seconds.json", fresh=checkpoint is None)
        with self._logged_into(self.run_folder.logs / folder.relative_to(self.run_folder.stages)):
            trainer = self.trainer(name, previous, task)
        for callback in (clock, *(kind() for kind in map(callback_class, self.recipe.callbacks or ()))):
            trainer.add_callback(callback)
        told = self.forecast.parts.get(self.part_name(name, task)) if self.forecast else None
        show_progress(trainer, title if told is None else f"{title} (forecast {duration(told)})")
        if not trainer.args.bf16 and AUTO in (
            getattr(self.recipe, name).get("bf16"),
            task and task.section.stage(name).get("bf16"),
        ):
            self.run_folder.say(f"  In fp32 (bf16: {AUTO}): {hardware()} has no instructions for bf16")
        if checkpoint is not None:
            self.run_folder.say(f"{title}: going on from step {checkpoint.name.split('-')[-1]}")
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.signal.stopped:
            self.run_folder.say(f"{title}: stopped at step {trainer.state.global_step}. The same command goes on from there.")
            raise SystemExit(128 + signal.SIGTERM)
        trainer.save_model(str(folder))
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            write_sums(folder, leaving_out=(checkpoints.name, CACHE_FOLDER, "done.json"))
            write_json(folder / "done.json", dataclasses.asdict(self._record(name, trainer, clock.seconds)))
        self._tidy(folder)
        self.state.wait_for_everyone()

    @contextlib.contextmanager
    def _logged_into(self, folder: Path) -> Iterator[None]:
        """Inside this context a trainer's TensorBoard writes there, or where its variable says; its own default is removed."""
        before = os.environ.get(TENSORBOARD_FOLDER)
        os.environ[TENSORBOARD_FOLDER] = str(Path(before) / folder.relative_to(self.run_folder.logs)) if before else str(folder)
        try:
            yield
        finally:
            if before is None:
                del os.environ[TENSORBOARD_FOLDER]
            else:
                os.environ[TENSORBOARD_FOLDER] = before

    def _tidy(self, folder: Path) -> None:
        """Removes what a finished stage needs no more."""
        if self.state.is_main_process:
            remove(folder / "checkpoints")
            remove(folder / CACHE_FOLDER)

    def replace_words(self, task: TaskInputs, folder: Path) -> dict[str, Any]:
        """Writes copies of a task's examples in which the general teacher has replaced words; the first process does."""
        if not self.state.is_main_process:
            return {}
        started, device = time.monotonic(), self.state.device
        teacher = LiveTeacher(self.inputs.load_teacher().to(device))
        copies = task.copies_with_replaced_words(teacher.logits, self.inputs.teacher_tokenizer, device)
        copies.save_to_disk(folder / "rows")
        return {"examples": len(copies), "seconds": time.monotonic() - started}

    def folder(self, name: str, task: TaskInputs | None) -> Path:
        return self.run_folder.stages / (task.folder if task else "") / name

    def cache_folder(self, name: str, task: TaskInputs | None) -> Path:
        if self.recipe.cache.folder is None:
            return self.folder(name, task) / CACHE_FOLDER
        return Path(self.recipe.cache.folder) / (task.section.name if task else "") / name

    def _rows_made_from(self, task: TaskInputs | None) -> dict[str, Any]:
        """What decides over a stage's rows, for its cache to say."""
        if task is None:
            return {"source": self.recipe.corpus.name, "max_length": self.inputs.max_length}
        return {"source": task.section.data, "task": task.section.name, "max_length": task.length}

    def trainer(self, name: str, previous: str | None, task: TaskInputs | None) -> TokenMeanTrainer:
        """The trainer of a stage, its data included."""
        args, section = self.arguments(name, task), self.recipe.evaluation
        if task is None:
            train, held_out = self.blocks("train"), self.blocks("validation")
        else:
            tokenizer = self.inputs.teacher_tokenizer if previous is None else self.tokenizer
            taught = previous is None
            splits = ("train" if taught else "student", "validation")
            train, held_out = (task.questions(split, tokenizer, labelled=taught) for split in splits)
            if name == "task_words":
                train, held_out = sequences(train), sequences(held_out)
        # A few rows show how the loss goes; to choose a checkpoint takes more.
        held_out = first_rows(held_out, section.curve_rows if previous is not None else section.rows, self.recipe.seed)
        if task is not None and previous is None:
            patience = task.section.patience
            model = self.inputs.load_teacher()
            if task.section.teacher_lora is not None:
                model = with_new_adapter(model, task.section.teacher_lora)
            return LabelTrainer(
                model=model,
                args=args,
                train_dataset=train,
                eval_dataset=held_out,
                data_collator=CandidateCollator(self.inputs.teacher_tokenizer),
                processing_class=self.inputs.teacher_tokenizer,
                callbacks=[EarlyStoppingCallback(patience)] if patience is not None else None,
            )
        teacher: Teacher = LiveTeacher(self.load_teacher(task), self.vocab_map)
        cache = self.recipe.cache
        if cache is not None and name in cache.stages:
            self.run_folder.say("  The teacher is run over the rows once")
            train = rows_of_training(train, args)
            folder, teacher = self.cache_folder(name, task), teacher.to(self.state.device)
            teacher = cached_stage(cache, folder, teacher, train, held_out, self.tokenizer, args, self._rows_made_from(task))
        return GLMDTrainer(
            model=load_word_model(self.run_folder.stages / previous, dtype=torch.float32),
            teacher=teacher,
            args=args,
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=self.tokenizer,
            vocab_map=self.vocab_map,
        )

    def load_teacher(self, task: TaskInputs | None) -> PreTrainedModel:
        """The general teacher for plain text; for a task the one that was fine-tuned on it, if there is one."""
        if task is None or self.recipe.task_teacher is None:
            return self.inputs.load_teacher()
        return load_word_model(self.folder("task_teacher", task), dtype=torch.float32)

    def arguments(self, name: str, task: TaskInputs | None = None) -> TrainingArguments:
        """A stage's section as arguments. Raises: UsageError, a value makes no sense."""
        options = {
            **TRAINING_DEFAULTS,
            "use_cpu": not torch.accelerator.is_available(),
            "dataloader_pin_memory": torch.accelerator.is_available(),
            **(TEACHER_DEFAULTS if name == "task_teacher" else {}),
            **getattr(self.recipe, name),
            **(task.section.stage(name) if task else {}),
            "output_dir": str(self.folder(name, task) / "checkpoints"),
            "seed": self.recipe.seed,
        }
        # Trackers that are no files (wandb, trackio) tell the stages apart by it.
        options.setdefault("run_name", "/".join(filter(None, (self.run_folder.path.name, task and task.folder, name))))
        if options.get("bf16") == AUTO:
            options["bf16"] = has_fast_bf16(self.state.device)
        if options.get("load_best_model_at_end"):
            # What is found best must have been saved.
            chosen = getattr(self.recipe, name) | (task.section.stage(name) if task else {})
            options |= {f"save_{part}": options[f"eval_{part}"] for part in ("strategy", "steps") if f"save_{part}" not in chosen}
        try:
            if name == "task_teacher" and (mistakes := number_mistakes(options)):
                raise UsageError("; ".join(mistakes) + ".")
            if name == "task_teacher":
                return TrainingArguments(**options)
            objective = "soft_label" if name == "task_answers" else "word_prediction"
            return GLMDConfig(**options, objective=objective)
        except (ValueError, TypeError) as error:
            raise UsageError(f"section {name}: {' '.join(str(error).split())}") from error

    def blocks(self, split: str) -> datasets.Dataset:
        with self.state.main_process_first():
            section = self.recipe.corpus
            return pack_blocks(
                self.inputs.corpus[split], self.tokenizer, self.inputs.max_length, section.column, section.num_proc
            )

    def _record(self, name: str, trainer: Trainer, seconds: float) -> StageRecord:
        args = trainer.args
        return StageRecord(
            name=name,
            title=TITLES[name],
            objective=getattr(args, "objective", "gold_labels"),
            temperature=getattr(args, "temperature", None),
            positions=args.positions if getattr(args, "objective", "") == "word_prediction" else None,
            steps=trainer.state.global_step,
            seconds=seconds,
            batch_size=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            learning_rate=args.learning_rate,
            tokens=trainer.state.num_input_tokens_seen,
            **learning_curves(trainer.state.log_history),
        )

    def records(self, names: Sequence[str], task: TaskInputs | None) -> list[StageRecord]:
        """What the finished stages of those names left in their done.json."""
        folders = [self.folder(name, task) for name in names if getattr(self.recipe, name) is not None]
        return [StageRecord(**self.run_folder.facts(folder)) for folder in folders]

    @cached_property
    def vocab_map(self) -> VocabMap | None:
        return VocabMap.load(self.run_folder.stages / "student") if self.recipe.vocab.active else None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The student's."""
        return load_tokenizer(self.run_folder.stages / "student")


class _Clock(TrainerCallback):
    """Seconds that a stage took, over all of its restarts."""

    def __init__(self, file: Path, fresh: bool) -> None:
        self.file = file
        self.before = 0.0
        if not fresh and file.exists():
            with contextlib.suppress(UsageError, KeyError, TypeError, ValueError):  # of no weight: it must not end a run
                self.before = float(read_json(file, "")["seconds"])
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def on_save(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero:
            write_json(self.file, {"seconds": self.seconds})


def learning_curves(history: Sequence[Mapping[str, Any]]) -> dict[str, list]:
    """The curves of a `StageRecord`: of the scores on held-out rows, and of the training loss.

    Args:
        history: `trainer.state.log_history`.
    Returns: `steps_evaluated` with `kl` and `agreement`, or with `accuracy`; `steps_logged` with `loss`.
    """
    scored = [entry for entry in history if "eval_kl" in entry or "eval_accuracy" in entry]
    logged = [entry for entry in history if math.isfinite(entry.get("loss", math.nan))]
    return {
        "steps_evaluated": [entry["step"] for entry in scored],
        "kl": [entry["eval_kl"] for entry in scored if "eval_kl" in entry],
        "agreement": [entry["eval_agreement"] for entry in scored if "eval_agreement" in entry],
        "accuracy": [entry["eval_accuracy"] for entry in scored if "eval_kl" not in entry],
        "steps_logged": [entry["step"] for entry in logged],
        "loss": [entry["loss"] for entry in logged],
    }
