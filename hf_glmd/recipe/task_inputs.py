"""A task of a recipe: its questions for teacher and student, and the data they are made of."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import datasets
import numpy as np
import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from hf_glmd.data.corpus import load_corpus
from hf_glmd.errors import UsageError
from hf_glmd.recipe.config import Recipe, TaskSection
from hf_glmd.tasks.augmentation import WordReplacer
from hf_glmd.tasks.candidates import LogitsAt
from hf_glmd.tasks.catalogue import task_by_name
from hf_glmd.tasks.cloze import ClozeTask
from hf_glmd.tasks.examples import QuestionWriter
from hf_glmd.tasks.loading import examples_of, load_task_data
from hf_glmd.tasks.metrics import TaskMetric
from hf_glmd.tasks.scoring import chosen_patterns, encode_reworded

HELD_OUT_SHARE, HELD_OUT_ROWS = 0.1, 1000
"""Of the training examples, for choosing the teacher's best checkpoint, where nothing else is left but what is scored."""

_TASK_FIELDS = (
    "pattern",
    "verbalizers",
    "candidates",
    "candidate_answers",
    "metric",
    "split_verbalizers",
    "length_normalised",
    "too_long",
    "label_column",
    "source",
)


class Reader(Protocol):
    """What a task asks of the teacher.

    Attributes:
        causal: whether it predicts the next word rather than a hidden one.
        readable: the most token ids it can read, as far as tasks go.
    """

    causal: bool
    readable: int


