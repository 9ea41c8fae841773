"""A task as a cloze question: the model fills a blank, and each answer has a word that stands for it.

Source: PET, arXiv:2001.07676 (patterns and verbalizers).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from hf_glmd.corpora.blocks import boundary_ids
from hf_glmd.errors import UsageError
from hf_glmd.models.heads import answer_logits
from hf_glmd.tasks.metrics import accuracy
from hf_glmd.training.collators import AnswerCollator

MASK_FIELD = "mask"


@dataclass(frozen=True)
class ClozeTask:
    """A row of data that says how examples become questions.

    Attributes:
        name: what tables call it.
        pattern: text with one `{mask}` and the columns it reads, e.g. "from {mask} : {text}".
        verbalizers: answer as it stands in the data (see `answer_key`) -> the one word that stands for it.
        label_column: where gold answers are, for the teacher's fine-tuning and for scoring.
        metric: predictions [n], references [n] (both indices into `verbalizers`) -> score in [0, 1].
        source: where pattern and words come from.
    """

    name: str
    pattern: str
    verbalizers: Mapping[str, str]
    label_column: str = "label"
    metric: Callable[[np.ndarray, np.ndarray], float] = field(default=accuracy)
    source: str = ""

    def __post_init__(self) -> None:
        if self.pattern.count("{" + MASK_FIELD + "}") != 1:
            raise UsageError(f"pattern '{self.pattern}' of task {self.name} needs the blank {{mask}} exactly once.")
        if not self.columns:
            raise UsageError(f"pattern '{self.pattern}' of task {self.name} reads no column. Name one, e.g. {{text}}.")
        if len(self.verbalizers) < 2:
            raise UsageError(f"task {self.name} has {len(self.verbalizers)} verbalizers. Give at least two answers.")
        words = list(self.verbalizers.values())
        if len(set(words)) < len(words):
            raise UsageError(f"two answers of task {self.name} share a verbalizer: {words}. Give each a word of its own.")

    @property
    def columns(self) -> list[str]:
        """The columns that the pattern reads."""
        return [name for name in self._pieces()[1::2] if name != MASK_FIELD]

    @property
    def answers(self) -> list[str]:
        return list(self.verbalizers)

    @property
    def answer_index(self) -> dict[str, int]:
        """`answer_key` of a gold answer -> its place in `answers`."""
        return {answer: number for number, answer in enumerate(self.answers)}

    @property
    def keep_texts(self) -> list[str]:
        """What a smaller vocabulary must be able to write: the words and the pattern's own text."""
        return [*self.verbalizers.values(), *(piece for piece in self._pieces()[::2] if piece.strip())]

    def _pieces(self) -> list[str]:
        """Literal, field, literal, field, ..., literal."""
        return re.split(r"\{(\w+)\}", self.pattern)

    def candidate_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The token id of each answer's word, in the order of `answers`.

        Raises: UsageError, a word is not a single token, or the tokenizer has no mask token.
        """
        if tokenizer.mask_token_id is None:
            raise UsageError(f"the tokenizer has no mask token, so task {self.name} has no blank. Use a masked language model.")
        spaced = self.pattern.split("{" + MASK_FIELD + "}")[0].endswith(" ")
        ids = []
        for answer, word in self.verbalizers.items():
            pieces = tokenizer((" " if spaced else "") + word, add_special_tokens=False)["input_ids"]
            if len(pieces) != 1 or pieces[0] == tokenizer.unk_token_id:
                raise UsageError(
                    f"verbalizer '{word}' of answer '{answer}' in task {self.name} is not a single token but "
                    f"{tokenizer.convert_ids_to_tokens(pieces)}. Choose another word for it."
                )
            ids.append(pieces[0])
        return ids

    def check_columns(self, dataset: datasets.Dataset, labelled: bool) -> None:
        """Raises: UsageError, a column that the task reads is missing, or a gold answer has no verbalizer."""
        wanted = self.columns + ([self.label_column] if labelled else [])
        missing = [column for column in wanted if column not in dataset.column_names]
        if missing:
            raise UsageError(
                f"task {self.name} reads the columns {missing}, the data have {dataset.column_names}. Rename one side."
            )
        if labelled:
            unknown = {answer_key(value) for value in dataset[self.label_column]} - set(self.verbalizers)
            if unknown:
                raise UsageError(
                    f"the data of task {self.name} have the answers {sorted(unknown)} in column '{self.label_column}', "
                    f"its verbalizers are for {self.answers}. Add a word for each."
                )

    def encode(
        self, dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, labelled: bool = False
    ) -> datasets.Dataset:
        """Examples as token ids.

        Too long examples lose the end of their longest field, never the blank or the pattern. Special tokens that are written
        out in the data ("[MASK]" in a text about BERT) are plain text there.

        Args:
            labelled: keep the gold answer. Only the teacher's fine-tuning and the scoring may ask for it.
        Returns: `Dataset` of `input_ids` (list of int), `blank` (position of the mask token), `candidate_ids` (list of int, one
            per answer) and, if asked for, `answer` (index into `answers`).
        Raises: UsageError, see `check_columns` and `candidate_ids`, or the pattern leaves no room for the example.
        """
        self.check_columns(dataset, labelled)
        candidates = self.candidate_ids(tokenizer)
        index = self.answer_index
        start, end = boundary_ids(tokenizer)
        pieces = self._pieces()
        literals = _token_ids(pieces[::2], tokenizer)
        names = pieces[1::2]
        room = max_length - len(start) - len(end) - sum(map(len, literals)) - 1
        if room < len(self.columns):
            raise UsageError(
                f"pattern '{self.pattern}' leaves no room for text in {max_length} tokens. Shorten it or raise max_length."
            )

        def encode_batch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            texts = {name: _token_ids([str(text) for text in batch[name]], tokenizer) for name in self.columns}
            rows: dict[str, list[Any]] = {"input_ids": [], "blank": []}
            for number in range(len(batch[self.columns[0]])):
                parts = {name: texts[name][number] for name in self.columns}
                _shorten_longest(parts, room)
                ids = [*start, *literals[0]]
                for name, literal in zip(names, literals[1:], strict=True):
                    if name == MASK_FIELD:
                        rows["blank"].append(len(ids))
                        ids.append(tokenizer.mask_token_id)
                    else:
                        ids += parts[name]
                    ids += literal
                rows["input_ids"].append(ids + end)
            rows["candidate_ids"] = [candidates] * len(rows["blank"])
            if labelled:
                rows["answer"] = [index[answer_key(value)] for value in batch[self.label_column]]
            return rows

        return dataset.map(
            encode_batch, batched=True, remove_columns=dataset.column_names, desc=f"Writing {self.name} as cloze questions"
        )


def answer_key(value: Any) -> str:
    """A gold answer as recipes spell it: booleans as `true` and `false`, numbers by their digits."""
    return str(value).lower() if isinstance(value, bool) else str(value)


@torch.no_grad()
def predict_answers(
    logits_at: Callable[[Mapping[str, Any], torch.Tensor], torch.Tensor],
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    batch_size: int = 64,
    desc: str = "Answering",
) -> np.ndarray:
    """The likeliest candidate of each row, as an index into its candidates: int64 [n].

    The rows are shared among the processes of an `accelerate launch`; each of them gets all answers.

    Args:
        logits_at: model inputs, bool positions [B, S] -> logits [B, K], e.g. `LiveTeacher.logits`.
        rows: as `ClozeTask.encode` makes them.
    """
    state = PartialState()
    collate = AnswerCollator(tokenizer)
    # Rows of like length side by side waste little on padding.
    order = sorted(range(len(rows)), key=[len(ids) for ids in rows["input_ids"]].__getitem__)[
        state.process_index :: state.num_processes
    ]
    found: list[tuple[int, int]] = []
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, desc=desc, unit="batch", disable=not state.is_local_main_process, leave=False):
        numbers = order[start : start + batch_size]
        batch = {key: value.to(device) for key, value in collate([rows[number] for number in numbers]).items()}
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        logits = answer_logits(logits_at(inputs, batch["prediction_mask"]), batch["candidate_ids"])
        found += zip(numbers, logits.argmax(-1).tolist(), strict=True)
    if state.num_processes > 1:
        found = gather_object(found)
    return np.array([answer for _, answer in sorted(found)], dtype=np.int64)


def _token_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def _shorten_longest(parts: dict[str, list[int]], room: int) -> None:
    """Cuts the ends of the longest fields until all of them fit together."""
    while (excess := sum(map(len, parts.values())) - room) > 0:
        lengths = sorted((len(ids) for ids in parts.values()), reverse=True)
        longest = max(parts, key=lambda name: len(parts[name]))
        step = lengths[0] - lengths[1] if len(lengths) > 1 else excess
        parts[longest] = parts[longest][: -max(1, min(excess, step))]
