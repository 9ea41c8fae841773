"""The training stages of a recipe: what each is given, how it is trained and resumed, and what is recorded of it."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from collections.abc import Sequence
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

from hf_glmd.corpora.blocks import pack_blocks
from hf_glmd.errors import UsageError
from hf_glmd.inputs import Inputs
from hf_glmd.models.adapters import with_new_adapter
from hf_glmd.models.loading import load_word_model
from hf_glmd.recipe import STAGES, TASK_STAGES
from hf_glmd.records import StageRecord, write_json
from hf_glmd.run_folder import RunFolder, last_complete_checkpoint, remove
from hf_glmd.stage_cache import cached_stage, rows_of_training
from hf_glmd.task_inputs import TaskInputs, first_rows
from hf_glmd.tasks.candidates import CandidateCollator
from hf_glmd.tasks.rewordings import sequences
from hf_glmd.tokenizer_files import load_tokenizer
from hf_glmd.training.config import GLMDConfig
from hf_glmd.training.curves import learning_curves
from hf_glmd.training.gold_answers import GoldAnswerTrainer
from hf_glmd.training.progress import show_progress
from hf_glmd.training.teachers import LiveTeacher, Teacher
from hf_glmd.training.token_mean import TokenMeanTrainer
from hf_glmd.training.trainer import GLMDTrainer
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


class Stages:
    """The training stages, each in a folder of its own.

    Args:
        given: what the recipe is about.
        place: where it is written.
    """

    def __init__(self, given: Inputs, place: RunFolder) -> None:
        self.recipe, self.given, self.place, self.state = given.recipe, given, place, given.state

    def check(self) -> None:
        """Raises: UsageError, a value of a stage makes no sense, or none trains the student."""
        for name in STAGES:
            for given in self.given.tasks if name in TASK_STAGES else [None]:
                if getattr(self.recipe, name) is not None:
                    self.arguments(name, given)
        if not any(getattr(self.recipe, name) is not None for name in STAGES if name != "task_teacher"):
            raise UsageError(
                "the recipe has no stage that trains the student. Add a section 'general' or a task with its stages."
            )

    def train(self, name: str, previous: str | None, given: TaskInputs | None = None) -> None:
        """One training stage, from the student that `previous` left (None: from the teacher, on the task's gold answers)."""
        folder, title = self.folder(name, given), TITLES[name] + (given.label if given else "")
        if (folder / "done.json").exists():
            self.place.say(f"{title}: done earlier")
            return
        checkpoints = folder / "checkpoints"
        with self.state.main_process_first():
            checkpoint = last_complete_checkpoint(checkpoints, remove_others=self.state.is_main_process)
        clock = _Clock(checkpoints / "seconds.json", fresh=checkpoint is None)
        trainer = self.trainer(name, previous, given)
        trainer.add_callback(clock)
        show_progress(trainer, title)
        if checkpoint is not None:
            self.place.say(f"{title}: going on from step {checkpoint.name.split('-')[-1]}")
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.signal.stopped:
            self.place.say(f"{title}: stopped at step {trainer.state.global_step}. The same command goes on from there.")
            raise SystemExit(128 + signal.SIGTERM)
        trainer.save_model(str(folder))
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            write_json(folder / "done.json", dataclasses.asdict(self._record(name, trainer, clock.seconds)))
            remove(checkpoints)
            remove(folder / CACHE_FOLDER)
        self.state.wait_for_everyone()

    def replace_words(self, given: TaskInputs, folder: Path) -> dict[str, Any]:
        """Writes copies of a task's examples in which the general teacher has replaced words; the first process does."""
        if not self.state.is_main_process:
            return {}
        started, device = time.monotonic(), self.state.device
        teacher = LiveTeacher(self.given.load_teacher().to(device))
        copies = given.copies_with_replaced_words(teacher.logits, self.given.teacher_tokenizer, device)
        copies.save_to_disk(folder / "rows")
        return {"examples": len(copies), "seconds": time.monotonic() - started}

    def folder(self, name: str, given: TaskInputs | None) -> Path:
        return self.place.stages / (given.folder if given else "") / name

    def cache_folder(self, name: str, given: TaskInputs | None) -> Path:
        if self.recipe.cache.folder is None:
            return self.folder(name, given) / CACHE_FOLDER
        return Path(self.recipe.cache.folder) / (given.section.name if given else "") / name

    def _rows_made_from(self, given: TaskInputs | None) -> dict[str, Any]:
        """What decides over a stage's rows, for its cache to say."""
        if given is None:
            return {"source": self.recipe.corpus.name, "max_length": self.given.max_length}
        return {"source": given.section.data, "task": given.section.name, "max_length": given.length}

    def trainer(self, name: str, previous: str | None, given: TaskInputs | None) -> TokenMeanTrainer:
        """The trainer of a stage, its data included."""
        args, section = self.arguments(name, given), self.recipe.evaluation
        if given is None:
            train, held_out = self.blocks("train"), self.blocks("validation")
        else:
            tokenizer = self.given.teacher_tokenizer if previous is None else self.tokenizer
            taught = previous is None
            splits = ("train" if taught else "student", "validation")
            train, held_out = (given.questions(split, tokenizer, labelled=taught) for split in splits)
            if name == "task_words":
                train, held_out = sequences(train), sequences(held_out)
        # A few rows show how the loss goes; to choose a checkpoint takes more.
        held_out = first_rows(held_out, section.curve_rows if previous is not None else section.rows, self.recipe.seed)
        if given is not None and previous is None:
            patience = given.section.patience
            model = self.given.load_teacher()
            if given.section.teacher_lora is not None:
                model = with_new_adapter(model, given.section.teacher_lora)
            return GoldAnswerTrainer(
                model=model,
                args=args,
                train_dataset=train,
                eval_dataset=held_out,
                data_collator=CandidateCollator(self.given.teacher_tokenizer),
                processing_class=self.given.teacher_tokenizer,
                callbacks=[EarlyStoppingCallback(patience)] if patience is not None else None,
            )
        teacher: Teacher = LiveTeacher(self.load_teacher(given), self.vocab_map)
        cache = self.recipe.cache
        if cache is not None and name in cache.stages:
            self.place.say("  The teacher is run over the rows once")
            train = rows_of_training(train, args)
            folder, teacher = self.cache_folder(name, given), teacher.to(self.state.device)
            teacher = cached_stage(cache, folder, teacher, train, held_out, self.tokenizer, args, self._rows_made_from(given))
        return GLMDTrainer(
            model=load_word_model(self.place.stages / previous, dtype=torch.float32),
            teacher=teacher,
            args=args,
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=self.tokenizer,
            vocab_map=self.vocab_map,
        )

    def load_teacher(self, given: TaskInputs | None) -> PreTrainedModel:
        """The general teacher for plain text; for a task the one that was fine-tuned on it, if there is one."""
        if given is None or self.recipe.task_teacher is None:
            return self.given.load_teacher()
        return load_word_model(self.folder("task_teacher", given), dtype=torch.float32)

    def arguments(self, name: str, given: TaskInputs | None = None) -> TrainingArguments:
        """A stage's section as arguments. Raises: UsageError, a value makes no sense."""
        options = {
            **TRAINING_DEFAULTS,
            "use_cpu": not torch.accelerator.is_available(),
            "dataloader_pin_memory": torch.accelerator.is_available(),
            **(TEACHER_DEFAULTS if name == "task_teacher" else {}),
            **getattr(self.recipe, name),
            **(given.section.stage(name) if given else {}),
            "output_dir": str(self.folder(name, given) / "checkpoints"),
            "seed": self.recipe.seed,
        }
        if options.get("load_best_model_at_end"):
            # What is found best must have been saved.
            chosen = getattr(self.recipe, name) | (given.section.stage(name) if given else {})
            options |= {f"save_{part}": options[f"eval_{part}"] for part in ("strategy", "steps") if f"save_{part}" not in chosen}
        try:
            if name == "task_teacher":
                return TrainingArguments(**options)
            objective = "soft_label" if name == "task_answers" else "word_prediction"
            return GLMDConfig(**options, objective=objective)
        except (ValueError, TypeError) as error:
            raise UsageError(f"section {name}: {' '.join(str(error).split())}") from error

    def blocks(self, split: str) -> datasets.Dataset:
        with self.state.main_process_first():
            section = self.recipe.corpus
            return pack_blocks(self.given.corpus[split], self.tokenizer, self.given.max_length, section.column, section.num_proc)

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

    def records(self, names: Sequence[str], given: TaskInputs | None) -> list[StageRecord]:
        """What the finished stages of those names left in their done.json."""
        files = [self.folder(name, given) / "done.json" for name in names if getattr(self.recipe, name) is not None]
        return [StageRecord(**json.loads(file.read_text(encoding="utf-8"))) for file in files]

    @cached_property
    def vocab_map(self) -> VocabMap | None:
        return VocabMap.load(self.place.stages / "student") if self.recipe.vocab.active else None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The student's."""
        return load_tokenizer(self.place.stages / "student")


class _Clock(TrainerCallback):
    """Seconds that a stage took, over all of its restarts."""

    def __init__(self, file: Path, fresh: bool) -> None:
        self.file = file
        self.before = 0.0 if fresh or not file.exists() else json.loads(file.read_text(encoding="utf-8"))["seconds"]
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def on_save(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero:
            write_json(self.file, {"seconds": self.seconds})