class TaskInputs:
    """What a recipe says of one task, loaded when it is first asked for.

    Args:
        section: of the task.
        recipe: that names it.
        state: of the processes; the first one loads, the others read what it cached.
        teacher: what is known of the teacher; asked only when it is needed.

    Attributes:
        folder: of its stages, where there are several tasks; else empty.
        label: its name in brackets, where there are several tasks; else empty.
    """

    def __init__(self, section: TaskSection, recipe: Recipe, state: PartialState, teacher: Reader) -> None:
        self.section, self.state, self.seed, self.teacher = section, state, recipe.seed, teacher
        self._written: dict[tuple[str, int, bool], list[datasets.Dataset]] = {}
        self.taught = recipe.task_teacher is not None
        self.folder = section.name if recipe.tasks is not None else ""
        self.label = f" ({section.name})" if recipe.tasks is not None else ""

    @property
    def length(self) -> int:
        """Token ids per question."""
        return self.section.max_length or self.teacher.readable

    @cached_property
    def task(self) -> ClozeTask:
        """Raises: UsageError, there is no such task, or the parts do not make one."""
        section = self.section
        changes: dict[str, Any] = {name: value for name in _TASK_FIELDS if (value := getattr(section, name)) is not None}
        if section.pattern is not None:
            return ClozeTask(section.name, **changes)
        known = task_by_name(section.name)
        return known.changed(**changes) if changes else known

    @cached_property
    def patterns(self) -> list[int]:
        return chosen_patterns(self.task, self.section.pattern_number, self.teacher.causal)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises: UsageError, the task cannot be asked with this tokenizer."""
        self.task.check_tokenizer(tokenizer, causal=self.teacher.causal)
        for number in self.patterns:  # each makes sure that it leaves room for text
            QuestionWriter(self.task.patterns[number], tokenizer, self.length, self.teacher.causal, self.task.name)

    @cached_property
    def data(self) -> datasets.DatasetDict:
        """`train`, `validation` (to choose checkpoints by), `test` (to score), `student` (no labels), and `predict_splits`.

        Raises: UsageError, a split or column is missing, or the labels where they are needed.
        """
        section = self.section
        data = self._load(section.data)
        scored = self._load(section.test_data) if section.test_data is not None else data
        train, test = self._split(data, section.train_split), self._split(scored, section.test_split)
        if "validation" in data and (scored is not data or section.test_split != "validation"):
            held_out = data["validation"]
        else:
            train, held_out = self._parted(train)
        for part in (train, held_out):
            self.task.check_columns(part, labelled=self.taught)
        self.task.check_columns(test, labelled=True)
        more = {split: self._split(scored, split) for split in section.predict_splits}
        for part in more.values():
            self.task.check_columns(part, labelled=False)
        train = first_rows(train, section.max_train, self.seed)
        return datasets.DatasetDict(
            train=train,
            student=self._student_examples(train),
            validation=held_out,
            test=self._whole_questions(test),
            **{f"predict_{split}": part for split, part in more.items()},
        )

    def _whole_questions(self, test: datasets.Dataset) -> datasets.Dataset:
        """At most `max_test` examples, and with each all that it is judged together with (the answer options of MultiRC)."""
        count, metric = self.section.max_test, self.task.metric
        if count is None or len(test) <= count or not isinstance(metric, TaskMetric):
            return first_rows(test, count, self.seed)
        rows: dict[Any, list[int]] = {}
        for row, key in enumerate(metric.judged_together(test)):
            rows.setdefault(key, []).append(row)
        groups, chosen = list(rows.values()), []
        for number in np.random.default_rng(self.seed).permutation(len(groups)):
            if chosen and len(chosen) + len(groups[number]) > count:
                break
            chosen += groups[number]
        return test.select(sorted(chosen))

    def _student_examples(self, train: datasets.Dataset) -> datasets.Dataset:
        """The training examples and the unlabelled ones, without labels."""
        parts = [train]
        if self.section.unlabelled is not None:
            parts += self._load(self.section.unlabelled).values()
        for part in parts:
            self.task.check_columns(part, labelled=False)
        return datasets.concatenate_datasets([part.select_columns(self.task.columns) for part in parts])

    def _load(self, source: str) -> datasets.DatasetDict:
        with self.state.main_process_first():  # the others read what it cached
            if self.task.official is not None:
                return load_task_data(self.task, source, self.section.config)
            data = load_corpus(source, self.section.config, self.seed)
            return datasets.DatasetDict({split: examples_of(part, self.task) for split, part in data.items()})

    def _split(self, data: datasets.DatasetDict, split: str) -> datasets.Dataset:
        if split not in data:
            raise UsageError(
                f"the data of task {self.section.name} have the splits {list(data)}, not '{split}'. Name one of them."
            )
        return data[split]

    def _parted(self, train: datasets.Dataset) -> tuple[datasets.Dataset, datasets.Dataset]:
        count = max(1, min(HELD_OUT_ROWS, int(len(train) * HELD_OUT_SHARE)))
        if len(train) <= count:
            raise UsageError(
                f"task {self.section.name} has {len(train)} training examples, too few to hold some out. Give more of them."
            )
        parts = train.train_test_split(test_size=count, seed=self.seed)
        return parts["train"], parts["test"]

    def copies_with_replaced_words(
        self, teacher: LogitsAt, tokenizer: PreTrainedTokenizerBase, device: torch.device
    ) -> datasets.Dataset:
        """More examples for the student, see `WordReplacer`. Candidates stay as they are.

        Args:
            teacher: predicts masked tokens.
            tokenizer: the teacher's.
        """
        data, candidates = self.data["student"], self.task.candidates or ()
        read = {column for number in self.patterns for column in self.task.patterns[number].columns}
        texts = [
            name
            for name, feature in data.features.items()
            if name in read and name not in candidates and getattr(feature, "dtype", None) in ("string", "large_string")
        ]
        replacer = WordReplacer(
            teacher,
            tokenizer,
            max_length=self.length,
            share=self.section.replaced_share,
            untouched=self.task.keep_tokens(tokenizer),
            seed=self.seed,
        )
        return replacer.copies(data, texts, self.section.replaced_copies, device)

    def add_examples(self, more: datasets.Dataset) -> None:
        """For the student, beside those it has."""
        self.data["student"] = datasets.concatenate_datasets([self.data["student"], more])
        self._written = {key: parts for key, parts in self._written.items() if key[0] != "student"}

    def check_examples(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Writes all questions that the teacher will be asked, which takes no more time than later.

        Raises: UsageError, an example cannot be asked.
        """
        for split in self.data:
            if split != "student" and not (split == "train" and not self.taught):
                self.wordings(split, tokenizer, labelled=self.taught and split in ("train", "validation"))

    def wordings(self, split: str, tokenizer: PreTrainedTokenizerBase, labelled: bool) -> list[datasets.Dataset]:
        """The questions of a split, once in each wording; written once for each tokenizer."""
        key = (split, id(tokenizer), labelled)
        if key not in self._written:
            data, options = self.data[split], {"labelled": labelled, "causal": self.teacher.causal}
            with self.state.main_process_first():
                self._written[key] = encode_reworded(self.task, data, tokenizer, self.length, self.patterns, **options)
        return self._written[key]

    def questions(self, split: str, tokenizer: PreTrainedTokenizerBase, labelled: bool) -> datasets.Dataset:
        """The questions of a split in all wordings."""
        parts = self.wordings(split, tokenizer, labelled)
        return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def first_rows(dataset: datasets.Dataset, count: int | None, seed: int) -> datasets.Dataset:
    """`count` rows chosen at random, the same ones every time; all rows if there are no more. Of a stream the first ones."""
    if not hasattr(dataset, "__len__"):
        return dataset if count is None else dataset.take(count)
    if count is None or len(dataset) <= count:
        return dataset
    return dataset.shuffle(seed=seed).select(range(count))
