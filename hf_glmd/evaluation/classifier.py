"""A student that answers: the task it learnt, asked of texts of one's own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_glmd.errors import UsageError
from hf_glmd.models.heads import is_masked_lm
from hf_glmd.models.lengths import readable, row_length
from hf_glmd.models.loading import load_word_model
from hf_glmd.tasks.cloze import ClozeTask
from hf_glmd.tasks.scoring import averaged_scores, chosen_patterns, encode_reworded, score_candidates
from hf_glmd.tasks.task_file import SavedTask
from hf_glmd.teachers.live import LiveTeacher
from hf_glmd.vocab.mapped_tokenizer import load_tokenizer
from hf_glmd.vocab.tokenizer_files import set_missing_pad_token

Examples = str | Mapping[str, Any] | Sequence[str] | Sequence[Mapping[str, Any]] | datasets.Dataset

SHOWN_FROM = 1000
"""Examples from which on progress is shown."""


class ClozeClassifier:
    """A masked or causal language model that answers a cloze task.

    Args:
        model: with a word-prediction head; it is put into evaluation mode.
        tokenizer: of its vocabulary.
        task: what is asked.
        patterns: numbers of the task's patterns, whose answers are averaged. None: the first that suits the model.
        max_length: token ids per question; longer texts are shortened, see `ClozeTask.encode`. None: what the model can read, at
            most 512.
    Raises: UsageError, the task cannot be asked with this tokenizer.
    Source: PET, arXiv:2001.07676 (cloze questions).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: ClozeTask,
        patterns: Sequence[int] | None = None,
        max_length: int | None = None,
    ) -> None:
        self.model, self.tokenizer, self.task = model.eval(), tokenizer, task
        self.causal = not is_masked_lm(model)
        set_missing_pad_token(tokenizer)
        task.check_tokenizer(tokenizer, causal=self.causal)
        self.patterns = list(patterns) if patterns is not None else chosen_patterns(task, "first", self.causal)
        self.max_length = row_length(max_length, readable([model]), tokenizer, readers="the model can")

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], revision: str | None = None, device: str | torch.device | None = None
    ) -> ClozeClassifier:
        """The student of a recipe with a task.

        Args:
            name: a folder, or a model on the Hub.
            revision: branch, tag or commit on the Hub.
            device: None: the accelerator, if there is one.
        Raises: UsageError, there is no such model, or it was trained on no task.
        """
        saved = SavedTask.load(name, revision)
        device = torch.device(device) if device is not None else PartialState().device
        dtype = {"dtype": torch.float32} if device.type == "cpu" else {}  # half precision is slow there
        model = load_word_model(name, revision=revision, **dtype).to(device)
        return cls(model, load_tokenizer(name, revision), saved.task, saved.patterns, saved.max_length)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes model, tokenizer and cloze_task.json. Raises: UsageError, a part of the task is a function."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        SavedTask(self.task, self.patterns, self.max_length).save(folder)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def predict(self, examples: Examples, batch_size: int = 64) -> list[str]:
        """The most probable answer to each example.

        Args:
            examples: texts, for a task that reads one column; or rows with the columns of `task.columns`, whose other columns are
                not read. One text or row is a list of one.
            batch_size: sequences per forward pass.
        Returns: answers as the labels of the task's data spell them; of candidates that examples bring along, their text.
        Raises: UsageError, a row lacks a column, or has nothing in it.
        """
        data = self.rows(examples)
        scores = self.scores(data, batch_size)
        return self.task.predictions(data, scores.argmax(-1)) if len(data) else []

    def predict_proba(self, examples: Examples, batch_size: int = 64) -> np.ndarray:
        """How the probability is shared among the answers, in the order of `task.answers` (or of each row's candidates).

        Args: as of `predict`.
        Returns: fp64 [n, C]; each row sums to 1, and is 0 where a row has fewer than C candidates.
        """
        return np.exp(self.scores(self.rows(examples), batch_size))

    def scores(self, data: datasets.Dataset, batch_size: int = 64) -> np.ndarray:
        """The log of `predict_proba`, for rows as `rows` makes them: fp64 [n, C]."""
        if not len(data):
            return np.zeros((0, len(self.task.answers)))
        long, how = len(data) >= SHOWN_FROM, {"labelled": False, "causal": self.causal}
        with nullcontext() if long else _no_bars():
            parts = encode_reworded(self.task, data, self.tokenizer, self.max_length, self.patterns, **how)
        logits = LiveTeacher(self.model).logits
        tables = [score_candidates(logits, part, self.tokenizer, self.model.device, batch_size, progress=long) for part in parts]
        return averaged_scores(tables)

    def rows(self, examples: Examples) -> datasets.Dataset:
        """Examples as a data set with the task's columns. Raises: as `predict`."""
        if isinstance(examples, datasets.Dataset):
            self.task.check_columns(examples, labelled=False)
            return self.task.prepared(examples)
        if isinstance(examples, str | Mapping):
            examples = [examples]
        rows = [self._row(number, example) for number, example in enumerate(examples)]
        if not rows:
            return datasets.Dataset.from_dict({column: [] for column in self.task.columns})
        names = dict.fromkeys(name for row in rows for name in row)
        data = datasets.Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
        self.task.check_columns(data, labelled=False)
        return self.task.prepared(data)

    def _row(self, number: int, example: Any) -> dict[str, Any]:
        columns = self.task.columns
        if isinstance(example, Mapping):
            return dict(example)
        if not isinstance(example, str):
            raise UsageError(f"example {number} is {type(example).__name__}: give a text, or a row with the columns {columns}.")
        if len(columns) != 1:
            raise UsageError(
                f"task {self.task.name} reads the columns {columns}: give rows with them, e.g. {_example_of(columns)}."
            )
        return {columns[0]: example}


@contextmanager
def _no_bars() -> Iterator[None]:
    shown = not datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _example_of(columns: Sequence[str]) -> str:
    return "{" + ", ".join(f'"{column}": "..."' for column in columns) + "}"
