"""A stage of a recipe whose teacher is run over the stage's rows first, once, and then read from disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from hf_glmd.recipe.config import CacheSection
from hf_glmd.recipe.task_inputs import first_rows
from hf_glmd.teachers.cache import TeacherCache
from hf_glmd.teachers.live import LiveTeacher
from hf_glmd.teachers.writing import write_cache
from hf_glmd.training.config import GLMDConfig
from hf_glmd.training.objectives.kinds import default_collator


def rows_of_training(train: datasets.Dataset, args: GLMDConfig) -> datasets.Dataset:
    """The rows that so many steps read; all of them, if that is not less than an epoch."""
    if args.max_steps <= 0:
        return train
    rows = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return first_rows(train, rows, args.seed)


def cached_stage(
    section: CacheSection,
    folder: Path,
    teacher: LiveTeacher,
    train: datasets.Dataset,
    held_out: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    args: GLMDConfig,
    source: dict[str, Any],
) -> TeacherCache:
    """Writes what the teacher predicts for a stage's rows, or goes on with it, or finds that it is there.

    Args:
        section: how to store it.
        folder: where.
        teacher: to be cached, on the device it runs on.
        train, held_out: the stage's rows.
        tokenizer: the student's.
        args: of the stage.
        source: what the rows were made from, in values of JSON.
    Raises: UsageError, a setting makes no sense, or the folder holds another cache.
    """
    steps = math.ceil(len(train) / (args.train_batch_size * args.gradient_accumulation_steps * args.world_size))
    read = math.ceil(args.max_steps / steps if args.max_steps > 0 else args.num_train_epochs)
    epochs = min(section.epochs, read)
    top = section.kind == "topk"
    return write_cache(
        teacher,
        [(train, epochs), (held_out, 1)],
        default_collator(args, tokenizer, teacher.model),
        tokenizer,
        folder,
        data=source,
        batch_size=args.per_device_eval_batch_size,
        kind=section.kind,
        dtype=section.dtype,
        k=section.k if top else None,
        temperature=args.temperature if top else None,
    )
