"""The rows a trainer reads, for a cache to be written from and to be compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Any

import datasets
import torch
from accelerate import PartialState
from torch import Tensor

from hf_glmd.errors import UsageError
from hf_glmd.training.teacher_cache import TeacherCache
from hf_glmd.training.teachers import Teacher
from hf_glmd.vocab.counting import tokenizer_fingerprint

CHECKED_ROWS = 1024
"""Rows of a dataset that are looked for in a cache before training begins."""

_CHECKED_AT_ONCE = 64


class CollatedRows:
    """Batches of all rows, once for each epoch's choice of hidden words; of several processes each makes its share.

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


def check_cached(
    cache: TeacherCache, dataset: Any, collator: Callable[..., Any], name: str, read: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    """Raises: UsageError, rows of a dataset are not in the cache. Of a large dataset some rows, evenly spread, are looked for.

    Args:
        cache: to look in, at the collator's epoch 0.
        dataset: rows of token ids; anything without a length is not looked at.
        collator: makes a batch of rows.
        name: what to call the dataset.
        read: the part of a batch that the teacher reads.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return
    chosen = torch.linspace(0, len(dataset) - 1, min(len(dataset), CHECKED_ROWS)).long().unique().tolist()
    missing = 0
    for start in range(0, len(chosen), _CHECKED_AT_ONCE):
        batch = collator(_rows(dataset, chosen[start : start + _CHECKED_AT_ONCE]))
        missing += int((~cache.holds(read(batch), batch["prediction_mask"])).sum())
    if missing:
        raise UsageError(
            f"{missing} of {len(chosen)} rows of {name} that were looked up are not in the cache '{cache.directory}', which was "
            f"made from {cache.made_from}. Cache these rows too, or train on what it was made from."
        )


def _rows(dataset: Any, numbers: Sequence[int]) -> list[Any]:
    return [dataset[number] for number in numbers]
