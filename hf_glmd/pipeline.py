"""A recipe, run from start to end: vocabulary, student, the training stages, scores, and what is written. It can be killed and
started again at any moment: finished steps are kept, a stage goes on from its last checkpoint.

    OUTPUT_DIR/
        run.json        the recipe as it was understood
        stages/         one folder per step, with its model and, once it is finished, done.json; of a list of tasks in TASK/
        student/        the result: weights, config, tokenizer, vocab_map.safetensors, README.md, plots/
        students/       of a list of tasks, in TASK/: the student of each, where student/ has read plain text only
        predictions/    the answers of both models, as the tasks' benchmarks want them; of a list in TASK/
        metrics.json    a `RunRecord`: everything that was measured
        plots/
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_glmd.cards import render_card, terminal_table
from hf_glmd.corpora.blocks import pack_blocks
from hf_glmd.errors import UsageError
from hf_glmd.evaluation import compare_word_predictions, model_facts
from hf_glmd.inputs import Inputs
from hf_glmd.machine import cpu_cores, hardware, versions
from hf_glmd.models.loading import load_word_model
from hf_glmd.models.student import build_student
from hf_glmd.plots import save_plots
from hf_glmd.recipe import STAGES, TASK_STAGES, Recipe
from hf_glmd.records import RunRecord, StageRecord, TaskScores, VocabFacts, WordScores, write_json
from hf_glmd.shrinker import VocabShrinker
from hf_glmd.task_inputs import TaskInputs, first_rows
from hf_glmd.task_scoring import score_task
from hf_glmd.tasks.candidates import CandidateCollator
from hf_glmd.tasks.rewordings import sequences
from hf_glmd.tokenizer_files import load_tokenizer
from hf_glmd.training.config import GLMDConfig
from hf_glmd.training.gold_answers import GoldAnswerTrainer
from hf_glmd.training.progress import show_progress
from hf_glmd.training.teachers import LiveTeacher
from hf_glmd.training.token_mean import TokenMeanTrainer
from hf_glmd.training.trainer import GLMDTrainer
from hf_glmd.vocab.vocab_map import VocabMap

TITLES = {
    "general": "Stage 1: word prediction on plain text",
    "task_teacher": "The teacher learns the task",
    "task_words": "Stage 2: word prediction on task text",
    "task_answers": "Stage 3: the teacher's answers",
}
OWNED = (
    "metrics.json",
    "student.part",
    "student",
    "students",
    "predictions",
    "plots",
    "stages",
    "run.json.part",
    "run.json",
)
"""What a run writes into its output folder, and all that --overwrite removes: run.json last, for it says whose the rest is."""

VERIFIED_TEXTS = 200
"""Counted texts on which the smaller vocabulary is compared with the teacher's before anything is trained with it."""

TRAINING_DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "logging_steps": 10,
    "eval_strategy": "steps",
    "eval_steps": 0.1,
    "eval_on_start": True,
    "save_steps": 0.2,
    "save_total_limit": 1,
}
"""Of every stage, unless the recipe says otherwise; shares are of the stage's steps."""

TEACHER_DEFAULTS: dict[str, Any] = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
"""Of the teacher's fine-tuning: its best checkpoint teaches."""


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
    run.claim_folder(overwrite)
    return run.finish()


