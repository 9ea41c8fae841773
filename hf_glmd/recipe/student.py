"""The student before it learns anything: its vocabulary, and the teacher's layers, or the checkpoint, that it starts from."""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_glmd.data.sources import read_texts
from hf_glmd.models.student import build_student
from hf_glmd.recipe.inputs import Inputs
from hf_glmd.recipe.task_inputs import first_rows
from hf_glmd.shrinking.shrinker import VocabShrinker
from hf_glmd.shrinking.shrunk_vocab import ShrunkVocab

VERIFIED_TEXTS = 200
"""Counted texts on which the smaller vocabulary is compared with the teacher's before anything is trained with it."""


def make_first_student(folder: Path, inputs: Inputs) -> dict[str, Any]:
    """Counts, cuts, builds; writes tokenizer, vocabulary map, counts and the untrained student.

    Every process calls this: each counts its share of the corpus, and the first one goes on alone.

    Returns: the report of the vocabulary, its counts, thinned, and the seconds it took.
    Raises: UsageError, the vocabulary or the student cannot be made as asked for.
    """
    recipe, section, started = inputs.recipe, inputs.recipe.vocab, time.monotonic()
    tokenizer = inputs.load_tokenizer()
    shrinker = VocabShrinker(tokenizer)
    texts = first_rows(inputs.corpus["train"], section.max_texts, recipe.seed)
    if section.active:
        shrinker.count(texts, column=recipe.corpus.column)  # each process counts its share
    if not inputs.state.is_main_process:
        return {}
    teacher = inputs.load_teacher()
    facts: dict[str, Any] = {}
    vocab = None
    if section.active:
        vocab = shrinker.shrink(
            **{k: v for k in ("size", "coverage", "min_count") if (v := getattr(section, k)) is not None},
            keep=[
                *section.keep,
                *(token for one in inputs.tasks for token in one.task.keep_tokens(inputs.teacher_tokenizer)),
            ],
            removed=section.removed,
            embeddings=teacher.get_input_embeddings().weight.detach() if section.removed == "nearest" else None,
            multiple_of=section.multiple_of,
        )
        verified = list(itertools.islice(read_texts(texts, recipe.corpus.column)[0], VERIFIED_TEXTS))
        vocab.verify(verified, model=teacher)
        vocab.save_pretrained(folder)
        shrinker.save_counts(folder / "counts.safetensors")
        facts["report"] = dataclasses.asdict(vocab.report)
        facts["curve"] = _long_tail(shrinker.counts)
    else:
        tokenizer.save_pretrained(folder)
    _untrained_student(inputs, teacher, vocab).save_pretrained(folder)
    return {**facts, "seconds": time.monotonic() - started}


def _untrained_student(inputs: Inputs, teacher: PreTrainedModel, vocab: ShrunkVocab | None) -> PreTrainedModel:
    section = inputs.recipe.student
    if section.model is not None:
        student = inputs.load_student()
        return student if vocab is None else vocab.resize(student)
    return build_student(
        teacher,
        num_layers=inputs.num_layers,
        vocab=vocab,
        init=section.init,
        dtype=torch.float32,
        **({"layers": section.layers} if section.layers else {}),
        **section.config,
    )


def _long_tail(counts: np.ndarray, points: int = 512) -> tuple[list[int], list[int]]:
    """Counts, commonest first, at ranks that are even on a logarithmic axis."""
    ordered = np.sort(counts)[::-1]
    ranks = np.unique(np.geomspace(1, len(ordered), points).round().astype(int))
    return ranks.tolist(), ordered[ranks - 1].tolist()
