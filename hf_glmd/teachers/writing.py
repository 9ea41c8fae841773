"""A cache written from the rows that a trainer will read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Any

import datasets
from accelerate import PartialState
from torch import Tensor

from hf_glmd.teachers.base import Teacher
from hf_glmd.teachers.cache import TeacherCache
from hf_glmd.vocab.counting import tokenizer_fingerprint


class CollatedRows:
    """Batches of all rows, once for each epoch's choice of masked tokens; of several processes each makes its share.

    Args:
        parts: datasets, each with the number of epochs: the collator's epochs 0, 1, ...
        collator: makes a batch of rows.
        batch_size: rows per batch.
    """

    def __init__(self, parts: Sequence[tuple[datasets.Dataset, int]], collator: Callable[..., Any], batch_size: int) -> None:
        self.collator = collator
        state = PartialState()
        starts = [
            (dataset, epoch, start)
            for dataset, epochs in parts
            for epoch in range(epochs)
            for start in range(0, len(dataset), batch_size)
        ]
        self._mine, self._size = starts[state.process_index :: state.num_processes], batch_size

    def __len__(self) -> int:
        return len(self._mine)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        before = getattr(self.collator, "epoch", 0)
        try:
            for dataset, epoch, start in self._mine:
                self.collator.epoch = epoch
                yield self.collator(_rows(dataset, range(start, min(start + self._size, len(dataset)))))
        finally:
            self.collator.epoch = before


def _rows(dataset: Any, numbers: Sequence[int]) -> list[Any]:
    return [dataset[number] for number in numbers]


def write_cache(
    teacher: Teacher,
    parts: Sequence[tuple[datasets.Dataset, int]],
    collator: Any,
    tokenizer: Any,
    folder: str | PathLike[str],
    *,
    data: dict[str, Any],
    batch_size: int = 32,
    **settings: Any,
) -> TeacherCache:
    """Runs the teacher over rows and writes what `GLMDTrainer` will look up when it reads the same rows.

    Args:
        teacher: to be cached.
        parts, batch_size: as of `CollatedRows`.
        collator: the trainer's.
        tokenizer: the student's.
        folder: of the cache; if it was begun before, it is gone on with.
        data: where the rows come from, in values of JSON; the collator's choices and the epochs are added.
        **settings: kind, dtype, k, temperature, shard_mib and progress of `TeacherCache.build`.
    Raises: UsageError, a setting makes no sense, or the folder holds another cache.
    """
    epochs = max(epochs for _, epochs in parts)
    fingerprint = {
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "data": {**data, **getattr(collator, "choices", {}), "epochs": epochs},
    }
    batches = CollatedRows(parts, collator, batch_size)
    return TeacherCache.build(teacher, batches, folder, fingerprint=fingerprint, **settings)