class Run:
    """A recipe on its way.

    Args:
        recipe: what to do.
        command: how it was called.
    """

    def __init__(self, recipe: Recipe, command: str = "") -> None:
        self.recipe, self.command = recipe, command
        self.folder = Path(recipe.output_dir)
        self.stages = self.folder / "stages"
        self.state = PartialState(cpu=not torch.accelerator.is_available())
        self.given = Inputs(recipe, self.state)
        if self.state.device.type == "cpu":
            # accelerate launch sets OMP_NUM_THREADS=1 unless it is told --cpu: one thread, without a word.
            torch.set_num_threads(recipe.threads or max(1, cpu_cores() // self.state.num_processes))

    # Before anything costs time

    def check(self) -> None:
        """Everything that can be known without weights. Raises: UsageError, something is missing or does not fit."""
        self.given.check_teacher()
        self.check_stages()
        self.say(f"Reading the corpus: {self.recipe.corpus.name} (the first time takes longest, then it is cached)")
        self.given.load_data()

    def check_stages(self) -> None:
        for name in STAGES:
            for given in self.given.tasks if name in TASK_STAGES else [None]:
                if getattr(self.recipe, name) is not None:
                    self.arguments(name, given)
        if not any(getattr(self.recipe, name) is not None for name in STAGES if name != "task_teacher"):
            raise UsageError(
                "the recipe has no stage that trains the student. Add a section 'general' or a task with its stages."
            )

    def claim_folder(self, overwrite: bool) -> None:
        """Makes the output folder this run's. Raises: UsageError, it holds a different run or something else."""
        file = self.folder / "run.json"
        ours = _comparable(self.recipe)
        signs = (
            self.folder.glob("metrics.json"),
            self.stages.glob("**/done.json"),
            self.stages.glob("**/checkpoints/checkpoint-*"),
        )
        begun = any(any(paths) for paths in signs)
        self.state.wait_for_everyone()
        with self.state.main_process_first():
            if overwrite and self.state.is_main_process:
                for name in OWNED:
                    _remove(self.folder / name)
            if file.exists():
                difference = _first_difference(json.loads(file.read_text(encoding="utf-8")), ours)
                if difference and begun:
                    raise UsageError(
                        f"'{self.folder}' holds a different run: {difference}. "
                        "Give another --output_dir, or --overwrite to remove that run and start anew."
                    )
                if begun:
                    self.say(f"Going on with the run in {self.folder}")
                elif self.state.is_main_process:  # an earlier try that came to nothing, mended meanwhile
                    write_json(file, ours)
            elif self.folder.exists() and any(path.name != "run.json.part" for path in self.folder.iterdir()):
                raise UsageError(f"'{self.folder}' is not empty and holds no run of ours. Give another --output_dir.")
            elif self.state.is_main_process:
                write_json(file, ours)
        self.state.wait_for_everyone()

    # The steps

    def finish(self) -> RunRecord:
        """Every step that is not done yet, in order; prints the table at the end."""
        metrics = self.folder / "metrics.json"
        if metrics.exists():
            self.say("Finished earlier. Nothing to do; --overwrite starts anew.")
            record = RunRecord.load(metrics)
        else:
            set_seed(self.recipe.seed)
            self.step("student", "Cutting the vocabulary and building the student", self.make_student)
            previous = "student"
            if self.recipe.general is not None:
                self.train("general", previous)
                previous = "general"
            ends = [self.train_task(given, previous) for given in self.given.tasks]
            if ends and not self.recipe.tasks:
                previous = ends[0]
            record = self.evaluate(previous)
            self.publish(record, previous, ends)
        self.say("\n" + terminal_table(record))
        self.say(
            f'\nThe student is in {self.folder / "student"}: AutoModelForMaskedLM.from_pretrained("{self.folder / "student"}")'
        )
        return record

    def train_task(self, given: TaskInputs, previous: str) -> str:
        """The stages of a task from the student that `previous` left, and its scores. Returns: where the last student is."""
        if self.recipe.task_teacher is not None:
            self.train("task_teacher", None, given)
        for name in ("task_words", "task_answers"):
            if getattr(self.recipe, name) is not None:
                self.train(name, previous, given)
                previous = str(Path(given.folder) / name)
        self.step(str(Path(given.folder) / "scores"), f"Scores{given.label}", lambda folder: self.score(given, previous, folder))
        return previous

    def step(self, name: str, title: str, work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Work that is done once: its folder appears whole, with done.json, or not at all. All processes work, one writes."""
        folder, unfinished = self.stages / name, self.stages / f"{name}.part"
        if (folder / "done.json").exists():
            self.say(f"{title}: done earlier")
        else:
            self.say(title)
            if self.state.is_main_process:
                _remove(unfinished)
                unfinished.mkdir(parents=True)
            try:
                facts = work(unfinished)
            except BaseException:
                _remove(unfinished)
                raise
            if self.state.is_main_process:
                write_json(unfinished / "done.json", facts)
                os.replace(unfinished, folder)
        self.state.wait_for_everyone()
        return json.loads((folder / "done.json").read_text(encoding="utf-8"))

    def make_student(self, folder: Path) -> dict[str, Any]:
        """Counts, cuts, builds; writes tokenizer, vocabulary map, counts and the untrained student."""
        recipe, section, started = self.recipe, self.recipe.vocab, time.monotonic()
        shrinker = VocabShrinker(self.given.teacher_tokenizer)
        texts = first_rows(self.given.corpus["train"], section.max_texts, recipe.seed)
        if section.active:
            shrinker.count(texts, column=recipe.corpus.column)  # each process counts its share
        if not self.state.is_main_process:
            return {}
        teacher = self.load_teacher(self.recipe.teacher.model)
        facts: dict[str, Any] = {}
        vocab = None
        if section.active:
            vocab = shrinker.shrink(
                **{k: v for k in ("size", "coverage", "min_count") if (v := getattr(section, k)) is not None},
                keep=[
                    *section.keep,
                    *(token for given in self.given.tasks for token in given.task.keep_tokens(self.given.teacher_tokenizer)),
                ],
                removed=section.removed,
                multiple_of=section.multiple_of,
            )
            vocab.verify(texts[:VERIFIED_TEXTS][recipe.corpus.column], model=teacher)
            vocab.save_pretrained(folder)
            shrinker.save_counts(folder / "counts.safetensors")
            facts["report"] = dataclasses.asdict(vocab.report)
            facts["curve"] = _long_tail(shrinker.counts)
        else:
            self.given.teacher_tokenizer.save_pretrained(folder)
        student = build_student(
            teacher,
            num_layers=self.given.num_layers,
            vocab=vocab,
            init=recipe.student.init,
            dtype=torch.float32,
            **({"layers": recipe.student.layers} if recipe.student.layers else {}),
            **recipe.student.config,
        )
        student.save_pretrained(folder)
        return {**facts, "seconds": time.monotonic() - started}

    @cached_property
    def vocab_map(self) -> VocabMap | None:
        return VocabMap.load(self.stages / "student") if self.recipe.vocab.active else None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The student's."""
        return load_tokenizer(self.stages / "student")

    def load_teacher(self, name_or_path: str | Path) -> PreTrainedModel:
        """In fp32: it is run under autocast where a stage asks for less."""
        revision = self.recipe.teacher.revision if str(name_or_path) == self.recipe.teacher.model else None
        return load_word_model(name_or_path, dtype=torch.float32, revision=revision)

    def train(self, name: str, previous: str | None, given: TaskInputs | None = None) -> None:
        """One training stage, from the student that `previous` left (None: from the teacher, on the task's gold answers)."""
        folder, title = self.stage_folder(name, given), TITLES[name] + (given.label if given else "")
        if (folder / "done.json").exists():
            self.say(f"{title}: done earlier")
            return
        checkpoints = folder / "checkpoints"
        with self.state.main_process_first():
            checkpoint = last_complete_checkpoint(checkpoints, remove_others=self.state.is_main_process)
        clock = _Clock(checkpoints / "seconds.json", fresh=checkpoint is None)
        trainer = self.trainer(name, previous, given)
        trainer.add_callback(clock)
        show_progress(trainer, title)
        if checkpoint is not None:
            self.say(f"{title}: going on from step {checkpoint.name.split('-')[-1]}")
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.signal.stopped:
            self.say(f"{title}: stopped at step {trainer.state.global_step}. The same command goes on from there.")
            raise SystemExit(128 + signal.SIGTERM)
        trainer.save_model(str(folder))
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            write_json(folder / "done.json", dataclasses.asdict(self.stage_record(name, trainer, clock.seconds)))
            _remove(checkpoints)
        self.state.wait_for_everyone()

    def stage_folder(self, name: str, given: TaskInputs | None) -> Path:
        return self.stages / (given.folder if given else "") / name

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
            return GoldAnswerTrainer(
                model=self.load_teacher(self.recipe.teacher.model),
                args=args,
                train_dataset=train,
                eval_dataset=held_out,
                data_collator=CandidateCollator(self.given.teacher_tokenizer),
                processing_class=self.given.teacher_tokenizer,
                callbacks=[EarlyStoppingCallback(patience)] if patience is not None else None,
            )
        return GLMDTrainer(
            model=load_word_model(self.stages / previous, dtype=torch.float32),
            teacher=LiveTeacher(self.load_teacher(self.teacher_of(given)), self.vocab_map),
            args=args,
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=self.tokenizer,
            vocab_map=self.vocab_map,
        )

    def teacher_of(self, given: TaskInputs | None) -> str | Path:
        """The general teacher for plain text; for the task the one that was fine-tuned on it, if there is one."""
        if given is None or self.recipe.task_teacher is None:
            return self.recipe.teacher.model
        return self.stage_folder("task_teacher", given)

    def arguments(self, name: str, given: TaskInputs | None = None) -> TrainingArguments:
        """A stage's section as arguments. Raises: UsageError, a value makes no sense."""
        options = {
            **TRAINING_DEFAULTS,
            "use_cpu": not torch.accelerator.is_available(),
            "dataloader_pin_memory": torch.accelerator.is_available(),
            **(TEACHER_DEFAULTS if name == "task_teacher" else {}),
            **getattr(self.recipe, name),
            **(given.section.stage(name) if given else {}),
            "output_dir": str(self.stage_folder(name, given) / "checkpoints"),
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

    # What came out

    def stage_record(self, name: str, trainer: Trainer, seconds: float) -> StageRecord:
        args, curve = trainer.args, [entry for entry in trainer.state.log_history if "eval_kl" in entry]
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
            steps_evaluated=[entry["step"] for entry in curve],
            kl=[entry["eval_kl"] for entry in curve],
            agreement=[entry["eval_agreement"] for entry in curve],
        )

    def evaluate(self, last: str) -> RunRecord:
        """Scores the student at its start, after stage 1 and at its end, beside the teacher, on held-out text."""
        started, section = time.monotonic(), self.recipe.evaluation
        rows = first_rows(self.blocks("test"), section.rows, self.recipe.seed)
        self.say("Scoring")
        teacher = LiveTeacher(self.load_teacher(self.recipe.teacher.model).to(self.state.device), self.vocab_map)

        def words(stage: str, when: str) -> WordScores:
            student = load_word_model(self.stages / stage, dtype=torch.float32).to(self.state.device)
            return compare_word_predictions(student, teacher, self.tokenizer, rows, desc=f"Scoring masked words {when}")

        scores = {
            "words_start": words("student", "before training"),
            "words_general": words("general", "after stage 1") if self.recipe.general is not None else None,
            "words_final": words(last, "of the student"),
        }
        tasks = [self.task_scores(given) for given in self.given.tasks]
        details = json.loads((self.stages / "student" / "done.json").read_text(encoding="utf-8"))
        listed = self.recipe.tasks is not None
        stages = self.stage_records(STAGES[:1] if listed else STAGES, None)
        before, after = self.tokens_per_text()
        report = details.get("report", {})
        size = len(self.given.teacher_tokenizer)
        ranks, counts = details.get("curve", ([], []))
        return RunRecord(
            name=self.folder.name,
            teacher=model_facts(teacher.model, self.recipe.teacher.model, section.speed_batch_sizes, section.speed_length),
            student=model_facts(
                load_word_model(self.stages / last, dtype=torch.float32).to(self.state.device),
                self.folder.name,
                section.speed_batch_sizes,
                section.speed_length,
            ),
            vocab=VocabFacts(
                original_size=report.get("original_size", size),
                size=report.get("size", size),
                coverage=report.get("coverage", 1.0),
                length_ratio=after / before,
                tokens_per_text_before=before,
                tokens_per_text_after=after,
                removed_examples=list(report.get("removed_examples", [])),
            ),
            **scores,
            task=None if listed or not tasks else tasks[0],
            tasks=tasks if listed else [],
            stages=stages,
            corpus=self.corpus_in_words(),
            hardware=hardware(),
            command=self.command,
            versions=versions("hf_glmd", "torch", "transformers", "accelerate", "datasets", "tokenizers"),
            count_ranks=ranks,
            counts_sorted=counts,
            max_tokens=self.given.max_length,
            seconds=details["seconds"]
            + sum(part.seconds for part in [*self.stage_records(STAGES[:1], None), *tasks])
            + (time.monotonic() - started),
        )

    def stage_records(self, names: Sequence[str], given: TaskInputs | None) -> list[StageRecord]:
        """What the finished stages of those names left in their done.json."""
        files = [self.stage_folder(name, given) / "done.json" for name in names if getattr(self.recipe, name) is not None]
        return [StageRecord(**json.loads(file.read_text(encoding="utf-8"))) for file in files]

    def task_scores(self, given: TaskInputs) -> TaskScores:
        found = json.loads((self.stage_folder("scores", given) / "done.json").read_text(encoding="utf-8"))
        return TaskScores(**found)

    def score(self, given: TaskInputs, last: str, folder: Path) -> dict[str, Any]:
        """Both models' answers to a task, in `folder`, and what they score."""
        started, device = time.monotonic(), self.state.device
        teacher = LiveTeacher(self.load_teacher(self.teacher_of(given)).to(device))
        student = LiveTeacher(load_word_model(self.stages / last, dtype=torch.float32).to(device))
        models = {"teacher": (teacher, self.given.teacher_tokenizer), "student": (student, self.tokenizer)}
        scores = score_task(given, models, device, folder)
        scores.seconds = sum(stage.seconds for stage in self.stage_records(TASK_STAGES, given)) + time.monotonic() - started
        return dataclasses.asdict(scores)

    def tokens_per_text(self) -> tuple[float, float]:
        """Mean tokens per held-out text with the teacher's and with the student's tokenizer, specials left out."""
        texts = self.given.corpus["test"][:2000][self.recipe.corpus.column]
        before, after = (
            np.mean([len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]])
            for tokenizer in (self.given.teacher_tokenizer, self.tokenizer)
        )
        return float(before), float(after)

    def corpus_in_words(self) -> str:
        name = self.recipe.corpus.name
        what = "docstrings of installed libraries" if name == "docstrings" else name
        return f"{what}, {len(self.given.corpus['train']):,} texts"

    def publish(self, record: RunRecord, last: str, ends: Sequence[str]) -> None:
        """Writes student/, plots/, predictions/, students/ and, as the last of all, metrics.json."""
        if self.state.is_main_process:
            unfinished, folder = self.folder / "student.part", self.folder / "student"
            _remove(unfinished)
            self.save_student(last, unfinished)
            for facts, path in ((record.student, unfinished), (record.teacher, Path(self.recipe.teacher.model))):
                files = list(path.glob("*.safetensors")) if path.is_dir() else []
                facts.file_bytes = sum(file.stat().st_size for file in files if file.name != "vocab_map.safetensors")
                facts.file_dtype = str(self.given.teacher_config.dtype or torch.float32).removeprefix("torch.")
            save_plots(record, unfinished / "plots")
            _remove(self.folder / "plots")
            shutil.copytree(unfinished / "plots", self.folder / "plots")
            card = render_card(record, folder=str(folder), base_model=self.recipe.teacher.model)
            (unfinished / "README.md").write_text(card, encoding="utf-8")
            _remove(folder)
            os.replace(unfinished, folder)
            _remove(self.folder / "students")
            _remove(self.folder / "predictions")
            for given, end in zip(self.given.tasks, ends, strict=True):
                if given.folder:
                    self.save_student(end, self.folder / "students" / given.folder)
                for who in ("teacher", "student"):
                    written = self.folder / "predictions" / given.folder / who
                    shutil.copytree(self.stage_folder("scores", given) / who, written)
            record.save(self.folder / "metrics.json")
        self.state.wait_for_everyone()

    def save_student(self, stage: str, folder: Path) -> None:
        """The student of a stage with its tokenizer."""
        model = load_word_model(self.stages / stage, dtype=torch.float32)
        # As the teacher is stored, so that the sizes compare.
        model.to(self.given.teacher_config.dtype or torch.float32).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.vocab_map is not None:
            self.vocab_map.save(folder)

    def say(self, text: str) -> None:
        if self.state.is_main_process:
            print(text, flush=True)  # noqa: T201 - what the user sees


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


def last_complete_checkpoint(folder: Path, remove_others: bool = False) -> Path | None:
    """The newest checkpoint that was written to its end.

    The Trainer writes trainer_state.json last: a checkpoint without it is one that the process was killed in.

    Args:
        remove_others: delete the unfinished ones.
    """
    complete = []
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            complete.append(path)
        except (OSError, ValueError):
            if remove_others:
                _remove(path)
    return max(complete, key=lambda path: int(path.name.split("-")[-1]), default=None)


def _comparable(recipe: Recipe) -> dict[str, Any]:
    """The recipe without its folder and its threads: what two runs must have in common to be one."""
    data = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return {key: value for key, value in data.items() if key not in ("output_dir", "threads")}


def _first_difference(there: Any, here: Any, path: str = "") -> str | None:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *(key for key in here if key not in there)]:
            difference = _first_difference(there.get(key), here.get(key), f"{path}.{key}".lstrip("."))
            if difference:
                return difference
        return None
    return None if there == here else f"{path} is {there!r} there and {here!r} here"


def _long_tail(counts: np.ndarray, points: int = 512) -> tuple[list[int], list[int]]:
    """Counts, commonest first, at ranks that are even on a logarithmic axis."""
    ordered = np.sort(counts)[::-1]
    ranks = np.unique(np.geomspace(1, len(ordered), points).round().astype(int))
    return ranks.tolist(), ordered[ranks - 1].tolist()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
