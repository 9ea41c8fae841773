"""How each cell of a comparison is measured."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from cells import Cell, Cells, Result
from experiment import Experiment, Method
from rivals import register
from tasks import TASKS, load_task, predictions
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from hf_glmd import GLMDConfig, GLMDTrainer, LiveTeacher, VocabShrinker, build_student
from hf_glmd.data.corpus import load_corpus
from hf_glmd.data.packing import pack_blocks
from hf_glmd.evaluation.words import compare_word_predictions
from hf_glmd.models.loading import load_word_model
from hf_glmd.teachers.keys import teacher_fingerprint
from hf_glmd.utils.system import has_fast_bf16
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer

FORMAT = 1
"""Part of every cell's facts: raised when the code measures something else."""

QUIET: dict[str, Any] = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False}
QUIET["use_cpu"] = not torch.cuda.is_available()  # without it bf16 is refused there


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A vocabulary, and the rows in it."""

    tokenizer: Any
    vocab_map: Any
    rows: Mapping[str, datasets.Dataset]


class Bench:
    """An experiment on this machine: teacher, rows, and every cell with how it is measured."""

    def __init__(self, experiment: Experiment, cells: Cells) -> None:
        register()
        self.experiment, self.cells = experiment, cells
        self.bf16 = has_fast_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        self._prepared: dict[float | None, Prepared] = {}

    @cached_property
    def teacher(self) -> Any:
        return load_word_model(self.experiment.teacher, dtype=torch.float32)

    @cached_property
    def corpus(self) -> datasets.DatasetDict:
        corpus = load_corpus(self.experiment.corpus)
        count = self.experiment.texts or len(corpus["train"])
        corpus["train"] = corpus["train"].select(range(min(count, len(corpus["train"]))))
        return corpus

    @cached_property
    def _facts(self) -> dict[str, Any]:
        one = self.experiment
        return {
            "format": FORMAT,
            "teacher": teacher_fingerprint(self.teacher),
            "corpus": {name: part._fingerprint for name, part in self.corpus.items()},
            "texts": len(self.corpus["train"]),
            "rows": [one.length, one.batch_size, one.held_out],
            "common": dict(one.common),
            "bf16": self.bf16,
        }

    # Cells

    def plan(self) -> tuple[list[Cell], bool]:
        """The cells whose settings are known by now, and whether these are all."""
        cells, complete = [], True
        for method in self.experiment.methods:
            found, whole = self.of_method(method)
            cells += found
            complete &= whole
        return cells, complete

    def of_method(self, method: Method) -> tuple[list[Cell], bool]:
        tuning = self.tuning(method)
        rate = self.best_rate(method)
        if rate is None:
            return tuning, False
        trained = [self.trained(method, rate, seed) for seed in self.experiment.seeds]
        return [*tuning, *trained, *(cell for one in trained for cell in self.of_tasks(method, one).values())], True

    def tuning(self, method: Method) -> list[Cell]:
        if not method.stages:
            return []
        rates = method.learning_rates or self.experiment.learning_rates
        return [self._training(method, rate, self.experiment.tune_steps, self.experiment.seeds[0], "tune") for rate in rates]

    def best_rate(self, method: Method) -> float | None:
        """Of least KL at masked words of the validation split; 0 where nothing is trained; None: not known yet."""
        results = [(self.cells.result(cell), cell.facts["rate"]) for cell in self.tuning(method)]
        if any(result is None for result, _ in results):
            return None
        return min(((result["kl"], rate) for result, rate in results), default=(0.0, 0.0))[1]

    def trained(self, method: Method, rate: float, seed: int) -> Cell:
        steps = round(self.experiment.steps * method.budget) if method.stages else 0
        return self._training(method, rate, steps, seed, "test")

    def _training(self, method: Method, rate: float, steps: int, seed: int, kind: str) -> Cell:
        facts = self._facts | {
            "kind": kind,
            "stages": [dict(stage) for stage in method.stages],
            "student": {**self.experiment.student, **method.student},
            "rate": rate,
            "steps": steps,
            "seed": seed,
        }
        name = f"{kind} {method.name}, {steps} steps, learning rate {rate:g}, seed {seed}"
        return Cell(name, facts, lambda folder: self._train(method, rate, steps, seed, kind, folder))

    def of_tasks(self, method: Method, student: Cell) -> dict[str, Cell]:
        """Name of each task -> the cell of a student."""
        settings = self.experiment.tasks
        if settings is None:
            return {}
        shared = {key: value for key, value in dataclasses.asdict(settings).items() if key not in ("folder", "names")}

        def cell(task: str) -> Cell:
            facts = {"kind": "task", "student": student.key, "task": task, "settings": shared}
            seed = student.facts["seed"]
            return Cell(f"{task} of {student.name}", facts, lambda folder: self._task(method, student, task, seed))

        return {task: cell(task) for task in settings.names}

    def task_teacher(self, task: str) -> Cell:
        settings = self.experiment.tasks
        facts = {"format": FORMAT, "kind": "task teacher", "teacher": self._facts["teacher"], "task": task, "bf16": self.bf16}
        names = ("train", "test", "batch_size", "length", "teacher_epochs", "teacher_learning_rate")
        facts["settings"] = {name: getattr(settings, name) for name in names}
        return Cell(f"teacher of {task}", facts, lambda folder: self._train_teacher(task, folder))

    # How they are measured

    def prepared(self, vocab: float | None) -> Prepared:
        if vocab not in self._prepared:
            tokenizer, vocab_map = load_tokenizer(self.experiment.teacher), None
            if vocab is not None:
                shrunk = VocabShrinker(tokenizer).count(self.corpus["train"]["text"][:]).shrink(size=vocab)
                tokenizer, vocab_map = shrunk.tokenizer, shrunk.vocab_map
            rows = {split: pack_blocks(part, tokenizer, self.experiment.length) for split, part in self.corpus.items()}
            for split in ("validation", "test"):
                rows[split] = rows[split].select(range(min(self.experiment.held_out, len(rows[split]))))
            self._prepared[vocab] = Prepared(tokenizer, vocab_map, rows)
        return self._prepared[vocab]

    def _student_settings(self, method: Method) -> tuple[float | None, dict[str, Any]]:
        settings = {**self.experiment.student, **method.student}
        return settings.pop("vocab", None), settings

    def _train(self, method: Method, rate: float, steps: int, seed: int, kind: str, folder: Path) -> Result:
        vocab, settings = self._student_settings(method)
        prepared = self.prepared(vocab)
        set_seed(seed)
        student = build_student(self.teacher, vocab=prepared.vocab_map, **settings)
        live = LiveTeacher(self.teacher, prepared.vocab_map)
        split = "validation" if kind == "tune" else "test"
        scored = {"tokenizer": prepared.tokenizer, "blocks": prepared.rows[split]}
        before = compare_word_predictions(student, live, **scored)
        started, cpu_started = time.perf_counter(), time.process_time()
        for stage in method.stages:
            options = dict(stage)
            share = options.pop("share", 1.0)
            with tempfile.TemporaryDirectory() as output:
                args = GLMDConfig(
                    output,
                    max_steps=round(steps * share),
                    learning_rate=rate,
                    per_device_train_batch_size=self.experiment.batch_size,
                    seed=seed,
                    bf16=self.bf16,
                    logging_steps=1_000_000,
                    **{**QUIET, **self.experiment.common, **options},
                )
                GLMDTrainer(
                    student,
                    self.teacher,
                    args,
                    prepared.rows["train"],
                    processing_class=prepared.tokenizer,
                    vocab_map=prepared.vocab_map,
                ).train()
        seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu_started}
        after = compare_word_predictions(student, live, **scored)
        visible = compare_word_predictions(student, live, **scored, visible=True)
        if kind == "test" and self.experiment.tasks:
            student.save_pretrained(folder)
        return {
            "kl_before": before.kl,
            "kl": after.kl,
            "accuracy": after.accuracy,
            "teacher_accuracy": after.teacher_accuracy,
            "visible": visible.agreement,
            "positions": after.positions,
            "parameters": student.num_parameters(),
            **seconds,
        }

    def _train_teacher(self, task: str, folder: Path) -> Result:
        settings = self.experiment.tasks
        tokenizer, rows = load_tokenizer(self.experiment.teacher), load_task(task, settings.folder, settings.train, settings.test)
        classes = len(set(rows["train"]["label"]))
        set_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(
            self.experiment.teacher, num_labels=classes, dtype=torch.float32
        )
        with tempfile.TemporaryDirectory() as output:
            args = TrainingArguments(
                output,
                num_train_epochs=settings.teacher_epochs,
                learning_rate=settings.teacher_learning_rate,
                per_device_train_batch_size=settings.batch_size,
                warmup_steps=0.1,
                bf16=self.bf16,
                **QUIET,
            )

            def encoded(batch: Mapping[str, list[str]]) -> Mapping[str, Any]:
                texts = [batch[column] for column in ("text", "pair") if column in batch]
                return tokenizer(*texts, truncation=True, max_length=settings.length)

            train = rows["train"].map(encoded, batched=True)
            Trainer(model, args, DataCollatorWithPadding(tokenizer), train, processing_class=tokenizer).train()
        model.save_pretrained(folder)
        return self._scored(model, tokenizer, rows["test"], task)

    def _task(self, method: Method, student: Cell, task: str, seed: int) -> Result:
        settings = self.experiment.tasks
        teacher_cell = self.task_teacher(task)
        teacher = AutoModelForSequenceClassification.from_pretrained(self.cells.files(teacher_cell), dtype=torch.float32)
        vocab, options = self._student_settings(method)
        prepared = self.prepared(vocab)
        rows = load_task(task, settings.folder, settings.train, settings.test)
        body = load_word_model(str(self.cells.files(student)), dtype=torch.float32).base_model
        set_seed(seed)
        # Pooler and classes are the tuned teacher's, in all methods: what differs is what stage 1 taught.
        classifier = build_student(teacher, vocab=prepared.vocab_map, **options)
        for part in ("embeddings", "encoder"):
            getattr(classifier.base_model, part).load_state_dict(getattr(body, part).state_dict())
        with tempfile.TemporaryDirectory() as output:
            args = GLMDConfig(
                output,
                objective="soft_label",
                num_train_epochs=settings.epochs,
                learning_rate=settings.learning_rate,
                per_device_train_batch_size=settings.batch_size,
                lr_scheduler_type="cosine",
                warmup_steps=0.1,
                max_length=settings.length,
                pair_column="pair" if "pair" in rows["train"].column_names else None,
                seed=seed,
                bf16=self.bf16,
                logging_steps=1_000_000,
                **QUIET,
            )
            GLMDTrainer(
                classifier,
                teacher,
                args,
                rows["train"].remove_columns("label"),
                processing_class=prepared.tokenizer,
                vocab_map=prepared.vocab_map,
            ).train()
        return self._scored(classifier, prepared.tokenizer, rows["test"], task)

    def _scored(self, model: Any, tokenizer: Any, rows: datasets.Dataset, task: str) -> Result:
        chosen, right = predictions(model, tokenizer, rows, self.experiment.tasks.length), rows["label"][:]
        return {"score": TASKS[task].score(np.array(chosen), np.array(right)), "chosen": chosen, "right": right}
